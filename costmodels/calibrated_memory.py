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
are the facts of each stack (:mod:`autoshard.costmodels.memory_facts`).
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
    residual_bytes,
    stored_tensors,
)
from autoshard.costmodels.memory_facts import MemoryFacts, memory_facts
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.remat import Rung
from autoshard.costmodels.shapes import ShardShapes, layer_params_per_rank, shard_shapes
from autoshard.costmodels.stack import Stack

#: Bytes of a weight or an activation in compute: 16-bit, also where matmuls run in FP8.
COMPUTE_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bytes:
    """What a chip's memory is made of: bytes, parameters, and bytes of a parameter, ``[n]`` each.

    Parameters of a rank: ``layer``, of which ``norms`` are held more often than others are,
    ``embedding``, ``head`` and ``table``, which both ends have.
    Bytes of a parameter: ``weights``, ``grads`` and ``optimizer`` (with copies of weights), of
    which ``lasting`` stay from step to step; ``gather`` of a gathered weight and ``reduced`` of a
    whole gradient, ``held`` and ``lookup`` of a table. Bytes: ``saved`` ``[n, r]``, ``backward``,
    ``logits``, ``outputs``, and ``looked_up`` of a gradient of the lookup.
    """

    shards: Column
    weights: Column
    grads: Column
    optimizer: Column
    lasting: Column
    layer: Column
    norms: Column
    table: Column
    embedding: Column
    head: Column
    gather: Column
    held: Column
    lookup: Column
    looked_up: Column
    reduced: Column
    saved: Column
    backward: Column
    logits: Column
    outputs: Column

    @property
    def held_layer(self) -> Column:
        """Parameters of a layer whose state a rank holds."""
        return self.layer + self.norms


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedMemory:
    """The memory of a stack, in bytes as nvidia-smi counts them (see :func:`metric_bytes`).

    ``other_facts`` stand for those of the stack. ``allocated`` counts what tensors take, as a
    compiler does, and nothing that an allocator keeps or reserves or that is outside of it.
    """

    stack: Stack
    other_facts: MemoryFacts | None = None
    allocated: bool = False
    name: str = "calibrated-memory"
    role: str = "memory"
    covers: frozenset[str] = frozenset({"dense"})

    @property
    def facts(self) -> MemoryFacts:
        """What is spent beside weights and tensors."""
        facts = self.other_facts or memory_facts(self.stack)
        return replace(facts, allocator=1.0, overhead_bytes=0.0) if self.allocated else facts

    def __call__(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> MemoryCost:
        """Bytes on one chip; arrays ``[n]`` and ``[n, r]``."""
        facts, b = self.facts, self._bytes(problem, candidates, ladder)
        per_param = b.weights + b.grads + b.optimizer
        fixed = b.backward + b.layer * facts.gathered_layers * b.gather + b.outputs
        return MemoryCost(
            layer_state_bytes=per_param * b.held_layer,
            embedding_state_bytes=per_param * b.embedding
            + (b.held + b.lookup) * b.table
            + facts.allocator * np.maximum(b.looked_up - b.backward, 0.0),
            # Beside the gathered tables, the head's gradient waits for that of the embedding.
            head_state_bytes=(per_param + b.held) * b.head
            + b.held * b.table
            + facts.allocator * np.maximum(self._loss(b) - b.backward, 0.0),
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
        facts, b = self.facts, self._bytes(problem, candidates, ladder)
        none, unsaved = np.zeros(len(candidates)), np.zeros_like(b.saved)
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
            return cost(per_param * b.held_layer, embedding, per_param * b.head)

        return {
            "parameters": state(b.weights + copies),
            "gradients": state(b.grads, b.lookup),
            "optimizer state": state(b.optimizer - copies),
            "activations in flight": cost(
                saved=facts.allocator * b.saved, fixed=facts.allocator * b.outputs
            ),
            "gathered weights": cost(
                embedding=b.held * b.table,
                head=b.held * b.head + b.held * b.table,
                fixed=facts.allocator * b.layer * facts.gathered_layers * b.gather,
            ),
            "backward transients": cost(
                embedding=facts.allocator * np.maximum(b.looked_up - b.backward, 0.0),
                fixed=facts.allocator * b.backward,
            ),
            "logits": cost(head=facts.allocator * np.maximum(self._loss(b) - b.backward, 0.0)),
            "framework overhead": cost(fixed=none + facts.bucket_bytes + facts.overhead_bytes),
        }

    def lasting(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> MemoryCost:
        """Weights and optimizer state that stay from step to step: what a checkpoint holds.

        16-bit copies of wider weights, and gradients, are not among them.
        """
        b, none = self._bytes(problem, candidates, ladder), np.zeros(len(candidates))
        return MemoryCost(
            layer_state_bytes=b.lasting * b.held_layer,
            embedding_state_bytes=b.lasting * b.embedding,
            head_state_bytes=b.lasting * b.head,
            saved_bytes=np.zeros_like(b.saved),
            fixed_bytes=none,
        )

    def _loss(self, b: _Bytes) -> Column:
        """Bytes of the loss and its gradient, with the head that they are made by, ``[n]``."""
        gathered = (b.gather - b.held) * b.table
        if self.facts.whole_head_gradient:
            return b.logits + gathered + b.reduced * b.table
        if not self.facts.regathers_head:
            return b.logits + gathered
        # The logits and their gradient; that gradient with the head gathered and its own, which is
        # cast and reduced then; or that reduction beside the layer before the head.
        whole = COMPUTE_BYTES * (b.reduced > 0) * b.table
        phases = (b.logits, b.logits / 2.0 + gathered + whole, b.reduced * b.table)
        wider = np.maximum(b.reduced - COMPUTE_BYTES, 0.0) * np.maximum(b.table - b.layer, 0.0)
        # Of the layers that are gathered at a time, none but the next one is there by then.
        early = np.maximum.reduce(phases) - b.gather * b.layer
        beside: Column = np.maximum(early, b.backward + wider)
        return beside

    def _bytes(self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]) -> _Bytes:
        """What both answers are made of."""
        facts = self.facts
        model, recipe = problem.model, problem.recipe
        shapes = shard_shapes(problem, candidates)
        widths = self._widths(problem, candidates, shapes)
        # Frameworks shard state over the context-parallel ranks too.
        shards = (candidates.fsdp * candidates.cp).astype(np.float64)
        weights, grads, optimizer, lasting = self._state(problem, candidates, shards)

        small = (model.norm_params + model.bias_params) / model.n_layers
        table = model.vocab * model.d_model / candidates.tp
        # ZeRO-3 gathers weights for a while; from ZeRO-2 on, so is a gradient whole for a while.
        sharded = shards > 1
        piped = facts.unsharded_in_pipeline & (candidates.pp > 1)
        gather = np.where((candidates.reshard >= 3) & sharded & ~piped, COMPUTE_BYTES, 0.0)
        cast = np.where(piped, 0.0, recipe.grad_bytes if facts.casts_gradients else 0.0)
        whole = sharded & ((candidates.reshard >= 2) | piped)
        reduced = np.where(whole, COMPUTE_BYTES + cast, 0.0)
        saved = np.stack([_weighted(widths, self._stored(problem, rung)) for rung in ladder]).T
        saved = saved + self._unread(problem, candidates, shapes, ladder)
        logit = np.where(candidates.tp > 1, facts.sharded_logit_bytes, facts.logit_bytes)
        backward = self._backward(problem, candidates, shapes, widths, saved)
        params = layer_params_per_rank(problem, shapes, "full") + small
        # All state of a parameter is divided by the shards under ZeRO-3, and by TP where whole.
        wholes = np.where(candidates.reshard >= 3, shards / candidates.tp - 1.0, 0.0)
        if not facts.stores_residuals:
            # Of the layer whose backward pass runs every tensor is counted there; a scan copies
            # what it saved out of the stack.
            others = np.where(candidates.pp == 1, 1.0 - 1.0 / model.n_layers, 1.0)
            least = saved.min(axis=1)[:, None]
            saved = least + (saved - least) * others[:, None]
        if facts.yields_gradients and self.allocated:
            # A caching allocator keeps their blocks from the step before: published peaks of FSDP 8
            # and 128 (rows tt-002 and tt-009) differ by the gradients as well.
            alone = (candidates.pp == 1) & (candidates.microbatches == 1)
            coming = np.where(alone, grads * params, 0.0)
            saved = np.maximum(saved - coming[:, None], 0.0)
        sent = np.where(candidates.pp > 1, COMPUTE_BYTES * widths[:, 0], 0.0)
        waiting = facts.keeps_outputs * np.minimum(candidates.pp, candidates.microbatches)
        if facts.receives_ahead:
            # Activations from one side and gradients from the other.
            waiting = waiting + 2.0 * candidates.microbatches * candidates.vpp
        lookup = facts.lookup_bytes + (recipe.grad_bytes if facts.flat_lookup else 0.0)
        lookups, looked_up = np.full(len(candidates), lookup), np.zeros(len(candidates))
        if facts.whole_lookup:
            # Their sum; without a pipeline, one is there when all else is gone.
            others = np.where(piped, candidates.tp - 1.0, 0.0)
            lookups = lookups + recipe.grad_bytes * others
            looked_up = COMPUTE_BYTES * table * np.where(piped, candidates.tp, 0.0)
        return _Bytes(
            shards=shards,
            weights=weights,
            grads=grads,
            optimizer=optimizer,
            lasting=lasting,
            layer=params,
            norms=model.norm_params / model.n_layers * wholes * facts.whole_norms,
            table=table,
            embedding=table + model.position_params,
            # A tied table is held once where one stage has both ends.
            head=np.where((candidates.pp == 1) & model.tied_embeddings, 0.0, table),
            gather=gather,
            held=gather if facts.keeps_tables else np.zeros(len(candidates)),
            lookup=lookups,
            looked_up=looked_up,
            reduced=reduced,
            saved=saved,
            backward=backward + params * reduced,
            logits=shapes.tokens * (logit * shapes.vocab + 2.0 * COMPUTE_BYTES * model.d_model),
            outputs=waiting * sent,
        )

    def _state(
        self, problem: Problem, candidates: Candidates, shards: Column
    ) -> tuple[Column, Column, Column, Column]:
        """Bytes of weights, gradients and the rest for each parameter of a rank's stage, ``[n]``.

        They stay through the whole step; a fourth column is what stays from step to step, weights
        and optimizer state alone. Weights wider than 16 bits are the master copy, and sharded at
        every ZeRO stage; compute then reads a 16-bit copy, which stays unsharded below ZeRO-3. The
        rest is optimizer state and ``copy_bytes``.
        """
        facts, recipe = self.facts, problem.recipe
        zero = candidates.reshard
        piped = facts.unsharded_in_pipeline & (candidates.pp > 1) & (shards > 1)
        if recipe.param_bytes > COMPUTE_BYTES:
            copy = np.where(((zero < 3) & (shards > 1)) | piped, COMPUTE_BYTES, 0.0)
            master = recipe.param_bytes / shards
            weights = master + copy
        else:
            master = recipe.param_bytes / np.where(zero >= 3, shards, 1.0)
            weights = np.where(piped, np.maximum(recipe.param_bytes, master), master)
        spare = facts.spare_grad_bytes if recipe.grad_bytes > COMPUTE_BYTES else 0.0
        grads = (recipe.grad_bytes + spare) / np.where(zero >= 2, shards, 1.0)
        if facts.adds_up_apart:
            several = (candidates.microbatches > 1) & (candidates.pp == 1)
            grads = grads * np.where(several, 2.0, 1.0)
        # Whole until the last microbatch, and sharded only when all else is gone.
        grads = np.where(piped & (zero >= 2), recipe.grad_bytes, grads)
        optimizer = (recipe.optimizer_bytes + facts.copy_bytes) / shards
        return weights, grads, optimizer, master + recipe.optimizer_bytes / shards

    def _widths(self, problem: Problem, candidates: Candidates, shapes: ShardShapes) -> Column:
        """Elements of one microbatch on one rank in each of the layer's widths, ``[n, w]``."""
        model = problem.model
        tp = candidates.tp.astype(np.float64)
        whole = np.full(len(candidates), float(model.d_model))
        residual = whole / tp if self.stack.sequence_parallel else whole
        heads = model.n_heads / tp
        columns = {
            "residual": residual,
            "normed": whole if self.facts.gathered_inputs else residual,
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

        Compiled code reads pointwise results back from their inputs whatever the rung says, but for
        what autodiff hands over from a loop to another.
        """
        if self.facts.stores_residuals and not rung.recompute:
            return residual_bytes(problem.model)
        kept = rung.kept
        if self.stack.operators == "compiled":
            kept = tuple(name for name in kept if name not in POINTWISE)
        return self._bytes_of(problem, kept)

    def _bytes_of(self, problem: Problem, kept: tuple[str, ...]) -> Column:
        fp8 = self.facts.fp8_inputs and problem.workload.precision == "fp8"
        stored = stored_tensors(kept, self._operations(problem))
        return bytes_of(stored, FP8_INPUTS if fp8 else None)

    def _unread(
        self,
        problem: Problem,
        candidates: Candidates,
        shapes: ShardShapes,
        ladder: tuple[Rung, ...],
    ) -> Column:
        """Bytes that selective checkpointing keeps though nobody reads them, ``[n, r]``.

        Eager code keeps what the policy names: the last matmul's output before TP reduces it, and
        what the reductions made (torch/utils/checkpoint.py; compiled code drops them).
        """
        named = [bool(rung.recompute) and "mlpwo" in rung.kept for rung in ladder]
        eager = self.stack.operators == "eager"
        reduced = np.where(candidates.tp > 1, 2.0 / candidates.tp, 0.0)
        wide = COMPUTE_BYTES * shapes.tokens * problem.model.d_model * (1.0 + reduced)
        return np.outer(wide, np.array(named, dtype=np.float64) * eager)

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
