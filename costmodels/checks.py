"""Validation shared by the specs: each check raises one sentence that names the field."""

from __future__ import annotations

import math
from typing import Any

from autoshard.costmodels.errors import SpecError

#: Above this no count or rate of a training run is meant seriously, and 64-bit products stay safe.
LARGEST_COUNT = 2**40


def said(count: float) -> str:
    """A number in a sentence: separators from 10,000 on, a power of two where it has no end.

    A value to paste back is printed as it is.
    """
    if isinstance(count, int) and abs(count) >= 10**30:
        return f"{'-' if count < 0 else ''}2**{abs(count).bit_length() - 1} or so"
    return f"{count:,}" if abs(count) >= 10_000 else str(count)


def shown(value: Any) -> str:
    """A wrong value in a sentence, cut where it is long."""
    if isinstance(value, int) and not isinstance(value, bool):
        return said(value)
    try:
        text = repr(value)
    except Exception:  # a repr of someone else's, or a list of endless integers
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_count(owner: str, field: str, value: Any, *, least: int = 1) -> None:
    """Require an integer of at least ``least`` (bool is not an integer here)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpecError(f"{owner}: {field} must be a whole number, got {shown(value)}.")
    if value < least:
        raise SpecError(f"{owner}: {field} must be at least {least}, got {said(value)}.")
    if value > LARGEST_COUNT:
        raise SpecError(
            f"{owner}: {field} = {said(value)} is beyond any real value (at most 2**40)."
        )


def check_rate(owner: str, field: str, value: Any, *, zero_ok: bool = False) -> None:
    """Require a finite positive number (or zero where that means "none")."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SpecError(f"{owner}: {field} must be a number, got {shown(value)}.")
    finite = abs(value) < 10**300 if isinstance(value, int) else math.isfinite(value)
    if not finite or value < 0 or (value == 0 and not zero_ok):
        need = "zero or more" if zero_ok else "greater than zero"
        raise SpecError(f"{owner}: {field} must be finite and {need}, got {said(value)}.")


def check_one_of(owner: str, field: str, value: Any, choices: tuple[str, ...]) -> None:
    """Require one of a few words."""
    if not isinstance(value, str) or value not in choices:
        raise SpecError(
            f"{owner}: {field} must be one of {', '.join(choices)}, got {shown(value)}."
        )
