"""Memory as software stacks spend it: what one chip holds at its peak, as the driver counts it.

    state      weights, gradients, master weights and optimizer moments, by ZeRO stage
    saved      what each layer keeps for the backward pass, for each microbatch in flight
    transient  the backward pass of one layer and what it computes again, gathered weights and the
               gradients of them, the logits and their gradient
    overhead   communication buckets, the driver's context, communicators

Saved and transient tensors come and go, and a caching allocator holds more than they sum up to.
The backward pass of a layer and the loss do not coincide: the head counts what it needs beyond the
former, and every stage the former.

Which tensors there are is derived in :mod:`autoshard.costmodels.layer_tensors`; what is left over
are the facts of each stack, below. They say what the code allocates, and none belongs to a run; but
no least squares is needed to be guided by data: where the code of a year was not clear, the peaks
of a whole source decided. So it was with the allocator and overhead of 2022, with nanotron's 16-bit
gradients, gathered inputs and logits, and with the two ages of torchtitan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.checks import check_one_of
from autoshard.costmodels.costs import Column, MemoryCost
from autoshard.costmodels.layer_tensors import (
    EVERY_TENSOR,
    FP8_INPUTS,
    POINTWISE,
    WIDTHS,
    LayerKind,
    Operation,
    bytes_of,
    layer_operations,
    stored_tensors,
)
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.remat import Rung
from autoshard.costmodels.shapes import ShardShapes, layer_params_per_rank, shard_shapes
from autoshard.costmodels.stack import Stack

#: Bytes of a weight or an activation in compute: 16-bit, also where matmuls run in FP8.
COMPUTE_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFacts:
    """What a stack spends beside the weights and tensors of the model.

    Per logit, at the peak of the loss and its gradient: ``logit_bytes``, and
    ``sharded_logit_bytes`` where ranks share the vocabulary. Per parameter: ``spare_grad_bytes`` of
    16-bit gradients that stay beside fp32 ones, ``copy_bytes`` of another copy of the sharded
    weights. Per entry of the embedding table: ``lookup_bytes``, its dense gradient before it is
    added up; ``flat_lookup`` says that it is flattened for its reduction as well.

    ``gathered_layers`` have their weights unsharded at a time; ``keeps_tables``: the embedding and
    the head as well, for the whole pass. ``casts_gradients``: an unsharded gradient exists in
    16-bit and again in the precision of its reduction. ``gathered_inputs``: what sequence
    parallelism gathers for a matmul is saved whole. ``keeps_outputs``: a stage holds what it sent
    for each microbatch in flight. ``piles_gradients``: under a pipeline, ZeRO-2 gradients stay
    unsharded until the last microbatch. ``fp8_inputs``: in FP8 training, matmuls save their inputs
    in FP8. ``bucket_bytes``: communication buckets. ``overhead_bytes``: outside the framework's
    allocator. ``allocator``: what it reserves for a byte that comes and goes.
    """

    logit_bytes: float
    sharded_logit_bytes: float
    spare_grad_bytes: float = 0.0
    copy_bytes: float = 0.0
    lookup_bytes: float = 0.0
    flat_lookup: bool = False
    gathered_layers: float = 2.0
    keeps_tables: bool = False
    casts_gradients: bool = True
    gathered_inputs: bool = False
    keeps_outputs: bool = False
    piles_gradients: bool = False
    fp8_inputs: bool = False
    bucket_bytes: float = 0.0
    overhead_bytes: float = 1.5e9
    allocator: float = 1.05


# Overhead: a CUDA context with its kernels takes 0.5 GB, NCCL 0.3 GB for each of a few
# communicators; before CUDA 11.7 every kernel is loaded, and DeepSpeed's pipeline opens a group
# for each pair of stages.
# Allocator: reserved over allocated, PyTorch without expandable segments.

_TORCHTITAN = MemoryFacts(
    # The compiled loss keeps logits and their gradient in 16-bit, and nothing in fp32.
    logit_bytes=4.0,
    sharded_logit_bytes=4.0,
    # DTensor gathers before the linear layer, which saves what it is given.
    gathered_inputs=True,
    # FSDP2 under a pipeline accumulates unsharded, in the reduction's precision.
    piles_gradients=True,
)

FACTS = {
    "megatron": MemoryFacts(
        # vocab_parallel_cross_entropy: 16-bit logits, fp32 probabilities, which become the
        # gradient, and that in 16-bit.
        logit_bytes=8.0,
        sharded_logit_bytes=8.0,
        # Fused accumulation covers linear layers, not the lookup.
        lookup_bytes=2.0,
        # Transformer Engine, module/linear.py. Weights take two bytes either way: 16-bit, or FP8
        # and its transpose (--fp8-param-gather).
        fp8_inputs=True,
    ),
    "megatron-2021": MemoryFacts(
        logit_bytes=8.0,
        sharded_logit_bytes=8.0,
        # DeepSpeed's BF16_Optimizer keeps param.grad beside its fp32 accumulators.
        spare_grad_bytes=2.0,
        lookup_bytes=2.0,
        # buffered_allreduce_fallback flattens up to 5e8 elements; a table is one piece.
        flat_lookup=True,
        bucket_bytes=2e9,
        keeps_outputs=True,
        overhead_bytes=3.5e9,
        allocator=1.15,
    ),
    "torchtitan": _TORCHTITAN,
    "torchtitan-2024": replace(
        _TORCHTITAN,
        # Eager loss: 16-bit logits, fp32 copy, log-softmax, its gradient. Loss parallel has two
        # more fp32 temporaries (torch/distributed/tensor/parallel/loss.py).
        logit_bytes=14.0,
        sharded_logit_bytes=20.0,
        # Embedding, last norm and head were one FSDP unit, the root, which stays gathered.
        keeps_tables=True,
    ),
    "llm-foundry": MemoryFacts(
        # fused_crossentropy of flash-attn: logits and gradient in 16-bit.
        logit_bytes=4.0,
        sharded_logit_bytes=4.0,
        keeps_tables=True,
    ),
    "nanotron": MemoryFacts(
        # 16-bit logits, fp32 copy, shifted and exponentiated copies that are reused.
        logit_bytes=12.0,
        sharded_logit_bytes=12.0,
        # 16-bit gradients beside FP32GradientAccumulator's buffers.
        spare_grad_bytes=2.0,
        lookup_bytes=2.0,
        # Rows nt-007, nt-010 and nt-011: their peaks hold the gathered inputs.
        gathered_inputs=True,
        keeps_outputs=True,
    ),
    "maxtext": MemoryFacts(
        # Checked against XLA:TPU's own figures for three programs: fused loss, 16-bit copies of the
        # sharded weights (cast ahead of the scan), weights gathered and gradients scattered one
        # matmul at a time. Memory is planned ahead; 0.3 GiB of HBM are reserved.
        logit_bytes=4.0,
        sharded_logit_bytes=4.0,
        copy_bytes=2.0,
        gathered_layers=1.0,
        casts_gradients=False,
        overhead_bytes=0.3e9,
        allocator=1.0,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bytes:
    """What a chip's memory is made of: bytes, parameters, and bytes of a parameter, ``[n]`` each.

    Parameters of a rank: ``layer``, ``embedding``, ``head`` and ``table``, which both ends have.
    Bytes of a parameter: ``weights``, ``grads`` and ``optimizer`` (with copies of weights);
    ``gather`` of a gathered weight and ``reduced`` of a whole gradient, ``held`` and ``lookup`` of
    a table. Bytes: ``saved`` ``[n, r]``, ``backward``, ``logits``, ``outputs``.
    """

    shards: Column
    weights: Column
    grads: Column
    optimizer: Column
    layer: Column
    table: Column
    embedding: Column
    head: Column
    gather: Column
    held: Column
    lookup: float
    reduced: Column
    saved: Column
    backward: Column
    logits: Column
    outputs: Column


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedMemory:
    """The memory of a stack, in bytes as nvidia-smi counts them (see :func:`metric_bytes`)."""

    stack: Stack
    name: str = "calibrated-memory"
    role: str = "memory"
    covers: frozenset[str] = frozenset({"dense"})

    def __call__(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> MemoryCost:
        """Bytes on one chip; arrays ``[n]`` and ``[n, r]``."""
        facts, b = memory_facts(self.stack), self._bytes(problem, candidates, ladder)
        per_param = b.weights + b.grads + b.optimizer
        backward = b.backward + b.layer * b.reduced
        loss = b.logits + (b.gather - b.held) * b.table
        fixed = backward + b.layer * facts.gathered_layers * b.gather
        if facts.keeps_outputs:
            fixed = fixed + b.outputs
        return MemoryCost(
            layer_state_bytes=per_param * b.layer,
            embedding_state_bytes=per_param * b.embedding + (b.held + b.lookup) * b.table,
            # Beside the gathered tables, the head's gradient waits for that of the embedding.
            head_state_bytes=(per_param + b.held) * b.head
            + b.held * b.table
            + facts.allocator * np.maximum(loss - backward, 0.0),
            saved_bytes=facts.allocator * b.saved,
            fixed_bytes=facts.allocator * fixed + facts.bucket_bytes + facts.overhead_bytes,
        )

    def by_kind(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> dict[str, MemoryCost]:
        """The same bytes by what they are for; what comes and goes with the allocator's share.

        Gradients of the lookup count as gradients, whole gradients of one layer as transients of
        its backward pass, outputs that wait for their send as activations. ``logits`` is what the
        loss needs beyond a backward pass, its gathered table included.
        """
        facts, b = memory_facts(self.stack), self._bytes(problem, candidates, ladder)
        none, unsaved = np.zeros(len(candidates)), np.zeros_like(b.saved)
        backward = b.backward + b.layer * b.reduced
        loss = b.logits + (b.gather - b.held) * b.table
        copies = facts.copy_bytes / b.shards

        def cost(
            layer: Column = none,
            embedding: Column = none,
            head: Column = none,
            saved: Column = unsaved,
            fixed: Column = none,
        ) -> MemoryCost:
            return MemoryCost(
                layer_state_bytes=layer,
                embedding_state_bytes=embedding,
                head_state_bytes=head,
                saved_bytes=saved,
                fixed_bytes=fixed,
            )

        def state(per_param: Column, of_table: Column = none) -> MemoryCost:
            embedding = per_param * b.embedding + of_table * b.table
            return cost(per_param * b.layer, embedding, per_param * b.head)

        outputs = b.outputs if facts.keeps_outputs else none
        lookup: Column = none + b.lookup
        return {
            "parameters": state(b.weights + copies),
            "gradients": state(b.grads, lookup),
            "optimizer state": state(b.optimizer - copies),
            "activations in flight": cost(
                saved=facts.allocator * b.saved, fixed=facts.allocator * outputs
            ),
            "gathered weights": cost(
                embedding=b.held * b.table,
                head=b.held * b.head + b.held * b.table,
                fixed=facts.allocator * b.layer * facts.gathered_layers * b.gather,
            ),
            "backward transients": cost(fixed=facts.allocator * backward),
            "logits": cost(head=facts.allocator * np.maximum(loss - backward, 0.0)),
            "framework overhead": cost(fixed=none + facts.bucket_bytes + facts.overhead_bytes),
        }

    def _bytes(self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]) -> _Bytes:
        """What both answers are made of."""
        facts = memory_facts(self.stack)
        model, recipe = problem.model, problem.recipe
        shapes = shard_shapes(problem, candidates)
        widths = self._widths(problem, candidates, shapes)
        # Frameworks shard state over the context-parallel ranks too.
        shards = (candidates.fsdp * candidates.cp).astype(np.float64)
        weights, grads, optimizer = self._state(problem, candidates, shards)

        small = (model.norm_params + model.bias_params) / model.n_layers
        table = model.vocab * model.d_model / candidates.tp
        # ZeRO-3 gathers weights for a while; from ZeRO-2 on, so is a gradient whole for a while.
        sharded = shards > 1
        gather = np.where((candidates.reshard >= 3) & sharded, COMPUTE_BYTES, 0.0)
        whole = COMPUTE_BYTES + (recipe.grad_bytes if facts.casts_gradients else 0.0)
        saved = np.stack([_weighted(widths, self._stored(problem, rung)) for rung in ladder]).T
        logit = np.where(candidates.tp > 1, facts.sharded_logit_bytes, facts.logit_bytes)
        sent = np.where(candidates.pp > 1, COMPUTE_BYTES * widths[:, 0], 0.0)
        return _Bytes(
            shards=shards,
            weights=weights,
            grads=grads,
            optimizer=optimizer,
            layer=layer_params_per_rank(problem, shapes, "full") + small,
            table=table,
            embedding=table + model.position_params,
            # A tied table is held once where one stage has both ends.
            head=np.where((candidates.pp == 1) & model.tied_embeddings, 0.0, table),
            gather=gather,
            held=gather if facts.keeps_tables else np.zeros(len(candidates)),
            lookup=facts.lookup_bytes + (recipe.grad_bytes if facts.flat_lookup else 0.0),
            reduced=np.where((candidates.reshard >= 2) & sharded, whole, 0.0),
            saved=saved,
            backward=self._backward(problem, candidates, shapes, widths, saved),
            logits=shapes.tokens * (logit * shapes.vocab + 2.0 * COMPUTE_BYTES * model.d_model),
            outputs=np.minimum(candidates.pp, candidates.microbatches) * sent,
        )

    def _state(
        self, problem: Problem, candidates: Candidates, shards: Column
    ) -> tuple[Column, Column, Column]:
        """Bytes of weights, gradients and the rest for each parameter of a rank's stage, ``[n]``.

        They stay through the whole step. Weights wider than 16 bits are the master copy, and
        sharded at every ZeRO stage; compute then reads a 16-bit copy, which stays unsharded below
        ZeRO-3. The rest is optimizer state and ``copy_bytes``.
        """
        facts, recipe = memory_facts(self.stack), problem.recipe
        zero = candidates.reshard
        if recipe.param_bytes > COMPUTE_BYTES:
            copy = np.where((zero < 3) & (shards > 1), COMPUTE_BYTES, 0.0)
            weights = recipe.param_bytes / shards + copy
        else:
            weights = recipe.param_bytes / np.where(zero >= 3, shards, 1.0)
        spare = facts.spare_grad_bytes if recipe.grad_bytes > COMPUTE_BYTES else 0.0
        grads = (recipe.grad_bytes + spare) / np.where(zero >= 2, shards, 1.0)
        if facts.piles_gradients:
            piled = (zero == 2) & (candidates.pp > 1) & (shards > 1)
            grads = grads + np.where(piled, recipe.grad_bytes, 0.0)
        return weights, grads, (recipe.optimizer_bytes + facts.copy_bytes) / shards

    def _widths(self, problem: Problem, candidates: Candidates, shapes: ShardShapes) -> Column:
        """Elements of one microbatch on one rank in each of the layer's widths, ``[n, w]``."""
        model = problem.model
        tp = candidates.tp.astype(np.float64)
        whole = np.full(len(candidates), float(model.d_model))
        residual = whole / tp if self.stack.sequence_parallel else whole
        heads = model.n_heads / tp
        columns = {
            "residual": residual,
            "normed": whole if memory_facts(self.stack).gathered_inputs else residual,
            "query": shapes.d_query,
            "key": shapes.d_kv,
            "inner": shapes.d_ff,
            "heads": heads,
            "scores": heads * problem.workload.seq_len,
        }
        elements: Column = np.stack([columns[name] * shapes.tokens for name in WIDTHS])
        return elements.T

    def _operations(self, problem: Problem) -> tuple[Operation, ...]:
        return layer_operations(
            LayerKind.of(
                problem.model,
                unfused=self.stack.attention == "unfused",
                eager=self.stack.operators == "eager",
            )
        )

    def _stored(self, problem: Problem, rung: Rung) -> Column:
        """Bytes per element of each width that a rung stores, ``[w]``.

        Compiled code reads pointwise results back from their inputs whatever the rung says.
        """
        kept = rung.kept
        if self.stack.operators == "compiled":
            kept = tuple(name for name in kept if name not in POINTWISE)
        return self._bytes_of(problem, kept)

    def _bytes_of(self, problem: Problem, kept: tuple[str, ...]) -> Column:
        fp8 = memory_facts(self.stack).fp8_inputs and problem.workload.precision == "fp8"
        stored = stored_tensors(kept, self._operations(problem))
        return bytes_of(stored, FP8_INPUTS if fp8 else None)

    def _backward(
        self,
        problem: Problem,
        candidates: Candidates,
        shapes: ShardShapes,
        widths: Column,
        saved: Column,
    ) -> Column:
        """Bytes that the backward pass of one layer needs beside what is saved, ``[n]``.

        What the lowest rung computes again, and the gradients that live together: of the MLP's
        output, input and inner tensors, or of attention's output, input, q, k, v and scores. Ranks
        that share a sequence hold the keys and values of others, and the gradients of these.
        """
        model = problem.model
        every = self._bytes_of(problem, EVERY_TENSOR)
        again = np.maximum(_weighted(widths, every) - saved.min(axis=1), 0.0)
        ends = 2.0 * model.d_model
        mlp = ends + model.mlp_matrices * shapes.d_ff
        attention = ends + 2.0 * shapes.d_query + 2.0 * shapes.d_kv
        if self.stack.attention == "unfused":
            attention = attention + 2.0 * widths[:, WIDTHS.index("scores")] / shapes.tokens
        split, ring = candidates.seq_split, candidates.cp
        parts = np.where(split > 1, 2.0 * split, 0.0) + np.where(ring > 1, 4.0, 0.0)
        attention = attention + parts * 2.0 * shapes.d_kv
        backward: Column = again + COMPUTE_BYTES * shapes.tokens * np.maximum(mlp, attention)
        return backward


