"""Sizes as people write them: ``72GiB``, ``80GB``, ``16M``; and how they are printed."""

from __future__ import annotations

import math
import re
from numbers import Real

from autoshard.costmodels.checks import shown
from autoshard.costmodels.errors import SpecError

BYTES = {"": 1, "B": 1}
BYTES |= {f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGT")}
BYTES |= {f"{p}iB": 1024 ** (i + 1) for i, p in enumerate("KMGT")}

#: ``4M`` tokens are 4e6; a power of two is written out, or as ``4Mi``.
COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
COUNTS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

#: Above this no size and no count is meant seriously.
LARGEST = 2**60


def parse_bytes(text: str | float) -> int:
    """Bytes from ``"72GiB"``, ``"80GB"`` or a number; part of a byte counts as a whole one.

    So a plan fits the ``memory_bytes`` that an answer says of it, which need not be whole.

    >>> parse_bytes("80GB")
    80000000000

    Raises:
        SpecError: it is no size, not positive, or above 2**60.
    """
    return _parse(text, BYTES, "size", "72GiB, 80GB or a number of bytes")


def parse_count(text: str | float) -> int:
    """A count from ``"16M"``, ``"15T"``, ``"4Mi"`` (2^22) or a number.

    >>> parse_count("4Mi")
    4194304

    Raises:
        SpecError: it is no whole positive count, or above 2**60.
    """
    return _parse(text, COUNTS, "count", "4194304, 16M, 15T or 4Mi (4 * 2**20)")


def _parse(text: str | float, units: dict[str, int], what: str, examples: str) -> int:
    if isinstance(text, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*", text)
        by_lower = {unit.lower(): factor for unit, factor in units.items()}
        factor = by_lower.get(match[2].lower()) if match else None
        if match is None or factor is None:
            raise SpecError(f"{text!r} is not a {what}: write {examples}.")
        value = float(match[1]) * factor
    elif isinstance(text, Real) and not isinstance(text, bool):
        value = float(min(text, 2 * LARGEST)) if text < math.inf else math.inf
    else:
        raise SpecError(f"{shown(text)} is not a {what}: write {examples}.")
    if not math.isfinite(value) or value < 1 or abs(value - round(value)) > 1e-6 * value:
        raise SpecError(f"{shown(text)} is not a {what} of at least one: write {examples}.")
    if value > LARGEST:
        raise SpecError(
            f"{shown(text)} is beyond any real {what} (at most 2**60): write {examples}."
        )
    whole = round(value)
    # More than the noise of a product, 72.3 times 2**30, is meant.
    return whole + (what == "size" and value - whole > 4e-15 * value)


def format_bytes(value: float) -> str:
    """Bytes for people, in the binary unit that leaves one to four digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} B" if unit == "B" else f"{value:,.2f} {unit}"
        value /= 1024
    raise AssertionError


def format_seconds(value: float) -> str:
    """Seconds for people: milliseconds below one second.

    >>> format_seconds(0.4294)
    '429.4 ms'
    """
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"
