"""Achieved communication: latency, the bandwidth that collectives reach, and what waits for them.

Volumes are those of :mod:`autoshard.costmodels.volumes`; time on the wire is the topology's
(:class:`~autoshard.costmodels.setting.Setting`) at the achieved share of its bandwidth, plus a
latency for each collective.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from autoshard.costmodels.calibrated_compute import update_s
from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.constants import Constants, Fitted, shipped
from autoshard.costmodels.costs import PLACES, Column, CommsCost, Flow, Phase, Place
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.remat import Rung
from autoshard.costmodels.setting import Setting
from autoshard.costmodels.stack import Stack
from autoshard.costmodels.volumes import Volume, activation_volumes, boundary_bytes, state_volumes

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
    send = 2.0 * s.vpp * (boundary_bytes(s) * s.send_s_per_byte / constants.network)
    return CommsCost(
        resources=RESOURCES,
        flows=tuple(_flows(s, constants, stack, ladder)),
        send_s=np.where(s.pp > 1, send, 0.0),
    )


def _flows(
    s: Setting, constants: Constants, stack: Stack, ladder: tuple[Rung, ...]
) -> Iterator[Flow]:
    yield from _timed(s, constants, state_volumes(s, stack))
    for place, seconds in zip(PLACES, _thrice(*update_s(s, constants)), strict=True):
        yield Flow(kind="optimizer", phase="once_backward", place=place, seconds={UPDATE: seconds})
    yield from _timed(s, constants, activation_volumes(s, ladder))


def _timed(s: Setting, constants: Constants, volumes: Iterable[Volume]) -> Iterator[Flow]:
    """One flow for the volumes of each kind, phase and place that some candidate has."""
    held: dict[tuple[str, Phase, Place], tuple[int, Column]] = {}
    known: dict[tuple[int, str], Column] = {}
    for volume in tuple(volumes):  # all at once: an array is known by its id while it lives
        times = volume.times
        if not np.any(times):
            continue
        array = (id(volume.array_bytes), volume.axis)
        if array not in known:
            known[array] = _collective_s(s, constants, volume)
        one = known[array]
        seconds = times * (one[:, None] if np.ndim(times) == 2 else one)
        if seconds.any():
            # Gradients that are reduced once a step, and what is gathered with them, wait apart.
            once = volume.phase == "once_backward"
            resource = TENSOR if volume.axis == "tensor" else GRADIENTS if once else SHARDS
            key = (volume.kind, volume.phase, volume.place)
            held[key] = resource, held[key][1] + seconds if key in held else seconds
    for (kind, phase, place), (resource, seconds) in held.items():
        yield Flow(kind=kind, phase=phase, place=place, seconds={resource: seconds})


def _thrice(layer: Column, table: Column) -> tuple[Column, Column, Column]:
    return layer, table, table


def _collective_s(s: Setting, constants: Constants, volume: Volume) -> Column:
    """One collective: latency, and the slower of the fast and the slow network.

    The network's columns are of an all-reduce between replicas, and of one half of it elsewhere.
    """
    tensor = volume.axis == "tensor"
    inside = s.inner[volume.axis] / (constants.tensor_link if tensor else constants.shard_link)
    seconds: Column = volume.array_bytes * np.maximum(
        inside, s.outer[volume.axis] / constants.network
    )
    if tensor:
        seconds = seconds + constants.tensor_latency_s * np.log2(np.maximum(s.tp, 1.0))
    elif volume.axis == "fsdp":
        seconds = seconds + constants.shard_latency_s
    return seconds
