"""The scaling book's chain of reasoning for any model on any cluster, as typed rows.

Parameters, FLOPs, days, memory, minimum chips, and then which ways of splitting the work keep
communication behind arithmetic: each a value, its bound and a verdict in words. Chapters named in
``source`` are those of Austin et al., *How to Scale Your Model*. Nothing here searches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from autoshard.costmodels.book_bounds import OVERLAPS
from autoshard.costmodels.checks import check_count, check_one_of, check_rate, said, shown
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.explain_bounds import bound_rows
from autoshard.explain_plan import plan_bound_rows, plan_run_rows
from autoshard.explain_rows import Row
from autoshard.explain_run import memory_rows, parameter_rows, run_rows
from autoshard.sizes import LARGEST

SCHEMA = "autoshard.explain/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The rows of one explanation, in the order in which they argue, and what was assumed."""

    problem: Problem
    tokens: float
    mfu: float
    checkpoints: int
    overlap: str
    rows: tuple[Row, ...]

    def row(self, quantity: str) -> Row:
        """The row of a quantity.

        Raises:
            KeyError: this explanation has no such quantity.
        """
        for row in self.rows:
            if row.quantity == quantity:
                return row
        raise KeyError(quantity)

    def to_dict(self) -> dict[str, Any]:
        """Plain values ready for JSON, under the versioned key ``schema``."""
        problem = self.problem
        return {
            "schema": SCHEMA,
            "model": problem.model.name,
            "cluster": problem.cluster.name,
            "chip": problem.cluster.chip.name,
            "chips": problem.cluster.chips,
            "pods": problem.cluster.pods,
            "global_batch_tokens": problem.workload.global_batch_tokens,
            "seq_len": problem.workload.seq_len,
            "precision": problem.workload.precision,
            "assumptions": {
                "tokens": self.tokens,
                "mfu": self.mfu,
                "checkpoints": self.checkpoints,
                "overlap": self.overlap,
            },
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }


def explain(
    problem: Problem,
    *,
    tokens: float = 15e12,
    mfu: float = 0.4,
    checkpoints: int = 4,
    overlap: str = "max",
    plan: Plan | None = None,
    step_time_s: float | None = None,
) -> Explanation:
    """The book's chain for a model on a cluster.

    Args:
        problem: model, cluster, workload and recipe.
        tokens: tokens of the whole training run.
        mfu: assumed fraction of the dense peak, above 0 and at most 1.
        checkpoints: tensors of ``d_model`` that each layer keeps per token.
        overlap: ``max`` where FSDP and tensor collectives run side by side (the book's later
            editions), ``sum`` where they take turns.
        plan: a plan, whose own split is then judged beside the best one.
        step_time_s: seconds of the plan's step, for days and MFU of its own.

    Raises:
        SpecError: an argument is out of range, the model has experts, or a step time came without
            its plan.
    """
    _check(problem, tokens, mfu, checkpoints, overlap, plan, step_time_s)

    def rows() -> Iterator[Row]:
        yield from parameter_rows(problem.model)
        yield from run_rows(problem, tokens, mfu)
        yield from memory_rows(problem, checkpoints)
        yield from bound_rows(problem, overlap)
        if plan is not None:
            yield from plan_bound_rows(problem, overlap, plan)
            if step_time_s is not None:
                yield from plan_run_rows(problem, tokens, plan, step_time_s)

    return Explanation(
        problem=problem,
        tokens=tokens,
        mfu=mfu,
        checkpoints=checkpoints,
        overlap=overlap,
        rows=tuple(rows()),
    )


def _check(
    problem: Problem,
    tokens: float,
    mfu: float,
    checkpoints: int,
    overlap: str,
    plan: Plan | None,
    step_time_s: float | None,
) -> None:
    check_rate("explain", "tokens", tokens)
    if tokens > LARGEST:
        raise SpecError(
            f"explain: tokens = {shown(tokens)} is beyond any real training run (at most 2**60)."
        )
    check_rate("explain", "mfu", mfu)
    if mfu > 1:
        raise SpecError(f"explain: mfu is a fraction of the peak, at most 1, got {mfu}.")
    check_count("explain", "checkpoints", checkpoints)
    check_one_of("explain", "overlap", overlap, OVERLAPS)
    if step_time_s is not None:
        check_rate("explain", "step_time_s", step_time_s)
        if plan is None:
            raise SpecError("explain: step_time_s needs the plan that takes it; give both.")
    if plan is not None and plan.chips_used > problem.cluster.chips:
        raise SpecError(
            f"explain: the plan uses {said(plan.chips_used)} chips and {problem.cluster.name} has "
            f"{said(problem.cluster.chips)}; give the cluster that it was made for."
        )
    if problem.model.n_experts > 1:
        raise SpecError(
            f"explain: {problem.model.name} has {problem.model.n_experts} experts, and the book's "
            "chain is for dense models."
        )
