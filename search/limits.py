"""The user's limits on predicted costs: of each row the latest step time and the most memory.

Bounds stay bounds of the rows that are left; only plans within the limits are upper bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import Column
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile

#: Seconds that a step of each candidate may take and bytes that it may need, ``[n]`` each.
Limit = Callable[[Problem, Profile, Candidates], tuple[Column, Column]]

#: Two sums of the same floats differ by less, relatively: here the judge of plans decides.
EDGE = 1e-12
#: Even plans this near to a limit are not taken for upper bounds.
CLEAR = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a plan of each row may take at most, both limits included; infinite where none is."""

    latest_s: Column
    most_bytes: Column

    @classmethod
    def of(
        cls, limit: Limit | None, problem: Problem, profile: Profile, candidates: Candidates
    ) -> Limits:
        """The limits of candidates."""
        if limit is None:
            none = np.full(len(candidates), np.inf)
            return cls(latest_s=none, most_bytes=none)
        latest_s, most_bytes = limit(problem, profile, candidates)
        return cls(latest_s=latest_s, most_bytes=most_bytes)

    def allowed_s(self, plan_s: Column, plan_bytes: Column) -> Column:
        """Times of even plans ``[n, r]``, infinite where they are not clearly within the limits."""
        within = plan_s <= self.latest_s[:, None] * (1.0 - CLEAR)
        within &= plan_bytes <= self.most_bytes[:, None] * (1.0 - CLEAR)
        return np.where(within, plan_s, np.inf)

    def of_row(self, row: int, slack: float) -> tuple[float, float]:
        """Both limits of one row, a little wider or narrower."""
        wider = 1.0 + slack
        return float(self.latest_s[row]) * wider, float(self.most_bytes[row]) * wider
