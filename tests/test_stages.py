"""Under one mesh, three methods give one answer; constraints of a user bind in either model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from oracle import Cost, all_plans, brute_front, fastest_within, pareto, plain, small_instance
from random_costs import DiceTable, dice_tables

from autoshard.costmodels.costs import Column
from autoshard.costmodels.errors import Infeasible
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.search.dealing import best_choices, fastest, smallest
from autoshard.search.front import Options, Result, solve_front
from autoshard.search.stage_model import StageModel
from autoshard.search.stages import Choices, stage_memory

#: CP-SAT counts a stage's time in quanta: a part in a million of a small step.
QUANTA = 1e-6

some = settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def every_plan(table: DiceTable, row: int) -> list[tuple[float, float, list[int]]]:
    """Seconds, bytes and layers per stage of every plan of a row, by brute force."""
    costs, held = plain(table.rows.costs, row), table.held(row).tolist()
    return all_plans(costs, held, table.mesh(row), table.rows.n_layers)


def budgets(plans: list[tuple[float, float, list[int]]]) -> Column:
    """Too little for any plan, enough for one, for half of them, and for all."""
    sizes = np.unique([size for _, size, _ in plans])
    return np.array([sizes[0] * 0.99, sizes[0], sizes[len(sizes) // 2], sizes[-1]]) * (1.0 + 1e-12)


def check_fastest(table: DiceTable) -> None:
    """Each method, on each row and budget."""
    for row in range(len(table.rows)):
        stage, plans = table.stage(row), every_plan(table, row)
        for budget in budgets(plans).tolist():
            best = min((t for t, size, _ in plans if size <= budget), default=None)
            dealt = fastest(stage, budget)
            model = StageModel(stage, budget)
            solved, finished = model.solve()
            assert finished
            if best is None:
                assert dealt is None
                assert solved is None
                continue
            assert dealt is not None
            assert dealt.time_s == pytest.approx(best, rel=1e-9)
            assert dealt.memory_bytes <= budget
            assert solved is not None
            assert best * (1.0 - 1e-9) <= solved.time_s <= best * (1.0 + 1e-9) + model.error_s
            assert solved.time_s == pytest.approx(best, rel=QUANTA)
            assert solved.memory_bytes <= budget


@some
@given(dice_tables(rows=3, once=False))
def test_dealing_cp_sat_and_brute_force_agree_on_the_fastest_plan(table: DiceTable) -> None:
    check_fastest(table)


@some
@given(dice_tables(rows=3, once=True))
def test_they_agree_with_work_once_a_step_too(table: DiceTable) -> None:
    check_fastest(table)


@some
@given(dice_tables(rows=3))
def test_the_smallest_plan_within_a_time_is_that_of_brute_force(table: DiceTable) -> None:
    for row in range(len(table.rows)):
        stage, plans = table.stage(row), every_plan(table, row)
        enough = max(size for _, size, _ in plans) * 1.01
        for limit in np.quantile([t for t, _, _ in plans], [0.0, 0.4, 1.0]).tolist():
            limit *= 1.0 + 1e-12
            best = min((size for t, size, _ in plans if t <= limit), default=None)
            leaf = smallest(stage, limit, enough)
            if best is None:
                assert leaf is None
            else:
                assert leaf is not None
                assert leaf.memory_bytes == pytest.approx(best, rel=1e-9)
                assert leaf.time_s <= limit * (1.0 + 1e-9)
        fastest_s = min(t for t, _, _ in plans)
        assert smallest(stage, fastest_s * 0.99, enough) is None


@some
@given(dice_tables(rows=3))
def test_nothing_is_below_a_time_that_no_plan_beats(table: DiceTable) -> None:
    for row in range(len(table.rows)):
        stage, plans = table.stage(row), every_plan(table, row)
        enough = max(size for _, size, _ in plans) * 1.01
        best = min(t for t, _, _ in plans)
        assert fastest(stage, enough, best * 0.999) is None
        below = fastest(stage, enough, best * 1.001)
        assert below is not None
        assert below.time_s == pytest.approx(best, rel=1e-9)


@some
@given(dice_tables(rows=1))
def test_a_constraint_on_layers_holds_and_costs_what_brute_force_says(table: DiceTable) -> None:
    """Feasible without it, dearer or equal with it, infeasible with one that cannot hold."""
    stage, plans = table.stage(0), every_plan(table, 0)
    assume(stage.pp > 1)
    enough = max(size for _, size, _ in plans) * 1.01
    wanted = max(counts[0] for _, _, counts in plans)

    def fix(model: Any, variables: dict[str, Any]) -> None:
        model.add(variables["layers_per_stage"][0] == wanted)

    leaf, finished = StageModel(stage, enough, constrain=fix).solve()
    assert finished
    assert leaf is not None
    assert leaf.rungs[0].sum() == wanted
    best = min(t for t, _, counts in plans if counts[0] == wanted)
    assert leaf.time_s == pytest.approx(best, rel=4 * QUANTA)

    def too_many(model: Any, variables: dict[str, Any]) -> None:
        model.add(variables["layers_per_stage"][0] == wanted + 1)

    assert StageModel(stage, enough, constrain=too_many).solve() == (None, True)


@some
@given(dice_tables(rows=1))
def test_a_constraint_on_remat_holds(table: DiceTable) -> None:
    stage, plans = table.stage(0), every_plan(table, 0)
    enough = max(size for _, size, _ in plans) * 1.01

    def last_rung_alone(model: Any, variables: dict[str, Any]) -> None:
        for stage_rungs in variables["remat"]:
            for run in stage_rungs[:-1]:
                model.add(run == 0)

    leaf, _ = StageModel(stage, enough, constrain=last_rung_alone).solve()
    if len(Choices.of(stage).rungs) and not Choices.of(stage).rungs[:, -1].any():
        assert leaf is None  # another rung beats the last in everything: it is never run
        return
    assert leaf is not None
    assert (leaf.rungs[:, :-1] == 0).all()


# Constraints and roads on whole problems


def times(result: Result) -> list[Cost]:
    """The points as pairs of seconds and bytes."""
    return [(p.step_time_s, p.memory_bytes) for p in result.points]


def question(seed: int) -> tuple[Problem, Profile]:
    """A small problem and the profile that prices it."""
    instance = small_instance(seed)
    return instance.problem, instance.profile


#: Small problems with a pipeline and with tensor parallelism on their fronts.
WITH_PIPELINES = (0, 4, 6)
EXACT = Options(points=0, gap=0.0)


@pytest.mark.parametrize("seed", WITH_PIPELINES)
def test_a_constraint_on_stages_gives_the_brute_force_front_under_it(seed: int) -> None:
    problem, profile = question(seed)
    free = brute_front(problem, profile)

    def one_first(model: Any, variables: dict[str, Any]) -> None:
        model.add(variables["layers_per_stage"][0] == 1)

    options = Options(points=0, gap=0.0, constrain_stages=one_first)
    bound = pareto(brute_front(problem, profile, keep_layers=lambda n: n[0] == 1), 1e-7)
    assert bound != free
    result = solve_front(problem, profile, options)
    assert np.allclose(times(result), bound, rtol=4 * QUANTA, atol=0.0)
    assert all(p.plan.layers_per_stage[0] == 1 for p in result.points)


def test_a_constraint_on_stages_that_nothing_meets_is_infeasible() -> None:
    problem, profile = question(0)

    def too_many(model: Any, variables: dict[str, Any]) -> None:
        model.add(variables["layers_per_stage"][0] == problem.model.n_layers + 1)

    with pytest.raises(Infeasible):
        solve_front(problem, profile, Options(constrain_stages=too_many))


@pytest.mark.parametrize("seed", WITH_PIPELINES)
def test_a_constraint_on_the_master_gives_the_brute_force_front_under_it(seed: int) -> None:
    problem, profile = question(seed)

    def two_stages(model: Any, variables: dict[str, Any]) -> None:
        model.add(variables["pp"] == 2)

    options = Options(points=0, gap=0.0, constrain_master=two_stages)
    bound = pareto(brute_front(problem, profile, keep=lambda mesh: mesh["pp"] == 2), 1e-7)
    result = solve_front(problem, profile, options)
    assert np.allclose(times(result), bound, rtol=4 * QUANTA, atol=0.0)
    assert {p.plan.pp for p in result.points} == {2}
    free = brute_front(problem, profile)
    assert any(fastest_within(free, size) < t * 0.999 for t, size in bound)


def test_a_constraint_on_the_master_that_nothing_meets_is_infeasible() -> None:
    problem, profile = question(0)

    def no_such_degree(model: Any, variables: dict[str, Any]) -> None:
        model.add(variables["tp"] == 97)

    with pytest.raises(Infeasible):
        solve_front(problem, profile, Options(constrain_master=no_such_degree))


@pytest.mark.parametrize("seed", [*WITH_PIPELINES, 1, 2, 7, 10])
def test_the_cp_sat_master_and_the_argmin_give_the_same_front(seed: int) -> None:
    """A master constraint that holds everywhere takes the other road."""
    problem, profile = question(seed)

    def nothing(model: Any, variables: dict[str, Any]) -> None:
        model.add(variables["fsdp"] >= 1)

    other = Options(points=0, gap=0.0, constrain_master=nothing)
    expected = times(solve_front(problem, profile, EXACT))
    assert np.allclose(times(solve_front(problem, profile, other)), expected, rtol=QUANTA, atol=0)


@pytest.mark.parametrize("seed", WITH_PIPELINES)
def test_a_constraint_on_candidates_is_the_same_as_one_on_the_master(seed: int) -> None:
    problem, profile = question(seed)

    def two_stages(model: Any, variables: dict[str, Any]) -> None:
        model.add(variables["pp"] == 2)

    kept = Options(points=0, gap=0.0, keep=lambda candidates: candidates.pp == 2)
    mastered = Options(points=0, gap=0.0, constrain_master=two_stages)
    expected = times(solve_front(problem, profile, kept))
    found = times(solve_front(problem, profile, mastered))
    assert np.allclose(found, expected, rtol=QUANTA, atol=0.0)


def test_the_handler_of_ctrl_c_is_the_same_after_a_solve() -> None:
    problem, profile = question(0)

    def handler(number: int, frame: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGINT, handler)
    try:
        solve_front(problem, profile, Options(points=3))
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_search_with_the_points_so_far() -> None:
    problem, profile = question(0)
    said: list[str] = []

    def interrupt(message: str) -> None:
        said.append(message)
        if "2 points" in message:
            raise KeyboardInterrupt

    result = solve_front(problem, profile, Options(points=0, progress=interrupt))
    assert not result.complete
    assert len(result.points) == 2
    assert all(p.proven for p in result.points)
    assert ["incumbent" in message for message in said[-4:]] == [True, True, False, False]


def answer(seed: int) -> list[Any]:
    """Everything that a caller sees of a front."""
    problem, profile = question(seed)
    result = solve_front(problem, profile, Options())
    return [
        [p.step_time_s, p.memory_bytes, p.lower_bound_s, p.row, p.plan.to_dict()]
        for p in result.points
    ]


def test_the_same_question_has_the_same_answer_in_this_process_and_in_another() -> None:
    """Plans and all, with another hash seed."""
    here = json.loads(json.dumps(answer(0)))
    assert json.loads(json.dumps(answer(0))) == here
    tests = Path(__file__).parent
    script = "import json, test_stages; print(json.dumps(test_stages.answer(0)))"
    paths = [str(tests), str(tests.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    there = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONHASHSEED": "4711", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(there.stdout) == here


@settings(max_examples=100, derandomize=True, deadline=None)
@given(dice_tables())
def test_a_choice_fits_a_budget_of_exactly_its_own_bytes(table: DiceTable) -> None:
    stage = table.stage(0)
    choices = Choices.of(stage)
    for s in range(stage.pp):
        for choice, size in enumerate(stage_memory(stage, choices, s).tolist()):
            number = int(np.searchsorted(choices.numbers, choices.layers[choice]))
            may = choices.layers[choice] >= stage.fewest[s]
            assert (best_choices(stage, choices, size)[s, number] >= 0) == may
