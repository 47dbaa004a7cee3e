"""``--where``: a constraint on plans, as a polars expression or its text.

Here are conditions on the integers of a plan; ``autoshard.predicted`` has those on its costs. The
text is SQL as polars reads it (``tp <= 8 and pp * vpp <= 32``): an expression over columns,
never code that is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.checks import shown
from autoshard.costmodels.errors import SpecError, UnknownName
from autoshard.search.space import Keep

if TYPE_CHECKING:
    import polars as pl

#: What a constraint may speak of: the integers of a plan.
NAMES = (*(c for c in COLUMNS if c != "layout"), "fsdp", "ep", "chips_used")

#: Words of a query, which a condition has no use for.
QUERY = re.compile(r"(?i)\b(select|from|with|read_\w+|scan_\w+)\b")

EXAMPLE = "compare columns, as in tp <= 8 and pp * vpp <= 32"


def compile_where(where: str | pl.Expr) -> Keep:
    """A function from candidates to the Boolean column of those that satisfy ``where``.

    Raises:
        SpecError: the text is no expression, names an unknown column, or is not a condition.
    """
    return condition(where, expression_of(where, NAMES))


def expression_of(where: str | pl.Expr, known: Sequence[str]) -> pl.Expr:
    """The expression that a constraint is, over known columns.

    Raises:
        SpecError: it is none, or names no column or an unknown one.
    """
    import polars as pl

    expression = _parse(where) if isinstance(where, str) else where
    if not isinstance(expression, pl.Expr):
        raise SpecError(f"--where wants text or a polars expression, got {shown(where)}.")
    roots = list(dict.fromkeys(expression.meta.root_names()))
    for name in roots:
        if name.startswith("_POLARS"):
            raise SpecError(f"--where {str(where)!r} cannot be read: it holds a query; {EXAMPLE}.")
        if name not in known:
            raise UnknownName("column in --where", name, known)
    if not roots:
        raise SpecError(f"--where {str(where)!r} names no column; known: {', '.join(known)}.")
    return expression


def condition(where: str | pl.Expr, expression: pl.Expr) -> Keep:
    """An expression of a constraint as a function, where it speaks of integers only."""
    roots = list(dict.fromkeys(expression.meta.root_names()))

    def keep(candidates: Candidates) -> np.ndarray:
        return truth(where, expression, {name: column(candidates, name) for name in roots})

    # A constraint that cannot be evaluated must fail now, not in the middle of a search; and one
    # that compares plans with each other has no meaning, because plans are judged in blocks.
    together = keep(_probe(1, 2, 4)).tolist()
    if together != [bool(keep(_probe(n))[0]) for n in (1, 2, 4)]:
        raise SpecError(
            f"--where {str(where)!r} judges several plans together (max, mean, ...); {EXAMPLE}."
        )
    return keep


def truth(
    where: str | pl.Expr, expression: pl.Expr, columns: Mapping[str, NDArray[Any]]
) -> NDArray[np.bool_]:
    """Where an expression of a constraint holds.

    Raises:
        SpecError: it cannot be evaluated, is no condition on each row, or is null somewhere.
    """
    import polars as pl

    frame = pl.DataFrame(columns)
    try:
        kept = frame.select(expression.alias("keep"))["keep"]
    except Exception as error:  # polars passes on what a function of the user raises
        raise SpecError(f"--where {str(where)!r}: {_first_line(error)}.") from None
    if kept.dtype != pl.Boolean or len(kept) != len(frame):
        gives = str(kept.dtype) if len(kept) == len(frame) else "one value for all"
        raise SpecError(
            f"--where {str(where)!r} is not a condition on each plan, it gives {gives}; {EXAMPLE}."
        )
    if kept.null_count():
        row = frame.row(int(kept.is_null().arg_max() or 0), named=True)
        at = ", ".join(f"{name} = {value}" for name, value in row.items())
        raise SpecError(
            f"--where {str(where)!r} is neither true nor false (null) for a plan with {at}; "
            "say what holds there, as with coalesce(..., false) or fill_null(False)."
        )
    return np.asarray(kept.to_numpy(), dtype=np.bool_)


def column(candidates: Candidates, name: str) -> np.ndarray:
    """A named column of the candidates, derived ones included."""
    if name == "ep":
        return np.ones(len(candidates), dtype=np.int64)
    values: np.ndarray = getattr(candidates, name)
    return values


def _probe(*values: int) -> Candidates:
    return Candidates(**{name: np.array(values, dtype=np.int64) for name in COLUMNS})


def _parse(text: str) -> pl.Expr:
    import polars as pl

    if "&" in text or "|" in text:  # in SQL these bind before <=, and mean bits
        raise SpecError(f"--where {text!r}: write and, or, not instead of &, |; {EXAMPLE}.")
    if QUERY.search(text):  # polars opens the files of a query where it only reads the text
        raise SpecError(f"--where {text!r} cannot be read: it holds a query; {EXAMPLE}.")
    try:
        return pl.sql_expr(text)
    except (pl.exceptions.PolarsError, ValueError, TypeError) as error:
        raise SpecError(
            f"--where {text!r} cannot be read: {_first_line(error)}; {EXAMPLE}."
        ) from None


def _first_line(error: Exception) -> Any:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
