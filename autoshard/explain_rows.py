"""One row of an explanation, and how its numbers are written for people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One quantity of the chain.

    ``value`` and ``bound`` are in ``unit``, SI; ``bound`` is None where nothing is compared, and
    ``holds`` then too. ``value_text`` and ``bound_text`` are ready to print, ``verdict`` is a short
    sentence or empty, ``source`` names the chapter.
    """

    section: str
    quantity: str
    value: float
    unit: str
    value_text: str
    bound: float | None = None
    bound_text: str = ""
    holds: bool | None = None
    verdict: str = ""
    source: str = ""


def number(value: float) -> str:
    """A count for people: separators where whole or large, a power of ten where huge."""
    if abs(value) >= 1e15 or (isinstance(value, float) and abs(value) >= 1e12):
        return f"{value:.4g}"
    if value == int(value) or abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def number_pair(first: float, second: float) -> tuple[str, str]:
    """Two counts for people, with more digits where they differ and would read the same."""
    if first != second and number(first) == number(second):
        return f"{first:,.9g}", f"{second:,.9g}"
    return number(first), number(second)


def decimal_bytes(value: float) -> str:
    """Bytes for people in powers of 1000, as data sheets and the book give memory."""
    for size, name in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if value >= size:
            return (
                f"{value / size:.4g} {name}"
                if value < 1e3 * size
                else f"{value / size:,.0f} {name}"
            )
    return f"{value:,.0f} B"


def chips(count: int) -> str:
    """A number of chips for people."""
    return "1 chip" if count == 1 else f"{count:,} chips"


def days(value: float) -> str:
    """Days for people, with hours where it is less than one day."""
    return f"{value:,.2f} days" if value >= 1 else f"{value * 24:.2f} hours"


def percent(value: float) -> str:
    """A fraction for people."""
    return f"{value:.1%}"


def compare_tokens(value: float, bound: float, unit: str, *, exceeds: float | None = None) -> str:
    """The verdict on a number of tokens that should reach a bound.

    Args:
        value: tokens there are.
        bound: tokens from which arithmetic hides communication.
        unit: what the tokens are counted per, in words.
        exceeds: communication over arithmetic; ``bound / value`` where not given.
    """
    left, right = number_pair(value, bound)
    if value >= bound:
        return f"compute-bound: {left} >= {right} {unit}"
    factor = bound / value if exceeds is None else exceeds
    return f"communication-bound by {times(factor)}: {left} < {right} {unit}"


def times(factor: float) -> str:
    """A factor for people, with enough digits that just over one does not read as one."""
    return f"{factor:.3f}x" if factor < 2 else f"{factor:.1f}x"
