"""A front as one page that needs no network: choose a point, and see all there is of its plan."""

from __future__ import annotations

import contextlib
import functools
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import altair as alt

from autoshard.charts.front import front_chart, front_table, layers_words
from autoshard.charts.memory import memory_chart
from autoshard.charts.mesh import mesh_chart
from autoshard.charts.pipeline import pipeline_panels, timeline
from autoshard.charts.theme import RING, config
from autoshard.charts.time import time_chart
from autoshard.columns import Column
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.front import ParetoFront
from autoshard.launch_texts import launch_texts
from autoshard.other_plans import other_plans
from autoshard.priced import PricedPlan
from autoshard.report import plan_lines, search_line
from autoshard.report_facts import Facts, assumptions, published_error
from autoshard.restoring import problem_of
from autoshard.sizes import format_bytes, format_seconds
from autoshard.words import (
    binding_short,
    chips_words,
    count_words,
    days_words,
    interval_words,
    plan_words,
    proof_words,
    schedule_words,
    training_days,
)

#: Bars of all timelines together: some 45 bytes each.
MOST_BARS = 30_000
#: Bars of one timeline at most.
MOST_BARS_EACH = 3_000


def report_page(front: ParetoFront, profile: Profile, *, tokens: float) -> str:
    """The page as HTML.

    Args:
        front: the answer.
        profile: the costs that found it.
        tokens: tokens of the whole training run, for the days.
    """
    problem = problem_of(front.problem)
    title = f"{problem.model.name} on {problem.cluster.name}"
    drawn = _front_drawn(front, problem, profile)
    data = {
        "front": _front_spec(front, drawn),
        "points": _points(front, problem, profile, tokens),
        "themes": {"light": config(), "dark": config(dark=True)},
    }
    facts = (assumptions(problem, profile), published_error(problem, profile))
    parts = {
        "title": html.escape(title),
        "style": _asset("page.css"),
        "headline": _headline(front, problem, tokens),
        "notes": "".join(f"<li>{html.escape(note)}</li>" for note in front.notes),
        "caption": html.escape(" ".join(drawn.title.subtitle)),
        "table": _choices(front, tokens),
        "facts": "\n".join(_facts_html(each) for each in facts),
        "found": html.escape(f"{search_line(front)}{schedule_words(front)}"),
        "data": _in_script(json.dumps(data, separators=(",", ":"))),
        "vega": _vega(),
        "script": _asset("page.js"),
    }
    # In one go: what is put in is not looked at again.
    return re.sub(r"<!-- (\w+) -->", lambda place: parts[place[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return files("autoshard.charts").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and the function ``vegaEmbed``, as vl-convert carries them."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _in_script(text: str) -> str:
    """JSON that may stand in a script: no ``<``, so no text ends the script."""
    return text.replace("<", "\\u003c")


def _headline(front: ParetoFront, problem: Problem, tokens: float) -> str:
    """The answer in one sentence."""
    best = front.points[0]
    days = days_words(training_days(front, best, tokens))
    return (
        f"Fastest: <strong>{html.escape(format_seconds(best.step_time_s))} a step</strong>"
        f"{html.escape(interval_words(best))}, {html.escape(format_bytes(best.memory_bytes))} on a "
        f"chip, MFU {best.mfu * 100:.1f} %, {days} days for {count_words(tokens)} tokens, on "
        f"{html.escape(chips_words(best.plan, problem.cluster.chips))}."
    )


def _front_drawn(front: ParetoFront, problem: Problem, profile: Profile) -> alt.LayerChart:
    """The chart of the front, with the plans that it beat."""
    try:
        return front_chart(front, others=other_plans(front, problem, profile))
    except SpecError:
        return front_chart(front)  # under a constraint that was no text


def _front_spec(front: ParetoFront, chart: alt.LayerChart) -> dict[str, Any]:
    """The chart with a ring around the chosen point, which is the parameter ``chosen``."""
    points = next(layer for layer in chart.layer if layer.mark.type == "point")
    ring = (
        alt.Chart(front_table(front))
        .transform_filter("datum.point == chosen")
        .mark_point(size=300, style=RING)
        .encode(x=points.encoding.x, y=points.encoding.y)
    )
    chart.layer = [*chart.layer, ring]
    return _bare(chart.add_params(alt.param(name="chosen", value=0)))


def _points(
    front: ParetoFront, problem: Problem, profile: Profile, tokens: float
) -> list[dict[str, Any]]:
    """Everything that choosing a point shows."""
    piped = sum(point.plan.pp > 1 for point in front.points)
    bars = min(MOST_BARS // max(piped, 1), MOST_BARS_EACH)
    return [
        _point(PricedPlan(front=front, point=point, problem=problem, profile=profile), tokens, bars)
        for point in front.points
    ]


def _point(priced: PricedPlan, tokens: float, bars: int) -> dict[str, Any]:
    front, point = priced.front, priced.point
    gap = float(front.search.get("gap", 0.0))
    charts = {
        "time": [time_chart(front, point)],
        "memory": [memory_chart(priced)],
        "mesh": [mesh_chart(priced)],
    }
    if point.plan.pp > 1:
        # The schedule of someone else's cost model has no order of passes to draw.
        with contextlib.suppress(SpecError):
            charts["pipeline"] = list(
                pipeline_panels(priced, timeline(priced), bars, numbered=False)
            )
    days = days_words(training_days(front, point, tokens))
    return {
        "name": plan_words(point.plan),
        "lines": plan_lines(front, point),
        "figures": [
            ["step time", format_seconds(point.step_time_s) + interval_words(point)],
            ["memory on a chip", format_bytes(point.memory_bytes)],
            ["MFU", f"{point.mfu * 100:.1f} %"],
            ["days", f"{days} for {count_words(tokens)} tokens"],
            ["layers", layers_words(point.plan.layers_per_stage)],
            ["layout", _layout(point.plan.layout)],
            ["proof", proof_words(point, gap, complete=front.complete)],
        ],
        "charts": {name: [_bare(chart) for chart in panels] for name, panels in charts.items()},
        "captions": {name: _caption(panels[0]) for name, panels in charts.items()},
        "launch": launch_texts(front.solved(point)),
    }


def _bare(chart: Any) -> dict[str, Any]:
    """The specification without what the page says or chooses: title, look, width."""
    # Its parts were checked when they were made; all of it once more takes a tenth of a second.
    spec: dict[str, Any] = chart.to_dict(validate=False)
    for name in ("title", "config", "$schema"):
        spec.pop(name, None)
    tables = {name: _columns(rows) for name, rows in spec.pop("datasets").items()}
    return spec | {"width": "container", "tables": tables}


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A table column by column: half of the text of one that names them in every row."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def _caption(chart: Any) -> str:
    """What a chart says under its title, but for the plan, which the page has as a heading."""
    return "; ".join(chart.title.subtitle[1:])


def _layout(layout: Mapping[str, str]) -> str:
    return ", ".join(f"{axis.upper()} over {where}" for axis, where in layout.items()) or "one chip"


def _choices(front: ParetoFront, tokens: float) -> str:
    """The front as rows to choose from."""
    rows = []
    for place, point in enumerate(front.points):
        cells = (
            ("number", format_seconds(point.step_time_s)),
            ("number", format_bytes(point.memory_bytes)),
            ("number wide", f"{point.mfu * 100:.1f} %"),
            ("number wide", days_words(training_days(front, point, tokens))),
            ("plan", plan_words(point.plan)),
            ("wide", binding_short(point)),
        )
        said = ", ".join(text for kind, text in cells if "wide" not in kind)
        rows.append(
            f'<tr data-point="{place}"><td><input type="radio" name="point" value="{place}" '
            f'aria-label="{html.escape(said)}"{" checked" if place == 0 else ""}></td>'
            + "".join(f'<td class="{kind}">{html.escape(text)}</td>' for kind, text in cells)
            + "</tr>"
        )
    return "\n".join(rows)


def _facts_html(facts: Facts) -> str:
    parts = [f"<h2>{html.escape(facts.head)}</h2>"]
    parts += [f"<p>{html.escape(said)}</p>" for said in facts.said]
    for caption, columns in facts.tables:
        parts.append(_table(caption, columns))
    return f"<section>{''.join(parts)}</section>"


def _table(caption: str, columns: Sequence[Column]) -> str:
    def row(tag: str, texts: Sequence[str]) -> str:
        kinds = [' class="number"' if not column.left else "" for column in columns]
        cells = zip(kinds, texts, strict=True)
        return "".join(f"<{tag}{kind}>{_linked(text)}</{tag}>" for kind, text in cells)

    head = row("th", [column.head for column in columns])
    body = "".join(
        f"<tr>{row('td', [column.cells[k] for column in columns])}</tr>"
        for k in range(len(columns[0].cells))
    )
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table class="facts">{title}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _linked(text: str) -> str:
    """Text of a cell; a long address may break anywhere."""
    return html.escape(text).replace("/", "/<wbr>")