def _weighted(widths: Column, sizes: Column) -> Column:
    """``widths @ sizes``, ``[n]``: column by column, as a BLAS waits for all its threads."""
    total = np.zeros(len(widths))
    for index in np.flatnonzero(sizes):
        total += sizes[index] * widths[:, index]
    return total


#: Stacks that keep what another keeps.
SAME_FACTS = {
    "torchprime": "maxtext",
    "maxtext-gpu": "maxtext",
    "fms-fsdp": "torchtitan",
    "meta-internal": "torchtitan",
}


def memory_facts(stack: Stack) -> MemoryFacts:
    """What a stack spends beside weights and tensors; a stack of another name is like Megatron."""
    return FACTS.get(SAME_FACTS.get(stack.name, stack.name), FACTS["megatron"])


#: Ways to read a peak: what the driver says, what the allocator holds, what tensors take. A log
#: that does not say (``unnamed``) prints what its allocator holds.
METRICS = ("nvidia-smi", "reserved", "allocated", "unnamed")


def metric_bytes(stack: Stack, predicted_bytes: float, metric: str) -> float:
    """A predicted peak as another tool would have printed it.

    Raises:
        SpecError: the metric is none of :data:`METRICS`.
    """
    check_one_of("metric_bytes", "metric", metric, METRICS)
    if metric == "nvidia-smi":
        return predicted_bytes
    facts = memory_facts(stack)
    reserved = max(predicted_bytes - facts.overhead_bytes, 0.0)
    return reserved / facts.allocator if metric == "allocated" else reserved
