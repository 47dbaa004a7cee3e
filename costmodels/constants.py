"""The constants of the calibrated cost models: what each means, what is known of it beforehand.

A constant belongs to a chip, a stack, or a pair of words such as an attention kernel on a chip;
never to a model, a run or a plan. ``PRIORS`` holds, for each, the value that data sheets, papers
and microbenchmarks suggest, how sure that is (a factor of one standard deviation), and hard bounds.
Fitted values come from ``calibration.toml``; a chip or stack without one takes the prior.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from autoshard.costmodels.chip import Chip
from autoshard.costmodels.stack import Stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What is known of a constant before any run is looked at.

    ``spread`` is the factor of one standard deviation; 1 means that it is not fitted.
    """

    value: float
    spread: float
    least: float
    most: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """The constants of one (chip, stack): fractions of peaks, seconds, and factors.

    ``matmul`` is the share of the dense peak that a large matmul reaches, ``low_matmul`` the same
    in FP8 or INT8; ``tile`` and ``depth`` are the rows or columns, and the inner dimension, at
    which fill costs as much as work. ``attention`` is the share of the peak that the attention
    kernel reaches on causal FLOPs. ``hbm`` is the achieved share of HBM bandwidth; ``operators``
    how many times the bytes of ideal memory-bound operators are moved; ``casts`` how many passes
    over the operands quantisation takes. ``tensor_link`` and ``shard_link`` are shares of the fast
    network's bandwidth that TP and FSDP collectives reach, ``network`` of the slow one;
    ``tensor_latency_s`` is for each collective and doubling of its group, ``shard_latency_s`` for
    each collective. ``tensor_exposed`` is the share of TP communication that waits, ``contention``
    how much hidden FSDP communication slows compute, ``reduce_exposed`` the share of the gradient
    reduction that waits. ``layer_floor_s`` is launch and host time of a layer's pass.
    ``overhead`` is how much longer compute takes under a stack
    than its kernels do: gaps between them, synchronisation, clocks. ``blocking`` slows a step in
    which every launch waits.
    """

    matmul: float
    low_matmul: float
    tile: float
    depth: float
    attention: float
    hbm: float
    operators: float
    casts: float
    tensor_link: float
    tensor_latency_s: float
    shard_link: float
    shard_latency_s: float
    network: float
    tensor_exposed: float
    contention: float
    reduce_exposed: float
    layer_floor_s: float
    overhead: float
    blocking: float


#: Chips that are one design to the calibration: the key of their constants.
FAMILIES = {
    "h100-hbm2e-500w": "h100-500w",
    "a100": "a100",
    "h100": "h100",
    "h200": "h100",
    "b200": "b200",
    "gb200": "b200",
    "b300": "b200",
    "gb300": "b200",
    # JAX counts each half of its package as a device.
    "ironwood": "ironwood",
}
#: Designs of :data:`FAMILIES` that are GPUs.
_GPUS = ("a100", "h100", "h100-500w", "b200")


def family(chip: Chip) -> str:
    """The chip whose constants a chip takes: its own name, or that of its design."""
    name = chip.name.lower()
    for start, known in sorted(FAMILIES.items(), key=lambda item: -len(item[0])):
        if name.startswith(start):
            return known
    return name


def keys(design: str, kind: str, stack: Stack) -> dict[str, str]:
    """The key in the table of constants of each field of :class:`Constants`."""
    name = stack.name
    if name == "torchtitan-2024":
        name = "torchtitan"
    overlapped = "overlapped" if stack.tp_overlap else "exposed"
    reduced = "overlapped" if stack.reduce_overlap else "exposed"
    return {
        "matmul": f"matmul.{design}",
        "low_matmul": f"low_matmul.{design}",
        "tile": f"tile.{kind}",
        "depth": f"depth.{kind}",
        "attention": f"attention.{stack.attention}.{design}",
        "hbm": f"hbm.{kind}",
        "operators": f"operators.{stack.operators}.{kind}",
        "casts": f"casts.{stack.fp8_recipe}.{kind}",
        "tensor_link": f"tensor_link.{kind}",
        "tensor_latency_s": f"tensor_latency_s.{kind}",
        "shard_link": f"shard_link.{kind}",
        "shard_latency_s": f"shard_latency_s.{kind}",
        "network": f"network.{kind}",
        "tensor_exposed": f"tensor_exposed.{overlapped}.{kind}",
        "contention": f"contention.{kind}",
        "reduce_exposed": f"reduce_exposed.{reduced}.{kind}",
        "layer_floor_s": f"layer_floor_s.{name}",
        "overhead": f"overhead.{name}",
        "blocking": "blocking" if stack.blocking else "",
    }


