"""A validation as one page that needs no network: charts, then the tables of the report."""

from __future__ import annotations

import html
import json
from typing import Any

import altair as alt
import polars as pl

from autoshard.columns import Column
from autoshard.validate_report import sections
from autoshard.validate_tables import errors
from autoshard.validating import Validation

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.1em; margin: 2em 0 .5em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .15em .8em .15em 0; text-align: right; white-space: nowrap; }
th { border-bottom: 1px solid #999; } tbody tr:hover { background: #f2f5f9; }
.left { text-align: left; } p { max-width: 75ch; margin: .5em 0; }
"""


#: Errors beyond this are drawn at the edge of the strip.
EDGE = 0.6


class _Inline(json.JSONEncoder):
    """JSON that may stand in a script: no ``<``, so no text ends the script."""

    def encode(self, o: Any) -> str:
        return super().encode(o).replace("<", "\\u003c")


def validation_page(validation: Validation) -> str:
    """The page as HTML."""
    parts = sections(validation)
    title = "Predicted against measured"
    body = [f"<h1>{title}</h1>", f"<p>{html.escape(parts[0][0])}.</p>"]
    if len(validation.scored):
        body.append(f'<div class="wide">{_chart_html(validation)}</div>')
    for place, (head, columns, notes) in enumerate(parts):
        if place or not len(validation.scored):
            body.append(f"<h2>{html.escape(head)}</h2>")
        if columns:
            body.append(f'<div class="wide">{_table(columns)}</div>')
        body += [f"<p>{html.escape(note)}</p>" for note in notes]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>autoshard: {title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def chart_table(validation: Validation) -> pl.DataFrame:
    """What the scatter draws, one row a run that counts."""
    return validation.scored.select(
        "id",
        "source",
        "model",
        "chip",
        "precision",
        "stack",
        "plan",
        measured="measured_step_s",
        predicted="predicted_step_s",
        low="low_s",
        high="high_s",
        error=pl.col("predicted_step_s") / pl.col("measured_step_s") - 1.0,
    ).with_columns(beyond=pl.col("error").abs() > EDGE)


def validation_chart(validation: Validation) -> alt.HConcatChart:
    """Predicted against measured step time, and the errors of each source."""
    table = chart_table(validation)
    low = min(float(table[name].to_numpy().min()) for name in ("measured", "predicted")) / 1.2
    high = max(float(table[name].to_numpy().max()) for name in ("measured", "predicted")) * 1.2
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    sources = errors(validation.scored, "source").sort("median", descending=True)
    order = sources["source"].to_list()
    colour = alt.Color(
        "source:N",
        title="source",
        scale=alt.Scale(scheme="tableau20", domain=sorted(order)),
        legend=alt.Legend(columns=1, symbolLimit=40),
    )
    pick = alt.selection_point(fields=["source"], bind="legend")
    points = (
        alt.Chart(table)
        .mark_circle(size=32)
        .encode(
            x=alt.X("measured:Q", title="measured (s a step)", scale=scale),
            y=alt.Y("predicted:Q", title="predicted (s a step)", scale=scale),
            color=colour,
            opacity=alt.condition(pick, alt.value(0.75), alt.value(0.05)),
            tooltip=_tooltip(),
        )
        .add_params(pick)
        .properties(width=430, height=430, title="predicted against measured")
    )
    diagonal = pl.DataFrame({"measured": [low, high], "predicted": [low, high]})
    line = (
        alt.Chart(diagonal)
        .mark_line(color="#888888", strokeDash=[4, 4])
        .encode(x=alt.X("measured:Q", scale=scale), y=alt.Y("predicted:Q", scale=scale))
    )
    beyond = int(table["beyond"].sum())
    title = "predicted / measured - 1"
    if beyond:
        title += f"; {beyond} beyond {EDGE:.0%} drawn at the edge, as triangles"
    where = alt.X(
        "error:Q",
        title=title,
        axis=alt.Axis(format="+%"),
        scale=alt.Scale(domain=[-EDGE, EDGE], clamp=True),
    )
    row = alt.Y("source:N", sort=order, title=None)
    edges = (
        alt.Chart(table.filter("beyond"))
        .mark_point(shape="triangle-up", filled=True, size=60)
        .encode(x=where, y=row, color=colour, tooltip=_tooltip())
    )
    ticks = (
        alt.Chart(table)
        .mark_tick(thickness=1.5, opacity=0.7)
        .encode(
            x=where,
            y=row,
            color=colour,
            tooltip=_tooltip(),
        )
        .properties(width=380, height=430, title="error by source, worst median first")
    )
    zero = alt.Chart(pl.DataFrame({"error": [0.0]})).mark_rule(color="#888888").encode(x="error:Q")
    return alt.HConcatChart(
        hconcat=[alt.layer(line, points), alt.layer(zero, ticks, *([edges] if beyond else []))],
        config=alt.Config(axis=alt.AxisConfig(gridOpacity=0.5)),
    )


def _tooltip() -> list[Any]:
    return [
        *(alt.Tooltip(f"{name}:N") for name in ("id", "model", "chip", "precision", "stack")),
        alt.Tooltip("plan:N"),
        alt.Tooltip("measured:Q", title="measured (s)", format=".4~g"),
        alt.Tooltip("predicted:Q", title="predicted (s)", format=".4~g"),
        alt.Tooltip("low:Q", title="interval from (s)", format=".4~g"),
        alt.Tooltip("high:Q", title="to (s)", format=".4~g"),
        alt.Tooltip("error:Q", format="+.1%"),
    ]


def _chart_html(validation: Validation) -> str:
    page = validation_chart(validation).to_html(
        inline=True,
        fullhtml=False,
        embed_options={"actions": False},
        json_kwds={"cls": _Inline},
    )
    return str(page)


def _table(columns: list[Column]) -> str:
    def cell(tag: str, column: Column, text: str) -> str:
        kind = ' class="left"' if column.left else ""
        return f"<{tag}{kind}>{html.escape(text)}</{tag}>"

    head = "".join(cell("th", column, column.head) for column in columns)
    rows = "".join(
        f"<tr>{''.join(cell('td', c, c.cells[k]) for c in columns)}</tr>"
        for k in range(len(columns[0].cells))
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
