"""The book's chain of reasoning on a terminal, then where the fastest plan's time goes."""

from __future__ import annotations

import itertools

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from autoshard.columns import SPACE
from autoshard.explain import Explanation
from autoshard.explain_rows import Row
from autoshard.front import ParetoFront
from autoshard.report import headline, part_lines, render


def explain_report(explanation: Explanation, front: ParetoFront | None) -> str:
    """What ``autoshard explain`` prints; ``front`` is None where no plan was sought."""
    problem = explanation.problem
    tokens = problem.workload.global_batch_tokens
    title = (
        f"{problem.model.name} on {problem.cluster.name}, {tokens:,} tokens a step, "
        f"{problem.workload.seq_len:,} a sequence, {problem.workload.precision}"
    )
    parts: list[RenderableType] = [Text(title, style="bold")]
    for section, rows in itertools.groupby(explanation.rows, key=lambda row: row.section):
        parts += [Text(), _section(section, list(rows))]
    if front is not None:
        best = front.points[0]
        parts += [Text(), headline(front, explanation.tokens), Text(), *part_lines(best)]
    return render(*parts)


def _section(name: str, rows: list[Row]) -> Table:
    """One section: its title with the chapters it follows, then a line per quantity."""
    sources = ", ".join(dict.fromkeys(row.source for row in rows if row.source))
    table = Table(
        box=None,
        show_header=False,
        padding=(0, SPACE, 0, 0),
        pad_edge=False,
        title=Text.assemble((name, "bold"), (f"  {sources}", "dim")),
        title_justify="left",
    )
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for row in rows:
        bound = f"against {row.bound_text}" if row.bound_text and not row.verdict else ""
        style = "yellow" if row.holds is False else ""
        table.add_row(f"  {row.quantity}", row.value_text, Text(row.verdict or bound, style=style))
    return table
