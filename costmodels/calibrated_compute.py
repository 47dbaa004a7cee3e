"""Achieved compute: matmuls by shape and precision, attention by kernel, and memory-bound work.

A matmul of ``[M, K] x [K, N]`` reaches a share of the dense peak that falls where a side is small,
``1 / ((1 + t/M) (1 + t/N) (1 + d/K))``: tiles and waves that are not full (the tile and wave
quantisation of NVIDIA's "Matrix Multiplication Background"; a systolic array pads likewise,
tpus.md), and never beats the HBM roofline (roofline.md). Attention runs at its kernel's own share
of the peak over causal FLOPs; without a fused kernel the score matrix passes through HBM (arXiv
2205.05198, section 4.1). Everything else is bytes through HBM.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.constants import Constants, Fitted, shipped
from autoshard.costmodels.costs import Column, ComputeCost
from autoshard.costmodels.layer_tensors import (
    LayerKind,
    repeated_shares,
)
from autoshard.costmodels.layer_tensors import layer_operations as layer_graph
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.remat import Rung
from autoshard.costmodels.setting import Setting
from autoshard.costmodels.stack import Stack

#: Backward over forward time of attention kernels: 2.5 times the FLOPs, at some 85 % of the forward
#: rate, and at 60 % in the first (Triton) kernels (arXiv 2307.08691, figures 5 and 6).
FLASH_BACKWARD = {"flash1": 4.2, "flash2": 2.9, "cudnn": 2.9, "splash": 2.9}
#: Passes of the score matrix through HBM, forward: two matmuls, softmax, mask and dropout, each
#: reading or writing it (arXiv 2205.05198, figure 3, with fused scale-mask-softmax).
SCORE_PASSES = 5.0
#: Passes over the 4-byte logits in the cross-entropy, forward: written, cast, reduced, read.
LOGIT_PASSES = 4.0
#: Bytes through HBM for a backward pass of a memory-bound operator, over its forward pass: it reads
#: the gradient beside the input.
BACKWARD_BYTES = 1.6
#: A layer whose blocks follow each other, and one whose blocks are parallel.
GRAPHS = (layer_graph(), layer_graph(LayerKind(parallel_block=True)))
#: Bytes of gradient and of weight and moments that an Adam update reads and writes (all of its
#: state in and out): per byte of state kept for the optimizer.
UPDATE_PASSES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedCompute:
    """Achieved seconds of a layer, the head and each rung's recompute, for one stack."""

    stack: Stack
    fitted: Fitted = field(default_factory=shipped)
    name: str = "calibrated-compute"
    role: str = "compute"
    covers: frozenset[str] = frozenset({"dense"})

    def flops_per_step(self, problem: Problem) -> float:
        """Model FLOPs of one step: 6 for each token and matmul parameter."""
        return problem.flops_per_step

    def __call__(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> ComputeCost:
        """Seconds per microbatch; arrays ``[n]`` and ``[n, r]``."""
        constants = self.fitted.constants(problem.cluster.chip, self.stack)
        return compute_cost(Setting.of(problem, candidates), constants, self.stack, ladder)


def compute_cost(
    s: Setting, constants: Constants, stack: Stack, ladder: tuple[Rung, ...]
) -> ComputeCost:
    """The compute cost of each setting; ``ladder`` is the stack's."""
    forward, backward = layer_operations(s, constants, stack)
    floor = constants.layer_floor_s
    each = (s.reshard >= 3) | ((s.reshard == 2) & (s.pp == 1))
    copies = np.where((s.shards > 1) & each, stack.shard_copies * s.layer_params, 0.0)
    copied = _moved(s, constants, copies, ideal=True)
    ahead = np.maximum(sum(forward.values(), 0.25 * copied), floor)
    back = np.maximum(sum(backward.values(), 0.75 * copied), 2.0 * floor)
    recompute = np.zeros((len(s), len(ladder)))
    for index, rung in enumerate(ladder):
        # Where attention and MLP are parallel, the MLP needs no output of attention again.
        serial, parallel = (repeated_shares(rung.kept, graph) for graph in GRAPHS)
        for operation in rung.recompute:
            share = np.where(s.blocks > 1, serial.get(operation, 1.0), parallel.get(operation, 0.0))
            recompute[:, index] += share * forward[operation]
    head = _matmul(s, constants, s.tokens, s.d_model, s.vocab, low=False)
    head_back = _backward(s, constants, s.tokens, s.d_model, s.vocab, low=False)
    logits = _moved(s, constants, 4.0 * LOGIT_PASSES * s.tokens * s.vocab, ideal=True)
    table = _moved(s, constants, 4.0 * s.tokens * s.d_model)
    slow = constants.blocking * constants.overhead
    # Matmuls that wait for their operands are bound by HBM; what moves bytes by nature is not.
    free = dataclasses.replace(s, hbm_bytes_per_s=np.full(len(s), np.inf))
    waits = sum(
        (
            _matmul(s, constants, s.tokens, k, o) - _matmul(free, constants, s.tokens, k, o)
            for k, o in layer_matmuls(s).values()
        ),
        np.zeros(len(s)),
    )
    return ComputeCost(
        layer_forward_s=slow * ahead,
        layer_backward_s=slow * back,
        recompute_s=slow * recompute,
        embedding_forward_s=slow * table,
        embedding_backward_s=slow * 2.0 * table,
        head_forward_s=slow * (head + logits),
        head_backward_s=slow * (head_back + logits),
        layer_peak_s=slow * np.maximum(ahead - waits, 0.0),
    )


def layer_operations(
    s: Setting, constants: Constants, stack: Stack
) -> tuple[dict[str, Column], dict[str, Column]]:
    """Seconds of each operation of a layer, forward and backward, by the names of ``OPERATIONS``.

    The last residual, which no rung repeats, counts with ``mlp_out``.
    """
    local = s.tokens / (s.tp if stack.sequence_parallel else 1.0)
    width = s.d_query + 2.0 * s.d_kv
    matmuls = layer_matmuls(s)
    ahead = {n: _matmul(s, constants, s.tokens, k, o) for n, (k, o) in matmuls.items()}
    back = {n: _backward(s, constants, s.tokens, k, o) for n, (k, o) in matmuls.items()}
    # In low precision, each matmul's input and weight are quantised forward, and its output's
    # gradient, for both matmuls, backward.
    cast = (
        s.low_precision * constants.casts * _moved(s, constants, 2.0 * np.ones(len(s)), ideal=True)
    )
    for name, (inner, columns) in matmuls.items():
        ahead[name] = ahead[name] + cast * inner * (s.tokens + columns)
        back[name] = back[name] + cast * columns * s.tokens
    dense = _moved(s, constants, 2.0 * local * s.d_model)
    heads = _moved(s, constants, 2.0 * s.tokens)
    act = heads * s.d_ff
    moved = {
        "attention_norm": 2.0 * dense,
        "rotary": 2.0 * s.rotary * heads * (s.d_query + s.d_kv),
        "attention_residual": 3.0 * dense,
        "mlp_norm": np.where(s.blocks > 1, 2.0 * dense, 0.0),
        "activation": (s.gates + 1.0) * act,
        "mlp_out": np.where(s.blocks > 1, 3.0 * dense, 0.0),
    }
    attention, attention_back = _attention(s, constants, stack)
    forward = {
        "query": ahead["qkv"] * s.d_query / width,
        "key": ahead["qkv"] * s.d_kv / width,
        "value": ahead["qkv"] * s.d_kv / width,
        "attention": attention,
        "output": ahead["output"],
        "mlp_in": ahead["mlp_in"],
        "mlp_out": ahead["mlp_out"],
    }
    backward = {**back, "attention": attention_back}
    for name, seconds in moved.items():
        forward[name] = forward.get(name, 0.0) + seconds
        backward[name] = backward.get(name, 0.0) + BACKWARD_BYTES * seconds
    return forward, backward


def layer_matmuls(s: Setting) -> dict[str, tuple[Column, Column]]:
    """Inner and outer dimension of each matmul of a layer, on one tensor-parallel rank."""
    return {
        "qkv": (s.d_model, s.d_query + 2.0 * s.d_kv),
        "output": (s.d_query, s.d_model),
        "mlp_in": (s.d_model, s.gates * s.d_ff),
        "mlp_out": (s.d_ff, s.d_model),
    }


def update_s(s: Setting, constants: Constants) -> tuple[Column, Column]:
    """Seconds of the optimizer update for one layer, and for one vocabulary table."""
    read = UPDATE_PASSES * (s.optimizer_bytes + s.grad_bytes / 2.0) / s.shards
    kept = np.where(s.reshard >= 3, s.shards, 1.0)
    read = read + s.param_bytes / kept
    layer = _moved(s, constants, read * s.layer_params, ideal=True)
    return layer, _moved(s, constants, read * s.d_model * s.vocab, ideal=True)


def _matmul(
    s: Setting,
    constants: Constants,
    rows: Column,
    inner: Column,
    columns: Column,
    *,
    low: bool = True,
) -> Column:
    """Seconds of ``[rows, inner] x [inner, columns]`` at the achieved rate.

    ``low`` says that it runs in the low precision, if the workload has one.
    """
    at_low = s.low_precision if low else np.zeros(len(s))
    # Whatever a fit says of gaps between kernels, no plan beats its chips' peak.
    most = constants.blocking * constants.overhead
    rate = np.where(
        at_low > 0,
        s.low_flops_per_s * min(constants.low_matmul, most),
        s.peak_flops_per_s * min(constants.matmul, most),
    )
    fill = (1.0 + constants.tile / rows) * (1.0 + constants.tile / columns)
    fill = fill * (1.0 + constants.depth / inner)
    moved = 2.0 * (rows * inner + inner * columns + rows * columns)
    least = moved / (s.hbm_bytes_per_s * constants.hbm)
    return np.maximum(2.0 * rows * inner * columns * fill / rate, least)


def _backward(
    s: Setting,
    constants: Constants,
    rows: Column,
    inner: Column,
    columns: Column,
    *,
    low: bool = True,
) -> Column:
    """Seconds of both matmuls of the backward pass: of the input, and of the weight."""
    of_input = _matmul(s, constants, rows, columns, inner, low=low)
    return of_input + _matmul(s, constants, inner, rows, columns, low=low)


def _attention(s: Setting, constants: Constants, stack: Stack) -> tuple[Column, Column]:
    """Seconds of the attention core, forward and backward."""
    if stack.attention == "unfused":
        # Two batched matmuls over the whole square, and the score matrix through HBM.
        pairs = s.tokens * s.seq_len
        rate = s.peak_flops_per_s * constants.matmul
        fill = (1.0 + constants.tile / s.seq_len) * (1.0 + constants.depth / s.d_head)
        work = 4.0 * pairs * s.d_query * fill / rate
        scores = SCORE_PASSES * 2.0 * pairs * s.d_query / s.d_head
        passes = scores / (s.hbm_bytes_per_s * constants.hbm * constants.attention)
        return work + passes, 2.0 * (work + passes)
    work = 2.0 * s.tokens * s.seq_len * s.d_query
    if not stack.balanced:
        # The rank with the end of the sequence sees all of it.
        work = work * (2.0 - 1.0 / (s.cp * s.seq_split))
    ahead = work / (s.peak_flops_per_s * constants.attention)
    return ahead, FLASH_BACKWARD[stack.attention] * ahead


def _moved(s: Setting, constants: Constants, size: Column, *, ideal: bool = False) -> Column:
    """Seconds of moving bytes through HBM; memory-bound operators move them more than once."""
    factor = 1.0 if ideal else constants.operators
    return factor * size / (s.hbm_bytes_per_s * constants.hbm)