def used_keys(chip: Chip, stack: Stack, *, low_precision: bool) -> tuple[str, ...]:
    """The keys that a step of a stack on a chip depends on, in 16 bits or less."""
    named = keys(family(chip), chip.kind, stack)
    high = () if low_precision else ("low_matmul", "casts")
    return tuple(key for name, key in named.items() if key and name not in high)


def _p(value: float, spread: float, least: float, most: float, source: str) -> Prior:
    return Prior(value=value, spread=spread, least=least, most=most, source=source)


_CUBLAS = "cuBLAS on large square matmuls at the chip's sustained clock"
_MXU = "rooflines reached by large matmuls in MaxText's published sweeps"
_FLASH = "FlashAttention-2 (arXiv 2307.08691) and -3 (arXiv 2407.08608), causal, head size 128"

#: By key; a key with a chip or stack that is not here takes the one that ends in the kind of chip.
PRIORS: dict[str, Prior] = {
    "matmul.gpu": _p(0.72, 1.10, 0.40, 0.95, _CUBLAS),
    "matmul.a100": _p(0.87, 1.05, 0.60, 0.95, _CUBLAS),
    "matmul.h100": _p(0.72, 1.08, 0.50, 0.90, _CUBLAS),
    "matmul.h100-500w": _p(0.60, 1.08, 0.40, 0.80, "H100 at 500 W of 700: the root of the power"),
    "attention.flash2.h100-500w": _p(0.29, 1.25, 0.15, 0.60, _FLASH),
    "matmul.tpu": _p(0.80, 1.15, 0.40, 0.97, _MXU),
    "low_matmul.gpu": _p(0.65, 1.15, 0.30, 0.90, _CUBLAS),
    "low_matmul.tpu": _p(0.60, 1.25, 0.30, 0.95, _MXU),
    "tile.gpu": _p(150.0, 1.4, 32.0, 512.0, "tiles of 128 to 256 rows, and waves of them"),
    "depth.gpu": _p(150.0, 1.4, 32.0, 512.0, "prologue and epilogue of a tile"),
    "tile.tpu": _p(128.0, 1.6, 16.0, 1024.0, "systolic array of 128 or 256 columns, tpus.md"),
    "depth.tpu": _p(128.0, 1.6, 16.0, 1024.0, "systolic array of 128 or 256 rows, tpus.md"),
    "attention.gpu": _p(0.40, 1.25, 0.10, 0.80, _FLASH),
    "attention.unfused.gpu": _p(1.0, 1.4, 0.3, 3.0, "arXiv 2205.05198, passes over the scores"),
    "attention.flash1.gpu": _p(0.40, 1.3, 0.10, 0.60, "FlashAttention (arXiv 2205.14135)"),
    "attention.flash1.h100": _p(0.22, 1.3, 0.08, 0.50, "the same kernel, made for A100"),
    "attention.flash2.gpu": _p(0.45, 1.25, 0.15, 0.70, _FLASH),
    "attention.flash2.h100": _p(0.33, 1.25, 0.15, 0.60, _FLASH),
    "attention.cudnn.gpu": _p(0.55, 1.25, 0.20, 0.80, _FLASH),
    "attention.splash.tpu": _p(0.35, 1.5, 0.10, 0.80, "splash attention kernels, MaxText"),
    "hbm.gpu": _p(0.80, 1.10, 0.5, 0.95, "stream-like kernels"),
    "hbm.tpu": _p(0.80, 1.15, 0.4, 0.97, "stream-like kernels"),
    "operators.fused.gpu": _p(1.2, 1.3, 0.5, 3.0, "hand-fused operators move little twice"),
    "operators.compiled.gpu": _p(1.3, 1.3, 0.5, 3.0, "torch.compile and XLA fuse chains"),
    "operators.eager.gpu": _p(2.2, 1.4, 0.5, 4.0, "each operator reads and writes"),
    "operators.compiled.tpu": _p(1.3, 1.4, 0.3, 4.0, "XLA fuses into matmuls where it can"),
    "casts": _p(3.0, 1.3, 0.5, 9.0, "read twice for its scale, written in 8 bits twice"),
    "casts.delayed.gpu": _p(2.0, 1.3, 0.5, 6.0, "read in 16 bits, written in 8 twice"),
    "casts.rowwise.gpu": _p(5.0, 1.4, 1.0, 9.0, "scales by row, both ways, each its own pass"),
    "tensor_link.gpu": _p(0.80, 1.15, 0.4, 1.0, "NCCL bus bandwidth within an NVLink domain"),
    "tensor_link.tpu": _p(0.80, 1.25, 0.3, 1.0, "ICI collectives"),
    "tensor_latency_s.gpu": _p(20e-6, 1.6, 2e-6, 80e-6, "launch, synchronisation and skew"),
    "tensor_latency_s.tpu": _p(5e-6, 2.0, 1e-6, 80e-6, "sharding.md: about 1 us a hop"),
    "shard_link.gpu": _p(0.40, 1.4, 0.1, 1.0, "FSDP buckets, copies in and out"),
    "shard_link.tpu": _p(0.70, 1.3, 0.2, 1.0, "ICI collectives"),
    "shard_latency_s.gpu": _p(50e-6, 1.6, 5e-6, 1e-3, "launch and copies of a bucket"),
    "shard_latency_s.tpu": _p(10e-6, 2.0, 1e-6, 1e-3, "sharding.md"),
    "network.gpu": _p(0.80, 1.2, 0.3, 1.0, "NCCL bus bandwidth over InfiniBand"),
    "network.tpu": _p(0.60, 1.4, 0.1, 1.0, "DCN collectives"),
    "tensor_exposed.overlapped.gpu": _p(0.55, 1.25, 0.2, 1.0, "chunked overlap hides about half"),
    "tensor_exposed.overlapped.tpu": _p(0.50, 1.4, 0.1, 1.0, "collective matmul, XLA"),
    "tensor_exposed.exposed.gpu": _p(1.0, 1.0, 1.0, 1.0, "nothing runs beside it"),
    "attention.cudnn.tpu": _p(0.40, 1.5, 0.10, 0.80, "splash attention kernels, MaxText"),
    "attention.flash2.tpu": _p(0.35, 1.5, 0.10, 0.80, "splash attention kernels, MaxText"),
    "attention.unfused.tpu": _p(1.0, 1.4, 0.3, 3.0, "scores through HBM"),
    "operators.fused.tpu": _p(1.3, 1.4, 0.3, 4.0, "XLA"),
    "operators.eager.tpu": _p(1.3, 1.4, 0.3, 4.0, "XLA"),
    "reduce_exposed.exposed.tpu": _p(0.9, 1.2, 0.3, 1.0, "no overlap"),
    "tensor_exposed.exposed.tpu": _p(1.0, 1.0, 1.0, 1.0, "nothing runs beside it"),
    "contention.gpu": _p(0.15, 1.5, 0.01, 0.6, "SMs and bandwidth that NCCL takes"),
    "contention.tpu": _p(0.3, 1.6, 0.01, 1.0, "what XLA leaves of a gather in the open"),
    "reduce_exposed.overlapped.gpu": _p(0.20, 1.6, 0.02, 1.0, "the last buckets wait"),
    "reduce_exposed.exposed.gpu": _p(0.90, 1.15, 0.3, 1.0, "no overlap"),
    "reduce_exposed.overlapped.tpu": _p(0.30, 1.6, 0.02, 1.0, "the last buckets wait"),
    "layer_floor_s": _p(0.3e-3, 1.0, 0.02e-3, 3e-3, "some twenty kernels of 10 us"),
    "overhead": _p(1.0, 1.07, 0.8, 1.4, "kernels back to back"),
    "blocking": _p(1.2, 1.1, 1.0, 1.5, "CUDA_LAUNCH_BLOCKING=1"),
}


