"""Why the fastest plan does not have given values: each kind of answer, and its numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from command import run

import autoshard
from autoshard.costmodels.errors import SpecError, UnknownName
from autoshard.reasons import WhyNot, why_not
from autoshard.reasons_report import why_not_lines
from autoshard.search.prune import least_memory
from autoshard.solving import build_problem, load_profile
from autoshard.where import compile_where

QUESTION: dict[str, Any] = {"chip": "h100", "chips": 64, "global_batch_seqs": 64}
MODEL = "llama3-8b"


@pytest.fixture(scope="module")
def fastest() -> autoshard.FrontPoint:
    return autoshard.solve(MODEL, points=1, **QUESTION).points[0]


def asked(fastest: autoshard.FrontPoint, values: str, **more: Any) -> WhyNot:
    return why_not(MODEL, values, fastest=fastest, **(QUESTION | more))


def test_the_fastest_plan_itself_is_said_to_be_it(fastest: autoshard.FrontPoint) -> None:
    found = asked(fastest, f"tp={fastest.plan.tp}, pp = {fastest.plan.pp}")
    assert found.verdict == "fastest"
    assert found.best is None
    assert found.slower_by is None


def test_a_slower_plan_is_the_best_with_its_values_and_its_losses_add_up(
    fastest: autoshard.FrontPoint,
) -> None:
    found = asked(fastest, "tp=8,pp=8")
    constrained = autoshard.solve(MODEL, where="tp = 8 and pp = 8", points=1, **QUESTION)
    assert found.verdict == "slower"
    assert found.best is not None
    assert found.best.plan == constrained.points[0].plan
    assert (found.best.plan.tp, found.best.plan.pp) == (8, 8)
    lost = found.best.step_time_s - fastest.step_time_s
    assert lost > 0
    assert sum(found.lost_s.values()) == pytest.approx(lost, rel=1e-9)
    assert found.slower_by == pytest.approx(lost / fastest.step_time_s)


LEGALITY: list[tuple[str, str, dict[str, tuple[int, ...]]]] = [
    ("tp=7", "7 does not divide 32 query heads", {"tp": (4, 8)}),
    ("tp=64", "64 does not divide 32 query heads", {"tp": (32,)}),
    ("pp=33", "at most the 32 layers", {"pp": (32,)}),
    ("dp=3", "divides the 64 sequences of the batch; 3 does not", {"dp": (2, 4)}),
    ("seq_split=3", "divides the 4,096 tokens", {"seq_split": (2, 4)}),
    ("tp=16,pp=8", "chips used are at most the 64 offered; these values take 128", {}),
    ("pp=4,vpp=3", "vpp divides the layers of a full stage, 8;", {"vpp": (2, 4)}),
    ("pp=1,vpp=2", "interleaving (vpp > 1) wants pp > 1", {"pp": (2,), "vpp": (1,)}),
    ("pp=4,vpp=2,microbatches=2", "whole rounds of pp = 4", {"microbatches": (4,)}),
    ("reshard=2", "reshard is one of those that the recipe allows", {"reshard": (3,)}),
    ("ep=2", "ep is for models with experts", {"ep": (1,)}),
    ("pods=2", "pods is 1 on switched networks", {"pods": (1,)}),
    ("tp=1,chips_used=63", "no mesh of the space has tp = 1 and chips_used = 63", {}),
]


@pytest.mark.parametrize(("values", "words", "nearest"), LEGALITY, ids=[v for v, _, _ in LEGALITY])
def test_a_broken_rule_is_named_with_the_nearest_legal_values(
    fastest: autoshard.FrontPoint, values: str, words: str, nearest: dict[str, tuple[int, ...]]
) -> None:
    found = asked(fastest, values)
    assert found.verdict == "illegal"
    assert words in "; ".join(found.reasons)
    for name, near in nearest.items():
        assert found.nearest[name] == near
        # The nearest values are legal beside the others: the space has a plan with each.
        for value in near:
            moved = asked(
                fastest, ",".join(f"{k}={v}" for k, v in {**found.values, name: value}.items())
            )
            assert moved.verdict != "illegal"


RULED: list[tuple[dict[str, str], str, str]] = [
    (
        {"schedule": "zero-bubble"},
        "pp=4,vpp=2",
        "No plan of schedule zero-bubble has pp = 4, vpp = 2: vpp = 2, and zero-bubble has no "
        "virtual stages.",
    ),
    (
        {"stack": "torchtitan"},
        "tp=16",
        "No plan of torchtitan has tp = 16: tp = 16 does not divide 8 KV heads.",
    ),
    ({}, "tp=7", "No plan has tp = 7: tp divides the query heads, d_ff and d_model; 7 does not "),
]


@pytest.mark.parametrize(("under", "values", "words"), RULED, ids=[v for _, v, _ in RULED])
def test_whose_rule_it_is_is_said(
    fastest: autoshard.FrontPoint, under: dict[str, str], values: str, words: str
) -> None:
    found = asked(fastest, values, **under)
    assert found.verdict == "illegal"
    assert why_not_lines(found)[0].startswith(words)
    assert found.to_dict()["ruled_by"] in words


def test_what_the_space_lacks_is_not_laid_at_the_door_of_the_schedule(
    fastest: autoshard.FrontPoint,
) -> None:
    found = asked(fastest, "pp=4,vpp=3", schedule="zero-bubble")
    assert not found.ruled_by
    assert "vpp divides the layers of a full stage" in found.reasons[0]


def test_dp_on_a_pod_is_fsdp() -> None:
    found = why_not(MODEL, {"dp": 2}, chips=64, global_batch_seqs=64)
    assert found.verdict == "illegal"
    assert "dp is the number of pods used" in found.reasons[0]


def test_what_does_not_fit_is_said_with_the_least_memory(fastest: autoshard.FrontPoint) -> None:
    values = "tp=1,pp=1,batch_split=1,seq_split=1"
    found = asked(fastest, values)
    assert found.verdict == "memory"
    keep = compile_where("tp = 1 and pp = 1 and batch_split = 1 and seq_split = 1")
    least = least_memory(build_problem(MODEL, **QUESTION), load_profile("textbook"), keep)
    assert found.least_bytes == pytest.approx(least, rel=1e-9)
    assert least > found.capacity_bytes == 80_000_000_000


def test_what_where_excludes_is_said_with_what_it_would_cost() -> None:
    where = "tp <= 4 and pp = 1 and cp = 1"
    found = why_not(MODEL, "tp=8,pp=1", where=where, **QUESTION)
    assert found.verdict == "excluded"
    assert found.reasons == ("tp <= 4",)
    assert found.best is not None
    assert found.best.plan.tp == 8


def test_a_tie_is_no_loss(fastest: autoshard.FrontPoint) -> None:
    found = asked(fastest, "tp=8", gap=0.9)
    assert found.verdict == "equal"
    assert "as fast within the gap" in why_not_lines(found)[0]


def test_values_that_cannot_be_read_are_refused() -> None:
    wrong: list[Any] = ["", "tp", "tp=x", "tp=-1", "tp=0", "tp=1,tp=2", {}, 5]
    for values in wrong:
        with pytest.raises(SpecError):
            why_not(MODEL, values, **QUESTION)
    with pytest.raises(UnknownName, match="did you mean"):
        why_not(MODEL, "tpp=1", **QUESTION)


COMMAND = ("explain", "--model", MODEL, "--chip", "h100", "--chips", "64")


def test_the_command_prints_the_terms_and_json() -> None:
    table = run(*COMMAND, "--why-not", "tp=8,pp=8")
    assert table.exit_code == 0, table.stderr
    assert "The best plan with tp = 8, pp = 8 is" in table.stdout
    assert "pipeline bubble" in table.stdout
    answer = json.loads(run(*COMMAND, "--why-not", "tp=8,pp=8", "--json").stdout)
    assert answer["schema"] == "autoshard.why_not/1"
    assert answer["verdict"] == "slower"
    assert answer["best"]["plan"]["tp"] == 8
    lines = run(*COMMAND, "--why-not", "tp=7").stdout.splitlines()
    assert "Nearest: tp = 4 or 8." in lines
    assert run(*COMMAND, "--why-not", "tp=7", "--no-solve").exit_code == 2
    assert run(*COMMAND, "--why-not", "tp").exit_code == 2
