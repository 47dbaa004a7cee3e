"""What the charts share: colours, and the look of text, lines and limits in light and in dark.

Colours are those of Okabe and Ito (2008), told apart by people who cannot tell red from green; each
is drawn on both grounds. Everything else about the look is in :func:`config`, so that a page can
exchange it where a reader prefers dark.
"""

from __future__ import annotations

from typing import Any

import altair as alt

BLUE, SKY, GREEN, ORANGE = "#0072b2", "#56b4e9", "#009e73", "#e69f00"
VERMILLION, PINK, YELLOW, GREY = "#d55e00", "#cc79a7", "#e5d832", "#8c8c8c"

#: Text on each of them: white is legible on blue alone.
ON = {BLUE: "#ffffff"}
INK = "#111111"

#: What binds a plan.
BINDING = {"compute": BLUE, "communication": VERMILLION, "bubble": GREEN, "hbm": PINK}

#: Named looks of marks, by what they are; see :func:`config`.
LIMIT, LIMIT_TEXT, STAIRS, OTHERS, RING, LABEL, SEAM = (
    "limit",
    "limitText",
    "stairs",
    "others",
    "ring",
    "label",
    "seam",
)


def config(*, dark: bool = False) -> dict[str, Any]:
    """The look of every chart, as a Vega-Lite configuration.

    In dark, the ground is the page's own.
    """
    ink, soft, faint, ground = "#222222", "#555555", "#9a9a9a", "#ffffff"
    if dark:
        ink, soft, faint, ground = "#eeeeee", "#bdbdbd", "#7d7d7d", "#16181c"
    return {
        "background": ground,
        "view": {"stroke": None},
        "axis": {
            "gridColor": faint,
            "gridOpacity": 0.3,
            "domainColor": faint,
            "tickColor": faint,
            "labelColor": ink,
            "titleColor": soft,
            "titleFontWeight": "normal",
            "labelFontSize": 11,
            "titleFontSize": 12,
            "labelLimit": 320,
        },
        "legend": {
            "labelColor": ink,
            "titleColor": soft,
            "titleFontWeight": "normal",
            "orient": "bottom",
            "direction": "horizontal",
            "columns": 2,
            "labelFontSize": 11,
            "titleFontSize": 12,
            "labelLimit": 320,
            "symbolLimit": 0,
            "columnPadding": 24,
        },
        "title": {
            "color": ink,
            "subtitleColor": soft,
            "anchor": "start",
            "fontSize": 14,
            "subtitleFontSize": 11,
            "subtitlePadding": 4,
            "offset": 12,
        },
        "style": {
            LIMIT: {"color": ink, "strokeDash": [5, 4], "opacity": 0.8},
            LIMIT_TEXT: {"color": soft, "fontSize": 11},
            STAIRS: {"color": faint, "strokeWidth": 1.5},
            OTHERS: {"color": faint, "opacity": 0.45},
            RING: {"color": ink, "strokeWidth": 2, "filled": False, "opacity": 1},
            LABEL: {"color": ink, "fontSize": 11},
            SEAM: {"stroke": ground, "strokeWidth": 0.5},
        },
    }


def dressed(chart: Any) -> Any:
    """A chart in the light look."""
    chart.config = alt.Config(**config())
    return chart
