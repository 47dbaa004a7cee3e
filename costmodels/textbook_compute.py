"""Textbook compute: every matmul at the roofline, attention at the arithmetic peak.

Sources: transformers.md (FLOPs of a layer), roofline.md (HBM), training.md (the reduced layer) of
the scaling book.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import Column, ComputeCost
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.remat import Rung
from autoshard.costmodels.roofline import matmul_s
from autoshard.costmodels.shapes import shard_shapes

LAYERS = ("full", "mlp2")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextbookCompute:
    """Roofline seconds of a layer.

    ``layer="full"`` prices every matmul of attention and MLP, the dot products (causal: half of
    ``12 B T^2 N H``, transformers.md) and the head. ``layer="mlp2"`` is the two-matrix MLP with
    which training.md derives its bounds. A backward pass is two matmuls for each forward one.
    """

    layer: str = "full"
    name: str = "textbook-compute"
    role: str = "compute"
    covers: frozenset[str] = frozenset({"dense"})

    def flops_per_step(self, problem: Problem) -> float:
        """Model FLOPs of one step: 6 for each token and matmul parameter that the layer prices."""
        if self.layer == "full":
            return problem.flops_per_step
        model = problem.model
        params = 2.0 * model.n_layers * model.d_model * model.d_ff
        return 6.0 * params * problem.workload.global_batch_tokens

    def __call__(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> ComputeCost:
        """Seconds per microbatch; arrays ``[n]`` and ``[n, r]``."""
        model, workload = problem.model, problem.workload
        shapes = shard_shapes(problem, candidates)
        peak = problem.peak_flops_per_s
        tokens, d_model = shapes.tokens, float(model.d_model)
        zero = np.zeros(len(candidates))

        def matmul(d_in: Column | float, d_out: Column | float) -> Column:
            return matmul_s(
                tokens,
                d_in,
                d_out,
                element_bytes=workload.element_bytes,
                flops_per_s=peak,
                hbm_bytes_per_s=problem.cluster.chip.hbm_bytes_per_s,
            )

        mlp_in = matmul(d_model, shapes.d_ff)
        operations = {"mlp_in": mlp_in, "mlp_out": mlp_in}
        flops = 4.0 * tokens * d_model * shapes.d_ff
        head = zero
        if self.layer == "full":
            gates = model.mlp_matrices - 1
            kv = matmul(d_model, shapes.d_kv)
            query = matmul(d_model, shapes.d_query)
            dot_flops = 2.0 * tokens * workload.seq_len * shapes.d_query
            operations = {
                "query": query,
                "key": kv,
                "value": kv,
                "attention": dot_flops / peak,
                "output": query,
                "mlp_in": gates * mlp_in,
                "mlp_out": mlp_in,
            }
            flops = dot_flops + tokens * d_model * (
                4.0 * shapes.d_query + 4.0 * shapes.d_kv + 2.0 * model.mlp_matrices * shapes.d_ff
            )
            head = matmul(d_model, shapes.vocab)
        forward = sum(operations.values(), zero)
        recompute = np.zeros((len(candidates), len(ladder)))
        for index, rung in enumerate(ladder):
            for operation in rung.recompute:
                if operation in operations:
                    recompute[:, index] += operations[operation]
        return ComputeCost(
            layer_forward_s=forward,
            layer_backward_s=2.0 * forward,
            recompute_s=recompute,
            embedding_forward_s=zero,
            embedding_backward_s=zero,
            head_forward_s=head,
            head_backward_s=2.0 * head,
            layer_peak_s=flops / peak,
        )
