"""A plan: the integers that say how a model is cut over chips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoshard.costmodels.checks import check_count
from autoshard.costmodels.errors import SpecError

#: The degrees of a plan, in the order in which people say them.
DEGREES = (
    "dp",
    "batch_split",
    "seq_split",
    "tp",
    "pp",
    "vpp",
    "cp",
    "ep",
    "microbatches",
    "micro_batch_size",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One parallelism plan, in the vocabulary of the field.

    ``fsdp = batch_split * seq_split``. ``remat[s]`` maps the name of a rung of the remat ladder to
    the number of layers of stage ``s`` that run under it. ``pods`` is the number of pods that
    ``dp`` spans; ``layout`` says which network carries which logical axis.

    Raises:
        SpecError: a degree is not a positive whole number, or stages and layers disagree.
    """

    dp: int = 1
    batch_split: int = 1
    seq_split: int = 1
    tp: int = 1
    pp: int = 1
    vpp: int = 1
    cp: int = 1
    ep: int = 1
    microbatches: int = 1
    micro_batch_size: int = 1
    reshard: int = 3
    pods: int = 1
    layers_per_stage: tuple[int, ...] = ()
    remat: tuple[Mapping[str, int], ...] = ()
    layout: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*DEGREES, "reshard", "pods"):
            check_count("plan", name, getattr(self, name))
        if len(self.layers_per_stage) != self.pp or len(self.remat) != self.pp:
            raise SpecError(
                f"plan: pp = {self.pp} needs as many entries in layers_per_stage "
                f"({len(self.layers_per_stage)}) and remat ({len(self.remat)})."
            )
        for stage, (layers, rungs) in enumerate(
            zip(self.layers_per_stage, self.remat, strict=True)
        ):
            if sum(rungs.values()) != layers:
                raise SpecError(
                    f"plan: stage {stage} has {layers} layers but remat deals "
                    f"{sum(rungs.values())}."
                )

    @property
    def fsdp(self) -> int:
        """Shards of parameters, gradients and optimizer state."""
        return self.batch_split * self.seq_split

    @property
    def chips_used(self) -> int:
        """Chips that hold a part of the model."""
        return self.dp * self.fsdp * self.tp * self.pp * self.cp

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, with ``fsdp`` and ``chips_used``, ready for JSON."""
        degrees = {name: getattr(self, name) for name in DEGREES}
        return {
            "dp": self.dp,
            "fsdp": self.fsdp,
            **{k: v for k, v in degrees.items() if k != "dp"},
            "reshard": self.reshard,
            "pods": self.pods,
            "layers_per_stage": list(self.layers_per_stage),
            "remat": [dict(stage) for stage in self.remat],
            "layout": dict(self.layout),
            "chips_used": self.chips_used,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of :meth:`to_dict`; derived values are checked, not trusted.

        Raises:
            SpecError: a key is unknown, or ``fsdp`` or ``chips_used`` contradicts the degrees.
        """
        fields = (*DEGREES, "reshard", "pods", "layers_per_stage", "remat", "layout")
        unknown = set(data) - {*fields, "fsdp", "chips_used"}
        if unknown:
            raise SpecError(f"plan: unknown key {sorted(unknown)[0]!r}.")
        values = {k: data[k] for k in fields if k in data}
        values["layers_per_stage"] = tuple(values.get("layers_per_stage", ()))
        values["remat"] = tuple(values.get("remat", ()))
        plan = cls(**values)
        for name in ("fsdp", "chips_used"):
            if name in data and data[name] != getattr(plan, name):
                raise SpecError(
                    f"plan: {name} = {data[name]} contradicts the degrees ({getattr(plan, name)})."
                )
        return plan
