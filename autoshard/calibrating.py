"""The verb ``calibrate``: constants out of measured runs, as a file that predictions read.

A user's file moves the shipped constants as far as its own runs say. Without a file, all constants
are fitted anew to the measurements that come with autoshard, once with each source left out: what
is then predicted for that source is honest, and its errors are those to expect on a new cluster.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoshard.bench import Bench
from autoshard.costmodels.calibration import Calibration, shipped_calibration
from autoshard.costmodels.constants import Fitted, Prior, prior
from autoshard.costmodels.costs import Column
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.legality import UNRESTRICTED
from autoshard.fitting import Fit, fit
from autoshard.intervals import intervals
from autoshard.runs import Excluded, Run, load_runs
from autoshard.validating import unusual

#: What is told while fitting.
Tell = Callable[[str], None]

#: Runs of a source that ``five_runs`` lets a user measure.
FEW = 5
KINDS = ("gpu", "tpu")
#: A constant that moved less did not move; one this near to a bound, as a share of its room, is at
#: it; a fit that is off by more than this has not explained its runs.
STILL, AT_BOUND, FAR_OFF = 0.001, 0.01, 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A constant before and after, and what was known of it before any run.

    ``from_runs`` is how much of what is now known of it the runs say, 0 to 1.
    """

    key: str
    kind: str
    before: float
    after: float
    prior: Prior
    from_runs: float

    @property
    def moved(self) -> bool:
        """The runs made a difference."""
        return abs(self.after / self.before - 1.0) >= STILL

    @property
    def at_bound(self) -> bool:
        """It moved as far as it may."""
        room = np.log(self.prior.most / self.prior.least)
        gap = np.log([self.after / self.prior.least, self.prior.most / self.after])
        return self.moved and bool(gap.min() < AT_BOUND * room)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What a user's runs say: constants, and log(predicted/measured) before and after, by id.

    ``unused`` are the rows left out, with reasons.
    """

    calibration: Calibration
    changes: tuple[Change, ...]
    before: Mapping[str, float]
    chips: tuple[str, ...]
    stacks: tuple[str, ...]
    unused: tuple[Excluded, ...]

    @property
    def fixed(self) -> float:
        """How many constants the runs are worth: no more than there are runs."""
        return sum(change.from_runs for change in self.changes)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the constants doubtful, in sentences."""
        rows, said = len(self.calibration.residuals), []
        if rows < FEW:
            said.append(
                f"{rows} run{'' if rows == 1 else 's'} cannot tell {len(self.changes)} constants "
                f"apart: what they share was spread over them. {FEW} or more runs of different "
                "plans say more."
            )
        bound = [f"{change.key} = {change.after:.4g}" for change in self.changes if change.at_bound]
        if bound:
            said.append(
                f"at the bound of what is possible: {', '.join(bound)}. Check the chip, the "
                "precision and the units of the file."
            )
        off = float(np.median(np.abs(np.expm1(list(self.calibration.residuals.values())))))
        if off > FAR_OFF:
            said.append(
                f"half of the runs are still off by more than {100 * off:.0f} %: the constants "
                "do not explain them. Check the columns of the file."
            )
        return tuple(said)


def calibrate(path: str | os.PathLike[str]) -> Calibrated:
    """Fit the constants that the runs of a file depend on, starting from the shipped ones.

    Where all runs are built-in ones of one source, from those that have not seen it.

    Raises:
        SpecError: the file is malformed, or no run of it can be used; the reasons are named.
    """
    runs, excluded = load_runs(path)
    known = {run.id for run in load_runs()[0]}
    used: list[Run] = []
    unused = list(excluded)
    for run in runs:
        why = unusual(run, built_in=run.id in known)
        if why:
            detail = f"its notes say {why}"
            unused.append(Excluded(id=run.id, source=run.source, reason=why, detail=detail))
        else:
            used.append(run)
    if not used:
        raise SpecError(f"{path}: no row can be used: {_why(unused)}.")
    return calibrate_runs(used, unused, _centre(used, known))


def _centre(used: Sequence[Run], known: Collection[str]) -> Fitted:
    """What is known without the runs: for built-in ones, constants without their source."""
    shipped = shipped_calibration()
    sources = {run.source for run in used}
    if len(sources) > 1 or not all(run.id in known for run in used):
        return shipped.fitted
    return shipped.unseen(sources.pop())


def calibrate_runs(used: Sequence[Run], unused: Sequence[Excluded], centre: Fitted) -> Calibrated:
    """Fit what the runs depend on, from ``centre``."""
    found = fit_own(used, centre)
    kinds = Bench.of(used).kinds
    changes = tuple(
        Change(
            key=key,
            kind=kind,
            before=centre.value(key, kind),
            after=after,
            prior=prior(key, kind),
            from_runs=found.from_runs[key],
        )
        for key, kind in kinds.items()
        if (after := found.fitted.values.get(key)) is not None
    )
    return Calibrated(
        calibration=Calibration(
            fitted=found.fitted,
            residuals=_by_id(used, found.residuals),
            date=_today(),
        ),
        changes=changes,
        before=_by_id(used, residuals(used, centre)),
        chips=tuple(sorted({run.problem.cluster.chip.name for run in used})),
        stacks=tuple(sorted({run.stack.name for run in used})),
        unused=tuple(unused),
    )


def fit_own(runs: Sequence[Run], centre: Fitted) -> Fit:
    """The constants of one user's cluster: all runs are one source, and what it is like matters."""
    own = [dataclasses.replace(run, source="own") for run in runs]
    found = fit(own, start=centre, centre=centre, offsets=False)
    return dataclasses.replace(found, residuals=residuals(runs, found.fitted))


