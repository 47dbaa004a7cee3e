"""Published training runs as problems and plans: what a calibration is fitted to and judged by.

The tables and where each figure comes from are in ``measured/`` and its README. Every row becomes a
:class:`Run`, or an :class:`Excluded` that says why no cost model can price it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.stack import Stack

if TYPE_CHECKING:
    from autoshard.run_table import Row

BUILT_IN = ("gpu.csv", "tpu.csv", "oom.csv")
_DATA = Path(__file__).parent / "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One published run that the cost models can price.

    ``source`` groups rows that are not independent: a fit keeps whole sources out. ``candidates``
    is one row, the plan in autoshard's words; ``remat`` maps rungs of the stack's ladder to shares
    of the layers. ``flags`` names what is unusual (the list is in the README). ``memory_metric`` is
    ``reserved``, ``allocated``, ``nvidia-smi``, ``unnamed`` or empty. ``used_for`` is ``score``, or
    ``report`` for runs whose circumstances are known in part or not covered.
    """

    id: str
    source: str
    tier: str
    year: int
    problem: Problem
    candidates: Candidates
    remat: dict[str, float]
    stack: Stack
    flags: tuple[str, ...]
    step_time_s: float | None
    memory_bytes: float | None
    memory_metric: str
    used_for: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A row that cannot be priced: ``reason`` in a word or three, ``detail`` as a sentence."""

    id: str
    source: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of runs: those that ran, those that ran out of memory, and what is left out."""

    runs: tuple[Run, ...]
    out_of_memory: tuple[Run, ...]
    excluded: tuple[Excluded, ...]


def load_runs(path: str | os.PathLike[str] | None = None) -> tuple[list[Run], list[Excluded]]:
    """Every run of a table that can be priced, and what is left out.

    Args:
        path: a CSV with the columns of ``measured/gpu.csv`` or ``measured/tpu.csv``, of which most
            may be missing; both of these tables when None.

    Raises:
        SpecError: the table is malformed or empty; the message names file, row and column.
    """
    table = load_table(path)
    return list(table.runs), list(table.excluded)


def load_table(path: str | os.PathLike[str] | None = None) -> Table:
    """The same with the runs that ran out of memory, as the column ``outcome`` says.

    A row's source is the cell of that name, else the name of the file; a copy of a built-in row
    keeps the source of that row.
    """
    built_in = _built_in()
    if path is None:
        return built_in
    rows: list[Run | Excluded] = [*built_in.runs, *built_in.out_of_memory, *built_in.excluded]
    known = {row.id: row.source for row in rows}
    stem = Path(path).stem
    return _load([path], lambda row: known.get(row.id) or row.text("source") or stem)


@functools.cache
def _built_in() -> Table:
    return _load([_DATA / name for name in BUILT_IN], lambda row: source_of(row.id))


def _load(files: Sequence[str | os.PathLike[str]], source_of_row: Callable[[Row], str]) -> Table:
    # The readers build on Run; a command that wants no runs does not load them.
    from autoshard.run_checks import check
    from autoshard.run_gpu import gpu_run
    from autoshard.run_table import read_rows
    from autoshard.run_tpu import tpu_run
    from autoshard.run_words import Unpriced

    runs: list[Run] = []
    out_of_memory: list[Run] = []
    excluded: list[Excluded] = []
    for file in files:
        rows, tpu = read_rows(file)
        for row in rows:
            source = source_of_row(row)
            try:
                run = (tpu_run if tpu else gpu_run)(row, source)
                check(run, row)
                (out_of_memory if row.out_of_memory else runs).append(run)
            except Unpriced as why:
                excluded.append(
                    Excluded(id=row.id, source=source, reason=why.reason, detail=why.detail)
                )
            except SpecError as error:
                # A spec refused the row's values: a model, a cluster, a chip without that peak.
                excluded.append(
                    Excluded(id=row.id, source=source, reason="not consistent", detail=str(error))
                )
    return Table(runs=tuple(runs), out_of_memory=tuple(out_of_memory), excluded=tuple(excluded))


#: Ids of the TPU table whose first word is shared by independent publications.
_SOURCES = (
    ("mt-v5p-32b-2025arch", "mt-pr"),
    ("mt-v5p-llama", "mt-pr"),
    ("mt-v5p-ds", "mt-pr"),
    ("mt-v5p-", "mt-v5p"),
    ("mt-v5e-", "mt-v5e"),
    ("mt-v4-", "mt-v4"),
    ("mt-v6e-", "mt-pr"),
    ("mt-", "mt-doc"),
    ("tpx-", "tp"),
)


def source_of(run_id: str) -> str:
    """The source of a built-in row: the first word of its id, or rows published together."""
    for start, source in _SOURCES:
        if run_id.startswith(start):
            return source
    return run_id.split("-")[0]
