"""The circumstances of each candidate as columns: what calibrated costs are functions of.

Model, workload, chip and network of a problem are spread over its candidates, so that candidates of
different problems make one table: a fit over published runs prices them all in one call.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import Column
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.shapes import shard_shapes
from autoshard.costmodels.textbook_comms import torus_network, tree_network
from autoshard.costmodels.torus import torus_times

#: Axes whose collectives cross the network, in the order of :class:`Setting`'s network columns.
AXES = ("tensor", "fsdp", "sequence", "context", "replicas")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row a candidate; all columns ``[n]`` of floats.

    Widths are those of one tensor-parallel rank and ``tokens`` those of one microbatch of its
    group. ``inner[axis]`` and ``outer[axis]`` are seconds for each gathered byte of that axis at
    the full rate of the fast network (NVLink, ICI) and of the slow one (scale-out, DCN), which a
    collective holds side by side; a group that stays inside has no outer part. ``blocks`` counts
    the TP-parallel blocks of a layer: one where attention and MLP are parallel. ``shards`` are the
    ranks that share the training state: FSDP and context parallelism together, as frameworks do.
    """

    n_layers: Column
    d_model: Column
    d_head: Column
    seq_len: Column
    gates: Column
    blocks: Column
    rotary: Column
    tokens: Column
    d_query: Column
    d_kv: Column
    d_ff: Column
    vocab: Column
    kv_heads: Column
    peak_flops_per_s: Column
    low_flops_per_s: Column
    low_precision: Column
    hbm_bytes_per_s: Column
    element_bytes: Column
    optimizer_bytes: Column
    param_bytes: Column
    grad_bytes: Column
    tp: Column
    cp: Column
    seq_split: Column
    shards: Column
    dp: Column
    pp: Column
    vpp: Column
    microbatches: Column
    reshard: Column
    inner: dict[str, Column]
    outer: dict[str, Column]
    send_s_per_byte: Column

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, problem: Problem, candidates: Candidates) -> Setting:
        """The settings of a problem's candidates."""
        model, chip, workload = problem.model, problem.cluster.chip, problem.workload
        recipe, shapes, n = problem.recipe, shard_shapes(problem, candidates), len(candidates)
        peak = chip.peak_flops_per_s("bf16")
        low = workload.precision != "bf16"
        inner, outer, send = _network(problem, candidates)
        same = {
            "n_layers": model.n_layers,
            "d_model": model.d_model,
            "d_head": model.d_head,
            "seq_len": workload.seq_len,
            "gates": model.mlp_matrices - 1,
            "blocks": 1 if model.parallel_block else 2,
            "rotary": 0 if model.n_positions else 1,
            "peak_flops_per_s": peak,
            "low_flops_per_s": problem.peak_flops_per_s,
            "low_precision": float(low),
            "hbm_bytes_per_s": chip.hbm_bytes_per_s,
            # FP8 is a precision of matmuls: activations and collectives stay at 16 bits.
            "element_bytes": 2.0,
            "optimizer_bytes": recipe.optimizer_bytes,
            "param_bytes": recipe.param_bytes,
            "grad_bytes": recipe.grad_bytes,
        }
        columns: dict[str, Any] = {k: np.full(n, float(v)) for k, v in same.items()}
        for name in ("tokens", "d_query", "d_kv", "d_ff", "vocab"):
            columns[name] = getattr(shapes, name)
        columns["kv_heads"] = shapes.d_kv / model.d_head
        columns["shards"] = (candidates.fsdp * candidates.cp).astype(np.float64)
        for name in ("tp", "cp", "seq_split", "dp", "pp", "vpp", "microbatches", "reshard"):
            columns[name] = getattr(candidates, name).astype(np.float64)
        return cls(**columns, inner=inner, outer=outer, send_s_per_byte=send)

    @classmethod
    def concatenate(cls, parts: list[Setting]) -> Setting:
        """One table out of several."""
        made: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            if isinstance(values[0], dict):
                made[field.name] = {a: np.concatenate([v[a] for v in values]) for a in AXES}
            else:
                made[field.name] = np.concatenate(values)
        return cls(**made)

    @property
    def layer_params(self) -> Column:
        """Matmul parameters of one layer on one tensor-parallel rank."""
        attention = 2.0 * self.d_query + 2.0 * self.d_kv
        return self.d_model * (attention + (self.gates + 1.0) * self.d_ff)


def _network(
    problem: Problem, candidates: Candidates
) -> tuple[dict[str, Column], dict[str, Column], Column]:
    """Seconds per byte of each axis on the fast and the slow network and of sends, at full rate."""
    if problem.cluster.chip.kind == "tpu":
        return _torus(problem, candidates)
    network = tree_network(problem, candidates)
    one = np.ones(len(candidates))
    # Context ranks lie inside the FSDP ranks, and share the state with them.
    ring = candidates.replace(
        batch_split=candidates.batch_split * candidates.cp, cp=np.ones_like(candidates.cp)
    )
    held = {
        "tensor": network.gather_tensor(one),
        "fsdp": tree_network(problem, ring).gather_fsdp(one),
        "sequence": network.gather_sequence(one),
        "context": network.rotate_context(one),
        "replicas": network.reduce_replicas(one),
    }
    slow = {k for k, name in enumerate(network.resources) if name != FAST}
    inner, outer = {}, {}
    for axis, seconds in held.items():
        inner[axis] = sum((s for k, s in seconds.items() if k not in slow), np.zeros_like(one))
        # Levels above the domain work one after the other in a tree, side by side with it.
        outer[axis] = sum((s for k, s in seconds.items() if k in slow), np.zeros_like(one))
    # A ring's slowest hop has one rate: levels that share it are one, not a sum.
    rings = [s for k, s in held["context"].items() if k in slow]
    outer["context"] = np.maximum.reduce([np.zeros_like(one), *rings])
    return inner, outer, one / network.send_bytes_per_s


#: The resource of :class:`~autoshard.costmodels.textbook_comms.Network` that is the fast network.
FAST = "nvlink"


def _torus(
    problem: Problem, candidates: Candidates
) -> tuple[dict[str, Column], dict[str, Column], Column]:
    """The same on a torus, whose dimensions may be split; replicas are reduced over DCN."""
    network, times = torus_network(problem, candidates), torus_times(problem.cluster, candidates)
    one, none = np.ones(len(candidates)), np.zeros(len(candidates))
    inner = {
        "tensor": times.tensor_s,
        "fsdp": times.fsdp_s,
        "sequence": times.sequence_s,
        # Blocks go one way round: a line brings the last one back the other way.
        "context": sum(network.rotate_context(one).values(), none),
        "replicas": none,
    }
    outer = dict.fromkeys(AXES, none) | {
        "replicas": sum(network.reduce_replicas(one).values(), none)
    }
    return inner, outer, times.stride / network.send_bytes_per_s
