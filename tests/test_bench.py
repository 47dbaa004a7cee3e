"""Published runs are priced as the search prices plans; a fit finds the constants behind them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest

from autoshard.bench import Bench
from autoshard.catalog import load_chip, load_model
from autoshard.costmodels.calibrated import calibrated
from autoshard.costmodels.calibration import Calibration
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.constants import Fitted, prior
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.stack import stack_by_name
from autoshard.costmodels.workload import Workload
from autoshard.fitting import Fit, fit
from autoshard.run_parts import one_candidate
from autoshard.runs import Run, load_runs
from autoshard.search.check import broken_rules, judge

RUNS = load_runs()[0]


def moved(kinds: dict[str, str]) -> Fitted:
    """Every constant away from its prior, up or down, as far as one standard deviation."""
    values = {}
    for number, (key, kind) in enumerate(kinds.items()):
        known = prior(key, kind)
        value = known.value * max(known.spread, 1.05) ** (1.0 if number % 2 else -1.0)
        values[key] = min(max(value, known.least), known.most)
    return Fitted(values=values)


# What Bench prices


def even_plan(run: Run) -> Plan:
    """The run's mesh with its layers dealt evenly, lighter ends, on the only rung of the run."""
    degrees: dict[str, Any] = {
        name: int(getattr(run.candidates, name)[0])
        for name in Plan.__dataclass_fields__
        if hasattr(run.candidates, name)
    }
    pp, layers = degrees["pp"], run.problem.model.n_layers
    floor, extra = divmod(layers, pp)
    counts = [floor] * pp
    for stage in [*range(1, pp - 1), pp - 1, 0][:extra]:
        counts[stage] += 1
    (rung,) = run.remat
    return Plan(
        **degrees,
        layers_per_stage=tuple(counts),
        remat=tuple({rung: count} for count in counts),
    )


def judged_runs() -> list[Run]:
    """Runs whose even plan the space allows: one of each stack, chip, schedule and rung.

    With a layer in every chunk: the bench counts no chunk that has none.
    """
    chosen: dict[object, Run] = {}
    for run in RUNS:
        plan = even_plan(run) if len(run.remat) == 1 else None
        if plan is None or broken_rules(run.problem, plan):
            continue
        if min(plan.layers_per_stage) < plan.vpp:
            continue
        c, chip = run.candidates, run.problem.cluster.chip
        shape = [int(column[0]) > 1 for column in (c.tp, c.pp, c.vpp, c.cp, c.seq_split, c.dp)]
        kind = (run.stack, chip.name, run.problem.workload.precision, *shape, *run.remat)
        chosen.setdefault(repr(kind), run)
    return list(chosen.values())


@pytest.mark.parametrize(
    "fitted", [Fitted(values={}), moved(Bench.of(RUNS).kinds)], ids=["priors", "moved"]
)
def test_a_run_takes_as_long_as_the_judge_says_of_its_plan(fitted: Fitted) -> None:
    runs = judged_runs()
    said = Bench.of(runs).step_s(fitted)
    for run, seconds in zip(runs, said.tolist(), strict=True):
        profile = calibrated(run.stack, Calibration(fitted=fitted))
        step_s, _ = judge(run.problem, profile, even_plan(run), int(run.candidates.layout[0]))
        assert seconds == pytest.approx(step_s, rel=1e-9), run.id


def test_the_judged_runs_are_of_every_kind() -> None:
    """So that the test above cannot become vacuous."""
    runs = judged_runs()
    assert len(runs) >= 100
    chips = {(run.stack.name, run.problem.cluster.chip.kind) for run in runs}
    assert {("maxtext-gpu", "gpu"), ("maxtext", "tpu"), ("megatron", "gpu")} <= chips
    for name in ("tp", "pp", "vpp", "cp", "dp", "batch_split", "microbatches"):
        assert sum(int(getattr(run.candidates, name)[0]) > 1 for run in runs) >= 5, name
    assert {run.problem.workload.precision for run in runs} == {"bf16", "fp8", "int8"}


