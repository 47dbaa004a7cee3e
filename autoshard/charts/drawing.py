"""The chart of a front with what it takes to price: a plan of one's own, and plans it beat."""

from __future__ import annotations

from typing import Any

import altair as alt

from autoshard.charts.front import front_chart
from autoshard.costmodels.errors import CostModelError, SpecError
from autoshard.front import ParetoFront
from autoshard.other_plans import OtherPlans, other_plans
from autoshard.own_plan import own_plan
from autoshard.restoring import problem_of, profile_of


def draw_front(front: ParetoFront, plan: Any = None, *, others: bool = True) -> alt.LayerChart:
    """The chart; see :meth:`autoshard.front.ParetoFront.chart`."""
    problem, profile = None, None
    try:
        problem = problem_of(front.problem)
        profile = profile_of(front, problem)
    except (SpecError, CostModelError):
        pass  # costs of one's own: the front itself can be drawn
    behind: OtherPlans | None = None
    if others and problem is not None and profile is not None:
        try:
            behind = other_plans(front, problem, profile)
        except SpecError:
            behind = None  # a constraint that was no text
    own = None if plan is None else own_plan(plan, problem, profile)
    return front_chart(front, own=own, others=behind)
