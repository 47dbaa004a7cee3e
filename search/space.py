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
* ``pp * vpp`` is at most the number of layers; interleaving wants ``microbatches`` in whole rounds
of
  ``pp``, and ``vpp`` divides the layers of an even stage (rounded down or up);
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
from autoshard.costmodels.model import Model
from autoshard.costmodels.problem import Problem

#: A constraint of the user: candidates in, a Boolean column out.
Keep = Callable[[Candidates], np.ndarray]


def divisors(number: int) -> list[int]:
    """The divisors of a positive integer, ascending."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def tensor_degrees(model: Model) -> list[int]:
    """Every ``tp`` that the model's shapes allow."""
    heads, kv = model.n_heads, model.n_kv_heads
    return [
        tp
        for tp in divisors(heads)
        if model.d_ff % tp == 0 and model.d_model % tp == 0 and (kv % tp == 0 or tp % kv == 0)
    ]


def sequence_degrees(model: Model, seq_len: int) -> IntColumn:
    """Every legal ``(tp, seq_split, cp)``, shape ``[n, 3]``."""
    triples = [
        (tp, seq_split, cp)
        for tp in tensor_degrees(model)
        if seq_len % tp == 0
        for seq_split in divisors(seq_len // tp)
        for cp in divisors(seq_len // tp // seq_split)
        if cp == 1 or seq_len % (2 * cp * seq_split) == 0
    ]
    return np.array(triples, dtype=np.int64).reshape(-1, 3)


def batch_degrees(sequences: int) -> IntColumn:
    """Every ``(dp, batch_split)`` that divides the batch, shape ``[n, 2]``."""
    pairs = [(dp, split) for dp in divisors(sequences) for split in divisors(sequences // dp)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def meshes(problem: Problem) -> Candidates:
    """Every mesh with its layouts and ``reshard``; one microbatch of everything a shard has."""
    model, cluster, workload = problem.model, problem.cluster, problem.workload
    batch = batch_degrees(workload.global_batch_seqs)
    if cluster.chip.kind == "tpu":
        batch = batch[batch[:, 0] <= cluster.pods]
    sequence = sequence_degrees(model, workload.seq_len)
    pp = np.arange(1, min(model.n_layers, cluster.chips) + 1, dtype=np.int64)

    # Outer product in two steps, each cut by the chips offered, so that nothing large is built.
    flat = np.multiply.outer(batch.prod(axis=1), sequence.prod(axis=1))
    b, s = np.nonzero(flat <= cluster.chips)
    chips = flat[b, s]
    # Pipeline degrees are ascending: each pair takes the first so many of them.
    counts = np.searchsorted(pp, cluster.chips // chips, side="right")
    rows = np.repeat(np.arange(len(chips)), counts)
    starts = np.cumsum(counts) - counts
    pipeline = pp[np.arange(len(rows)) - starts[rows]]
    b, s = b[rows], s[rows]
    if cluster.chip.kind == "tpu":
        pods = batch[b, 0]
        fits = chips[rows] * pipeline <= pods * cluster.pod_chips
        b, s, pipeline, pods = b[fits], s[fits], pipeline[fits], pods[fits]
    else:
        pods = np.ones_like(b)  # ranks nest by stride, whatever they cross
    ones = np.ones(len(b), dtype=np.int64)
    table = Candidates(
        dp=batch[b, 0],
        batch_split=batch[b, 1],
        seq_split=sequence[s, 1],
        tp=sequence[s, 0],
        pp=pipeline,
        vpp=ones,
        cp=sequence[s, 2],
        microbatches=ones,
        micro_batch_size=workload.global_batch_seqs // batch[b].prod(axis=1),
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


def virtual_stages(n_layers: int, pp: int) -> list[int]:
    """Chunks a stage may have: divisors of an even stage, rounded down and rounded up."""
    floor, ceil = n_layers // pp, -(-n_layers // pp)
    return sorted(v for v in {*divisors(floor), *divisors(ceil)} if pp * v <= n_layers)
