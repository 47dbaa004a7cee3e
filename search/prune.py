"""From the declared space to the few rows that can hold a point of the front.

Each step throws away rows whose lower bounds (time, memory) some real plan beats in both; what is
left is exact. Floors of a mesh assume that cost models are subadditive in the microbatch: splitting
a microbatch never makes the pieces cheaper in time, nor larger in memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import Column
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.search import bounds
from autoshard.search.rows import CHUNK, Rows, chunks, price_rows
from autoshard.search.space import Keep, expand, meshes, virtual_stages
from autoshard.search.stagewise import smallest_bytes

#: Meshes expanded first, to find the plans that the rest is measured against.
SCOUTS = 1_500


@dataclass(slots=True)
class Staircase:
    """Real plans seen so far, as the least time at or under each memory.

    ``slowest`` is how many times the least of all times a plan of interest may take.
    """

    slowest: float = np.inf

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
        return float(self.slowest * self.time_s.min(initial=np.inf) * (1.0 + gap))


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
    prune: bool = True,
    deadline: float = np.inf,
) -> tuple[Rows, bool]:
    """Every row that can hold a point of the front, or tie with one within ``gap``.

    Points slower than ``slowest`` times the fastest are of no interest. ``keep`` is the user's
    constraint, applied before anything is pruned. ``prune=False`` prices the whole space, for
    constraints that bounds cannot see. Second comes whether these are all the rows: past the
    ``deadline`` (of the monotonic clock), pricing stops with the most promising ones.
    """
    with tally.timed("space"):
        table = meshes(problem)
    tally.meshes = len(table)
    stairs = Staircase(slowest=slowest)
    pricing = Pricing(problem, profile, keep, gap, tally, deadline)
    if not prune:
        return pricing.rows(table), not pricing.stopped
    # The meshes with most chips first: what they take bounds what fewer chips can be good for.
    chips = table.chips_used
    order = np.argsort(-chips, kind="stable")
    many = int((chips * 2 >= chips.max(initial=0)).sum())
    table, chips = table.take(order), chips[order]
    with tally.timed("costs of meshes"):
        floors = _mesh_floors(problem, profile, table.take(slice(0, many)), deadline)
    # A floor of zero is one that the deadline left unpriced.
    priced = floors.memory_bytes > 0.0
    scouts = np.nonzero(priced & (floors.memory_bytes <= problem.capacity_bytes))[0]
    if len(scouts) > SCOUTS:
        scouts = scouts[_scouts(floors.least_s[scouts], floors.memory_bytes[scouts])]
        kept = pricing.rows(table.take(scouts), stairs, floors.take(scouts))
        if pricing.stopped:
            return kept, False
    # No plan beats its chips' peak.
    peak_s = profile.compute.flops_per_step(problem) / (problem.peak_flops_per_s * chips)
    table = table.take(slice(0, many + int((peak_s[many:] <= stairs.latest_s(gap)).sum())))
    with tally.timed("costs of meshes"):
        rest = _mesh_floors(problem, profile, table.take(slice(many, None)), deadline)
    floors = floors.join(rest)
    alive = floors.memory_bytes <= problem.capacity_bytes
    alive &= stairs.alive(floors.least_s, floors.memory_bytes, gap)
    rows = np.nonzero(alive)[0]
    kept = pricing.rows(table.take(rows), stairs, floors.take(rows))
    tally.rows = len(kept)
    return kept, not pricing.stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshFloors:
    """Of each mesh over its microbatches and virtual stages, ``[n]``.

    ``busy_s`` is a step without a bubble, ``least_s`` with the smallest bubble there can be.
    """

    busy_s: Column
    least_s: Column
    memory_bytes: Column

    def join(self, other: MeshFloors) -> MeshFloors:
        """These floors and then the others."""
        return MeshFloors(
            busy_s=np.concatenate([self.busy_s, other.busy_s]),
            least_s=np.concatenate([self.least_s, other.least_s]),
            memory_bytes=np.concatenate([self.memory_bytes, other.memory_bytes]),
        )

    def take(self, rows: NDArray[np.intp]) -> MeshFloors:
        """The floors of those meshes."""
        return MeshFloors(
            busy_s=self.busy_s[rows],
            least_s=self.least_s[rows],
            memory_bytes=self.memory_bytes[rows],
        )


def _mesh_floors(
    problem: Problem, profile: Profile, table: Candidates, deadline: float = np.inf
) -> MeshFloors:
    """Least time and least memory of each mesh; zero where the deadline left it unpriced.

    Time: one microbatch of everything on a mean stage. Memory: microbatches of one sequence, one in
    flight.
    """
    layers = problem.model.n_layers
    busy, memory = [np.zeros(0)], [np.zeros(0)]
    for piece in chunks(table):
        if time.monotonic() >= deadline:
            busy.append(np.zeros(len(piece)))
            memory.append(np.zeros(len(piece)))
            continue
        costs = profile.price(problem, piece)
        forward = (layers * costs.forward_s["layer"] + bounds.ends(costs, "forward_s")).max(axis=1)
        rung = costs.layer_backward_s.min(axis=2)
        backward = (layers * rung + bounds.ends(costs, "backward_s")).max(axis=1)
        busy.append((forward + backward) / piece.pp)
        single = piece.replace(
            microbatches=piece.micro_batch_size,
            micro_batch_size=np.ones_like(piece.micro_batch_size),
        )
        small = profile.memory(problem, single, profile.ladder)
        held = layers * (small.layer_state_bytes + small.saved_bytes.min(axis=1))
        held += small.embedding_state_bytes + small.head_state_bytes
        memory.append(held / piece.pp + small.fixed_bytes)
    busy_s = np.concatenate(busy) * (1.0 - bounds.SLACK)
    return MeshFloors(
        busy_s=busy_s,
        least_s=busy_s * _least_bubble(profile, table, layers),
        memory_bytes=np.concatenate(memory) * (1.0 - bounds.SLACK),
    )


def _least_bubble(profile: Profile, table: Candidates, n_layers: int) -> Column:
    """The factor by which the smallest pipeline bubble stretches a step, ``[n]``."""
    chunks_of = np.ones(int(table.pp.max(initial=1)) + 1, dtype=np.int64)
    for pp in np.unique(table.pp) if profile.virtual else ():
        chunks_of[pp] = virtual_stages(n_layers, int(pp))[-1]
    microbatches = table.micro_batch_size * table.microbatches
    chunk = np.where(microbatches >= table.pp, chunks_of[table.pp], 1)
    return _bubble(profile, table.replace(microbatches=microbatches, vpp=chunk))


def _bubble(profile: Profile, candidates: Candidates) -> Column:
    """The factor by which its bubble stretches a step of equal stages, ``[n]``.

    Uneven stages take longer: the slowest is no faster than their mean.
    """
    weights = profile.pipeline(candidates)
    times: Column = weights.max_weight + candidates.pp * weights.sum_weight
    return times / candidates.microbatches


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
    stopped: bool = False

    def rows(
        self,
        table: Candidates,
        stairs: Staircase | None = None,
        floors: MeshFloors | None = None,
    ) -> Rows:
        """Price each mesh with its microbatches; keep the rows that no plan of ``stairs`` beats."""
        capacity, tally, gap = float(self.problem.capacity_bytes), self.tally, self.gap
        with tally.timed("space"):
            candidates, mesh = expand(self.problem, table, virtual=self.profile.virtual)
        if self.keep is not None:
            wanted = np.nonzero(self.keep(candidates))[0]
            candidates, mesh = candidates.take(wanted), mesh[wanted]
        if stairs is not None and floors is not None:
            floor_s = floors.busy_s[mesh] * _bubble(self.profile, candidates)
            floor_bytes = floors.memory_bytes[mesh]
            # The most promising first: what they cost shortens the rest.
            order = np.argsort(floor_s, kind="stable")
            order = order[stairs.alive(floor_s[order], floor_bytes[order], gap)]
            candidates = candidates.take(order)
            floor_s, floor_bytes = floor_s[order], floor_bytes[order]
        kept: list[tuple[Rows, Column, Column]] = []
        for number, piece in enumerate(chunks(candidates)):
            # Even a search that is late prices one piece: there is a plan to show.
            if kept and time.monotonic() >= self.deadline:
                self.stopped = True
                break
            if stairs is not None and floors is not None:
                part = slice(number * CHUNK, (number + 1) * CHUNK)
                piece = piece.take(stairs.alive(floor_s[part], floor_bytes[part], gap))
            with tally.timed("costs of candidates"):
                rows = price_rows(self.problem, self.profile, piece)
            tally.priced += len(rows)
            with tally.timed("bounds"):
                memory = bounds.memory_floor_bytes(rows)
                time_s = bounds.time_floor_s(rows)
                alive = memory <= capacity
                if stairs is not None:
                    plan_s, plan_bytes = bounds.uniform_plans(rows)
                    stairs.add(np.where(plan_bytes <= capacity, plan_s, np.inf), plan_bytes)
                    alive &= stairs.alive(time_s, memory, gap)
                kept.append((rows.take(alive), time_s[alive], memory[alive]))
        self.stopped |= time.monotonic() >= self.deadline
        if not kept:
            return price_rows(self.problem, self.profile, candidates)
        # Early pieces met a shorter staircase: measure them again.
        final = [
            rows if stairs is None else rows.take(stairs.alive(time_s, memory, gap))
            for rows, time_s, memory in kept
        ]
        return Rows.concatenate(final)


def least_memory(problem: Problem, profile: Profile, keep: Keep | None) -> float:
    """The least memory per chip of any plan, whatever the capacity; infinite if none."""
    table = meshes(problem)
    floor = _mesh_floors(problem, profile, table).memory_bytes
    order = np.argsort(floor, kind="stable")
    least = float("inf")
    for start in range(0, len(order), SCOUTS):
        batch = order[start : start + SCOUTS]
        if floor[batch[0]] >= least:
            break
        candidates, _ = expand(problem, table.take(batch), virtual=profile.virtual)
        if keep is not None:
            candidates = candidates.take(keep(candidates))
        for piece in chunks(candidates):
            rows = price_rows(problem, profile, piece)
            least = min(least, float(smallest_bytes(rows, profile).min()))
    return least
