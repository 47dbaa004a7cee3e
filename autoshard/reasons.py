"""Why the fastest plan is not one with given degrees: a rule, memory, ``--where``, or time.

A part of a plan (``tp=16,pp=16``) stands for every plan that has these values: the answer speaks of
the best of them, found by the same search.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from autoshard.breakdown import step_parts
from autoshard.conjuncts import conjuncts
from autoshard.costmodels.errors import Infeasible
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.schedules import schedule_name
from autoshard.costmodels.textbook_pipeline import OneForwardOneBackward
from autoshard.diagnosis import Condition, Conditions, conditions_of
from autoshard.front import FrontPoint
from autoshard.search.blocks import candidates_of, mesh_blocks
from autoshard.search.nearest import exists
from autoshard.search.prune import least_memory
from autoshard.solving import resolve, solve
from autoshard.values import check_values, nearest_values, parse_values, rules_against
from autoshard.where import compile_where

if TYPE_CHECKING:
    import polars as pl

SCHEMA = "autoshard.why_not/1"

#: Arguments of :func:`autoshard.solve` that are for the search alone.
_SEARCH = (
    *("fix", "objectives", "gap", "time_limit_s", "progress"),
    *("constrain_master", "constrain_stages"),
)
#: Plans that are asked which rules of a framework they break.
ASKED = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyNot:
    """Why the fastest plan does not have these ``values``.

    ``verdict`` is one of

    * ``fastest``: it has them;
    * ``illegal``: no plan of the space has them; ``reasons`` are the rules, ``nearest`` the values
      that each may have beside the others. ``ruled_by`` names the framework or the schedule whose
      rules they are, where they are not those of the space;
    * ``excluded``: ``--where`` excludes all of them; ``reasons`` are its conditions, and ``best``
      is the best plan without it, if one fits;
    * ``stopped``: the search ended before it could say, at the time limit or by Ctrl-C;
    * ``memory``: none fits; ``least_bytes`` is the smallest that any of them needs;
    * ``equal``: the ``best`` of them is as fast within the gap, and the tie-break chose another;
    * ``slower``: the ``best`` of them takes longer, and ``lost_s`` says on what, in seconds of the
      step: its parts add up to the difference. ``comms_lost_s`` is the same for each kind of
      communication, hidden or not.
    """

    values: Mapping[str, int]
    verdict: str
    fastest: FrontPoint
    best: FrontPoint | None = None
    reasons: tuple[str, ...] = ()
    ruled_by: str = ""
    nearest: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    least_bytes: float | None = None
    capacity_bytes: int = 0

    @property
    def slower_by(self) -> float | None:
        """How much longer the best plan with these values takes, relatively."""
        if self.best is None:
            return None
        return self.best.step_time_s / self.fastest.step_time_s - 1.0

    @property
    def lost_s(self) -> dict[str, float]:
        """Seconds that the best plan with these values loses, by part of the step."""
        return _difference(self.best, self.fastest, lambda p: step_parts(p.breakdown))

    @property
    def comms_lost_s(self) -> dict[str, float]:
        """Seconds more of each kind of communication, hidden or not."""
        return _difference(self.best, self.fastest, lambda p: p.breakdown["comms_s"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values ready for JSON, under the versioned key ``schema``."""
        return {
            "schema": SCHEMA,
            "values": dict(self.values),
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "ruled_by": self.ruled_by,
            "nearest": {name: list(values) for name, values in self.nearest.items()},
            "least_bytes": self.least_bytes,
            "capacity_bytes": self.capacity_bytes,
            "slower_by": self.slower_by,
            "lost_s": self.lost_s,
            "comms_lost_s": self.comms_lost_s,
            "best": None if self.best is None else self.best.to_dict(),
            "fastest": self.fastest.to_dict(),
        }


def _difference(best: FrontPoint | None, fastest: FrontPoint, parts: Any) -> dict[str, float]:
    if best is None:
        return {}
    mine, theirs = parts(best), parts(fastest)
    return {name: mine.get(name, 0.0) - theirs.get(name, 0.0) for name in {**theirs, **mine}}


