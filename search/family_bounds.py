"""Floors on time under a framework's rules on stages: whole layers, and one setting for all stages.

A setting leaves a stage of ``n`` layers one choice, so that its time and memory are known. What
stays relaxed is which stages have how many layers, and, for a recompute count, that a larger count
than the least possible one may leave room for more layers on a stage.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.costs import Column
from autoshard.costmodels.legality import Legality
from autoshard.costmodels.profile import StageCosts
from autoshard.search import bounds
from autoshard.search.interleaving import fewest_layers
from autoshard.search.rows import Rows


def family_floors_s(
    rows: Rows, held: Column, most: int, budget_bytes: float, legality: Legality
) -> tuple[Column, Column]:
    """Floors of rows with ``pp > 1`` stages over all settings.

    Seconds of a step without exposed work, ``[n]``, infinite where no setting fits; and which rows
    they hold for: a setting has to be one for all stages, and a recompute count wants a ladder that
    trades time for memory.
    """
    if legality.remat == "by-stage":
        return np.zeros(len(rows)), np.zeros(len(rows), dtype=np.bool_)
    rungs = rows.costs.saved_bytes.shape[1]
    dealt = legality.dealt(rows.n_layers, held.shape[1])
    counted = legality.remat == "one-count" and rungs > 1
    floor = np.full(len(rows), np.inf)
    for rung in range(rungs):
        if not counted or 0 < rung < rungs - 1:
            took = stage_s(rows, held, most, rung, rung, np.zeros(len(rows)))
            took[_bytes(rows, held, most, rung) > budget_bytes * (1.0 + bounds.SLACK)] = np.inf
            floor = np.minimum(floor, _step_s(rows, took, took, dealt))
    if not counted:
        return floor, np.ones(len(rows), dtype=np.bool_)
    known = _trades(rows.costs)
    count = _least_count(rows, held, budget_bytes, dealt)
    low = stage_s(rows, held, most, 0, rungs - 1, np.zeros(len(rows)))
    took = stage_s(rows, held, most, 0, rungs - 1, count)
    beyond = _bytes(rows, held, most, rungs - 1) > budget_bytes * (1.0 + bounds.SLACK)
    low[beyond] = took[beyond] = np.inf
    step = _step_s(rows, took, low, dealt, count)
    return np.minimum(floor, np.where(np.isfinite(count), step, np.inf)), known


def stage_s(rows: Rows, held: Column, most: int, low: int, high: int, count: Column) -> Column:
    """Seconds of each stage with 0 to ``most + 1`` layers, ``[n, pp, most + 2]``.

    As many as ``count`` ``[n]`` layers run on the rung ``high``, the others on ``low``.
    """
    costs, pp = rows.costs, held.shape[1]
    layers = np.arange(most + 2, dtype=np.float64)
    again = np.minimum(np.where(np.isfinite(count), count, 0.0)[:, None], layers)
    total = np.repeat(np.repeat(costs.send_s[:, None, None], pp, axis=1), most + 2, axis=2)
    for places, passes in ((costs.forward_s, "forward"), (costs.backward_s, "backward")):
        longest = np.zeros_like(total)
        for j in range(costs.layer_backward_s.shape[1]):
            if passes == "forward":
                form = costs.forward_s["layer"][:, j, None] * layers
            else:
                first, last = (costs.layer_backward_s[:, j, r, None] for r in (low, high))
                form = first * (layers - again) + last * again
            stages = np.repeat(form[:, None, :], pp, axis=1)
            stages[:, 0] += places["embedding"][:, j, None]
            stages[:, -1] += places["head"][:, j, None]
            np.maximum(longest, stages, out=longest)
        total += longest
    return total


def _bytes(rows: Rows, held: Column, most: int, rung: int) -> Column:
    """Bytes of each stage with 0 to ``most + 1`` layers on one rung, ``[n, pp, most + 2]``."""
    layers = np.arange(most + 2, dtype=np.float64)
    per_layer = _per_layer(rows, held, rung)
    return _ends(rows, held.shape[1])[:, :, None] + per_layer[:, :, None] * layers


def _per_layer(rows: Rows, held: Column, rung: int) -> Column:
    """Bytes of one layer on each stage, ``[n, pp]``."""
    costs = rows.costs
    per: Column = costs.state_bytes["layer"][:, None] + held * costs.saved_bytes[:, rung, None]
    return per


def _ends(rows: Rows, pp: int) -> Column:
    """Bytes of each stage without layers, ``[n, pp]``."""
    costs = rows.costs
    ends = np.repeat(costs.fixed_bytes[:, None], pp, axis=1)
    ends[:, 0] += costs.state_bytes["embedding"]
    ends[:, -1] += costs.state_bytes["head"]
    return ends


def _trades(costs: StageCosts) -> np.ndarray:
    """Rows whose last rung is at most as large and no faster than the first, in every form."""
    slower = costs.layer_backward_s[:, :, -1] >= costs.layer_backward_s[:, :, 0]
    trades: np.ndarray = np.logical_and(
        slower.all(axis=1), costs.saved_bytes[:, -1] <= costs.saved_bytes[:, 0]
    )
    return trades


def _least_count(
    rows: Rows, held: Column, budget_bytes: float, dealt: NDArray[np.int64] | None
) -> Column:
    """Layers of a stage that have to be on the last rung, ``[n]``; infinite where that is too few.

    The least count of a chunk at which stages within the budget hold all layers, times ``vpp``.
    """
    c, pp = rows.candidates, held.shape[1]
    room = budget_bytes * (1.0 + bounds.SLACK) - _ends(rows, pp)
    low, high = (np.maximum(_per_layer(rows, held, r), 1e-9) for r in (0, -1))
    fewest = fewest_layers(rows.n_layers, pp, c.vpp) if dealt is None else dealt[None, :]

    def fits(count: Column) -> Any:
        forced = (count * c.vpp)[:, None]
        over = room - forced * high
        most = np.floor(np.where(over < 0, room / high, forced + over / low) * (1.0 + 1e-12))
        return (most >= fewest).all(axis=1) & (most.sum(axis=1) >= rows.n_layers)

    bottom = np.zeros(len(rows))
    top = np.ceil(rows.n_layers / c.vpp)
    possible = fits(top)
    top = np.where(fits(bottom), 0.0, top)
    while (top - bottom > 1).any():
        middle = np.floor(0.5 * (bottom + top))
        enough = fits(middle)
        top, bottom = np.where(enough, middle, top), np.where(enough, bottom, middle)
        bottom = np.minimum(bottom, top)
    return np.where(possible, top * c.vpp, np.inf)


def _step_s(
    rows: Rows,
    took: Column,
    low: Column,
    dealt: NDArray[np.int64] | None,
    count: Column | None = None,
) -> Column:
    """A floor on the step without exposed work, ``[n]``.

    ``took`` ``[n, pp, most + 2]`` is what stages take at least, rising in the number of layers;
    ``low`` the same and convex. Where they differ, by ``count`` layers on a slower rung, a plan
    with at most ``m`` layers a stage has at least so many of those layers in all, and a slowest
    stage of ``m`` layers.
    """
    costs, layers = rows.costs, rows.n_layers
    n, pp, width = took.shape
    if dealt is not None:
        stages = took[:, np.arange(pp), dealt]
        return _weighted_s(costs, stages.max(axis=1), stages.sum(axis=1))
    most = width - 2
    fewest = fewest_layers(layers, pp, rows.candidates.vpp)
    slowest = np.partition(took[:, :, 1 : most + 1].reshape(n, -1), layers - 1, axis=1)
    slowest = np.minimum(slowest[:, layers - 1], took[:, :, most + 1].min(axis=1))
    at_least = np.take_along_axis(took, fewest[:, :, None], axis=2)
    slowest = np.maximum(slowest, at_least.max(axis=(1, 2)))
    total = _total_s(low, layers)
    if count is None or not count[np.isfinite(count)].any():
        return _weighted_s(costs, slowest, total)
    slower = (costs.layer_backward_s[:, :, -1] - costs.layer_backward_s[:, :, 0]).min(axis=1)
    again = np.where(np.isfinite(count), count, 0.0)[:, None]
    # By the most layers of a stage: so many at least are recomputed, the others being shortest.
    largest = np.arange(-(-layers // pp), most + 2)[None, :]
    few = fewest.min(axis=1, keepdims=True)
    top = np.where(largest == most + 1, layers - (pp - 1) * few, largest)
    spare = layers - pp * few
    full = np.where(top > few, spare // np.maximum(top - few, 1), 0)
    rest = few + spare - full * (top - few)
    redone = full * np.minimum(again, top) + np.minimum(again, rest)
    redone = redone + (pp - full - 1) * np.minimum(again, few)
    redone = np.where(full >= pp, pp * np.minimum(again, top), redone)
    longest = np.maximum(slowest[:, None], took[:, :, -(-layers // pp) :].min(axis=1))
    sums = total[:, None] + np.maximum(slower, 0.0)[:, None] * redone
    floor: Column = _weighted_s(costs, longest.T, sums.T).min(axis=0)
    return floor


def _weighted_s(costs: StageCosts, slowest: Column, total: Column) -> Column:
    """A step from its slowest stage and the sum of stages ``[..., n]``; infinite if either is."""
    finite = np.isfinite(slowest) & np.isfinite(total)
    slowest, total = np.where(finite, slowest, 0.0), np.where(finite, total, 0.0)
    return np.where(finite, costs.max_weight * slowest + costs.sum_weight * total, np.inf)


def _total_s(took: Column, layers: int) -> Column:
    """A floor on the sum of stages, ``[n]``: all empty stages and the cheapest further layers."""
    n, _, width = took.shape
    reached = np.where(np.isfinite(took), took, 0.0)
    steps = np.where(np.isfinite(took[:, :, 1:]), np.diff(reached, axis=2), np.inf)
    cheapest = np.sort(steps[:, :, : width - 2].reshape(n, -1), axis=1)[:, :layers]
    # Steps rise: where none beyond the table is among the cheapest, these are the cheapest of all.
    whole = steps[:, :, width - 2].min(axis=1) >= cheapest[:, -1]
    found: Column = np.where(whole, reached[:, :, 0].sum(axis=1) + cheapest.sum(axis=1), 0.0)
    return found
