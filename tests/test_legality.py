"""What frameworks can state: each rule's three cases, the stages, and what the answer says."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.legality import (
    REMAT,
    UNRESTRICTED,
    Legality,
    broken_stack_rules,
    one_row,
)
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.stack import STACKS, stack_by_name
from autoshard.idle import idle_notes
from autoshard.search.check import broken_rules
from autoshard.search.space import expand, meshes
from autoshard.solving import build_problem, load_profile, solve
from autoshard.stack_notes import whole_dimensions

#: 80 layers, 64 heads, 8 KV heads, sequences of 4,096 tokens.
PROBLEM = build_problem("llama3-70b", chip="h100", chips=1024, global_batch_seqs=1024)


def plan(**degrees: int) -> Plan:
    """Even stages that keep everything."""
    pp = degrees.get("pp", 1)
    layers = [80 // pp + (s < 80 % pp) for s in range(pp)]
    return Plan(
        **{"microbatches": 16, "reshard": 1, **degrees},  # type: ignore[arg-type]
        layers_per_stage=tuple(layers),
        remat=tuple({"none": n} for n in layers),
    )


#: Stack, degrees, and words of the only sentence; none where the plan can be stated.
CASES = [
    ("megatron", {"tp": 16}, ""),
    ("megatron", {"seq_split": 2, "batch_split": 4}, ""),
    ("megatron", {"seq_split": 2, "cp": 2}, "seq_split = 2 gathers keys and values and cp = 2"),
    ("megatron", {"cp": 1024}, ""),
    ("megatron", {"cp": 4096}, "4096 tokens are not two pieces"),
    ("megatron", {"pp": 12}, ""),
    ("megatron", {"pp": 4, "vpp": 2}, ""),
    ("megatron", {"pp": 4, "vpp": 2, "microbatches": 6}, "in rounds of pp = 4, and there are 6"),
    (
        "megatron-2021",
        {"pp": 12},
        "pp = 12 divides neither 80 layers nor, with both embeddings, two",
    ),
    ("megatron-2021", {"pp": 41, "microbatches": 64}, ""),
    ("megatron-2021", {"pp": 41, "vpp": 2, "microbatches": 41}, "41 * 2 does not divide 80 layers"),
    ("megatron-2021", {"cp": 2}, "it has no context parallelism"),
    ("torchtitan", {"tp": 8}, ""),
    ("torchtitan", {"tp": 16}, "tp = 16 does not divide 8 KV heads"),
    ("torchtitan", {"cp": 2}, "cp = 2, and its context ranks shard the weights too"),
    ("torchtitan", {"seq_split": 2, "tp": 8, "reshard": 3}, ""),
    ("torchtitan", {"pp": 12}, ""),
    ("torchtitan", {"pp": 20}, "pp = 20 stages want as many microbatches, and there are 16"),
    ("torchtitan", {"batch_split": 8}, "ZeRO-1 over 8 shards, and there is only ZeRO-2 and ZeRO-3"),
    ("llm-foundry", {"batch_split": 8, "reshard": 3}, ""),
    ("llm-foundry", {"tp": 2}, "tp = 2, and it has FSDP alone"),
    ("llm-foundry", {"pp": 2}, "pp = 2, and it has FSDP alone"),
    ("nanotron", {"pp": 8}, ""),
    ("nanotron", {"pp": 8, "vpp": 2}, "vpp = 2, and its pipeline engines are 1f1b and afab"),
    ("nanotron", {"pp": 12}, "pp = 12 does not divide 80 layers"),
    ("maxtext", {"pp": 8}, ""),
    ("maxtext", {"pp": 8, "microbatches": 12}, "12 microbatches are not whole rounds of pp = 8"),
    ("maxtext", {"tp": 16}, "tp = 16 does not divide 8 KV heads"),
    ("maxtext", {"cp": 2}, "cp = 2, and its context axis shards the weights too"),
]


@pytest.mark.parametrize(("stack", "degrees", "said"), CASES)
def test_a_rule_on_degrees_says_what_it_excludes(
    stack: str, degrees: dict[str, int], said: str
) -> None:
    reasons = stack_by_name(stack).legality.reasons(PROBLEM, one_row(plan(**degrees)))[0]
    if not said:
        assert reasons == []
    else:
        assert any(said in reason for reason in reasons), reasons


def test_columns_and_sentences_agree_over_a_whole_space() -> None:
    small = build_problem("llama3-70b", chip="h100", chips=64, global_batch_seqs=64)
    table, _ = expand(small, meshes(small))
    table = table.take(slice(0, None, 7))
    for stack in STACKS.values():
        allowed = stack.legality.allows(small, table)
        said = broken_stack_rules(small, stack, table)
        assert [not reasons for reasons in said] == allowed.tolist()
        assert 0 < allowed.sum() < len(table)
        early = stack.legality.allows(small, table, late=False)
        assert not (allowed & ~early).any()


def test_every_rule_has_a_source_and_a_sentence_that_can_be_filled_in() -> None:
    values = {name: np.array([3], dtype=np.int64) for name in COLUMNS}
    table = Candidates(**values)
    for stack in STACKS.values():
        assert stack.legality.framework != UNRESTRICTED.framework
        assert stack.legality.stage_source
        assert stack.legality.remat in REMAT
        names = [rule.name for rule in stack.legality.rules]
        assert len(names) == len(set(names)), stack.name
        for rule in stack.legality.rules:
            never = replace(rule, allows=lambda p, c: np.zeros(len(c), dtype=np.bool_))
            (said,) = Legality(rules=(never,)).reasons(PROBLEM, table)[0]
            assert said
            assert "{" not in said
            assert rule.source


def test_rules_that_read_microbatches_are_late() -> None:
    """A rule that runs before microbatches are known must not change its mind."""
    small = build_problem("llama3-70b", chip="h100", chips=64, global_batch_seqs=64)
    table, mesh = expand(small, meshes(small))
    for stack in STACKS.values():
        for rule in stack.legality.rules:
            if not rule.late:
                before = rule.allows(small, meshes(small))[mesh]
                assert (before == rule.allows(small, table)).all(), (stack.name, rule.name)


def staged(stages: list[dict[str, int]], vpp: int = 1) -> Plan:
    return Plan(
        pp=len(stages),
        vpp=vpp,
        microbatches=len(stages),
        layers_per_stage=tuple(sum(stage.values()) for stage in stages),
        remat=tuple(stages),
    )


#: Stack, stages, virtual stages, and words of the sentence; none where it can be stated.
STAGES = [
    ("megatron", [{"none": 41}, {"none": 39}], 1, ""),
    ("megatron", [{"selective": 41}, {"selective": 39}], 1, ""),
    ("megatron", [{"none": 31, "full": 10}, {"none": 29, "full": 10}], 1, ""),
    ("megatron", [{"none": 31, "full": 10}, {"full": 9}], 1, ""),
    ("megatron", [{"none": 31, "full": 10}, {"none": 30, "full": 9}], 1, "9 to 10 layers each"),
    ("megatron", [{"none": 36, "full": 4}, {"none": 36, "full": 4}], 4, ""),
    ("megatron", [{"none": 37, "full": 3}, {"none": 37, "full": 3}], 4, "3 layers in 4 chunks"),
    ("megatron", [{"none": 40}, {"selective": 20, "full": 20}], 1, "mixes only none and full"),
    ("torchtitan", [{"full": 41}, {"full": 39}], 1, ""),
    ("torchtitan", [{"full": 41}, {"selective_op": 39}], 1, "one remat setting for all of them"),
    ("nanotron", [{"full": 40}, {"full": 40}], 1, ""),
    ("nanotron", [{"full": 41}, {"full": 39}], 1, "stages have 39 to 41 layers"),
    ("nanotron", [{"selective": 40}, {"selective": 40}], 1, "no setting for remat 'selective'"),
    ("maxtext", [{"minimal": 80}], 1, ""),
    ("maxtext", [{"none": 80}], 1, "MaxText has no setting for remat 'none'"),
    ("maxtext", [{"minimal": 40, "full": 40}], 1, "one remat setting for all of them"),
    ("llm-foundry", [{"none": 11, "full": 69}], 1, ""),
]


@pytest.mark.parametrize(("stack", "stages", "vpp", "said"), STAGES)
def test_stages_that_cannot_be_stated_are_named(
    stack: str, stages: list[dict[str, int]], vpp: int, said: str
) -> None:
    found = stack_by_name(stack)
    reasons = list(found.legality.stage_reasons(staged(stages, vpp), found.ladder))
    assert [said in reason for reason in reasons] == ([True] if said else []), reasons


def test_a_rung_of_another_ladder_is_named() -> None:
    said = broken_stack_rules(PROBLEM, "megatron", staged([{"checkpoints_2": 80}]))
    assert said == ["'checkpoints_2' is no rung of the ladder none, selective, full"]


# The answer


@pytest.fixture(scope="module")
def small() -> Problem:
    """A few chips, so that every stack is quick."""
    return build_problem("llama3-70b", chip="h100", chips=64, global_batch_seqs=128)


@pytest.mark.parametrize("stack", ["megatron", "torchtitan", "nanotron", "maxtext-gpu"])
def test_with_a_stack_every_plan_can_be_stated(small: Problem, stack: str) -> None:
    front = solve("llama3-70b", chip="h100", chips=64, global_batch_seqs=128, stack=stack, points=5)
    problem = replace(small, recipe=stack_by_name(stack).recipe)
    for point in front.points:
        assert broken_stack_rules(problem, stack, point.plan) == []
        assert broken_rules(problem, point.plan) == []
        assert point.proven
    assert front.problem["costs"]["plans_of"] == stack_by_name(stack).legality.framework
    free = solve(
        "llama3-70b",
        chip="h100",
        chips=64,
        global_batch_seqs=128,
        costs=f"calibrated/{stack}",
        points=1,
    )
    assert free.problem["costs"]["plans_of"] is None
    ratio = front.points[0].step_time_s / free.points[0].step_time_s
    assert ratio >= 1 - 1e-3
    said = front.notes[0]
    framework = stack_by_name(stack).legality.framework
    if ratio > 1 + 1e-3:
        assert said.startswith(f"Without the rules of {framework}: ")
        assert "faster, with" in said
    else:
        assert said == (
            f"The rules of {framework} cost nothing: no plan is faster by more than 0.1 %."
        )


def test_without_a_stack_no_rule_is_named() -> None:
    front = solve("llama3-8b", chip="h100", chips=8, global_batch_seqs=64, points=1)
    assert not any("rules of" in note for note in front.notes)
    assert load_profile("calibrated/megatron").legality.free
    profile = load_profile(stack="megatron")
    assert profile.legality is STACKS["megatron"].legality
    assert profile.unrestricted.legality.free


def test_the_ladder_loses_rungs_that_no_setting_gives_and_gets_them_back() -> None:
    stack = stack_by_name("maxtext")
    profile = load_profile("calibrated", "maxtext")
    assert [r.name for r in profile.ladder] == [r.name for r in stack.ladder][1:]
    assert profile.unrestricted.ladder == stack.ladder
    assert profile.under(UNRESTRICTED).ladder == stack.ladder


def test_a_torus_wants_whole_dimensions_unless_axes_are_split() -> None:
    for tp in (1, 8, 64, 512):
        degrees = [d for d in (tp, 512 // tp) if d > 1]
        assert whole_dimensions(degrees, (8, 8, 8))
    for tp in (2, 4, 16, 32):
        assert not whole_dimensions([tp, 512 // tp], (8, 8, 8))
    every = {
        tp
        for tp in range(1, 449)
        if 16 * 28 % tp == 0 and whole_dimensions([d for d in (tp, 448 // tp) if d > 1], (16, 28))
    }
    assert every == {1, 16, 28, 448}
    assert all(len(set(pair)) == 2 for pair in itertools.combinations(every, 2))


def test_a_plan_that_splits_an_axis_says_which_flag_it_wants() -> None:
    front = solve("llama3-70b", topology="8x8x8", stack="maxtext", where="tp == 4", points=1)
    wanted = "The degrees are not products of whole dimensions of 8x8x8: "
    assert wanted + "set allow_split_physical_axes=true." in front.notes
    front = solve(
        "llama3-70b", topology="8x8x8", stack="maxtext", where="chips_used < 512", points=1
    )
    assert any("wants slices of 256 chips" in note for note in front.notes), front.notes


def test_idle_chips_are_spoken_of_among_plans_that_can_be_stated() -> None:
    profile = load_profile("calibrated", "maxtext")
    problem = replace(build_problem("llama3-70b", pods=1), recipe=stack_by_name("maxtext").recipe)
    assert isinstance(problem.cluster, Cluster)
    idle = plan(batch_split=1024, tp=8, microbatches=1, reshard=3)
    said = list(idle_notes(problem, profile, idle, proven=True, gap=1e-3))
    assert "no plan on more chips that MaxText can state is faster" in said[0]


# BLOOM: 70 layers on 12 stages, 5 on the first and the last one


def test_the_stages_of_bloom_can_be_stated_and_no_others_of_its_mesh() -> None:
    legality = stack_by_name("megatron-2021").legality
    dealt = legality.dealt(70, 12)
    assert dealt is not None
    assert dealt.tolist() == [5, *[6] * 10, 5]
    for layers, pp, stages in ((96, 8, [12] * 8), (80, 2, [40, 40]), (7, 3, [2, 3, 2])):
        dealt = legality.dealt(layers, pp)
        assert dealt is not None
        assert dealt.tolist() == stages
    bloom = replace(PROBLEM.model, n_layers=70)
    problem = replace(PROBLEM, model=bloom)

    def said(*layers: int) -> list[str]:
        made = Plan(
            pp=12,
            microbatches=16,
            reshard=1,
            layers_per_stage=layers,
            remat=tuple({"full": n} for n in layers),
        )
        return broken_stack_rules(problem, "megatron-2021", made)

    assert said(5, *[6] * 10, 5) == []
    words = "makes them equal, or the first and the last one lighter"
    assert words in said(6, 5, *[6] * 9, 5)[0]
    assert words in said(*[6] * 10, 5, 5)[0]


def test_counted_ends_are_for_equal_stages_with_one_setting() -> None:
    for wrong in ({"equal_stages": True}, {"remat": "one-count"}):
        with pytest.raises(ValueError, match="counted_ends is for"):
            Legality(counted_ends=True, **wrong)
