"""Whole layers on each stage, vectorised over rows: least memory, exact, and a floor on time.

With a cap on memory or on time, every stage picks alone: how many layers can it take? A mesh is
possible where the stages together take all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.costs import Column, Place
from autoshard.costmodels.profile import Profile, StageCosts
from autoshard.search import bounds
from autoshard.search.family_bounds import family_floors_s
from autoshard.search.rows import Rows, schedules_of

#: Numbers held at a time: rows times stages times layers.
BLOCK = 2**19


def smallest_bytes(rows: Rows, profile: Profile) -> Column:
    """The least memory of any plan of each row, whole layers per stage, ``[n]``; exact.

    Every layer on its smallest rung, a stage of ``k`` layers needs ``ends + k (state + in_flight *
    saved)``. So many stages and layers fit as needs are at most the budget: the least budget is the
    ``L``-th smallest need, or what a stage with as many layers as chunks needs.
    """
    least = np.empty(len(rows))
    degrees = rows.candidates.pp
    for pp in np.unique(degrees).tolist():
        even = -(-rows.n_layers // pp)
        all_layers = rows.n_layers - pp + 1
        todo = np.nonzero(degrees == pp)[0]
        # Few plans have more than twice the mean on a stage; those are asked again.
        for most in (min(all_layers, 2 * even + 1), all_layers):
            size = max(BLOCK // (pp * (most + 1)), 1)
            again = [np.zeros(0, dtype=np.intp)]
            for start in range(0, len(todo), size):
                part = todo[start : start + size]
                found, sure = _smallest(rows.take(part), profile, most)
                least[part] = found
                again.append(part[~sure])
            todo = np.concatenate(again)
    return least


def _smallest(rows: Rows, profile: Profile, most: int) -> tuple[Column, NDArray[np.bool_]]:
    """The least memory with at most ``most`` layers a stage, and where no more could be less."""
    costs, n = rows.costs, len(rows)
    state, held = costs.state_bytes, _in_flight(rows, profile)
    per_layer = state["layer"][:, None] + held * costs.saved_bytes.min(axis=1)[:, None]
    layers, pp = rows.n_layers, held.shape[1]
    needs = per_layer[:, :, None] * np.arange(1.0, most + 2.0)
    needs[:, 0] += state["embedding"][:, None]
    needs[:, -1] += state["head"][:, None]
    if profile.legality.equal_stages:
        even = needs[:, :, -(-layers // pp) - 1].max(axis=1)
        return even + costs.fixed_bytes, np.ones(n, dtype=np.bool_)
    least = np.partition(needs[:, :, :most].reshape(n, -1), layers - 1, axis=1)[:, layers - 1]
    sure = (least <= needs[:, :, most].min(axis=1)) | (most == layers - pp + 1)
    chunks = np.take_along_axis(needs, rows.candidates.vpp[:, None, None] - 1, axis=2)
    return np.maximum(least, chunks.max(axis=(1, 2))) + costs.fixed_bytes, sure


def _in_flight(rows: Rows, profile: Profile) -> Column:
    """Microbatches that each stage holds, of rows with as many stages: ``[n, pp]``."""
    schedules, which = schedules_of(rows.candidates)
    found: Column = np.stack(profile.in_flight(schedules))[which]
    return found


class StageFloors:
    """A floor on the time of rows within a memory budget that knows whole layers.

    Layers are whole, only rungs are mixed as fractions: a stage of ``k`` layers takes at least
    ``t(k)``, the lower hull of the ladder at the saved bytes that its own budget leaves, convex and
    rising in ``k``. The slowest stage is no faster than the ``L``-th smallest of all ``t``, and the
    sum of stages no less than all ``t(0)`` and the ``L`` smallest steps from one ``k`` to the next.
    Under the profile's rules on stages, what :mod:`~autoshard.search.family_bounds` says as well.
    """

    def __init__(self, rows: Rows, profile: Profile) -> None:
        self.rows = rows
        self._legality = profile.legality
        self._flat, self._slope = _hull(rows.costs)
        schedules, self._schedule = schedules_of(rows.candidates)
        self._held = profile.in_flight(schedules)

    def time_s(self, picked: NDArray[np.intp], budget_bytes: float) -> Column:
        """No plan of those rows within a budget is faster; infinite where none fits.

        Zero for rows without a pipeline, of which :mod:`autoshard.search.bounds` knows as much.
        """
        floor = np.zeros(len(picked))
        degrees = self.rows.candidates.pp[picked]
        for pp in np.unique(degrees[degrees > 1]).tolist():
            # More layers than this on one stage are only asked whether they are the slowest.
            most = min(self.rows.n_layers - pp + 1, 2 * -(-self.rows.n_layers // pp) + 1)
            size = max(BLOCK // (pp * (most + 2)), 1)
            of = np.nonzero(degrees == pp)[0]
            for start in range(0, len(of), size):
                part = of[start : start + size]
                floor[part] = self._block_s(picked[part], most, budget_bytes)
        return floor

    def _block_s(self, part: NDArray[np.intp], most: int, budget_bytes: float) -> Column:
        """The floor of rows with the same number of stages."""
        block = self.rows.take(part)
        held = np.stack([self._held[k] for k in self._schedule[part].tolist()])
        took = self._least_stage_s(part, block, held, most, budget_bytes)
        n, layers = len(part), self.rows.n_layers
        every = took[:, :, 1 : most + 1].reshape(n, -1)
        slowest = np.partition(every, layers - 1, axis=1)[:, layers - 1]
        slowest = np.minimum(slowest, took[:, :, most + 1].min(axis=1))
        at_least = np.take_along_axis(took, block.candidates.vpp[:, None, None], axis=2)
        slowest = np.maximum(slowest, at_least.max(axis=(1, 2)))
        reached = np.where(np.isfinite(took), took, 0.0)
        steps = np.where(np.isfinite(took[:, :, 1:]), np.diff(reached, axis=2), np.inf)
        cheapest = np.partition(steps[:, :, :most].reshape(n, -1), layers - 1, axis=1)[:, :layers]
        # Steps rise: where none beyond the table is among the cheapest, these are the cheapest.
        whole = steps[:, :, most].min(axis=1) >= cheapest[:, -1]
        total = np.where(whole, reached[:, :, 0].sum(axis=1) + cheapest.sum(axis=1), 0.0)
        fits = np.isfinite(slowest) & np.isfinite(total)
        slowest, total = np.where(fits, slowest, 0.0), np.where(fits, total, 0.0)
        floor: Column = block.costs.max_weight * slowest + block.costs.sum_weight * total
        if self._legality.restricts_stages:
            family, known = family_floors_s(block, held, most, budget_bytes, self._legality)
            floor = np.where(known, np.maximum(floor, family), floor)
            fits &= np.isfinite(floor)
        floor = (floor + bounds.exposed_floor_s(block)) * (1.0 - bounds.SLACK)
        floor[~fits] = np.inf
        return floor

    def _least_stage_s(
        self, part: NDArray[np.intp], block: Rows, held: Column, most: int, budget_bytes: float
    ) -> Column:
        """Least seconds of each stage with 0 to ``most + 1`` layers, ``[n, pp, most + 2]``."""
        costs = block.costs
        layers = np.arange(most + 2, dtype=np.float64)
        state = costs.state_bytes
        room = np.broadcast_to(
            (budget_bytes * (1.0 + bounds.SLACK) - costs.fixed_bytes)[:, None], held.shape
        ).copy()
        room[:, 0] -= state["embedding"]
        room[:, -1] -= state["head"]
        room /= held
        # Saved bytes of one microbatch that a stage of so many layers may have.
        left = room[:, :, None] - (state["layer"][:, None] / held)[:, :, None] * layers
        forward, backward = np.zeros_like(left), np.zeros_like(left)
        form = np.empty_like(left)
        for j in range(self._flat.shape[0]):
            form[:] = costs.forward_s["layer"][:, j, None, None] * layers
            np.maximum(forward, _with_ends(form, costs.forward_s, j), out=forward)
            for flat, slope in zip(self._flat[j], self._slope[j], strict=True):
                if slope.any():
                    np.multiply(slope[part, None, None], left, out=form)
                    form += flat[part, None, None] * layers
                else:
                    form[:] = flat[part, None, None] * layers
                np.maximum(backward, _with_ends(form, costs.backward_s, j), out=backward)
        least: Column = forward
        least += backward
        least += costs.send_s[:, None, None]
        fits = left >= costs.saved_bytes.min(axis=1)[:, None, None] * layers * (1.0 - bounds.SLACK)
        least[~fits] = np.inf
        return least


def _with_ends(form: Column, places: Mapping[Place, Column], j: int) -> Column:
    """One form of every stage, ``[n, pp, k]``, with the embedding and the head in place."""
    form[:, 0] += places["embedding"][:, j, None]
    form[:, -1] += places["head"][:, j, None]
    return form


def _hull(costs: StageCosts) -> tuple[Column, Column]:
    """Lines under the ladder: seconds at no saved bytes, and per saved byte; ``[j, lines, n]``.

    The backward pass of a layer that saves ``b`` bytes takes at least ``flat + slope * b``: the
    fastest rung, and each line through two rungs that no rung lies below. Slopes are at most zero.
    """
    saved, backward = costs.saved_bytes, costs.layer_backward_s
    n, forms, rungs = backward.shape
    # A hull of so many points has one side less; together with the fastest rung, as many lines.
    flats = np.repeat(backward.min(axis=2).T[:, None, :], rungs, axis=1)
    slopes = np.zeros((forms, rungs, n))
    for j in range(forms):
        seconds = backward[:, j, :]
        found = np.ones(n, dtype=np.intp)
        for low, high in itertools.combinations(range(rungs), 2):
            span = saved[:, high] - saved[:, low]
            slope = (seconds[:, high] - seconds[:, low]) / np.where(span != 0, span, 1.0)
            flat = seconds[:, low] - slope * saved[:, low]
            line = flat[:, None] + slope[:, None] * saved
            under = (line <= seconds * (1.0 + bounds.SLACK)).all(axis=1)
            # Rungs on one line make it twice; what is beyond the last place is let go.
            under &= (slope < 0) & (span != 0) & (found < rungs)
            rows = np.nonzero(under)[0]
            flats[j, found[rows], rows] = flat[rows]
            slopes[j, found[rows], rows] = slope[rows]
            found[rows] += 1
    used = (slopes != 0).any(axis=(0, 2))
    used[0] = True
    return flats[:, used], slopes[:, used]
