"""Under each restriction of a framework, the search finds the front that brute force finds."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from oracle import (
    Cost,
    Mesh,
    all_plans,
    brute_front,
    columns,
    judge,
    legal_meshes,
    mesh_of,
    pareto,
    plain,
    remat_settings,
    rungs_of,
    small_instance,
)
from random_costs import DiceTable, dice_tables

from autoshard.costmodels.errors import Infeasible
from autoshard.costmodels.legality import REMAT, Legality, Rule
from autoshard.search import bounds, families
from autoshard.search.budget_floors import BudgetFloors
from autoshard.search.front import Options, Result, solve_front
from autoshard.search.rows import price_rows
from autoshard.search.stage_model import StageModel
from autoshard.search.stages import Leaf, Stage
from autoshard.search.stagewise import StageFloors, smallest_bytes

SAME = 1e-6
#: Each way in which frameworks restrict stages, and small problems to try it on.
CASES = [
    (remat, equal, seeds)
    for remat in REMAT
    for equal in (False, True)
    if (remat, equal) != ("by-stage", False)
    for seeds in (range(24), range(24, 48))
]
in_cases = pytest.mark.parametrize(
    ("remat", "equal", "seeds"),
    CASES,
    ids=[f"{r}-{'equal' if e else 'uneven'}-{s[0]}" for r, e, s in CASES],
)

EQUAL = Rule(
    name="equal",
    sentence="pp * vpp = {pp} * {vpp} does not divide {model.n_layers}",
    source="a test",
    allows=lambda p, c: p.model.n_layers % (c.pp * c.vpp) == 0,
    late=True,
)
#: A rule on degrees, so that pruning sees both kinds.
FEW = Rule(
    name="few",
    sentence="tp = {tp}",
    source="a test",
    allows=lambda p, c: (c.tp <= 2) & (c.cp == 1),
)


@dataclass(frozen=True, slots=True)
class Restricted:
    """A framework that restricts as much, in the search's words and in those of brute force."""

    legality: Legality

    @classmethod
    def of(cls, remat: str, equal: bool, few: bool) -> Restricted:
        rules = (*([EQUAL] if equal else []), *([FEW] if few else []))
        return cls(Legality(framework="it", remat=remat, equal_stages=equal, rules=rules))

    def mesh(self, layers: int, mesh: Mesh) -> bool:
        few = FEW not in self.legality.rules or (mesh["tp"] <= 2 and mesh["cp"] == 1)
        equal = not self.legality.equal_stages or layers % (mesh["pp"] * mesh["vpp"]) == 0
        return few and equal

    def counts(self, counts: list[int]) -> bool:
        return not self.legality.equal_stages or len(set(counts)) == 1


@functools.cache
def expected(seed: int, remat: str, equal: bool) -> tuple[Cost, ...]:
    instance = small_instance(seed)
    framework = Restricted.of(remat, equal, few=seed % 3 == 0)
    layers = instance.problem.model.n_layers
    front = brute_front(
        instance.problem,
        instance.profile,
        keep=lambda mesh: framework.mesh(layers, mesh),
        keep_layers=framework.counts,
        remat=remat,
    )
    return tuple(pareto(front, 1e-7))


@functools.cache
def solved(seed: int, remat: str, equal: bool) -> Result:
    instance = small_instance(seed)
    legality = Restricted.of(remat, equal, few=seed % 3 == 0).legality
    profile = instance.profile.under(legality)
    return solve_front(instance.problem, profile, Options(points=0, gap=0.0))


@in_cases
def test_the_front_is_the_brute_force_front_point_for_point(
    remat: str, equal: bool, seeds: range
) -> None:
    for seed in seeds:
        found = [(p.step_time_s, p.memory_bytes) for p in solved(seed, remat, equal).points]
        front = expected(seed, remat, equal)
        assert len(found) == len(front), f"seed {seed}"
        assert np.allclose(found, front, rtol=SAME, atol=0.0), f"seed {seed}"


