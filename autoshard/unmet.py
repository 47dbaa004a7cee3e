"""Which of the user's conditions bind where those on predicted costs exclude every plan.

Each condition is dropped in turn, and the search asked whether the others have a plan then.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autoshard.asking import Constraints, read_constraints
from autoshard.conjuncts import conjuncts
from autoshard.costmodels.errors import Infeasible
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.fixing import fix_words
from autoshard.predicted import PREDICTED
from autoshard.search.budget import Point
from autoshard.search.front import Options, solve_front
from autoshard.sizes import format_bytes

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One condition of the user: an expression of ``--where``, or a value of ``--fix``.

    ``limits`` is what it limits of a plan's costs, ``time`` or ``memory``; empty for integers.
    """

    words: str
    expression: pl.Expr | None = None
    fix: Mapping[str, int] | None = None
    limits: str = ""


def parts_of(asked: Constraints) -> list[Part]:
    """The user's conditions, one by one; those on predicted costs last."""
    found = [
        Part(words=fix_words({name: value}), fix={name: value}) for name, value in asked.fix.items()
    ]
    if asked.expression is not None:
        for words, expression in conjuncts(asked.expression):
            kinds = {PREDICTED[n] for n in expression.meta.root_names() if n in PREDICTED}
            # Of several, as in an `or`, the first: a condition is on time or on memory.
            limits = min(kinds, default="")
            found.append(Part(words=repr(words), expression=expression, limits=limits))
    return sorted(found, key=lambda part: part.limits != "")


def binding_words(problem: Problem, profile: Profile, options: Options, asked: Constraints) -> str:
    """A sentence on the conditions that bind, and what plans there are without each of them.

    Empty where the user has only one condition, or one that cannot stand alone.
    """
    parts = parts_of(asked)
    if len(parts) < 2 or not all(part.fix or _names(part) for part in parts):
        return ""
    known: dict[tuple[str, ...], Point | None] = {}

    def without(part: Part, among: Sequence[Part]) -> Point | None:
        fewer = [other for other in among if other is not part]
        key = (part.limits, *(other.words for other in fewer))
        if key not in known:
            smallest = part.limits == "memory"
            known[key] = _best(problem, profile, options, fewer, smallest=smallest)
        return known[key]

    left = parts
    for part in parts:
        if without(part, left) is None:
            left = [other for other in left if other is not part]
    if len(left) == 1:
        return f"What binds is {left[0].words} alone."
    each = [
        f"without {part.words}, {_costs(problem, profile, part, point)}"
        for part in left
        if (point := without(part, left)) is not None
    ]
    listed = f"{', '.join(part.words for part in left[:-1])} and {left[-1].words}"
    return (
        f"What binds is {listed} together: without any one of them there is a plan "
        f"({'; '.join(each)})."
    )


def _names(part: Part) -> list[str]:
    return [] if part.expression is None else part.expression.meta.root_names()


def _best(
    problem: Problem, profile: Profile, options: Options, parts: Sequence[Part], *, smallest: bool
) -> Point | None:
    """The fastest plan under some conditions, or the smallest of a front; None if there is none."""
    said = [part.expression for part in parts if part.expression is not None]
    where = functools.reduce(operator.and_, said) if said else None
    fix = {name: value for part in parts for name, value in (part.fix or {}).items()}
    constraints = read_constraints(where, fix, problem, profile)
    free = replace(
        options,
        keep=constraints.keep,
        limit=constraints.predicted,
        points=2 if smallest else 1,
        objectives=("time", "memory"),
        progress=None,
        time_limit_s=None,
    )
    try:
        return solve_front(problem, profile, free).points[-1]
    except Infeasible:
        return None


def _costs(problem: Problem, profile: Profile, part: Part, point: Point) -> str:
    """What of a plan the condition that it breaks is about."""
    if part.limits == "memory":
        return f"{format_bytes(point.memory_bytes)} per chip would do"
    mfu = model_flops_share(problem, profile, point)
    return f"the fastest takes {point.step_time_s:.4g} s a step (MFU {mfu * 100:.1f} %)"


def model_flops_share(problem: Problem, profile: Profile, point: Point) -> float:
    """The MFU of a plan that was found."""
    peak_flops_per_s = problem.peak_flops_per_s * point.plan.chips_used
    return profile.compute.flops_per_step(problem) / (point.step_time_s * peak_flops_per_s)
