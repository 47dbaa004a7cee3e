"""The plans of cases_maxtext.toml are what autoshard answers, compiled as it exports them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trace_maxtext
from cases import cut_model, read_cases

import autoshard
from autoshard.costmodels.plan import Plan

CASES = {case.name: case for case in read_cases(Path(__file__).with_name("cases_maxtext.toml"))}
SOLVED = [name for name in CASES if name.endswith(" solved for 16x16x24")]


def without_layout(plan: Plan) -> dict[str, Any]:
    return {**plan.to_dict(), "layout": {}}


@pytest.mark.parametrize("name", SOLVED)
def test_the_examples_are_the_fastest_plans_on_the_largest_slice(name: str) -> None:
    case = CASES[name]
    best = autoshard.solve(
        case.model, stack="maxtext", chip="v5p", topology="16x16x24", points=1
    ).fastest()
    assert without_layout(best) == without_layout(case.plan)
    # The slice that the plan fills changes nothing in what MaxText is told.
    assert trace_maxtext.exported(case, cut_model(case)).values == best.to_maxtext()


def test_one_of_them_fills_the_largest_slice() -> None:
    case = CASES["maxtext llama3-405b on all of 16x16x24"]
    best = autoshard.solve(
        case.model,
        stack="maxtext",
        chip="v5p",
        topology=case.topology,
        global_batch_seqs=1536,
        where="fsdp == 512",
        points=1,
    ).fastest()
    assert without_layout(best) == without_layout(case.plan)


def test_there_are_two_of_them() -> None:
    assert [CASES[name].model for name in SOLVED] == ["llama3-70b", "llama3-405b"]


@pytest.mark.parametrize("name", CASES)
def test_a_plan_fills_its_slice(name: str) -> None:
    case = CASES[name]
    made = trace_maxtext.exported(case, cut_model(case))
    x, y, z = (int(length) for length in case.topology.split("x"))
    assert made.chips == x * y * z
    assert made.values["remat_policy"] in case.plan.remat[0]
