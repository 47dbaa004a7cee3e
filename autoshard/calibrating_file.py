"""A calibration as the text of its file, which :mod:`autoshard.costmodels.calibration` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from autoshard.bench import Bench
from autoshard.calibrating import Calibrated, scored_runs
from autoshard.costmodels.calibration import SCHEMA, Calibration
from autoshard.costmodels.constants import prior


def shipped_toml(made: Calibration) -> str:
    """The file that comes with autoshard."""
    about = "Constants of the calibrated cost models, fitted to autoshard/measured/."
    return calibration_toml(made, Bench.of(scored_runs()).kinds, about=about)


def own_toml(done: Calibrated, source: str) -> str:
    """The file of a user's own runs."""
    return calibration_toml(
        done.calibration,
        {change.key: change.kind for change in done.changes},
        about=f"Constants of the calibrated cost models, fitted to {json.dumps(source)}.",
        chips=done.chips,
        stacks=done.stacks,
        before=done.before,
    )


def calibration_toml(
    calibration: Calibration,
    kinds: Mapping[str, str],
    *,
    about: str,
    chips: Sequence[str] = (),
    stacks: Sequence[str] = (),
    before: Mapping[str, float] | None = None,
) -> str:
    """A calibration as the text of its file.

    Args:
        calibration: what is written, floats to six digits.
        kinds: constant to kind of chip, for the priors that stand beside the values.
        about: what was fitted, in a sentence.
        chips: chips of the runs.
        stacks: stacks of the runs.
        before: log(predicted/measured) of each run by the constants before the fit.
    """
    lines = [
        f"# {about}",
        "# Written by `autoshard calibrate`. Constants are explained in costmodels/constants.py;",
        "# residuals are log(predicted / measured) of each run that was fitted.",
        f'schema = "{SCHEMA}"',
        f"date = {calibration.date}",
    ]
    for name, words in (("chips", chips), ("stacks", stacks)):
        lines += [f"{name} = {json.dumps(list(words))}"] if words else []
    lines += _medians(calibration.residuals, before)
    lines += ["", "[constants]"]
    for key, value in sorted(calibration.fitted.values.items()):
        lines.append(f"{_key(key)} = {_constant(key, value, kinds)}")
    for source, fitted in sorted(calibration.without.items()):
        lines += ["", f"[without.{_key(source)}]"]
        lines += [f"{_key(key)} = {_float(v)}" for key, v in sorted(fitted.values.items())]
    lines += _interval_lines(calibration)
    for name, numbers in (
        ("five_runs", calibration.five_runs),
        ("residuals", calibration.residuals),
        ("residuals_before", before or {}),
    ):
        if numbers:
            lines += ["", f"[{name}]"]
            lines += [f"{_key(key)} = {_float(value)}" for key, value in numbers.items()]
    return "\n".join(lines) + "\n"


def _medians(after: Mapping[str, float], before: Mapping[str, float] | None) -> list[str]:
    words = [("median_error", after), ("median_error_before", before or {})]
    return [
        f"{name} = {_float(float(np.median(np.abs(np.expm1(list(values.values()))))))}"
        for name, values in words
        if values
    ]


def _constant(key: str, value: float, kinds: Mapping[str, str]) -> str:
    if key not in kinds:
        return _float(value)
    what = prior(key, kinds[key])
    return (
        f"{{ value = {_float(value)}, prior = {_float(what.value)}, "
        f"least = {_float(what.least)}, most = {_float(what.most)}, "
        f"source = {json.dumps(what.source)} }}"
    )


def _interval_lines(calibration: Calibration) -> list[str]:
    """The rule of the intervals, and what was measured."""
    rules = [("interval", calibration.rule)]
    rules += [
        (f"interval_without.{_key(source)}", rule)
        for source, rule in sorted(calibration.rule_without.items())
    ]
    lines = []
    for name, rule in rules:
        if rule is not None:
            lines += ["", f"[{name}]"]
            lines += [f"{key} = {_float(value)}" for key, value in asdict(rule).items()]
    if calibration.sizes:
        lines += ["", "# chips, parameters, tokens of a sequence, tokens of a step on one chip"]
    for kind, sources in calibration.sizes.items():
        lines += [f"[sizes.{kind}]"]
        for source, table in sources.items():
            rows = ", ".join(f"[{', '.join(map(_size, row))}]" for row in table.tolist())
            lines.append(f"{_key(source)} = [{rows}]")
    for kind, ranges in calibration.ranges.items():
        lines += ["", f"[ranges.{kind}]"]
        lines += [f"{name} = [{_size(a)}, {_size(b)}]" for name, (a, b) in ranges.items()]
    return lines


def _size(value: float) -> str:
    """Six digits, as a TOML number."""
    return f"{value:.6g}".replace("e+", "e")


def _key(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _float(value: float) -> str:
    """Six digits, as a TOML float."""
    text = f"{value:.6g}"
    return text if any(mark in text for mark in ".en") else f"{text}.0"
