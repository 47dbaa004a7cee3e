"""The nearest question that has a plan: the fewest chips and the nearest batches, by exact memory.

A plan fits or it does not: nothing here asks how fast it is. What is returned was solved for its
least memory at exactly that size; what is called the fewest or the nearest has been excluded below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from autoshard.costmodels.candidates import Candidates, IntColumn
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.search import bounds
from autoshard.search.blocks import (
    PAIRS,
    candidates_of,
    count_meshes,
    kept_meshes,
    mesh_blocks,
    reads_meshes,
)
from autoshard.search.prune import SCOUTS, has_plan, memory_floors
from autoshard.search.rows import chunks, price_rows
from autoshard.search.space import Keep, deal, mesh_degrees, mesh_table, stage_degrees
from autoshard.search.stagewise import smallest_bytes

#: No cluster above this is looked at, nor one of more meshes.
MOST_CHIPS = 2**20
MOST_MESHES = 2**20
#: Meshes that are asked which batches could fit at all.
ASKED_MESHES = 2**18
#: Meshes that all tries of batches may look at together.
TRIED_MESHES = 2**19


def exists(problem: Problem, profile: Profile, keep: Keep | None) -> bool:
    """Whether any plan of the space is allowed, of whatever memory."""
    free = profile.legality.free
    if keep is None and free:
        return True
    for table in mesh_blocks(problem):
        table = kept_meshes(problem, profile, table, keep)
        if len(table) and free and reads_meshes(keep):
            return True
        if any(len(candidates) for candidates in candidates_of(problem, profile, table, keep)):
            return True
    return False


def fits(problem: Problem, profile: Profile, keep: Keep | None, *, memory: bool = True) -> bool:
    """Whether a problem has a plan; ``memory=False`` lets plans use any amount of it."""
    if not memory:
        return exists(problem, profile, keep)
    return has_plan(problem, profile, keep)


def resized(problem: Problem, chips: int) -> Problem | None:
    """The same problem on so many chips of its kind; None where there is no such cluster."""
    cluster = problem.cluster
    pods = cluster.pods if cluster.chip.kind == "gpu" and cluster.pods > 1 else None
    try:
        grown = Cluster.build(cluster.chip, chips=chips, pods=pods)
    except SpecError:
        return None
    return dataclasses.replace(problem, cluster=grown)


def rebatched(problem: Problem, sequences: int) -> Problem:
    """The same problem with another batch."""
    workload = dataclasses.replace(problem.workload, global_batch_seqs=sequences)
    return dataclasses.replace(problem, workload=workload)


def fewest_chips(
    problem: Problem, profile: Profile, keep: Keep | None, *, memory: bool = True
) -> tuple[int, bool] | None:
    """The fewest chips, more than the problem has, with which it has a plan; None if none is known.

    Second comes whether fewer were excluded. The cluster grows until a plan fits; the meshes of
    that cluster, those of fewest chips first, then say how small it can be.
    """
    large = None
    for larger in _larger(problem):
        if fits(larger, profile, keep, memory=memory):
            large = larger
            break
    if large is None:
        return None
    capacity = float(problem.capacity_bytes) if memory else np.inf
    least = _least_chips_used(large, profile, keep, capacity)
    for chips in range(max(least, problem.cluster.chips + 1), large.cluster.chips):
        asked = resized(problem, chips)
        if asked is not None and fits(asked, profile, keep, memory=memory):
            below = _below(problem, chips)
            excluded = below is None or not fits(below, profile, keep, memory=memory)
            return chips, excluded
    return large.cluster.chips, False


def _larger(problem: Problem) -> Iterator[Problem]:
    """The problem on clusters that grow eightfold, or less where there is no such cluster."""
    chips = problem.cluster.chips
    while True:
        asked: Problem | None = None
        for factor in (8, 4, 2):
            if factor * chips <= MOST_CHIPS:
                asked = resized(problem, factor * chips)
            if asked is not None:
                break
        if asked is None or count_meshes(asked, *mesh_degrees(asked)) > MOST_MESHES:
            return
        chips = asked.cluster.chips
        yield asked


def _below(problem: Problem, chips: int) -> Problem | None:
    """The problem on the next smaller cluster, None where that is what was asked or less."""
    for fewer in range(chips - 1, problem.cluster.chips, -1):
        asked = resized(problem, fewer)
        if asked is not None:
            return asked
    return None


def _least_chips_used(
    problem: Problem, profile: Profile, keep: Keep | None, capacity: float
) -> int:
    """The fewest chips that any plan within a capacity uses; those of the cluster if none does."""
    least = problem.cluster.chips
    for table in mesh_blocks(problem):
        table = kept_meshes(problem, profile, table, keep)
        table = table.take(memory_floors(problem, profile, table) <= capacity)
        chips = table.chips_used
        order = np.argsort(chips, kind="stable")
        for start in range(0, len(order), SCOUTS):
            batch = order[start : start + SCOUTS]
            if chips[batch[0]] >= least:
                break
            for candidates in candidates_of(problem, profile, table.take(batch), keep):
                least = min(least, _fewest(problem, profile, capacity, candidates, least))
    return least


def _fewest(
    problem: Problem, profile: Profile, capacity: float, candidates: Candidates, below: int
) -> int:
    """The fewest chips among candidates within a capacity, where they are below a number."""
    candidates = candidates.take(candidates.chips_used < below)
    if np.isinf(capacity):
        return int(candidates.chips_used.min(initial=below))
    for piece in chunks(candidates):
        rows = price_rows(problem, profile, piece)
        rows = rows.take(bounds.memory_floor_bytes(rows) <= capacity)
        small = smallest_bytes(rows, profile) <= capacity
        below = min(below, int(rows.candidates.chips_used[small].min(initial=below)))
    return below


def nearest_batches(
    problem: Problem, profile: Profile, keep: Keep | None, *, memory: bool = True
) -> tuple[int | None, int | None]:
    """The next smaller and the next larger batch in sequences with which there is a plan.

    None where none is known. A shard of one sequence is the smallest that there is: only multiples
    of shards that fit with one sequence each are tried.
    """
    shards = _shards_that_fit(problem, profile, memory)
    if not len(shards):
        return None, None
    one = max(count_meshes(problem, *mesh_degrees(problem)), 1)
    tries = int(np.clip(TRIED_MESHES // one, 2, 24))
    found: list[int | None] = []
    for sequences in (_below_batch(problem, shards), _above_batch(problem, shards)):
        # Tried in the order of their distance, so the first that works is the nearest.
        tried = (n for n, _ in zip(sequences, range(tries), strict=False))
        works = (n for n in tried if fits(rebatched(problem, n), profile, keep, memory=memory))
        found.append(next(works, None))
    return found[0], found[1]


def _above_batch(problem: Problem, shards: IntColumn) -> Iterator[int]:
    """Batches above the problem's that some number of shards divides, ascending."""
    number = problem.workload.global_batch_seqs
    while True:
        number = int(((number // shards + 1) * shards).min())
        yield number


def _below_batch(problem: Problem, shards: IntColumn) -> Iterator[int]:
    """The same below, descending."""
    number = problem.workload.global_batch_seqs
    while (number := int(((number - 1) // shards * shards).max(initial=0))) > 0:
        yield number


def _shards_that_fit(problem: Problem, profile: Profile, memory: bool) -> IntColumn:
    """Numbers of batch shards with which a mesh can fit, those of one sequence each being smallest.

    Without a memory limit, and where there are too many meshes to ask, all numbers.
    """
    cluster = problem.cluster
    most = min(cluster.chips, MOST_MESHES)
    split = np.arange(1, most + 1, dtype=np.int64)
    # On GPUs a replica more never makes a chip hold less; on TPUs each is a pod.
    pods = cluster.pods if cluster.chip.kind == "tpu" else 1
    replicas = np.arange(1, min(pods, most) + 1, dtype=np.int64)
    dp, inside = deal(np.ones_like(replicas), most // replicas)
    batch = np.stack([replicas[dp], inside], axis=1)
    sequence = mesh_degrees(problem)[1]
    if not memory or len(batch) * len(sequence) > PAIRS:
        return split
    b, s, (first, counts) = stage_degrees(problem, batch, sequence, 0, cluster.chips)
    if counts.sum() > ASKED_MESHES:
        return split
    pairs, pipeline = deal(first, counts)
    table = mesh_table(problem, batch[b[pairs]], sequence[s[pairs]], pipeline)
    one = np.ones(len(table), dtype=np.int64)
    table = table.replace(micro_batch_size=one, microbatches=one)
    fitting = [np.zeros(0, dtype=np.int64)]
    for piece in chunks(
        table.take(memory_floors(problem, profile, table) <= problem.capacity_bytes)
    ):
        rows = price_rows(problem, profile, piece)
        small = smallest_bytes(rows, profile) <= problem.capacity_bytes
        fitting.append((piece.dp * piece.batch_split)[small])
    return np.unique(np.concatenate(fitting))
