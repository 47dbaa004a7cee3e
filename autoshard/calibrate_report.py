"""What ``autoshard calibrate`` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autoshard.calibrating import Calibrated, Change
from autoshard.columns import Column
from autoshard.costmodels.calibration import Calibration
from autoshard.report import plain_table, render
from autoshard.words import percent

SCHEMA = "autoshard.calibrate/1"


def calibrated_report(done: Calibrated) -> str:
    """Constants and errors before and after."""
    after = done.calibration.residuals
    rows = len(after)
    title = (
        f"{rows} run{'' if rows == 1 else 's'} on {', '.join(done.chips)} with "
        f"{', '.join(done.stacks)}: median error {_median(done.before)} before, {_median(after)} "
        f"after"
    )
    changes = [c for c in done.changes if c.moved]
    changes.sort(key=lambda c: -abs(np.log(c.after / c.before)))
    constants = [
        _column("constant", [c.key for c in changes], left=True),
        _column("before", [f"{c.before:.4g}" for c in changes]),
        _column("after", [f"{c.after:.4g}" for c in changes]),
        _column("change", [f"{100 * (c.after / c.before - 1):+.1f} %" for c in changes]),
        _column("from runs", [percent(round(c.from_runs, 2)) for c in changes]),
        _column("least", [f"{c.prior.least:g}" for c in changes]),
        _column("most", [f"{c.prior.most:g}" for c in changes]),
        _column("prior", [f"{c.prior.value:g}, {c.prior.source}" for c in changes], left=True),
    ]
    runs = [
        _column("run", list(after), left=True),
        _column("before", [_signed(done.before[name]) for name in after]),
        _column("after", [_signed(value) for value in after.values()]),
    ]
    parts: list[Any] = [
        title,
        "",
        plain_table(constants),
        _identified(done),
        "",
        "Predicted / measured - 1",
        plain_table(runs),
    ]
    if done.unused:
        reasons = Counter(row.reason for row in done.unused)
        said = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        parts += ["", f"Rows left out: {said}."]
    return render(*parts)


def _identified(done: Calibrated) -> str:
    """How many constants the runs fix."""
    known = [change.key for change in done.changes if change.from_runs >= 0.5]
    return (
        f"The runs fix as much as {done.fixed:.1f} of {len(done.changes)} constants: what is known "
        "of a constant comes from them by the share 'from runs', the rest from published runs. "
        f"More than half: {', '.join(known) or 'of none'}."
    )


def calibrated_dict(done: Calibrated, written: str | None) -> dict[str, Any]:
    """The documented JSON of a user's calibration."""
    after = done.calibration.residuals
    return {
        "schema": SCHEMA,
        "date": done.calibration.date,
        "output": written,
        "chips": list(done.chips),
        "stacks": list(done.stacks),
        "median_error_before": _median_share(done.before),
        "median_error": _median_share(after),
        "constants": [_change(change) for change in done.changes],
        "constants_fixed": done.fixed,
        "rows": [
            {"id": name, "before": float(np.expm1(done.before[name])), "after": float(np.expm1(v))}
            for name, v in after.items()
        ],
        "left_out": [
            {"id": row.id, "reason": row.reason, "detail": row.detail} for row in done.unused
        ],
        "warnings": list(done.warnings),
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "constant": change.key,
        "before": change.before,
        "after": change.after,
        "from_runs": change.from_runs,
        "at_bound": change.at_bound,
        "prior": change.prior.value,
        "least": change.prior.least,
        "most": change.prior.most,
        "source": change.prior.source,
    }


def shipped_dict(made: Calibration, written: str | None) -> dict[str, Any]:
    """The same of a fit to all that comes with autoshard; nothing was there before."""
    return {
        "schema": SCHEMA,
        "date": made.date,
        "output": written,
        "median_error": _median_share(made.residuals),
        "constants": [{"constant": k, "after": v} for k, v in made.fitted.values.items()],
        "rows": [{"id": k, "after": float(np.expm1(v))} for k, v in made.residuals.items()],
        "sources": sorted(made.without),
    }


def shipped_report(made: Calibration) -> str:
    """The errors of a calibration of all that comes with autoshard."""
    title = (
        f"{len(made.residuals)} runs, {len(made.fitted.values)} constants, "
        f"{len(made.without)} sources left out in turn; in sample, the median error is "
        f"{_median(made.residuals)}. `autoshard validate` judges them."
    )
    if made.rule is None:
        return render(title)
    rule = made.rule
    said = (
        f"Four of five runs of a source that was not seen are within {percent(np.expm1(rule.base))}"
        f"; the width is {rule.low_precision:.3g} times that in FP8 or INT8, {rule.guessed:.3g} "
        "times for each constant that no run fixes, and "
        f"{rule.doubling:.3g} times for each doubling from the nearest run."
    )
    return render(title, "", said)


def _median(values: Mapping[str, float]) -> str:
    return percent(_median_share(values))


def _median_share(values: Mapping[str, float]) -> float:
    return float(np.median(np.abs(np.expm1(list(values.values())))))


def _signed(value: float) -> str:
    return f"{100 * np.expm1(value):+.1f} %"


def _column(head: str, cells: Sequence[str], left: bool = False) -> Column:
    return Column(head=head, cells=tuple(cells), left=left)
