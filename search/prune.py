"""From the declared space to the few rows that can hold a point of the front.

Each step throws away rows whose lower bounds (time, memory) some real plan beats in both; what is
left is exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import Column
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.search import bounds
from autoshard.search.blocks import candidates_of, kept_meshes, mesh_blocks, wanted_candidates
from autoshard.search.floors import MeshFloors, Unpriced, mesh_floors
from autoshard.search.limits import Limit, Limits
from autoshard.search.rows import CHUNK, InFlight, Rows, chunks, price_rows
from autoshard.search.space import Keep
from autoshard.search.stagewise import smallest_bytes

#: Meshes expanded first, to find the plans that the rest is measured against.
SCOUTS = 1_500
#: Meshes expanded first where one that is small is enough.
FIRST = 64
#: Meshes expanded at a time: with their microbatches, some ten times as many rows.
MESHES = 2**15

#: Rows with their floors on time and memory.
Kept = tuple[Rows, Column, Column]


@dataclass(slots=True)
class Staircase:
    """Real plans seen so far, as the least time at or under each memory.

    ``slowest`` is how many times the least of all times a plan of interest may take; a plan that
    takes ``known_s`` is known from elsewhere.
    """

    slowest: float = np.inf
    known_s: float = np.inf

    memory_bytes: Column = field(default_factory=lambda: np.zeros(0))
    time_s: Column = field(default_factory=lambda: np.zeros(0))

    def add(self, time_s: Column, memory_bytes: Column) -> None:
        """Take in more plans."""
        better = time_s < self.least_time_s(memory_bytes)
        seconds = np.concatenate([self.time_s, time_s[better]])
        memory = np.concatenate([self.memory_bytes, memory_bytes[better]])
        order = np.lexsort((seconds, memory))
        seconds, memory = seconds[order], memory[order]
        best = np.minimum.accumulate(seconds)
        keep = np.ones(len(seconds), dtype=np.bool_)
        keep[1:] = best[1:] < best[:-1]
        self.time_s, self.memory_bytes = seconds[keep], memory[keep]

    def least_time_s(self, memory_bytes: Column) -> Column:
        """The least time of a plan that is no larger, infinite where there is none."""
        index = np.searchsorted(self.memory_bytes, memory_bytes, side="right")
        return np.concatenate([[np.inf], self.time_s])[index]

    def alive(self, time_s: Column, memory_bytes: Column, gap: float) -> NDArray[np.bool_]:
        """Which lower bounds (time, memory) no plan beats in both, by more than ``gap``."""
        least_s = self.least_time_s(memory_bytes) * (1.0 + gap)
        within: NDArray[np.bool_] = time_s <= np.minimum(least_s, self.latest_s(gap))
        return within

    def latest_s(self, gap: float) -> float:
        """No plan of interest takes longer."""
        return float(self.slowest * self.time_s.min(initial=self.known_s) * (1.0 + gap))


@dataclass(slots=True)
class Tally:
    """How many candidates each step saw and how long it took: what the search says of itself."""

    meshes: int = 0
    priced: int = 0
    rows: int = 0
    answers: int = 0
    solves: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the wall time of a block to a step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[step] = self.seconds.get(step, 0.0) + spent


def promising_rows(
    problem: Problem,
    profile: Profile,
    *,
    gap: float,
    keep: Keep | None,
    tally: Tally,
    slowest: float = np.inf,
    known_s: float = np.inf,
    prune: bool = True,
    deadline: float = np.inf,
    limit: Limit | None = None,
    most_chips: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> tuple[Rows, bool]:
    """Every row that can hold a point of the front, or tie with one within ``gap``.

    Points slower than ``slowest`` times the fastest are of no interest, and a plan of ``known_s``
    is known. The profile's legality and ``keep``, the user's constraint, are applied before
    anything is pruned; ``limit`` are the user's limits on time and memory, and ``most_chips`` one
    on the chips of a plan. ``prune=False`` prices the whole space, for
    constraints that bounds cannot see. Second comes whether these are all the rows: past the
    ``deadline`` (of the monotonic clock) or after Ctrl-C, pricing stops with the most promising
    ones. ``tell`` is told how far it is.
    """
    stairs = Staircase(slowest=slowest, known_s=known_s)
    pricing = Pricing(problem, profile, keep, gap, tally, deadline, limit, tell)
    blocks = mesh_blocks(problem, deadline)
    parts: list[Rows] = []
    try:
        while not pricing.stopped:
            with tally.timed("space"):
                table = next(blocks, None)
                if table is None:
                    break
                table = kept_meshes(problem, profile, table, keep)
            tally.meshes += len(table)
            if most_chips is not None:
                table = table.take(table.chips_used <= most_chips)
            parts.append(_block_rows(pricing, table, stairs) if prune else pricing.rows(table))
    except KeyboardInterrupt:
        if not parts:
            raise
        pricing.stopped = True
    pricing.stopped |= time.monotonic() >= deadline
    kept = parts[0]
    if len(parts) > 1:
        kept = Rows.concatenate(parts)
        if prune:  # early blocks met a shorter staircase
            least_s, memory = bounds.time_floor_s(kept), bounds.memory_floor_bytes(kept)
            kept = kept.take(stairs.alive(least_s, memory, gap))
    tally.rows += len(kept)
    return kept, not pricing.stopped


def _block_rows(pricing: Pricing, table: Candidates, stairs: Staircase) -> Rows:
    """The rows of some meshes that can hold a point of the front, as far as the staircase tells."""
    problem, profile, gap = pricing.problem, pricing.profile, pricing.gap
    tally, deadline = pricing.tally, pricing.deadline
    # The meshes with most chips first: what they take bounds what fewer chips can be good for.
    chips = table.chips_used
    order = np.argsort(-chips, kind="stable")
    many = int((chips * 2 >= chips.max(initial=0)).sum())
    table, chips = table.take(order), chips[order]
    with tally.timed("costs of meshes"):
        floors = mesh_floors(problem, profile, table.take(slice(0, many)), deadline)
    # A floor of zero is one that the deadline left unpriced.
    priced = floors.memory_bytes > 0.0
    scouts = np.nonzero(priced & (floors.memory_bytes <= problem.capacity_bytes))[0]
    if len(scouts) > SCOUTS:
        scouts = scouts[_scouts(floors.least_s[scouts], floors.memory_bytes[scouts])]
        kept = pricing.rows(table.take(scouts), stairs, floors.take(scouts))
        if pricing.stopped:
            return kept
    # No plan beats its chips' peak.
    peak_s = profile.compute.flops_per_step(problem) / (problem.peak_flops_per_s * chips)
    table = table.take(slice(0, many + int((peak_s[many:] <= stairs.latest_s(gap)).sum())))
    with tally.timed("costs of meshes"):
        rest = mesh_floors(problem, profile, table.take(slice(many, None)), deadline)
    floors = MeshFloors.concatenate([floors, rest])
    alive = floors.memory_bytes <= problem.capacity_bytes
    alive &= stairs.alive(floors.least_s, floors.memory_bytes, gap)
    rows = np.nonzero(alive)[0]
    return pricing.rows(table.take(rows), stairs, floors.take(rows))


def _scouts(time_s: Column, memory: Column) -> NDArray[np.intp]:
    """Meshes whose floors lie near the front of floors: a few from each band of time."""
    order = np.lexsort((memory, time_s))
    # Half of the scouts are simply the fastest floors, half the smallest of each band of time.
    smallest = [
        band[np.argsort(memory[band], kind="stable")[: SCOUTS // 100]]
        for band in np.array_split(order, 50)
    ]
    return np.unique(np.concatenate([order[: SCOUTS // 2], *smallest]))


@dataclass(slots=True)
class Pricing:
    """Meshes expanded and priced, until the deadline has ``stopped`` it."""

    problem: Problem
    profile: Profile
    keep: Keep | None
    gap: float
    tally: Tally
    deadline: float
    limit: Limit | None = None
    tell: Callable[[str], None] | None = None
    stopped: bool = False

    def rows(
        self,
        table: Candidates,
        stairs: Staircase | None = None,
        floors: MeshFloors | None = None,
    ) -> Rows:
        """Price each mesh with its microbatches; keep the rows that no plan of ``stairs`` beats."""
        kept: list[Kept] = []
        # The most promising first: what they cost shortens the rest.
        order = (
            np.arange(len(table)) if floors is None else np.argsort(floors.least_s, kind="stable")
        )
        try:
            for start in range(0, len(order), MESHES):
                part = order[start : start + MESHES]
                if stairs is not None and floors is not None:
                    least_s, memory = floors.least_s[part], floors.memory_bytes[part]
                    part = part[stairs.alive(least_s, memory, self.gap)]
                    self._search(table.take(part), floors.take(part), stairs, kept)
                else:
                    self._all(table.take(part), kept)
                self._say(stairs)
                if self.stopped:
                    break
        except KeyboardInterrupt:
            if not kept:
                raise
            self.stopped = True
        self.stopped |= time.monotonic() >= self.deadline
        if not kept:
            return price_rows(self.problem, self.profile, table.take(slice(0)))
        # Early pieces met a shorter staircase: measure them again.
        final = [
            rows if stairs is None else rows.take(stairs.alive(time_s, memory, self.gap))
            for rows, time_s, memory in kept
        ]
        return Rows.concatenate(final)

    def _say(self, stairs: Staircase | None) -> None:
        """Tell how many candidates are priced, and the fastest plan among them that fits."""
        if self.tell is None:
            return
        capacity = np.array([float(self.problem.capacity_bytes)])
        least_s = np.inf if stairs is None else float(stairs.least_time_s(capacity)[0])
        incumbent = f", incumbent {least_s:.4g} s" if np.isfinite(least_s) else ""
        self.tell(f"{self.tally.priced:,} candidates priced{incumbent}")

    def _late(self, kept: list[Kept]) -> bool:
        """Whether to stop; even a search that is late prices one piece: there is a plan to show."""
        self.stopped |= bool(kept) and time.monotonic() >= self.deadline
        return self.stopped

    def _all(self, table: Candidates, kept: list[Kept]) -> None:
        """Every row of some meshes."""
        for candidates, _ in self._expand(table):
            for piece in chunks(candidates):
                if self._late(kept):
                    return
                kept.append(self._price(piece, None)[0])

    def _search(
        self, table: Candidates, floors: MeshFloors, stairs: Staircase, kept: list[Kept]
    ) -> None:
        """Rows of some meshes that no plan beats, by bisection over the microbatches of each mesh.

        What a row takes is a floor for those of its mesh with smaller microbatches, what it holds
        one for those with larger ones.
        """
        layers = self.problem.model.n_layers
        for candidates, mesh in self._expand(table):
            with self.tally.timed("bounds"):
                step_s = floors.step_s(self.profile, candidates, mesh)
                alive = np.nonzero(stairs.alive(step_s, floors.memory_bytes[mesh], self.gap))[0]
                left = Unpriced.of(
                    self.profile, layers, candidates.take(alive), mesh[alive], floors
                )
                limits = self._limits(left.candidates)
                step_s, held = left.step_s(), left.held_bytes()
                within = (step_s <= limits.latest_s) & (held <= limits.most_bytes)
                left = left.take(within & stairs.alive(step_s, held, self.gap))
            while len(left.mesh):
                picked = left.middle()
                for part in np.array_split(picked, -(-len(picked) // CHUNK)):
                    if self._late(kept):
                        return
                    found, rows = self._price(
                        left.candidates.take(part), stairs, left.in_flight.take(part)
                    )
                    kept.append(found)
                    with self.tally.timed("bounds"):
                        left.learn(part, rows)
                with self.tally.timed("bounds"):
                    more = stairs.alive(left.step_s(), left.held_bytes(), self.gap)
                    more[picked] = False
                    left = left.take(more)

    def _expand(self, table: Candidates) -> Iterator[tuple[Candidates, NDArray[np.intp]]]:
        """Every candidate of some meshes that is allowed, and which mesh each has."""
        pieces = wanted_candidates(self.problem, self.profile, table, self.keep)
        while True:
            with self.tally.timed("space"):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def _price(
        self, piece: Candidates, stairs: Staircase | None, in_flight: InFlight | None = None
    ) -> tuple[Kept, Rows]:
        """Price some candidates: those that no plan beats, and all of them."""
        tally, capacity = self.tally, float(self.problem.capacity_bytes)
        with tally.timed("costs of candidates"):
            priced = price_rows(self.problem, self.profile, piece, in_flight)
        tally.priced += len(priced)
        with tally.timed("bounds"):
            memory, time_s = bounds.memory_floor_bytes(priced), bounds.time_floor_s(priced)
            limits = self._limits(priced.candidates)
            alive = (memory <= np.minimum(capacity, limits.most_bytes)) & (
                time_s <= limits.latest_s
            )
            if stairs is not None:
                alive &= stairs.alive(time_s, memory, self.gap)
            rows, time_s, memory = priced.take(alive), time_s[alive], memory[alive]
            if stairs is not None:
                # A row that some plan beats has no plan that shortens the staircase.
                plan_s, plan_bytes = bounds.uniform_plans(rows)
                plan_s = self._limits(rows.candidates).allowed_s(plan_s, plan_bytes)
                stairs.add(np.where(plan_bytes <= capacity, plan_s, np.inf), plan_bytes)
        return (rows, time_s, memory), priced

    def _limits(self, candidates: Candidates) -> Limits:
        return Limits.of(self.limit, self.problem, self.profile, candidates)


def memory_floors(problem: Problem, profile: Profile, table: Candidates) -> Column:
    """No plan of a mesh is smaller, ``[n]``, whatever its microbatches and virtual stages."""
    return mesh_floors(problem, profile, table).memory_bytes


def least_memory(problem: Problem, profile: Profile, keep: Keep | None) -> float:
    """The least memory per chip of any plan, whatever the capacity; infinite if none."""
    least = float("inf")
    for table, floor in _smallest_first(problem, profile, keep):
        if floor >= least:
            continue  # the next block may be smaller
        for candidates in candidates_of(problem, profile, table, keep):
            for piece in chunks(candidates):
                rows = price_rows(problem, profile, piece)
                rows = rows.take(bounds.memory_floor_bytes(rows) < least)
                least = min(least, float(smallest_bytes(rows, profile).min(initial=np.inf)))
    return least


def has_plan(problem: Problem, profile: Profile, keep: Keep | None) -> bool:
    """Whether any plan fits in memory."""
    capacity = float(problem.capacity_bytes)
    for table, _ in _smallest_first(problem, profile, keep, capacity):
        for candidates in candidates_of(problem, profile, table, keep):
            for piece in chunks(candidates):
                rows = price_rows(problem, profile, piece)
                plan_s, plan_bytes = bounds.uniform_plans(rows)
                if ((plan_bytes <= capacity) & np.isfinite(plan_s)).any():
                    return True
                rows = rows.take(bounds.memory_floor_bytes(rows) <= capacity)
                if (smallest_bytes(rows, profile) <= capacity).any():
                    return True
    return False


def _smallest_first(
    problem: Problem, profile: Profile, keep: Keep | None, most: float = np.inf
) -> Iterator[tuple[Candidates, float]]:
    """Meshes whose floor is at most ``most``, a few at a time, and the least floor among them.

    The smallest of a block come first; a space of many blocks is not sorted as a whole.
    """
    for table in mesh_blocks(problem):
        table = kept_meshes(problem, profile, table, keep)
        floor = memory_floors(problem, profile, table)
        order = np.argsort(floor, kind="stable")
        order = order[floor[order] <= most]
        start, count = 0, FIRST
        while start < len(order):
            batch = order[start : start + count]
            yield table.take(batch), float(floor[batch[0]])
            start, count = start + count, min(2 * count, SCOUTS)
