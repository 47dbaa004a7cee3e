"""Solves at their limits: a memory limit between plans, a time limit before the bounds are in."""

from __future__ import annotations

import pytest

import autoshard
from autoshard.catalog import load_chip, load_model
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.textbook import textbook
from autoshard.costmodels.workload import Workload


def test_no_plan_exceeds_a_limit_that_the_smallest_even_plan_just_meets() -> None:
    limit = 3_504_785_866
    front = autoshard.solve(
        "gemma-7b", chips=30, global_batch_seqs=2, seq_len=12_288, memory_limit=limit
    )
    assert all(point.memory_bytes <= limit for point in front.points)


@pytest.mark.parametrize("name", ["llama3-8b", "gemma-7b", "gpt3-175b"])
@pytest.mark.parametrize("seq_len", [64, 1024, 8192])
def test_no_step_uses_more_than_the_peak(name: str, seq_len: int) -> None:
    front = autoshard.solve(name, chips=256, global_batch_tokens=2**22, seq_len=seq_len, points=3)
    assert all(0 < point.mfu <= 1 for point in front.points)


def test_model_flops_leave_out_the_lookup_of_the_embedding() -> None:
    model = load_model("llama3-8b")
    problem = Problem(
        model=model,
        cluster=Cluster.build(load_chip("h100"), chips=8),
        workload=Workload(global_batch_seqs=8, seq_len=1024),
    )
    table = model.vocab * model.d_model
    assert model.matmul_params == model.book_params - table
    assert textbook().compute.flops_per_step(problem) == 6.0 * model.matmul_params * 8 * 1024


def test_a_search_out_of_time_still_has_a_plan_and_an_honest_bound() -> None:
    late = autoshard.solve("llama3-70b", chip="h100", chips=4096, time_limit_s=1e-6)
    full = autoshard.solve("llama3-70b", chip="h100", chips=4096, points=1)
    assert not late.complete
    assert len(late.points) == 1
    assert late.points[0].lower_bound_s <= full.points[0].step_time_s
    assert late.points[0].step_time_s >= full.points[0].step_time_s * (1 - 1e-3)
