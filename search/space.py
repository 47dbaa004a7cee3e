"""The declared space: every mesh that divides, one row a candidate, columns of integers.

Two steps, because most meshes are bounded away before their microbatches matter: ``meshes``
enumerates degrees, layouts and ``reshard``; ``expand`` gives each mesh its microbatches and virtual
stages.

The rules, each a property of the model, the batch or the network:

* ``tp`` divides the query heads, the MLP width and ``d_model``, and divides the KV heads or is a
  multiple of them (KV heads are replicated);
* ``seq_split * cp * tp`` divides the sequence (norms are sequence-parallel over TP), and a ring of
  ``cp > 1`` deals it in ``2 cp`` pieces to balance the causal mask;
* ``dp * batch_split`` divides the sequences of the batch, and ``microbatches`` divides what is
left;
* ``pp`` is at most the number of layers; interleaving (``vpp > 1``) wants ``pp > 1``,
  ``microbatches`` in whole rounds of ``pp``, and equal chunks on a full stage: ``vpp`` divides
  ``ceil(L / pp)`` (:mod:`autoshard.search.interleaving`);
* chips used are at most the chips offered; on TPU ``dp`` is the number of pods used, one replica
each:
  inside a pod, data parallelism is FSDP (the book's scheme, training.md "Scaling across pods");
* a torus axis carries either data axes or the tensor axis; an idle side gets none.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.candidates import Candidates, IntColumn
from autoshard.costmodels.checks import LARGEST_COUNT
from autoshard.costmodels.model import Model
from autoshard.costmodels.problem import Problem
from autoshard.search.divisors import divisors
from autoshard.search.interleaving import virtual_stages

#: A constraint of the user: candidates in, a Boolean column out.
Keep = Callable[[Candidates], np.ndarray]


def tensor_degrees(model: Model) -> list[int]:
    """Every ``tp`` that the model's shapes allow."""
    heads, kv = model.n_heads, model.n_kv_heads
    return [
        tp
        for tp in divisors(heads)
        if model.d_ff % tp == 0 and model.d_model % tp == 0 and (kv % tp == 0 or tp % kv == 0)
    ]


