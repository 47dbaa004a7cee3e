"""``--fix``: it is the constraint that it reads as, and says which value no plan can have."""

from __future__ import annotations

from typing import Any

import pytest
from command import run

import autoshard
from autoshard.costmodels.errors import Infeasible, SpecError, UnknownName
from autoshard.fixing import check_fix, fix_words, parse_fix

SMALL: dict[str, Any] = {"model": "llama3-8b", "chips": 64, "points": 3}


def test_values_are_read_from_one_text_or_several() -> None:
    assert parse_fix(()) == {}
    assert parse_fix(("tp=8, pp = 16", "dp=1")) == {"tp": 8, "pp": 16, "dp": 1}
    assert parse_fix(("tp=8", "tp=8")) == {"tp": 8}
    assert fix_words({"tp": 8, "pp": 16}) == "--fix tp=8,pp=16"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tp", "--fix wants NAME=NUMBER, as in --fix tp=8,pp=16, got 'tp'"),
        ("", "wants NAME=NUMBER"),
        ("tp=8,", "wants NAME=NUMBER"),
        ("tp==8", "wants NAME=NUMBER"),
        ("tp=-8", "wants NAME=NUMBER"),
        ("tp=8.0", "wants NAME=NUMBER"),
        ("tp=٣", "wants NAME=NUMBER"),
        ("=8", "wants NAME=NUMBER"),
        ("tp=8,tp=4", "--fix gives tp two values, 8 and 4"),
        ("tp=0", "--fix: tp must be at least 1, got 0"),
        ("tp=" + "9" * 5000, "no plan has a value that large"),
        ("tpp=8", "unknown name in --fix 'tpp': did you mean tp"),
        ("mfu=1", "unknown name in --fix 'mfu'"),
        ("layers_per_stage=4", "unknown name in --fix 'layers_per_stage'"),
        ("layout=1", "unknown name in --fix 'layout'"),
    ],
)
def test_what_fixes_nothing_is_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_fix((text,))
    assert words in str(refused.value)


@pytest.mark.parametrize("fix", ["tp=8", 8, ["tp"], {"tp": 8.0}, {"tp": True}, {"tp": "8"}])
def test_a_wrong_mapping_is_refused(fix: Any) -> None:
    with pytest.raises(SpecError, match="fix"):
        check_fix(fix)


def test_a_name_that_is_no_text_is_unknown() -> None:
    with pytest.raises(UnknownName):
        check_fix({8: 8})  # type: ignore[dict-item]


def test_a_fixed_value_is_the_constraint_that_it_reads_as() -> None:
    fixed = autoshard.solve(**SMALL, fix={"tp": 8, "pp": 2})
    where = autoshard.solve(**SMALL, where="tp = 8 and pp = 2")
    assert fixed.points == where.points
    assert (fixed.problem["fix"], where.problem["fix"]) == ({"tp": 8, "pp": 2}, {})
    both = autoshard.solve(**SMALL, fix={"tp": 8}, where="pp = 2")
    assert both.points == where.points


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"fix": {"tp": 7}}, r"^no plan has tp = 7; tp can be 1, 2, 4, 8, 16, 32\.$"),
        ({"fix": {"ep": 2}}, r"^no plan has ep = 2; ep can be 1\.$"),
        ({"fix": {"tp": 8, "pp": 16}}, r"^no plan with tp = 8 has pp = 16; pp can be 1, 2, 3, 4, "),
        ({"fix": {"tp": 8, "pp": 2, "dp": 3}}, r"^no plan with tp = 8 and pp = 2 has dp = 3; dp"),
        (
            {"fix": {"tp": 8}, "where": "pp = 16"},
            r"^no plan satisfies --where 'pp = 16' and --fix tp=8; pp can be 1, 2, 3, 4, 5, 6, ",
        ),
        (
            {"fix": {"tp": 1, "fsdp": 1}, "memory_limit": "1GiB"},
            r"the smallest plan that satisfies --fix tp=1,fsdp=1 needs",
        ),
    ],
)
def test_a_value_that_no_plan_has_is_named_with_those_that_some_have(
    asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(Infeasible, match=words):
        autoshard.solve(**SMALL, **asked)


def test_the_command_takes_it_repeatedly_and_says_it_in_the_answer() -> None:
    import json

    line = ["solve", "--model", "llama3-8b", "--chips", "64", "--points", "1", "--json"]
    done = run(*line, "--fix", "tp=8", "--fix", "pp=2,cp=1")
    answer = json.loads(done.stdout)
    assert answer["problem"]["fix"] == {"tp": 8, "pp": 2, "cp": 1}
    plan = answer["fastest"]["plan"]
    assert (plan["tp"], plan["pp"], plan["cp"]) == (8, 2, 1)
    assert run(*line, "--fix", "tp=7").exit_code == 3
    assert run(*line, "--fix", "tp:7").exit_code == 2
    assert run("explain", *line[1:5], "--fix", "tp=8").exit_code == 0
