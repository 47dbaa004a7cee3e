"""What given plans cost: priced together on their best layouts, and judged one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoshard.breakdown import breakdown
from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.costs import Column
from autoshard.costmodels.legality import one_row
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.remat import layers_by_rung
from autoshard.front import FrontPoint, breakdown_dict
from autoshard.search.check import broken_rules, impossible, judge
from autoshard.search.layout import layout_words
from autoshard.search.rows import Rows, price_rows
from autoshard.search.space import mesh_table
from autoshard.search.stages import Stage
from autoshard.stack_notes import unstatable


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A plan laid out on the network, its step in seconds and the bytes of its fullest chip.

    ``row`` are its degrees and its layout, a table of one candidate.
    """

    plan: Plan
    row: Candidates
    step_time_s: float
    memory_bytes: float


def rules_broken(problem: Problem, profile: Profile, plan: Plan) -> list[str]:
    """Every rule of the space and of the profile's framework that a plan breaks, as sentences."""
    broken = [*broken_rules(problem, plan), *unstatable(problem, profile, plan)]
    return list(dict.fromkeys(broken))


def not_run(problem: Problem, profile: Profile, plan: Plan) -> list[str]:
    """The same without the space's own rule on chunks: why a plan cannot run at all."""
    broken = [*impossible(problem, plan), *unstatable(problem, profile, plan)]
    return list(dict.fromkeys(broken))


def price_plans(problem: Problem, profile: Profile, plans: Sequence[Plan]) -> list[Priced]:
    """Legal plans, each on the layout that is fastest for it; what a plan says of it is not read.

    All are priced in one call.
    """
    if not plans:
        return []
    tables = [_laid_out(problem, plan) for plan in plans]
    rows = price_rows(problem, profile, Candidates.concatenate(tables))
    priced, start = [], 0
    for plan, table in zip(plans, tables, strict=True):
        found = []
        for row in range(start, start + len(table)):
            stage = _stage(profile, plan, rows, row)
            found.append((*stage.evaluate(layers_by_rung(plan, profile.ladder)), row))
        start += len(table)
        step_s, memory, row = min(found)
        candidate = rows.candidates.take(slice(row, row + 1))
        priced.append(
            Priced(
                plan=replace(plan, layout=_layout(problem, candidate)),
                row=candidate,
                step_time_s=step_s,
                memory_bytes=memory,
            )
        )
    return priced


def stage_bytes(problem: Problem, profile: Profile, priced: Priced) -> Column:
    """Bytes of one chip of each pipeline stage at its peak, ``[pp]``."""
    stage = stage_of(problem, profile, priced.plan, priced.row)
    rungs = layers_by_rung(priced.plan, profile.ladder)
    places = np.concatenate([rungs.sum(axis=1)[:, None], stage.ends], axis=1)
    held: Column = places @ stage.state + stage.in_flight * (rungs @ stage.saved) + stage.fixed
    return held


def stage_of(
    problem: Problem, profile: Profile, plan: Plan, row: Candidates | None = None
) -> Stage:
    """The sub-problem of a plan's mesh, on its own layout or the fastest."""
    if row is None:
        row = price_plans(problem, profile, [plan])[0].row
    return _stage(profile, plan, price_rows(problem, profile, row), 0)


def judged_point(
    problem: Problem,
    profile: Profile,
    plan: Plan,
    row: Candidates,
    *,
    lower_bound_s: float,
    proven: bool,
    factors: tuple[float, float] | None = None,
) -> FrontPoint:
    """A plan as the judge sees it, who shares no code with the search.

    Args:
        problem: the question.
        profile: the cost models.
        plan: a legal plan.
        row: its degrees and layout, a table of one candidate.
        lower_bound_s: no plan of the space within its memory is faster.
        proven: whether the bound is as near as was asked for.
        factors: on the step time, between which four of five measured ones lie.
    """
    step_s, memory = judge(problem, profile, plan, int(row.layout[0]))
    parts = breakdown(problem, profile, plan, row, step_s)
    peak = problem.peak_flops_per_s * plan.chips_used
    return FrontPoint(
        plan=plan,
        step_time_s=step_s,
        memory_bytes=memory,
        mfu=profile.compute.flops_per_step(problem) / (step_s * peak),
        binding=parts.binding,
        binding_by=parts.binding_by,
        comms_over_compute=parts.comms_over_compute,
        lower_bound_s=min(lower_bound_s, step_s),
        gap=max(step_s / lower_bound_s - 1.0, 0.0),
        proven=proven,
        interval_s=None if factors is None else (step_s * factors[0], step_s * factors[1]),
        breakdown=breakdown_dict(parts),
    )


def _laid_out(problem: Problem, plan: Plan) -> Candidates:
    """The degrees of a plan on each layout that the space has for them."""
    table = mesh_table(
        problem,
        np.array([[plan.dp, plan.batch_split]], dtype=np.int64),
        np.array([[plan.tp, plan.seq_split, plan.cp]], dtype=np.int64),
        np.array([plan.pp], dtype=np.int64),
    )
    layouts = np.unique(table.layout)
    one = one_row(plan)
    repeated = {name: np.repeat(getattr(one, name), len(layouts)) for name in COLUMNS}
    return Candidates(**repeated | {"layout": layouts})


def _layout(problem: Problem, row: Candidates) -> dict[str, str]:
    degrees = {name: int(getattr(row, name)[0]) for name in COLUMNS if name != "layout"}
    return layout_words(problem, int(row.layout[0]), degrees)


def _stage(profile: Profile, plan: Plan, rows: Rows, row: int) -> Stage:
    (held,) = profile.in_flight([(plan.pp, plan.vpp, plan.microbatches)])
    return Stage.of(rows, row, held)
