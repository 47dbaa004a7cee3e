"""The pipeline formulas and their memory, against a simulation of the schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import brute_front, pareto, small_instance

from autoshard.costmodels.calibrated import calibrated
from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.errors import CostModelError, SpecError, UnknownName
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.profile import PipelineModel
from autoshard.costmodels.schedules import SCHEDULES, GPipe, ZeroBubble, scheduled
from autoshard.costmodels.simulation import (
    all_forward_all_backward,
    simulate,
    zb_h1,
)
from autoshard.costmodels.stack import STACKS
from autoshard.costmodels.textbook import textbook
from autoshard.costmodels.textbook_pipeline import OneForwardOneBackward
from autoshard.front import ParetoFront
from autoshard.launch.stages import chunk_layers
from autoshard.report import front_report
from autoshard.search.front import Options, solve_front
from autoshard.solving import solve


def columns(pp: int, vpp: int, microbatches: int) -> Candidates:
    """One candidate with that pipeline."""
    table = {name: np.ones(1, dtype=np.int64) for name in COLUMNS}
    known = {"pp": pp, "vpp": vpp, "microbatches": microbatches}
    return Candidates(**table | {name: np.array([value]) for name, value in known.items()})


def formula_s(
    stage_s: Sequence[float],
    vpp: int,
    microbatches: int,
    model: PipelineModel = OneForwardOneBackward(),  # noqa: B008
) -> float:
    """What the cost model says a step takes."""
    weights = model(columns(len(stage_s), vpp, microbatches))
    return float(weights.max_weight[0] * max(stage_s) + weights.sum_weight[0] * sum(stage_s))


SHAPES = [
    (pp, vpp, microbatches)
    for pp in (1, 2, 3, 4, 8)
    for vpp in ((1, 2, 3, 5) if pp > 1 else (1,))
    for microbatches in ((1, 2, 3, 5, 7, 16) if vpp == 1 else (pp, 2 * pp, 3 * pp, 5 * pp))
]


@pytest.mark.parametrize(("pp", "vpp", "microbatches"), SHAPES)
def test_a_step_of_equal_stages_takes_what_the_formula_says(
    pp: int, vpp: int, microbatches: int
) -> None:
    simulated = simulate([1.0] * pp, [2.0] * pp, vpp, microbatches)
    assert simulated.step_s == pytest.approx(formula_s([3.0] * pp, vpp, microbatches), rel=1e-12)


@pytest.mark.parametrize(("pp", "vpp", "microbatches"), SHAPES)
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


# Chunks hold whole layers, and need not be equal: the formula knows stages only


def of_chunks(
    chunks: Sequence[Sequence[int]], microbatches: int, embedding: float = 0.0, head: float = 0.0
) -> float:
    """Formula over simulation for ``chunks[s][c]`` layers, a backward pass being two forward."""
    seconds = [[float(n) for n in stage] for stage in chunks]
    seconds[0][0] += embedding
    seconds[-1][-1] += head
    forward = [sum(stage) for stage in seconds]
    shares = [[s / total for s in stage] for stage, total in zip(seconds, forward, strict=True)]
    vpp = len(chunks[0])
    backward = [2.0 * f for f in forward]
    simulated = simulate(forward, backward, vpp, microbatches, shares=shares)
    return formula_s([3.0 * f for f in forward], vpp, microbatches) / simulated.step_s


#: LLaMA-3 405B: of 128 chunks of a layer, the first has the embedding alone and the last the head.
LLAMA3 = [[0, *[1] * 7], *[[1] * 8] * 14, [*[1] * 7, 0]]


@pytest.mark.parametrize("rounds", [1, 2, 4, 8])
@pytest.mark.parametrize("chunks", [LLAMA3, [[3, 4], *[[4, 4]] * 14, [4, 3]]], ids=["v8", "v2"])
def test_a_lighter_first_and_last_chunk_is_priced_a_little_too_slow(
    chunks: list[list[int]], rounds: int
) -> None:
    for embedding, head in ((0.0, 0.0), (0.1, 0.8)):
        assert 1.0 <= of_chunks(chunks, 16 * rounds, embedding, head) <= 1.03


def test_one_longer_chunk_on_every_stage_is_priced_too_fast() -> None:
    """By how much, is measured: stages hold each other up with their longer chunks in turn."""
    ratios = [
        of_chunks([[longest, *[longest - 1] * (vpp - 1)]] * pp, pp * rounds)
        for pp in (2, 4, 8, 16)
        for vpp in (2, 3, 4, 7)
        for longest in (2, 3, 4, 6)
        for rounds in (1, 2, 4)
    ]
    assert max(ratios) < 1.0
    assert 0.845 < min(ratios) < 0.855
    # The fewer layers a chunk has, the more one of them matters.
    found = [of_chunks([[n, n - 1]] * 8, 32) for n in (2, 4, 8)]
    assert found == pytest.approx([0.873, 0.963, 0.994], abs=1e-3)


def near_full(rng: np.random.Generator, pp: int, full: int, spread: int) -> list[int]:
    """Stages within ``spread`` layers of a full one, which is their mean, rounded up."""
    while True:
        stages = full + rng.integers(-spread, spread + 1, size=pp)
        if pp * (full - 1) < stages.sum() <= pp * full:
            return [int(n) for n in stages]


def dealt(stages: Sequence[int], vpp: int) -> list[list[int]]:
    """The chunks of stages, as they are exported."""
    plan = Plan(
        pp=len(stages),
        vpp=vpp,
        layers_per_stage=tuple(stages),
        remat=tuple({"none": n} for n in stages),
    )
    chunks = chunk_layers(plan)
    return [chunks[stage :: len(stages)] for stage in range(len(stages))]


@pytest.mark.parametrize(
    ("each", "lowest", "highest"), [(2, 0.92, 1.19), (4, 0.96, 1.12), (8, 0.98, 1.09)]
)
def test_stages_of_the_space_are_priced_within_this(
    each: int, lowest: float, highest: float
) -> None:
    """Of ``each`` layers in the chunks of a full stage, and one layer more or less on any stage.

    The other stages one layer short, the last the only full one, is the worst.
    """
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(150):
        pp, vpp = int(rng.integers(2, 17)), int(rng.integers(2, 5))
        stages = near_full(rng, pp, each * vpp, 1)
        ratios.append(of_chunks(dealt(stages, vpp), pp * int(rng.integers(1, 5))))
    short = [[each * 2 - 1] * 15 + [each * 2], [each * 2 - 1] * 7 + [each * 2]]
    ratios += [of_chunks(dealt(stages, 2), len(stages)) for stages in short]
    assert lowest <= min(ratios) <= lowest + 0.02
    assert 1.0 < max(ratios) <= highest


@pytest.mark.parametrize(("pp", "full"), [(4, 2), (8, 4), (16, 8)])
@pytest.mark.parametrize("short", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_chunks_of_one_layer_are_never_priced_too_fast(
    pp: int, full: int, short: tuple[int, int]
) -> None:
    """The first chunk of all and the last have a layer or none."""
    stages = [full - short[0], *[full] * (pp - 2), full - short[1]]
    for rounds in (1, 2, 4):
        assert of_chunks(dealt(stages, full), pp * rounds) >= 1.0 - 1e-12


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


# GPipe, and its circular form


@pytest.mark.parametrize(("pp", "vpp", "microbatches"), SHAPES)
def test_gpipe_takes_and_holds_what_its_model_says(pp: int, vpp: int, microbatches: int) -> None:
    simulated = simulate([1.0] * pp, [2.0] * pp, vpp, microbatches, order=all_forward_all_backward)
    said_s = formula_s([3.0] * pp, vpp, microbatches, GPipe())
    assert simulated.step_s == pytest.approx(said_s, rel=1e-12)
    assert GPipe().in_flight(pp, vpp, microbatches).tolist() == list(simulated.in_flight)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(uneven(), st.integers(1, 3), st.integers(1, 32))
def test_gpipe_is_too_fast_by_what_its_slowest_passes_lose(
    stages: tuple[list[float], list[float]], vpp: int, microbatches: int
) -> None:
    """All of the error: ``(m - 1/v) (max F + max B - max(F + B))``, at most a sixth of the step."""
    forward, backward = stages
    if vpp > 1:
        microbatches = len(forward) * (1 + microbatches % 3)
    total = [f + b for f, b in zip(forward, backward, strict=True)]
    simulated = simulate(forward, backward, vpp, microbatches, order=all_forward_all_backward)
    said_s = formula_s(total, vpp, microbatches, GPipe())
    lost_s = (microbatches - 1 / vpp) * (max(forward) + max(backward) - max(total))
    assert simulated.step_s == pytest.approx(said_s + lost_s, rel=1e-12)
    assert said_s >= simulated.step_s * (1.0 - 1 / 6 - 1e-12)


# ZB-H1


def zero_bubble_s(passes: Sequence[Sequence[float]], microbatches: int) -> float:
    """The simulated step of stages with these forward, backward and weight passes."""
    forward, backward, weights = passes
    return simulate(forward, backward, 1, microbatches, order=zb_h1, weights_s=weights).step_s


def said_s(
    passes: Sequence[Sequence[float]], microbatches: int, weight_share: float = 1.0 / 3.0
) -> float:
    """What the cost model says of it."""
    total = [sum(stage) for stage in zip(*passes, strict=True)]
    return formula_s(total, 1, microbatches, ZeroBubble(weight_share=weight_share))


PIPELINES = [(pp, m) for pp in (1, 2, 3, 4, 8) for m in (1, 2, 3, 5, 7, 8, 16)]


@pytest.mark.parametrize(("pp", "microbatches"), PIPELINES)
def test_a_zero_bubble_takes_and_holds_what_its_model_says(pp: int, microbatches: int) -> None:
    ones = [1.0] * pp
    simulated = simulate(ones, ones, 1, microbatches, order=zb_h1, weights_s=ones)
    assert simulated.step_s == pytest.approx(said_s([ones] * 3, microbatches), rel=1e-12)
    assert ZeroBubble().in_flight(pp, 1, microbatches).tolist() == list(simulated.in_flight)


@pytest.mark.parametrize("microbatches", [4, 8, 32])
def test_a_zero_bubble_is_a_third_of_1f1b_s_at_the_same_peak(microbatches: int) -> None:
    """Qi et al., table 2: ``(p - 1) (F + B - W)`` and ``p`` microbatches at the first stage."""
    busy = 3.0 * microbatches
    plain = formula_s([3.0] * 4, 1, microbatches)
    assert said_s([[1.0] * 4] * 3, microbatches) - busy == pytest.approx((plain - busy) / 3)
    held = ZeroBubble().in_flight(4, 1, microbatches)
    assert held.max() == OneForwardOneBackward().in_flight(4, 1, microbatches).max() == 4.0


ratios_of_passes = st.tuples(st.integers(4, 16), st.integers(4, 16), st.integers(0, 16))


@settings(max_examples=200, derandomize=True, deadline=None)
@given(ratios_of_passes, st.integers(1, 8), st.integers(1, 32))
def test_with_the_right_share_a_zero_bubble_of_equal_stages_is_exact(
    lengths: tuple[int, int, int], pp: int, microbatches: int
) -> None:
    """Recompute included, which is part of ``B``; while ``W`` is no longer than the others."""
    forward, backward, weights = lengths
    weights = min(lengths)
    passes = [[float(length)] * pp for length in (forward, backward, weights)]
    share = weights / (forward + backward + weights)
    said = said_s(passes, microbatches, share)
    assert zero_bubble_s(passes, microbatches) == pytest.approx(said, rel=1e-12)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(ratios_of_passes, st.integers(1, 8), st.integers(1, 32))
def test_a_third_is_too_fast_by_no_more_than_the_share_says(
    lengths: tuple[int, int, int], pp: int, microbatches: int
) -> None:
    """At most ``(1/3 - w) / (1 - w)`` of the step: a ninth for block remat, ``w = 1/4``.

    ``w`` is the share of ``W``, or of a shorter pass, where there is one.
    """
    passes = [[float(length)] * pp for length in lengths]
    share = min(lengths) / sum(lengths)
    most = (1 / 3 - share) / (1 - share)
    simulated_s = zero_bubble_s(passes, microbatches)
    assert said_s(passes, microbatches) >= simulated_s * (1.0 - most - 1e-12)


@pytest.mark.parametrize(
    ("alike", "spread", "lowest", "highest"),
    [
        (True, 0.1, 0.99, 1.05),
        (True, 1.0, 0.95, 1.3),
        (False, 0.1, 0.96, 1.05),
        (False, 1.0, 0.8, 1.35),
    ],
)
def test_for_uneven_stages_a_zero_bubble_is_off_by_no_more_than_this(
    alike: bool, spread: float, lowest: float, highest: float
) -> None:
    """On 400 pipelines, half of them of only short and long passes, which are the worst."""
    rng = np.random.default_rng(0)
    for number in range(400):
        pp, microbatches = int(rng.integers(2, 9)), int(rng.integers(1, 33))
        drawn = rng.uniform(size=(1 if alike else 3, pp))
        drawn = np.round(drawn) if number % 2 else drawn
        passes = np.broadcast_to(1.0 + spread * drawn, (3, pp)).tolist()
        ratio = said_s(passes, microbatches) / zero_bubble_s(passes, microbatches)
        assert lowest <= ratio <= highest


@pytest.mark.parametrize(("spread", "lowest"), [(0.1, 0.96), (1.0, 0.8)])
def test_the_worst_stages_found_for_a_zero_bubble_are_within_its_bounds(
    spread: float, lowest: float
) -> None:
    """Short and long passes of 7 stages, by a hill climb: a late weight pass holds up the step."""
    forward = [1.0 + spread] * 7
    backward = [1.0] * 6 + [1.0 + spread]
    weights = [1.0] * 5 + [1.0 + spread, 1.0]
    passes = [forward, backward, weights]
    ratio = said_s(passes, 6) / zero_bubble_s(passes, 6)
    assert lowest <= ratio <= lowest + 0.02


def test_a_zero_bubble_has_no_virtual_stages() -> None:
    with pytest.raises(CostModelError, match="no virtual stages"):
        ZeroBubble()(columns(4, 2, 8))


# The choice of a schedule


@pytest.mark.parametrize("seed", [2, 4, 10, 11, 14, 17, 22, 24])
@pytest.mark.parametrize("name", ["gpipe", "zero-bubble"])
def test_the_search_under_a_schedule_finds_the_front_of_brute_force(name: str, seed: int) -> None:
    instance = small_instance(seed)
    profile = scheduled(instance.profile, name)
    front = brute_front(instance.problem, profile, lambda mesh: name == "gpipe" or mesh["vpp"] == 1)
    points = solve_front(instance.problem, profile, Options(points=0, gap=0.0)).points
    assert any(point.plan.pp > 1 for point in points)
    found = [(point.step_time_s, point.memory_bytes) for point in points]
    np.testing.assert_allclose(found, pareto(front, 1e-7), rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_answer_says_under_which_schedule(name: str) -> None:
    where = "pp >= 4 and tp = 1"
    front = solve("llama3-8b", chips=64, schedule=name, where=where, points=2)
    again = ParetoFront.from_dict(front.to_dict())
    assert again.problem["costs"]["schedule"] == name
    assert front_report(again, tokens=1e12, assumptions="x").endswith(f"schedule: {name}.")
    for point in front.points:
        assert point.proven
        assert point.plan.vpp == 1 or name != "zero-bubble"
        kept = {rung for stage in point.plan.remat for rung in stage}
        assert kept == {"save_all"} or name != "zero-bubble"


def test_a_zero_bubble_leaves_remat_to_plans_without_a_pipeline() -> None:
    front = solve("llama3-8b", chips=64, schedule="zero-bubble", where="pp = 1", points=2)
    assert set(front.points[-1].plan.remat[0]) != {"save_all"}


def test_a_stack_has_its_own_schedule_and_refuses_what_it_cannot_run() -> None:
    for name, stack in STACKS.items():
        profile = calibrated(name)
        assert isinstance(profile.pipeline, type(SCHEDULES[stack.schedules[0]]()))
        for schedule in SCHEDULES:
            if schedule in stack.schedules:
                assert isinstance(
                    scheduled(profile, schedule).pipeline, type(SCHEDULES[schedule]())
                )
            else:
                with pytest.raises(SpecError, match=f"{name} does not run .* {stack.schedules[0]}"):
                    scheduled(profile, schedule)


def test_a_pipeline_model_of_someone_else_is_not_replaced_by_name() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Theirs(GPipe):
        name: str = "theirs"

    profile = textbook().replace(Theirs())
    with pytest.raises(SpecError, match="would replace 'theirs'"):
        scheduled(profile, "1f1b")
    with pytest.raises(UnknownName, match="unknown schedule"):
        scheduled(textbook(), ["gpipe"])  # type: ignore[arg-type]