@in_cases
def test_every_point_can_be_stated_and_costs_what_it_says(
    remat: str, equal: bool, seeds: range
) -> None:
    for seed in seeds:
        instance, result = small_instance(seed), solved(seed, remat, equal)
        legality = Restricted.of(remat, equal, few=seed % 3 == 0).legality
        for point in result.points:
            mesh = mesh_of(point.plan, int(result.rows.candidates.layout[point.row]))
            rungs = rungs_of(point.plan, instance.profile)
            judged = judge(instance.problem, instance.profile, mesh, rungs)
            assert judged == pytest.approx((point.step_time_s, point.memory_bytes), rel=1e-9)
            assert not list(legality.stage_reasons(point.plan, instance.profile.ladder))
            ways = remat_settings(
                remat, instance.problem.model.n_layers, len(rungs[0]), mesh["vpp"]
            )
            assert any(all(dealt in way(sum(dealt)) for dealt in rungs) for way in ways)


COUNTED = Rule(
    name="counted",
    sentence="pp = {pp}",
    source="a test",
    allows=lambda p, c: (
        (p.model.n_layers % (c.pp * c.vpp) == 0)
        | ((c.vpp == 1) & ((p.model.n_layers + 2) % c.pp == 0))
    ),
    late=True,
)


@pytest.mark.parametrize("remat", ["one-count", "one-policy"])
def test_lighter_ends_make_the_front_of_brute_force(remat: str) -> None:
    """As ``partition_method=type:transformer|embedding`` deals 70 layers to 12 stages."""
    lighter = 0
    legality = Legality(
        framework="it", remat=remat, equal_stages=True, counted_ends=True, rules=(COUNTED,)
    )

    def counts(dealt: list[int]) -> bool:
        ends = len(dealt) > 2 and dealt == [dealt[1] - 1, *dealt[1:2] * (len(dealt) - 2), dealt[0]]
        return ends or len(set(dealt)) == 1

    for seed in range(24):
        instance = small_instance(seed)
        layers = instance.problem.model.n_layers

        def mesh(m: Mesh, layers: int = layers) -> bool:
            equal = layers % (m["pp"] * m["vpp"]) == 0
            return equal or (m["vpp"] == 1 and (layers + 2) % m["pp"] == 0)

        front = pareto(
            brute_front(instance.problem, instance.profile, mesh, counts, remat=remat), 1e-7
        )
        result = solve_front(
            instance.problem, instance.profile.under(legality), Options(points=0, gap=0.0)
        )
        found = [(p.step_time_s, p.memory_bytes) for p in result.points]
        assert len(found) == len(front), f"seed {seed}"
        assert np.allclose(found, front, rtol=SAME, atol=0.0), f"seed {seed}"
        lighter += sum(len(set(p.plan.layers_per_stage)) > 1 for p in result.points)
    assert lighter >= 3


def test_the_restrictions_bind_in_many_of_the_small_problems() -> None:
    def front(seed: int, remat: str, equal: bool) -> list[Cost]:
        return [(p.step_time_s, p.memory_bytes) for p in solved(seed, remat, equal).points]

    seeds = range(48)
    policies = sum(front(s, "one-policy", False) != front(s, "one-count", False) for s in seeds)
    stages = sum(front(s, "one-policy", False) != front(s, "one-policy", True) for s in seeds)
    assert policies >= 12
    assert stages >= 3
    plans = [p.plan for s in seeds for p in solved(s, "one-count", False).points]
    assert sum(p.pp > 1 and any(len(stage) > 1 for stage in p.remat) for p in plans) >= 6


def test_one_mesh_with_chunks_is_answered_as_brute_force_answers_it() -> None:
    """Interleaved plans are seldom on the fronts above."""
    tried = 0
    for seed in range(48):
        instance = small_instance(seed)
        problem, layers = instance.problem, instance.problem.model.n_layers
        for mesh in [m for m in legal_meshes(problem) if m["vpp"] > 1 and m["dp"] == 1][:2]:
            rows = price_rows(problem, instance.profile, columns([mesh]))
            held = instance.profile.pipeline.in_flight(
                mesh["pp"], mesh["vpp"], mesh["microbatches"]
            )
            stage = Stage.of(rows, 0, held)
            ways = remat_settings("one-count", layers, len(stage.saved), mesh["vpp"])
            costs = plain(rows.costs, 0)
            plans = [p for way in ways for p in all_plans(costs, held.tolist(), mesh, layers, way)]
            for size in sorted({size for _, size, _ in plans})[::3]:
                leaf = families.fastest(stage, Legality(remat="one-count"), size * (1 + 1e-9))
                assert leaf is not None
                least_s = min(time_s for time_s, used, _ in plans if used <= size * (1 + 1e-9))
                assert leaf.time_s == pytest.approx(least_s, rel=1e-9)
                tried += 1
    assert tried >= 50


