"""How far off a prediction may be, and what of a plan lies outside of what was measured.

The errors are those of published runs, each predicted by constants that have not seen its source.
They grow with three things that are known of a question before it is run: FP8 or INT8, how many of
the constants no run fixes, and how far its sizes are from the nearest measured run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoshard.costmodels.calibrated_compute import layer_matmuls
from autoshard.costmodels.costs import Column
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.setting import Setting
from autoshard.costmodels.stack import Stack

#: Sizes of measured runs by kind of chip and source: columns of :func:`size_of`, ``[n, 4]``.
Sizes = Mapping[str, Mapping[str, Column]]
#: Least and most of the measured runs by kind of chip: of the narrowest matmul, and of messages.
Ranges = Mapping[str, Mapping[str, tuple[float, float]]]

#: A side of a matmul, and messages by the axis that they cross.
NARROWEST = "narrowest_matmul"
MESSAGES = {
    "tp": "TP collectives",
    "fsdp": "FSDP gathers",
    "seq": "gathers of keys and values",
    "cp": "sends of keys and values between context ranks",
    "dp": "gradient reductions between replicas",
    "pp": "sends between stages",
}
#: Sides and sizes repeat; what differs by rounding is not outside.
SAME = 1.001


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRule:
    """The half width of an interval that four of five measured times lie in, as a logarithm.

    ``base`` is that of a run in 16 bits which is like measured ones, and whose constants other
    sources have fixed. ``low_precision`` widens it in FP8 or INT8, ``guessed`` for each constant
    that no run fixes, ``doubling`` for each doubling between its sizes and the nearest run's.
    """

    base: float
    low_precision: float = 1.0
    guessed: float = 1.0
    doubling: float = 1.0

    def half_width(self, *, low_precision: bool, guessed: int, doublings: float) -> float:
        """The half width for one question."""
        low = self.low_precision if low_precision else 1.0
        half: float = self.base * low * self.guessed**guessed * self.doubling**doublings
        return half


def size_of(problem: Problem) -> tuple[float, float, float, float]:
    """Chips, parameters, tokens of a sequence, and tokens of a step on one chip."""
    chips, work = problem.cluster.chips, problem.workload
    tokens = work.global_batch_tokens / chips
    return float(chips), float(problem.model.total_params), float(work.seq_len), tokens


def doublings(
    size: tuple[float, ...], sizes: Mapping[str, Column], without: str = ""
) -> float | None:
    """How far the nearest measured run is: the root of the sum of squared doublings of each size.

    Runs of the source ``without`` do not count; None where no other is left.
    """
    found = [table for source, table in sizes.items() if source != without and len(table)]
    if not found:
        return None
    apart = np.log2(np.concatenate(found) / np.array(size))
    return math.sqrt(float((apart**2).sum(axis=1).min()))


def messages(s: Setting, stack: Stack) -> dict[str, Column]:
    """Bytes of one collective or transfer of each axis, ``[n]``; zero where a plan has none."""
    activations = s.element_bytes * s.tokens * s.d_model
    kv = 2.0 * s.element_bytes * s.d_kv * s.tokens
    crossed = {
        "tp": (s.tp, activations),
        "fsdp": (s.shards, s.element_bytes * s.layer_params),
        "seq": (s.seq_split, kv * s.seq_split),
        "cp": (s.cp, kv),
        "dp": (s.dp, stack.gradient_bytes * s.layer_params / s.shards),
        "pp": (s.pp, activations / s.tp),
    }
    return {axis: np.where(ways > 1, size, 0.0) for axis, (ways, size) in crossed.items()}


def narrowest(s: Setting) -> Column:
    """Rows, inner and columns of the layer's matmul with the shortest side, ``[n, 3]``."""
    shapes = np.stack(
        [np.stack([s.tokens, k, o], axis=-1) for k, o in layer_matmuls(s).values()], axis=1
    )
    at = shapes.min(axis=2).argmin(axis=1)
    found: Column = shapes[np.arange(len(s)), at]
    return found


def extent(settings: Sequence[tuple[Stack, Setting]]) -> dict[str, tuple[float, float]]:
    """Least and most of some runs: of the shortest side of their matmuls, and of messages."""
    sides = np.concatenate([narrowest(s).min(axis=1) for _, s in settings])
    found = {NARROWEST: (float(sides.min()), float(sides.max()))}
    sent = [messages(s, stack) for stack, s in settings]
    for axis in MESSAGES:
        sizes = np.concatenate([table[axis] for table in sent])
        if sizes.any():
            found[axis] = float(sizes[sizes > 0].min()), float(sizes.max())
    return found


def unmeasured(
    s: Setting, stack: Stack, ranges: Mapping[str, tuple[float, float]]
) -> Iterator[str]:
    """What of one plan (the first row) is outside of the measured runs, in words."""
    if NARROWEST in ranges:
        shape, least = narrowest(s)[0], ranges[NARROWEST][0]
        if float(shape.min()) * SAME < least:
            yield (
                f"the matmul [{' x '.join(_count(side) for side in shape)}], narrower than any "
                f"measured (shortest side {_count(least)})"
            )
    for axis, sizes in messages(s, stack).items():
        size = float(sizes[0])
        if not size:
            continue
        if axis not in ranges:
            yield f"{MESSAGES[axis]}, of which no run was measured"
            continue
        low, high = ranges[axis]
        if not low <= size * SAME or not size <= high * SAME:
            yield (
                f"{MESSAGES[axis]} of {_bytes(size)} (measured: {_bytes(low)} to {_bytes(high)})"
            )


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def _bytes(size: float) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.3g} bytes"
