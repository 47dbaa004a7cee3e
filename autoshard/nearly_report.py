"""What ``autoshard solve --near-optimal`` prints after the front."""

from __future__ import annotations

from dataclasses import replace

from rich.text import Text

from autoshard.front import ParetoFront
from autoshard.nearly import NearOptimal
from autoshard.report import front_table, hanging, render, terminal_width
from autoshard.words import percent


def near_report(found: NearOptimal, front: ParetoFront, *, tokens: float) -> str:
    """The plans as a table, fastest first; ``tokens`` are those of the whole training run."""
    width = terminal_width()
    head = Text(f"As good as the fastest within {percent(found.within)}, one a mesh:", style="bold")
    table = front_table(replace(front, points=found.points), tokens, width)
    return render(head, Text(), table, hanging(more_line(found)), width=width)


def more_line(found: NearOptimal) -> str:
    """How many there are beside, as far as that is known."""
    if not found.complete:
        return "The search was stopped: others may be as good, and faster than these."
    if not found.more:
        return "No other mesh has a plan within that."
    meshes = "1 other mesh" if found.more == 1 else f"{found.more:,} other meshes"
    return f"{meshes} may have a plan within that, none of them faster than these."