#: Kinds of chip, as they stand in keys.
KINDS = ("gpu", "tpu")

#: How many words follow the name of a constant in its key.
_WORDS = {
    **dict.fromkeys(("matmul", "low_matmul", "tile", "depth", "hbm"), 1),
    **dict.fromkeys(("tensor_link", "tensor_latency_s", "shard_link", "shard_latency_s"), 1),
    **dict.fromkeys(("network", "contention", "layer_floor_s", "overhead"), 1),
    **dict.fromkeys(("attention", "operators", "casts", "tensor_exposed", "reduce_exposed"), 2),
    "blocking": 0,
}

#: What the first of them may be, where it is not a chip or a stack of the user's own.
_FIRST = {
    **dict.fromkeys(("tile", "depth", "hbm", "tensor_link", "tensor_latency_s"), KINDS),
    **dict.fromkeys(("shard_link", "shard_latency_s", "network", "contention"), KINDS),
    "attention": ("unfused", "flash1", "flash2", "cudnn", "splash"),
    "operators": ("fused", "compiled", "eager"),
    "casts": ("delayed", "current", "tensorwise", "rowwise", "block"),
    **dict.fromkeys(("tensor_exposed", "reduce_exposed"), ("overlapped", "exposed")),
}

#: Constants in words: ``v`` is the value, ``p`` in percent, ``first`` and ``last`` words of a key.
_SAID = {
    "matmul": "matmuls on {last} at {p:.3g} % of its peak",
    "low_matmul": "FP8 or INT8 matmuls on {last} at {p:.3g} % of its peak",
    "tile": "tiles of {v:.3g} rows or columns on {last}",
    "depth": "a start of {v:.3g} inner elements for each tile on {last}",
    "attention": "{first} attention on {last} at {p:.3g} % of its peak",
    "scores": "attention scores at {p:.3g} % of the HBM bandwidth that {last} reaches",
    "hbm": "{p:.3g} % of the HBM bandwidth of {last}",
    "operators": "{first} operators that move {v:.3g} times their bytes on {last}",
    "casts": "{v:.3g} passes for {first} casts to FP8 on {last}",
    "tensor_link": "TP collectives at {p:.3g} % of the fast network of {last}",
    "tensor_latency_s": "{us:.3g} us for a TP collective on {last}",
    "shard_link": "FSDP collectives at {p:.3g} % of the fast network of {last}",
    "shard_latency_s": "{us:.3g} us for an FSDP collective on {last}",
    "network": "{p:.3g} % of the slow network of {last}",
    "tensor_exposed": "{p:.3g} % of TP communication that waits on {last}",
    "contention": "{p:.3g} % of hidden FSDP communication that slows compute on {last}",
    "reduce_exposed": "{p:.3g} % of the gradient reduction that waits on {last}",
    "layer_floor_s": "{ms:.3g} ms to launch a layer of {last}",
    "overhead": "{v:.3g} times the kernels' own time under {last}",
    "blocking": "{v:.3g} times the time where every launch waits",
}


