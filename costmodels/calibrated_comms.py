"""Achieved communication: latency, the bandwidth that collectives reach, and what waits for them.

Volumes are those of the textbook model, with the bytes of the stack; time on the wire is the
topology's (:class:`~autoshard.costmodels.setting.Setting`) at the achieved share of its bandwidth,
plus a latency for each collective. Sources: Megatron's TP collectives (arXiv 2205.05198), ZeRO
(arXiv 1910.02054), PyTorch FSDP (arXiv 2304.11277).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from autoshard.costmodels.calibrated_compute import update_s
from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.constants import Constants, Fitted, shipped
from autoshard.costmodels.costs import Column, CommsCost, Flow, Phase, Place
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.remat import Rung
from autoshard.costmodels.setting import Setting
from autoshard.costmodels.stack import Stack

#: What waits, what runs beside compute, and what the optimizer does: the overlap model's columns.
RESOURCES = ("TP links", "sharding links", "gradient links", "HBM for the optimizer")
TENSOR, SHARDS, GRADIENTS, UPDATE = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedComms:
    """Achieved seconds of every collective of one stack."""

    stack: Stack
    fitted: Fitted = field(default_factory=shipped)
    name: str = "calibrated-comms"
    role: str = "comms"
    covers: frozenset[str] = frozenset({"dense"})

    def __call__(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> CommsCost:
        """Flows of each candidate over what they wait for."""
        chip = problem.cluster.chip
        constants = self.fitted.constants(chip, self.stack)
        cost = comms_cost(Setting.of(problem, candidates), constants, self.stack, ladder)
        return replace(cost, resources=resources_on(chip.kind))


def resources_on(kind: str) -> tuple[str, ...]:
    """The resources on a kind of chip: the overlap model knows no more of the chip than these."""
    return tuple(f"{kind.upper()} {name}" for name in RESOURCES)


def comms_cost(
    s: Setting, constants: Constants, stack: Stack, ladder: tuple[Rung, ...]
) -> CommsCost:
    """The communication of each setting; ``ladder`` is the stack's."""
    boundary = s.element_bytes * s.tokens * s.d_model / s.tp
    send = 2.0 * s.vpp * (boundary * s.send_s_per_byte / constants.network)
    return CommsCost(
        resources=RESOURCES,
        flows=tuple(_flows(s, constants, stack, ladder)),
        send_s=np.where(s.pp > 1, send, 0.0),
    )


def _flows(
    s: Setting, constants: Constants, stack: Stack, ladder: tuple[Rung, ...]
) -> Iterator[Flow]:
    table = s.d_model * s.vocab
    params: dict[Place, Column] = {"layer": s.layer_params, "embedding": table, "head": table}
    each = (s.reshard == 3).astype(np.float64)
    # Under a pipeline, gradients are reduced with the last microbatch, even where they are sharded
    # (FSDP2 with a pipeline schedule: gradient sync is off until the last backward pass).
    kept = 1.0 - each
    once = ((s.reshard == 1) | ((s.reshard == 2) & (s.pp > 1))).astype(np.float64)
    sharded = s.shards > 1
    update = dict(
        zip(("layer", "embedding", "head"), _thrice(*update_s(s, constants)), strict=True)
    )
    for place, count in params.items():
        gather = np.where(sharded, _shard_s(s, constants, s.element_bytes * count), 0.0)
        reduce = np.where(sharded, _shard_s(s, constants, stack.gradient_bytes * count), 0.0)
        yield from _flow("fsdp", "forward", place, SHARDS, each * gather)
        yield from _flow("fsdp", "backward", place, SHARDS, each * gather + (1.0 - once) * reduce)
        yield from _flow("fsdp", "once_backward", place, GRADIENTS, kept * gather + once * reduce)
        across = stack.gradient_bytes * count / s.shards
        replicas = _wire(s, constants, "replicas", across, constants.shard_link)
        yield from _flow("dp", "once_backward", place, GRADIENTS, replicas)
        yield Flow(
            kind="optimizer", phase="once_backward", place=place, seconds={UPDATE: update[place]}
        )

    activations = _tensor_s(s, constants, s.element_bytes * s.tokens * s.d_model)
    block = s.blocks * activations
    yield from _flow("tp", "forward", "layer", TENSOR, 2.0 * block)
    yield from _flow("tp", "backward", "layer", TENSOR, 2.0 * block)
    yield from _flow("tp", "forward", "embedding", TENSOR, activations)
    yield from _flow("tp", "forward", "head", TENSOR, activations)
    yield from _flow("tp", "backward", "head", TENSOR, activations)
    repeats = np.array([2.0 if rung.repeat_collectives else 0.0 for rung in ladder])
    again = block[:, None] * repeats
    if again.any():
        yield Flow(kind="tp", phase="recompute", place="layer", seconds={TENSOR: again})

    kv = 2.0 * s.element_bytes * s.d_kv * s.tokens
    gathered = _wire(s, constants, "sequence", kv * s.seq_split, constants.shard_link)
    rotated = _wire(s, constants, "context", kv * s.cp, constants.shard_link)
    for kind, seconds in (("seq", gathered), ("cp", rotated)):
        yield from _flow(kind, "forward", "layer", SHARDS, seconds)
        yield from _flow(kind, "backward", "layer", SHARDS, 2.0 * seconds)


def _thrice(layer: Column, table: Column) -> tuple[Column, Column, Column]:
    return layer, table, table


def _wire(
    s: Setting, constants: Constants, axis: str, volume: Column, inner_share: float
) -> Column:
    """Seconds on the wire: the slower of the fast and the slow network."""
    inside = s.inner[axis] / inner_share
    return volume * np.maximum(inside, s.outer[axis] / constants.network)


def _shard_s(s: Setting, constants: Constants, volume: Column) -> Column:
    """An FSDP collective of the weights or gradients of one layer."""
    return _wire(s, constants, "fsdp", volume, constants.shard_link) + constants.shard_latency_s


def _tensor_s(s: Setting, constants: Constants, volume: Column) -> Column:
    """One all-gather or reduce-scatter over TP; both halves of an all-reduce."""
    latency = constants.tensor_latency_s * np.log2(np.maximum(s.tp, 1.0))
    return _wire(s, constants, "tensor", volume, constants.tensor_link) + latency


def _flow(kind: str, phase: Phase, place: Place, resource: int, seconds: Column) -> Iterator[Flow]:
    """The flow, or nothing where no candidate has it."""
    if seconds.any():
        yield Flow(kind=kind, phase=phase, place=place, seconds={resource: seconds})
