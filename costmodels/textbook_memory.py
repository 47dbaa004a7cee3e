"""Textbook memory: weights, optimizer state and checkpoints, and nothing else.

Source: applied-training.md of the scaling book: "2P + 8P + 2 D B n L" bytes, evenly split. Gathered
weights, logits, buffers and framework overhead are not in the book and not here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import Column, MemoryCost
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.remat import Rung
from autoshard.costmodels.shapes import ShardShapes, layer_params_per_rank, shard_shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class TextbookMemory:
    """State sharded over TP, PP and (by ZeRO stage) FSDP; checkpoints of ``d_model`` per token."""

    name: str = "textbook-memory"
    role: str = "memory"
    covers: frozenset[str] = frozenset({"dense"})

    def __call__(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> MemoryCost:
        """Bytes on one chip; arrays ``[n]`` and ``[n, r]``."""
        parameters, gradients, optimizer = self._per_param(problem, candidates)
        per_param: Column = parameters + gradients + optimizer
        shapes = shard_shapes(problem, candidates)
        layer, embedding, head = self._params(problem, candidates, shapes)
        return MemoryCost(
            layer_state_bytes=per_param * layer,
            embedding_state_bytes=per_param * embedding,
            head_state_bytes=per_param * head,
            saved_bytes=self._saved(problem, candidates, ladder, shapes),
            fixed_bytes=np.zeros(len(candidates)),
        )

    def by_kind(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> dict[str, MemoryCost]:
        """The same bytes by what they are for."""
        none, unsaved = np.zeros(len(candidates)), np.zeros((len(candidates), len(ladder)))
        shapes = shard_shapes(problem, candidates)
        layer, embedding, head = self._params(problem, candidates, shapes)
        names = ("parameters", "gradients", "optimizer state")
        kinds = {
            name: MemoryCost(
                layer_state_bytes=per_param * layer,
                embedding_state_bytes=per_param * embedding,
                head_state_bytes=per_param * head,
                saved_bytes=unsaved,
                fixed_bytes=none,
            )
            for name, per_param in zip(names, self._per_param(problem, candidates), strict=True)
        }
        kinds["activations in flight"] = MemoryCost(
            layer_state_bytes=none,
            embedding_state_bytes=none,
            head_state_bytes=none,
            saved_bytes=self._saved(problem, candidates, ladder, shapes),
            fixed_bytes=none,
        )
        return kinds

    def _per_param(self, problem: Problem, candidates: Candidates) -> tuple[Column, Column, Column]:
        """Bytes of a parameter, of its gradient and of its optimizer state, ``[n]`` each."""
        recipe, zero = problem.recipe, candidates.reshard
        fsdp = candidates.fsdp.astype(np.float64)
        return (
            recipe.param_bytes / np.where(zero >= 3, fsdp, 1.0),
            recipe.grad_bytes / np.where(zero >= 2, fsdp, 1.0),
            recipe.optimizer_bytes / fsdp,
        )

    def _params(
        self, problem: Problem, candidates: Candidates, shapes: ShardShapes
    ) -> tuple[Column, Column, Column]:
        """Parameters of a layer, the embedding and the head on one rank, ``[n]`` each."""
        model = problem.model
        small = (model.norm_params + model.bias_params) / model.n_layers
        table = model.vocab * model.d_model / candidates.tp
        # A tied table is held once where one stage has both ends, and on both end stages otherwise.
        head = np.where((candidates.pp == 1) & model.tied_embeddings, 0.0, table)
        layer = layer_params_per_rank(problem, shapes, "full") + small
        return layer, table + model.position_params, head

    def _saved(
        self,
        problem: Problem,
        candidates: Candidates,
        ladder: tuple[Rung, ...],
        shapes: ShardShapes,
    ) -> Column:
        """Bytes that one layer keeps of one microbatch under each rung, ``[n, r]``."""
        tokens, d_model = shapes.tokens, problem.model.d_model
        one = problem.workload.element_bytes * tokens * d_model / candidates.tp
        tensors = np.array([float(rung.saved_tensors) for rung in ladder])
        saved: Column = one[:, None] * tensors
        return saved
