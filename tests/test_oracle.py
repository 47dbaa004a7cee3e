"""The search finds the same front as brute force, on small problems of every kind."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from oracle import (
    Cost,
    Instance,
    brute_front,
    dealings,
    fastest_within,
    holds_chunks,
    judge,
    legal_meshes,
    mesh_of,
    pareto,
    rungs_of,
    small_instance,
)

from autoshard.costmodels.errors import Infeasible
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.search.check import broken_rules
from autoshard.search.front import Options, Point, Result, solve_front

#: Seeds of the small problems, in groups that a test each goes through.
GROUPS = [range(start, start + 34) for start in range(0, 204, 34)]
in_groups = pytest.mark.parametrize(
    "seeds", GROUPS, ids=[f"{seeds[0]}-{seeds[-1]}" for seeds in GROUPS]
)

#: More of them, each solved once and checked in all respects at that.
FURTHER = [range(start, start + 40) for start in range(204, 1004, 40)]

#: Two floats nearer than this are the same time or memory.
SAME = 1e-6
DEFAULT_GAP = Options().gap


@dataclass(frozen=True, slots=True)
class Case:
    """A small problem, perhaps with a memory limit that binds, and its front by brute force."""

    instance: Instance
    problem: Problem
    front: tuple[Cost, ...]


@functools.cache
def case(seed: int) -> Case:
    """Every other problem is limited to a part of its front, one in fifty to none of it."""
    instance = small_instance(seed)
    whole = pareto(brute_front(instance.problem, instance.profile), 1e-7)
    if seed % 2 == 0:
        return Case(instance, instance.problem, tuple(whole))
    sizes = [size for _, size in whole] + [whole[-1][1] / 2]
    place = len(whole) - 1 if seed % 50 == 1 else seed % max(len(whole) - 1, 1)
    limit = int((sizes[place] + sizes[place + 1]) / 2)
    left = tuple((seconds, size) for seconds, size in whole if size <= limit)
    return Case(instance, instance.limited(limit), left)


@functools.cache
def solved(seed: int, gap: float) -> Result | None:
    """The search's answer, None where it says that there is none."""
    options = Options(points=0, gap=gap)
    try:
        return solve_front(case(seed).problem, case(seed).instance.profile, options)
    except Infeasible:
        return None


def points(seed: int, gap: float) -> list[Point]:
    """The search's points, none where the problem is infeasible."""
    result = solved(seed, gap)
    return [] if result is None else result.points


def check_exact(found: list[Point], expected: Sequence[Cost]) -> None:
    """The same points."""
    assert len(found) == len(expected)
    costs = [(point.step_time_s, point.memory_bytes) for point in found]
    assert np.allclose(costs, expected, rtol=SAME, atol=0.0)


def check_within_gap(found: list[Point], expected: Sequence[Cost]) -> None:
    """No point of brute force is faster than what there is in its memory, by more than the gap."""
    costs = [(point.step_time_s, point.memory_bytes) for point in found]
    for seconds, size in expected:
        answer_s = fastest_within(costs, size * (1.0 + SAME))
        assert math.isfinite(answer_s), f"nothing within {size} bytes"
        assert seconds * (1.0 + SAME) >= answer_s * (1.0 - DEFAULT_GAP)


def check_plans(asked: Case, result: Result) -> None:
    """Legal plans that cost what they say."""
    problem, profile = asked.problem, asked.instance.profile
    legal = list(legal_meshes(problem))
    for point in result.points:
        mesh = mesh_of(point.plan, int(result.rows.candidates.layout[point.row]))
        rungs = rungs_of(point.plan, profile)
        assert mesh in legal, mesh
        assert sum(map(sum, rungs)) == problem.model.n_layers
        assert all(r in dealings(sum(r), len(r)) for r in rungs), rungs
        assert holds_chunks([*map(sum, rungs)], mesh["vpp"]), rungs
        assert broken_rules(problem, point.plan) == []
        assert point.memory_bytes <= problem.capacity_bytes
        judged = judge(problem, profile, mesh, rungs)
        assert judged == pytest.approx((point.step_time_s, point.memory_bytes), rel=1e-9)


def check_bounds(found: list[Point], expected: Sequence[Cost], gap: float) -> None:
    """Each point's bound is one, is within the gap, and says so."""
    for point in found:
        truly_s = fastest_within(expected, point.memory_bytes * (1.0 + 1e-9))
        assert point.lower_bound_s <= truly_s * (1.0 + 1e-9)
        assert point.gap <= gap + 1e-7
        assert point.proven


@contextlib.contextmanager
def named(seed: int) -> Iterator[None]:
    """Say which problem failed."""
    try:
        yield
    except AssertionError as error:
        error.add_note(f"seed {seed}")
        raise


