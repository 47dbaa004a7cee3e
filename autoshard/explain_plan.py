"""What the chain says of one plan: its own split under the same bounds, its days and its MFU."""

from __future__ import annotations

from collections.abc import Iterator

from autoshard.costmodels import book
from autoshard.costmodels import book_bounds as bounds
from autoshard.costmodels.book_bounds import Sides
from autoshard.costmodels.cluster import Cluster, Layout
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.explain_bounds import PER_CHIP, bound_rate, overlap_rule, pod_sides, tokens_row
from autoshard.explain_rows import Row, chips, compare_tokens, days, percent, times


def plan_bound_rows(problem: Problem, overlap: str, plan: Plan) -> Iterator[Row]:
    """The plan's own split under the same rules."""
    cluster, tokens = problem.cluster, problem.workload.global_batch_tokens
    each = tokens / plan.chips_used
    if cluster.chip.kind == "gpu" and plan.chips_used > cluster.chip.domain_chips:
        if plan.reshard == 3 and plan.fsdp > 1:  # gathered again for each microbatch
            each /= plan.microbatches
        bound = bounds.sharded_bound_tokens(cluster.chip, bound_rate(problem), plan.tp * plan.pp)
        verdict = compare_tokens(each, bound, PER_CHIP)
        yield tokens_row("plan", "plan between nodes", each, bound, verdict, "gpus.md")
        return
    sides = _plan_sides(problem, plan)
    ways = plan.fsdp * plan.cp
    if sides is None or ways * plan.tp == 1:
        return
    reduced = bounds.layer_times(
        tokens=tokens / plan.dp,
        d_model=problem.model.d_model,
        d_ff=problem.model.d_ff,
        data_ways=ways,
        tensor_ways=plan.tp,
        flops_per_s=bound_rate(problem),
        data_intensity=sides.data_intensity,
        tensor_intensity=sides.tensor_intensity,
        gathers=plan.microbatches if plan.reshard == 3 else 1,
    )
    factor = reduced.comms_over_math(overlap_rule(sides, overlap))
    yield Row(
        section="plan",
        quantity="plan communication over arithmetic",
        value=factor,
        unit="ratio",
        value_text=times(factor),
        bound=1.0,
        bound_text="1",
        holds=factor <= 1,
        verdict=(
            f"compute-bound: a two-matrix layer communicates for {times(factor)} its arithmetic"
            if factor <= 1
            else f"communication-bound by {times(factor)} in a two-matrix layer, forward"
        ),
        source="training.md",
    )


def plan_run_rows(problem: Problem, tokens: float, plan: Plan, step_time_s: float) -> Iterator[Row]:
    """Days and MFU at the plan's own step time, over the chips that it uses."""
    took = step_time_s * tokens / problem.workload.global_batch_tokens / book.DAY_S
    idle = problem.cluster.chips - plan.chips_used
    own = book.mfu(
        problem.flops_per_step,
        seconds=step_time_s,
        chips=plan.chips_used,
        flops_per_s=problem.peak_flops_per_s,
    )
    yield Row(
        section="plan",
        quantity="days of the plan",
        value=took,
        unit="days",
        value_text=days(took),
        verdict=f"steps of {step_time_s:.4g} s without interruption",
        source="applied-training.md",
    )
    yield Row(
        section="plan",
        quantity="MFU of the plan",
        value=own,
        unit="fraction",
        value_text=percent(own),
        verdict=f"over the {chips(plan.chips_used)} of the plan, without the lookup of an untied "
        f"embedding{_idle(idle)}",
        source="applied-training.md",
    )


def _idle(count: int) -> str:
    return f"; {chips(count)} idle" if count else ""


def _plan_sides(problem: Problem, plan: Plan) -> Sides | None:
    """The same on the torus axes that the plan names."""
    cluster = problem.cluster
    if cluster.chip.kind == "tpu":
        layout = _named_layout(cluster, plan)
        if layout is not None:
            return bounds.torus_sides(cluster, bound_rate(problem), layout)
    return pod_sides(problem)


def _named_layout(cluster: Cluster, plan: Plan) -> Layout | None:
    def axes(*names: str) -> tuple[int, ...]:
        said = next((plan.layout[name] for name in names if name in plan.layout), "")
        letters = said.removeprefix("ici ") if said.startswith("ici ") else ""
        return tuple(i for i, axis in enumerate(cluster.torus) if axis.name in letters)

    layout = Layout(data_axes=axes("fsdp", "cp", "pp"), tensor_axes=axes("tp"))
    return layout if layout.data_axes or layout.tensor_axes else None
