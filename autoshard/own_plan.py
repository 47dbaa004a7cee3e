"""A plan that somebody brings along, priced by the costs of a front."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.plan import Plan

if TYPE_CHECKING:
    from autoshard.costmodels.problem import Problem
    from autoshard.costmodels.profile import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPlan:
    """A plan with its predicted seconds a step and bytes on the fullest chip."""

    plan: Plan | None
    step_time_s: float
    memory_bytes: float


def own_plan(plan: Any, problem: Problem | None, profile: Profile | None) -> OwnPlan:
    """A plan with what it costs.

    Args:
        plan: a :class:`Plan`; or a solved or evaluated plan, or a point of a front: what has
            ``step_time_s`` and ``memory_bytes``.
        problem: that of the front, for a plan that has no costs.
        profile: the costs of the front, for the same.

    A bare plan that names no layout gets the one that is fastest for it.

    Raises:
        SpecError: it is no plan, it breaks a rule, or what prices it is not known.
    """
    known = getattr(plan, "point", plan)
    if hasattr(known, "step_time_s") and hasattr(known, "memory_bytes"):
        inside = getattr(known, "plan", plan)
        return OwnPlan(
            plan=inside if isinstance(inside, Plan) else None,
            step_time_s=float(known.step_time_s),
            memory_bytes=float(known.memory_bytes),
        )
    if not isinstance(plan, Plan):
        raise SpecError(
            "plan must be a Plan, or have step_time_s and memory_bytes as a solved plan has, got "
            f"{type(plan).__name__}."
        )
    if problem is None or profile is None:
        raise SpecError(
            "the costs of this front cannot be built again, so a bare plan has no price: give one "
            "that has step_time_s and memory_bytes."
        )
    from autoshard.search.check import judge
    from autoshard.search.layout import layouts_of

    names = {name for stage in plan.remat for name, layers in stage.items() if layers}
    rungs = [rung.name for rung in profile.unrestricted.ladder]
    unknown = sorted(names - set(rungs))
    if unknown:
        raise SpecError(
            f"plan: {unknown[0]!r} is no rung of the remat ladder; {profile.name} has "
            f"{', '.join(rungs)}."
        )
    numbers = layouts_of(problem, plan) if plan.layout else range(len(problem.cluster.layouts))
    costs = [judge(problem, profile.unrestricted, plan, number) for number in numbers]
    if not costs:
        raise SpecError(f"no layout of {problem.cluster.name} is {dict(plan.layout)}.")
    step_time_s, memory_bytes = min(costs)
    return OwnPlan(plan=plan, step_time_s=step_time_s, memory_bytes=memory_bytes)
