"""Where the time of a step goes, and what is said to bind it: the largest loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import autoshard
from autoshard.breakdown import COUNTS, Breakdown, breakdown
from autoshard.catalog import load_chip, load_model
from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.workload import Workload
from autoshard.front import FrontPoint
from autoshard.search.check import judge
from autoshard.words import binding_short, binding_words


def even(pp: int = 1, rung: str = "save_all", layers: int = 32, **degrees: Any) -> Plan:
    """A plan of the 8B model with layers dealt evenly and one rung for all."""
    each = layers // pp
    return Plan(pp=pp, layers_per_stage=(each,) * pp, remat=({rung: each},) * pp, **degrees)


def question(chip: str, chips: int, sequences: int, seq_len: int = 4096) -> Problem:
    return Problem(
        model=load_model("llama3-8b"),
        cluster=Cluster.build(load_chip(chip), chips=chips),
        workload=Workload(global_batch_seqs=sequences, seq_len=seq_len),
    )


def parts_of(problem: Problem, profile: Profile, plan: Plan) -> Breakdown:
    """The breakdown at the step time of the judge."""
    columns = {name: 0 if name == "layout" else getattr(plan, name) for name in COLUMNS}
    row = Candidates(**{name: np.array([value]) for name, value in columns.items()})
    return breakdown(problem, profile, plan, row, judge(problem, profile, plan, 0)[0])


@pytest.mark.parametrize(("pp", "vpp", "microbatches"), [(2, 1, 8), (8, 1, 32), (8, 2, 32)])
def test_the_bubble_of_even_stages_is_that_of_1f1b(pp: int, vpp: int, microbatches: int) -> None:
    """(p - 1) / (v m) of the busy time; the layers of ``mlp2`` have no embedding and no head."""
    plan = even(pp, vpp=vpp, microbatches=microbatches)
    problem = question("h100", 8, microbatches)
    parts = parts_of(problem, autoshard.textbook(layer="mlp2"), plan)
    assert parts.idle_s == pytest.approx(parts.busy_s * (pp - 1) / (vpp * microbatches), rel=1e-9)
    assert parts.once_s == 0
    assert parts.binding == "bubble"
    stages = f"{pp} x {vpp} virtual stages" if vpp > 1 else f"{pp} stages"
    assert parts.binding_by == f"pipeline bubble of {stages} and {microbatches} microbatches"


def test_a_reduction_once_a_step_is_communication_and_no_bubble() -> None:
    """Replicas of one microbatch each: nothing else to hide the reduction of gradients behind."""
    problem = question("h100", 64, 8, seq_len=512)
    parts = parts_of(problem, autoshard.textbook(), even(dp=8, tp=8))
    assert parts.idle_s == pytest.approx(0.0, abs=1e-12)
    assert 0 < parts.once_s < parts.comms_s["dp"]
    assert parts.busy_s + parts.once_s == pytest.approx(parts.step_time_s, rel=1e-12)
    assert (parts.binding, parts.binding_by) == ("communication", "dp once a step")


def test_few_tokens_are_bound_by_hbm() -> None:
    """64 tokens a microbatch, and the H100 needs 296: weights are loaded for 1 - 64/296 of it."""
    parts = parts_of(question("h100", 1, 4, seq_len=64), autoshard.textbook(), even(microbatches=4))
    assert parts.binding == "hbm"
    assert parts.hbm_s > 0.7 * parts.compute_s
    assert parts.busy_s == parts.compute_s


def test_arithmetic_at_the_peak_without_any_loss_is_compute_bound() -> None:
    parts = parts_of(question("h100", 1, 4), autoshard.textbook(), even(microbatches=4))
    assert parts.binding == "compute"
    assert parts.step_time_s == pytest.approx(parts.compute_s)
    assert parts.hbm_s == pytest.approx(0.0, abs=1e-12)


def test_70b_on_6144_h100_is_bound_by_its_bubble_and_not_by_tp() -> None:
    point = autoshard.solve("llama3-70b", chip="h100", chips=6144, points=1).points[0]
    parts, step_s = point.breakdown, point.step_time_s
    assert parts["idle_s"] > 2 * (parts["busy_s"] - parts["compute_s"] + parts["once_s"])
    assert point.binding == "bubble"
    share = f"{parts['idle_s'] / step_s * 100:.3g} %"
    assert binding_words(point) == (
        f"bubble-bound, {share} of the step (pipeline bubble of {point.plan.pp} stages and "
        f"{point.plan.microbatches} microbatches)"
    )
    assert binding_short(point) == f"bubble {share}"


@pytest.mark.parametrize(
    ("model", "cluster"),
    [
        ("llama3-70b", {"pods": 4}),
        ("llama3-70b", {"topology": "16x16x24"}),
        ("llama3-405b", {"chip": "h100", "chips": 16384}),
        ("llama3-8b", {"chip": "v5e", "pods": 1, "global_batch_seqs": 64}),
    ],
)
def test_what_binds_is_the_largest_loss_and_the_parts_are_the_step(
    model: str, cluster: dict[str, Any]
) -> None:
    for point in autoshard.solve(model, points=6, **cluster).points:
        parts, step_s = point.breakdown, point.step_time_s
        assert parts["busy_s"] + parts["once_s"] + parts["idle_s"] == pytest.approx(step_s)
        losses = {
            "communication": parts["busy_s"] - parts["compute_s"] + parts["once_s"],
            "bubble": parts["idle_s"],
            "hbm": parts["hbm_s"],
        }
        if point.binding == "compute":
            assert max(losses.values()) <= COUNTS * step_s
        else:
            counted = [loss for loss in losses.values() if loss > COUNTS * step_s]
            assert losses[point.binding] == max([*counted, losses[point.binding]])


def test_a_ratio_is_said_only_above_one_and_only_of_what_it_measures() -> None:
    front = autoshard.solve("llama3-405b", pods=8, points=1)
    point = front.points[0]
    assert binding_words(point) == "communication-bound by 1.21x (fsdp over ici data axes)"

    def said(ratio: float, by: str = point.binding_by) -> tuple[str, str]:
        other: FrontPoint = dataclasses.replace(point, comms_over_compute=ratio, binding_by=by)
        return binding_words(other), binding_short(other)

    for ratio in (0.9, 1.0, 1.004):
        assert said(ratio) == ("communication-bound (fsdp over ici data axes)", "fsdp")
    assert said(1.25, "dp once a step") == ("communication-bound (dp once a step)", "dp")
    assert said(12.5) == ("communication-bound by 12.50x (fsdp over ici data axes)", "fsdp 12.50x")
