"""The shapes that one chip works on, for each candidate: shared by compute, comms and memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import Column
from autoshard.costmodels.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardShapes:
    """Widths on one tensor-parallel rank, and the tokens of one microbatch of its TP group.

    All ``[n]``. ``d_kv`` is at least one head: above ``n_kv_heads`` ranks, KV heads are replicated.
    """

    tokens: Column
    d_query: Column
    d_kv: Column
    d_ff: Column
    vocab: Column


def shard_shapes(problem: Problem, candidates: Candidates) -> ShardShapes:
    """The shapes of each candidate."""
    model = problem.model
    tp = candidates.tp.astype(np.float64)
    sequence_ways = candidates.seq_split * candidates.cp
    return ShardShapes(
        # In floats: the tokens of a hostile microbatch do not fit 64 bits.
        tokens=candidates.micro_batch_size * float(problem.workload.seq_len) / sequence_ways,
        d_query=model.d_attention / tp,
        d_kv=np.maximum(model.n_kv_heads / tp, 1.0) * model.d_head,
        d_ff=model.d_ff / tp,
        vocab=model.vocab / tp,
    )


def layer_params_per_rank(problem: Problem, shapes: ShardShapes, layer: str) -> Column:
    """Matmul parameters of one layer on one tensor-parallel rank, ``[n]``.

    ``layer`` is ``full``, or ``mlp2`` for the book's two-matrix layer (training.md).
    """
    model = problem.model
    if layer == "mlp2":
        return 2.0 * model.d_model * shapes.d_ff
    return model.d_model * (
        2.0 * shapes.d_query + 2.0 * shapes.d_kv + model.mlp_matrices * shapes.d_ff
    )