def residuals(runs: Sequence[Run], fitted: Fitted) -> Column:
    """log(predicted/measured) of each run."""
    measured = np.array([run.step_time_s for run in runs], dtype=np.float64)
    change: Column = np.log(Bench.of(runs).step_s(fitted) / measured)
    return change


def scored_runs() -> list[Run]:
    """The built-in runs that are fitted and judged."""
    return [run for run in load_runs()[0] if run.used_for == "score"]


def calibrate_built_in(
    runs: Sequence[Run] | None = None, *, tell: Tell = print, workers: int = 0
) -> Calibration:
    """Fit all built-in runs, once with each source left out.

    GPU and TPU runs are two fits. ``workers`` processes share the fits, as many as there are cores
    when 0; the result does not depend on it. ``runs`` stand for the built-in ones.
    """
    scored = scored_runs() if runs is None else runs
    tell(f"fitting all {len(scored)} runs")
    whole = {
        kind: fit(group).fitted
        for kind in KINDS
        if (group := [run for run in scored if _kind(run) == kind])
    }
    sources = sorted({(_kind(run), run.source) for run in scored})
    jobs = [
        [run for run in scored if _kind(run) == kind and run.source != source]
        for kind, source in sources
    ]
    found = _each(jobs, tell, workers)
    # The constants of its kind of chip are fitted without the source; other kinds never saw it.
    without = {
        source: _joined({**whole, kind: fitted})
        for (kind, source), fitted in zip(sources, found, strict=True)
    }
    return _judged(scored, _joined(whole), without)


def _judged(runs: Sequence[Run], fitted: Fitted, without: Mapping[str, Fitted]) -> Calibration:
    """The calibration with its errors, out of predictions that have not seen the source."""
    rounded = _rounded(fitted)
    without = {source: _rounded(values) for source, values in without.items()}
    honest: dict[str, float] = {}
    few: dict[str, float] = {}
    for source, unseen in without.items():
        own = [run for run in runs if run.source == source]
        honest |= _by_id(own, residuals(own, unseen))
        few |= _after_few(own, unseen)
    return Calibration(
        fitted=rounded,
        without=without,
        **intervals(runs, honest, without),
        residuals=_by_id(runs, residuals(runs, rounded)),
        five_runs=_shares(few),
        date=_today(),
    )


def _after_few(runs: Sequence[Run], centre: Fitted) -> dict[str, float]:
    """log(predicted/measured) of a source's other runs once a few are fitted; by id."""
    if len(runs) < 2 * FEW:
        return {}
    chosen = set(np.random.default_rng(0).choice(len(runs), FEW, replace=False).tolist())
    own = fit_own([runs[i] for i in sorted(chosen)], centre).fitted
    merged = Fitted(values={**centre.values, **own.values})
    rest = [run for i, run in enumerate(runs) if i not in chosen]
    return _by_id(rest, residuals(rest, merged))


def _shares(errors: Mapping[str, float]) -> dict[str, float]:
    if not errors:
        return {}
    shares = np.abs(np.expm1(list(errors.values())))
    median, p90 = np.quantile(shares, (0.5, 0.9)).tolist()
    return {"rows": float(len(shares)), "median": median, "p90": p90}


def sendable(run: Run) -> Run:
    """A run for another process: without the rules of its stack, which are functions."""
    return dataclasses.replace(run, stack=dataclasses.replace(run.stack, legality=UNRESTRICTED))


def _each(jobs: list[list[Run]], tell: Tell, workers: int) -> list[Fitted]:
    """Fit each job, several at a time."""
    many = workers or os.cpu_count() or 1
    if many == 1:
        found = []
        for k, job in enumerate(jobs, start=1):
            found.append(_fitted_without(job))
            tell(f"fitted without source {k} of {len(jobs)}")
        return found
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Threads of NumPy and polars do not survive a fork.
    context = multiprocessing.get_context("spawn")
    sent = [[sendable(run) for run in job] for job in jobs]
    with ProcessPoolExecutor(max_workers=many, mp_context=context) as pool:
        found = []
        for k, fitted in enumerate(pool.map(_fitted_without, sent), start=1):
            found.append(fitted)
            tell(f"fitted without source {k} of {len(jobs)}")
    return found


def _fitted_without(runs: list[Run]) -> Fitted:
    """Fitted from the priors on: constants that saw the source would show in where a fit stops."""
    return fit(runs).fitted if runs else Fitted(values={})


def _joined(by_kind: Mapping[str, Fitted]) -> Fitted:
    """One table of constants; where kinds share a key, GPUs decide."""
    values: dict[str, float] = {}
    for kind in reversed(KINDS):
        values |= by_kind[kind].values if kind in by_kind else {}
    return Fitted(values=dict(sorted(values.items())))


def _rounded(fitted: Fitted) -> Fitted:
    return Fitted(values={key: float(f"{v:.6g}") for key, v in fitted.values.items()})


def _by_id(runs: Sequence[Run], values: Column) -> dict[str, float]:
    return dict(zip([run.id for run in runs], values.tolist(), strict=True))


def _kind(run: Run) -> str:
    return run.problem.cluster.chip.kind


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _why(unused: Sequence[Excluded]) -> str:
    if not unused:
        return "the table is empty"
    first = [f"{row.id}: {row.reason} ({row.detail.rstrip('.')})" for row in unused[:3]]
    more = len(unused) - len(first)
    return "; ".join(first) + (f"; and {more} more" if more else "")
