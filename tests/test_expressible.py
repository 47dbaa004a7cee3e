"""What every plan of a front can be stated in: exactly, rounded at a cost, or not and why."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, run

import autoshard
from autoshard.costmodels.ladders import MAXTEXT_LADDER, MEGATRON_LADDER, TORCHTITAN_LADDER
from autoshard.costmodels.legality import broken_stack_rules
from autoshard.costmodels.remat import TEXTBOOK_LADDER, Rung, counterpart
from autoshard.costmodels.stack import STACKS
from autoshard.front import FrontPoint
from autoshard.restoring import layout_of
from autoshard.search.check import judge
from autoshard.statement import Statement, statement_words

Question = dict[str, Any]


@pytest.mark.parametrize(
    ("ladder", "settings"),
    [
        (MEGATRON_LADDER, ["none", "selective", None, None, "full"]),
        (TORCHTITAN_LADDER, ["none", None, None, None, "full"]),
        (MAXTEXT_LADDER, ["none", "minimal", None, "save_out_proj", "full"]),
        (MAXTEXT_LADDER[1:], ["minimal_with_context", "minimal", None, "save_out_proj", "full"]),
    ],
)
def test_a_rung_of_the_book_is_the_setting_that_runs_the_same_matmuls_again(
    ladder: tuple[Rung, ...], settings: list[str | None]
) -> None:
    found = [counterpart(rung, ladder) for rung in TEXTBOOK_LADDER]
    assert [rung and rung.name for rung in found] == settings


def test_rungs_that_name_their_tensors_are_the_same_only_if_they_keep_the_same() -> None:
    # Without names, selective activation of Megatron is MaxText's minimal.
    selective, minimal = MEGATRON_LADDER[1], MAXTEXT_LADDER[2]
    assert counterpart(selective, [minimal]) is None
    assert counterpart(replace(selective, kept=()), [minimal]) is minimal
    for rung in TORCHTITAN_LADDER:
        assert counterpart(rung, TORCHTITAN_LADDER) is rung


@pytest.fixture(scope="module")
def front() -> autoshard.ParetoFront:
    """Pipelines, many rungs, and plans of every verdict."""
    return autoshard.solve(
        "llama3-8b", chip="h100", chips=512, points=6, recipe=autoshard.Recipe(reshard=(3, 1))
    )


def front_names(
    front: autoshard.ParetoFront, stack: str, said: Statement
) -> tuple[dict[str, int], ...]:
    """A statement's remat in the names of the textbook's ladder."""
    names: dict[str, str] = {}
    for rung in TEXTBOOK_LADDER:
        missing = STACKS[stack].legality.missing_rungs
        setting = counterpart(rung, [r for r in STACKS[stack].ladder if r.name not in missing])
        if setting is not None:
            names.setdefault(setting.name, rung.name)
    return tuple({names[name]: n for name, n in stage.items()} for stage in said.remat)


def test_every_plan_says_of_every_stack_of_its_chip_how_it_can_be_stated(
    front: autoshard.ParetoFront,
) -> None:
    gpus = [name for name, stack in STACKS.items() if "gpu" in stack.chips]
    verdicts = set()
    for point in front.points:
        assert list(point.expressible_in) == gpus
        verdicts |= {said.verdict for said in point.expressible_in.values()}
    assert verdicts == {"exact", "rounded", "no"}


def test_what_is_stated_breaks_no_rule_and_costs_what_is_said(
    front: autoshard.ParetoFront,
) -> None:
    problem = front.fastest().problem
    profile = front.fastest().profile
    for point in front.points:
        for stack, said in point.expressible_in.items():
            if said.verdict == "no":
                continue
            stated = replace(point.plan, layers_per_stage=said.layers_per_stage, remat=said.remat)
            assert broken_stack_rules(problem, stack, stated) == []
            priced = replace(stated, remat=front_names(front, stack, said))
            step_s, memory = judge(problem, profile, priced, layout_of(problem, point.plan))
            assert (said.step_time_s, said.memory_bytes) == pytest.approx((step_s, memory))
            assert memory <= point.memory_bytes * (1 + 1e-9)
            assert said.slower == pytest.approx(step_s / point.step_time_s - 1)
            assert said.slower >= -front.search["gap"]


def test_an_exact_plan_breaks_no_rule_and_any_other_says_which(
    front: autoshard.ParetoFront,
) -> None:
    for point in front.points:
        for said in point.expressible_in.values():
            assert (said.verdict == "exact") == (not said.why)
            assert (said.verdict == "exact") <= (said.slower == 0)


@pytest.mark.parametrize("stack", ["megatron", "torchtitan"])
def test_rounding_is_the_best_that_the_search_finds_under_the_rules(stack: str) -> None:
    asked: Question = {"model": "llama3-8b", "chip": "h100", "chips": 32, "global_batch_seqs": 64}
    free = autoshard.solve(**asked, costs=f"calibrated/{stack}", points=5, where="pp > 1")
    rounded = 0
    for point in free.points:
        said = point.expressible_in[stack]
        degrees = ("batch_split", "seq_split", "dp", "tp", "pp", "vpp", "cp", "microbatches")
        fix = {name: getattr(point.plan, name) for name in (*degrees, "reshard")}
        limit = math.ceil(point.memory_bytes)
        try:
            best = autoshard.solve(
                **asked, stack=stack, fix=fix, memory_limit=limit, points=1, gap=0.0
            ).points[0]
        except autoshard.Infeasible:
            assert said.verdict == "no"
            continue
        assert said.step_time_s == pytest.approx(best.step_time_s, rel=1e-6)
        rounded += said.verdict == "rounded"
    assert rounded


def test_a_schedule_that_the_framework_does_not_run_is_a_reason() -> None:
    asked: Question = {"model": "llama3-8b", "chip": "h100", "chips": 32, "points": 1}
    for schedule, verdict in (("1f1b", False), ("gpipe", True)):
        point = autoshard.solve(**asked, schedule=schedule, fix={"pp": 4}).points[0]
        said = " ".join(point.expressible_in["maxtext-gpu"].why)
        assert ("MaxText runs pipelines by gpipe" not in said) == verdict


def test_statements_survive_json_and_pickle(front: autoshard.ParetoFront, tmp_path: Path) -> None:
    front.save(tmp_path / "front.json")
    again = autoshard.ParetoFront.load(tmp_path / "front.json")
    assert again == front
    assert pickle.loads(pickle.dumps(again.points[0].expressible_in)) == dict(
        front.points[0].expressible_in
    )
    assert json.loads(front.to_json())["fastest"]["expressible_in"]["llm-foundry"]["why"]


def test_a_long_front_answers_on_demand(front: autoshard.ParetoFront) -> None:
    bare = tuple(replace(point, expressible_in={}) for point in front.points)
    long = replace(front, points=bare)
    for point, known in zip(long.points, front.points, strict=True):
        assert dict(long.solved(point).expressible_in) == dict(known.expressible_in)


def test_the_plans_of_a_stack_are_its_own() -> None:
    found = autoshard.solve("llama3-8b", chip="h100", chips=32, stack="megatron", points=1)
    assert found.points[0].expressible_in == {}
    assert found.fastest().expressible_in["megatron"].verdict == "exact"


def test_the_report_says_it_of_the_fastest_plan() -> None:
    out = " ".join(run("solve", *SMALL).stdout.split())
    assert "- The fastest plan can be stated in maxtext (exact)." in out


def test_words_group_the_stacks_that_lack_the_same() -> None:
    no = Statement(verdict="no", why=("pp = 3 does not divide 8 layers",))
    rounded = Statement(verdict="rounded", why=("uneven",), slower=0.0123)
    unpriced = replace(rounded, unpriced=("selective_op",))
    free = replace(rounded, slower=1e-5)
    exact = Statement(verdict="exact", slower=0.0)
    assert statement_words({}) == ""
    assert statement_words({"a": exact, "b": rounded, "c": unpriced, "d": free}) == (
        "can be stated in a (exact), b (rounded: 1.2 % slower), "
        "c (rounded: at most 1.2 % slower), d (rounded at no cost)"
    )
    assert statement_words({"a": exact, "b": no, "c": no}) == (
        "can be stated in a (exact); not in b, c: pp = 3 does not divide 8 layers"
    )
    assert statement_words({"b": no}) == "cannot be stated in b: pp = 3 does not divide 8 layers"


def test_a_point_without_statements_is_read_as_before(front: autoshard.ParetoFront) -> None:
    data = front.to_dict()
    for point in data["front"]:
        del point["expressible_in"]
    read = autoshard.ParetoFront.from_dict(data)
    assert all(isinstance(p, FrontPoint) and p.expressible_in == {} for p in read.points)
