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
from autoshard.costmodels.shapes import layer_params_per_rank, shard_shapes


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
        model, recipe = problem.model, problem.recipe
        shapes = shard_shapes(problem, candidates)
        fsdp = candidates.fsdp.astype(np.float64)
        zero = candidates.reshard
        per_param: Column = (
            recipe.param_bytes / np.where(zero >= 3, fsdp, 1.0)
            + recipe.grad_bytes / np.where(zero >= 2, fsdp, 1.0)
            + recipe.optimizer_bytes / fsdp
        )
        small = (model.norm_params + model.bias_params) / model.n_layers
        table = model.vocab * model.d_model / candidates.tp
        # A tied table is held once where one stage has both ends, and on both end stages otherwise.
        head = np.where((candidates.pp == 1) & model.tied_embeddings, 0.0, table)
        saved = problem.workload.element_bytes * shapes.tokens * model.d_model / candidates.tp
        tensors = np.array([float(rung.saved_tensors) for rung in ladder])
        return MemoryCost(
            layer_state_bytes=per_param * (layer_params_per_rank(problem, shapes, "full") + small),
            embedding_state_bytes=per_param * (table + model.position_params),
            head_state_bytes=per_param * head,
            saved_bytes=saved[:, None] * tensors,
            fixed_bytes=np.zeros(len(candidates)),
        )
