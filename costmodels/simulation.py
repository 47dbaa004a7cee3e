"""Pipeline schedules run pass by pass: what a timeline draws, and what step formulas are held to.

A schedule is the order in which each stage runs its passes. A pass starts when its stage is free
and its input has come; transfers take no time of their own (a send lengthens the pass before it).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Pass = Literal["forward", "backward", "weights"]


class Operation(NamedTuple):
    """One pass of one microbatch through one chunk of a stage's layers.

    Where there are ``weights`` passes, ``backward`` ones make input gradients only.
    """

    kind: Pass
    microbatch: int
    chunk: int


class Step(NamedTuple):
    """An operation on a stage, and the place of what it waits for (-1 where that is nothing)."""

    stage: int
    operation: Operation
    source: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """One step: when each pass starts and ends, and what stages hold.

    ``start_s`` and ``end_s`` belong to ``steps``; ``in_flight`` is the most microbatches that each
    stage holds at a time (a chunk is a share of one).
    """

    steps: tuple[Step, ...]
    start_s: tuple[float, ...]
    end_s: tuple[float, ...]
    in_flight: tuple[float, ...]

    @property
    def step_s(self) -> float:
        """Seconds from the first pass to the end of the last."""
        return max(self.end_s)


#: What one stage does, in its order: of stage, pp, vpp and microbatches.
Order = Callable[[int, int, int, int], list[Operation]]


def megatron(stage: int, pp: int, vpp: int, microbatches: int) -> list[Operation]:
    """Megatron-LM's order of (interleaved) 1F1B: warm-up, one forward one backward, the rest.

    Interleaved, microbatches go through chunk 0 in a round of ``pp``, then through chunk 1, and
    so on; backward passes take the chunks in reverse.
    """
    steps = range(microbatches * vpp)
    forward, backward = [], []
    for k in steps:
        group, within = divmod(k, pp * vpp)
        chunk, place = divmod(within, pp)
        if vpp == 1:
            forward.append(Operation("forward", k, 0))
            backward.append(Operation("backward", k, 0))
            continue
        forward.append(Operation("forward", group * pp + place, chunk))
        backward.append(Operation("backward", group * pp + place, vpp - 1 - chunk))
    warm_up = pp - stage - 1
    if vpp > 1:
        warm_up = 2 * (pp - stage - 1) + (vpp - 1) * pp
    warm_up = min(warm_up, len(steps))
    order = forward[:warm_up]
    for k in range(len(steps) - warm_up):
        order += [forward[warm_up + k], backward[k]]
    return order + backward[len(steps) - warm_up :]


def all_forward_all_backward(stage: int, pp: int, vpp: int, microbatches: int) -> list[Operation]:
    """GPipe's order; every microbatch goes through one chunk before any goes through the next.

    Without a pipeline, gradient accumulation: each goes back before the next goes forward.
    """
    if pp == 1:
        return megatron(stage, pp, vpp, microbatches)
    chunks, batch = range(vpp), range(microbatches)
    forward = [Operation("forward", k, c) for c in chunks for k in batch]
    return forward + [Operation("backward", k, c) for c in reversed(chunks) for k in batch]


def zb_h1(stage: int, pp: int, vpp: int, microbatches: int) -> list[Operation]:
    """1F1B with each weight pass ``stage`` microbatches after its backward pass."""
    order: list[Operation] = []
    for do in megatron(stage, pp, vpp, microbatches):
        order.append(do)
        if do.kind == "backward" and do.microbatch >= stage:
            order.append(Operation("weights", do.microbatch - stage, 0))
    left = range(max(microbatches - stage, 0), microbatches)
    return order + [Operation("weights", k, 0) for k in left]


#: The orders of :data:`autoshard.costmodels.schedules.SCHEDULES`, by the same names.
ORDERS: dict[str, Order] = {
    "1f1b": megatron,
    "gpipe": all_forward_all_backward,
    "zero-bubble": zb_h1,
}


@functools.lru_cache(maxsize=128)
def dependencies(
    order: Order, pp: int, vpp: int, microbatches: int
) -> tuple[tuple[Step, ...], tuple[float, ...]]:
    """Every operation of a step after what it waits for, and the most that each stage holds.

    A microbatch is held from its forward pass to the end of its last one.
    """
    orders = [order(s, pp, vpp, microbatches) for s in range(pp)]
    last = orders[0][-1].kind
    steps: list[Step] = []
    place: dict[tuple[int, Operation], int] = {}
    position, held, most = [0] * pp, [0] * pp, [0] * pp

    def needed(stage: int, do: Operation) -> tuple[int, Operation] | None:
        """The stage and operation whose result an operation waits for."""
        if do.kind == "weights":
            return stage, Operation("backward", do.microbatch, do.chunk)
        if do.kind == "forward":
            if stage > 0:
                return stage - 1, do
            if do.chunk > 0:
                return pp - 1, Operation("forward", do.microbatch, do.chunk - 1)
            return None
        if stage < pp - 1:
            return stage + 1, do
        if do.chunk < vpp - 1:
            return 0, Operation("backward", do.microbatch, do.chunk + 1)
        return stage, Operation("forward", do.microbatch, do.chunk)

    while any(position[s] < len(orders[s]) for s in range(pp)):
        moved = False
        for stage in range(pp):
            # Not a slice: a stage that waits would copy all that it has left at every turn.
            while position[stage] < len(orders[stage]):
                do = orders[stage][position[stage]]
                source = needed(stage, do)
                if source is not None and source not in place:
                    break
                place[stage, do] = len(steps)
                steps.append(Step(stage, do, -1 if source is None else place[source]))
                # A stage runs in order, so what it holds does not depend on the others' times.
                held[stage] += (do.kind == "forward") - (do.kind == last)
                most[stage] = max(most[stage], held[stage])
                position[stage] += 1
                moved = True
        assert moved, "the schedule is stuck"
    assert held == [0] * pp
    return tuple(steps), tuple(count / vpp for count in most)


def simulate(
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    vpp: int,
    microbatches: int,
    *,
    order: Order = megatron,
    weights_s: Sequence[float] = (),
    shares: Sequence[Sequence[float]] = (),
) -> Simulated:
    """Run a schedule.

    Args:
        forward_s: seconds of the forward pass of one microbatch through each whole stage; a chunk
            takes its share.
        backward_s: the same of the backward pass, of input gradients where ``weights_s`` is given.
        vpp: chunks of each stage.
        microbatches: microbatches of the step.
        order: which schedule.
        weights_s: the same of weight gradients, for an order that has passes of them.
        shares: of each stage, what part of its passes each chunk takes; all as much by default.
    """
    pp = len(forward_s)
    seconds = {"forward": forward_s, "backward": backward_s, "weights": weights_s}
    steps, in_flight = dependencies(order, pp, vpp, microbatches)
    free = [0.0] * pp
    start_s: list[float] = []
    end_s: list[float] = []
    for stage, do, source in steps:
        start = max(free[stage], end_s[source] if source >= 0 else 0.0)
        share = shares[stage][do.chunk] if shares else 1.0 / vpp
        free[stage] = start + seconds[do.kind][stage] * share
        start_s.append(start)
        end_s.append(free[stage])
    return Simulated(steps=steps, start_s=tuple(start_s), end_s=tuple(end_s), in_flight=in_flight)
