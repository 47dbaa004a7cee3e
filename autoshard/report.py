"""The answer on a terminal: the fastest plan in words, the front as a table, how it was found."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from autoshard.breakdown import step_parts
from autoshard.columns import SPACE, Column, Section, fit, front_columns, narrowed, said_once
from autoshard.front import FrontPoint, ParetoFront
from autoshard.scatter import scatter
from autoshard.sizes import format_bytes, format_seconds
from autoshard.statement import statement_words
from autoshard.words import (
    binding_words,
    chips_words,
    count_words,
    days_words,
    interval_words,
    microbatch_words,
    percent,
    plan_words,
    proof_words,
    remat_words,
    schedule_words,
    training_days,
)

#: Below this many columns the picture is left out.
PICTURE_WIDTH = 100
#: Width of a report that goes to a file or a pipe.
FILE_WIDTH = 120
COLOURS = {"communication": "yellow", "bubble": "cyan", "hbm": "magenta"}


def terminal_width() -> int:
    """Columns of the terminal; ``COLUMNS`` where it is set, a fixed width for files and pipes."""
    if not os.environ.get("COLUMNS") and not _is_terminal():
        return FILE_WIDTH
    return max(shutil.get_terminal_size((FILE_WIDTH, 24)).columns, 40)


def render(*parts: RenderableType, width: int | None = None) -> str:
    """Text of rich renderables, with colours only for a terminal (``NO_COLOR`` is respected)."""
    console = Console(
        file=io.TextIOWrapper(io.BytesIO(), encoding=_encoding()),
        force_terminal=_is_terminal(),
        width=width or terminal_width(),
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def front_report(front: ParetoFront, *, tokens: float, assumptions: str) -> str:
    """What ``autoshard solve`` prints.

    Args:
        front: the answer.
        tokens: tokens of the whole training run, for the days.
        assumptions: the cost profile in one line.
    """
    width = terminal_width()
    parts: list[RenderableType] = [
        headline(front, tokens),
        Text(),
        front_table(front, tokens, width),
    ]
    picture = scatter(front) if width >= PICTURE_WIDTH else []
    if picture:
        parts += [Text(), Text("\n".join(picture), no_wrap=True)]
    stated = statement_words(front.points[0].expressible_in)
    notes = [*([f"The fastest plan {stated}."] if stated else []), *front.notes]
    parts += [Text(), *(hanging(note, "- ") for note in notes)]
    last = (search_line(front), f"Costs: {assumptions}.{schedule_words(front)}")
    parts += [hanging(line, style="dim") for line in last]
    return render(*parts, width=width)


def headline(front: ParetoFront, tokens: float) -> Group:
    """The fastest plan in two or three lines."""
    best = front.points[0]
    days = days_words(training_days(front, best, tokens))
    first = Text.assemble(
        ("Fastest: ", "bold"),
        (f"{format_seconds(best.step_time_s)} a step", "bold green"),
        f"{interval_words(best)}, {format_bytes(best.memory_bytes)}/chip, "
        f"MFU {best.mfu * 100:.1f} %, {days} days for {count_words(tokens)} tokens",
    )
    return Group(first, *(hanging(line, "  ") for line in plan_lines(front, best)))


def plan_lines(front: ParetoFront, point: FrontPoint) -> list[str]:
    """A plan in words: how it is cut, how it runs, what binds it and what is proven."""
    plan, gap = point.plan, float(front.search.get("gap", 0.0))
    chips = chips_words(plan, front.problem["cluster"]["chips"])
    return [
        f"{plan_words(plan)} on {chips}",
        f"{microbatch_words(plan)}; remat: {remat_words(plan)}",
        f"{binding_words(point)}; {proof_words(point, gap, complete=front.complete)}",
    ]


def front_table(front: ParetoFront, tokens: float, width: int) -> Group:
    """The front, fastest first, as wide as the terminal allows."""
    columns, same = said_once(front_columns(front, tokens))
    shown, hidden = fit(columns, width)
    styles = [COLOURS.get(point.binding, "") for point in front.points]
    parts: list[RenderableType] = [plain_table(shown, {"bound by": styles}, wrap=False)]
    if same and len(front.points) > 1:
        parts.append(Text(f"All {len(front.points)} plans: {', '.join(same)}.", style="dim"))
    if hidden:
        text = f"Too narrow for: {', '.join(hidden)}. A wider terminal, --csv or --json shows them."
        parts.append(hanging(text, style="dim"))
    return Group(*parts)


def plain_table(
    columns: Sequence[Column], styles: dict[str, list[str]] | None = None, *, wrap: bool = True
) -> Table:
    """A table without rules: heads in bold, numbers to the right; ``wrap`` the last column."""
    table = Table(box=None, padding=(0, SPACE, 0, 0), pad_edge=False, header_style="bold")
    justify: JustifyMethod
    for column in columns[:-1]:
        justify = "left" if column.left else "right"
        table.add_column(column.head, justify=justify, no_wrap=True, min_width=column.width)
    last = columns[-1]
    justify = "left" if last.left else "right"
    table.add_column(
        last.head, justify=justify, no_wrap=not wrap, overflow="fold" if wrap else "ellipsis"
    )
    colours = styles or {}
    for row in range(len(last.cells)):
        table.add_row(
            *(
                Text(c.cells[row], style=colours[c.head][row] if c.head in colours else "")
                for c in columns
            )
        )
    return table


def narrow_table(columns: Sequence[Column]) -> list[RenderableType]:
    """A plain table of the columns that the terminal has room for, and which it has none for."""
    shown, hidden = narrowed(columns, terminal_width())
    if not hidden:
        return [plain_table(shown)]
    text = f"Too narrow for: {', '.join(hidden)}. A wider terminal or --json shows them."
    return [plain_table(shown), Text(text, style="dim")]


def sections_text(sections: Sequence[Section]) -> str:
    """Titles, tables and notes, one part after the other."""
    parts: list[RenderableType] = []
    for title, columns, notes in sections:
        parts.append(Text(title, style="bold"))
        parts += narrow_table(columns) if columns else []
        parts += [*notes, ""]
    return render(*parts[:-1])


def search_line(front: ParetoFront) -> str:
    """How the front was found, and whether the search came to its end."""
    search = front.search
    seconds = sum(search.get("seconds", {}).values())
    counts = {
        "meshes": "meshes",
        "priced": "candidates priced",
        "rows": "within the bounds",
        "answers": "answered exactly",
        "solves": "solved by CP-SAT",
    }
    said = ", ".join(f"{search.get(key, 0):,} {words}" for key, words in counts.items())
    found = f"Search: {said} in {seconds:.1f} s; "
    if not front.complete:
        return found + "stopped early: each plan is real, and points may be missing."
    asked = search.get("points")
    if len(front.points) == asked or (asked and "chips" in front.objectives):
        return found + "complete: --points 0 shows every plan of the front."
    return found + "complete."


def part_lines(point: FrontPoint) -> list[RenderableType]:
    """Where the step time of a plan goes, on its slowest stage."""
    parts, step_s = point.breakdown, point.step_time_s
    rows = list(step_parts(parts).items())
    rows = [row for row in rows if row[1] > 1e-9 * step_s]
    table = plain_table(
        (
            Column(head="part of the step", cells=tuple(name for name, _ in rows), left=True),
            Column(head="time", cells=tuple(format_seconds(value) for _, value in rows)),
            Column(head="share", cells=tuple(f"{v / step_s * 100:.1f} %" for _, v in rows)),
        )
    )
    comms = sorted(parts["comms_s"].items(), key=lambda item: -item[1])
    listed = ", ".join(f"{kind} {format_seconds(value)}" for kind, value in comms)
    said = f"Communication, hidden or not: {listed}; " if listed else "No communication; "
    ratio = percent(point.comms_over_compute)
    said += f"the longest on one network takes {ratio} of the time of compute (without recompute)."
    return [table, Text(), hanging(said)]


def hanging(text: str, lead: str = "", style: str = "") -> RenderableType:
    """A paragraph whose further lines are indented like its first."""
    if not lead:
        return Text(text, style=style)
    table = Table.grid(padding=0)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text(lead, style=style), Text(text, style=style))
    return table


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"
