"""A plan that somebody runs: its price, whether it fits, and how far it is from the best."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from autoshard.answering import evidence_notes, problem_dict
from autoshard.asking import Constraints
from autoshard.completing import Completed, complete
from autoshard.costmodels.errors import Infeasible
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.front import FrontPoint, ParetoFront
from autoshard.improving import Change, gaining_changes
from autoshard.launch.read_plan import ReadPlan
from autoshard.launched import asked_with, check_agrees, filled, values_of
from autoshard.pricing import Priced, judged_point, not_run, price_plans, stage_bytes
from autoshard.solved import SolvedPlan
from autoshard.solving import resolve, solve
from autoshard.stack_notes import split_notes
from autoshard.stating import read_values
from autoshard.uneven import uneven_notes

SCHEMA = "autoshard.evaluation/1"

#: Arguments of :func:`autoshard.solve` that are for the search alone.
_SEARCH = ("where", "fix", "time_limit_s", "progress")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a plan costs, and what would be better.

    ``point`` is the plan as a point of a front: no plan of the space within its memory is faster
    than ``point.lower_bound_s``. ``optimum`` is the proven fastest plan at the memory of this one,
    or at all that a chip has where this one does not fit; None where none was sought or none fits.
    ``stage_bytes`` are bytes of a chip of each pipeline stage. ``changes`` are the single changes
    that fit and gain most, the largest first; for a plan that does not fit, the fastest ones that
    do. ``tried`` counts all that are legal, ``fitting`` those that fit. ``assumed`` says what the
    plan did not state, ``ignored`` what of a launch config has no price.
    """

    problem: Mapping[str, Any]
    point: FrontPoint
    stage_bytes: tuple[float, ...]
    capacity_bytes: int
    tokens_per_s: float
    optimum: ParetoFront | None
    changes: tuple[Change, ...]
    tried: int
    fitting: int
    gap: float
    assumed: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def plan(self) -> SolvedPlan:
        """The plan with its costs and its problem."""
        return self.front.solved(self.point)

    @property
    def front(self) -> ParetoFront:
        """The plan as a front of one point, to save, chart or compare."""
        search = {"gap": self.gap, "complete": self.optimum is None or self.optimum.complete}
        return ParetoFront(problem=self.problem, points=(self.point,), search=search)

    @property
    def fits(self) -> bool:
        """Whether the fullest chip holds the plan."""
        return self.point.memory_bytes <= self.capacity_bytes

    @property
    def fullest_stage(self) -> int:
        """The pipeline stage whose chips hold most, counted from 0."""
        return self.stage_bytes.index(max(self.stage_bytes))

    @property
    def faster_by(self) -> float | None:
        """How much faster the optimum is, in steps a second; None without an optimum.

        Zero where this plan is the faster of the two: within the gap the search prefers a plan that
        talks less. Negative only where the optimum is under constraints that this plan breaks.
        """
        if self.optimum is None:
            return None
        faster = self.point.step_time_s / self.optimum.points[0].step_time_s - 1.0
        constrained = self.optimum.problem.get("where") or self.optimum.problem.get("fix")
        return faster if constrained else max(faster, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values ready for JSON, under the versioned key ``schema``."""
        return {
            "schema": SCHEMA,
            "problem": dict(self.problem),
            "point": self.point.to_dict(),
            "tokens_per_s": self.tokens_per_s,
            "fits": self.fits,
            "capacity_bytes": self.capacity_bytes,
            "stage_bytes": list(self.stage_bytes),
            "fullest_stage": self.fullest_stage,
            "faster_by": self.faster_by,
            "optimum": None if self.optimum is None else self.optimum.to_dict(),
            "changes": [change.to_dict() for change in self.changes],
            "tried": self.tried,
            "fitting": self.fitting,
            "gap": self.gap,
            "assumed": list(self.assumed),
            "ignored": list(self.ignored),
            "notes": list(self.notes),
        }


def evaluate(
    plan: Plan | ReadPlan | str | Mapping[str, Any],
    model: Any,
    *,
    optimum: bool = True,
    gap: float = 1e-3,
    **question: Any,
) -> Evaluation:
    """What a plan costs, how far it is from the proven optimum, and which change gains most.

    Args:
        plan: a :class:`Plan`; or its values as text (``"tp=8,pp=16,remat=full:2"``), as a mapping,
            or as a launch config was read. What they do not say gets a default, which the answer
            states.
        model: as for :func:`autoshard.solve`.
        optimum: whether to seek the fastest plan at the memory of this one.
        gap: relative gap within which that counts as proven.
        question: every other argument of :func:`autoshard.solve` but ``points``, ``objectives``
            and the two functions; ``where`` and ``fix`` are for the optimum.

    Raises:
        SpecError: an input is wrong, or the plan contradicts itself.
        Infeasible: the plan breaks rules of the model, the network or the stack; all are named.
        CostModelError: a cost model refuses the problem.
    """
    search = {name: question.pop(name) for name in _SEARCH if name in question}
    read = plan if isinstance(plan, ReadPlan) else None
    problem, profile = resolve(model, **(question if read is None else asked_with(read, question)))
    profile.check_covers(problem)
    problem, made = _stated(plan, question, problem, profile)
    broken = not_run(problem, profile, made.plan)
    if broken:
        raise Infeasible(f"the plan is not legal: {'; '.join(broken)}.")
    started = time.monotonic()
    (priced,) = price_plans(problem, profile, [made.plan])
    evidence = profile.evidence(problem, priced.row)
    capacity = problem.capacity_bytes
    best = _optimum(problem, profile, priced, gap, search, started) if optimum else None
    bound_s = _bound_s(problem, profile, priced, best)
    point = judged_point(
        problem,
        profile,
        priced.plan,
        priced.row,
        lower_bound_s=bound_s,
        proven=priced.step_time_s <= bound_s * (1.0 + gap),
        factors=evidence.interval,
    )
    changes, tried, fitting = gaining_changes(problem, profile, point)
    return Evaluation(
        problem=problem_dict(problem, profile, Constraints()),
        point=point,
        stage_bytes=tuple(stage_bytes(problem, profile, priced).tolist()),
        capacity_bytes=capacity,
        tokens_per_s=problem.workload.global_batch_tokens / point.step_time_s,
        optimum=best,
        changes=changes,
        tried=tried,
        fitting=fitting,
        gap=gap,
        assumed=made.assumed,
        ignored=() if read is None else read.ignored,
        notes=(
            *split_notes(problem, profile, point.plan),
            *uneven_notes(problem, profile, point.plan, priced.row),
            *evidence_notes(evidence, [point], "this plan"),
        ),
    )


def _stated(
    plan: Plan | ReadPlan | str | Mapping[str, Any],
    question: Mapping[str, Any],
    problem: Problem,
    profile: Profile,
) -> tuple[Problem, Completed]:
    """The whole plan that is stated, and the problem with what it states of that."""
    if isinstance(plan, Mapping) and "layout" in plan:  # what Plan.to_dict gives
        plan = Plan.from_dict(plan)
    if isinstance(plan, Plan):
        # The bare plan: a solved one is bound to the point that it was solved for.
        bare = Plan.from_dict(plan.to_dict())
        return _allowing(problem, plan.reshard), Completed(plan=bare, assumed=())
    assumed: tuple[str, ...] = ()
    if isinstance(plan, ReadPlan):
        check_agrees(plan, problem)
        asked, problem = problem, filled(plan, question, problem)
        if problem != asked:
            batch = problem.workload.global_batch_seqs
            assumed = (f"a batch of {batch:,} sequences, which fills the data ranks",)
        values = values_of(plan)
    else:
        values = read_values(plan)
    problem = _allowing(problem, values.get("reshard"))
    made = complete(problem, profile, values)
    return problem, replace(made, assumed=assumed + made.assumed)


def _bound_s(problem: Problem, profile: Profile, priced: Priced, best: ParetoFront | None) -> float:
    """No plan of the space within the memory of this one is faster.

    By the search, where that was over the whole space and at that memory; else by the peak of the
    chips.
    """
    peak_s = profile.compute.flops_per_step(problem)
    peak_s /= problem.peak_flops_per_s * problem.cluster.chips
    if best is None or best.problem.get("where") or best.problem.get("fix"):
        return peak_s
    fits = priced.memory_bytes <= problem.capacity_bytes
    return best.points[0].lower_bound_s if fits else peak_s


def _allowing(problem: Problem, reshard: Any) -> Problem:
    """The problem with the plan's own ZeRO stage among those that plans may use."""
    recipe = problem.recipe
    if reshard is None or reshard in recipe.reshard:
        return problem
    stages = tuple(sorted({*recipe.reshard, reshard}, reverse=True))
    return replace(problem, recipe=replace(recipe, reshard=stages))


def _optimum(
    problem: Problem,
    profile: Profile,
    priced: Priced,
    gap: float,
    search: Mapping[str, Any],
    started: float,
) -> ParetoFront | None:
    """The fastest plan at the memory of this one, or of a chip; None where none fits."""
    workload = problem.workload
    own = math.ceil(priced.memory_bytes)
    asked = dict(search)
    if asked.get("time_limit_s") is not None:
        asked["time_limit_s"] = max(asked["time_limit_s"] - (time.monotonic() - started), 1e-3)
    try:
        return solve(
            problem.model,
            cluster=problem.cluster,
            global_batch_seqs=workload.global_batch_seqs,
            seq_len=workload.seq_len,
            precision=workload.precision,
            memory_limit=min(own, problem.capacity_bytes),
            recipe=problem.recipe,
            costs=profile,
            points=1,
            gap=gap,
            **asked,
        )
    except Infeasible:
        told = [asked.get(name) for name in ("where", "fix", "time_limit_s")]
        if any(told) or own <= problem.capacity_bytes:
            raise
        return None
