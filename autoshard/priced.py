"""A plan of a front beside what priced it: the problem and the cost models, built again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.restoring import row_of

if TYPE_CHECKING:
    from autoshard.costmodels.plan import Plan
    from autoshard.front import FrontPoint, ParetoFront
    from autoshard.solved import SolvedPlan


@dataclass(frozen=True, kw_only=True)
class PricedPlan:
    """One point of a front, and everything that says why it costs what it costs."""

    front: ParetoFront
    point: FrontPoint
    problem: Problem
    profile: Profile

    @classmethod
    def of(cls, solved: SolvedPlan) -> PricedPlan:
        """The same of a solved plan.

        Raises:
            SpecError: the costs of its front cannot be built again from their name.
        """
        return cls(
            front=solved.front, point=solved.point, problem=solved.problem, profile=solved.profile
        )

    @property
    def plan(self) -> Plan:
        """The plan of the point."""
        return self.point.plan

    @cached_property
    def row(self) -> Candidates:
        """Its degrees and layout as a table of one candidate."""
        return row_of(self.problem, self.plan)
