"""Constraints on what is predicted: which are taken, and that fronts stay the brute-force ones."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from oracle import Cost, Instance, Mesh, brute_front, chips_of, pareto, small_instance

import autoshard
from autoshard.catalog import load_model
from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import Infeasible, SpecError
from autoshard.costmodels.problem import Problem
from autoshard.predicted import Predicted, read_where, split
from autoshard.search.front import Options, Result, solve_front

GIB = 2.0**30
BOOK = autoshard.textbook()
SMALL: dict[str, Any] = {"model": "llama3-8b", "chips": 64, "points": 2}
TINY: dict[str, Any] = {"model": "llama3-8b", "chips": 4, "global_batch_seqs": 64, "points": 2}


def question() -> Problem:
    return Problem(
        model=load_model("llama3-8b"),
        cluster=Cluster.build(autoshard.Chip(**CHIP), chips=64),
    )


CHIP: dict[str, Any] = {
    "name": "ours",
    "kind": "tpu",
    "flops_per_s": {"bf16": 1e15},
    "hbm_bytes": 2**36,
    "hbm_bytes_per_s": 1e12,
    "pod_axes": (64,),
    "ici_bytes_per_s": 1e11,
}


def rows(**columns: list[int]) -> Candidates:
    n = len(next(iter(columns.values())))
    ones = {name: np.ones(n, dtype=np.int64) for name in COLUMNS}
    return Candidates(**ones | {k: np.array(v, dtype=np.int64) for k, v in columns.items()})


def limits(where: str | pl.Expr, **columns: list[int]) -> tuple[list[float], list[float]]:
    """The latest times and the most bytes of some rows."""
    problem = question()
    _, predicted = read_where(where, problem, BOOK)
    assert predicted is not None
    latest_s, most_bytes = predicted(problem, BOOK, rows(**columns))
    return latest_s.tolist(), most_bytes.tolist()


# What a condition means


INF = float("inf")


def test_a_limit_on_time_is_exact_to_the_last_bit() -> None:
    assert limits("step_time_s <= 5", tp=[1, 8]) == ([5.0, 5.0], [INF, INF])
    assert limits("step_time_s < 5", tp=[1])[0] == [np.nextafter(5.0, 0.0)]
    assert limits("5 >= step_time_s and step_time_s < 7", tp=[1])[0] == [5.0]
    assert limits("step_time_s between 0 and 5", tp=[1])[0] == [5.0]
    assert limits(pl.col("step_time_s").le(5.0), tp=[1])[0] == [5.0]
    assert limits("not (step_time_s > 5)", tp=[1])[0] == [5.0]
    assert limits("step_time_s <= 5 and true", tp=[1])[0] == [5.0]


def test_mfu_and_tokens_a_second_are_times() -> None:
    problem = question()
    ideal_s = BOOK.compute.flops_per_step(problem) / problem.peak_flops_per_s
    latest_s, _ = limits("mfu > 0.4", tp=[1, 8])
    assert latest_s == pytest.approx([ideal_s / 0.4, ideal_s / 0.4 / 8], rel=1e-12)
    latest_s, _ = limits("tokens_per_s >= 1e6", tp=[1, 8])
    assert latest_s == pytest.approx([problem.workload.global_batch_tokens / 1e6] * 2, rel=1e-12)


def test_integers_may_decide_about_a_limit() -> None:
    assert limits("tp = 8 or step_time_s <= 5", tp=[1, 8])[0] == [5.0, INF]
    assert limits("step_time_s * tp <= 16", tp=[1, 8])[0] == [16.0, 2.0]
    assert limits("step_time_s <= 5 or step_time_s <= 7 and tp = 8", tp=[1, 8])[0] == [5.0, 7.0]
    assert limits("memory_gib <= 4 * pp and step_time_s <= 5", pp=[1, 3]) == (
        [5.0, 5.0], [4 * GIB, 12 * GIB],
    )  # fmt: skip
    assert limits("tp > 4 and 0 < 1 and memory_bytes <= 1024", tp=[1, 8]) == (
        [INF, INF], [1024.0, 1024.0],
    )  # fmt: skip
    assert limits("tp > 4 and (tp > 6 and memory_gib <= 1 or memory_gib <= 2)", tp=[5, 8])[1] == [
        2 * GIB, 2 * GIB,
    ]  # fmt: skip


def test_a_row_for_which_a_condition_never_holds_is_out() -> None:
    assert limits("tp = 8 and pp = 1 or step_time_s < tp - 1", tp=[1, 2, 8])[0][0] == -INF


def test_a_constraint_is_taken_apart_at_its_and() -> None:
    parts = split(pl.sql_expr("tp = 8 and (pp = 2 or cp = 2) and mfu > 0.4 and dp < 2"), and_)
    assert [part.meta.root_names() for part in parts] == [["tp"], ["pp", "cp"], ["mfu"], ["dp"]]
    endless = " and ".join(["tp >= 1"] * 3000)
    assert len(split(functools.reduce(and_, [pl.col("tp") >= 1] * 300), and_)) == 300
    with pytest.raises(SpecError, match="cannot be read"):
        read_where(endless + " and", question(), BOOK)


def and_(a: Any, b: Any) -> Any:
    return a & b


REFUSED = [
    ("mfu < 0.4", "its condition on mfu does not hold up to some step time"),
    ("step_time_s > 5", "condition on step_time_s does not hold"),
    ("memory_gib >= 40", "condition on memory_gib does not hold up to some memory"),
    ("mfu = 0.4", "condition on mfu does not hold"),
    ("step_time_s != 5.25 and mfu < 3", "predicted columns may only ask for less time"),
    ("step_time_s between 3 and 5", "condition on step_time_s does not hold"),
    ("abs(mfu - 0.4) < 0.1", "condition on mfu does not hold"),
    ("tp = 8 or mfu = 0.4 and mfu < 0.2", "condition on mfu does not hold"),
    ("mfu > 0.4 or memory_gib < 60", "ties time and memory together (mfu, memory_gib); join"),
    ("step_time_s * memory_gib < 60", "ties time and memory together"),
    ("mfu > 0.4 * step_time_s", "holds predicted columns against each other (mfu, step_time_s)"),
    ("mfu > 0.1 * max(tp)", "judges several plans together"),
    ("mfu > 'a'", "--where"),
    ("mfu", "not a condition on each plan"),
    ("mfu > null", "neither true nor false (null)"),
    ("binding = 'compute'", "binding is known only of a plan that is found"),
    ("gap < 0.01 and mfu > 0.4", "gap is known only of a plan that is found"),
    ("mfo > 0.4", "did you mean mfu"),
]


@pytest.mark.parametrize(("where", "words"), REFUSED)
def test_what_cannot_be_proven_is_refused(where: str, words: str) -> None:
    with pytest.raises(SpecError) as refused:
        limits(where, tp=[1, 2])
    assert words in str(refused.value)


def test_a_plan_that_is_found_is_held_against_the_constraint_again() -> None:
    """A hole too narrow for the values that are tried is still no plan that is shown."""
    where = pl.col("step_time_s").map_elements(
        lambda t: not 6.88 < t < 6.90, return_dtype=pl.Boolean
    )
    with pytest.raises(SpecError, match="condition on step_time_s"):
        autoshard.solve(**SMALL, where=where)


# The front


@dataclasses.dataclass(frozen=True)
class Asked:
    """A constraint as text and, for the oracle, as Python."""

    where: str
    keep: Callable[[Mesh], bool]
    keep_cost: Callable[[Mesh, float, float], bool]


def asked(instance: Instance, seed: int) -> Asked:
    """A constraint that cuts through the front of a small problem."""
    problem = instance.problem
    flops = instance.profile.compute.flops_per_step(problem)
    tokens = problem.workload.global_batch_tokens
    front = pareto(brute_front(problem, instance.profile), 1e-7)
    rng = np.random.default_rng(seed)
    time_s = front[int(rng.integers(len(front)))][0] * 1.000123
    size = front[int(rng.integers(len(front)))][1] * 1.000123
    kind = seed % 8

    def mfu(mesh: Mesh, seconds: float) -> float:
        return flops / (seconds * problem.peak_flops_per_s * chips_of(mesh))

    share = flops / (time_s * problem.peak_flops_per_s * problem.cluster.chips)
    every: Callable[[Mesh], bool] = lambda mesh: True  # noqa: E731
    return [
        Asked(f"step_time_s <= {time_s!r}", every, lambda m, t, b: t <= time_s),
        Asked(f"mfu > {share!r}", every, lambda m, t, b: mfu(m, t) > share),
        Asked(
            f"tokens_per_s > {tokens / time_s!r} and memory_gib < {size / GIB!r}",
            every,
            lambda m, t, b: t < time_s and b < size,
        ),
        Asked(
            f"tp = 1 or mfu > {share!r}", every, lambda m, t, b: m["tp"] == 1 or mfu(m, t) > share
        ),
        Asked(f"memory_bytes < {size / 2!r} * pp", every, lambda m, t, b: b < size / 2 * m["pp"]),
        Asked(
            f"chips_used >= 2 and mfu > {1.5 * share!r}",
            lambda m: chips_of(m) >= 2,
            lambda m, t, b: mfu(m, t) > 1.5 * share,
        ),
        Asked(
            f"step_time_s * microbatches < {2 * time_s!r} and memory_bytes <= {size!r}",
            every,
            lambda m, t, b: t * m["microbatches"] < 2 * time_s and b <= size,
        ),
        Asked(
            f"(pp > 1 or memory_bytes <= {size!r}) and (pp = 1 or step_time_s < {time_s!r})",
            every,
            lambda m, t, b: b <= size if m["pp"] == 1 else t < time_s,
        ),
    ][kind]


def options(instance: Instance, where: str, gap: float, **more: Any) -> Options:
    keep, predicted = read_where(where, instance.problem, instance.profile)
    assert isinstance(predicted, Predicted)
    return Options(points=0, gap=gap, keep=keep, limit=predicted, **more)


def solved(instance: Instance, chosen: Options) -> Result | None:
    try:
        return solve_front(instance.problem, instance.profile, chosen)
    except Infeasible:
        return None


@functools.cache
def expected(seed: int) -> tuple[Instance, Asked, list[Cost]]:
    instance = small_instance(seed)
    constraint = asked(instance, seed)
    front = brute_front(
        instance.problem,
        instance.profile,
        keep=constraint.keep,
        keep_cost=constraint.keep_cost,
    )
    return instance, constraint, pareto(front, 1e-7)


GROUPS = [range(start, start + 16) for start in range(0, 64, 16)]
in_groups = pytest.mark.parametrize("seeds", GROUPS, ids=[f"{g[0]}-{g[-1]}" for g in GROUPS])


@in_groups
def test_the_exact_front_is_the_brute_force_front(seeds: range) -> None:
    sizes = []
    for seed in seeds:
        instance, constraint, front = expected(seed)
        result = solved(instance, options(instance, constraint.where, gap=0.0))
        found = [] if result is None else [(p.step_time_s, p.memory_bytes) for p in result.points]
        assert len(found) == len(front), f"seed {seed}: {constraint.where}"
        assert np.allclose(found, front, rtol=1e-6, atol=0.0), f"seed {seed}: {constraint.where}"
        assert result is None or result.complete
        sizes.append(len(found))
    assert sum(size > 1 for size in sizes) > len(sizes) / 4, "the constraints leave something"


@pytest.mark.parametrize("seeds", [range(16), range(16, 32)], ids=["0-15", "16-31"])
def test_with_a_gap_every_point_is_within_the_constraint_and_the_gap(seeds: range) -> None:
    for seed in seeds:
        instance, constraint, front = expected(seed)
        result = solved(instance, options(instance, constraint.where, gap=1e-3))
        points = [] if result is None else result.points
        assert bool(points) == bool(front), f"seed {seed}"
        for seconds, size in front:
            near = [p for p in points if p.memory_bytes <= size * (1.0 + 1e-6)]
            assert near, f"seed {seed}: nothing within {size} bytes"
            best_s = min(p.step_time_s for p in near)
            assert best_s * (1.0 - 1.01e-3) <= seconds, f"seed {seed}"
        for point in points:
            mesh = {name: getattr(point.plan, name) for name in COLUMNS if name != "layout"}
            kept = constraint.keep_cost(mesh, point.step_time_s, point.memory_bytes)
            assert constraint.keep(mesh), f"seed {seed}"
            assert kept, f"seed {seed}"
            assert point.proven, f"seed {seed}"


def test_both_roads_of_the_master_honour_the_constraint() -> None:
    for seed in range(8):
        instance, constraint, _ = expected(seed)
        plain = solved(instance, options(instance, constraint.where, gap=0.0))
        by_model = solved(
            instance,
            options(
                instance, constraint.where, gap=0.0, constrain_master=lambda model, named: None
            ),
        )
        assert (plain is None) == (by_model is None)
        if plain is not None and by_model is not None:
            found, other = (
                [(p.step_time_s, p.memory_bytes) for p in result.points]
                for result in (plain, by_model)
            )
            assert np.allclose(found, other, rtol=1e-6, atol=0.0)


# At the very edge


def test_a_figure_of_an_answer_can_be_given_back_as_a_limit() -> None:
    """With ``<=`` the plan is found again; with ``<`` something better, or nothing, is."""

    instance = small_instance(3)
    problem = instance.problem

    def solve(where: str = "tp >= 1") -> autoshard.ParetoFront:
        return autoshard.solve(
            problem.model,
            cluster=problem.cluster,
            global_batch_seqs=problem.workload.global_batch_seqs,
            seq_len=problem.workload.seq_len,
            recipe=problem.recipe,
            costs=instance.profile,
            points=0,
            gap=0.0,
            where=f"chips_used = {problem.cluster.chips} and {where}",
        )

    front = solve()
    last, fastest = front.points[-3], front.points[0]
    back = solve(f"step_time_s <= {last.step_time_s!r}")
    assert back.points[-1].step_time_s == last.step_time_s
    assert back.points[-1].memory_bytes == last.memory_bytes
    for column in ("step_time_s", "mfu"):
        value = getattr(fastest, column)
        sign = ">" if column == "mfu" else "<"
        same = solve(f"{column} {sign}= {value!r}")
        assert getattr(same.points[0], column) == value
        with pytest.raises(Infeasible):
            solve(f"{column} {sign} {value!r}")
    small = solve(f"memory_bytes <= {last.memory_bytes!r}")
    assert small.points[0].memory_bytes == last.memory_bytes
    smaller = solve(f"memory_bytes < {last.memory_bytes!r}")
    assert smaller.points[0].memory_bytes < last.memory_bytes


# What is said


def test_an_answer_says_its_constraints_and_keeps_them_in_a_file(tmp_path: Any) -> None:
    front = autoshard.solve(**SMALL, where="mfu > 0.9 and tp <= 8", fix={"reshard": 3})
    assert front.problem["where"] == "mfu > 0.9 and tp <= 8"
    assert front.problem["fix"] == {"reshard": 3}
    assert all(point.mfu > 0.9 for point in front.points)
    front.save(tmp_path / "front.json")
    assert autoshard.ParetoFront.load(tmp_path / "front.json") == front


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("mfu > 0.99", r"no plan satisfies --where 'mfu > 0.99': of every plan, the fastest takes "
         r"6.89 s a step \(MFU 93.3 % on 64 chips\) with 3.67 GiB per chip, and the smallest "),
        ("tp = 8 and memory_gib < 0.5", "of every plan that satisfies the rest of it, the fastest"),
        ("tp = 7 and mfu > 0.1", "no plan satisfies .*; tp can be 1, 2, 4, 8, 16, 32"),
        ("tp = 4 and mfu > 0.99 and memory_gib < 60", r"What binds is 'mfu > 0.99' alone\.$"),
    ],
)  # fmt: skip
def test_why_there_is_no_plan(where: str, words: str) -> None:
    with pytest.raises(Infeasible, match=words):
        autoshard.solve(**SMALL, where=where)


def test_what_binds_is_no_longer_in_the_way_at_what_is_said_to_be_there() -> None:
    with pytest.raises(Infeasible) as refused:
        autoshard.solve(**TINY, where="mfu > 0.93 and memory_gib < 19.5", fix={"pp": 1})
    said = re.search(
        r"without 'mfu > 0.93', the fastest takes .* \(MFU (\S+) %\); without 'memory_gib < 19.5', "
        r"(\S+) GiB per chip would do",
        str(refused.value),
    )
    assert said
    mfu, gib = float(said[1]) / 100, float(said[2])
    for where in (
        f"mfu > {mfu - 1e-3} and memory_gib < 19.5",
        f"mfu > 0.93 and memory_gib < {gib + 0.01}",
    ):
        assert autoshard.solve(**{**TINY, "points": 1}, where=where, fix={"pp": 1}).points
    for where in (
        f"mfu > {mfu + 1e-3} and memory_gib < 19.5",
        f"mfu > 0.93 and memory_gib < {gib - 0.01}",
    ):
        with pytest.raises(Infeasible):
            autoshard.solve(**{**TINY, "points": 1}, where=where, fix={"pp": 1})


def test_conditions_on_integers_bind_beside_those_on_costs() -> None:
    words = "What binds is --fix tp=32 and 'mfu > 0.9' together"
    with pytest.raises(Infeasible, match=words):
        autoshard.solve(**SMALL, where="mfu > 0.9 and dp = 1", fix={"tp": 32})


def test_where_nothing_fits_in_memory_that_is_said_and_not_the_condition() -> None:
    with pytest.raises(Infeasible, match="does not fit on"):
        autoshard.solve("llama3-405b", chips=4, where="mfu > 0.1")
