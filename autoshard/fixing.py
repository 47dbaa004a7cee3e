"""``--fix tp=8,pp=16``: the degrees that somebody else has chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.checks import check_count, shown
from autoshard.costmodels.errors import SpecError, UnknownName
from autoshard.costmodels.problem import Problem
from autoshard.search.blocks import EXPANDED_COLUMNS, expansions, mesh_blocks
from autoshard.search.space import Keep
from autoshard.where import NAMES, column

EXAMPLE = "as in --fix tp=8,pp=16"


def parse_fix(texts: Sequence[str]) -> dict[str, int]:
    """The values that ``NAME=VALUE`` texts fix, several in one text with commas between them.

    Raises:
        SpecError: a text is not of that form, or a name has two values.
    """
    fixed: dict[str, int] = {}
    for part in ",".join(texts).split(",") if texts else ():
        name, equals, value = (word.strip() for word in part.partition("="))
        if not name or not equals or not (value.isascii() and value.isdigit()):
            raise SpecError(f"--fix wants NAME=NUMBER, {EXAMPLE}, got {part.strip()!r}.")
        if len(value) > 15:
            raise SpecError(f"--fix {name} = {value[:15]}...: no plan has a value that large.")
        if fixed.setdefault(name, int(value)) != int(value):
            raise SpecError(f"--fix gives {name} two values, {fixed[name]} and {int(value)}.")
    return check_fix(fixed)


def check_fix(fix: Mapping[str, int] | None) -> dict[str, int]:
    """Fixed values by the name of an integer column of plans.

    Raises:
        SpecError: not a mapping, an unknown name, or a value that is no positive whole number.
    """
    if fix is None:
        return {}
    if not isinstance(fix, Mapping):
        raise SpecError(
            f"fix must map names to whole numbers, such as {{'tp': 8}}, got {shown(fix)}."
        )
    for name, value in fix.items():
        if not isinstance(name, str) or name not in NAMES:
            raise UnknownName("name in --fix", str(name), NAMES)
        check_count("--fix", name, value)
    return dict(fix)


def keep_fixed(fix: Mapping[str, int]) -> Keep:
    """A function from candidates to those that have the fixed values."""

    def keep(candidates: Candidates) -> np.ndarray:
        kept = np.ones(len(candidates), dtype=np.bool_)
        for name, value in fix.items():
            kept &= column(candidates, name) == value
        return kept

    return keep


def fix_words(fix: Mapping[str, int]) -> str:
    """``--fix tp=8,pp=16``."""
    return "--fix " + ",".join(f"{name}={value}" for name, value in fix.items())


def why_no_plan_has(problem: Problem, virtual: bool, fix: Mapping[str, int]) -> str | None:
    """A sentence about the first value that no plan has with those before it; None if one has."""
    names = list(fix)
    seen: dict[str, set[int]] = {name: set() for name in names}
    for table in mesh_blocks(problem):
        expands = EXPANDED_COLUMNS & set(names)
        pieces = expansions(problem, table, virtual=virtual) if expands else ((table, None),)
        for candidates, _ in pieces:
            for name in names:
                values = column(candidates, name)
                seen[name].update(np.unique(values).tolist())
                candidates = candidates.take(values == fix[name])
    for number, name in enumerate(names):
        if fix[name] not in seen[name]:
            named = " and ".join(f"{n} = {fix[n]}" for n in names[:number])
            given = f" with {named}" if named else ""
            return f"no plan{given} has {name} = {fix[name]}; {possible(name, seen[name])}."
    return None


def possible(name: str, values: Collection[int]) -> str:
    """``tp can be 1, 2, 4, 8``, and the largest where there are many."""
    listed = ", ".join(str(v) for v in sorted(values)[:12])
    more = f", ... up to {max(values)}" if len(values) > 12 else ""
    return f"{name} can be {listed}{more}"
