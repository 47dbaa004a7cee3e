"""Which logical axis of a plan lies on which level of the network."""

from __future__ import annotations

import altair as alt
import polars as pl

from autoshard.charts.theme import BLUE, GREEN, INK, LABEL, ON, ORANGE, PINK, VERMILLION, dressed
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.torus import torus_times
from autoshard.priced import PricedPlan
from autoshard.words import chips_words, plan_words

COLOURS = {
    "tp": VERMILLION,
    "cp": PINK,
    "fsdp": BLUE,
    "dp": GREEN,
    "pp": ORANGE,
}


def mesh_table(priced: PricedPlan) -> pl.DataFrame:
    """What the chart draws, one row for each logical axis and network level that it lies on.

    ``axis`` and its ``degree``; ``level``, its ``place`` from the innermost outwards, and
    ``bytes_per_s`` of it; ``ways``, how many ranks of the axis are told apart on the level, rounded
    up where they do not divide. On a torus the axes of the data side share their dimensions and
    ``ways`` is null: their product is what is laid out. ``seq_split`` is a part of ``fsdp``, and
    lies inside of it.
    """
    cluster = priced.problem.cluster
    rows = _torus(priced) if cluster.chip.kind == "tpu" else _switched(priced)
    schema = {"axis": pl.String, "degree": pl.Int64, "level": pl.String, "ways": pl.Int64}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return table.join(levels(cluster), on="level", how="left", maintain_order="left")


def levels(cluster: Cluster) -> pl.DataFrame:
    """The levels of a cluster from the innermost outwards: ``level``, ``place``, ``bytes_per_s``.

    An axis of a torus is a level: ``chips`` are those along it, of others those that reach each
    other through it. ``way`` says whose bandwidth it is: of both directions of an axis together, or
    of one chip in one direction.
    """
    rows: list[tuple[str, str, int, float, str]] = []
    for level in cluster.levels:
        if level.axes:
            rows += [
                (
                    f"ICI {axis.name}",
                    f"{axis.length:,} chips, {'ring' if axis.wraps else 'line'}",
                    axis.length,
                    axis.bytes_per_s,
                    "both ways",
                )
                for axis in level.axes
                if axis.length > 1
            ]
        else:
            name = "DCN" if level.name == "dcn" else level.name
            reach = f"up to {level.chips:,} chips"
            rows.append((name, reach, level.chips, level.bytes_per_s, "a chip"))
    return pl.DataFrame(
        [(*row, place) for place, row in enumerate(rows)],
        schema=["level", "reach", "chips", "bytes_per_s", "way", "place"],
        orient="row",
    )


def _degrees(priced: PricedPlan) -> dict[str, int]:
    """The logical axes of a plan from the innermost outwards, with their degrees."""
    plan = priced.plan
    return {"tp": plan.tp, "cp": plan.cp, "fsdp": plan.fsdp, "dp": plan.dp, "pp": plan.pp}


def _switched(priced: PricedPlan) -> list[tuple[str, int, str, int | None]]:
    """Ranks nest by stride, in the order of :mod:`autoshard.search.layout`."""
    rows: list[tuple[str, int, str, int | None]] = []
    stride = 1
    for axis, degree in _degrees(priced).items():
        inside = 1
        for level in priced.problem.cluster.levels:
            # Ranks of the axis that this level brings together, and no level within it.
            reach = min(max(level.chips // stride, 1), degree)
            if reach > inside:
                rows.append((axis, degree, level.name, -(-reach // inside)))
                inside = reach
        stride *= degree
    return rows


def _torus(priced: PricedPlan) -> list[tuple[str, int, str, int | None]]:
    """``tp`` as it is dealt to dimensions, the data axes on all that they have together."""
    cluster, plan = priced.problem.cluster, priced.plan
    times, axes = torus_times(cluster, priced.row), cluster.torus
    place = times.placements[int(times.placement[0])]
    tensor = [(axes[i].name, taken) for i, taken in enumerate(place.taken) if taken > 1]
    data = [axes[i].name for i in place.data]
    if times.shared[0]:
        data += [
            axis.name
            for axis, taken in zip(axes, place.taken, strict=True)
            if 1 < taken < axis.length and axis.name not in data
        ]
    rows: list[tuple[str, int, str, int | None]] = [
        ("tp", plan.tp, f"ICI {name}", taken) for name, taken in tensor if plan.tp > 1
    ]
    for axis, degree in (("cp", plan.cp), ("fsdp", plan.fsdp), ("pp", plan.pp)):
        rows += [(axis, degree, f"ICI {name}", None) for name in data if degree > 1]
    if plan.dp > 1:
        rows.append(("dp", plan.dp, "DCN", plan.dp))
    return rows


def mesh_chart(priced: PricedPlan) -> alt.LayerChart:
    """The table as a grid: logical axes against network levels."""
    table = mesh_table(priced)
    every = levels(priced.problem.cluster)
    heads = {
        row["level"]: "|".join(
            (row["level"], row["reach"], f"{row['bytes_per_s'] / 1e9:,.4g} GB/s {row['way']}")
        )
        for row in every.iter_rows(named=True)
    }
    names = {axis: f"{_NAMES[axis]} {degree:,}" for axis, degree in _degrees(priced).items()}
    used = [axis for axis, degree in _degrees(priced).items() if degree > 1]
    drawn = pl.DataFrame(
        {
            "axis": table["axis"],
            "name": [names[axis] for axis in table["axis"]],
            "head": [heads[level] for level in table["level"]],
            "said": [_said(row) for row in table.iter_rows(named=True)],
        },
        schema=dict.fromkeys(("axis", "name", "head", "said"), pl.String),
    )
    base = alt.Chart(drawn).encode(
        x=alt.X(
            "head:N",
            title="network, innermost first",
            scale=alt.Scale(domain=list(heads.values()), padding=0.06),
            axis=alt.Axis(
                orient="top",
                labelAngle=0,
                labelExpr="split(datum.label, '|')",
                labelLimit=0,
                labelPadding=34,
                ticks=False,
                domain=False,
                grid=False,
            ),
        ),
        y=alt.Y(
            "name:N",
            title=None,
            scale=alt.Scale(domain=[names[axis] for axis in used] or ["one chip"], padding=0.12),
            axis=alt.Axis(ticks=False, domain=False, grid=False),
        ),
    )
    boxes = base.mark_rect(cornerRadius=3).encode(
        color=alt.Color(
            "axis:N",
            legend=None,
            scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())),
        ),
        tooltip=[
            alt.Tooltip("name:N", title="logical axis"),
            alt.Tooltip("said:N", title="here"),
        ],
    )
    ink = [ON.get(colour, INK) for colour in COLOURS.values()]
    text = base.mark_text(style=LABEL).encode(
        text="said:N",
        color=alt.Color("axis:N", legend=None, scale=alt.Scale(domain=list(COLOURS), range=ink)),
    )
    chart: alt.LayerChart = dressed(
        alt.layer(boxes, text)
        .resolve_scale(color="independent")
        .properties(
            width=440,
            height=36 * max(len(used), 1),
            title=alt.TitleParams(
                "Which axis lies on which network",
                subtitle=[
                    plan_words(priced.plan),
                    chips_words(priced.plan, priced.problem.cluster.chips).capitalize(),
                ],
            ),
        )
    )
    return chart


_NAMES = {"tp": "TP", "cp": "CP", "fsdp": "FSDP", "dp": "DP", "pp": "PP"}


def _said(row: dict[str, object]) -> str:
    """``4 ways``; on a torus, that ranks are spread over all that the data side has."""
    return "spread" if row["ways"] is None else f"{row['ways']:,} ways"
