"""What ``autoshard validate`` shows: tables for a terminal, JSON, and the same as one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from autoshard.columns import Column, Section
from autoshard.run_parts import NOT_SCORED
from autoshard.validate_tables import errors, memory_errors, rankings, reasons, summary
from autoshard.validating import Validation
from autoshard.words import percent

SCHEMA = "autoshard.validate/1"

#: Rows whose reason for being left out is told in full, of a table that is not built in.
TOLD = 8

#: Columns of the errors and their heads.
_ERRORS = {
    "median": "median",
    "p90": "p90",
    "bias": "bias",
    "in_sample_median": "in sample",
    "in_sample_p90": "p90",
    "mfu_median": "MFU",
    "mfu_p90": "p90",
    "hfu_median": "HFU",
    "hfu_p90": "p90",
    "coverage": "inside",
}
#: Those that a narrow terminal does without, the first to stay first.
_SPARE = ("in_sample_median", "hfu_median", "mfu_median", "in_sample_p90", "hfu_p90", "mfu_p90")
#: Columns of a row in the JSON, in their order; ``interval_s`` stands for the two ends.
_ROW = (
    *("id", "source", "tier", "chip", "precision", "experts", "stack", "model", "plan"),
    *("measured_step_s", "predicted_step_s", "interval_s", "in_sample_step_s"),
    *("mfu_step_s", "hfu_step_s", "predicted_memory_bytes", "measured_memory_bytes"),
    *("memory_metric", "comparable_memory_bytes", "fits", "scored", "why_not", "flags"),
)


def validation_report(validation: Validation) -> str:
    """The tables as text."""
    from autoshard.report import sections_text

    return sections_text(sections(validation))


def sections(validation: Validation) -> list[Section]:
    """Title, table and notes of each part of the report; a part without rows is left out."""
    rows, whole = validation.scored, summary(validation)
    made: list[Section] = []
    if len(rows):
        made += [
            _headlines(validation, whole),
            (
                "Error of step time by source, in percent",
                _errors(rows, "source"),
                [
                    "median, 90th percentile and median bias; the same in sample, and of one MFU "
                    "or HFU for each chip and precision, fitted to the other sources. inside: "
                    "measured times that lie in their interval."
                ],
            ),
            (
                "Error of step time by chip, in percent",
                _errors(rows, "chip", "precision", "experts"),
                [],
            ),
        ]
        made += [_rankings(rows)] if len(rankings(rows)) else []
    else:
        every = len(validation.rows) + len(validation.left_out)
        made.append(
            (f"0 of {_many(every, 'row')} can be judged ({validation.measurements})", [], [])
        )
    if whole["memory"]["ran"] or whole["memory"]["out_of_memory"]:
        made.append(_memory(rows, whole))
    made.append(_not_counted(validation, whole))
    return made


def _headlines(validation: Validation, whole: dict[str, Any]) -> Section:
    how = {
        "calibrated": _unseen(validation),
        "priors": "by constants out of data sheets and papers, none of them fitted",
        "textbook": "at the price of the scaling book",
    }[validation.costs]
    title = f"{_many(whole['rows'], 'measured run')} ({validation.measurements}), {how}"
    kinds = whole["step_time"]
    lines: list[tuple[str, list[float | None]]] = []
    names = ("honest", "in_sample", "constant_mfu", "constant_hfu")
    for kind, figures in kinds.items():
        if kind != "all" and len(kinds) == 2:
            continue  # one kind of chip is all
        label = {"all": "all", "gpu": "GPU", "tpu": "TPU"}[kind]
        for what, words in (
            ("mean_of_source_medians", "mean of source medians"),
            ("median", "median of rows"),
            ("p90", "90th percentile"),
        ):
            lines.append((f"{label}: {words}", [figures[name][what] for name in names]))
    table = [
        _column("error of step time, in percent", [line[0] for line in lines], left=True),
        *(
            _column(head, [_cell(line[1][k]) for line in lines])
            for k, head in enumerate(("predicted", "in sample", "constant MFU", "constant HFU"))
        ),
    ]
    return title, table, _notes(whole)


def _unseen(validation: Validation) -> str:
    """What the constants that predict have not seen."""
    if not validation.given:
        return "each predicted by constants that have not seen its source"
    if validation.measurements == "built in":
        return (
            "each predicted by shipped constants that have not seen its source, changed as the "
            "given ones are"
        )
    return "each predicted by the given constants, which were not fitted to it"


def _notes(whole: dict[str, Any]) -> list[str]:
    notes = []
    known = whole["intervals"]
    if known["rows"]:
        notes.append(
            f"Intervals (4 of 5 expected inside) hold {percent(known['coverage'])} of the measured "
            f"times; half of them are narrower than {percent(known['half_width_median'])} each way."
        )
    few = whole["five_runs"]
    if few:
        notes.append(
            "After `calibrate` on five runs of a new source, its other runs are off by "
            f"{percent(few['median'])} (median) and {percent(few['p90'])} (90th percentile)."
        )
    return notes


def _errors(rows: pl.DataFrame, *by: str) -> list[Column]:
    table = errors(rows, *by)
    return [
        *(_column(name, table[name].to_list(), left=True) for name in by),
        _column("rows", table["rows"].to_list()),
        *(
            _column(
                head,
                [_cell(value, signed=name == "bias") for value in table[name]],
                spare=_SPARE.index(name) + 1 if name in _SPARE else 0,
            )
            for name, head in _ERRORS.items()
        ),
    ]


def _rankings(rows: pl.DataFrame) -> Section:
    groups = rankings(rows)
    table = [
        _column("source", groups["source"].to_list(), left=True),
        _column("plans", [str(n) for n in groups["plans"]]),
        _column("tau", ["-" if t is None else f"{t:.2f}" for t in groups["tau"]]),
        _column("pairs", [str(n) for n in groups["pairs"]]),
        _column(
            "right",
            [
                _cell(right / pairs if pairs else None)
                for right, pairs in zip(groups["right"], groups["pairs"], strict=True)
            ],
        ),
        _column("regret", [_cell(value) for value in groups["regret"]]),
        _column("model", groups["model"].to_list(), left=True),
    ]
    return (
        "Order of plans for the same model, chips, batch and precision, in percent",
        table,
        _ranking_notes(summary_of=groups),
    )


def _ranking_notes(*, summary_of: pl.DataFrame) -> list[str]:
    pairs = int(summary_of["pairs"].sum())
    taus = summary_of["tau"].drop_nulls()
    regret = summary_of["regret"]
    said = [f"Kendall's tau {float(taus.to_numpy().mean()):.2f} on average"] if len(taus) else []
    if pairs:
        right = percent(int(summary_of["right"].sum()) / pairs)
        said.append(f"{right} of {pairs:,} pairs that differ by 5 % or more in the right order")
    said.append(
        f"the favourite is {percent(float(regret.to_numpy().mean()))} slower than the fastest, "
        f"at worst {percent(float(regret.to_numpy().max()))}"
    )
    text = "; ".join(said)
    return [f"{text[0].upper()}{text[1:]}."]


def _memory(rows: pl.DataFrame, whole: dict[str, Any]) -> Section:
    table, known = memory_errors(rows), whole["memory"]
    columns = [
        _column("source", table["source"].to_list(), left=True),
        _column("rows", [str(n) for n in table["rows"]]),
        *(
            _column(name, [_cell(value, signed=name == "bias") for value in table[name]])
            for name in ("median", "p90", "bias")
        ),
    ]
    notes = []
    if known["rows"] > 1:
        notes.append(
            f"All {known['rows']}: median {percent(known['median'])}, 90th percentile "
            f"{percent(known['p90'])}."
        )
    ids = known["predicted_not_to_fit_ids"]
    if known["ran"]:
        share = percent(known["predicted_not_to_fit_share"])
        notes.append(
            f"Of {_many(known['ran'], 'run')} that ran, {len(ids):,} ({share}) "
            f"{'is' if len(ids) == 1 else 'are'} predicted not to fit{_names(ids)}."
        )
    if known["out_of_memory"]:
        notes.append(
            f"Of {_many(known['out_of_memory'], 'run')} that ran out of memory, "
            f"{known['out_of_memory_predicted']:,} "
            f"{'is' if known['out_of_memory_predicted'] == 1 else 'are'} predicted not to fit"
            f"{_names(known['out_of_memory_predicted_to_fit_ids'], 'predicted to fit: ')}."
        )
    return "Error of peak memory, in percent", columns if len(table) else [], notes


def _not_counted(validation: Validation, whole: dict[str, Any]) -> Section:
    table = reasons(validation)
    title = (
        f"Not counted: {_many(whole['left_out'], 'row')} that cannot be priced, "
        f"{whole['predicted_but_not_scored']:,} predicted and not scored"
    )
    if not len(table):
        return title, [], []
    columns = [
        _column("rows", [str(n) for n in table["rows"]]),
        _column("predicted", ["yes" if p else "no" for p in table["predicted"]], left=True),
        _column("reason", table["reason"].to_list(), left=True),
    ]
    return title, columns, [*_told(validation), "--json names every row."]


def _told(validation: Validation) -> list[str]:
    """Why rows of a user's own table are left out, in full."""
    if validation.measurements == "built in":
        return []
    told = [f"{row['id']}: {row['detail']}" for row in validation.left_out.to_dicts()]
    for row in validation.rows.filter(~pl.col("scored")).to_dicts():
        words = [NOT_SCORED[flag] for flag in row["why_not"].split(", ") if flag in NOT_SCORED]
        told += [f"{row['id']}: {'; '.join(words)}."] if words else []
    return told[:TOLD] + ([f"... and {len(told) - TOLD:,} more."] if len(told) > TOLD else [])


