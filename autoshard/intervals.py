"""How wide intervals are: fitted to errors of runs that were predicted without their own source.

The half width is a base times factors (:class:`~autoshard.costmodels.uncertainty.ErrorRule`): a
quantile regression of the logarithm of the absolute error, at 80 %, linear in what is known of a
question beforehand. No factor may narrow. A source of ``n`` runs weighs as ``n^(1/2)`` independent
ones, as in the fit of the constants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoshard.costmodels.constants import Fitted
from autoshard.costmodels.costs import Column
from autoshard.costmodels.setting import Setting
from autoshard.costmodels.stack import Stack
from autoshard.costmodels.uncertainty import (
    ErrorRule,
    Ranges,
    Sizes,
    doublings,
    extent,
    size_of,
)
from autoshard.runs import Run

#: The share of measured times that an interval is to hold.
NOMINAL = 0.8
#: Step times are published to about three digits: smaller errors are chance.
SMALLEST_ERROR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Runs with their errors, log(predicted/measured), and what widens an interval.

    ``features`` has the columns of :class:`ErrorRule` but the first, ``[n, 3]``.
    """

    sources: Sequence[str]
    errors: Column
    features: Column

    def rule(self, without: str = "") -> ErrorRule | None:
        """The rule of all runs but one source's; None where none is left."""
        kept = np.array([source != without for source in self.sources], dtype=bool)
        if not kept.any():
            return None
        count = Counter(self.sources)
        weights = np.array([count[source] ** -0.5 for source in self.sources])[kept]
        logs = np.log(np.maximum(np.abs(self.errors[kept]), SMALLEST_ERROR))
        base, *slopes = quantile_regression(self.features[kept], logs, weights, NOMINAL).tolist()
        low, guessed, doubling = (_rounded(np.exp(slope)) for slope in slopes)
        return ErrorRule(
            base=_rounded(np.exp(base)), low_precision=low, guessed=guessed, doubling=doubling
        )


def judged(
    runs: Sequence[Run], errors: Mapping[str, float], without: Mapping[str, Fitted]
) -> Judged:
    """What the errors of runs may depend on, as it was known without their source."""
    sizes = sizes_of(runs)
    rows = []
    for run in runs:
        chip, low = run.problem.cluster.chip, run.problem.workload.precision != "bf16"
        guessed = without[run.source].guessed(chip, run.stack, low_precision=low)
        # A source that is alone with its kind of chip has no neighbour to be far from.
        apart = doublings(size_of(run.problem), sizes[chip.kind], without=run.source) or 0.0
        rows.append((float(low), float(len(guessed)), apart))
    return Judged(
        sources=[run.source for run in runs],
        errors=np.array([errors[run.id] for run in runs]),
        features=np.array(rows).reshape(-1, 3),
    )


def intervals(
    runs: Sequence[Run], errors: Mapping[str, float], without: Mapping[str, Fitted]
) -> dict[str, Any]:
    """What a calibration holds of intervals: ``rule``, ``rule_without``, ``sizes``, ``ranges``."""
    table = judged(runs, errors, without)
    rules = {source: table.rule(source) for source in sorted(without)}
    return {
        "rule": table.rule(),
        "rule_without": {source: rule for source, rule in rules.items() if rule is not None},
        "sizes": sizes_of(runs),
        "ranges": ranges_of(runs),
    }


def sizes_of(runs: Sequence[Run]) -> Sizes:
    """Each size that was measured, once, by kind of chip and source."""
    found: dict[str, dict[str, set[tuple[float, ...]]]] = {}
    for run in runs:
        size = tuple(_rounded(value) for value in size_of(run.problem))
        kind = run.problem.cluster.chip.kind
        found.setdefault(kind, {}).setdefault(run.source, set()).add(size)
    return {
        kind: {source: np.array(sorted(sizes)) for source, sizes in sorted(table.items())}
        for kind, table in sorted(found.items())
    }


def ranges_of(runs: Sequence[Run]) -> Ranges:
    """Least and most of matmuls and messages, by kind of chip."""
    found: dict[str, dict[str, tuple[Stack, list[Setting]]]] = {}
    for run in runs:
        of = found.setdefault(run.problem.cluster.chip.kind, {})
        _, settings = of.setdefault(repr(run.stack), (run.stack, []))
        settings.append(Setting.of(run.problem, run.candidates))
    return {
        kind: {
            name: (_rounded(least), _rounded(most))
            for name, (least, most) in extent(
                [(stack, Setting.concatenate(settings)) for stack, settings in of.values()]
            ).items()
        }
        for kind, of in sorted(found.items())
    }


def quantile_regression(x: Column, y: Column, weights: Column, quantile: float) -> Column:
    """Intercept and slopes, none negative, of the weighted quantile of ``y``: a linear program."""
    from scipy.optimize import linprog

    n, k = x.shape
    cost = np.concatenate([np.zeros(1 + k), quantile * weights, (1.0 - quantile) * weights])
    equal = np.hstack([np.ones((n, 1)), x, np.eye(n), -np.eye(n)])
    limits = [(None, None)] + [(0.0, None)] * (k + 2 * n)
    found = linprog(cost, A_eq=equal, b_eq=y, bounds=limits, method="highs")
    coefficients: Column = found.x[: 1 + k]
    return coefficients


def _rounded(value: float) -> float:
    """As the file has it."""
    return float(f"{value:.6g}")
