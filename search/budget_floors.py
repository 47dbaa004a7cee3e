"""How fast a plan of a row cannot be within a memory budget, and how small within a time.

Layers per stage and per rung are relaxed to fractions. What does not depend on the budget is
computed once for all rows of a search.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.costs import Column
from autoshard.costmodels.profile import StageCosts
from autoshard.search.bounds import SLACK, ends, exposed_floor_s, memory_floor_bytes
from autoshard.search.rows import Rows

#: Halvings of the interval in which a least memory lies: to a ten-thousandth of the budget.
HALVINGS = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetFloors:
    """Floors of ``n`` rows as functions of a memory budget; ``j`` overlap forms.

    Each stage holds ``in_flight * saved + state <= budget``. Divided by its in-flight count and
    summed over stages, the saved bytes of all layers are bounded: a layer saves at most ``per_byte
    * budget - taken`` bytes of a microbatch, ``[n]``, and with them its recompute. All backward
    passes together take at least ``flat + slope * saved``, ``[k, n]``, for each line ``k`` under
    the ladder of some form. ``forward_s``, ``sends_s`` and ``exposed_s`` are those of all stages,
    ``longest_s`` is a floor on the slowest stage, ``least_bytes`` the memory floor of each row.
    """

    per_byte: Column
    taken: Column
    least_saved: Column
    flat: Column
    slope: Column
    rest_s: Column
    longest_s: Column
    exposed_s: Column
    pp: Column
    max_weight: Column
    sum_weight: Column
    least_bytes: Column
    rungs: Rungs | None

    @classmethod
    def of(cls, rows: Rows, remat: str = "by-stage") -> BudgetFloors:
        """Those of some rows; ``remat`` is how rungs may be mixed (``legality.REMAT``)."""
        costs, c, held, layers = rows.costs, rows.candidates, rows.in_flight, rows.n_layers
        state = costs.state_bytes
        taken = costs.fixed_bytes * held.capacity_share
        taken += state["embedding"] / held.first + state["head"] / held.last
        taken += layers * state["layer"] / np.maximum(held.first, held.second)
        forward = costs.forward_s["layer"]
        backward_ends = ends(costs, "backward_s").T[:, None, :]
        flat, slope = lower_lines(costs)
        fastest = costs.layer_backward_s.min(axis=2)
        most = -(-layers // c.pp)
        return cls(
            per_byte=held.capacity_share * (1.0 + SLACK) / layers,
            taken=taken / layers,
            least_saved=costs.saved_bytes.min(axis=1),
            flat=np.concatenate(layers * flat + backward_ends),
            slope=np.concatenate(layers * slope),
            rest_s=(layers * forward + ends(costs, "forward_s")).max(axis=1) + c.pp * costs.send_s,
            # Remat may spare the longest stage, so its layers count at their fastest.
            longest_s=most * (forward.max(axis=1) + fastest.max(axis=1)) + costs.send_s,
            exposed_s=exposed_floor_s(rows),
            pp=c.pp.astype(np.float64),
            max_weight=costs.max_weight,
            sum_weight=costs.sum_weight,
            least_bytes=memory_floor_bytes(rows),
            rungs=None if remat == "by-stage" else Rungs.of(rows, remat),
        )

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> BudgetFloors:
        """Those of some of the rows."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        rungs = values.pop("rungs")
        taken = {name: column[..., rows] for name, column in values.items()}
        return BudgetFloors(**taken, rungs=None if rungs is None else rungs.take(rows))

    def time_s(self, budget_bytes: Column | float) -> Column:
        """No plan of a row within a budget is faster; infinite where none fits, ``[n]``."""
        saved = self.per_byte * budget_bytes - self.taken
        feasible = saved >= self.least_saved * (1.0 - SLACK)
        saved = np.maximum(saved, self.least_saved)
        if self.rungs is None:
            backward: Column = (self.flat + self.slope * saved).max(axis=0)
        else:
            backward = self.rungs.backward_s(saved)
        total = backward + self.rest_s
        slowest = np.maximum(total / self.pp, self.longest_s)
        floor = self.max_weight * slowest + self.sum_weight * total + self.exposed_s
        floor *= 1.0 - SLACK
        floor[~feasible] = np.inf
        return floor

    def memory_bytes(self, time_s: float, capacity_bytes: float) -> Column:
        """No plan of a row that takes at most ``time_s`` is smaller; infinite where none is.

        The least time falls as the budget grows: bisection finds where it meets ``time_s``, from
        below.
        """
        least = np.full(len(self.pp), np.inf)
        possible = np.nonzero(self.time_s(capacity_bytes) <= time_s)[0]
        part = self.take(possible)
        low = part.least_bytes
        high = np.full(len(possible), float(capacity_bytes))
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            fits = part.time_s(middle) <= time_s
            high = np.where(fits, middle, high)
            low = np.where(fits, low, middle)
        least[possible] = low * (1.0 - SLACK)
        return least


@dataclass(frozen=True, slots=True, kw_only=True)
class Rungs:
    """The ladder of ``n`` rows where a framework does not mix any two rungs.

    ``saved`` is ``[r, n]`` bytes, ``backward`` ``[r, j, n]`` seconds of all layers and the ends.
    ``mixed`` are the pairs of rungs that a plan may have layers on both of.
    """

    saved: Column
    backward: Column
    mixed: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, rows: Rows, remat: str) -> Rungs:
        """The ladder of some rows."""
        costs = rows.costs
        backward = rows.n_layers * costs.layer_backward_s + ends(costs, "backward_s")[:, :, None]
        last = backward.shape[2] - 1
        return cls(
            saved=np.ascontiguousarray(costs.saved_bytes.T),
            backward=np.ascontiguousarray(backward.T),
            mixed=((0, last), (last, 0)) if remat == "one-count" else (),
        )

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Rungs:
        """Those of some of the rows."""
        return Rungs(
            saved=self.saved[..., rows], backward=self.backward[..., rows], mixed=self.mixed
        )

    def backward_s(self, room: Column) -> Column:
        """The least seconds of all backward passes where a layer saves so many bytes, ``[n]``."""
        fits = self.saved <= room
        least = np.where(fits[:, None], self.backward, np.inf).min(axis=0)
        for low, high in self.mixed:
            span = self.saved[high] - self.saved[low]
            share = (room - self.saved[low]) / np.where(span > 0, span, 1.0)
            mixed = self.backward[low] + share * (self.backward[high] - self.backward[low])
            between = (span > 0) & (share >= 0) & (share <= 1)
            least = np.where(between, np.minimum(least, mixed), least)
        longest: Column = least.max(axis=0)
        return longest


def lower_lines(costs: StageCosts) -> tuple[Column, Column]:
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
            under = (line <= seconds * (1.0 + SLACK)).all(axis=1)
            # Rungs on one line make it twice; what is beyond the last place is let go.
            under &= (slope < 0) & (span != 0) & (found < rungs)
            rows = np.nonzero(under)[0]
            flats[j, found[rows], rows] = flat[rows]
            slopes[j, found[rows], rows] = slope[rows]
            found[rows] += 1
    used = (slopes != 0).any(axis=(0, 2))
    used[0] = True
    return flats[:, used], slopes[:, used]
