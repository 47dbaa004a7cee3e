"""The conditions that a ``--where`` joins with ``and``, one by one, in the user's own words."""

from __future__ import annotations

import functools
import operator
import re
from typing import TYPE_CHECKING

from autoshard.predicted import split

if TYPE_CHECKING:
    import polars as pl


def conjuncts(where: str | pl.Expr) -> list[tuple[str, pl.Expr]]:
    """Words and expression of each condition; a single one where nothing is joined.

    Text is cut only where its parts, joined again, are the same expression.
    """
    import polars as pl

    if not isinstance(where, str):
        return [(str(part), part) for part in split(where, operator.and_)]
    whole = pl.sql_expr(where)
    parts: list[tuple[str, pl.Expr]] = []
    held = ""
    for word in re.split(r"(?i)\s+and\s+", where.strip()):
        held = f"{held} and {word}" if held else word
        try:
            parts.append((held, pl.sql_expr(held)))
        except (pl.exceptions.PolarsError, ValueError, TypeError):
            continue  # cut inside brackets, or in a BETWEEN
        held = ""
    if parts and not held:
        joined = functools.reduce(operator.and_, (part for _, part in parts))
        if joined.meta.eq(whole):
            return parts
    return [(where.strip(), whole)]
