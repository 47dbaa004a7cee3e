"""Plans as good as the fastest within a share that the cost models cannot tell apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autoshard.asking import read_constraints, search_options
from autoshard.costmodels.checks import shown
from autoshard.costmodels.errors import SpecError
from autoshard.front import FrontPoint, ParetoFront
from autoshard.pricing import judged_point
from autoshard.restoring import problem_of, profile_of
from autoshard.search.budget import SAME
from autoshard.search.nearly import nearly_fastest

if TYPE_CHECKING:
    import polars as pl

    from autoshard.costmodels.profile import Profile

#: Plans that are listed at most.
MOST = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class NearOptimal:
    """The exact best plan of each mesh whose step is ``within`` a share of the fastest.

    Fastest first; of equally fast plans of a mesh, the smallest. ``more`` other meshes may have a
    plan within the share, none of them faster than those listed. ``complete`` says that the search
    came to its end.
    """

    points: tuple[FrontPoint, ...]
    within: float
    more: int
    complete: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values ready for JSON."""
        return {
            "within": self.within,
            "more": self.more,
            "complete": self.complete,
            "points": [point.to_dict() for point in self.points],
        }


def check_share(within: object) -> None:
    """Refuse what is no share of the fastest step.

    Raises:
        SpecError: it is not from 0 to 1.
    """
    if isinstance(within, bool) or not isinstance(within, (int, float)) or not 0 <= within <= 1:
        raise SpecError(
            f"near-optimal is a share from 0 to 1, such as 2% or 0.02, got {shown(within)}."
        )


def near_optimal(
    front: ParetoFront,
    within: float,
    *,
    costs: str | Profile | None = None,
    where: str | pl.Expr | None = None,
    time_limit_s: float | None = None,
) -> NearOptimal:
    """What is as good as the fastest plan of a front, whatever memory of a chip it needs.

    Args:
        front: what a search found.
        within: the share of the fastest step by which a plan may be slower, 0.02 for 2 %.
        costs: the profile of the front, where its name does not say all of it.
        where: the constraint of the front, where it was not text.
        time_limit_s: stop then, with what is found.

    Raises:
        SpecError: the share is out of range, the search of the front was stopped or constrained by
            functions, or its costs or constraint are not known.
    """
    check_share(within)
    if not front.complete or front.search.get("constrained"):
        raise SpecError(
            "near-optimal plans are those of a search that came to its end, without functions that "
            "constrain its models; give it more time, or say the constraint with where."
        )
    problem = problem_of(front.problem)
    profile = profile_of(front, problem, costs)
    said = front.problem.get("where") if where is None else where
    asked = read_constraints(said, front.problem.get("fix"), problem, profile)
    fastest = front.points[0]
    options = search_options(
        asked,
        objectives=("time", "memory"),
        points=1,
        gap=float(front.search.get("gap", 0.0)),
        time_limit_s=time_limit_s,
    )
    options = replace(options, known_s=fastest.step_time_s)
    latest_s = fastest.step_time_s * (1.0 + within)
    found = nearly_fastest(problem, profile, options, latest_s, MOST)
    factors = None
    if fastest.interval_s is not None:
        low, high = fastest.interval_s
        factors = low / fastest.step_time_s, high / fastest.step_time_s
    points = [
        judged_point(
            problem,
            profile,
            plan,
            row,
            lower_bound_s=fastest.lower_bound_s,
            proven=False,
            factors=factors,
        )
        for plan, row in found.found
    ]
    gap = options.gap + SAME
    return NearOptimal(
        points=tuple(replace(point, proven=point.gap <= gap) for point in points),
        within=float(within),
        more=found.more,
        complete=found.complete,
    )
