"""Where the step time of a plan goes, as bars that start where the one above ends."""

from __future__ import annotations

import altair as alt
import polars as pl

from autoshard.charts.theme import (
    BLUE,
    GREEN,
    GREY,
    LIMIT,
    LIMIT_TEXT,
    ORANGE,
    PINK,
    SKY,
    VERMILLION,
    dressed,
)
from autoshard.front import FrontPoint, ParetoFront
from autoshard.sizes import format_seconds
from autoshard.words import binding_words, percent, plan_words, time_scale

#: What a bar is, and its colour.
KINDS = {
    "compute": BLUE,
    "recompute": SKY,
    "communication, not hidden": VERMILLION,
    "communication, hidden": ORANGE,
    "optimizer": PINK,
    "pipeline bubble": GREEN,
    "other": GREY,
}
#: The words of a kind of communication.
COMMS = {
    "fsdp": "FSDP collectives",
    "tp": "TP collectives",
    "seq": "KV gathers (sequence)",
    "cp": "KV ring (context)",
    "dp": "DP gradients",
    "pp": "PP sends",
}
#: Shares of the step below this are rounding.
NOTHING = 1e-9


def time_table(point: FrontPoint) -> pl.DataFrame:
    """What the chart draws, one row a bar: ``part``, ``kind``, ``seconds``, ``start_s``, ``end_s``.

    Of the rows that are not ``hidden``, each starts where the one before ends, and the last ends
    with the step. Hidden communication runs beside what is before it: it ends where the rest of
    its kind begins. On the slowest stage, as all of a breakdown; how exposed seconds are dealt to
    kinds of communication is said in :class:`~autoshard.breakdown.Breakdown`.
    """
    parts, step_s = point.breakdown, point.step_time_s
    exposed = dict(parts.get("exposed_s", {}))
    if "exposed_s" not in parts:  # a front of an earlier version: all kinds together
        exposed = {"": max(parts["busy_s"] - parts["compute_s"], 0.0) + parts.get("once_s", 0.0)}
    kinds = sorted({*exposed, *parts["comms_s"]}, key=lambda kind: -exposed.get(kind, 0.0))
    rows: list[tuple[str, str, float, bool]] = [
        ("compute", "compute", parts["compute_s"] - parts["recompute_s"], False),
        ("recompute (remat)", "recompute", parts["recompute_s"], False),
    ]
    for kind in kinds:
        name = COMMS.get(kind, kind or "communication")
        seen_s = exposed.get(kind, 0.0)
        hidden_s = max(parts["comms_s"].get(kind, 0.0) - seen_s, 0.0)
        rows += [(name, "communication, hidden", hidden_s, True)] if "exposed_s" in parts else []
        rows += [(name, "communication, not hidden", seen_s, False)]
    rows += [
        ("optimizer", "optimizer", parts.get("optimizer_s", 0.0), False),
        ("pipeline bubble", "pipeline bubble", parts["idle_s"], False),
    ]
    table, at_s = [], 0.0
    for part, kind, seconds, hidden in rows:
        if seconds <= NOTHING * step_s:
            continue
        start_s = at_s - seconds if hidden else at_s
        at_s = at_s if hidden else at_s + seconds
        table.append(
            {
                "part": part,
                "kind": kind,
                "hidden": hidden,
                "seconds": seconds,
                "share": seconds / step_s,
                "start_s": start_s,
                "end_s": start_s + seconds,
            }
        )
    return pl.DataFrame(table)


def time_chart(front: ParetoFront, point: FrontPoint) -> alt.LayerChart:
    """The bars of :func:`time_table`, and the step."""
    unit, unit_s, _ = time_scale(front)
    table = time_table(point)
    drawn = table.with_columns(
        *((pl.col(name) / unit_s).alias(name) for name in ("seconds", "start_s", "end_s")),
        label=_labels(table),
    )
    order = drawn["label"].unique(maintain_order=True).to_list()
    present = [kind for kind in KINDS if kind in set(drawn["kind"])]
    bars = (
        alt.Chart(drawn)
        .mark_bar(height={"band": 0.72})
        .encode(
            x=alt.X(
                "start_s:Q",
                title=f"time in a step, slowest stage ({unit})",
                scale=alt.Scale(nice=False, zero=True),
                axis=alt.Axis(tickCount=6),
            ),
            x2="end_s:Q",
            y=alt.Y(
                "label:N",
                sort=order,
                title=None,
                axis=alt.Axis(
                    labelExpr="split(datum.label, '|')", labelOffset=-6, domain=False, ticks=False
                ),
            ),
            color=alt.Color(
                "kind:N",
                title=None,
                scale=alt.Scale(domain=present, range=[KINDS[kind] for kind in present]),
            ),
            tooltip=[
                alt.Tooltip("part:N"),
                alt.Tooltip("kind:N"),
                alt.Tooltip("seconds:Q", title=unit, format=",.4~g"),
                alt.Tooltip("share:Q", title="of the step", format=".1%"),
            ],
        )
    )
    end = pl.DataFrame({"end": [point.step_time_s / unit_s]})
    rule = alt.Chart(end).mark_rule(style=LIMIT).encode(x="end:Q")
    text = (
        alt.Chart(end)
        .mark_text(style=LIMIT_TEXT, align="right", baseline="bottom", dx=0, dy=-3)
        .encode(
            x="end:Q",
            y=alt.value(0),
            text=alt.value(f"step {format_seconds(point.step_time_s)}"),
        )
    )
    chart: alt.LayerChart = dressed(
        alt.layer(bars, rule, text).properties(
            width=440,
            height=34 * len(order),
            title=alt.TitleParams(
                "Where the step goes", subtitle=[plan_words(point.plan), binding_words(point)]
            ),
        )
    )
    return chart


def _labels(table: pl.DataFrame) -> pl.Series:
    """A row's name in two lines: the part, and its time, not hidden and hidden."""
    words: dict[str, list[str]] = {}
    for row in table.sort("hidden", maintain_order=True).iter_rows(named=True):
        said = words.setdefault(row["part"], [])
        long = format_seconds(row["seconds"])
        said.append(f"{'+' if said else ''}{long} hidden" if row["hidden"] else long)
    shares = dict(table.filter(~pl.col("hidden")).select("part", "share").iter_rows())
    labels = {}
    for part, said in words.items():
        if len(said) == 1 and part in shares:
            said.append(percent(shares[part]))
        labels[part] = f"{part}|{', '.join(said)}"
    return pl.Series("label", [labels[part] for part in table["part"]])