def test_together_or_alone_a_run_takes_the_same_time() -> None:
    fitted = moved(Bench.of(RUNS).kinds)
    together = Bench.of(RUNS).step_s(fitted)
    assert np.isfinite(together).all()
    assert (together > 0).all()
    for index in range(0, len(RUNS), 57):
        alone = Bench.of([RUNS[index]]).step_s(fitted)
        assert alone == pytest.approx(together[index], rel=1e-12), RUNS[index].id


def test_a_mixture_of_rungs_is_as_long_as_its_shares() -> None:
    run = next(r for r in RUNS if len(r.remat) == 2 and r.candidates.pp[0] == 1)
    of = {
        name: Bench.of([dataclasses.replace(run, remat={name: 1.0})]).step_s(Fitted(values={}))[0]
        for name in run.remat
    }
    mixed = Bench.of([run]).step_s(Fitted(values={}))[0]
    assert mixed == pytest.approx(sum(share * of[name] for name, share in run.remat.items()))


def test_a_constant_moves_only_the_runs_that_are_said_to_depend_on_it() -> None:
    """What a fit leaves out of its derivatives is zero."""
    bench = Bench.of(RUNS)
    centre = moved(bench.kinds)
    for group in bench.groups:
        chip, stack = group.chip, group.stack
        known = centre.constants(chip, stack), centre.overlap(stack, chip.kind)
        for key in set(bench.kinds) - group.keys:
            other = Fitted(values={**centre.values, key: 0.9 * centre.values[key]})
            if (other.constants(chip, stack), other.overlap(stack, chip.kind)) != known:
                # FP8 constants, where no run of the group is in FP8.
                assert (group.step_s(other) == group.step_s(centre)).all(), (stack.name, key)


# What a fit finds

#: Far from their priors: what the synthetic runs are made with.
TRUTH = {
    "matmul.h100": 0.62,
    "attention.cudnn.h100": 0.42,
    "attention.flash2.h100": 0.43,
    "shard_link.gpu": 0.58,
}


@functools.cache
def synthetic_runs() -> tuple[Run, ...]:
    """Runs of three sources that are bound by what TRUTH moves: each binds some in each source."""
    small = load_model("llama3-8b")
    wide = dataclasses.replace(load_model("llama3-70b"), n_layers=8)
    kinds = [
        *itertools.product(("megatron", "torchtitan"), (small,), (4096, 16384, 65536), (1, 2)),
        *itertools.product(("megatron", "torchtitan"), (wide,), (4096, 8192), (1, 4, 8)),
        *itertools.product(("torchtitan",), (small, wide), (512, 1024, 2048), (1,)),
    ]
    runs = []
    for number, ((name, model, seq_len, tp), micro) in enumerate(itertools.product(kinds, (1, 2))):
        stack = stack_by_name(name)
        split = 8 // tp
        problem = Problem(
            model=model,
            cluster=Cluster.build(load_chip("h100"), chips=8),
            workload=Workload(global_batch_seqs=4 * split * micro, seq_len=seq_len),
            recipe=stack.recipe,
        )
        runs += [
            Run(
                id=f"{source}-{number}",
                source=source,
                tier="A",
                year=2026,
                problem=problem,
                candidates=one_candidate(
                    tp=tp,
                    batch_split=split,
                    micro_batch_size=micro,
                    microbatches=4,
                    reshard=stack.recipe.reshard[0],
                ),
                remat={"none": 1.0},
                stack=stack,
                flags=(),
                step_time_s=None,
                memory_bytes=None,
                memory_metric="",
                used_for="score",
            )
            for source in ("one", "two", "three")
        ]
    return tuple(runs)


def measured(noise: float = 0.02, **offsets: float) -> list[Run]:
    """The synthetic runs with the step times of TRUTH, some noise, and each source's offset."""
    runs = synthetic_runs()
    step_s = Bench.of(runs).step_s(Fitted(values=TRUTH))
    step_s = step_s * np.exp(noise * np.random.default_rng(0).standard_normal(len(runs)))
    return [
        dataclasses.replace(run, step_time_s=float(seconds) * offsets.get(run.source, 1.0))
        for run, seconds in zip(runs, step_s, strict=True)
    ]