def _names(ids: Sequence[str], head: str = "") -> str:
    """``: a, b, ...`` or, with a head, ``; predicted to fit: a, b``."""
    if not ids:
        return ""
    said = f"{', '.join(ids[:8])}{', ...' if len(ids) > 8 else ''}"
    return f"; {head}{said}" if head else f": {said}"


def _many(count: int, what: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _column(head: str, cells: Sequence[Any], left: bool = False, spare: int = 0) -> Column:
    return Column(head=head, cells=tuple(map(str, cells)), left=left, spare=spare)


def _cell(share: float | None, signed: bool = False) -> str:
    if share is None:
        return "-"
    return f"{100 * share:+.1f}" if signed else f"{100 * share:.1f}"


# JSON


def validation_dict(validation: Validation) -> dict[str, Any]:
    """The documented JSON: a summary, and every row of the measurements once."""
    rows = validation.scored
    return {
        "schema": SCHEMA,
        "costs": validation.costs,
        "measurements": validation.measurements,
        "calibrated": validation.date or None,
        "constants": "given" if validation.given else "shipped",
        "summary": summary(validation),
        "by_source": errors(rows, "source").to_dicts(),
        "by_chip": errors(rows, "chip", "precision", "experts").to_dicts(),
        "memory_by_source": memory_errors(rows).to_dicts(),
        "out_of_memory": validation.out_of_memory.to_dicts(),
        "plans": rankings(rows).drop("group").to_dicts(),
        "not_counted": reasons(validation).to_dicts(),
        "rows": [*map(_predicted, validation.rows.to_dicts()), *_excluded(validation)],
    }


def _predicted(row: dict[str, Any]) -> dict[str, Any]:
    known = row["low_s"] is not None and row["high_s"] is not None
    interval = [row["low_s"], row["high_s"]] if known else None
    full = {**row, "interval_s": interval}
    return {**{name: full[name] for name in _ROW}, "left_out": None}


def _excluded(validation: Validation) -> list[dict[str, Any]]:
    blank = dict.fromkeys(_ROW)
    return [
        {
            **blank,
            "id": row["id"],
            "source": row["source"],
            "scored": False,
            "left_out": {"reason": row["reason"], "detail": row["detail"]},
        }
        for row in validation.left_out.to_dicts()
    ]
