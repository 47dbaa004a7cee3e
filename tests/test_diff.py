"""``diff``: its terms add up, whatever two plans are compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import run

import autoshard
from autoshard.costmodels.errors import SpecError
from autoshard.differing import DEGREES, Difference, diff, read_side
from autoshard.differing_report import difference_report, summary
from autoshard.front import FrontPoint, ParetoFront

MODEL = "llama3-8b"
QUESTION: dict[str, Any] = {"chip": "h100", "chips": 64, "global_batch_seqs": 64}


@pytest.fixture(scope="module")
def front() -> ParetoFront:
    return autoshard.solve(MODEL, points=4, **QUESTION)


@pytest.fixture(scope="module")
def other() -> ParetoFront:
    """Of another problem: twice the chips and the batch, and a stack's costs."""
    asked = QUESTION | {"chips": 128, "global_batch_seqs": 128}
    return autoshard.solve(MODEL, points=2, stack="megatron", **asked)


def adds_up(found: Difference) -> None:
    """The differences of the parts are that of the step."""
    parts = sum(b - a for a, b in found.parts_s.values())
    step = found.a.step_time_s + found.b.step_time_s
    assert parts == pytest.approx(found.step_s, abs=1e-9 * step)
    for side, point in enumerate((found.a, found.b)):
        total = sum(both[side] for both in found.parts_s.values())
        assert total == pytest.approx(point.step_time_s, rel=1e-9)


def test_the_parts_add_up_to_the_difference_of_the_steps(
    front: ParetoFront, other: ParetoFront
) -> None:
    points = [*front.points, *other.points]
    for a in points:
        for b in points:
            adds_up(diff(a, b))


def test_a_plan_does_not_differ_from_itself(front: ParetoFront) -> None:
    found = diff(front.fastest(), front)
    assert found.degrees == found.problem == {}
    assert found.step_s == 0.0
    assert "They are equally fast per step." in list(summary(found))


def test_only_the_degrees_that_differ_are_named(front: ParetoFront) -> None:
    a, b = front.points[0], front.points[-1]
    found = diff(a, b)
    mine, theirs = a.plan.to_dict(), b.plan.to_dict()
    assert set(mine) == set(DEGREES)
    assert found.degrees == {n: (mine[n], theirs[n]) for n in DEGREES if mine[n] != theirs[n]}
    assert found.problem == {}


def test_the_other_way_round_is_the_same_with_the_sign_changed(front: ParetoFront) -> None:
    there, back = (diff(x, y) for x, y in ((front, front.points[-1]), (front.points[-1], front)))
    assert there.step_s == -back.step_s
    assert {n: (b, a) for n, (a, b) in there.parts_s.items()} == back.parts_s
    assert {n: (b, a) for n, (a, b) in there.degrees.items()} == back.degrees


def test_two_problems_are_told_apart_by_what_differs(
    front: ParetoFront, other: ParetoFront
) -> None:
    found = diff(front, other)
    assert found.problem["cluster.chips"] == (64, 128)
    assert found.problem["workload.global_batch_seqs"] == (64, 128)
    assert found.problem["costs.profile"] == ("textbook", "calibrated/megatron")
    assert "model.name" not in found.problem
    assert found.tokens_per_s is not None
    first, second = found.tokens_per_s
    assert first == pytest.approx(64 * 4096 / front.points[0].step_time_s)
    assert second == pytest.approx(128 * 4096 / other.points[0].step_time_s)
    # The batches differ, so speed is per token.
    verdict = list(summary(found))[2]
    assert verdict.endswith("faster per token.")
    assert verdict.startswith("B" if second > first else "A")


def test_an_evaluation_is_a_side_too(front: ParetoFront) -> None:
    found = autoshard.evaluate("tp=8", MODEL, optimum=False, **QUESTION)
    compared = diff(found, front)
    assert compared.a == found.point
    assert compared.problem == {}
    adds_up(compared)


def test_what_cannot_be_compared_is_refused(front: ParetoFront) -> None:
    with pytest.raises(SpecError, match="b is 5"):
        diff(front, 5)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="a is Plan"):
        diff(front.points[0].plan, front)  # type: ignore[arg-type]
    blank = replace(front.points[0], breakdown={})
    with pytest.raises(SpecError, match="b does not say where its time goes"):
        diff(front, blank)


@pytest.fixture(scope="module")
def saved(front: ParetoFront, other: ParetoFront, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    front.save(folder / "front.json")
    other.save(folder / "other.json")
    found = autoshard.evaluate("tp=8", MODEL, optimum=False, **QUESTION)
    (folder / "mine.json").write_text(json.dumps(found.to_dict()))
    (folder / "wrong.json").write_text("{}")
    return folder


def test_a_file_names_its_fastest_plan_and_a_number_any_of_them(
    saved: Path, front: ParetoFront
) -> None:
    def point(text: str) -> FrontPoint:
        return read_side(text).point

    assert point(f"{saved}/front.json") == front.points[0]
    assert point(f"{saved}/front.json:1") == front.points[0]
    assert point(f"{saved}/front.json:3") == front.points[2]
    assert point(f"{saved}/mine.json").plan.tp == 8
    odd = saved / "odd:2"
    odd.write_text((saved / "front.json").read_text())
    assert point(str(odd)) == front.points[0]
    assert point(f"{odd}:2") == front.points[1]


@pytest.mark.parametrize(
    ("side", "words"),
    [
        ("front.json:0", "has points 1 to 4, counted from the fastest"),
        ("front.json:5", "has points 1 to 4"),
        ("front.json:x", "'x' is no number of a point"),
        ("mine.json:2", "has one point"),
        ("none.json", "none.json: cannot be read"),
        ("none.json:1", "none.json: cannot be read"),
        ("wrong.json", "wrong.json: not a front"),
    ],
)
def test_a_side_that_is_none_is_refused(saved: Path, side: str, words: str) -> None:
    done = run("diff", f"{saved}/{side}", f"{saved}/front.json")
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stdout == ""


def test_the_command_prints_tables_and_json(saved: Path) -> None:
    done = run("diff", f"{saved}/front.json", f"{saved}/other.json")
    assert done.exit_code == 0, done.stderr
    for words in ("A: ", "B: ", "They answer different problems.", "part of the step", "B - A"):
        assert words in done.stdout
    answer = json.loads(
        run("diff", f"{saved}/front.json", f"{saved}/front.json:4", "--json").stdout
    )
    assert answer["schema"] == "autoshard.diff/1"
    parts = sum(part["difference"] for part in answer["parts_s"].values())
    assert parts == pytest.approx(answer["figures"]["step_time_s"]["difference"], rel=1e-9)
    assert answer["problem"] == {}


def test_a_long_list_of_differences_is_cut_with_a_word(front: ParetoFront) -> None:
    far = autoshard.solve("llama2-7b", points=1, chips=64, global_batch_seqs=32)
    text = difference_report(diff(front, far))
    assert "more (--json)" in text
