"""The data file of the calibrated cost models: fitted constants, and how far off they were.

``calibration.toml`` ships with autoshard; ``autoshard calibrate`` writes one like it for a user's
own cluster, whose constants then stand before the shipped ones.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from autoshard.costmodels.checks import check_rate, shown
from autoshard.costmodels.constants import Constants, Fitted, bounds, in_words, used_keys
from autoshard.costmodels.costs import Column
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.stack import Stack
from autoshard.costmodels.uncertainty import ErrorRule, Ranges, Sizes, doublings, size_of

SCHEMA = "autoshard.calibration/1"
SHIPPED = Path(__file__).with_name("calibration.toml")

#: What a file may hold; a name that is not here is a slip.
_TABLES = (
    *("schema", "date", "chips", "stacks", "median_error", "median_error_before", "constants"),
    *("without", "interval", "interval_without", "sizes", "ranges", "five_runs", "residuals"),
    "residuals_before",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where constants are from: a file, its date and SHA-256, and what it was fitted to.

    ``keys`` are those that the file holds.
    """

    file: str
    date: str
    sha256: str
    rows: int
    chips: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()

    @property
    def said(self) -> dict[str, Any]:
        """As plain values, but for the keys."""
        return {
            "file": self.file,
            "date": self.date,
            "sha256": self.sha256,
            "rows": self.rows,
            "chips": list(self.chips),
            "stacks": list(self.stacks),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Constants and their errors.

    ``fitted`` has seen every run; ``without[source]`` none of that source. ``rule`` says how wide
    an interval is, out of the errors of runs that were predicted without their own source; in
    ``rule_without[source]`` that source is missing from them too. ``sizes`` and ``ranges`` are what
    was measured. ``residuals`` is log(predicted/measured) of each run that was fitted, by its id.
    ``five_runs`` has the median and ``p90`` of the errors on a source of which five runs had been
    fitted as a user would. ``own`` is a user's file, whose constants stand before the shipped ones.
    """

    fitted: Fitted
    without: Mapping[str, Fitted] = field(default_factory=dict)
    rule: ErrorRule | None = None
    rule_without: Mapping[str, ErrorRule] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=dict)
    ranges: Ranges = field(default_factory=dict)
    residuals: Mapping[str, float] = field(default_factory=dict)
    five_runs: Mapping[str, float] = field(default_factory=dict)
    date: str = ""
    origin: Origin | None = None
    own: Origin | None = None

    def unseen(self, source: str) -> Fitted:
        """Constants that have not seen a source."""
        return self.without.get(source, self.fitted)

    def interval(
        self, problem: Problem, stack: Stack, source: str = ""
    ) -> tuple[float, float] | None:
        """Factors on a predicted time between which four of five measured times lie.

        None where nobody has measured that kind of chip. With ``source``, the runs of that source
        are not counted: neither their errors, nor what they fix, nor where they are.
        """
        rule = self.rule_without.get(source, self.rule)
        chip, precision = problem.cluster.chip, problem.workload.precision
        apart = doublings(size_of(problem), self.sizes.get(chip.kind, {}), without=source)
        if rule is None or apart is None:
            return None
        low = precision != "bf16"
        guessed = self.unseen(source).guessed(chip, stack, low_precision=low)
        half = rule.half_width(low_precision=low, guessed=len(guessed), doublings=apart)
        return math.exp(-half), math.exp(half)

    @property
    def words(self) -> str:
        """What the constants were fitted to: ``published runs and 5 of your own in ours.toml``."""
        if self.own is None:
            return "published runs"
        return f"published runs and {self.own.rows:,} of your own in {self.own.file}"

    @property
    def said(self) -> dict[str, Any]:
        """Where the constants are from, as plain values; ``own`` is a user's file or None."""
        parts = {"shipped": self.origin, "own": self.own}
        return {name: None if part is None else part.said for name, part in parts.items()}

    def note(self, problem: Problem, stack: Stack) -> str:
        """What a user's file has to do with a problem, as a sentence; empty where there is none."""
        own, chip = self.own, problem.cluster.chip
        if own is None:
            return ""
        low = problem.workload.precision != "bf16"
        used = used_keys(chip, stack, low_precision=low)
        moved = [in_words(key, self.fitted.values[key]) for key in used if key in own.keys]
        runs = f"{own.rows:,} run{'' if own.rows == 1 else 's'}"
        for word, names in (("on", own.chips), ("with", own.stacks)):
            runs += f" {word} {', '.join(names)}" if names else ""
        made = f"{own.file} ({runs})"
        asked = f"{stack.name} on {chip.name}"
        if not moved:
            return f"{made} changes nothing here: it has no constant of {asked}."
        if chip.name in own.chips and stack.name in own.stacks:
            return f"Constants are fitted to published runs and to {made}."
        first = moved[0] if len(moved) == 1 else f"{moved[0]}, and {len(moved) - 1} more"
        return f"{made} has no run of {asked}: it changes only what they share ({first})."


@functools.cache
def shipped_calibration() -> Calibration:
    """The calibration that comes with autoshard."""
    return _read(SHIPPED)


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """A calibration of a user's own: its constants, and the shipped ones where it has none.

    Raises:
        SpecError: it cannot be read, or is not a calibration; the message names the place.
    """
    own, base = _read(Path(path)), shipped_calibration()
    if not own.fitted.values:
        raise SpecError(
            f"{path}: has no constants; write the file with `autoshard calibrate ... --output`."
        )
    return Calibration(
        fitted=Fitted(values={**base.fitted.values, **own.fitted.values}),
        without=own.without,
        rule=own.rule or base.rule,
        rule_without=own.rule_without or base.rule_without,
        sizes=own.sizes or base.sizes,
        ranges=own.ranges or base.ranges,
        residuals=own.residuals,
        five_runs=own.five_runs,
        date=own.date,
        origin=base.origin,
        own=own.origin,
    )


def _read(path: Path) -> Calibration:
    import hashlib
    import tomllib

    try:
        content = path.read_bytes()
        data = tomllib.loads(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"{path}: cannot be read as a calibration ({reason}).") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: is not TOML: {error}.") from None
    if data.get("schema") != SCHEMA:
        raise SpecError(
            f"{path}: schema must be {SCHEMA!r}, got {shown(data.get('schema'))}; write the file "
            "with `autoshard calibrate`."
        )
    for name in data:
        if name not in _TABLES:
            raise SpecError(f"{path}: a calibration has no {name!r}; known: {', '.join(_TABLES)}.")
    residuals = _numbers(path, "residuals", _table(path, data, "residuals"))
    constants = _fitted(path, "constants", _table(path, data, "constants"))
    origin = Origin(
        file=path.name,
        date=str(data.get("date", "")),
        sha256=hashlib.sha256(content).hexdigest(),
        rows=len(residuals),
        chips=_names(path, data, "chips"),
        stacks=_names(path, data, "stacks"),
        keys=frozenset(constants.values),
    )
    rule = _table(path, data, "interval")
    return Calibration(
        fitted=constants,
        without={
            source: _fitted(path, f"without.{source}", table)
            for source, table in _tables(path, data, "without")
        },
        rule=_rule(path, "interval", rule) if rule else None,
        rule_without={
            source: _rule(path, f"interval_without.{source}", table)
            for source, table in _tables(path, data, "interval_without")
        },
        sizes={
            kind: {source: _sizes(path, f"sizes.{kind}", rows) for source, rows in table.items()}
            for kind, table in _tables(path, data, "sizes")
        },
        ranges={
            kind: {name: _pair(path, f"ranges.{kind}", name, pair) for name, pair in table.items()}
            for kind, table in _tables(path, data, "ranges")
        },
        residuals=residuals,
        five_runs=_numbers(path, "five_runs", _table(path, data, "five_runs")),
        date=str(data.get("date", "")),
        origin=origin,
    )


def _names(path: Path, data: Mapping[str, Any], name: str) -> tuple[str, ...]:
    words = data.get(name, [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise SpecError(f"{path}: {name} must be a list of names, got {shown(words)}.")
    return tuple(words)


def _table(path: Path, data: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = data.get(name, {})
    if not isinstance(table, dict):
        raise SpecError(f"{path}: {name} must be a table, got {shown(table)}.")
    return table


def _tables(path: Path, data: Mapping[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    outer = _table(path, data, name)
    return [(source, _table(path, outer, source)) for source in outer]


def _fitted(path: Path, where: str, table: Mapping[str, Any]) -> Fitted:
    names = {f.name for f in fields(Constants)}
    values = {}
    for key, cell in table.items():
        if key.split(".")[0] not in names:
            raise SpecError(
                f"{path}: {where}: there is no constant {key!r}; known: {', '.join(sorted(names))}."
            )
        try:
            least, most = bounds(key)
        except KeyError:
            raise SpecError(
                f"{path}: {where}: there is no constant {key!r}; {key.split('.')[0]} stands in "
                "keys such as those of `autoshard calibrate`."
            ) from None
        value: Any = cell.get("value") if isinstance(cell, dict) else cell
        check_rate(f"{path}: {where}", key, value)
        # Six digits are written.
        if not least * (1.0 - 1e-4) <= value <= most * (1.0 + 1e-4):
            raise SpecError(
                f"{path}: {where}: {key} must be from {least:g} to {most:g}, got {value:g}."
            )
        values[key] = float(value)
    return Fitted(values=values)


def _rule(path: Path, where: str, table: Mapping[str, Any]) -> ErrorRule:
    names = [f.name for f in fields(ErrorRule)]
    if sorted(table) != sorted(names):
        raise SpecError(
            f"{path}: {where} must have {', '.join(names)}; it has {', '.join(table) or 'nothing'}."
        )
    for name, value in table.items():
        check_rate(f"{path}: {where}", name, value)
    return ErrorRule(**{name: float(value) for name, value in table.items()})


def _sizes(path: Path, where: str, rows: Any) -> Column:
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise SpecError(f"{path}: {where} must be lists of four sizes, got {shown(rows)}.")
    for row in rows:
        if len(row) != 4:
            raise SpecError(f"{path}: {where} must be lists of four sizes, got {shown(row)}.")
        for value in row:
            check_rate(f"{path}: {where}", "a size", value)
    found: Column = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return found


def _pair(path: Path, where: str, name: str, pair: Any) -> tuple[float, float]:
    if not isinstance(pair, Sequence) or len(pair) != 2 or isinstance(pair, str):
        raise SpecError(f"{path}: {where}: {name} must be least and most, got {shown(pair)}.")
    for value in pair:
        check_rate(f"{path}: {where}", name, value)
    return float(pair[0]), float(pair[1])


def _numbers(path: Path, where: str, table: Mapping[str, Any]) -> dict[str, float]:
    for key, value in table.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) < 1e6:
            raise SpecError(f"{path}: {where}: {key.strip()} must be a number, got {shown(value)}.")
    return {key: float(value) for key, value in table.items()}
