"""The front as a chart: first the tables of what is drawn, then the drawing."""

from __future__ import annotations

import itertools
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from autoshard.charts.theme import (
    BINDING,
    LABEL,
    LIMIT,
    LIMIT_TEXT,
    OTHERS,
    RING,
    STAIRS,
    dressed,
)
from autoshard.front import ParetoFront
from autoshard.other_plans import OtherPlans
from autoshard.own_plan import OwnPlan
from autoshard.words import (
    GIB,
    binding_words,
    plan_words,
    proof_words,
    remat_words,
    time_scale,
)

#: Memory is drawn on a logarithmic scale when the front spans more than this factor.
LOG_FROM = 8.0
#: Other plans drawn at most, the fastest of those that were looked at.
MOST_OTHERS = 300
#: Others are drawn up to this share above the slowest plan of the front, and of one's own.
ABOVE = 0.15


def front_table(front: ParetoFront) -> pl.DataFrame:
    """What the chart draws, one row a point, fastest first.

    ``step``, ``earliest`` and ``latest`` are in the unit of :func:`autoshard.words.time_scale` (the
    ends null where no interval is known), ``memory_gib`` in GiB, ``mfu`` a share; ``point`` is the
    place in the front, and the other columns are words for the tooltip.
    """
    _, unit_s, _ = time_scale(front)
    gap = float(front.search.get("gap", 0.0))
    return pl.DataFrame(
        [
            {
                "point": place,
                "step": point.step_time_s / unit_s,
                "memory_gib": point.memory_bytes / GIB,
                "earliest": None if point.interval_s is None else point.interval_s[0] / unit_s,
                "latest": None if point.interval_s is None else point.interval_s[1] / unit_s,
                "binding": point.binding,
                "mfu": point.mfu,
                "plan": plan_words(point.plan),
                "microbatches": f"{point.plan.microbatches} x {point.plan.micro_batch_size}",
                "remat": remat_words(point.plan),
                "layers": layers_words(point.plan.layers_per_stage),
                "chips": point.plan.chips_used,
                "bound": binding_words(point),
                "proof": proof_words(point, gap, complete=front.complete),
            }
            for place, point in enumerate(front.points)
        ]
    )


def others_table(front: ParetoFront, others: OtherPlans, latest_s: float) -> pl.DataFrame:
    """The other plans that are drawn, one row a plan, fastest first: none after ``latest_s``."""
    _, unit_s, _ = time_scale(front)
    order = np.argsort(others.step_time_s, kind="stable")
    order = order[others.step_time_s[order] <= latest_s][:MOST_OTHERS]
    c = others.candidates.take(order)
    columns = {
        name: getattr(c, name).tolist()
        for name in ("dp", "fsdp", "tp", "cp", "pp", "vpp", "microbatches", "micro_batch_size")
    }
    words = [
        " x ".join(
            f"{name.upper()} {degree:,}"
            for name in ("dp", "fsdp", "tp", "cp", "pp")
            if (degree := columns[name][row]) > 1
        )
        for row in range(len(order))
    ]
    return pl.DataFrame(
        {
            "step": others.step_time_s[order] / unit_s,
            "memory_gib": others.memory_bytes[order] / GIB,
            "plan": [said or "no parallelism" for said in words],
            "microbatches": [
                f"{many} x {size}"
                for many, size in zip(
                    columns["microbatches"], columns["micro_batch_size"], strict=True
                )
            ],
            "remat": [others.rung[row] for row in order.tolist()],
        },
        schema={
            "step": pl.Float64,
            "memory_gib": pl.Float64,
            **dict.fromkeys(("plan", "microbatches", "remat"), pl.String),
        },
    )


