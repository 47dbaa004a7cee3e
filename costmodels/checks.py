"""Validation shared by the specs: each check raises one sentence that names the field."""

from __future__ import annotations

import math
from typing import Any

from autoshard.costmodels.errors import SpecError

#: Above this no count or rate of a training run is meant seriously, and 64-bit products stay safe.
LARGEST_COUNT = 2**40


def check_count(owner: str, field: str, value: Any, *, least: int = 1) -> None:
    """Require an integer of at least ``least`` (bool is not an integer here)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpecError(f"{owner}: {field} must be a whole number, got {value!r}.")
    if value < least:
        raise SpecError(f"{owner}: {field} must be at least {least}, got {value}.")
    if value > LARGEST_COUNT:
        raise SpecError(f"{owner}: {field} = {value} is beyond any real value (at most 2**40).")


def check_rate(owner: str, field: str, value: Any, *, zero_ok: bool = False) -> None:
    """Require a finite positive number (or zero where that means "none")."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SpecError(f"{owner}: {field} must be a number, got {value!r}.")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero_ok):
        need = "zero or more" if zero_ok else "greater than zero"
        raise SpecError(f"{owner}: {field} must be finite and {need}, got {value}.")


def check_one_of(owner: str, field: str, value: Any, choices: tuple[str, ...]) -> None:
    """Require one of a few words."""
    if value not in choices:
        raise SpecError(f"{owner}: {field} must be one of {', '.join(choices)}, got {value!r}.")
