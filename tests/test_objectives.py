"""Fronts that trade chips as well: they are the brute-force fronts, and say what they trade."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from oracle import Instance, brute_fronts_by_chips, small_instance, unbeaten_by_fewer

import autoshard
from autoshard.asking import check_objectives
from autoshard.charts.front import front_chart
from autoshard.columns import front_columns, said_once
from autoshard.costmodels.errors import SpecError
from autoshard.report import front_report
from autoshard.search.budget import Point
from autoshard.search.chips import unbeaten
from autoshard.search.front import Options, Result, solve_front

ALL = ("time", "memory", "chips")
GROUPS = [range(start, start + 8) for start in range(0, 32, 8)]
in_groups = pytest.mark.parametrize("seeds", GROUPS, ids=[f"{g[0]}-{g[-1]}" for g in GROUPS])


def solved(instance: Instance, **options: Any) -> Result:
    return solve_front(instance.problem, instance.profile, Options(**options))


def found(result: Result) -> list[tuple[float, float, int]]:
    return [(p.step_time_s, p.memory_bytes, p.plan.chips_used) for p in result.points]


@in_groups
def test_the_exact_fronts_with_chips_are_the_brute_force_fronts(seeds: range) -> None:
    numbers = []
    for seed in seeds:
        instance = small_instance(seed)
        fronts = brute_fronts_by_chips(instance.problem, instance.profile)
        expected = unbeaten_by_fewer(fronts, memory=True)
        result = solved(instance, points=0, gap=0.0, objectives=ALL)
        points = found(result)
        assert result.complete
        assert len(points) == len(expected), f"seed {seed}"
        for point in expected:  # times may be equal, so that their order is no matter
            near = [p for p in points if np.allclose(p, point, rtol=1e-6, atol=0.0)]
            assert len(near) == 1, f"seed {seed}: {point}"
        assert all(p.proven for p in result.points)
        numbers.append(len({chips for _, _, chips in points}))

        expected = unbeaten_by_fewer(fronts, memory=False)
        points = found(solved(instance, points=0, gap=0.0, objectives=("time", "chips")))
        assert [p[2] for p in points] == [p[2] for p in expected], f"seed {seed}"
        times, true = ([seconds for seconds, *_ in front] for front in (points, expected))
        assert np.allclose(times, true, rtol=1e-6, atol=0.0), f"seed {seed}"
    assert sum(number > 1 for number in numbers) > len(numbers) / 2


def test_a_limited_front_is_part_of_the_whole_one_and_no_longer_than_asked() -> None:
    for seed in range(5):
        instance = small_instance(seed)
        whole = found(solved(instance, points=0, gap=0.0, objectives=ALL))
        for points in (1, 2, 7):
            few = found(solved(instance, points=points, gap=0.0, objectives=ALL))
            assert 1 <= len(few) <= points
            assert few[0][0] == pytest.approx(whole[0][0], rel=1e-6), "the fastest is there"
            # Between the numbers of chips that are shown, fewer chips may do the same.
            for seconds, size, chips in few:
                assert not any(
                    t < seconds * (1 - 1e-6) and b < size * (1 - 1e-6) and c < chips
                    for t, b, c in few
                )


def test_a_constraint_on_chips_bounds_the_front_from_below() -> None:
    front = autoshard.solve("llama3-8b", chips=64, objectives=ALL, where="chips_used >= 32")
    assert {point.plan.chips_used for point in front.points} <= set(range(32, 65))
    assert front.points[0].step_time_s == min(point.step_time_s for point in front.points)


def test_time_alone_is_one_plan() -> None:
    front = autoshard.solve("llama3-8b", chips=64, objectives="time")
    assert len(front.points) == 1
    assert front.search["objectives"] == ["time"]


def test_the_default_is_time_against_memory() -> None:
    front = autoshard.solve("llama3-8b", chips=64, points=2)
    assert front.objectives == ("time", "memory")
    old = dataclasses.replace(front, search={})
    assert old.objectives == ("time", "memory"), "a file written before there was a choice"


def test_a_front_of_chips_shows_chips(tmp_path: Any) -> None:
    front = autoshard.solve("llama3-8b", chips=64, objectives="time, chips ,memory", points=9)
    assert front.objectives == ALL
    heads = [column.head for column in said_once(front_columns(front, 1e12))[0]]
    assert heads[:3] == ["step s", "GiB/chip", "chips"]
    report = front_report(front, tokens=1e12, assumptions="textbook")
    assert "--points 0 shows every plan of the front" in " ".join(report.split())
    assert '"detail"' in front_chart(front).to_json(), "one line for each number of chips"
    smallest = min(point.memory_bytes for point in front.points)
    with pytest.raises(autoshard.Infeasible, match="the smallest needs"):
        front.fastest(within=smallest / 2)
    assert front.point(within=smallest).memory_bytes == smallest
    front.save(tmp_path / "front.json")
    assert autoshard.ParetoFront.load(tmp_path / "front.json") == front


def test_a_time_limit_ends_a_front_of_chips_with_what_there_is() -> None:
    front = autoshard.solve("llama3-70b", pods=1, objectives=ALL, time_limit_s=1e-9)
    assert not front.complete
    assert front.points


@pytest.mark.parametrize(
    "objectives",
    ["memory", "memory,chips", "", "time,time", "time,mfu", ("time", "time"), 5, ["time", 3], None],
)
def test_what_no_front_can_trade_is_refused(objectives: Any) -> None:
    with pytest.raises(SpecError, match="--front names objectives out of time, memory, chips"):
        check_objectives(objectives)


def test_points_that_another_beats_or_equals_are_left_out() -> None:
    def point(time_s: float, size: float, chips: int) -> Point:
        plan = autoshard.Plan(
            dp=chips, layers_per_stage=(4,), remat=({"save_all": 4},)
        )  # fmt: skip
        return Point(
            plan=plan,
            row=0,
            step_time_s=time_s,
            memory_bytes=size,
            lower_bound_s=time_s,
            proven=True,
        )

    points = [
        point(1.0, 4.0, 8),
        point(1.0 + 1e-9, 4.0, 4),  # as fast, on fewer chips
        point(2.0, 4.0, 2),
        point(2.0, 5.0, 2),
        point(3.0, 1.0, 8),
    ]
    kept = [(p.step_time_s, p.plan.chips_used) for p in unbeaten(points, memory=True)]
    assert kept == [(1.0 + 1e-9, 4), (2.0, 2), (3.0, 8)]
    kept = [(p.step_time_s, p.plan.chips_used) for p in unbeaten(points, memory=False)]
    assert kept == [(1.0 + 1e-9, 4), (2.0, 2)]