@functools.cache
def straight_fit() -> Fit:
    """What is fitted where no source and no run is odd."""
    return fit(measured())


def test_a_fit_finds_the_constants_behind_noisy_measurements() -> None:
    """Each within 6 %, from priors that are 15 % to 40 % off; the rest stays where it was.

    How fast matmuls run and what a stack adds to them is one number to these runs.
    """
    found = straight_fit().fitted
    for key, truth in TRUTH.items():
        assert abs(math.log(truth / prior(key, "gpu").value)) > 0.14, key
        assert found.values[key] == pytest.approx(truth, rel=0.06), key
    for stack in ("megatron", "torchtitan"):
        rate = found.values["matmul.h100"] / found.values[f"overhead.{stack}"]
        assert rate == pytest.approx(TRUTH["matmul.h100"], rel=0.03)
    for key in set(found.values) - set(TRUTH):
        known = prior(key, "gpu")
        assert abs(math.log(found.values[key] / known.value)) < math.log(known.spread), key
        assert known.least <= found.values[key] <= known.most
    runs = synthetic_runs()
    off = Bench.of(runs).step_s(found) / Bench.of(runs).step_s(Fitted(values=TRUTH))
    assert np.abs(np.log(off)).max() < 0.05


def test_a_source_that_is_off_as_a_whole_bends_nothing_that_all_share() -> None:
    straight, bent = straight_fit(), fit(measured(two=1.15))
    for key, value in straight.fitted.values.items():
        assert bent.fitted.values[key] == pytest.approx(value, rel=0.03), key
    of_two = [run.source == "two" for run in synthetic_runs()]
    assert np.median(bent.residuals[of_two]) == pytest.approx(-math.log(1.15), abs=0.03)
    others = (bent.offsets["one"] + bent.offsets["three"]) / 2
    assert bent.offsets["two"] - others == pytest.approx(math.log(1.15), abs=0.025)


def test_one_odd_run_bends_little() -> None:
    runs = measured()
    odd = dataclasses.replace(runs[7], step_time_s=4.0 * (runs[7].step_time_s or 0.0))
    straight, bent = straight_fit().fitted, fit([*runs[:7], odd, *runs[8:]]).fitted
    for key, value in straight.values.items():
        assert bent.values[key] == pytest.approx(value, rel=0.02), key


def test_without_runs_that_say_otherwise_a_constant_stays_at_its_centre() -> None:
    runs = [run for run in synthetic_runs() if run.stack.name == "torchtitan"][:9]
    centre = Fitted(values={"matmul.h100": 0.66, "shard_link.gpu": 0.5})
    step_s = Bench.of(runs).step_s(centre)
    same = [
        dataclasses.replace(run, step_time_s=float(seconds))
        for run, seconds in zip(runs, step_s, strict=True)
    ]
    found = fit(same, centre=centre)
    for key, value in found.fitted.values.items():
        assert value == pytest.approx(centre.value(key, "gpu"), rel=1e-3), key
    assert np.abs(found.residuals).max() < 1e-3


@pytest.mark.parametrize("step_time_s", [math.nan, math.inf, 0.0])
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_time_that_is_no_number_never_enters_a_fit(step_time_s: float) -> None:
    runs = measured()[:9]
    with pytest.raises(ValueError, match="finite"):
        fit([dataclasses.replace(runs[0], step_time_s=step_time_s), *runs[1:]])


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_a_prediction_that_is_no_number_never_enters_a_fit() -> None:
    """A stage without a layer has no time."""
    runs = measured()[:9]
    problem = runs[0].problem
    impossible = dataclasses.replace(
        runs[0],
        problem=dataclasses.replace(problem, model=dataclasses.replace(problem.model, n_layers=2)),
        candidates=one_candidate(pp=8, microbatches=8),
    )
    assert not np.isfinite(Bench.of([impossible]).step_s(Fitted(values={}))[0])
    with pytest.raises(ValueError, match="finite"):
        fit([impossible, *runs[1:]])
