"""What hides behind what: partial exposure of TP, contention of FSDP, the tail of the reduction.

A pass takes the longer of two linear forms. Bound by compute: compute, the exposed share of TP, and
the slowdown that hidden FSDP traffic causes (both want the same SMs and memory). Bound by the
network: all FSDP traffic and the exposed share of TP. Once a step, the exposed share of the
gradient reduction waits, and the optimizer runs alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from autoshard.costmodels.calibrated_comms import resources_on
from autoshard.costmodels.constants import Fitted, shipped
from autoshard.costmodels.costs import Column
from autoshard.costmodels.stack import Stack


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedOverlap:
    """The forms of one stack over what ``calibrated_comms`` names."""

    stack: Stack
    fitted: Fitted = field(default_factory=shipped)
    name: str = "calibrated-overlap"
    role: str = "overlap"
    covers: frozenset[str] = frozenset({"dense"})

    def __call__(self, resources: tuple[str, ...]) -> Column:
        """Forms ``[2, 1 + k]``."""
        kinds = (kind for kind in ("gpu", "tpu") if resources_on(kind) == resources)
        kind = next(kinds, self.stack.chips[0])
        return overlap_forms(*self.fitted.overlap(self.stack, kind))


def overlap_forms(tensor: float, contention: float, reduce: float) -> Column:
    """Bound by compute, and bound by the network."""
    return np.array(
        [
            [1.0, tensor, contention, reduce, 1.0],
            [0.0, tensor, 1.0, 1.0, 1.0],
        ]
    )
