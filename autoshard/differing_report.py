"""What ``autoshard diff`` prints: both plans side by side, and what one gains or loses on each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from autoshard.columns import Column
from autoshard.completing import layers_words
from autoshard.costmodels.plan import Plan
from autoshard.differing import Difference
from autoshard.report import hanging, plain_table, render
from autoshard.sizes import format_bytes, format_seconds
from autoshard.words import percent, plan_words, remat_words

#: Values of the problem that are shown; JSON has all.
MOST_VALUES = 12


def difference_report(found: Difference) -> str:
    """The answer on a terminal."""
    parts: list[RenderableType] = [hanging(line) for line in summary(found)]
    if found.problem:
        parts += [Text(), _table("problem", dict(problem_rows(found)))]
    if found.degrees:
        parts += [Text(), _table("plan", dict(degree_rows(found)))]
    step = {"step": (found.a.step_time_s, found.b.step_time_s)}
    # Sums of floats in another order are no part of a step.
    shown_s = 1e-9 * max(step["step"])
    steps = {name: both for name, both in found.parts_s.items() if max(both) > shown_s}
    parts += [Text(), _figures("part of the step", steps | step)]
    if found.comms_s:
        parts += [Text(), _figures("communication, hidden or not", found.comms_s)]
    parts += [Text(), _table("of the whole", dict(_totals(found)), "B - A")]
    return render(*parts)


def summary(found: Difference) -> Iterator[str]:
    """Both plans in a line each, and which is faster."""
    for name, point in (("A", found.a), ("B", found.b)):
        yield (
            f"{name}: {format_seconds(point.step_time_s)} a step, "
            f"{format_bytes(point.memory_bytes)}/chip, {plan_words(point.plan)} on "
            f"{point.plan.chips_used:,} chips"
        )
    rates = found.tokens_per_s or (1.0 / found.a.step_time_s, 1.0 / found.b.step_time_s)
    words = "per token" if found.batch_tokens[0] != found.batch_tokens[1] else "per step"
    first, second = rates
    if first == second:
        yield f"They are equally fast {words}."
    else:
        name, share = ("B", second / first) if second > first else ("A", first / second)
        yield f"{name} is {percent(share - 1.0)} faster {words}."
    if found.problem:
        yield "They answer different problems."


def problem_rows(found: Difference) -> Iterator[tuple[str, tuple[str, str]]]:
    """What differs between the problems, in text."""
    rows = list(found.problem.items())
    for name, (a, b) in rows[:MOST_VALUES]:
        yield name, (_value(a), _value(b))
    if len(rows) > MOST_VALUES:
        yield f"and {len(rows) - MOST_VALUES} more (--json)", ("", "")


def degree_rows(found: Difference) -> Iterator[tuple[str, tuple[str, str]]]:
    """What differs between the plans, in text."""
    said: Mapping[str, Callable[[Plan], str]] = {
        "layers_per_stage": lambda plan: layers_words(plan.layers_per_stage),
        "remat": remat_words,
        "layout": lambda plan: ", ".join(f"{k}: {v}" for k, v in plan.layout.items()),
    }
    for name, (a, b) in found.degrees.items():
        words = said.get(name)
        if words is None:
            yield name, (f"{a:,}", f"{b:,}")
        elif name != "remat" or words(found.a.plan) != words(found.b.plan):
            yield name, (words(found.a.plan), words(found.b.plan))


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = "-" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _table(head: str, rows: Mapping[str, tuple[str, ...]], *more: str) -> RenderableType:
    """Text of both, and of whatever follows."""
    columns = [
        Column(head=name, cells=tuple(row[place] for row in rows.values()))
        for place, name in enumerate(("A", "B", *more))
    ]
    return plain_table((Column(head=head, cells=tuple(rows), left=True), *columns))


def _figures(head: str, seconds: Mapping[str, tuple[float, float]]) -> RenderableType:
    """Seconds of both, and the difference."""
    return _table(head, {n: _three(both, format_seconds) for n, both in seconds.items()}, "B - A")


def _three(both: tuple[float, float], words: Callable[[float], str]) -> tuple[str, str, str]:
    a, b = both
    less = words(abs(b - a))
    sign = "" if less == words(0.0) else "-" if b < a else "+"
    return words(a), words(b), f"{sign}{less}"


def _totals(found: Difference) -> Iterator[tuple[str, tuple[str, str, str]]]:
    a, b = found.a, found.b
    yield "memory per chip", _three((a.memory_bytes, b.memory_bytes), format_bytes)
    yield "MFU", _three((a.mfu, b.mfu), lambda share: f"{share * 100:.1f} %")
    chips = float(a.plan.chips_used), float(b.plan.chips_used)
    yield "chips used", _three(chips, lambda count: f"{count:,.0f}")
    if found.tokens_per_s is not None:
        yield "tokens/s", _three(found.tokens_per_s, lambda rate: f"{rate:,.0f}")
