"""The space in blocks of bounded size: what a search reads where all meshes at once are too many.

A small space is one block. A large one is dealt by octaves of the chips used, those that use most
first, and no block is larger than :data:`BLOCK` whatever the batch, the model and the cluster.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.candidates import Candidates, IntColumn
from autoshard.costmodels.checks import said
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.search.divisors import divisors
from autoshard.search.interleaving import virtual_stages
from autoshard.search.space import (
    Keep,
    deal,
    expand,
    mesh_degrees,
    mesh_table,
    meshes,
    stage_degrees,
)

#: A space of so many meshes is one block.
WHOLE = 2**20
#: No larger space is looked at.
LARGEST_SPACE = 2**28
#: Meshes of one block of a larger space, layouts and ``reshard`` included.
BLOCK = 2**19
#: Candidates that meshes are expanded to at a time.
EXPANDED = 2**20
#: Pairs of degrees looked at in one go.
PAIRS = 2**20


def mesh_blocks(problem: Problem, deadline: float = np.inf) -> Iterator[Candidates]:
    """Every mesh of the space once, at least one block, none of them large.

    Past the ``deadline`` (of the monotonic clock) the rest is left out.

    Raises:
        SpecError: the space is too large to look at.
    """
    kinds = len(set(problem.recipe.reshard))
    batch, sequence = mesh_degrees(problem)
    count = count_meshes(problem, batch, sequence) * kinds
    if count > LARGEST_SPACE:
        raise SpecError(
            f"the space of this problem holds about {count:.2g} meshes, more than can be searched "
            f"({LARGEST_SPACE:.2g}): choose a batch other than "
            f"{said(problem.workload.global_batch_seqs)} sequences and a sequence other than "
            f"{said(problem.workload.seq_len)} tokens, of fewer divisors, or fewer chips."
        )
    if count <= WHOLE:
        yield meshes(problem)
        return
    size = max(BLOCK // (len(problem.cluster.layouts) * kinds), 1)
    # Most shards first, so that the pairs of one block are alike.
    order = np.argsort(-batch.prod(axis=1), kind="stable")
    pieces: list[tuple[IntColumn, IntColumn, IntColumn]] = []
    held = 0
    for piece in _pieces(problem, batch[order], sequence, size):
        if pieces and time.monotonic() >= deadline:
            break
        if held + len(piece[2]) > size:
            yield mesh_table(problem, *map(np.concatenate, zip(*pieces, strict=True)))
            pieces, held = [], 0
        pieces.append(piece)
        held += len(piece[2])
    yield mesh_table(problem, *map(np.concatenate, zip(*pieces, strict=True)))


def count_meshes(problem: Problem, batch: IntColumn, sequence: IntColumn) -> int:
    """How many meshes there are, before layouts and ``reshard``; they are not enumerated."""
    layers, chips = problem.model.n_layers, problem.cluster.chips
    ways, many = np.unique(sequence.prod(axis=1), return_counts=True)
    total = 0
    for shards, times in zip(*np.unique(batch.prod(axis=1), return_counts=True), strict=True):
        fits = ways <= chips // shards
        stages = np.minimum(chips // (shards * ways[fits]), layers)
        # Far beyond 2**63 only in floats, and there the count need not be exact.
        total += int(times) * int(many[fits].astype(np.float64) @ stages)
    return total


def _pieces(
    problem: Problem, batch: IntColumn, sequence: IntColumn, size: int
) -> Iterator[tuple[IntColumn, IntColumn, IntColumn]]:
    """Degrees by octaves of the chips used, at most ``size`` rows in a piece."""
    most = problem.cluster.chips
    step = max(PAIRS // len(sequence), 1)
    while most:
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            b, s, (first, counts) = stage_degrees(problem, part, sequence, most // 2, most)
            for pairs in _cut(counts, size):
                rows, pipeline = deal(first[pairs], counts[pairs])
                yield part[b[pairs][rows]], sequence[s[pairs][rows]], pipeline
        most //= 2


def _cut(counts: IntColumn, size: int) -> Iterator[slice]:
    """Consecutive slices whose counts add up to at most ``size``, or of one count alone."""
    ends = np.cumsum(counts)
    start, before = 0, 0
    while start < len(counts):
        stop = max(int(np.searchsorted(ends, before + size, side="right")), start + 1)
        yield slice(start, stop)
        start, before = stop, int(ends[stop - 1])


def expansions(
    problem: Problem, table: Candidates, *, virtual: bool = True
) -> Iterator[tuple[Candidates, NDArray[np.intp]]]:
    """Meshes with their microbatches and virtual stages, a bounded number at a time, in order.

    Second comes which mesh of the table each candidate is.
    """
    per_shard = table.micro_batch_size * table.microbatches
    rounds, which = np.unique(per_shard, return_inverse=True)
    counts = np.array([len(divisors(n)) for n in rounds.tolist()], dtype=np.int64)[which]
    stages, which = np.unique(table.pp, return_inverse=True)
    layers = problem.model.n_layers
    chunked = [len(virtual_stages(layers, pp)) if virtual else 1 for pp in stages.tolist()]
    counts *= np.array(chunked, dtype=np.int64)[which]
    for part in _cut(counts, EXPANDED):
        candidates, mesh = expand(problem, table.take(part), virtual=virtual)
        yield candidates, mesh + part.start


#: Columns that expanding a mesh decides; all others a mesh has already.
EXPANDED_COLUMNS = frozenset({"vpp", "microbatches", "micro_batch_size"})


def reads_meshes(keep: Keep | None) -> bool:
    """Whether a constraint says (``reads``) that it reads nothing but columns of meshes."""
    reads = getattr(keep, "reads", EXPANDED_COLUMNS)
    return keep is None or not reads & EXPANDED_COLUMNS


def kept_meshes(
    problem: Problem, profile: Profile, table: Candidates, keep: Keep | None
) -> Candidates:
    """Meshes without those that are excluded with all their microbatches."""
    if not profile.legality.free:
        table = table.take(profile.legality.allows(problem, table, late=False))
    return table if keep is None or not reads_meshes(keep) else table.take(keep(table))


def wanted_candidates(
    problem: Problem, profile: Profile, table: Candidates, keep: Keep | None
) -> Iterator[tuple[Candidates, NDArray[np.intp]]]:
    """Meshes with the microbatches and virtual stages that are allowed, in pieces.

    Second comes which mesh of the table each candidate is.
    """
    for candidates, mesh in expansions(problem, table, virtual=profile.virtual):
        if not profile.legality.free:
            rows = profile.legality.allows(problem, candidates)
            candidates, mesh = candidates.take(rows), mesh[rows]
        if keep is not None:
            rows = keep(candidates)
            candidates, mesh = candidates.take(rows), mesh[rows]
        yield candidates, mesh


def candidates_of(
    problem: Problem, profile: Profile, table: Candidates, keep: Keep | None
) -> Iterator[Candidates]:
    """The same, without saying which mesh each candidate is."""
    for candidates, _ in wanted_candidates(problem, profile, table, keep):
        yield candidates
