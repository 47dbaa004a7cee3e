"""The pipeline formula and its memory, against a simulation of the schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.textbook_pipeline import OneForwardOneBackward

Pass = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One pass of one microbatch through one chunk of a stage's layers."""

    kind: Pass
    microbatch: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Simulated:
    """A step's seconds, and the most microbatches each stage holds (a chunk is a share of one)."""

    step_s: float
    in_flight: list[float]


def order_of(stage: int, pp: int, vpp: int, microbatches: int) -> list[Operation]:
    """One stage's operations in Megatron-LM's order: warm-up, one forward one backward, the rest.

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


def simulate(
    forward_s: list[float], backward_s: list[float], vpp: int, microbatches: int
) -> Simulated:
    """Run the schedule: an operation starts when its stage is free and its input has come.

    ``forward_s[s]`` and ``backward_s[s]`` are seconds of a whole stage, a chunk takes its share.
    """
    pp = len(forward_s)
    orders = [order_of(s, pp, vpp, microbatches) for s in range(pp)]
    ended: dict[tuple[int, Operation], float] = {}
    free, position = [0.0] * pp, [0] * pp
    held, most = [0] * pp, [0] * pp

    def needed(stage: int, do: Operation) -> tuple[int, Operation] | None:
        """The stage and operation whose result an operation waits for."""
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
            while position[stage] < len(orders[stage]):
                do = orders[stage][position[stage]]
                source = needed(stage, do)
                if source is not None and source not in ended:
                    break
                start = max(free[stage], ended[source] if source is not None else 0.0)
                seconds = forward_s[stage] if do.kind == "forward" else backward_s[stage]
                free[stage] = ended[stage, do] = start + seconds / vpp
                # A stage runs in order, so what it holds does not depend on the others' times.
                held[stage] += 1 if do.kind == "forward" else -1
                most[stage] = max(most[stage], held[stage])
                position[stage] += 1
                moved = True
        assert moved, "the schedule is stuck"
    assert held == [0] * pp
    return Simulated(step_s=max(free), in_flight=[count / vpp for count in most])


def formula_s(stage_s: list[float], vpp: int, microbatches: int) -> float:
    """What the cost model says a step takes."""
    columns = {name: np.ones(1, dtype=np.int64) for name in COLUMNS}
    columns |= {
        "pp": np.array([len(stage_s)]),
        "vpp": np.array([vpp]),
        "microbatches": np.array([microbatches]),
    }
    weights = OneForwardOneBackward()(Candidates(**columns))
    return float(weights.max_weight[0] * max(stage_s) + weights.sum_weight[0] * sum(stage_s))


SCHEDULES = [
    (pp, vpp, microbatches)
    for pp in (1, 2, 3, 4, 8)
    for vpp in ((1, 2, 3, 5) if pp > 1 else (1,))
    for microbatches in ((1, 2, 3, 5, 7, 16) if vpp == 1 else (pp, 2 * pp, 3 * pp, 5 * pp))
]


@pytest.mark.parametrize(("pp", "vpp", "microbatches"), SCHEDULES)
def test_a_step_of_equal_stages_takes_what_the_formula_says(
    pp: int, vpp: int, microbatches: int
) -> None:
    simulated = simulate([1.0] * pp, [2.0] * pp, vpp, microbatches)
    assert simulated.step_s == pytest.approx(formula_s([3.0] * pp, vpp, microbatches), rel=1e-12)


@pytest.mark.parametrize(("pp", "vpp", "microbatches"), SCHEDULES)
def test_a_stage_holds_as_many_microbatches_as_the_formula_says(
    pp: int, vpp: int, microbatches: int
) -> None:
    simulated = simulate([1.0] * pp, [2.0] * pp, vpp, microbatches)
    held = OneForwardOneBackward().in_flight(pp, vpp, microbatches)
    assert held.tolist() == pytest.approx(simulated.in_flight, rel=1e-12)


def test_one_stage_alone_has_no_bubble() -> None:
    assert formula_s([3.0], 1, 7) == 21.0


def test_the_idle_share_of_1f1b_is_that_of_narayanan_et_al() -> None:
    """(p - 1) / (m + p - 1) of a step, here 3 / 11."""
    step = formula_s([3.0] * 4, 1, 8)
    assert (step - 8 * 3.0) / step == pytest.approx(3 / 11)


def test_interleaving_divides_the_bubble() -> None:
    bubble = formula_s([3.0] * 4, 1, 8) - 8 * 3.0
    assert formula_s([3.0] * 4, 2, 8) - 8 * 3.0 == pytest.approx(bubble / 2)


# Uneven stages: the formula is one number for many schedules, and this is how far off it is


@st.composite
def uneven(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Forward and backward seconds of up to eight stages that differ by up to a factor of two."""
    pp = draw(st.integers(1, 8))
    seconds = st.lists(st.integers(8, 16), min_size=pp, max_size=pp)
    forward, backward = draw(seconds), draw(seconds)
    return [float(f) for f in forward], [2.0 * b for b in backward]


@settings(max_examples=500, derandomize=True, deadline=None)
@given(uneven(), st.integers(1, 32))
def test_1f1b_is_never_slower_than_the_formula(
    stages: tuple[list[float], list[float]], microbatches: int
) -> None:
    """The formula lets every stage's first pass wait for the slowest; some can run beside it."""
    total = [f + b for f, b in zip(*stages, strict=True)]
    assert simulate(*stages, 1, microbatches).step_s <= formula_s(total, 1, microbatches) + 1e-9


@settings(max_examples=500, derandomize=True, deadline=None)
@given(uneven(), st.integers(1, 32))
def test_1f1b_with_the_slowest_stage_last_takes_what_the_formula_says(
    stages: tuple[list[float], list[float]], microbatches: int
) -> None:
    """Where the head makes the last stage the longest, as it does in most plans."""
    forward, backward = stages
    forward[-1], backward[-1] = max(forward), max(backward)
    total = [f + b for f, b in zip(forward, backward, strict=True)]
    simulated = simulate(forward, backward, 1, microbatches)
    assert simulated.step_s == pytest.approx(formula_s(total, 1, microbatches), rel=1e-12)


@pytest.mark.parametrize(
    ("interleaved", "spread", "lowest", "highest"),
    [
        (False, 0.1, 1.0, 1.04),
        (False, 1.0, 1.0, 1.20),
        (True, 0.1, 0.98, 1.06),
        (True, 1.0, 0.88, 1.15),
    ],
)
def test_for_uneven_stages_the_formula_is_off_by_no_more_than_this(
    interleaved: bool, spread: float, lowest: float, highest: float
) -> None:
    """Measured on 1,000 pipelines: formula over simulation, stages up to 1 + ``spread`` apart."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(1_000):
        pp = int(rng.integers(2, 9))
        vpp = int(rng.integers(2, 5)) if interleaved else 1
        microbatches = pp * int(rng.integers(1, 6)) if interleaved else int(rng.integers(1, 33))
        forward = 1.0 + spread * rng.uniform(size=pp)
        backward = 2.0 * (1.0 + spread * rng.uniform(size=pp))
        simulated = simulate(forward.tolist(), backward.tolist(), vpp, microbatches)
        total = (forward + backward).tolist()
        ratios.append(formula_s(total, vpp, microbatches) / simulated.step_s)
    assert lowest - 1e-9 <= min(ratios)
    assert max(ratios) <= highest
    assert 1.0 <= np.mean(ratios) <= 1.0 + 0.3 * (highest - 1.0)
