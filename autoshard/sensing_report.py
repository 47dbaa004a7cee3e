"""What ``autoshard sensitivity`` prints: the resources, by what more of each gives."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from autoshard.columns import Column, fit
from autoshard.report import hanging, headline, plain_table, render, terminal_width
from autoshard.sensing import Gain, Sensitivity
from autoshard.sizes import format_seconds
from autoshard.words import percent, plan_words, remat_words


def sensitivity_report(found: Sensitivity, *, tokens: float) -> str:
    """The answer on a terminal; ``tokens`` are those of the whole training run."""
    gains = found.gains
    width = terminal_width()
    columns = (
        Column(head="resource", cells=tuple(g.resource for g in gains), left=True),
        Column(head="change", cells=tuple(g.change for g in gains)),
        Column(head="replanned", cells=tuple(_gain(g.replanned) for g in gains)),
        Column(head="same plan", cells=tuple(_gain(g.same_plan) for g in gains)),
        Column(head="step", cells=tuple(_step(g) for g in gains), spare=1),
        Column(
            head="fastest plan", cells=tuple(_plan(found, g) for g in gains), spare=2, left=True
        ),
    )
    shown, _ = fit(columns, width)
    parts: list[RenderableType] = [headline(found.front, tokens), Text(), plain_table(shown)]
    parts += [Text(), *(hanging(line) for line in lines(found))]
    return render(*parts, width=width)


def lines(found: Sensitivity) -> Iterator[str]:
    """What is worth paying for, and how to read the figures."""
    best, gap = found.best, float(found.front.search.get("gap", 0.0))
    if len(found.gains) < found.asked:
        yield (
            f"The search was stopped after {len(found.gains)} of {found.asked} changes; give it "
            "more time for the others."
        )
    elif best is None or (best.replanned or 0.0) <= gap:
        yield f"No resource gives more than {percent(gap)}."
    else:
        yield (
            f"Worth most: {best.resource}, {best.change} gives {percent(best.replanned or 0.0)} "
            "more tokens a second."
        )
    yield (
        "Gains are in tokens a second. Replanned: the problem solved again, each answer proven "
        f"within {percent(gap)}; same plan: the plan above, as it is (- where it is illegal then, "
        "or does not fit). What gives nothing binds nothing here, or has no price in "
        f"{found.front.problem['costs']['profile']}."
    )


def _gain(gain: float | None) -> str:
    return "-" if gain is None else f"{gain * 100:+.2f} %"


def _step(gain: Gain) -> str:
    return "none" if gain.step_time_s is None else format_seconds(gain.step_time_s)


def _plan(found: Sensitivity, gain: Gain) -> str:
    """The plan in words where it is another."""
    if gain.plan is None:
        return "no plan fits"
    base = found.front.points[0].plan
    if plan_words(gain.plan) != plan_words(base):
        return plan_words(gain.plan)
    kept = remat_words(gain.plan) == remat_words(base)
    return "the same degrees" + ("" if kept else f", remat {remat_words(gain.plan)}")