def prior(key: str, kind: str) -> Prior:
    """The prior of a constant: its own, or that of its kind of chip, or that of its name."""
    words = key.split(".")
    tried = [key, ".".join([*words[:-1], kind]), f"{words[0]}.{kind}", words[0]]
    return next(PRIORS[name] for name in tried if name in PRIORS)


@functools.cache
def bounds(key: str) -> tuple[float, float]:
    """Least and most of a constant; of a chip whose kind its key does not say, of all kinds.

    Raises:
        KeyError: there is no such constant.
    """
    field, *words = key.split(".")
    if len(words) != _WORDS[field] or (words and words[0] not in _FIRST.get(field, words)):
        raise KeyError(key)
    kinds = [kind for kind in KINDS if kind in words] or list(KINDS)
    if words and words[-1] in _GPUS:
        kinds = ["gpu"]
    found = [prior(key, kind) for kind in kinds if _known(key, kind)]
    if not found:
        raise KeyError(key)
    return min(what.least for what in found), max(what.most for what in found)


def _known(key: str, kind: str) -> bool:
    try:
        prior(key, kind)
    except StopIteration:
        return False
    return True


def in_words(key: str, value: float) -> str:
    """A constant for people: ``matmuls on v3 at 80 % of its peak``."""
    field, *parts = key.split(".")
    first, last = (parts[0], parts[-1]) if parts else ("", "")
    last = f"{last.upper()}s" if last in KINDS else last
    if field == "attention" and first == "unfused":
        field = "scores"
    return _SAID[field].format(
        v=value, p=100.0 * value, us=1e6 * value, ms=1e3 * value, first=first, last=last
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Fitted constants by key; priors stand in for those that are missing."""

    values: Mapping[str, float]

    def constants(self, chip: Chip, stack: Stack) -> Constants:
        """The constants of a stack on a chip."""
        named = keys(family(chip), chip.kind, stack)
        return Constants(**{name: self.value(key, chip.kind) for name, key in named.items()})

    def overlap(self, stack: Stack, kind: str) -> tuple[float, float, float]:
        """What waits on a kind of chip: ``tensor_exposed``, ``contention``, ``reduce_exposed``."""
        named = keys("", kind, stack)
        tensor, contention, reduce = (
            self.value(named[name], kind)
            for name in ("tensor_exposed", "contention", "reduce_exposed")
        )
        return tensor, contention, reduce

    def guessed(self, chip: Chip, stack: Stack, *, low_precision: bool) -> tuple[str, ...]:
        """Keys of the constants of a stack on a chip that no run has fixed: ``matmul.v3``."""
        return tuple(
            key
            for key in used_keys(chip, stack, low_precision=low_precision)
            if key not in self.values and prior(key, chip.kind).spread > 1.0
        )

    def value(self, key: str, kind: str) -> float:
        """One constant; 1 where a stack has no such thing."""
        if not key:
            return 1.0
        return self.values[key] if key in self.values else prior(key, kind).value


def shipped() -> Fitted:
    """The constants that come with autoshard, as fitted to the published runs."""
    from autoshard.costmodels.calibration import shipped_calibration

    return shipped_calibration().fitted
