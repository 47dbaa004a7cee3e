"""Tables of published runs, cell by cell: what is malformed is an error, what is blank is blank."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoshard.costmodels.checks import LARGEST_COUNT, shown
from autoshard.costmodels.errors import SpecError

#: Columns of counts, of other numbers and of yes or no; every other column is text.
COUNTS = (
    *("year", "n_chips", "chips_per_node", "n_pods_or_slices", "n_layers", "d_model", "d_ff"),
    *("n_heads", "n_kv_heads", "d_head", "vocab", "n_experts", "experts_per_token", "seq_len"),
    *("global_batch_seqs", "micro_batch_seqs", "tp", "pp", "vp", "cp", "ep", "dp", "fsdp"),
    *("zero_stage", "grad_accum", "ici_fsdp", "ici_tensor", "ici_data", "ici_expert"),
    *("ici_context_or_sequence", "ici_pipeline", "dcn_data", "dcn_fsdp", "dcn_pipeline"),
)
NUMBERS = (
    *("per_device_batch_seqs", "tokens_per_s_per_chip", "tflops_per_chip", "mfu_pct"),
    *("step_time_s", "peak_mem_gb", "hbm_gb"),
)
TRUTHS = ("sequence_parallel",)

#: Columns without which nothing can be said about any row.
NEEDED = ("id", "chip", "n_chips", "n_layers", "d_model", "n_heads", "seq_len", "global_batch_seqs")

_BLANK = ("", "nan", "na", "n/a", "null", "-", "?")
_UNSAID = ("none", "unknown", "not stated", "unstated")  # of a number; of recomputation a word
_TRUE, _FALSE = ("true", "yes", "y", "1", "on"), ("false", "no", "n", "0", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a table: cells by column, blank cells left out."""

    id: str
    counts: Mapping[str, int]
    numbers: Mapping[str, float]
    truths: Mapping[str, bool]
    texts: Mapping[str, str]

    def text(self, column: str) -> str:
        """A cell of text, empty where blank."""
        return self.texts.get(column, "")

    def words(self, column: str) -> str:
        """A cell of text in lower case, to look for words in."""
        return self.text(column).lower()

    def count(self, column: str) -> int | None:
        """A whole number, None where blank."""
        return self.counts.get(column)

    def number(self, column: str) -> float | None:
        """A number greater than zero, None where blank or zero."""
        return self.numbers.get(column) or None

    @property
    def out_of_memory(self) -> bool:
        """The column ``outcome`` says that the run did not fit."""
        return re.search(r"\boom\b|out of memory", self.words("outcome")) is not None


def read_rows(path: str | os.PathLike[str]) -> tuple[list[Row], bool]:
    """The rows of a table, and whether it is one of TPU runs (their columns differ).

    Raises:
        SpecError: the file cannot be read, lacks a column, has no row, or a cell is not what its
            column holds.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{file}: cannot be read as a table of runs: {error}.") from None
    reader = csv.DictReader(io.StringIO(text))
    try:
        columns = [str(name).strip() for name in reader.fieldnames or ()]
        lines = list(reader)
    except csv.Error as error:
        raise SpecError(f"{file}: is not comma-separated values: {error}.") from None
    for name in NEEDED:
        if name not in columns:
            raise SpecError(
                f"{file}: column {name!r} is missing; a table of runs needs it{_hint(columns)}."
            )
    if not lines:
        raise SpecError(f"{file}: the table is empty.")
    rows = [_row(file, number, line) for number, line in enumerate(lines, start=2)]
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise SpecError(f"{file}: row {row.id!r}: column 'id': occurs more than once.")
        seen.add(row.id)
    return rows, "ici_fsdp" in columns or "topology" in columns


def _hint(columns: list[str]) -> str:
    """What a header that is one cell looks like."""
    for mark, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(columns) == 1 and mark in columns[0]:
            return f". Its cells are separated by {name}, they must be by commas"
    return ""


def _row(file: Path, number: int, line: Mapping[str | None, object]) -> Row:
    cells = {str(k).strip(): str(v).strip() for k, v in line.items() if k and v is not None}
    name = cells.get("id", "")
    if not name:
        raise SpecError(f"{file}: line {number}: column 'id': is blank.")
    if None in line:
        raise SpecError(f"{file}: row {name!r}: has more cells than the table has columns.")
    counts: dict[str, int] = {}
    numbers: dict[str, float] = {}
    truths: dict[str, bool] = {}
    texts: dict[str, str] = {}
    for column, cell in cells.items():
        where = f"{file}: row {name!r}: column {column!r}"
        if cell.lower() in _BLANK:
            continue
        if cell.lower() in _UNSAID and column in (*COUNTS, *NUMBERS, *TRUTHS):
            continue
        if column in COUNTS:
            value = _number(where, cell)
            if value != int(value):
                raise SpecError(f"{where}: must be a whole number, got {shown(cell)}.")
            counts[column] = int(value)
        elif column in NUMBERS:
            numbers[column] = _number(where, cell)
        elif column in TRUTHS:
            if cell.lower() not in (*_TRUE, *_FALSE):
                raise SpecError(f"{where}: must be true or false, got {shown(cell)}.")
            truths[column] = cell.lower() in _TRUE
        else:
            texts[column] = cell
    return Row(id=name, counts=counts, numbers=numbers, truths=truths, texts=texts)


def _number(where: str, cell: str) -> float:
    try:
        value = float(cell.replace(",", "").replace("_", ""))
    except ValueError:
        raise SpecError(f"{where}: must be a number, got {shown(cell)}.") from None
    if not math.isfinite(value) or value < 0 or value > LARGEST_COUNT:
        raise SpecError(f"{where}: must be from 0 to 2**40, got {shown(cell)}.")
    return value
