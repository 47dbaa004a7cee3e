"""The scaling book's bounds: from how many tokens a chip on does arithmetic hide communication.

An *intensity* is a peak over a bandwidth in FLOP per byte: the book's ``alpha = C / W``. In bf16,
at two bytes and two FLOPs an element, it is also a number of tokens. Give each side of the mesh the
intensity of the axes it holds: on ``M`` torus axes ``alpha / M``. Layers are the book's, two
matrices of an MLP. Chapters are those of Austin et al., *How to Scale Your Model*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autoshard.costmodels.checks import check_one_of
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.cluster import Cluster, Layout, side_key

#: How two networks share time; the rules of the textbook profile, named here without loading numpy.
OVERLAPS = ("max", "sum")


def intensity(flops_per_s: float, bytes_per_s: float, *, axes: float = 1) -> float:
    """``alpha / M = C / (M W)`` in FLOP per byte, over ``axes`` torus axes (training.md)."""
    return flops_per_s / (axes * bytes_per_s)


def data_bound_tokens(
    data_intensity: float, *, experts_ratio: float = 1.0, units: float = math.inf
) -> float:
    """Tokens per chip from which pure FSDP or data parallelism is compute-bound: ``alpha / M``.

    training.md; gpus.md for the two factors. ``experts_ratio`` is experts over active experts
    (weights travel whole, tokens meet a part). ``units`` is how many nodes take part: a gather over
    ``n`` of them moves only ``(n - 1) / n``.
    """
    share = 1.0 if math.isinf(units) else (units - 1.0) / units
    return data_intensity * experts_ratio * share


def sharded_bound_tokens(chip: Chip, flops_per_s: float, model_shards: float) -> float:
    """Tokens per GPU from which data parallelism between nodes is compute-bound (gpus.md).

    ``C / W_node``, divided by the nodes over which tensor and pipeline parallelism spread one
    replica: 2475 for H100, and 309 where a replica fills eight nodes.
    """
    nodes = max(1.0, model_shards / chip.domain_chips)
    return node_intensity(chip, flops_per_s) / nodes


def node_intensity(chip: Chip, flops_per_s: float) -> float:
    """``C / W_node``: a GPU's peak over the scale-out bandwidth of its NVLink domain (gpus.md)."""
    return intensity(flops_per_s, chip.domain_chips * chip.scale_out_bytes_per_s)


def pod_bound_tokens(chip_flops_per_s: float, between_pods_bytes_per_s: float) -> float:
    """Tokens per pod from which gradients cross to other pods in time: ``C / W_dcn``.

    training.md. Both rates are per chip. The reduction runs beside the backward pass.
    """
    return intensity(chip_flops_per_s, between_pods_bytes_per_s)


def tensor_bound_ways(tensor_intensity: float, d_ff: float) -> float:
    """Ways up to which tensor parallelism is compute-bound: ``Y < M_Y F / alpha`` (training.md)."""
    return d_ff / tensor_intensity


def spanning_tensor_bound_ways(chip: Chip, flops_per_s: float, d_ff: float) -> float:
    """The same for tensor parallelism over several nodes: ``F > alpha_node (Y - 8)`` (gpus.md)."""
    return chip.domain_chips + d_ff / node_intensity(chip, flops_per_s)


def mixed_bound_tokens(
    data_intensity: float, tensor_intensity: float, d_ff: float, *, overlap: str = "max"
) -> float:
    """Tokens per chip from which FSDP with tensor parallelism is compute-bound at the best split.

    ``alpha^2 / (M_X M_Y F)`` where both networks work side by side (``max``, later editions of
    training.md), four times that where they take turns (``sum``, the first).

    Raises:
        SpecError: ``overlap`` is neither.
    """
    check_one_of("mixed bound", "overlap", overlap, OVERLAPS)
    together = data_intensity * tensor_intensity / d_ff
    return together if overlap == "max" else 4.0 * together


def best_data_ways(
    tokens: float, chips: float, data_intensity: float, tensor_intensity: float, d_ff: float
) -> float:
    """``X_opt = sqrt(B / F * M_X / M_Y * N)``: the FSDP ways that communicate least (training.md).

    The same under ``max`` and ``sum``. The tensor ways are ``chips / X_opt``.
    """
    return math.sqrt(tokens * chips * tensor_intensity / (d_ff * data_intensity))


def most_data_ways(tokens: float, chips: float, alpha: float, d_ff: float) -> float:
    """The largest X still compute-bound under ``sum`` with two data axes and one tensor axis.

    The root of ``B F / (N alpha) = F X / (2 N) + B / X``, with which the earliest edition of
    applied-training.md chose its mesh.

    Returns:
        NaN where no X is compute-bound.
    """
    root = (tokens * d_ff) ** 2 - 2.0 * alpha**2 * d_ff * tokens * chips
    return math.nan if root < 0 else tokens / alpha + math.sqrt(root) / (alpha * d_ff)


