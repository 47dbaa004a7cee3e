"""Closed-form bounds, vectorised over rows: how fast a plan cannot be, and how small.

Lower bounds relax layers per stage and layers per rung to fractions; upper bounds are real plans,
with layers dealt evenly and one rung for all. A row whose lower bounds are beaten by some upper
bound in both time and memory holds no point of the front.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.candidates import IntColumn
from autoshard.costmodels.costs import Column, Place
from autoshard.costmodels.profile import StageCosts
from autoshard.search.rows import InFlight, Rows

#: Float slack of a bound, far below the gap that anything is proven to.
SLACK = 1e-10


def ends(costs: StageCosts, which: str) -> Column:
    """Embedding and head together, for ``forward_s``, ``backward_s`` or ``state_bytes``."""
    column = getattr(costs, which)
    total: Column = column["embedding"] + column["head"]
    return total


def time_floor_s(rows: Rows) -> Column:
    """No plan of a row is faster, whatever its layers per stage and remat, ``[n]``.

    The slowest stage is no faster than the mean stage, nor than ceil(L / pp) bare layers; a maximum
    of sums is no smaller than the sum's form by form, with the fastest rung of each.
    """
    costs, c, layers = rows.costs, rows.candidates, rows.n_layers
    fastest = costs.layer_backward_s.min(axis=2)
    forward = costs.forward_s["layer"]
    passes = (layers * forward + ends(costs, "forward_s")).max(axis=1)
    passes = passes + (layers * fastest + ends(costs, "backward_s")).max(axis=1)
    total = passes + c.pp * costs.send_s
    # Remat may spare the longest stage, so its layers count at their fastest.
    most = -(-layers // c.pp)
    longest = most * (forward.max(axis=1) + fastest.max(axis=1)) + costs.send_s
    slowest = np.maximum(total / c.pp, longest)
    floor: Column = costs.max_weight * slowest + costs.sum_weight * total + exposed_floor_s(rows)
    return floor * (1.0 - SLACK)


def exposed_floor_s(rows: Rows) -> Column:
    """Once-a-step work that the mean stage cannot hide, ``[n]``; exact for a single stage.

    Summed over stages, a pass takes at most ``L`` times its longest layer and its longest ends;
    with the once-a-step work, at least its longest form.
    """
    costs, layers = rows.costs, rows.n_layers
    single = rows.candidates.pp == 1
    exposed = np.zeros(len(rows))
    for once, places in (
        (costs.once_forward_s, costs.forward_s),
        (costs.once_backward_s, costs.backward_s),
    ):
        if not any(column.any() for column in once.values()):
            continue
        form = layers * places["layer"] + places["embedding"] + places["head"]
        added = layers * once["layer"] + once["embedding"] + once["head"]
        hidden = layers * places["layer"].max(axis=1)
        hidden += places["embedding"].max(axis=1) + places["head"].max(axis=1)
        hidden = np.where(single, form.max(axis=1), hidden)
        exposed += np.maximum((form + added).max(axis=1) - hidden, 0.0)
    return exposed / rows.candidates.pp


def memory_floor_bytes(rows: Rows) -> Column:
    """No plan of a row is smaller, ``[n]``: the inverse of the room that a budget leaves."""
    costs = rows.costs
    return held_floor_bytes(
        rows.n_layers,
        rows.candidates.pp,
        rows.in_flight,
        saved=costs.saved_bytes.min(axis=1),
        state=costs.state_bytes,
        fixed=costs.fixed_bytes,
    )


def held_floor_bytes(
    n_layers: int,
    pp: IntColumn,
    in_flight: InFlight,
    *,
    saved: Column,
    state: Mapping[Place, Column],
    fixed: Column,
) -> Column:
    """No plan with such layers and ends is smaller, whatever its layers per stage, ``[n]``."""
    most_in_flight = np.maximum(in_flight.first, in_flight.second)
    need = n_layers * (saved + state["layer"] / most_in_flight)
    need += state["embedding"] / in_flight.first + state["head"] / in_flight.last
    shared = need / in_flight.capacity_share
    # The mean stage is a second floor, and one with ceil(L / pp) layers a third: every stage holds
    # at least one microbatch of each layer.
    of_layer = saved * np.minimum(in_flight.first, in_flight.last) + state["layer"]
    mean = (n_layers * of_layer + state["embedding"] + state["head"]) / pp
    most = -(-n_layers // pp) * of_layer
    floor: Column = np.maximum.reduce([shared, mean, most]) + fixed
    return floor * (1.0 - SLACK)


def uniform_plans(rows: Rows, n_layers: IntColumn | None = None) -> tuple[Column, Column]:
    """Time and memory of real plans, one a rung: layers dealt evenly, the ends the lighter ones.

    ``n_layers`` is for rows of different models, ``[n]``.

    Returns seconds and bytes, ``[n, r]``, at least what the plan really takes: memory charges the
    middle stages as one with the most layers and the most in flight. Infinite where a stage would
    have fewer layers than it may.
    """
    costs, c = rows.costs, rows.candidates
    layers = rows.n_layers if n_layers is None else n_layers
    floor = layers // c.pp
    extra = layers - floor * c.pp
    middle = np.maximum(c.pp - 2, 0)
    first = floor + (extra > middle + 1)
    last = floor + (extra > middle)
    heavy = floor + (extra > 0)
    light = np.maximum(middle - extra, 0)
    single, inner = c.pp == 1, middle > 0
    state, fixed = costs.state_bytes, costs.fixed_bytes
    seconds = np.empty(costs.saved_bytes.shape)
    peak = np.empty(costs.saved_bytes.shape)
    kinds: tuple[tuple[NDArray[np.bool_], IntColumn, Column, Column], ...] = (
        (np.ones_like(single), first, np.ones(len(rows)), single * 1.0),
        (~single, last, np.zeros(len(rows)), np.ones(len(rows))),
        (inner, heavy, np.zeros(len(rows)), np.zeros(len(rows))),
        (inner, floor, np.zeros(len(rows)), np.zeros(len(rows))),
    )
    exposed = np.zeros(len(rows))
    for there, n_layers, embedding, head in kinds:
        added = _exposed_s(costs, n_layers, embedding, head)
        exposed = np.where(there, np.maximum(exposed, added), exposed)
    for rung in range(costs.saved_bytes.shape[1]):
        stages = [
            np.where(there, _stage_s(costs, n_layers, rung, embedding, head), 0.0)
            for there, n_layers, embedding, head in kinds
        ]
        first_s, last_s, heavy_s, light_s = stages
        total = first_s + last_s + (middle - light) * heavy_s + light * light_s
        slowest = np.maximum.reduce(stages)
        seconds[:, rung] = costs.max_weight * slowest + costs.sum_weight * total + exposed
        saved = costs.saved_bytes[:, rung]
        at_first = first * (state["layer"] + rows.in_flight.first * saved)
        at_first += state["embedding"] + np.where(single, state["head"], 0.0)
        at_last = last * (state["layer"] + rows.in_flight.last * saved) + state["head"]
        at_middle = heavy * (state["layer"] + rows.in_flight.second * saved)
        most = np.maximum(at_first, np.where(single, 0.0, at_last))
        peak[:, rung] = np.maximum(most, np.where(inner, at_middle, 0.0)) + fixed
    # Chunks of one layer: the ends may have one less, and no stage between them.
    lighter = (heavy == c.vpp) & (light == 0)
    seconds[(floor < c.vpp) & ~lighter] = np.inf
    return seconds, peak


def _stage_s(
    costs: StageCosts, n_layers: IntColumn, rung: int, embedding: Column, head: Column
) -> Column:
    """Seconds of one stage a microbatch, all layers on one rung, ``[n]``."""
    n, e, h = n_layers[:, None], embedding[:, None], head[:, None]
    total = costs.send_s
    for layer, place in (
        (costs.forward_s["layer"], costs.forward_s),
        (costs.layer_backward_s[:, :, rung], costs.backward_s),
    ):
        total = total + (n * layer + e * place["embedding"] + h * place["head"]).max(axis=1)
    return total


def _exposed_s(costs: StageCosts, n_layers: IntColumn, embedding: Column, head: Column) -> Column:
    """What once-a-step work adds to the passes of one stage, ``[n]``."""
    n, e, h = n_layers[:, None], embedding[:, None], head[:, None]
    more = np.zeros(len(n_layers))
    for place, once in (
        (costs.forward_s, costs.once_forward_s),
        (costs.backward_s, costs.once_backward_s),
    ):
        if any(column.any() for column in once.values()):
            form = n * place["layer"] + e * place["embedding"] + h * place["head"]
            added = n * once["layer"] + e * once["embedding"] + h * once["head"]
            more += (form + added).max(axis=1) - form.max(axis=1)
    return more