def front_chart(
    front: ParetoFront, *, own: OwnPlan | None = None, others: OtherPlans | None = None
) -> alt.LayerChart:
    """Step time against memory per chip, points coloured by what binds, and the memory limit.

    Args:
        front: what is drawn.
        own: a plan of one's own, as a marked point.
        others: plans that the front beat, faint behind it.
    """
    table = front_table(front)
    unit, unit_s, _ = time_scale(front)
    limit = front.problem["capacity_bytes"] / GIB
    slowest_s = max([p.step_time_s for p in front.points] + ([own.step_time_s] if own else []))
    behind = None if others is None else others_table(front, others, slowest_s * (1.0 + ABOVE))
    step = alt.Y(
        "step:Q", title=f"step time ({unit})", scale=alt.Scale(zero=False, nice=True, padding=12)
    )
    sizes = table["memory_gib"].to_list() + ([own.memory_bytes / GIB] if own else [])
    x = alt.X("memory_gib:Q", title="memory per chip (GiB)", scale=_memory_scale(sizes, limit))
    base = alt.Chart(table).encode(x=x, y=step)
    # Between two points the best plan known within a memory is the smaller one: a staircase.
    line = base.mark_line(interpolate="step-after", style=STAIRS)
    if "chips" in front.objectives:
        line = line.encode(detail="chips:N")
    present = [name for name in BINDING if name in set(table["binding"])]
    colour = alt.Color(
        "binding:N",
        title="bound by",
        scale=alt.Scale(domain=present, range=[BINDING[name] for name in present]),
    )
    known = table["earliest"].null_count() == 0
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        color=colour, tooltip=_tooltip(unit, interval=known)
    )
    mark = pl.DataFrame({"memory_gib": [limit], "label": [f"memory limit {limit:.1f} GiB"]})
    rule = alt.Chart(mark).mark_rule(style=LIMIT).encode(x="memory_gib:Q")
    label = (
        alt.Chart(mark)
        .mark_text(style=LIMIT_TEXT, align="right", baseline="bottom", dy=-3)
        .encode(x="memory_gib:Q", y=alt.value(0), text="label:N")
    )
    layers: list[alt.Chart] = [line, points, rule, label]
    if known:
        # Four of five measured times lie on these lines.
        likely = base.mark_rule(opacity=0.35, strokeWidth=2).encode(
            y=alt.Y("earliest:Q"), y2="latest:Q", color=colour
        )
        layers.insert(2, likely)
    if behind is not None and len(behind):
        layers.insert(0, _others(behind, x, step, unit))
    if own is not None:
        layers += _own(own, x, step, unit, unit_s)
    chart: alt.LayerChart = dressed(
        alt.layer(*layers).properties(
            width=560,
            height=340,
            title=_title(front, 0 if behind is None else len(behind), others),
        )
    )
    return chart


def _others(behind: pl.DataFrame, x: alt.X, step: alt.Y, unit: str) -> alt.Chart:
    """The plans that the front beat."""
    chart: alt.Chart = (
        alt.Chart(behind)
        .mark_circle(style=OTHERS, size=18, clip=True)
        .encode(
            x=x,
            y=step,
            tooltip=[
                alt.Tooltip("plan:N", title="not on the front"),
                alt.Tooltip("step:Q", title=f"step time ({unit})", format=",.4~f"),
                alt.Tooltip("memory_gib:Q", title="memory per chip (GiB)", format=",.2f"),
                alt.Tooltip("microbatches:N", title="microbatches x sequences"),
                alt.Tooltip("remat:N", title="remat of all layers"),
            ],
        )
    )
    return chart


def _own(own: OwnPlan, x: alt.X, step: alt.Y, unit: str, unit_s: float) -> list[alt.Chart]:
    """A plan of one's own: a diamond with its name."""
    table = pl.DataFrame(
        {
            "step": [own.step_time_s / unit_s],
            "memory_gib": [own.memory_bytes / GIB],
            "plan": ["own plan" if own.plan is None else plan_words(own.plan)],
            "remat": ["" if own.plan is None else remat_words(own.plan)],
        }
    )
    base = alt.Chart(table).encode(
        x=x,
        y=step,
        tooltip=[
            alt.Tooltip("plan:N", title="own plan"),
            alt.Tooltip("step:Q", title=f"step time ({unit})", format=",.4~f"),
            alt.Tooltip("memory_gib:Q", title="memory per chip (GiB)", format=",.2f"),
            alt.Tooltip("remat:N"),
        ],
    )
    return [
        base.mark_point(shape="diamond", size=260, style=RING),
        base.mark_text(align="left", dx=11, dy=-7, style=LABEL).encode(text=alt.value("own plan")),
    ]


def _memory_scale(sizes: list[float], limit: float) -> alt.Scale:
    smallest, largest = min(sizes), max(*sizes, limit)
    if limit > LOG_FROM * smallest:
        return alt.Scale(type="log", domain=[smallest / 1.25, largest * 1.15], nice=False)
    return alt.Scale(domain=[0, largest * 1.05], nice=False)


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


def _title(front: ParetoFront, drawn: int, others: OtherPlans | None) -> alt.TitleParams:
    problem = front.problem
    workload = problem["workload"]
    said = [
        f"{workload['global_batch_tokens']:,} tokens a step, {workload['seq_len']:,} a "
        f"sequence, {workload['precision']}; costs: {problem['costs']['profile']}."
    ]
    if others is not None and drawn:
        said += [
            f"Faint: {drawn:,} other plans with even stages and one remat rung for all layers,",
            f"the fastest of each of {others.meshes:,} sampled meshes, as far as the picture goes.",
        ]
    return alt.TitleParams(
        f"{problem['model']['name']} on {problem['cluster']['name']}", subtitle=said
    )


def layers_words(layers: tuple[int, ...]) -> str:
    """``8 on each stage``, or ``7 + 14 x 8 + 7``."""
    if len(set(layers)) == 1:
        return f"{layers[0]} on each stage" if len(layers) > 1 else str(layers[0])
    runs = [(number, len(list(same))) for number, same in itertools.groupby(layers)]
    return " + ".join(f"{many} x {number}" if many > 1 else f"{number}" for number, many in runs)
