"""What is asked of the search: arguments that are checked, and the user's constraints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.checks import LARGEST_COUNT, shown
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.fixing import check_fix, fix_words, keep_fixed
from autoshard.search.front import Options
from autoshard.search.space import Keep

if TYPE_CHECKING:
    import polars as pl

    from autoshard.predicted import Predicted

#: What a front can trade.
OBJECTIVES = ("time", "memory", "chips")
DEFAULT_OBJECTIVES = ("time", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """The user's constraints: the text of ``--where``, the values of ``--fix``, what they mean.

    ``expression`` is the constraint as it was given, text or not.
    ``keep`` judges the integers of a plan, ``predicted`` what it costs; None where nothing is said.
    """

    where: str | None = None
    expression: str | pl.Expr | None = None
    fix: Mapping[str, int] = field(default_factory=dict)
    keep: Keep | None = None
    predicted: Predicted | None = None

    @property
    def words(self) -> str:
        """The constraints as options."""
        said = [] if self.where is None else [f"--where {self.where!r}"]
        return " and ".join([*said, *([fix_words(self.fix)] if self.fix else [])])


def read_constraints(
    where: str | pl.Expr | None, fix: Mapping[str, int] | None, problem: Problem, profile: Profile
) -> Constraints:
    """Compile the user's constraints.

    Raises:
        SpecError: one of them cannot be read; the message says why.
    """
    fixed = check_fix(fix)
    keeps = [keep_fixed(fixed)] if fixed else []
    predicted = None
    if where is not None:
        from autoshard.predicted import read_where

        keep, predicted = read_where(where, problem, profile)
        keeps += [] if keep is None else [keep]

    def both(candidates: Candidates) -> np.ndarray:
        kept = keeps[0](candidates)
        for more in keeps[1:]:
            kept = kept & more(candidates)
        return kept

    return Constraints(
        where=None if where is None else str(where),
        expression=where,
        fix=fixed,
        keep=both if keeps else None,
        predicted=predicted,
    )


def check_objectives(objectives: str | Sequence[str]) -> tuple[str, ...]:
    """Objectives of a front in the order of :data:`OBJECTIVES`; text has commas between them.

    Raises:
        SpecError: an objective is unknown or twice there, or time is not among them.
    """
    words: Sequence[Any] = [objectives]
    if isinstance(objectives, str):
        words = [word.strip() for word in objectives.split(",")]
    elif isinstance(objectives, Sequence):
        words = objectives
    if sorted(map(str, words)) != sorted(set(map(str, words)) & set(OBJECTIVES)) or (
        "time" not in words
    ):
        raise SpecError(
            f"--front names objectives out of {', '.join(OBJECTIVES)}, each once and time among "
            f"them, such as time,memory,chips; got {shown(objectives)}."
        )
    return tuple(name for name in OBJECTIVES if name in words)


def search_options(
    constraints: Constraints,
    *,
    objectives: str | Sequence[str],
    points: int,
    gap: float,
    time_limit_s: float | None,
    **rest: Any,
) -> Options:
    """The options of the search.

    Raises:
        SpecError: one of them is out of range or of the wrong type.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 0:
        raise SpecError(f"points must be a whole number, 0 for all, got {shown(points)}.")
    if not _is_number(gap) or not 0 <= gap < 1:
        raise SpecError(f"gap must be at least 0 and below 1, such as 0.001, got {shown(gap)}.")
    if time_limit_s is not None:
        if not _is_number(time_limit_s) or not time_limit_s > 0:
            raise SpecError(
                "the time limit must be greater than zero seconds, such as 60, got "
                f"{shown(time_limit_s)}."
            )
        time_limit_s = float(min(time_limit_s, LARGEST_COUNT))  # later is never
    for name, function in rest.items():
        if function is not None and not callable(function):
            raise SpecError(f"{name} must be a function or None, got {shown(function)}.")
    return Options(
        points=points,
        gap=gap,
        time_limit_s=time_limit_s,
        keep=constraints.keep,
        limit=constraints.predicted,
        objectives=check_objectives(objectives),
        **rest,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
