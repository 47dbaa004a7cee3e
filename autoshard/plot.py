"""The front as a chart: first the table of what is drawn, then the drawing."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from autoshard.front import ParetoFront
from autoshard.words import (
    GIB,
    binding_words,
    plan_words,
    proof_words,
    remat_words,
    time_scale,
)

#: One colour a bottleneck, told apart by people who cannot tell red from green.
COLOURS = {
    "compute": "#0072b2",
    "communication": "#d55e00",
    "bubble": "#009e73",
    "hbm": "#cc79a7",
}
#: Memory is drawn on a logarithmic scale when the front spans more than this factor.
LOG_FROM = 8.0


def front_table(front: ParetoFront) -> pl.DataFrame:
    """What the chart draws, one row a point, fastest first.

    ``step``, ``earliest`` and ``latest`` are in the unit of :func:`autoshard.words.time_scale` (the
    ends null where no interval is known), ``memory_gib`` in GiB, ``mfu`` a share; the other columns
    are words for the tooltip.
    """
    _, unit_s, _ = time_scale(front)
    gap = float(front.search.get("gap", 0.0))
    return pl.DataFrame(
        [
            {
                "step": point.step_time_s / unit_s,
                "memory_gib": point.memory_bytes / GIB,
                "earliest": None if point.interval_s is None else point.interval_s[0] / unit_s,
                "latest": None if point.interval_s is None else point.interval_s[1] / unit_s,
                "binding": point.binding,
                "mfu": point.mfu,
                "plan": plan_words(point.plan),
                "microbatches": f"{point.plan.microbatches} x {point.plan.micro_batch_size}",
                "remat": remat_words(point.plan),
                "layers": _layers(point.plan.layers_per_stage),
                "chips": point.plan.chips_used,
                "bound": binding_words(point),
                "proof": proof_words(point, gap, complete=front.complete),
            }
            for point in front.points
        ]
    )


def front_chart(front: ParetoFront) -> alt.LayerChart:
    """Step time against memory per chip, points coloured by what binds, and the memory limit."""
    table = front_table(front)
    unit, _, _ = time_scale(front)
    limit = front.problem["capacity_bytes"] / GIB
    step = alt.Y(
        "step:Q", title=f"step time ({unit})", scale=alt.Scale(zero=False, nice=True, padding=12)
    )
    x = alt.X("memory_gib:Q", title="memory per chip (GiB)", scale=_memory_scale(table, limit))
    base = alt.Chart(table).encode(x=x, y=step)
    # Between two points the best plan known within a memory is the smaller one: a staircase.
    line = base.mark_line(interpolate="step-after", color="#999999", strokeWidth=1.5)
    if "chips" in front.objectives:
        line = line.encode(detail="chips:N")
    present = [name for name in COLOURS if name in set(table["binding"])]
    colour = alt.Color(
        "binding:N",
        title="bound by",
        scale=alt.Scale(domain=present, range=[COLOURS[name] for name in present]),
    )
    known = table["earliest"].null_count() == 0
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        color=colour, tooltip=_tooltip(unit, interval=known)
    )
    mark = pl.DataFrame({"memory_gib": [limit], "label": [f"memory limit {limit:.1f} GiB"]})
    rule = alt.Chart(mark).mark_rule(strokeDash=[5, 4], color="#444444").encode(x="memory_gib:Q")
    label = (
        alt.Chart(mark)
        .mark_text(align="right", dx=-5, y=10, color="#444444")
        .encode(x="memory_gib:Q", text="label:N")
    )
    layers = [line, points, rule, label]
    if known:
        # Four of five measured times lie on these lines.
        likely = base.mark_rule(opacity=0.35, strokeWidth=2).encode(
            y=alt.Y("earliest:Q"), y2="latest:Q", color=colour
        )
        layers.insert(2, likely)
    return alt.LayerChart(
        layer=layers,
        width=560,
        height=340,
        title=_title(front),
        config=alt.Config(axis=alt.AxisConfig(gridOpacity=0.5)),
    )


def _memory_scale(table: pl.DataFrame, limit: float) -> alt.Scale:
    smallest = float(table["memory_gib"].to_numpy().min())
    if limit > LOG_FROM * smallest:
        return alt.Scale(type="log", domain=[smallest / 1.25, limit * 1.15], nice=False)
    return alt.Scale(domain=[0, limit * 1.05], nice=False)


def _tooltip(unit: str, *, interval: bool) -> list[Any]:
    ends = (("earliest", "4 of 5 runs from"), ("latest", "4 of 5 runs to"))
    measured = [
        alt.Tooltip(f"{name}:Q", title=f"{title} ({unit})", format=",.4~f") for name, title in ends
    ]
    return [
        alt.Tooltip("step:Q", title=f"step time ({unit})", format=",.4~f"),
        *(measured if interval else []),
        alt.Tooltip("memory_gib:Q", title="memory per chip (GiB)", format=",.2f"),
        alt.Tooltip("mfu:Q", title="MFU", format=".1%"),
        alt.Tooltip("plan:N"),
        alt.Tooltip("microbatches:N", title="microbatches x sequences"),
        alt.Tooltip("layers:N", title="layers per stage"),
        alt.Tooltip("remat:N"),
        alt.Tooltip("chips:Q", title="chips used", format=","),
        alt.Tooltip("bound:N", title="bottleneck"),
        alt.Tooltip("proof:N"),
    ]


def _title(front: ParetoFront) -> alt.TitleParams:
    problem = front.problem
    workload = problem["workload"]
    return alt.TitleParams(
        f"{problem['model']['name']} on {problem['cluster']['name']}",
        subtitle=f"{workload['global_batch_tokens']:,} tokens a step, {workload['seq_len']:,} a "
        f"sequence, {workload['precision']}; costs: {problem['costs']['profile']}",
        anchor="start",
    )


def _layers(layers: tuple[int, ...]) -> str:
    if len(set(layers)) == 1:
        return f"{layers[0]} on each stage" if len(layers) > 1 else str(layers[0])
    return " + ".join(map(str, layers))