@in_groups
def test_the_exact_front_is_the_brute_force_front_point_for_point(seeds: range) -> None:
    for seed in seeds:
        with named(seed):
            check_exact(points(seed, gap=0.0), case(seed).front)


@in_groups
def test_with_the_default_gap_every_brute_force_point_is_matched_within_the_gap(
    seeds: range,
) -> None:
    for seed in seeds:
        with named(seed):
            check_within_gap(points(seed, DEFAULT_GAP), case(seed).front)


@in_groups
@pytest.mark.parametrize("gap", [0.0, DEFAULT_GAP])
def test_every_point_is_a_legal_plan_that_costs_what_it_says(seeds: range, gap: float) -> None:
    for seed in seeds:
        result = solved(seed, gap)
        if result is not None:
            with named(seed):
                check_plans(case(seed), result)


@in_groups
@pytest.mark.parametrize("gap", [0.0, DEFAULT_GAP])
def test_the_bound_of_every_point_is_a_bound_and_within_the_gap(seeds: range, gap: float) -> None:
    for seed in seeds:
        with named(seed):
            check_bounds(points(seed, gap), case(seed).front, gap)


@pytest.mark.parametrize("seeds", FURTHER, ids=[f"{s[0]}-{s[-1]}" for s in FURTHER])
def test_eight_hundred_more_agree_with_brute_force_in_every_respect(seeds: range) -> None:
    """With those above a thousand; in turn without a gap and with the default one."""
    pipelines = mixes = 0
    for seed in seeds:
        gap = (0.0, DEFAULT_GAP)[seed // 2 % 2]
        result, front = solved.__wrapped__(seed, gap), case(seed).front
        found = [] if result is None else result.points
        with named(seed):
            (check_within_gap if gap else check_exact)(found, front)
            check_bounds(found, front, gap)
            if result is not None:
                check_plans(case(seed), result)
        pipelines += any(point.plan.pp > 1 for point in found)
        mixes += any(mixes_remat(point.plan) for point in found)
    assert pipelines >= 0.2 * len(seeds)
    assert mixes >= 0.3 * len(seeds)


@in_groups
def test_points_of_a_front_trade_time_for_memory(seeds: range) -> None:
    for seed in seeds:
        for fast, small in zip(
            points(seed, DEFAULT_GAP), points(seed, DEFAULT_GAP)[1:], strict=False
        ):
            assert fast.step_time_s < small.step_time_s, f"seed {seed}"
            assert fast.memory_bytes > small.memory_bytes, f"seed {seed}"


def mixes_remat(plan: Plan) -> bool:
    """Whether not all layers run under the same rung."""
    return len({rung for stage in plan.remat for rung in stage}) > 1


@in_groups
def test_the_small_problems_are_not_too_small(seeds: range) -> None:
    """In each group, so that the tests above cannot become vacuous."""
    plans = [[p.plan for p in points(seed, gap=0.0)] for seed in seeds]

    def share(counts: list[bool]) -> float:
        return sum(counts) / len(seeds)

    assert share([len(front) > 3 for front in plans]) >= 0.6
    assert share([any(p.pp > 1 for p in front) for front in plans]) >= 0.25
    assert share([any(map(mixes_remat, front)) for front in plans]) >= 0.35
    assert share([any(p.tp > 1 for p in front) for front in plans]) >= 0.25
    assert share([any(len(set(p.layers_per_stage)) > 1 for p in front) for front in plans]) >= 0.1


def test_the_small_problems_have_every_feature_of_the_space() -> None:
    """Degrees beside tp, interleaving, ZeRO stages, pods and trees, and no answer at all."""
    plans = [p.plan for seeds in GROUPS for seed in seeds for p in points(seed, gap=0.0)]
    for name in ("dp", "batch_split", "seq_split", "cp", "vpp", "microbatches"):
        assert sum(getattr(p, name) > 1 for p in plans) >= 5, name
    assert {p.reshard for p in plans} == {1, 2, 3}
    assert sum(p.reshard < 3 and p.pp > 1 for p in plans) >= 5
    cases = [case(seed) for seeds in GROUPS for seed in seeds]
    kinds = {(c.problem.cluster.chip.kind, c.problem.cluster.pods) for c in cases}
    assert kinds == {("tpu", 1), ("tpu", 2), ("gpu", 1), ("gpu", 2)}
    assert any(solved(c.instance.seed, 0.0) is None for c in cases)
    assert len(cases) >= 200
    assert len({seed for seeds in (*GROUPS, *FURTHER) for seed in seeds}) >= 1_000
