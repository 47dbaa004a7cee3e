"""``evaluate``: the price of a plan is the judge's, the distance is to the proven optimum."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import run
from hypothesis import given, settings
from hypothesis import strategies as st

import autoshard
from autoshard.completing import complete, default_layers, layers_words
from autoshard.costmodels.errors import Infeasible, SpecError, UnknownName
from autoshard.costmodels.plan import Plan
from autoshard.evaluating import Evaluation, evaluate
from autoshard.evaluating_report import changes_line, distance_line, fit_lines
from autoshard.launch.reading import ReadPlan, read_megatron
from autoshard.neighbours import neighbours, policy_of, prime_factors
from autoshard.pricing import price_plans, rules_broken
from autoshard.search.check import judge
from autoshard.solving import resolve
from autoshard.stating import read_values

MODEL = "llama3-8b"
QUESTION: dict[str, Any] = {"chip": "h100", "chips": 64, "global_batch_seqs": 64}
STACK: dict[str, Any] = QUESTION | {"stack": "megatron"}
POD: dict[str, Any] = {"chip": "v5p", "chips": 64, "global_batch_seqs": 64}

#: Llama 3 405B on 16,384 H100s: Table 4 of arXiv 2407.21783, with the layers of section 3.3.2.
PAPER = "tp=8,pp=16,fsdp=128,vpp=4,layers_per_stage=7+14x8+7"
HERD: dict[str, Any] = {
    "chip": "h100",
    "chips": 16384,
    "global_batch_seqs": 2048,
    "seq_len": 8192,
    "stack": "megatron",
}


@pytest.fixture(scope="module")
def stacked() -> Evaluation:
    """A plan for Megatron with room for improvement."""
    return evaluate("tp=8,pp=4,remat=full", MODEL, **STACK)


@pytest.fixture(scope="module")
def paper() -> Evaluation:
    return evaluate(PAPER, "llama3-405b", **HERD)


@pytest.mark.parametrize("question", [QUESTION, STACK, POD], ids=["textbook", "megatron", "tpu"])
def test_a_solved_plan_has_its_own_time_and_memory_and_is_its_own_optimum(
    question: dict[str, Any],
) -> None:
    front = autoshard.solve(MODEL, points=3, **question)
    for point in front.points:
        found = evaluate(point.plan, MODEL, **question)
        assert found.point.plan == point.plan
        assert (found.point.step_time_s, found.point.memory_bytes) == pytest.approx(
            (point.step_time_s, point.memory_bytes), rel=1e-12
        )
        assert found.point.breakdown == point.breakdown
        assert found.fits
        assert found.faster_by == pytest.approx(0.0, abs=found.gap)
        assert found.point.proven
        assert found.assumed == ()
    # At the memory of the fastest plan, the fastest plan is itself.
    best = evaluate(front.fastest(), MODEL, **question)
    assert best.faster_by == 0.0
    assert distance_line(best).startswith("It is ")


def test_the_plan_that_solve_finds_at_a_memory_is_said_to_be_it() -> None:
    limit = autoshard.solve(MODEL, points=1, **STACK).points[0].memory_bytes
    best = autoshard.solve(MODEL, points=1, memory_limit=math.ceil(limit), **STACK).fastest()
    found = evaluate(best, MODEL, **STACK)
    assert found.optimum is not None
    assert found.optimum.points[0].plan == found.point.plan
    assert distance_line(found) == ("It is the fastest plan at its memory, proven within 0.1 %.")


def test_the_price_is_that_of_the_judge(stacked: Evaluation) -> None:
    problem, profile = resolve(MODEL, **STACK)
    assert judge(problem, profile, stacked.plan, 0) == (
        stacked.point.step_time_s,
        stacked.point.memory_bytes,
    )
    assert max(stacked.stage_bytes) == pytest.approx(stacked.point.memory_bytes, rel=1e-12)
    assert len(stacked.stage_bytes) == stacked.point.plan.pp
    assert stacked.tokens_per_s * stacked.point.step_time_s == pytest.approx(64 * 4096)


def test_the_optimum_is_what_solve_finds_within_the_same_memory(stacked: Evaluation) -> None:
    limit = math.ceil(stacked.point.memory_bytes)
    best = autoshard.solve(MODEL, points=1, memory_limit=limit, **STACK).points[0]
    assert stacked.optimum is not None
    assert stacked.optimum.points[0] == best
    assert best.memory_bytes <= limit
    assert stacked.faster_by == stacked.point.step_time_s / best.step_time_s - 1.0 > 0.1
    assert stacked.point.lower_bound_s == best.lower_bound_s
    assert not stacked.point.proven


def test_every_change_is_legal_fits_and_gains_what_evaluating_it_says(stacked: Evaluation) -> None:
    assert stacked.changes
    problem, profile = resolve(MODEL, **STACK)
    for change in stacked.changes:
        assert rules_broken(problem, profile, change.plan) == []
        again = evaluate(change.plan, MODEL, optimum=False, **STACK)
        assert again.point.step_time_s == pytest.approx(change.step_time_s, rel=1e-9)
        assert again.point.memory_bytes == pytest.approx(change.memory_bytes, rel=1e-9)
        gain = stacked.point.step_time_s / again.point.step_time_s - 1.0
        assert change.faster_by == pytest.approx(gain, abs=1e-9)
        assert again.fits
        assert change.words
    gains = [change.faster_by for change in stacked.changes]
    assert gains == sorted(gains, reverse=True)
    assert min(gains) > 0


def test_the_optimum_over_all_memory_leaves_no_change_that_gains() -> None:
    fastest = autoshard.solve(MODEL, points=1, **STACK).fastest()
    found = evaluate(fastest, MODEL, **STACK)
    assert all(change.faster_by <= found.gap for change in found.changes)


def test_a_change_is_one_change() -> None:
    problem, profile = resolve(MODEL, **STACK)
    start = complete(problem, profile, read_values("tp=4,pp=4,vpp=2,microbatches=16")).plan
    degrees = ("dp", "batch_split", "seq_split", "tp", "cp", "pp")
    seen = set()
    for near in neighbours(problem, profile, start):
        moved = [name for name in degrees if getattr(near, name) != getattr(start, name)]
        assert len(moved) in (0, 1, 2)
        if len(moved) == 2:
            assert near.chips_used == start.chips_used
        if not moved:
            alone = [
                near.micro_batch_size != start.micro_batch_size,
                near.vpp != start.vpp,
                near.reshard != start.reshard,
                near.vpp == start.vpp and near.remat != start.remat,
            ]
            assert sum(alone) <= 1
        seen.add("moved" if moved else "stays")
    assert seen == {"moved", "stays"}


def test_layers_dealt_again_are_the_best_for_the_mesh_and_the_remat() -> None:
    problem, profile = resolve(MODEL, **STACK)
    start = complete(
        problem, profile, read_values("tp=8,pp=4,remat=full,layers_per_stage=11+7+7+7")
    ).plan
    found = evaluate(start, MODEL, optimum=False, **STACK)
    same = [
        replace(near, layout={})
        for near in neighbours(problem, profile, start)
        if near.layers_per_stage != start.layers_per_stage and near.pp == start.pp
    ]
    assert same
    (dealt,) = price_plans(problem, profile, same)
    every = [
        replace(start, layers_per_stage=layers, remat=tuple({"full": n} for n in layers))
        for a in range(4, 13)
        for b in range(4, 13)
        for c in range(4, 13)
        if (layers := (a, b, c, 32 - a - b - c))[3] > 0
    ]
    best = min(price_plans(problem, profile, every), key=lambda priced: priced.step_time_s)
    assert dealt.step_time_s == pytest.approx(best.step_time_s, rel=1e-9)
    assert dealt.step_time_s < found.point.step_time_s
    assert any("layers" in change.words for change in found.changes)


def test_llama_3_405b_as_published_is_priced_near_its_measured_mfu(paper: Evaluation) -> None:
    """41 % in Table 4; the paper does not say what is recomputed, nor the microbatch."""
    assert paper.point.plan.chips_used == 16384
    assert paper.point.plan.layers_per_stage == (7, *[8] * 14, 7)
    assert paper.point.interval_s is not None
    measured_s = paper.point.step_time_s * paper.point.mfu / 0.41
    low, high = paper.point.interval_s
    assert low < measured_s < high
    assert paper.faster_by is not None
    assert paper.faster_by > 0.05


def test_a_plan_that_does_not_fit_is_priced_and_told_what_would_fit(paper: Evaluation) -> None:
    """Under the distributed optimizer of Megatron, without recompute: 7 GiB too much."""
    assert not paper.fits
    assert paper.capacity_bytes < paper.point.memory_bytes
    # Its bound is of any plan, not of those that fit.
    assert paper.point.lower_bound_s < 0.6 * paper.point.step_time_s
    assert paper.optimum is not None
    assert paper.optimum.points[0].memory_bytes <= paper.capacity_bytes
    assert paper.changes
    assert all(change.memory_bytes <= paper.capacity_bytes for change in paper.changes)
    first, second = fit_lines(paper)
    assert first.startswith("It does not fit: 7.12 GiB more than the 74.51 GiB of a chip; stage 2")
    assert second.startswith(f"What would make it fit: {paper.changes[0].words} (")
    assert distance_line(paper) == "The fastest plan that fits:"
    assert "fit" in changes_line(paper)


def test_the_values_of_a_whole_plan_are_that_plan() -> None:
    front = autoshard.solve("llama3-8b", chips=64, points=1)
    plan = front.fastest()
    found = autoshard.evaluate(plan.to_dict(), "llama3-8b", chips=64, optimum=False)
    assert found.point.plan == plan
    assert found.point.step_time_s == plan.point.step_time_s


ILLEGAL = [
    ("tp=3", "3 does not divide 32 query heads"),
    ("tp=64", "64 does not divide 32 query heads"),
    ("pp=4,vpp=9", "at most the 32 layers, the embedding and the head; 36 is more"),
    ("vpp=2", "vpp = 2 interleaves pipeline stages, and pp = 1"),
    ("pp=8,vpp=2,microbatches=4", "microbatches in whole rounds of pp = 8"),
    ("pp=64", "at most the 32 layers; 64 is more"),
    ("fsdp=64,tp=2", "at most the 64 offered; these values take 128"),
    ("fsdp=8,seq_split=16", "fsdp = batch_split * seq_split, and 8 is no multiple"),
    ("ep=2", "ep is for models with experts"),
    ("fsdp=3,chips_used=3", "dp * batch_split = 3 does not divide the 64 sequences"),
    ("tp=8,pp=2,layers_per_stage=16+15", "stages hold 31 of 32 layers"),
    (
        "tp=8,micro_batch_size=3",
        "micro_batch_size divides the 64 sequences of the batch; 3 does not",
    ),
    ("tp=8,micro_batch_size=16", "does not divide the 8 sequences of a shard"),
]


UNEVEN = [
    ("pp=4,vpp=3", "vpp = 3 does not divide a full stage of 8 layers", 0.01, 0.03),
    ("pp=4,vpp=7", "vpp = 7 does not divide a full stage of 8 layers", 0.02, 0.04),
]


@pytest.mark.parametrize(("values", "words", "low", "high"), UNEVEN)
def test_a_plan_with_uneven_chunks_is_priced_and_told_what_its_schedule_takes_longer(
    values: str, words: str, low: float, high: float
) -> None:
    """A framework may run it, and the space has no such plan: the search never names it."""
    found = evaluate(f"{values},tp=8,fsdp=2,microbatches=32", MODEL, optimum=False, **QUESTION)
    (note,) = [note for note in found.notes if "equal" in note]
    assert note.startswith(f"Priced as if the chunks of a stage were equal, but {words}: ")
    longer = float(note.split("takes ")[1].removesuffix("% longer."))
    assert 100 * low <= longer <= 100 * high


def test_a_plan_of_the_space_has_equal_chunks_and_no_such_note() -> None:
    found = evaluate("pp=4,vpp=4,tp=8,fsdp=2,microbatches=32", MODEL, optimum=False, **QUESTION)
    assert not [note for note in found.notes if "equal" in note]


@pytest.mark.parametrize(("values", "words"), ILLEGAL, ids=[v for v, _ in ILLEGAL])
def test_an_illegal_plan_is_infeasible_with_the_rules_that_it_breaks(
    values: str, words: str
) -> None:
    with pytest.raises(Infeasible) as refused:
        evaluate(values, MODEL, **QUESTION)
    assert words in str(refused.value)
    assert str(refused.value).startswith("the plan is not legal: ")


def test_every_rule_that_is_broken_is_said_once_and_so_are_those_of_the_stack() -> None:
    with pytest.raises(Infeasible) as refused:
        evaluate("tp=16,pp=1,cp=2,fsdp=2", MODEL, **QUESTION, stack="torchtitan")
    said = str(refused.value)
    assert "tp = 16 does not divide 8 KV heads" in said
    assert "its context ranks shard the weights too" in said
    sentences = said.removeprefix("the plan is not legal: ").rstrip(".").split("; ")
    assert len(sentences) == len(set(sentences))


WRONG: list[tuple[Any, str]] = [
    ("", "--plan wants NAME=VALUE"),
    ("tp", "--plan wants NAME=VALUE"),
    ("tp=", "--plan wants NAME=VALUE"),
    ("tp=x", "tp must be a whole number"),
    ("tp=0", "tp must be at least 1"),
    ("tp=8,tp=4", "gives tp twice"),
    ("remat=full:x", "remat_layers_per_chunk must be a whole number"),
    ("pp=4,layers_per_stage=8+8", "lists 2 stages, and pp = 4"),
    ("pp=2,layers_per_stage=8*2", "as in 7+14x8+7"),
    ("fsdp=8,batch_split=4", "fsdp = batch_split * seq_split"),
    ("seq_split=32,chips_used=48", "seq_split = 32 does not divide 48"),
    ("tp=8,pp=3", "does not divide the 64 chips"),
    ("tp=8,microbatches=4,micro_batch_size=4", "are 128 sequences, and the batch has 64"),
    ("tp=8,fsdp=8,chips_used=32", "chips"),
    ("remat=save_all:2", "what layers run that are not counted"),
    ({}, "a plan is said by values"),
    (5, "a plan is said by values"),
    ({"remat": 5}, "remat is the name of a rung"),
    ({"layers_per_stage": 5}, "layers_per_stage lists layers"),
]


@pytest.mark.parametrize(("values", "words"), WRONG, ids=[str(v) for v, _ in WRONG])
def test_values_that_state_no_plan_are_refused(values: Any, words: str) -> None:
    with pytest.raises(SpecError) as refused:
        evaluate(values, MODEL, **QUESTION)
    assert words in str(refused.value)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean tp"):
        evaluate("tpp=8", MODEL, **QUESTION)
    with pytest.raises(UnknownName, match="remat rung 'ful'"):
        evaluate("remat=ful", MODEL, **STACK)


def test_what_is_not_said_is_assumed_and_said() -> None:
    problem, profile = resolve(MODEL, **STACK)
    made = complete(problem, profile, read_values("tp=8,pp=3,chips_used=48"))
    assert made.assumed == (
        "fsdp = 2, from the 48 chips",
        "vpp = 1",
        "micro_batch_size = 1",
        "layers dealt 10+2x11",
        "remat = none",
    )
    plan = made.plan
    assert (plan.dp, plan.batch_split, plan.microbatches, plan.reshard) == (1, 2, 32, 1)
    # Without a pipeline a shard runs all of its sequences at once.
    assert complete(problem, profile, read_values("tp=8")).plan.micro_batch_size == 8


@pytest.mark.parametrize(
    ("stack", "pp", "vpp", "words"),
    [
        ("megatron", 16, 1, "7+14x8+7"),
        ("megatron", 6, 1, "6x21"),
        ("megatron", 4, 1, "31+2x32+31"),
        ("megatron", 5, 1, "25+26+3x25"),
        # 128 layers with the embedding and the head, over 16 x 2 parts of 4.
        ("torchtitan", 16, 2, "7+14x8+7"),
        # 8 chunks a stage of a layer each, but for the embedding's and the head's: as its authors.
        ("torchtitan", 16, 8, "7+14x8+7"),
        ("megatron", 16, 8, "7+14x8+7"),
        ("torchtitan", 5, 1, "25+2x26+25+24"),
    ],
)
def test_layers_are_dealt_as_the_framework_does(stack: str, pp: int, vpp: int, words: str) -> None:
    problem, profile = resolve("llama3-405b", chip="h100", chips=1024, stack=stack)
    layers, said = default_layers(problem, profile, pp, vpp)
    assert layers_words(layers) == words
    assert sum(layers) == 126
    assert said == ([] if len(set(layers)) == 1 else [f"layers dealt {words}"])


@given(stages=st.lists(st.integers(1, 40), min_size=1, max_size=40))
def test_the_words_for_stages_are_read_back(stages: list[int]) -> None:
    words = layers_words(tuple(stages))
    assert read_values(f"layers_per_stage={words}") == {"layers_per_stage": tuple(stages)}


@settings(max_examples=15, deadline=None)
@given(
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.sampled_from([1, 2, 3, 4, 8]),
    vpp=st.sampled_from([1, 2, 4]),
    remat=st.sampled_from(["none", "full", "full:1", "full:2", "selective"]),
)
def test_plans_priced_together_are_priced_as_the_judge_does(
    tp: int, pp: int, vpp: int, remat: str
) -> None:
    problem, profile = resolve(MODEL, **STACK)
    values = f"tp={tp},pp={pp},vpp={vpp},remat={remat},chips_used={64 // (tp * pp) * tp * pp}"
    try:
        plan = complete(problem, profile, read_values(values)).plan
    except Infeasible:
        return
    if rules_broken(problem, profile, plan):
        return
    near = [p for p in neighbours(problem, profile, plan) if not rules_broken(problem, profile, p)]
    for priced in price_plans(problem, profile, [plan, *near]):
        layout = int(priced.row.layout[0])
        assert judge(problem, profile, priced.plan, layout) == pytest.approx(
            (priced.step_time_s, priced.memory_bytes), rel=1e-9
        )


def test_a_plan_on_a_torus_lies_on_the_layout_that_is_fastest_for_it() -> None:
    problem, profile = resolve("llama3-70b", pods=1)
    plan = complete(problem, profile, read_values("tp=4,fsdp=2048,seq_split=2")).plan
    (priced,) = price_plans(problem, profile, [plan])
    times = []
    for layout in range(len(problem.cluster.layouts)):
        axes = problem.cluster.layouts[layout]
        if axes.tensor_axes and axes.data_axes:
            times.append(judge(problem, profile, plan, layout)[0])
    assert priced.step_time_s == pytest.approx(min(times), rel=1e-12)
    assert set(priced.plan.layout) == {"fsdp", "tp"}


def test_a_plan_of_another_zero_stage_widens_the_space_of_the_optimum() -> None:
    found = evaluate("tp=8,reshard=3", MODEL, **STACK)
    assert found.point.plan.reshard == 3
    assert set(found.problem["recipe"]["reshard"]) == {1, 3}
    assert found.faster_by is not None
    assert found.faster_by >= -found.gap


def test_remat_has_a_policy_where_one_setting_says_it() -> None:
    problem, profile = resolve(MODEL, **STACK)
    for remat, policy in (("none", ("none", None)), ("full:2", ("full", 2))):
        values = read_values(f"tp=8,pp=4,vpp=2,remat={remat}")
        assert policy_of(profile, complete(problem, profile, values).plan) == policy
    uneven = ({"full": 8}, {"none": 8}, {"none": 8}, {"none": 8})
    plan = replace(complete(problem, profile, read_values("tp=8,pp=4")).plan, remat=uneven)
    assert policy_of(profile, plan) is None


def test_prime_factors_are_those_that_divide() -> None:
    assert [prime_factors(n) for n in (1, 2, 12, 97, 8960)] == [[], [2], [2, 3], [97], [2, 5, 7]]


def test_a_launch_config_says_the_question_too() -> None:
    read = ReadPlan(
        framework="megatron",
        tp=8,
        pp=4,
        micro_batch_size=1,
        global_batch_seqs=64,
        seq_len=4096,
        chips=64,
        remat="full",
        remat_layers_per_chunk=2,
        ignored=("--lr",),
    )
    found = evaluate(read, MODEL, chip="h100", stack="megatron", optimum=False)
    assert found.problem["workload"]["global_batch_seqs"] == 64
    assert found.problem["cluster"]["chips"] == 64
    assert found.point.plan.remat == ({"none": 6, "full": 2},) * 4
    assert found.ignored == ("--lr",)
    with pytest.raises(SpecError, match="says 64 sequences a step, and the options 128"):
        evaluate(read, MODEL, chip="h100", stack="megatron", global_batch_seqs=128)


def test_constraints_are_for_the_optimum_and_may_leave_it_slower() -> None:
    fastest = autoshard.solve(MODEL, points=1, **QUESTION).fastest()
    found = evaluate(fastest, MODEL, where="tp = 8", **QUESTION)
    assert found.optimum is not None
    assert found.optimum.points[0].plan.tp == 8
    assert found.faster_by is not None
    assert found.faster_by < 0
    assert "under --where 'tp = 8'" in distance_line(found)
    # What is proven under a constraint is no bound for a plan that breaks it.
    assert found.point.lower_bound_s < found.optimum.points[0].lower_bound_s
    assert not found.point.proven


COMMAND = ("evaluate", "--model", MODEL, "--chip", "h100", "--chips", "64")
PLAN = ("--plan", "tp=8,pp=4,remat=full")


def test_the_command_prints_the_verdicts_and_json() -> None:
    done = run(*COMMAND, "--stack", "megatron", *PLAN)
    assert done.exit_code == 0, done.stderr
    for words in (
        "This plan: ",
        "It fits: ",
        "The fastest plan at its memory is ",
        "proven within 0.1 %",
        "one change",
        "Not stated, and assumed: fsdp = 2, from the 64 chips; ",
    ):
        assert words in done.stdout
    answer = json.loads(run(*COMMAND, "--stack", "megatron", *PLAN, "--json").stdout)
    assert answer["schema"] == "autoshard.evaluation/1"
    assert answer["fits"] is True
    assert answer["faster_by"] > 0
    assert answer["changes"][0]["faster_by"] > 0
    assert answer["optimum"]["fastest"]["proven"] is True
    assert Plan.from_dict(answer["point"]["plan"]).tp == 8
    alone = json.loads(run(*COMMAND, *PLAN, "--no-solve", "--json").stdout)
    assert alone["optimum"] is None
    assert alone["faster_by"] is None


@pytest.mark.parametrize(
    ("plan", "status", "words"),
    [
        (
            "tp=3",
            3,
            "the plan is not legal: tp divides the query heads, d_ff and d_model; 3 does not",
        ),
        ("tp", 2, "--plan wants NAME=VALUE"),
        ("tpp=1", 2, "unknown value of a plan 'tpp'"),
    ],
)
def test_the_command_ends_with_the_status_of_what_is_wrong(
    plan: str, status: int, words: str
) -> None:
    done = run(*COMMAND, "--plan", plan)
    assert done.exit_code == status
    assert words in done.stderr
    assert done.stdout == ""


MEGATRON = (
    *("--tensor-model-parallel-size", "8", "--pipeline-model-parallel-size", "4"),
    *("--micro-batch-size", "1", "--global-batch-size", "64", "--seq-length", "8192"),
    *("--recompute-granularity", "full", "--recompute-method", "block"),
    *("--recompute-num-layers", "2", "--use-distributed-optimizer", "--lr", "3e-5"),
)


def test_an_exported_plan_is_read_back_and_priced_the_same() -> None:
    front = autoshard.solve(MODEL, points=3, **STACK)
    for point in front.points:
        read = read_megatron(front.solved(point).to_megatron())
        found = evaluate(read, MODEL, chip="h100", chips=64, stack="megatron", optimum=False)
        assert (found.point.plan, found.point.step_time_s, found.point.memory_bytes) == (
            point.plan,
            point.step_time_s,
            point.memory_bytes,
        )


def test_an_evaluated_plan_is_exported_as_a_solved_one_is() -> None:
    found = evaluate("tp=8,pp=4,vpp=2,remat=full:2", MODEL, optimum=False, **STACK)
    again = read_megatron(found.plan.to_megatron())
    assert (again.tp, again.pp, again.vpp) == (8, 4, 2)
    assert (again.remat, again.remat_layers_per_chunk) == ("full", 2)
    assert found.plan.profile.name == "calibrated/megatron"


def test_the_arguments_of_megatron_are_a_plan_and_its_question() -> None:
    line = ("--model", MODEL, "--chip", "h100", "--chips", "64", "--stack", "megatron")
    done = run("evaluate", *line, "--json", "--no-solve", "--", *MEGATRON)
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["problem"]["workload"]["seq_len"] == 8192
    assert answer["problem"]["workload"]["global_batch_seqs"] == 64
    assert "--lr" in answer["ignored"]
    same = evaluate(
        "tp=8,pp=4,micro_batch_size=1,remat=full:2,reshard=1",
        MODEL,
        optimum=False,
        seq_len=8192,
        **STACK,
    )
    assert answer["point"] == json.loads(json.dumps(same.point.to_dict()))
    other = run("evaluate", *line, "--seq-len", "4096", "--no-solve", "--", *MEGATRON)
    assert other.exit_code == 2
    assert "says 8,192 tokens a sequence, and the options 4,096" in other.stderr


def test_a_maxtext_config_is_a_plan(tmp_path: Path) -> None:
    config = tmp_path / "ours.yml"
    config.write_text(
        "model_name: llama3-70b\nici_fsdp_parallelism: 128\nici_tensor_parallelism: 4\n"
        "per_device_batch_size: 1\nmax_target_length: 4096\nremat_policy: full\n"
    )
    line = ("--model", "llama3-70b", "--chips", "512", "--stack", "maxtext", "--no-solve")
    done = run("evaluate", *line, "--json", "--config", str(config))
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    plan = answer["point"]["plan"]
    assert (plan["fsdp"], plan["tp"], plan["remat"]) == (128, 4, [{"full": 80}])
    # A sequence for each of 512 chips, where nobody says a batch.
    assert answer["problem"]["workload"]["global_batch_seqs"] == 512
    assert answer["assumed"] == ["a batch of 512 sequences, which fills the data ranks"]
    again = run("evaluate", *line, "--json", "--config", str(config), "--", "remat_policy=minimal")
    assert json.loads(again.stdout)["point"]["plan"]["remat"] == [{"minimal": 80}]


def test_a_torchtitan_config_is_a_plan(tmp_path: Path) -> None:
    config = tmp_path / "ours.toml"
    config.write_text(
        "[training]\nlocal_batch_size = 2\nseq_len = 8192\n"
        "[parallelism]\ntensor_parallel_degree = 2\n"
        '[activation_checkpoint]\nmode = "full"\n'
    )
    line = ("--model", MODEL, "--chip", "h100", "--chips", "64", "--stack", "torchtitan")
    done = run("evaluate", *line, "--json", "--no-solve", "--config", str(config))
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    plan = answer["point"]["plan"]
    assert (plan["fsdp"], plan["tp"], plan["micro_batch_size"]) == (32, 2, 2)
    assert answer["problem"]["workload"]["global_batch_seqs"] == 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "say one plan"),
        (("--plan", "tp=8", "--config", "ours.yml"), "say one plan"),
        (("--plan", "tp=8", "--", "--x"), "say one plan"),
        (("--config", "ours.yml"), "in the words of --stack"),
        (("--stack", "nanotron", "--config", "ours.yml"), "and it is nanotron"),
        (("--stack", "megatron", "--config", "ours.yml"), "takes arguments; give them after --"),
        (("--stack", "maxtext-gpu", "--config", "none.yml"), "none.yml: cannot be read"),
    ],
)
def test_a_plan_is_said_once_and_in_a_format_that_is_read(
    arguments: tuple[str, ...], words: str
) -> None:
    done = run("evaluate", "--model", MODEL, "--chip", "h100", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr
