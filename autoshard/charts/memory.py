"""Where the memory of a plan goes: bytes by kind on a chip of every stage, against the limit."""

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
    YELLOW,
    dressed,
)
from autoshard.costmodels.costs import MEMORY_KINDS
from autoshard.memory_parts import UNNAMED, memory_parts
from autoshard.priced import PricedPlan
from autoshard.words import GIB, plan_words, remat_words

_COLOURS = (BLUE, SKY, GREEN, ORANGE, VERMILLION, PINK, YELLOW, GREY)
KINDS = dict(zip(MEMORY_KINDS, _COLOURS, strict=True))
KINDS |= {kind: KINDS.get(kind, colour) for kind, colour in zip(UNNAMED, _COLOURS, strict=False)}

#: The limit is drawn where the fullest stage takes this share of it: bars are to be seen.
NEAR = 0.25


def memory_table(priced: PricedPlan) -> pl.DataFrame:
    """What the chart draws, one row a stage and kind: ``stage``, ``kind``, ``bytes``.

    The kinds of a stage add up to what a chip of it holds at its peak, and the fullest stage to
    the memory of the plan.
    """
    parts = memory_parts(priced.problem, priced.profile, priced.plan, priced.row)
    order = [kind for kind in KINDS if kind in parts]
    return pl.DataFrame(
        {
            "stage": [s for kind in order for s in range(len(parts[kind]))],
            "layers": [n for _ in order for n in priced.plan.layers_per_stage],
            "kind": [kind for kind in order for _ in parts[kind]],
            "order": [i for i, kind in enumerate(order) for _ in parts[kind]],
            "bytes": [size for kind in order for size in parts[kind]],
        }
    )


def memory_chart(priced: PricedPlan) -> alt.LayerChart:
    """The table as stacked bars, a stage each, and the limit of a chip."""
    table = memory_table(priced)
    limit = priced.problem.capacity_bytes / GIB
    drawn = table.with_columns(gib=pl.col("bytes") / GIB, whole=pl.col("bytes").sum().over("stage"))
    present = drawn["kind"].unique(maintain_order=True).to_list()
    stages = priced.plan.pp
    whole = table.group_by("stage", maintain_order=True).agg(pl.col("bytes").sum())
    fullest = whole.sort("bytes", descending=True, maintain_order=True).row(0)
    most = fullest[1] / GIB
    near = most >= NEAR * limit
    right = max(most, limit) if near else most * 1.1
    words = f"limit {limit:,.1f} GiB" + ("" if near else ", far to the right")
    mark = pl.DataFrame({"limit": [right], "label": [words]})
    rule = alt.Chart(mark).mark_rule(style=LIMIT).encode(x="limit:Q")
    text = (
        alt.Chart(mark)
        .mark_text(style=LIMIT_TEXT, align="right", baseline="bottom", dy=-3)
        .encode(x="limit:Q", y=alt.value(0), text="label:N")
    )
    said = f"{most:,.3g} of {limit:,.1f} GiB"
    if stages > 1:
        said = f"fullest of {stages} stages: {fullest[0]}, with {said}"
    bars = (
        alt.Chart(drawn.with_columns(whole=pl.col("whole") / GIB))
        .mark_bar()
        .encode(
            x=alt.X(
                "gib:Q",
                title="memory of one chip at its peak (GiB)",
                scale=alt.Scale(domain=[0, right], nice=False),
            ),
            y=alt.Y(
                "stage:O",
                title="stage" if stages > 1 else None,
                axis=alt.Axis(labelOverlap=True, labels=stages > 1, ticks=False, domain=False),
            ),
            color=alt.Color(
                "kind:N",
                title=None,
                sort=present,
                scale=alt.Scale(domain=present, range=[KINDS[kind] for kind in present]),
            ),
            order="order:Q",
            tooltip=[
                alt.Tooltip("stage:O"),
                alt.Tooltip("layers:Q"),
                alt.Tooltip("kind:N"),
                alt.Tooltip("gib:Q", title="GiB", format=",.3~f"),
                alt.Tooltip("whole:Q", title="stage in all (GiB)", format=",.2f"),
            ],
        )
    )
    step = 44 if stages == 1 else 22 if stages <= 8 else 14 if stages <= 32 else 8
    chart: alt.LayerChart = dressed(
        alt.layer(bars, *([rule] if near else []), text).properties(
            width=440,
            height=stages * step,
            title=alt.TitleParams(
                "Where the memory goes",
                subtitle=[plan_words(priced.plan), f"{said}; remat: {remat_words(priced.plan)}"],
            ),
        )
    )
    return chart