def weight_bound_tokens(
    flops_per_s: float,
    hbm_bytes_per_s: float,
    *,
    weight_bytes: float = 2.0,
    experts_ratio: float = 1.0,
) -> float:
    """Tokens per weight shard from which HBM keeps up: ``C / W_hbm`` in bf16, 240 on v5e.

    roofline.md. ``weight_bytes`` is the storage of one weight: one byte halves the bound.
    ``experts_ratio`` is as in :func:`data_bound_tokens` (transformers.md, Q8).
    """
    return intensity(flops_per_s, hbm_bytes_per_s) * weight_bytes / 2.0 * experts_ratio


def matmul_bound_tokens(
    d_in: float,
    d_out: float,
    *,
    flops_per_s: float,
    hbm_bytes_per_s: float,
    weight_bytes: float = 2.0,
    activation_bytes: float = 2.0,
) -> float:
    """The same for one matmul, with the traffic of its input and output counted (roofline.md, Q3).

    Returns:
        Infinity where activations alone already outlast the arithmetic.
    """
    alpha = intensity(flops_per_s, hbm_bytes_per_s)
    left = 2.0 * d_in * d_out - alpha * activation_bytes * (d_in + d_out)
    return math.inf if left <= 0 else alpha * weight_bytes * d_in * d_out / left


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Forward seconds of the book's layer on one chip: arithmetic and both communications."""

    math_s: float
    fsdp_s: float
    tensor_s: float

    def comms_s(self, overlap: str = "max") -> float:
        """Seconds of communication: the slower network, or both in turn (``sum``)."""
        check_one_of("layer times", "overlap", overlap, OVERLAPS)
        return (max if overlap == "max" else _sum)(self.fsdp_s, self.tensor_s)

    def comms_over_math(self, overlap: str = "max") -> float:
        """How far communication exceeds arithmetic; up to 1 the layer is compute-bound."""
        return self.comms_s(overlap) / self.math_s

    def lower_s(self, overlap: str = "max") -> float:
        """Seconds where arithmetic and communication overlap fully (roofline.md)."""
        return max(self.math_s, self.comms_s(overlap))

    def upper_s(self, overlap: str = "max") -> float:
        """Seconds where they do not overlap at all: at most twice :meth:`lower_s` (roofline.md)."""
        return self.math_s + self.comms_s(overlap)


def _sum(first: float, second: float) -> float:
    return first + second


def layer_times(
    *,
    tokens: float,
    d_model: float,
    d_ff: float,
    data_ways: float,
    tensor_ways: float,
    flops_per_s: float,
    data_intensity: float,
    tensor_intensity: float,
    gathers: float = 1.0,
) -> LayerTimes:
    """``4BDF/(N C)``, ``4DF/(Y W M_X)`` and ``4BD/(X W M_Y)`` (training.md), ``N = X Y``.

    ``tokens`` is the batch that the ``data_ways * tensor_ways`` chips share, ``gathers`` how often
    a pass gathers the weights (once for each microbatch under ZeRO-3, gpus.md). A side of one way
    sends nothing.
    """
    fsdp = 4.0 * d_model * d_ff / tensor_ways * gathers
    tensor = 4.0 * tokens * d_model / data_ways
    return LayerTimes(
        math_s=4.0 * tokens * d_model * d_ff / (data_ways * tensor_ways * flops_per_s),
        fsdp_s=fsdp * data_intensity / flops_per_s if data_ways > 1 else 0.0,
        tensor_s=tensor * tensor_intensity / flops_per_s if tensor_ways > 1 else 0.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Intensities of the data side and the tensor side; ``shared`` where both use one link."""

    data_intensity: float
    tensor_intensity: float
    shared: bool = False


def torus_sides(cluster: Cluster, flops_per_s: float, layout: Layout | None = None) -> Sides | None:
    """The sides of a layout; without one, of the layout with the lowest mixed bound.

    On three equal axes that is two for data and one for tensor (the book's choice; one and two cost
    the same, and two data axes need fewer tensor ways). An axis without wrap-around counts half
    (tpus.md).

    Returns:
        None where the torus has no link.
    """
    axes = cluster.torus
    both = [a for a in cluster.layouts if a.data_axes and a.tensor_axes]
    if not axes or not both:
        return None

    def side(indices: tuple[int, ...]) -> float:
        return intensity(flops_per_s, side_key(axes, indices)[0]) if indices else math.inf

    def sides(chosen: Layout) -> Sides:
        return Sides(
            data_intensity=side(chosen.data_axes),
            tensor_intensity=side(chosen.tensor_axes),
            shared=bool(set(chosen.data_axes) & set(chosen.tensor_axes)),
        )

    if layout is not None:
        return sides(layout)
    return min(
        map(sides, both),
        key=lambda s: (s.data_intensity * s.tensor_intensity, s.data_intensity),
    )


def torus_intensity(cluster: Cluster, flops_per_s: float) -> float:
    """``alpha / M`` with every axis of the torus given to data parallelism (training.md)."""
    axes = cluster.torus
    return intensity(flops_per_s, side_key(axes, tuple(range(len(axes))))[0])
