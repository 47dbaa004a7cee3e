"""The schedule of a plan as a timeline: which pass each stage runs when, and where it waits."""

from __future__ import annotations

from dataclasses import dataclass

import altair as alt
import polars as pl

from autoshard.charts.theme import BLUE, GREY, INK, LABEL, ON, ORANGE, PINK, SEAM, dressed
from autoshard.costmodels.schedules import schedule_name
from autoshard.priced import PricedPlan
from autoshard.sizes import format_seconds
from autoshard.stage_passes import StagePasses, simulated_step, stage_passes
from autoshard.words import plan_words, time_scale

COLOURS = {"forward": BLUE, "backward": ORANGE, "weight gradients": PINK, "once a step": GREY}
_NAMES = {"forward": "forward", "backward": "backward", "weights": "weight gradients"}
#: Passes simulated at most. Beyond, fewer microbatches are: those in the middle repeat alike.
MOST_PASSES = 60_000
#: Bars drawn at most. Beyond, only the beginning and the end of the step are.
MOST_BARS = 5_000
#: Opacity of the last virtual stage.
PALEST = 0.4
#: Pixels of a timeline, of a bar that has a seam, and of one that can hold a number.
WIDTH, SEAMED, LEGIBLE = 600, 4, 17

#: A beginning and an end, in seconds.
Window = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The passes of a step: ``passes`` has one row a pass, in the order of their starts.

    Columns: ``stage``, ``kind``, ``microbatch``, ``chunk``, ``start_s``, ``end_s``. Once-a-step
    work that nothing hides is the last row of each stage, without a microbatch. So many
    ``microbatches`` of the plan's are simulated; ``simulated_s`` is what they take and
    ``formula_s`` what the cost model says of as many, once-a-step work left out of both.
    """

    passes: pl.DataFrame
    schedule: str
    microbatches: int
    simulated_s: float
    formula_s: float
    once_s: float

    @property
    def end_s(self) -> float:
        """Seconds of all that is drawn."""
        return self.simulated_s + self.once_s


def timeline(priced: PricedPlan, most_passes: int = MOST_PASSES) -> Timeline:
    """The schedule of a plan, pass by pass.

    The formulas of the schedules are one number for many pipelines; how far each may be off the
    simulation is said with it, in :mod:`autoshard.costmodels.schedules`.

    Raises:
        SpecError: the schedule is a cost model of someone else's, whose order of passes is unknown.
    """
    plan, many = priced.plan, priced.plan.microbatches
    passes = stage_passes(priced.problem, priced.profile, plan, priced.row)
    each = plan.pp * plan.vpp * (3 if passes.weights_s else 2)
    if many * each > most_passes:
        # Whole rounds of pp, as interleaving wants them, and enough that the middle is reached.
        many = max(most_passes // each // plan.pp, 3) * plan.pp
        many = min(many, plan.microbatches)
    found = simulated_step(priced.profile, plan, passes, many)
    table = pl.DataFrame(
        {
            "stage": [step.stage for step in found.steps],
            "kind": [_NAMES[step.operation.kind] for step in found.steps],
            "microbatch": [step.operation.microbatch for step in found.steps],
            "chunk": [step.operation.chunk for step in found.steps],
            "start_s": found.start_s,
            "end_s": found.end_s,
        }
    ).sort("start_s", "stage")
    if passes.once_s > 1e-9 * found.step_s:
        # It is that of one stage, and no step ends before it: drawn on all of them, at the end.
        once = {
            "stage": list(range(plan.pp)),
            "kind": ["once a step"] * plan.pp,
            "microbatch": [None] * plan.pp,
            "chunk": [0] * plan.pp,
            "start_s": [found.step_s] * plan.pp,
            "end_s": [found.step_s + passes.once_s] * plan.pp,
        }
        table = pl.concat([table, pl.DataFrame(once, schema=table.schema)])
    return Timeline(
        passes=table,
        schedule=schedule_name(priced.profile),
        microbatches=many,
        simulated_s=found.step_s,
        formula_s=_formula_s(passes, priced, many),
        once_s=passes.once_s,
    )


def _formula_s(passes: StagePasses, priced: PricedPlan, microbatches: int) -> float:
    """What the cost model says of so many microbatches: each more is one more of the slowest."""
    if microbatches == priced.plan.microbatches:
        return passes.formula_s
    column = priced.row.microbatches
    weights = priced.profile.pipeline(priced.row.replace(microbatches=column * 0 + microbatches))
    total = passes.stage_s
    slowest, whole = max(total), sum(total)
    return float(weights.max_weight[0] * slowest + weights.sum_weight[0] * whole)


def bars(found: Timeline, most_bars: int = MOST_BARS) -> pl.DataFrame:
    """What is drawn: ``stage``, ``kind``, ``microbatches``, ``chunk``, ``start_s``, ``end_s``.

    One row a pass; of more than ``most_bars``, passes of one kind and chunk that a stage runs one
    right after the other are one row.
    """
    table = found.passes.sort("stage", "start_s")
    if len(table) > most_bars:
        before = pl.col("end_s").shift()
        apart = (pl.col("start_s") - before).abs() > 1e-9 * found.end_s
        changed = pl.any_horizontal(
            pl.col("stage", "kind", "chunk") != pl.col("stage", "kind", "chunk").shift()
        )
        run = (apart | changed).fill_null(value=True).cum_sum()
    else:
        run = pl.int_range(pl.len())
    first, last = pl.col("microbatch").first(), pl.col("microbatch").last()
    words = pl.when(pl.len() > 1).then(pl.format("{} to {}", first, last))
    grouped = table.group_by(run.alias("run"), maintain_order=True).agg(
        pl.col("stage", "kind", "chunk", "start_s").first(),
        pl.col("end_s").last(),
        microbatches=words.otherwise(first.cast(pl.String)),
    )
    return grouped.drop("run").sort("start_s", "stage")


def windows(drawn: pl.DataFrame, end_s: float, most_bars: int = MOST_BARS) -> list[Window]:
    """The parts of the step to draw, in seconds: all of it, or its beginning and its end."""
    if len(drawn) <= most_bars:
        return [(0.0, end_s)]
    # As many bars on both sides, and the same length, so that the two are to one scale.
    half = most_bars // 2
    first = drawn["start_s"].sort()[half]
    last = end_s - drawn["end_s"].sort(descending=True)[half]
    width = max(min(first, last), end_s * 1e-6)
    return [(0.0, width), (end_s - width, end_s)]


def pipeline_panels(
    priced: PricedPlan, found: Timeline, most_bars: int = MOST_BARS, *, numbered: bool = True
) -> list[alt.LayerChart]:
    """One chart for each window of the timeline; ``numbered`` says where bars may have numbers."""
    drawn = bars(found, most_bars)
    parts = windows(drawn, found.end_s, most_bars)
    names = [""] if len(parts) == 1 else ["the beginning", "the end"]
    title = _title(priced, found, merged=len(drawn) < len(found.passes))
    return [
        _panel(priced, drawn, part, name, title if place == 0 else None, numbered=numbered)
        for place, (part, name) in enumerate(zip(parts, names, strict=True))
    ]


def pipeline_chart(priced: PricedPlan) -> alt.VConcatChart:
    """The timeline, in one panel or in two; virtual stages are shades of a colour."""
    panels = pipeline_panels(priced, timeline(priced))
    chart: alt.VConcatChart = dressed(alt.vconcat(*panels).resolve_scale(x="independent"))
    return chart


def _panel(
    priced: PricedPlan,
    drawn: pl.DataFrame,
    window: Window,
    name: str,
    title: alt.TitleParams | None,
    *,
    numbered: bool,
) -> alt.LayerChart:
    """The bars of one window; the panel with a title has the legend."""
    unit, unit_s, _ = time_scale(priced.front)
    low, high = (end / unit_s for end in window)
    plan = priced.plan
    present = [kind for kind in COLOURS if kind in set(drawn["kind"])]
    drawn = (
        drawn.filter((pl.col("end_s") > window[0]) & (pl.col("start_s") < window[1]))
        .with_columns(
            a=(pl.col("start_s") / unit_s).clip(low, high).round_sig_figs(6),
            b=(pl.col("end_s") / unit_s).clip(low, high).round_sig_figs(6),
        )
        .select("stage", "kind", "microbatches", "chunk", "a", "b")
    )
    step = 20 if plan.pp <= 16 else 12 if plan.pp <= 32 else 7
    base = alt.Chart(drawn).encode(
        x=alt.X(
            "a:Q",
            title=f"time ({unit})" + (f", {name}" if name else ""),
            scale=alt.Scale(domain=[low, high], nice=False, zero=False),
        ),
        y=alt.Y(
            "stage:O",
            title="stage",
            scale=alt.Scale(domain=list(range(plan.pp)), padding=0.1),
            axis=alt.Axis(labelOverlap=True, ticks=False, domain=False),
        ),
    )
    # A bar at the edge of the window may be cut.
    usual = ((drawn["b"] - drawn["a"]).quantile(0.1) or 0.0) / (high - low) * WIDTH
    mark = base.mark_bar(style=SEAM) if usual >= SEAMED else base.mark_bar()
    passes = mark.encode(
        x2="b:Q",
        color=alt.Color(
            "kind:N",
            title=None,
            scale=alt.Scale(domain=present, range=[COLOURS[kind] for kind in present]),
            legend=alt.Legend() if title else None,
        ),
        opacity=alt.Opacity(
            "chunk:Q",
            legend=None,
            scale=alt.Scale(domain=[0, max(plan.vpp - 1, 1)], range=[1.0, PALEST], zero=False),
        ),
        tooltip=[
            alt.Tooltip("stage:O"),
            alt.Tooltip("kind:N"),
            alt.Tooltip("microbatches:N"),
            *([alt.Tooltip("chunk:O", title="virtual stage")] if plan.vpp > 1 else []),
            alt.Tooltip("a:Q", title=f"from ({unit})", format=",.4~g"),
            alt.Tooltip("b:Q", title=f"to ({unit})", format=",.4~g"),
        ],
    )
    layers: list[alt.Chart] = [passes]
    if numbered and usual >= LEGIBLE:
        middle = drawn.with_columns(a=(pl.col("a") + pl.col("b")) / 2).drop_nulls("microbatches")
        layers.append(
            base.mark_text(style=LABEL, fontSize=9)
            .encode(
                text="microbatches:N",
                color=alt.condition(
                    "datum.kind == 'forward' && datum.chunk == 0",
                    alt.value(ON[BLUE]),
                    alt.value(INK),
                ),
            )
            .properties(data=middle)
        )
    return alt.LayerChart(
        layer=layers, width=WIDTH, height=step * plan.pp, title=title or alt.Undefined
    )


def _title(priced: PricedPlan, found: Timeline, *, merged: bool) -> alt.TitleParams:
    plan = priced.plan
    off = found.formula_s / found.simulated_s - 1.0
    shaded = "; later virtual stages are paler" if plan.vpp > 1 else ""
    said = [
        plan_words(plan) + shaded,
        f"passes: {format_seconds(found.simulated_s)} as simulated, "
        + (
            "as the formula says"
            if abs(off) < 5e-5
            else f"{format_seconds(found.formula_s)} by the formula ({off:+.2%})"
        ),
    ]
    if found.microbatches < plan.microbatches:
        said.append(
            f"with {found.microbatches:,} of {plan.microbatches:,} microbatches: the middle repeats"
        )
    if merged:
        said.append("passes of one kind that follow each other at once are one bar")
    return alt.TitleParams(f"Pipeline schedule: {found.schedule}", subtitle=said)