def _stage(table: DiceTable, row: int) -> Stage:
    c = table.rows.candidates
    held = table.profile.pipeline.in_flight(
        int(c.pp[row]), int(c.vpp[row]), int(c.microbatches[row])
    )
    return Stage.of(table.rows, row, held)


def _budgets(table: DiceTable, row: int) -> list[float]:
    _, sizes = bounds.uniform_plans(table.rows)
    low, high = float(sizes[row].min()), float(sizes[row].max())
    # Off the sizes of plans, which two sums of floats may reach in another order.
    return [
        low * 0.7,
        low * 1.000001,
        low * 1.1,
        0.500001 * (low + high),
        high * 1.000001,
        2 * high,
    ]


@settings(max_examples=40, deadline=None)
@given(table=dice_tables())
@pytest.mark.parametrize("remat", ["one-count", "one-policy"])
@pytest.mark.parametrize("equal", [False, True])
def test_no_statable_plan_of_a_row_is_below_its_floors(
    table: DiceTable, remat: str, equal: bool
) -> None:
    legality = Legality(remat=remat, equal_stages=equal)
    profile = replace(table.profile, legality=legality)
    for row in range(len(table.rows)):
        stage = _stage(table, row)
        if equal and stage.n_layers % (stage.pp * stage.vpp):
            continue
        one = table.rows.take(np.array([row]))
        least = smallest_bytes(one, profile)[0]
        for budget in _budgets(table, row):
            leaf = families.fastest(stage, legality, budget)
            if leaf is None:
                continue
            assert least <= leaf.memory_bytes * (1 + 1e-9)
            for floor in (
                BudgetFloors.of(one, remat).time_s(budget)[0],
                StageFloors(one, profile).time_s(np.array([0]), budget)[0],
            ):
                assert floor <= leaf.time_s * (1 + 1e-9), (row, budget)


@settings(max_examples=25, deadline=None)
@given(table=dice_tables())
@pytest.mark.parametrize("remat", ["one-count", "one-policy"])
def test_cp_sat_and_families_agree(table: DiceTable, remat: str) -> None:
    legality = Legality(remat=remat)
    stage = _stage(table, 0)
    for budget in _budgets(table, 0):
        model = StageModel(stage, budget, legality=legality)
        other, finished = model.solve()
        leaf: Leaf | None = families.fastest(stage, legality, budget)
        assert finished
        assert (leaf is None) == (other is None)
        if leaf is not None and other is not None:
            assert abs(leaf.time_s - other.time_s) <= model.error_s + leaf.time_s * 1e-9
            # Ties in time are sums of floats in another order.
            smallest = families.smallest(stage, legality, leaf.time_s * (1 + 1e-9), budget)
            assert smallest is not None
            assert smallest.time_s <= leaf.time_s * (1 + 1e-9)
            below = smallest.memory_bytes * (1 - 1e-9)
            assert families.fastest(stage, legality, below, leaf.time_s * (1 + 1e-10)) is None


def test_a_user_constraint_on_stages_is_kept_beside_the_framework_s() -> None:
    """All layers of the last stage on the last rung: then all layers of every stage are."""
    instance = small_instance(2)
    legality = Legality(remat="one-policy")

    def last_alone(model: object, named: dict[str, list[list[object]]]) -> None:
        for run in named["remat"][-1][:-1]:
            model.add(run == 0)  # type: ignore[attr-defined]

    result = solve_front(
        instance.problem,
        instance.profile.under(legality),
        Options(points=1, constrain_stages=last_alone),
    )
    name = instance.profile.ladder[-1].name
    assert all(set(stage) == {name} for stage in result.points[0].plan.remat)


def test_no_plan_at_all_is_said() -> None:
    nothing = Rule(name="nothing", sentence="no", source="a test", allows=lambda p, c: c.dp > 10**9)
    instance = small_instance(0)
    with pytest.raises(Infeasible):
        solve_front(instance.problem, instance.profile.under(Legality(rules=(nothing,))), Options())
