"""What ``autoshard explain --why-not`` prints: one sentence, then the difference term by term."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from autoshard.columns import Column
from autoshard.front import FrontPoint
from autoshard.reasons import WhyNot
from autoshard.report import plain_table, render
from autoshard.sizes import format_bytes, format_seconds
from autoshard.words import microbatch_words, percent, plan_words


def why_not_report(found: WhyNot) -> str:
    """The answer on a terminal."""
    parts: list[RenderableType] = [Text(line) for line in why_not_lines(found)]
    if found.best is not None and found.lost_s:
        parts += [Text(), _terms(found, found.best)]
    return render(*parts)


def why_not_lines(found: WhyNot) -> list[str]:
    """Why, in words; the plans that are compared follow."""
    asked = ", ".join(f"{name} = {value}" for name, value in found.values.items())
    fastest = f"Fastest: {_plan(found.fastest)}."
    if found.verdict == "fastest":
        return [f"The fastest plan has {asked}.", fastest]
    lines = []
    if found.verdict == "illegal":
        of = f" of {found.ruled_by}" if found.ruled_by else ""
        lines.append(f"No plan{of} has {asked}: {'; '.join(found.reasons)}.")
        for name, near in found.nearest.items():
            beside = ", ".join(f"{k} = {v}" for k, v in found.values.items() if k != name)
            if near and found.values[name] not in near:
                nearest = " or ".join(map(str, near))
                lines.append(f"Nearest{beside and f' with {beside}'}: {name} = {nearest}.")
    elif found.verdict == "memory":
        needs = format_bytes(found.least_bytes or 0.0)
        lines.append(
            f"No plan with {asked} fits: the smallest needs {needs} per chip, and "
            f"{format_bytes(found.capacity_bytes)} are there."
        )
    elif found.verdict == "stopped":
        lines.append(
            f"The search was stopped before it could say why not {asked}; give it more time. The "
            "fastest plan that it found follows."
        )
    elif found.verdict == "excluded":
        fixed = all(reason.startswith("--fix") for reason in found.reasons)
        by = "--fix" if fixed else "--where"
        said = " and ".join(reason.removeprefix("--fix ") for reason in found.reasons)
        lines.append(f"{by} excludes every plan with {asked}: {said}.")
        if found.best is None:
            lines.append("Without it none of them fits in memory either.")
    elif found.verdict == "equal":
        lines.append(
            f"A plan with {asked} is as fast within the gap; of equals, the one that is smaller, "
            "then talks less, then has the smaller tp and seq_split and fewer chips is shown."
        )
    else:
        lines.append(f"The best plan with {asked} is {percent(found.slower_by or 0.0)} slower.")
    if found.best is not None:
        without = " without that" if found.verdict == "excluded" else ""
        lines.append(f"Best with {asked}{without}: {_plan(found.best)}.")
    return [*lines, fastest]


def _plan(point: FrontPoint) -> str:
    """A plan, its time and its memory in one line."""
    return (
        f"{format_seconds(point.step_time_s)} a step, {format_bytes(point.memory_bytes)}/chip, "
        f"{plan_words(point.plan)} on {point.plan.chips_used:,} chips, "
        f"{microbatch_words(point.plan)}"
    )


def _terms(found: WhyNot, best: FrontPoint) -> RenderableType:
    """The step of both plans by its parts, and what the asked one loses on each."""
    from autoshard.breakdown import step_parts

    mine, theirs = step_parts(best.breakdown), step_parts(found.fastest.breakdown)
    names = [name for name in theirs if mine[name] or theirs[name]]
    total = best.step_time_s - found.fastest.step_time_s
    rows = [(name, mine[name], theirs[name], found.lost_s[name]) for name in names]
    rows.append(("step", best.step_time_s, found.fastest.step_time_s, total))
    return plain_table(
        (
            Column(head="part of the step", cells=tuple(row[0] for row in rows), left=True),
            Column(head="asked", cells=tuple(format_seconds(row[1]) for row in rows)),
            Column(head="fastest", cells=tuple(format_seconds(row[2]) for row in rows)),
            Column(head="lost", cells=tuple(_signed(row[3]) for row in rows)),
        )
    )


def _signed(seconds: float) -> str:
    return f"{'-' if seconds < 0 else '+'}{format_seconds(abs(seconds))}"
