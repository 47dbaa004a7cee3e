"""Errors by source and by chip, the order of plans, and everything in one summary."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from autoshard.costmodels.costs import Column
from autoshard.validating import Validation

#: Fewer plans than this are no ranking.
SMALLEST_GROUP = 4
#: Measured times closer than this are taken as equal.
APART = 0.05


def errors(rows: pl.DataFrame, *by: str) -> pl.DataFrame:
    """Errors of step time as shares, one row a group of ``by``: rows, median, p90 and bias.

    ``bias`` is the median logarithm of predicted over measured, as a share; ``coverage`` the share
    of measured times inside of their interval, null where there is none.
    """
    measured = pl.col("measured_step_s")

    def error(column: str) -> pl.Expr:
        return (pl.col(column) / measured - 1.0).abs()

    honest, seen = error("predicted_step_s"), error("in_sample_step_s")
    table = rows.group_by(*by).agg(
        rows=pl.len(),
        median=honest.median(),
        p90=honest.quantile(0.9, "linear"),
        bias=(pl.col("predicted_step_s") / measured).log().median().exp() - 1.0,
        in_sample_median=seen.median(),
        in_sample_p90=seen.quantile(0.9, "linear"),
        mfu_median=error("mfu_step_s").median(),
        mfu_p90=error("mfu_step_s").quantile(0.9, "linear"),
        hfu_median=error("hfu_step_s").median(),
        hfu_p90=error("hfu_step_s").quantile(0.9, "linear"),
        coverage=measured.is_between("low_s", "high_s").mean(),
    )
    return table.sort(by)


def memory_errors(rows: pl.DataFrame) -> pl.DataFrame:
    """Errors of memory by source, under the metric of each row."""
    known = rows.drop_nulls(["measured_memory_bytes", "comparable_memory_bytes"])
    ratio = pl.col("comparable_memory_bytes") / pl.col("measured_memory_bytes")
    return (
        known.group_by("source")
        .agg(
            rows=pl.len(),
            median=(ratio - 1.0).abs().median(),
            p90=(ratio - 1.0).abs().quantile(0.9, "linear"),
            bias=ratio.log().median().exp() - 1.0,
        )
        .sort("source")
    )


def reasons(validation: Validation) -> pl.DataFrame:
    """Rows that do not count, by reason: ``reason``, ``rows``, ``predicted``, ``ids``."""
    out = validation.left_out.select("id", "reason", predicted=False)
    shown = validation.rows.filter(~pl.col("scored")).select(
        "id", reason=pl.col("why_not"), predicted=True
    )
    return (
        pl.concat([out, shown])
        .group_by("predicted", "reason")
        .agg(rows=pl.len(), ids=pl.col("id"))
        .sort(["predicted", "rows", "reason"], descending=[False, True, False])
    )


def rankings(rows: pl.DataFrame, column: str = "predicted_step_s") -> pl.DataFrame:
    """Each group of plans for the same work: ``tau``, ``pairs``, ``right`` and ``regret``.

    A plan that was measured more than once counts once, with its median time. Pairs are those
    whose measured times differ by 5 % or more; plans that a prediction cannot tell apart are not in
    the right order. ``regret`` is how much slower than the fastest the favourite is. Groups whose
    times or predictions are all the same have no ``tau``.
    """
    found = []
    plans = (
        rows.drop_nulls([column])
        .group_by("group", "alternative", maintain_order=True)
        .agg(pl.col("source", "model", column).first(), pl.col("measured_step_s").median())
    )
    for (name,), group in plans.group_by("group", maintain_order=True):
        if len(group) < SMALLEST_GROUP:
            continue
        measured = group["measured_step_s"].to_numpy()
        predicted = group[column].to_numpy()
        first, second = np.triu_indices(len(group), 1)
        ratio = np.log(measured[first] / measured[second])
        other = np.log(predicted[first] / predicted[second])
        apart = np.abs(ratio) >= np.log1p(APART)
        right = np.sign(ratio) == np.sign(other)
        favourites = measured[predicted <= predicted.min() * (1 + 1e-9)]
        found.append(
            {
                "group": name,
                "source": group["source"][0],
                "model": group["model"][0],
                "plans": len(group),
                "tau": _tau(np.sign(ratio), np.sign(other)),
                "pairs": int(apart.sum()),
                "right": int((apart & right).sum()),
                "regret": float(favourites.mean() / measured.min() - 1.0),
            }
        )
    schema = {
        **dict.fromkeys(("group", "source", "model"), pl.String),
        "plans": pl.Int64,
        "tau": pl.Float64,
        "pairs": pl.Int64,
        "right": pl.Int64,
        "regret": pl.Float64,
    }
    return pl.DataFrame(found, schema=schema)


def _tau(ratio: Column, other: Column) -> float | None:
    """Kendall's tau-b out of the signs of all pairs (as scipy.stats, which takes a second to load).

    None where one of the two ranks nothing.
    """
    untied = float(np.count_nonzero(ratio)) * float(np.count_nonzero(other))
    return float(ratio @ other) / untied**0.5 if untied else None


def summary(validation: Validation) -> dict[str, Any]:
    """The figures that matter, as plain values; shares, not percent."""
    rows = validation.scored
    return {
        "rows": len(rows),
        "predicted_but_not_scored": len(validation.rows) - len(rows),
        "left_out": len(validation.left_out),
        "step_time": {
            name: _step_time(rows if kind == "all" else rows.filter(pl.col("kind") == kind))
            for name, kind in (("all", "all"), ("gpu", "gpu"), ("tpu", "tpu"))
            if kind == "all" or (rows["kind"] == kind).any()
        },
        "ranking": {
            "honest": _ranking(rankings(rows)),
            "in_sample": _ranking(rankings(rows, "in_sample_step_s")),
            "constant_hfu": _ranking(rankings(rows, "hfu_step_s")),
        },
        "memory": _memory(rows, validation.out_of_memory),
        "intervals": _coverage(rows),
        "five_runs": validation.five_runs or None,
    }


def _step_time(rows: pl.DataFrame) -> dict[str, Any]:
    by_source, every = errors(rows, "source"), errors(rows.with_columns(all=1), "all")

    def both(prefix: str) -> dict[str, float | None]:
        return {
            "mean_of_source_medians": _number(by_source[f"{prefix}median"].mean()),
            "median": _number(every[f"{prefix}median"][0]) if len(every) else None,
            "p90": _number(every[f"{prefix}p90"][0]) if len(every) else None,
        }

    return {
        "rows": len(rows),
        "sources": len(by_source),
        "honest": both(""),
        "in_sample": both("in_sample_"),
        "constant_mfu": both("mfu_"),
        "constant_hfu": both("hfu_"),
    }


def _ranking(groups: pl.DataFrame) -> dict[str, Any]:
    pairs = int(groups["pairs"].sum())
    return {
        "groups": len(groups),
        "plans": int(groups["plans"].sum()),
        "tau": _number(groups["tau"].mean()),
        "pairs": pairs,
        "ordered_right": int(groups["right"].sum()) / pairs if pairs else None,
        "regret_mean": _number(groups["regret"].mean()),
        "regret_worst": _number(groups["regret"].max()),
    }


def _memory(rows: pl.DataFrame, out_of_memory: pl.DataFrame) -> dict[str, Any]:
    known = rows.drop_nulls(["measured_memory_bytes", "comparable_memory_bytes"])
    error = (known["comparable_memory_bytes"] / known["measured_memory_bytes"] - 1.0).abs()
    judged = rows.drop_nulls("fits")
    refused = judged.filter(~pl.col("fits"))
    failed = out_of_memory.drop_nulls("fits")
    return {
        "rows": len(known),
        "median": _number(error.median()),
        "p90": _number(error.quantile(0.9, "linear")),
        "ran": len(judged),
        "predicted_not_to_fit": len(refused),
        "predicted_not_to_fit_share": len(refused) / len(judged) if len(judged) else None,
        "predicted_not_to_fit_ids": refused["id"].to_list(),
        "out_of_memory": len(failed),
        "out_of_memory_predicted": int((~failed["fits"]).sum()),
        "out_of_memory_predicted_to_fit_ids": failed.filter("fits")["id"].to_list(),
    }


def _coverage(rows: pl.DataFrame) -> dict[str, Any]:
    known = rows.drop_nulls(["low_s", "high_s"])
    inside = known["measured_step_s"].is_between(known["low_s"], known["high_s"])
    width = (known["high_s"] / known["low_s"]).sqrt() - 1.0
    return {
        "rows": len(known),
        "nominal": 0.8,
        "coverage": _number(inside.cast(pl.Float64).mean()),
        "half_width_median": _number(width.median()),
    }


def _number(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