def sequence_degrees(model: Model, seq_len: int, most: int = LARGEST_COUNT) -> IntColumn:
    """Every legal ``(tp, seq_split, cp)`` on at most so many chips, shape ``[n, 3]``."""
    triples = []
    for tp in tensor_degrees(model):
        if seq_len % tp or tp > most:
            continue
        ways = np.array([d for d in divisors(seq_len // tp) if d <= most // tp], dtype=np.int64)
        for seq_split in ways.tolist():
            cp = ways[ways <= most // tp // seq_split]
            cp = cp[seq_len // tp // seq_split % cp == 0]
            cp = cp[(cp == 1) | (seq_len % (2 * cp * seq_split) == 0)]
            triples += [(tp, seq_split, ring) for ring in cp.tolist()]
    return np.array(triples, dtype=np.int64).reshape(-1, 3)


def batch_degrees(sequences: int, most: int = LARGEST_COUNT) -> IntColumn:
    """Every ``(dp, batch_split)`` on at most so many chips that divides the batch, ``[n, 2]``."""
    pairs = [
        (dp, split)
        for dp in divisors(sequences)
        if dp <= most
        for split in divisors(sequences // dp)
        if split <= most // dp
    ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def mesh_degrees(problem: Problem) -> tuple[IntColumn, IntColumn]:
    """``batch_degrees`` and ``sequence_degrees`` of a problem, alone within its chips and pods."""
    model, cluster, workload = problem.model, problem.cluster, problem.workload
    batch = batch_degrees(workload.global_batch_seqs, cluster.chips)
    if cluster.chip.kind == "tpu":
        batch = batch[batch[:, 0] <= cluster.pods]
    return batch, sequence_degrees(model, workload.seq_len, cluster.chips)


def meshes(problem: Problem) -> Candidates:
    """Every mesh with its layouts and ``reshard``; one microbatch of everything a shard has."""
    batch, sequence = mesh_degrees(problem)
    b, s, pp = stage_degrees(problem, batch, sequence, 0, problem.cluster.chips)
    rows, pipeline = deal(*pp)
    return mesh_table(problem, batch[b[rows]], sequence[s[rows]], pipeline)


def stage_degrees(
    problem: Problem, batch: IntColumn, sequence: IntColumn, above: int, most: int
) -> tuple[IntColumn, IntColumn, tuple[IntColumn, IntColumn]]:
    """Pairs of degrees, and which ``pp`` use more chips than ``above`` and at most ``most``.

    Rows of ``batch`` and of ``sequence``, and the least ``pp`` with how many follow. Chips are
    compared by division: no product of degrees is ever larger than ``most``.
    """
    shards, ways = batch.prod(axis=1), sequence.prod(axis=1)
    b, s = np.nonzero(ways <= (most // shards)[:, None])
    chips = shards[b] * ways[s]
    first = above // chips + 1
    counts = np.minimum(most // chips, problem.model.n_layers) - first + 1
    some = counts > 0
    return b[some], s[some], (first[some], counts[some])


def deal(first: IntColumn, counts: IntColumn) -> tuple[NDArray[np.intp], IntColumn]:
    """``counts[i]`` numbers from ``first[i]`` upwards: which ``i``, and the number."""
    rows = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum(counts) - counts
    return rows, first[rows] + np.arange(len(rows)) - starts[rows]


def mesh_table(
    problem: Problem, batch: IntColumn, sequence: IntColumn, pipeline: IntColumn
) -> Candidates:
    """Candidates of degrees, row by row: on each of their layouts and with each ``reshard``."""
    cluster = problem.cluster
    if cluster.chip.kind == "tpu":
        pods = batch[:, 0]
        inside = batch[:, 1] * sequence.prod(axis=1) * pipeline
        fits = inside <= cluster.pod_chips
        batch, sequence, pipeline, pods = batch[fits], sequence[fits], pipeline[fits], pods[fits]
    else:
        pods = np.ones_like(pipeline)  # ranks nest by stride, whatever they cross
    ones = np.ones_like(pipeline)
    table = Candidates(
        dp=batch[:, 0],
        batch_split=batch[:, 1],
        seq_split=sequence[:, 1],
        tp=sequence[:, 0],
        pp=pipeline,
        vpp=ones,
        cp=sequence[:, 2],
        microbatches=ones,
        micro_batch_size=problem.workload.global_batch_seqs // batch.prod(axis=1),
        reshard=ones,
        pods=pods,
        layout=ones,
    )
    return _with_layouts(problem, table)


def _with_layouts(problem: Problem, table: Candidates) -> Candidates:
    """Each mesh on each layout that fits the sides it uses, and each ``reshard``."""
    parts = []
    tensor = table.tp > 1
    data = table.chips_used // table.pods // table.tp > 1
    layouts = problem.cluster.layouts
    for index, layout in enumerate(layouts):
        if len(layouts) == 1:
            rows = np.ones(len(table), dtype=np.bool_)
        else:
            rows = (tensor == bool(layout.tensor_axes)) & (data == bool(layout.data_axes))
            if index == 0:  # a plan of one chip uses neither side
                rows |= ~tensor & ~data
        picked = table.take(rows)
        column = np.full(len(picked), index, dtype=np.int64)
        for stage in sorted(set(problem.recipe.reshard), reverse=True):
            # Without FSDP nothing is sharded: every stage of ZeRO is the same plan.
            legal = picked.fsdp > 1 if stage != max(problem.recipe.reshard) else slice(None)
            part = picked.replace(layout=column, reshard=np.full_like(column, stage)).take(legal)
            parts.append(part)
    return Candidates.concatenate(parts)


def expand(
    problem: Problem, table: Candidates, *, virtual: bool = True
) -> tuple[Candidates, NDArray[np.intp]]:
    """Each mesh with its legal microbatches and virtual stages, and which mesh each row is.

    ``virtual`` says whether the schedule has virtual stages.
    """
    per_shard = table.micro_batch_size * table.microbatches
    rows, microbatches = [np.zeros(0, dtype=np.intp)], [np.zeros(0, dtype=np.int64)]
    for sequences in np.unique(per_shard).tolist():
        picked = np.nonzero(per_shard == sequences)[0]
        for number in divisors(sequences):
            rows.append(picked)
            microbatches.append(np.full(len(picked), number, dtype=np.int64))
    row, count = np.concatenate(rows), np.concatenate(microbatches)
    pp = table.pp[row]
    interleaves = (pp > 1) & (count % pp == 0) & virtual
    rows, microbatches, chunks = [row], [count], [np.ones_like(count)]
    for stages in np.unique(pp[interleaves]).tolist():
        picked = np.nonzero(interleaves & (pp == stages))[0]
        for vpp in virtual_stages(problem.model.n_layers, stages):
            if vpp > 1:
                rows.append(row[picked])
                microbatches.append(count[picked])
                chunks.append(np.full(len(picked), vpp, dtype=np.int64))
    row, count = np.concatenate(rows), np.concatenate(microbatches)
    expanded = table.take(row).replace(
        vpp=np.concatenate(chunks), microbatches=count, micro_batch_size=per_shard[row] // count
    )
    return expanded, row
