"""Fitting the constants of the calibrated cost models to measured steps.

The residual of a run is the logarithm of predicted over measured step time. Three things keep the
constants honest: each is bound to its prior, a heavy tail in the loss lets odd runs be odd, and
each source may be off by a factor of its own, which is fitted with the rest and then forgotten (a
cluster's offset must not bend what all clusters share).
"""

from __future__ import annotations

#: A run's own scatter, and a source's own offset: relative standard deviations.
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from autoshard.bench import Bench
from autoshard.costmodels.constants import Fitted, prior
from autoshard.costmodels.costs import Column
from autoshard.runs import Run

RUN_SPREAD = 0.05
SOURCE_SPREAD = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Fitted constants, and the residuals ``log(predicted / measured)`` of the runs they saw.

    ``from_runs`` is how much of what is known of a constant the runs say, 0 to 1: the share of its
    prior variance that they take away. Its sum is the number of constants that they fix.
    """

    fitted: Fitted
    residuals: Column
    offsets: dict[str, float]
    from_runs: dict[str, float]


def fit(
    runs: Sequence[Run],
    *,
    start: Fitted | None = None,
    centre: Fitted | None = None,
    offsets: bool = True,
) -> Fit:
    """Fit every constant that the runs depend on; runs without a step time are not allowed.

    ``start`` is where the search begins. ``centre`` stands for the values of the priors: what is
    known from other runs. Without ``offsets``, constants take what a source is off by: the
    runs are of one cluster, and it is that cluster that is asked about.
    """
    bench = Bench.of(runs)
    priors = {key: prior(key, kind) for key, kind in bench.kinds.items()}
    free = [key for key, what in priors.items() if what.spread > 1.0]
    sources = sorted({run.source for run in runs})
    which = np.array([sources.index(run.source) for run in runs])
    measured = np.log([run.step_time_s or np.nan for run in runs])
    count = np.bincount(which, minlength=len(sources))
    weight = count[which] ** -0.25 / RUN_SPREAD
    known = {} if centre is None else centre.values
    middle = np.log([known.get(k, priors[k].value) for k in free])
    spread = np.log([priors[k].spread for k in free])
    least = np.log([priors[k].least for k in free])
    most = np.log([priors[k].most for k in free])
    n = len(free)
    offset_spread = SOURCE_SPREAD if offsets else 1e-6

    def predicted(x: Column, key: str | None = None) -> Column:
        values = dict(zip(free, np.exp(x[:n]).tolist(), strict=True))
        return np.log(bench.step_s(Fitted(values=values), key))

    def residuals(x: Column) -> Column:
        of_runs = weight * (predicted(x) + x[n:][which] - measured)
        return np.concatenate([of_runs, (x[:n] - middle) / spread, x[n:] / offset_spread])

    def jacobian(x: Column) -> Column:
        at = predicted(x)
        table = np.zeros((len(runs) + n + len(sources), len(x)))
        for k in range(n):
            moved = x.copy()
            step = 1e-4 if x[k] + 1e-4 < most[k] else -1e-4
            moved[k] += step
            change = (predicted(moved, free[k]) - at) / step
            table[: len(runs), k] = weight * np.nan_to_num(change)
        table[np.arange(len(runs)), n + which] = weight
        table[len(runs) + np.arange(n), np.arange(n)] = 1.0 / spread
        sources_at = np.arange(len(sources))
        table[len(runs) + n + sources_at, n + sources_at] = 1.0 / offset_spread
        return table

    begin = middle
    if start is not None:
        begin = np.array(
            [
                np.log(start.values[k]) if k in start.values else m
                for k, m in zip(free, middle.tolist(), strict=True)
            ]
        )
    begin = np.clip(begin, least + 1e-6, most - 1e-6)
    wide = np.full(len(sources), 2.0)
    found = least_squares(
        residuals,
        np.concatenate([begin, 0.0 * wide]),
        jac=jacobian,
        bounds=(np.concatenate([least, -wide]), np.concatenate([most, wide])),
        loss="soft_l1",
        x_scale="jac",
        xtol=1e-4,
        ftol=1e-5,
        max_nfev=40,
    )
    values = dict(zip(free, np.exp(found.x[:n]).tolist(), strict=True))
    return Fit(
        fitted=Fitted(values=values),
        residuals=predicted(found.x) - measured,
        offsets=dict(zip(sources, found.x[n:].tolist(), strict=True)),
        from_runs=dict(zip(free, _from_runs(jacobian(found.x), spread).tolist(), strict=True)),
    )


def _from_runs(jacobian: Column, spread: Column) -> Column:
    """Share of the prior variance of each constant that is gone where the search ended."""
    left = np.diag(np.linalg.inv(jacobian.T @ jacobian))[: len(spread)] / spread**2
    share: Column = np.clip(1.0 - left, 0.0, 1.0)
    return share
