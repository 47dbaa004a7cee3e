"""Whole layers on each stage, vectorised over rows: least memory, exact, and a floor on time.

With a cap on memory or on time, every stage picks alone: how many layers can it take? A mesh is
possible where the stages together take all of them.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.costs import Column, Place
from autoshard.costmodels.profile import Profile
from autoshard.search import bounds
from autoshard.search.budget_floors import lower_lines
from autoshard.search.family_bounds import family_floors_s
from autoshard.search.interleaving import fewest_layers, fewest_of, most_layers
from autoshard.search.rows import Rows, schedules_of

#: Numbers held at a time: rows times stages times layers.
BLOCK = 2**19


def smallest_bytes(rows: Rows, profile: Profile) -> Column:
    """The least memory of any plan of each row, whole layers per stage, ``[n]``; exact.

    Every layer on its smallest rung, a stage of ``k`` layers needs ``ends + k (state + in_flight *
    saved)``. So many stages and layers fit as needs are at most the budget: the least budget is the
    ``L``-th smallest need, or what a stage with its fewest layers needs.
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
    dealt = profile.legality.dealt(layers, pp)
    if dealt is not None:
        even = needs[:, np.arange(pp), dealt - 1].max(axis=1)
        return even + costs.fixed_bytes, np.ones(n, dtype=np.bool_)
    vpp = rows.candidates.vpp
    allowed = most_layers(layers, pp, vpp)
    needs[np.broadcast_to(np.arange(most + 1) >= allowed[:, None, None], needs.shape)] = np.inf
    least = np.partition(needs[:, :, :most].reshape(n, -1), layers - 1, axis=1)[:, layers - 1]
    sure = (least <= needs[:, :, most].min(axis=1)) | (most == layers - pp + 1)
    fewest = np.take_along_axis(needs, fewest_layers(layers, pp, vpp)[:, :, None] - 1, axis=2)
    return np.maximum(least, fewest.max(axis=(1, 2))) + costs.fixed_bytes, sure


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
        self._flat, self._slope = lower_lines(rows.costs)
        schedules, self._schedule = schedules_of(rows.candidates)
        self._held = profile.in_flight(schedules)
        sizes = [len(held) for held in self._held]
        self._every_held = np.concatenate([np.ones(1), *self._held])
        self._start = np.cumsum([1, *sizes[:-1]])[self._schedule] if sizes else self._schedule
        self._exposed_s = bounds.exposed_floor_s(rows)
        self._least_saved = rows.costs.saved_bytes.min(axis=1) * (1.0 - bounds.SLACK)

    def time_s(
        self, picked: NDArray[np.intp], budget_bytes: float, enough_s: float = np.inf
    ) -> Column:
        """No plan of those rows within a budget is faster; infinite where none fits.

        Zero for rows without a pipeline, of which :mod:`autoshard.search.bounds` knows as much. A
        floor above ``enough_s`` need not be any nearer.
        """
        floor = np.zeros(len(picked))
        degrees = self.rows.candidates.pp[picked]
        several = np.nonzero(degrees > 1)[0]
        slots = [len(_slots(pp, self.rows.n_layers)[0]) for pp in np.unique(degrees).tolist()]
        size = max(BLOCK // max(slots, default=1), 1)
        for start in range(0, len(several), size):
            part = several[start : start + size]
            floor[part] = self._block_s(picked[part], budget_bytes)
        if self._legality.restricts_stages:
            for pp in np.unique(degrees[several]).tolist():
                of = np.nonzero((degrees == pp) & (floor <= enough_s) & np.isfinite(floor))[0]
                size = max(BLOCK // (pp * (_most(pp, self.rows.n_layers) + 2)), 1)
                for start in range(0, len(of), size):
                    part = of[start : start + size]
                    floor[part] = self._family_s(picked[part], floor[part], budget_bytes)
        return floor

    def _family_s(self, part: NDArray[np.intp], floor: Column, budget_bytes: float) -> Column:
        """The floor of rows with the same number of stages, under rules on all stages."""
        held = np.stack([self._held[k] for k in self._schedule[part].tolist()])
        most = _most(held.shape[1], self.rows.n_layers)
        block = self.rows.take(part)
        family, known = family_floors_s(block, held, most, budget_bytes, self._legality)
        family = (family + self._exposed_s[part]) * (1.0 - bounds.SLACK)
        return np.where(known, np.maximum(floor, family), floor)

    def _block_s(self, part: NDArray[np.intp], budget_bytes: float) -> Column:
        """The floor of some rows, from what every stage of each takes with 0 layers, 1, and so on.

        One place ``[n, w]`` for each stage and number of layers; rows of few places are filled up.
        """
        costs, c, n_layers = self.rows.costs, self.rows.candidates, self.rows.n_layers
        degrees, which = np.unique(c.pp[part], return_inverse=True)
        tables = [_slots(pp, n_layers) for pp in degrees.tolist()]
        width = max(len(table[0]) for table in tables)
        stage, layers = (
            np.stack([np.pad(t[k], (0, width - len(t[k])), constant_values=-1) for t in tables])
            for k in (0, 1)
        )
        most = np.array([_most(pp, n_layers) for pp in degrees.tolist()])[:, None]
        stage, layers, beyond = stage[which], layers[which], (layers == most + 1)[which]
        took = self._least_stage_s(part, stage, layers, budget_bytes)
        further = (layers > 0) & ~beyond
        last = n_layers - 1
        slowest = np.partition(np.where(further, took, np.inf), last, axis=1)[:, last]
        slowest = np.minimum(slowest, took.min(axis=1, where=beyond, initial=np.inf))
        inner, ends = (each[:, None] for each in fewest_of(n_layers, c.pp[part], c.vpp[part]))
        at_ends = (stage == 0) | (stage == c.pp[part, None] - 1)
        fewest = layers == np.where(at_ends, ends, inner)
        slowest = np.maximum(slowest, took.max(axis=1, where=fewest, initial=0.0))
        there = np.isfinite(took)
        reached = np.where(there, took, 0.0)
        steps = np.full_like(took, np.inf)
        np.subtract(reached[:, 1:], reached[:, :-1], out=steps[:, 1:], where=there[:, 1:])
        cheapest = np.partition(np.where(further, steps, np.inf), last, axis=1)[:, :n_layers]
        # Steps rise: where none beyond the table is among the cheapest, these are the cheapest.
        whole = steps.min(axis=1, where=beyond, initial=np.inf) >= cheapest[:, -1]
        none = reached.sum(axis=1, where=layers == 0)
        total = np.where(whole, none + cheapest.sum(axis=1), 0.0)
        fits = np.isfinite(slowest) & np.isfinite(total)
        slowest, total = np.where(fits, slowest, 0.0), np.where(fits, total, 0.0)
        floor: Column = costs.max_weight[part] * slowest + costs.sum_weight[part] * total
        floor = (floor + self._exposed_s[part]) * (1.0 - bounds.SLACK)
        floor[~fits] = np.inf
        return floor

    def _least_stage_s(
        self,
        part: NDArray[np.intp],
        stage: NDArray[np.int64],
        layers: NDArray[np.int64],
        budget_bytes: float,
    ) -> Column:
        """Least seconds of each stage with a number of layers, ``[n, w]``; infinite where none."""
        costs = self.rows.costs
        there = stage >= 0
        held = self._every_held[np.where(there, self._start[part, None] + stage, 0)]
        ends: dict[Place, Column] = {
            "layer": layers.astype(np.float64),
            "embedding": (stage == 0) * 1.0,
            "head": (stage == self.rows.candidates.pp[part, None] - 1) * 1.0,
        }
        # Saved bytes of one microbatch that a stage of so many layers may have.
        room = budget_bytes * (1.0 + bounds.SLACK) - costs.fixed_bytes[part]
        left = np.repeat(room[:, None], held.shape[1], axis=1)
        for place, count in ends.items():
            left -= costs.state_bytes[place][part, None] * count
        left /= held
        forward, backward = np.zeros_like(left), np.zeros_like(left)
        for j in range(len(self._flat)):
            form = sum(costs.forward_s[p][part, j, None] * count for p, count in ends.items())
            np.maximum(forward, form, out=forward)
            at_ends = costs.backward_s["embedding"][part, j, None] * ends["embedding"]
            at_ends += costs.backward_s["head"][part, j, None] * ends["head"]
            for flat, slope in zip(self._flat[j], self._slope[j], strict=True):
                form = flat[part, None] * ends["layer"] + at_ends
                if slope[part].any():
                    form += slope[part, None] * left
                np.maximum(backward, form, out=backward)
        least: Column = forward + backward
        least += costs.send_s[part, None]
        least[~there | (left < self._least_saved[part, None] * ends["layer"])] = np.inf
        return least


def _most(pp: int, n_layers: int) -> int:
    """More layers than this on one stage are only asked whether they are the slowest."""
    return min(n_layers - pp + 1, 2 * -(-n_layers // pp) + 1)


@functools.lru_cache(maxsize=4096)
def _slots(pp: int, n_layers: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every stage with 0 layers up to one more than the most: the stage, and how many, ``[w]``."""
    numbers = np.arange(_most(pp, n_layers) + 2)
    return np.repeat(np.arange(pp), len(numbers)), np.tile(numbers, pp)
