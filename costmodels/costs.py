"""The records that cost models return: frozen arrays, one row a candidate.

Shapes: ``n`` candidates, ``r`` rungs of the remat ladder, ``k`` network resources. Seconds are for
one microbatch on one chip unless a name says ``once`` (once a step); bytes are for one chip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.errors import CostModelError

Column = NDArray[np.float64]

#: Where in the model a cost arises: in each layer, in the embedding, in the head.
Place = Literal["layer", "embedding", "head"]
PLACES: tuple[Place, ...] = ("layer", "embedding", "head")
#: When: in each microbatch's pass, or once a step beside the first forward or last backward pass.
Phase = Literal["forward", "backward", "recompute", "once_forward", "once_backward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeCost:
    """Seconds of arithmetic for one microbatch on one chip.

    ``recompute_s`` has shape ``[n, r]``, all others ``[n]``. ``layer_peak_s`` is what a layer's
    forward pass would take if its matmuls never waited for memory: where it falls short of
    ``layer_forward_s``, memory binds.
    """

    layer_forward_s: Column
    layer_backward_s: Column
    recompute_s: Column
    embedding_forward_s: Column
    embedding_backward_s: Column
    head_forward_s: Column
    head_backward_s: Column
    layer_peak_s: Column


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One collective or transfer: who causes it, when, where, and how long it holds which resource.

    ``seconds`` maps the index of a resource to a column ``[n]`` (``[n, r]`` in the phase
    ``recompute``). A collective over a hierarchy holds several resources at the same time.
    """

    kind: str
    phase: Phase
    place: Place
    seconds: Mapping[int, Column]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommsCost:
    """All collectives of each candidate; ``send_s`` is the pipeline's, ``[n]``, not hidden."""

    resources: tuple[str, ...]
    flows: tuple[Flow, ...]
    send_s: Column

    def total_s(self, phase: Phase, place: Place) -> dict[int, Column]:
        """Seconds ``[n]`` of one phase and place by resource, summed over flows."""
        return self._sum(f for f in self.flows if f.phase == phase and f.place == place)

    def recompute_s(self) -> dict[int, Column]:
        """Seconds ``[n, r]`` of what remat repeats, by resource."""
        return self._sum(f for f in self.flows if f.phase == "recompute")

    @staticmethod
    def _sum(flows: Iterable[Flow]) -> dict[int, Column]:
        total: dict[int, Column] = {}
        for flow in flows:
            for resource, seconds in flow.seconds.items():
                total[resource] = total[resource] + seconds if resource in total else seconds
        return total


#: What the bytes of a chip are for, in the words of a memory model's ``by_kind``.
MEMORY_KINDS = (
    "parameters",
    "gradients",
    "optimizer state",
    "activations in flight",
    "gathered weights",
    "backward transients",
    "logits",
    "framework overhead",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCost:
    """Bytes on one chip. ``saved_bytes`` has shape ``[n, r]``: per layer and microbatch.

    A memory model may say what the bytes are for: ``by_kind``, called like the model itself,
    returns one record for each of some :data:`MEMORY_KINDS`, which add up to the model's answer.
    """

    layer_state_bytes: Column
    embedding_state_bytes: Column
    head_state_bytes: Column
    saved_bytes: Column
    fixed_bytes: Column


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineCost:
    """``step = max_weight * slowest + sum_weight * sum of stages + exposed``, columns ``[n]``."""

    max_weight: Column
    sum_weight: Column


def check_columns(model_name: str, record: object, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Require each named column to have its shape and to hold finite, non-negative numbers.

    Raises:
        CostModelError: names the cost model and the column.
    """
    for name, shape in shapes.items():
        check_column(model_name, name, getattr(record, name), shape)


def check_record(model_name: str, record: object, kind: type) -> None:
    """Require the record that a role returns.

    Raises:
        CostModelError: names the cost model and what it returned.
    """
    if not isinstance(record, kind):
        raise CostModelError(
            f"cost model {model_name!r}: must return a {kind.__name__}, got "
            f"{type(record).__name__}."
        )


def check_column(model_name: str, name: str, column: Column, shape: tuple[int, ...]) -> None:
    """Require one column to have a shape and to hold finite, non-negative numbers."""
    if not isinstance(column, np.ndarray) or column.shape != shape:
        got = getattr(column, "shape", type(column).__name__)
        raise CostModelError(
            f"cost model {model_name!r}: {name} must have shape {shape}, got {got}."
        )
    if column.dtype.kind not in "iuf":
        raise CostModelError(
            f"cost model {model_name!r}: {name} must hold real numbers, got {column.dtype}."
        )
    # One pass over the numbers: a NaN makes the comparison false, an infinity the maximum.
    if column.size and not (column.min() >= 0 and column.max() < np.inf):
        bad = "negative" if column.min() < 0 else "NaN or infinite"
        raise CostModelError(f"cost model {model_name!r}: {name} is {bad} for some candidates.")
