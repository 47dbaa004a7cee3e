"""What ``autoshard evaluate`` prints: the plan, whether it fits, what is better."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from autoshard.columns import Column
from autoshard.evaluating import Evaluation
from autoshard.report import hanging, part_lines, plain_table, plan_lines, render
from autoshard.sizes import format_bytes, format_seconds
from autoshard.words import binding_words, interval_words, percent, proof_words


def evaluation_report(found: Evaluation) -> str:
    """The answer on a terminal."""
    parts: list[RenderableType] = [*_plan(found), Text(), *part_lines(found.point), Text()]
    parts += [hanging(line) for line in fit_lines(found)]
    parts += [Text(), *_optimum(found)]
    if found.changes:
        parts += [Text(), _changes(found)]
    parts.append(hanging(changes_line(found), style="dim" if found.changes else ""))
    said = list(_notes(found))
    return render(*parts, *([Text()] if said else []), *(hanging(line, "- ") for line in said))


def _plan(found: Evaluation) -> Iterator[RenderableType]:
    point = found.point
    yield Text.assemble(
        ("This plan: ", "bold"),
        (f"{format_seconds(point.step_time_s)} a step", "bold green"),
        f"{interval_words(point)}, {format_bytes(point.memory_bytes)}/chip, MFU "
        f"{point.mfu * 100:.1f} %, {found.tokens_per_s:,.0f} tokens/s",
    )
    first, second, _ = plan_lines(found.front, point)
    for line in (first, second, binding_words(point)):
        yield hanging(line, "  ")


def fit_lines(found: Evaluation) -> Iterator[str]:
    """Whether the plan fits, by how much, and what would make it fit."""
    point, capacity = found.point, found.capacity_bytes
    where = ""
    if point.plan.pp > 1:
        where = f"; stage {found.fullest_stage + 1} of {point.plan.pp} is the fullest"
    if found.fits:
        free = capacity - point.memory_bytes
        yield f"It fits: {format_bytes(free)} of {format_bytes(capacity)} are free{where}."
        return
    over = point.memory_bytes - capacity
    yield (
        f"It does not fit: {format_bytes(over)} more than the {format_bytes(capacity)} of a chip"
        f"{where}."
    )
    if found.changes:
        best = found.changes[0]
        slower = f"{percent(abs(best.faster_by))} {'faster' if best.faster_by > 0 else 'slower'}"
        yield (
            f"What would make it fit: {best.words} ({format_bytes(best.memory_bytes)}/chip, "
            f"{slower})."
        )
    elif found.optimum is not None:
        yield "No single change makes it fit; the fastest plan that does follows."
    else:
        yield "No single change makes it fit."


def _optimum(found: Evaluation) -> Iterator[RenderableType]:
    """The fastest plan at the same memory, and how far this one is from it."""
    if found.optimum is None:
        return
    best = found.optimum.points[0]
    gap = float(found.optimum.search.get("gap", 0.0))
    proof = proof_words(best, gap, complete=found.optimum.complete)
    yield hanging(distance_line(found))
    if best.plan != found.point.plan:
        words = (
            f"{format_seconds(best.step_time_s)} a step, {format_bytes(best.memory_bytes)}/chip, "
            f"MFU {best.mfu * 100:.1f} %; {proof}"
        )
        first, second, _ = plan_lines(found.optimum, best)
        for line in (words, first, second, binding_words(best)):
            yield hanging(line, "  ")


def distance_line(found: Evaluation) -> str:
    """How far the plan is from the optimum, as a sentence."""
    assert found.optimum is not None
    best, faster = found.optimum.points[0], found.faster_by or 0.0
    proof = proof_words(best, found.gap, complete=found.optimum.complete)
    asked = " and ".join(
        words
        for words in (
            found.optimum.problem.get("where") and f"--where {found.optimum.problem['where']!r}",
            found.optimum.problem.get("fix") and "--fix",
        )
        if words
    )
    under = f" under {asked}" if asked else ""
    if not found.fits:
        return f"The fastest plan that fits{under}:"
    if best.plan == found.point.plan:
        return f"It is the fastest plan{under} at its memory, {proof}."
    if abs(faster) <= found.gap:
        return f"It is as fast as the best plan{under} at its memory, within {percent(found.gap)}:"
    if faster < 0:
        return f"It is {percent(-faster)} faster per step than the best plan{under} at its memory:"
    return f"The fastest plan{under} at its memory is {percent(faster)} faster:"


def _changes(found: Evaluation) -> RenderableType:
    changes = found.changes
    return plain_table(
        (
            Column(head="faster", cells=tuple(f"{c.faster_by * 100:+.2f} %" for c in changes)),
            Column(head="step", cells=tuple(format_seconds(c.step_time_s) for c in changes)),
            Column(head="a chip", cells=tuple(format_bytes(c.memory_bytes) for c in changes)),
            Column(head="one change", cells=tuple(c.words for c in changes), left=True),
        )
    )


def changes_line(found: Evaluation) -> str:
    """How many single changes were tried, and what came of them."""
    tried = f"{found.tried} single changes are legal"
    if not found.fits:
        return f"{tried}; {found.fitting} of them fit."
    if not found.changes:
        return f"{tried}; none of those that fit is faster."
    more = found.fitting - len(found.changes)
    rest = f", {more} not shown" if more else ""
    return f"{tried}; {found.fitting} of those that fit are faster{rest}."


def _notes(found: Evaluation) -> Iterator[str]:
    if found.assumed:
        yield f"Not stated, and assumed: {'; '.join(found.assumed)}."
    if found.ignored:
        yield f"Not read from the launch config: {', '.join(found.ignored)}."
    yield from found.notes
    costs = found.problem["costs"]["profile"]
    yield f"Priced by {costs}; `autoshard models --costs` lists others."