def why_not(
    model: Any,
    values: str | Mapping[str, int],
    *,
    where: str | pl.Expr | None = None,
    fastest: FrontPoint | None = None,
    **question: Any,
) -> WhyNot:
    """Why the fastest plan does not have these values.

    Args:
        model: as for :func:`autoshard.solve`.
        values: ``"tp=16,pp=16"`` or a mapping; whatever ``where`` can speak of.
        where: the user's constraint on plans.
        fastest: the fastest plan, where it is known.
        question: every other argument of :func:`autoshard.solve`, but for ``points``.

    Raises:
        SpecError: an input is wrong.
        Infeasible: the question has no plan at all.
    """
    wanted = parse_values(values) if isinstance(values, str) else check_values(values)
    asked = {name: value for name, value in question.items() if name not in _SEARCH}
    problem, profile = resolve(model, **asked)
    started, complete = time.monotonic(), True
    if fastest is None:
        front = solve(model, where=where, points=1, **question)
        fastest, complete = front.points[0], front.complete
    found = WhyNot(
        values=wanted, verdict="fastest", fastest=fastest, capacity_bytes=problem.capacity_bytes
    )
    if not complete:
        return replace(found, verdict="stopped")
    if has_values(fastest, wanted):
        return found
    fixed = _condition(wanted)
    if not exists(problem, profile.unrestricted, Conditions(parts=(fixed,))):
        interleaved = profile.unrestricted.replace(OneForwardOneBackward())
        if not profile.virtual and exists(problem, interleaved, Conditions(parts=(fixed,))):
            schedule = schedule_name(profile)
            return replace(
                found,
                verdict="illegal",
                ruled_by=f"schedule {schedule}",
                reasons=(f"vpp = {wanted['vpp']}, and {schedule} has no virtual stages",),
                nearest={"vpp": (1,)},
            )
        return replace(
            found,
            verdict="illegal",
            reasons=tuple(rules_against(problem, wanted)),
            nearest=nearest_values(problem, wanted),
        )
    if not exists(problem, profile, Conditions(parts=(fixed,))):
        return replace(
            found,
            verdict="illegal",
            ruled_by=profile.legality.framework,
            reasons=_unstatable(problem, profile, fixed),
        )
    allowed = conditions_of(where, question.get("fix"))
    parts = list(allowed.values())
    both = Conditions(parts=(fixed, *parts))
    excluded = not exists(problem, profile, both)
    keep = Conditions(parts=(fixed,)) if excluded else both
    least = least_memory(problem, profile, keep)
    found = replace(found, least_bytes=least)
    best = None
    if least <= problem.capacity_bytes:
        asked = {**question, "points": 1}
        if question.get("time_limit_s") is not None:
            left = question["time_limit_s"] - (time.monotonic() - started)
            asked["time_limit_s"] = max(left, 1e-3)
        try:
            limit = None if excluded else where
            front = solve(model, where=_joined(wanted, limit), **_without(asked, excluded))
        except Infeasible:
            if where is None or excluded:
                raise
            # Then it is what plans cost that excludes them.
            excluded = True
            front = solve(model, where=_joined(wanted, None), **asked)
        best = front.points[0]
        if not front.complete:
            return replace(found, verdict="stopped", best=best)
    if excluded:
        reasons = _excluding(problem, profile, fixed, list(allowed), parts)
        if not reasons or exists(problem, profile, both):
            reasons = tuple(words for words, _ in conjuncts(where or "") if words not in allowed)
        return replace(found, verdict="excluded", reasons=reasons, best=best)
    if best is None:
        return replace(found, verdict="memory")
    gap = float(question.get("gap", 1e-3))
    slower = best.step_time_s > fastest.step_time_s * (1.0 + gap)
    return replace(found, verdict="slower" if slower else "equal", best=best)


def _without(asked: dict[str, Any], fix: bool) -> dict[str, Any]:
    """The question without the values that the user has fixed, where those exclude all plans."""
    return {**asked, "fix": None} if fix else asked


def has_values(point: FrontPoint, values: Mapping[str, int]) -> bool:
    """Whether a plan has all of these values."""
    return all(getattr(point.plan, name) == value for name, value in values.items())


def _unstatable(problem: Problem, profile: Profile, fixed: Condition) -> tuple[str, ...]:
    """Why the framework cannot state these values: the fewest rules that a plan with them breaks.

    Of the first few plans that there are.
    """
    for table in mesh_blocks(problem):
        for candidates in candidates_of(problem, profile.unrestricted, table, fixed.keep):
            reasons = profile.legality.reasons(problem, candidates.take(slice(0, ASKED)))
            if reasons:
                return tuple(sorted(reasons, key=len)[0])
    return ()


def _excluding(
    problem: Problem, profile: Profile, fixed: Condition, words: list[str], parts: list[Condition]
) -> tuple[str, ...]:
    """The conditions that alone exclude the values; all, where only together they do."""
    alone = tuple(
        said
        for said, part in zip(words, parts, strict=True)
        if not exists(problem, profile, Conditions(parts=(fixed, part)))
    )
    return alone or tuple(words)


def _condition(values: Mapping[str, int]) -> Condition:
    expression = _joined(values, None)
    return Condition(keep=compile_where(expression), reads=frozenset(values))


def _joined(values: Mapping[str, int], where: str | pl.Expr | None) -> pl.Expr:
    """The values as an expression, with the user's constraint."""
    import polars as pl

    parts = [pl.col(name) == value for name, value in values.items()]
    if where is not None:
        parts.append(pl.sql_expr(where) if isinstance(where, str) else where)
    return functools.reduce(operator.and_, parts)
