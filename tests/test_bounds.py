"""Bounds are bounds: no plan of a row is faster or smaller, and the upper bounds are real plans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from oracle import (
    all_plans,
    columns,
    holds_chunks,
    legal_meshes,
    plain,
    small_instance,
    stage_layers,
)
from ortools.sat.python import cp_model
from random_costs import DiceTable, check_unpriced, dice_tables

from autoshard.costmodels.candidates import COLUMNS
from autoshard.costmodels.costs import Column
from autoshard.costmodels.schedules import SCHEDULES, scheduled
from autoshard.search import bounds
from autoshard.search.budget_floors import BudgetFloors
from autoshard.search.floors import mesh_floors
from autoshard.search.master import RESOLUTION, MasterModel
from autoshard.search.prune import Staircase
from autoshard.search.rows import Rows, price_rows
from autoshard.search.space import expand, meshes
from autoshard.search.stage_model import StageModel
from autoshard.search.stagewise import StageFloors, smallest_bytes

#: Float noise of sums in another order.
NOISE = 1e-9

many = settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def every_plan(table: DiceTable, row: int) -> tuple[Column, Column]:
    """Seconds and bytes of every plan of a row, by brute force."""
    mesh, held = table.mesh(row), table.held(row).tolist()
    found = all_plans(plain(table.rows.costs, row), held, mesh, table.rows.n_layers)
    return np.array([t for t, _, _ in found]), np.array([b for _, b, _ in found])


def some_budgets(sizes: Column) -> Column:
    """Budgets from below the smallest plan to above the largest, plans' own sizes among them."""
    own = np.unique(sizes)
    return np.concatenate([[own[0] * 0.9], own[:: max(len(own) // 6, 1)], [own[-1] * 1.1]])


#: Tables that a run goes through, of so many rows each.
TABLES, ROWS = 2_520, 4
#: Seeds of hypothesis, a part of the tables each, so that cores share them.
PARTS = 6


def cases_below_every_bound(part: int) -> int:
    """Hold each relaxation against every plan of generated rows; returns how many rows."""
    counted = 0

    @settings(
        max_examples=TABLES // PARTS,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @seed(part)
    @given(dice_tables(rows=ROWS))
    def run(table: DiceTable) -> None:
        nonlocal counted
        plans = [every_plan(table, row) for row in range(len(table.rows))]
        check_time_floors(table, plans)
        check_memory_floors(table, plans)
        counted += len(plans)

    run()
    return counted


def check_time_floors(table: DiceTable, plans: list[tuple[Column, Column]]) -> None:
    """No plan is faster than the floor, whatever the budget; nearer floors are no lower."""
    rows = table.rows
    free = bounds.time_floor_s(rows)
    for row, (seconds, _) in enumerate(plans):
        assert free[row] <= seconds.min() * (1.0 + NOISE)
    # Of each row its smallest plan, one in the middle and its largest; the others join in.
    for share in (0.0, 0.5, 1.0):
        own = np.array([np.quantile(sizes, share, method="lower") for _, sizes in plans])
        within = BudgetFloors.of(rows).time_s(own)
        for row, (seconds, sizes) in enumerate(plans):
            assert free[row] * (1.0 - NOISE) <= within[row]
            assert within[row] <= seconds[sizes <= own[row]].min() * (1.0 + NOISE)
        for budget in {float(own[0]), float(own[-1]) * (1.0 - NOISE)}:
            fractional = BudgetFloors.of(rows).time_s(budget)
            whole = StageFloors(rows, table.profile).time_s(np.arange(len(rows)), budget)
            for row, (seconds, sizes) in enumerate(plans):
                best = seconds[sizes <= budget].min(initial=np.inf)
                assert max(fractional[row], whole[row]) <= best * (1.0 + NOISE)


def check_memory_floors(table: DiceTable, plans: list[tuple[Column, Column]]) -> None:
    """No plan is smaller than the floor, whatever the time; whole layers give the smallest."""
    floor = bounds.memory_floor_bytes(table.rows)
    least = smallest_bytes(table.rows, table.profile)
    capacity = max(float(sizes.max()) for _, sizes in plans)
    limit = float(np.median(np.concatenate([seconds for seconds, _ in plans])))
    within = BudgetFloors.of(table.rows).memory_bytes(limit * (1.0 + NOISE), capacity)
    for row, (seconds, sizes) in enumerate(plans):
        assert floor[row] <= sizes.min() * (1.0 + NOISE)
        assert least[row] == pytest.approx(sizes.min(), rel=NOISE)
        best = sizes[seconds <= limit].min(initial=np.inf)
        assert within[row] <= best * (1.0 + NOISE)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_plan_of_ten_thousand_rows_beats_a_relaxation(part: int) -> None:
    counted = cases_below_every_bound(part)
    assert counted * PARTS >= 10_000


@many
@given(dice_tables())
def test_no_plan_within_a_budget_is_faster_than_the_floor_of_whole_layers(
    table: DiceTable,
) -> None:
    """At all the budgets of one row, where rows above are tried at a few."""
    seconds, sizes = every_plan(table, 0)
    floors = StageFloors(table.rows, table.profile)
    for budget in some_budgets(sizes):
        floor = floors.time_s(np.array([0]), float(budget))[0]
        best = seconds[sizes <= budget].min(initial=np.inf)
        assert floor <= best * (1.0 + NOISE)


@many
@given(dice_tables(rows=2))
def test_no_plan_within_a_time_is_smaller_than_the_floor_within_it(table: DiceTable) -> None:
    plans = [every_plan(table, row) for row in range(len(table.rows))]
    capacity = max(float(sizes.max()) for _, sizes in plans)
    limits = np.quantile(np.concatenate([seconds for seconds, _ in plans]), [0.02, 0.3, 1.0])
    for limit in limits.tolist():
        floor = BudgetFloors.of(table.rows).memory_bytes(limit * (1.0 + NOISE), capacity)
        for row, (seconds, sizes) in enumerate(plans):
            best = sizes[seconds <= limit].min(initial=np.inf)
            assert floor[row] <= best * (1.0 + NOISE)


@many
@given(dice_tables())
def test_a_uniform_plan_is_a_plan_and_no_better_than_it_is_said_to_be(table: DiceTable) -> None:
    """Layers are dealt evenly; leftovers go to middle stages, then the last, then the first."""
    seconds, sizes = bounds.uniform_plans(table.rows)
    for row in range(len(table.rows)):
        mesh, stage = table.mesh(row), table.stage(row)
        floor, extra = divmod(table.rows.n_layers, mesh["pp"])
        order = [*range(1, mesh["pp"] - 1), mesh["pp"] - 1, 0]
        counts = np.full(mesh["pp"], floor)
        counts[order[:extra]] += 1
        for rung in range(seconds.shape[1]):
            if not holds_chunks(counts.tolist(), mesh["vpp"]):
                assert np.isinf(seconds[row, rung])
                continue
            rungs = np.zeros((mesh["pp"], seconds.shape[1]), dtype=np.int64)
            rungs[:, rung] = counts
            time_s, memory = stage.evaluate(rungs)
            assert time_s == pytest.approx(seconds[row, rung], rel=NOISE)
            assert memory <= sizes[row, rung] * (1.0 + NOISE)


@many
@given(dice_tables())
def test_a_stage_judges_a_plan_as_the_formulas_say(table: DiceTable) -> None:
    """Also where forms that can never be the longest were dropped."""
    rungs_of_ladder = len(table.profile.ladder)
    rng = np.random.default_rng(table.rows.n_layers)
    for row in range(len(table.rows)):
        mesh, stage = table.mesh(row), table.stage(row)
        plans = set(zip(*map(tuple, every_plan(table, row)), strict=True))
        dealings = list(stage_layers(table.rows.n_layers, mesh["pp"], mesh["vpp"]))
        counts = dealings[rng.integers(len(dealings))]
        rungs = np.zeros((mesh["pp"], rungs_of_ladder), dtype=np.int64)
        for s, count in enumerate(counts):
            rungs[s, 0] = rng.integers(count + 1)
            rungs[s, -1] += count - rungs[s, 0]
        judged = np.array(stage.evaluate(rungs))
        assert any(np.allclose(judged, plan, rtol=NOISE, atol=0.0) for plan in plans)


# Costs as integers


@many
@given(dice_tables(rows=1))
def test_rounding_to_quanta_costs_less_than_the_stated_error(table: DiceTable) -> None:
    """The solver's own objective: never below the true optimum, above it by less than it says."""
    seconds, sizes = every_plan(table, 0)
    stage = table.stage(0)
    for budget in np.quantile(sizes, [0.0, 0.5, 1.0], method="lower") * (1.0 + 1e-12):
        model = StageModel(stage, float(budget))
        solver = cp_model.CpSolver()
        # Left on, a solve leaves the process's SIGINT action at "kill".
        solver.parameters.catch_sigint_signal = False
        solver.parameters.num_workers = 1
        assert solver.solve(model.model) == cp_model.OPTIMAL
        found_s = solver.objective_value * model.unit_s / model.scale
        best = float(seconds[sizes <= budget].min())
        assert best * (1.0 - NOISE) <= found_s <= best * (1.0 + NOISE) + model.error_s
        assert solver.objective_value == solver.best_objective_bound
        assert solver.objective_value < 2**53
        assert model.error_s <= 1e-5 * float(seconds[sizes <= budget].max())


@many
@given(dice_tables(), st.lists(st.floats(1e-6, 1e6), min_size=4, max_size=4))
def test_the_master_takes_a_row_that_is_least_to_a_part_in_a_billion_of_the_largest(
    table: DiceTable, values: list[float]
) -> None:
    master, lower = MasterModel(table.rows), np.array(values)
    for out in range(len(values)):
        row = master.best(lower)
        assert row is not None
        finite = lower[np.isfinite(lower)]
        assert lower[row] <= finite.min() + finite.max() / RESOLUTION * (1.0 + NOISE)
        lower[out] = np.inf
    assert master.best(lower) is None


# The textbook's own rows


def textbook_rows(seed: int) -> Rows:
    """Every row of a small problem, priced by the textbook."""
    instance = small_instance(seed)
    table = columns(list(legal_meshes(instance.problem)))
    return price_rows(instance.problem, instance.profile, table)


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_textbook_rows_lie_between_their_bounds(seed: int) -> None:
    instance, rows = small_instance(seed), textbook_rows(seed)
    table = DiceTable(problem=instance.problem, profile=instance.profile, rows=rows)
    time_floor, memory_floor = bounds.time_floor_s(rows), bounds.memory_floor_bytes(rows)
    least = smallest_bytes(rows, instance.profile)
    plan_s, plan_bytes = bounds.uniform_plans(rows)
    for row in range(len(rows)):
        seconds, sizes = every_plan(table, row)
        assert time_floor[row] <= seconds.min() * (1.0 + NOISE)
        assert memory_floor[row] <= sizes.min() * (1.0 + NOISE)
        assert least[row] == pytest.approx(sizes.min(), rel=NOISE)
        budget = float(np.median(sizes))
        floor = BudgetFloors.of(rows.take(np.array([row]))).time_s(budget)[0]
        assert floor <= seconds[sizes <= budget].min() * (1.0 + NOISE)
        for time_s, size in zip(plan_s[row], plan_bytes[row], strict=True):
            if np.isfinite(time_s):
                assert seconds[sizes <= size * (1.0 + NOISE)].min() <= time_s * (1.0 + NOISE)


@pytest.mark.parametrize("seed", range(100))
def test_the_floors_of_a_mesh_are_below_those_of_each_row_it_expands_to(seed: int) -> None:
    """Under any schedule: those with a smaller bubble than 1F1B's included."""
    instance = small_instance(seed)
    problem = instance.problem
    profile = scheduled(instance.profile, list(SCHEDULES)[seed % len(SCHEDULES)])
    table = meshes(problem)
    floors = mesh_floors(problem, profile, table)
    candidates, mesh = expand(problem, table, virtual=profile.virtual)
    rows = price_rows(problem, profile, candidates)
    assert len(table)
    assert set(mesh.tolist()) == set(range(len(table)))
    time_s, memory = bounds.time_floor_s(rows), bounds.memory_floor_bytes(rows)
    assert (floors.least_s[mesh] <= time_s * (1.0 + NOISE)).all()
    assert (floors.memory_bytes[mesh] <= memory * (1.0 + NOISE)).all()
    check_unpriced(problem, profile, candidates, mesh, floors)


@pytest.mark.parametrize("seed", range(100))
def test_the_declared_space_is_what_its_rules_say(seed: int) -> None:
    """No row more and none less than plain loops over the rules give, each once."""
    problem = small_instance(seed).problem
    candidates, _ = expand(problem, meshes(problem))
    counted = sorted(
        tuple(int(getattr(candidates, name)[row]) for name in COLUMNS)
        for row in range(len(candidates))
    )
    assert counted == sorted(
        tuple(mesh[name] for name in COLUMNS) for mesh in legal_meshes(problem)
    )


@pytest.mark.parametrize("seed", range(100))
def test_splitting_a_microbatch_is_never_cheaper_in_the_textbook(seed: int) -> None:
    """Each cost of a microbatch is subadditive: the pieces together cost at least the whole."""
    instance = small_instance(seed)
    whole = meshes(instance.problem)
    costs = instance.profile.price(instance.problem, whole)
    for pieces in range(2, int(whole.micro_batch_size.max()) + 1):
        picked = np.nonzero(whole.micro_batch_size % pieces == 0)[0]
        if not len(picked):
            continue
        split = whole.take(picked)
        split = split.replace(
            micro_batch_size=split.micro_batch_size // pieces,
            microbatches=split.microbatches * pieces,
        )
        cut, full = instance.profile.price(instance.problem, split), costs.take(picked)
        for place in ("layer", "embedding", "head"):
            for name in ("forward_s", "backward_s"):
                small, large = getattr(cut, name)[place], getattr(full, name)[place]
                assert (pieces * small >= large * (1.0 - NOISE)).all()
            assert (cut.state_bytes[place] == full.state_bytes[place]).all()
        layers = cut.layer_backward_s
        assert (pieces * layers >= full.layer_backward_s * (1.0 - NOISE)).all()
        assert (pieces * cut.send_s >= full.send_s * (1.0 - NOISE)).all()
        assert (cut.saved_bytes <= full.saved_bytes * (1.0 + NOISE)).all()


def test_a_staircase_answers_with_the_fastest_plan_that_is_no_larger() -> None:
    rng = np.random.default_rng(0)
    stairs, seconds, sizes = Staircase(), np.zeros(0), np.zeros(0)
    assert np.isinf(stairs.least_time_s(np.array([1.0]))).all()
    for _ in range(20):
        more_s, more_bytes = rng.integers(1, 30, (2, 10)).astype(np.float64)
        more_s[0] = np.inf
        stairs.add(more_s, more_bytes)
        seconds, sizes = np.append(seconds, more_s), np.append(sizes, more_bytes)
        budgets = np.arange(0.0, 32.0)
        expected = [seconds[sizes <= budget].min(initial=np.inf) for budget in budgets]
        assert stairs.least_time_s(budgets).tolist() == expected
