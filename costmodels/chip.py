"""One accelerator: its peaks, its memory, and the network ports it brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoshard.costmodels.checks import check_count, check_one_of, check_rate
from autoshard.costmodels.errors import SpecError

#: Bytes of one element on the wire and in HBM, by training precision.
ELEMENT_BYTES = {"bf16": 2, "fp8": 1, "int8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One accelerator. Rates are SI, dense (never the 2:4-sparse marketing peak).

    ``kind`` is ``tpu`` (torus of ICI axes, DCN between pods) or ``gpu`` (NVLink domain, then a
    switched tree). ``flops_per_s`` maps a precision to the dense peak. TPU fields:
    ``ici_bytes_per_s`` is the bandwidth of one axis, both directions together; ``pod_axes`` the
    largest torus; ``wrap`` says which axes of a slice wrap: ``cubes`` (all, when every axis is a
    multiple of 4), ``full`` (an axis of the pod's full length) or ``always``. GPU fields:
    ``domain_chips`` chips share NVLink at ``domain_bytes_per_s`` each way per chip;
    ``scale_out_bytes_per_s`` per chip above it; ``pod_chips`` is a full-bisection block and
    ``oversubscription`` the factor by which bandwidth per chip falls between blocks.
    ``dcn_bytes_per_s`` is per chip, between TPU pods.

    Raises:
        SpecError: a rate is not positive, or a field of the other kind of chip is missing.
    """

    name: str
    kind: str
    flops_per_s: Mapping[str, float]
    hbm_bytes: int
    hbm_bytes_per_s: float
    pod_axes: tuple[int, ...] = ()
    wrap: str = "always"
    ici_bytes_per_s: float = 0.0
    dcn_bytes_per_s: float = 0.0
    domain_chips: int = 0
    domain_bytes_per_s: float = 0.0
    scale_out_bytes_per_s: float = 0.0
    pod_chips: int = 0
    oversubscription: float = 1.0
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        owner = f"chip {self.name!r}"
        check_one_of(owner, "kind", self.kind, ("tpu", "gpu"))
        check_one_of(owner, "wrap", self.wrap, ("cubes", "full", "always"))
        if "bf16" not in self.flops_per_s:
            raise SpecError(f"{owner}: flops_per_s needs a bf16 peak.")
        for precision, rate in self.flops_per_s.items():
            check_one_of(owner, "flops_per_s precision", precision, tuple(ELEMENT_BYTES))
            check_rate(owner, f"flops_per_s.{precision}", rate)
        check_count(owner, "hbm_bytes", self.hbm_bytes)
        check_rate(owner, "hbm_bytes_per_s", self.hbm_bytes_per_s)
        if self.kind == "tpu":
            if not 1 <= len(self.pod_axes) <= 3:
                raise SpecError(f"{owner}: pod_axes must list one to three torus axes.")
            for length in self.pod_axes:
                check_count(owner, "pod_axes", length)
            check_rate(owner, "ici_bytes_per_s", self.ici_bytes_per_s)
            check_rate(owner, "dcn_bytes_per_s", self.dcn_bytes_per_s, zero_ok=True)
        else:
            check_count(owner, "domain_chips", self.domain_chips)
            check_rate(owner, "domain_bytes_per_s", self.domain_bytes_per_s)
            check_rate(owner, "scale_out_bytes_per_s", self.scale_out_bytes_per_s, zero_ok=True)
            check_count(owner, "pod_chips", self.pod_chips, least=0)
            check_rate(owner, "oversubscription", self.oversubscription)
            if self.oversubscription < 1:
                raise SpecError(f"{owner}: oversubscription is a ratio of at least 1.")

    def peak_flops_per_s(self, precision: str) -> float:
        """Dense peak of one chip in FLOP/s.

        Raises:
            SpecError: the chip has no peak for that precision.
        """
        if precision not in self.flops_per_s:
            raise SpecError(
                f"chip {self.name!r} has no {precision} peak; it has "
                f"{', '.join(sorted(self.flops_per_s))}."
            )
        return self.flops_per_s[precision]
