"""Plans nearly as fast as the fastest: the exact best plan of every mesh within a share of it.

Every mesh whose bound is within the share is answered exactly, from the least bound upwards, until
enough are known and no other can come before them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.search.budget import SAME, Interrupted, Options, Search
from autoshard.search.prune import Tally, promising_rows
from autoshard.search.stages import Leaf

#: What is decided under a mesh: all other columns make it another one.
UNDER_A_MESH = ("vpp", "microbatches", "micro_batch_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearly:
    """The best plans of the fastest meshes, fastest first, each with its row of one candidate.

    ``more`` other meshes have a bound within the share, and may have a plan within it; none that is
    faster than those that are here. ``complete`` says that the search was not stopped.
    """

    found: list[tuple[Plan, Candidates]]
    more: int
    complete: bool


def nearly_fastest(
    problem: Problem, profile: Profile, options: Options, latest_s: float, most: int
) -> Nearly:
    """The best plan of each mesh that takes at most ``latest_s``, ``most`` of them.

    Of a mesh's fastest plan, the smallest at that time. ``options`` are those of the search for the
    fastest plan, whose time is ``options.known_s``.
    """
    deadline = time.monotonic() + (options.time_limit_s or np.inf)
    gap = max(latest_s / options.known_s - 1.0, 0.0)
    rows, complete = promising_rows(
        problem,
        profile,
        gap=gap,
        keep=options.keep,
        tally=(tally := Tally()),
        slowest=1.0,
        known_s=options.known_s,
        deadline=deadline,
        limit=options.limit,
    )
    search = Search(
        problem=problem,
        profile=profile,
        options=replace(options, gap=gap),
        rows=rows,
        tally=tally,
        deadline=deadline,
    )
    capacity = float(problem.capacity_bytes)
    floor = np.maximum(search.floor_s, search.floors.time_s(capacity))
    near = np.nonzero((floor <= latest_s) & (search.floor_bytes <= capacity))[0]
    floor[near] = np.maximum(floor[near], search.stage_floors.time_s(near, capacity))
    near = near[floor[near] <= latest_s]
    near = near[np.argsort(floor[near], kind="stable")]
    mesh = _meshes(rows.candidates)
    best: dict[int, tuple[int, Leaf]] = {}
    latest = float(np.nextafter(latest_s, np.inf))
    asked = 0
    try:
        for row in near.tolist():
            known = [leaf.time_s for _, leaf in _first(best, most)]
            if len(known) == most and known[-1] <= floor[row]:
                break
            own = best.get(int(mesh[row]))
            below = latest if own is None else own[1].time_s
            if floor[row] < below:
                leaf = search.answer(row, "fastest", capacity, below)
                if leaf is not None and leaf.time_s < below:
                    best[int(mesh[row])] = (row, leaf)
            asked += 1
        shown = [(row, _smallest(search, row, leaf)) for row, leaf in _first(best, most)]
    except (Interrupted, KeyboardInterrupt):
        complete = False
        shown = _first(best, most)
    listed = {int(mesh[row]) for row, _ in shown}
    others = {*best, *mesh[near[asked:]].tolist()} - listed
    found = [
        (search.plan(row, leaf), rows.candidates.take(slice(row, row + 1))) for row, leaf in shown
    ]
    return Nearly(found=found, more=len(others), complete=complete)


def _first(best: dict[int, tuple[int, Leaf]], most: int) -> list[tuple[int, Leaf]]:
    """The fastest of the answers."""
    return sorted(best.values(), key=lambda each: (each[1].time_s, each[0]))[:most]


def _smallest(search: Search, row: int, leaf: Leaf) -> Leaf:
    """The plan of least memory that is as fast."""
    time_s = leaf.time_s * (1.0 + SAME)
    return search.answer(row, "smallest", time_s, leaf.memory_bytes) or leaf


def _meshes(candidates: Candidates) -> NDArray[np.intp]:
    """Which mesh each candidate is."""
    names = [name for name in candidates.__slots__ if name not in UNDER_A_MESH]
    table = np.stack([getattr(candidates, name) for name in names], axis=1)
    which: NDArray[np.intp] = np.unique(table, axis=0, return_inverse=True)[1].reshape(-1)
    return which
