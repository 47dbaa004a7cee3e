"""``--near-optimal``: the list is that of solving every mesh by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, run

import autoshard
import autoshard.nearly as nearly
from autoshard.costmodels.errors import Infeasible, SpecError
from autoshard.front import ParetoFront
from autoshard.nearly import near_optimal
from autoshard.nearly_report import more_line
from autoshard.search.check import broken_rules, judge
from autoshard.search.space import meshes
from autoshard.solving import resolve

DEGREES = ("dp", "batch_split", "seq_split", "tp", "pp", "cp")
QUESTION: dict[str, Any] = {"chip": "h100", "chips": 4, "global_batch_seqs": 8}
MODEL = "llama3-8b"
WITHIN = 0.05


@pytest.fixture(scope="module")
def front() -> ParetoFront:
    return autoshard.solve(MODEL, points=1, gap=0.0, **QUESTION)


@pytest.fixture(scope="module")
def times(front: ParetoFront) -> dict[tuple[int, ...], float]:
    """The exact best time of every mesh whose peak allows it to be near, solved by itself."""
    problem, profile = resolve(MODEL, **QUESTION)
    table = meshes(problem)
    latest_s = front.points[0].step_time_s * (1.0 + WITHIN)
    peak_s = profile.compute.flops_per_step(problem) / problem.peak_flops_per_s
    found = {}
    for row in range(len(table)):
        if peak_s / int(table.chips_used[row]) > latest_s:
            continue
        mesh = tuple(int(getattr(table, name)[row]) for name in DEGREES)
        fix = dict(zip(DEGREES, mesh, strict=True))
        try:
            best = autoshard.solve(MODEL, points=1, gap=0.0, fix=fix, **QUESTION)
        except Infeasible:
            continue
        found[mesh] = best.points[0].step_time_s
    return found


def test_every_mesh_within_the_share_is_listed_with_its_exact_time(
    front: ParetoFront, times: dict[tuple[int, ...], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearly, "MOST", 100)
    best_s = front.points[0].step_time_s
    want = {mesh: t for mesh, t in times.items() if t <= best_s * (1.0 + WITHIN)}
    assert 3 < len(want) < len(times)
    found = front.near_optimal(WITHIN)
    listed = {tuple(getattr(p.plan, n) for n in DEGREES): p.step_time_s for p in found.points}
    assert listed == pytest.approx(want, rel=1e-6)
    assert (found.more, found.complete) == (0, True)
    seconds = [point.step_time_s for point in found.points]
    assert seconds == sorted(seconds)
    assert more_line(found) == "No other mesh has a plan within that."


def test_a_longer_list_is_cut_with_the_number_of_what_is_left(
    front: ParetoFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = near_optimal(front, WITHIN)
    monkeypatch.setattr(nearly, "MOST", 2)
    found = near_optimal(front, WITHIN)
    assert len(found.points) == 2
    assert found.points[1].step_time_s == pytest.approx(every.points[1].step_time_s, rel=1e-9)
    # What is left may be more than there is: nobody asked them all.
    assert found.more >= len(every.points) - 2 > 0
    assert "may have a plan within that, none of them faster" in more_line(found)


@pytest.mark.parametrize(
    "question", [{"stack": "megatron"}, {"chip": "v5p"}, {"memory_limit": "30GB"}]
)
def test_what_is_listed_is_legal_fits_and_is_priced_by_the_judge(question: dict[str, Any]) -> None:
    asked = QUESTION | {"chips": 16} | question
    front = autoshard.solve(MODEL, points=1, **asked)
    problem, profile = resolve(MODEL, **asked)
    found = near_optimal(front, 0.03)
    assert found.points
    latest_s = front.points[0].step_time_s * 1.03
    for point in found.points:
        assert broken_rules(problem, point.plan) == []
        assert point.memory_bytes <= problem.capacity_bytes
        assert front.points[0].lower_bound_s <= point.step_time_s <= latest_s * (1.0 + 1e-9)
        times = [
            judge(problem, profile, point.plan, layout)[0]
            for layout in range(len(problem.cluster.layouts))
        ]
        assert min(abs(point.step_time_s / t - 1.0) for t in times) < 1e-12
    meshes = [tuple(getattr(p.plan, n) for n in DEGREES) for p in found.points]
    assert front.points[0].plan.tp in {mesh[3] for mesh in meshes}


def test_constraints_of_the_front_hold_for_the_list() -> None:
    front = autoshard.solve(MODEL, points=1, where="tp >= 4 and memory_gib < 40", **QUESTION)
    found = near_optimal(front, 0.2)
    assert found.points
    assert all(p.plan.tp >= 4 and p.memory_bytes < 40 * 2**30 for p in found.points)


def test_what_has_no_list_is_refused(front: ParetoFront) -> None:
    for share in (-0.1, 1.5, "2%", True, float("nan")):
        with pytest.raises(SpecError, match="a share from 0 to 1"):
            near_optimal(front, share)  # type: ignore[arg-type]
    for said in ({"complete": False}, {"constrained": True}):
        stopped = replace(front, search={**front.search, **said})
        with pytest.raises(SpecError, match="a search that came to its end"):
            near_optimal(stopped, 0.02)


def test_the_command_prints_the_list_and_json() -> None:
    line = (*SMALL, "--points", "1", "--near-optimal", "1%")
    done = run("solve", *line)
    assert done.exit_code == 0, done.stderr
    assert "As good as the fastest within 1 %, one a mesh:" in done.stdout
    answer = json.loads(run("solve", *line, "--json").stdout)
    assert answer["near_optimal"]["within"] == 0.01
    assert len(answer["near_optimal"]["points"]) > 1
    # Who reads fronts reads this one.
    assert ParetoFront.from_dict(answer).points[0].plan.to_dict() == answer["fastest"]["plan"]
    assert run("solve", *SMALL, "--near-optimal", "1%", "--csv").exit_code == 2
    assert run("solve", *SMALL, "--near-optimal", "2").exit_code == 2


def test_a_share_out_of_range_is_refused_before_the_search(tmp_path: Path) -> None:
    saved = tmp_path / "front.json"
    done = run("solve", *SMALL, "--near-optimal", "nan", "--save", str(saved))
    assert done.exit_code == 2
    assert "a share from 0 to 1" in done.stderr
    assert not saved.exists()


def test_a_search_that_was_stopped_lists_no_plans_and_says_so_unless_quiet(
    front: ParetoFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = replace(front, search={**front.search, "complete": False})
    monkeypatch.setattr("autoshard.solve_commands._solve", lambda *_, **__: stopped)
    line = ("solve", *SMALL, "--near-optimal", "1%")
    assert "no near-optimal plans: the search was stopped" in run(*line).stderr
    assert run(*line, "-q").stderr == ""
