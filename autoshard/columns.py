"""The columns of the front's table, and which of them fit on a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoshard.front import FrontPoint, ParetoFront
from autoshard.words import (
    GIB,
    binding_short,
    count_words,
    days_words,
    percent,
    remat_short,
    time_scale,
    training_days,
)

#: Characters between two columns.
SPACE = 2
#: The words about remat may be cut to this many characters: first, and in the worst case.
REMAT = (34, 16)
PROOF, CHIPS = "proof", "chips"
#: A last column of words may wrap down to this many characters.
WORDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: its head, a cell per point, and how gladly it is left out.

    ``spare`` 0 stays always; the highest goes first. ``trivial`` is the cell that says nothing, a
    degree of 1 for example: a column of nothing else is hidden.
    """

    head: str
    cells: tuple[str, ...]
    spare: int = 0
    left: bool = False
    trivial: str = ""

    @property
    def width(self) -> int:
        """Characters of its widest cell."""
        return max(len(cell) for cell in (self.head, *self.cells))


#: A part of a report: its title, its table, and notes below it.
Section = tuple[str, list[Column], list[str]]


def front_columns(front: ParetoFront, tokens: float) -> list[Column]:
    """Every column that says something about this front, from left to right."""
    unit, unit_s, decimals = time_scale(front)
    small = min(point.memory_bytes for point in front.points) / GIB
    gib_decimals = 2 if small >= 0.095 else 4

    def column(
        head: str,
        cell: Callable[[FrontPoint], str],
        spare: int = 0,
        left: bool = False,
        trivial: str = "",
    ) -> Column:
        cells = tuple(cell(point) for point in front.points)
        return Column(head=head, cells=cells, spare=spare, left=left, trivial=trivial)

    def degree(head: str, cell: Callable[[FrontPoint], int]) -> Column:
        return column(head, lambda p: f"{cell(p):,}", trivial="1")

    columns = [
        column(f"step {unit}", lambda p: f"{p.step_time_s / unit_s:,.{decimals}f}"),
        column("GiB/chip", lambda p: f"{p.memory_bytes / GIB:,.{gib_decimals}f}"),
        column("MFU %", lambda p: f"{p.mfu * 100:.1f}", spare=1),
        column(
            f"days/{count_words(tokens)}",
            lambda p: days_words(training_days(front, p, tokens)),
            spare=4,
        ),
        degree("dp", lambda p: p.plan.dp),
        column("fsdp", _fsdp, trivial="1"),
        degree("tp", lambda p: p.plan.tp),
        column("pp", _pipeline, trivial="1"),
        degree("cp", lambda p: p.plan.cp),
        column(
            "microb",
            lambda p: f"{p.plan.microbatches}x{p.plan.micro_batch_size}",
            spare=3,
            trivial="1x1",
        ),
        column("zero", lambda p: str(p.plan.reshard), spare=6, trivial="3"),
        column("remat", lambda p: remat_short(p.plan), left=True),
        column("bound by", binding_short, spare=2, left=True),
        column(PROOF, lambda p: _proof(p, front), spare=5, left=True),
        column(CHIPS, lambda p: f"{p.plan.chips_used:,}", spare=7),
    ]
    if "chips" in front.objectives:
        columns.insert(2, dataclasses.replace(columns.pop(), spare=0))
    return [c for c in columns if any(cell != c.trivial for cell in c.cells)]


def said_once(columns: Sequence[Column]) -> tuple[list[Column], list[str]]:
    """Columns without proof and chips where these are the same in each row, and that as words."""
    kept = [c for c in columns if c.head not in (PROOF, CHIPS) or len(set(c.cells)) > 1]
    words = [
        f"proven {c.cells[0]}" if c.head == PROOF else f"{c.cells[0]} chips"
        for c in columns
        if c not in kept
    ]
    return kept, words


def fit(columns: Sequence[Column], width: int) -> tuple[list[Column], list[str]]:
    """The columns that fit into a width, and the heads of those left out.

    Long words about remat are cut first, then spare columns go; degrees never do.
    """
    shown = _cut(columns, width, REMAT[0])
    while _over(shown, width) > 0 and any(c.spare for c in shown):
        shown.remove(max(shown, key=lambda c: c.spare))
    shown = _cut(shown, width, REMAT[1])
    heads = [c.head for c in shown]
    return shown, [c.head for c in columns if c.head not in heads]


def narrowed(columns: Sequence[Column], width: int) -> tuple[list[Column], list[str]]:
    """The columns of a plain table that fit into a width, and the heads of those left out.

    Spare columns go first, then the last ones; the first stays. A head that stands twice is said
    with the one before it.
    """
    shown = list(columns)
    while len(shown) > 1 and _over(shown, width) > _wraps(shown[-1]):
        spare = max(column.spare for column in shown[1:])
        shown.pop(max(k for k, column in enumerate(shown) if k and column.spare == spare))
    heads = [column.head for column in columns]
    hidden = [k for k, column in enumerate(columns) if not any(column is c for c in shown)]
    twice = [heads.count(head) > 1 for head in heads]
    return shown, [f"{heads[k - 1]} {heads[k]}" if twice[k] else heads[k] for k in hidden]


def _wraps(last: Column) -> int:
    """Characters by which a last column may be narrower than its words."""
    return max(last.width - WORDS, 0) if last.left else 0


def _over(columns: Sequence[Column], width: int) -> int:
    """Characters by which a row is too long."""
    return sum(c.width for c in columns) + SPACE * (len(columns) - 1) - width


def _cut(columns: Sequence[Column], width: int, least: int) -> list[Column]:
    """The columns with the words about remat cut as far as needed, down to ``least`` characters."""
    over = _over(columns, width)
    return [
        dataclasses.replace(
            c, cells=tuple(_shorten(x, max(c.width - over, least)) for x in c.cells)
        )
        if c.head == "remat" and over > 0
        else c
        for c in columns
    ]


def _shorten(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 3]}..."


def _fsdp(point: FrontPoint) -> str:
    plan = point.plan
    split = f" ({plan.batch_split}x{plan.seq_split})" if plan.seq_split > 1 else ""
    return f"{plan.fsdp}{split}"


def _pipeline(point: FrontPoint) -> str:
    plan = point.plan
    return f"{plan.pp}x{plan.vpp}" if plan.vpp > 1 else str(plan.pp)


def _proof(point: FrontPoint, front: ParetoFront) -> str:
    asked = float(front.search.get("gap", 0.0))
    if point.proven:
        words = f"within {percent(asked)}" if asked else "exactly"
        return words if front.complete else f"{words} for its memory"
    return f"only within {percent(point.gap)}"
