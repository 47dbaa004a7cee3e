"""Predictions held against measured runs: each source by constants that have not seen it.

Nothing is printed here: :func:`validate` returns frames, and a chart or table only shows them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from autoshard.baselines import baseline_step_s
from autoshard.bench import Bench
from autoshard.costmodels.calibration import Calibration, shipped_calibration
from autoshard.costmodels.candidates import COLUMNS
from autoshard.costmodels.constants import Fitted, bounds
from autoshard.costmodels.costs import Column
from autoshard.costmodels.errors import SpecError
from autoshard.run_memory import comparable_memory, predicted_memory, usable_bytes
from autoshard.run_parts import NOT_SCORED
from autoshard.runs import Excluded, Run, load_table

#: What can be judged: the fitted constants, their priors, and the book.
COSTS = ("calibrated", "priors", "textbook")

#: Columns of :attr:`Validation.rows`.
SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("id", "source", "tier", "chip", "kind", "precision", "experts"), pl.String),
    **dict.fromkeys(("stack", "model", "plan", "group", "alternative", "flags"), pl.String),
    "scored": pl.Boolean,
    "why_not": pl.String,
    **dict.fromkeys(("measured_step_s", "predicted_step_s", "low_s", "high_s"), pl.Float64),
    **dict.fromkeys(("in_sample_step_s", "mfu_step_s", "hfu_step_s"), pl.Float64),
    "measured_memory_bytes": pl.Float64,
    "memory_metric": pl.String,
    **dict.fromkeys(("predicted_memory_bytes", "comparable_memory_bytes"), pl.Float64),
    "fits": pl.Boolean,
}
#: Columns of :attr:`Validation.out_of_memory`.
REFUSED: dict[str, Any] = {
    **dict.fromkeys(("id", "source", "chip", "model", "plan"), pl.String),
    **dict.fromkeys(("predicted_memory_bytes", "usable_bytes"), pl.Float64),
    "fits": pl.Boolean,
}

#: A constant that differs by less is the shipped one.
STILL = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Every row of the measurements, once: in ``rows`` if it was predicted, else in ``left_out``.

    ``rows`` has the columns of the JSON (docs/json_schema.md) and a few more; ``scored`` says
    whether a row counts, ``why_not`` why it does not. ``out_of_memory`` has the runs that did not
    fit: only their memory is predicted. ``given`` is whether constants of the caller's predicted.
    """

    costs: str
    measurements: str
    date: str
    rows: pl.DataFrame
    left_out: pl.DataFrame
    out_of_memory: pl.DataFrame
    five_runs: dict[str, float]
    given: bool = False

    @property
    def scored(self) -> pl.DataFrame:
        """The rows that count."""
        return self.rows.filter(pl.col("scored"))


def validate(
    measurements: str | os.PathLike[str] | None = None,
    *,
    calibration: Calibration | None = None,
    costs: str = "calibrated",
) -> Validation:
    """Predict every run of a table.

    Args:
        measurements: a CSV with the columns of the built-in tables; these when None.
        calibration: constants to predict with; the shipped ones when None. A built-in source is
            predicted by the shipped constants that have not seen it, changed as these change the
            others. What these were fitted to does not count, nor do others of a built-in source.
        costs: one of :data:`COSTS`.

    Raises:
        SpecError: the table is malformed, or ``costs`` names nothing that can be judged.
    """
    if costs not in COSTS:
        raise SpecError(f"validate judges the costs {', '.join(COSTS)}; got {costs!r}.")
    table, known = load_table(measurements), load_table().runs
    use = shipped_calibration()
    if calibration is not None:
        fitted = {run.source for run in known if run.id in calibration.residuals}
        use = calibration if calibration.without else _changed(use, calibration, fitted)
    rows = _rows(table.runs, known, use, costs, own=calibration is not None)
    return Validation(
        costs=costs,
        measurements="built in" if measurements is None else str(measurements),
        date=use.date,
        rows=pl.DataFrame(rows, schema=SCHEMA),
        left_out=_left_out(table.excluded),
        out_of_memory=_refused(table.out_of_memory if costs != "textbook" else ()),
        five_runs=dict(use.five_runs) if costs == "calibrated" else {},
        given=calibration is not None and costs == "calibrated",
    )


def _changed(base: Calibration, own: Calibration, seen: Collection[str]) -> Calibration:
    """``own`` with constants that have not seen a built-in source, but for those in ``seen``.

    A factor that ``own`` puts on a shipped constant is put on the one that was fitted without the
    source: what came from the source stays out of it.
    """

    def without(left: Fitted) -> Fitted:
        values = {}
        for key, value in own.fitted.values.items():
            shipped = base.fitted.values.get(key, value)
            if key in left.values:
                least, most = bounds(key)
                values[key] = min(max(left.values[key] * value / shipped, least), most)
            elif key not in base.fitted.values or abs(value / shipped - 1.0) >= STILL:
                values[key] = value
        return Fitted(values=values)

    return dataclasses.replace(
        own,
        without={
            source: without(left) for source, left in base.without.items() if source not in seen
        },
        rule_without={**base.rule_without, **own.rule_without},
    )


def unusual(run: Run, *, built_in: bool) -> str:
    """Why a run tells little about a step: the flags that say so, or nothing.

    Of a model that only its user knows, whether its MLP is gated follows from its width.
    """
    accepted = set() if built_in else {"mlp-assumed"}
    odd = [flag for flag in run.flags if flag in NOT_SCORED.keys() - accepted]
    if run.problem.cluster.chip.kind == "gpu" and "host-offload" in run.flags:
        odd.append("host-offload")
    return ", ".join(odd)


def _rows(
    runs: Sequence[Run], built_in: Sequence[Run], use: Calibration, costs: str, *, own: bool
) -> list[dict[str, Any]]:
    """One row a run."""
    if not runs:
        return []
    home = {run.id: run.source for run in built_in}
    sources = [home.get(run.id, "") for run in runs]
    honest, in_sample = _predictions(runs, sources, use, costs)
    touched = {home[name] for name in use.residuals if own and name in home} - set(use.without)
    why = [
        _why_not(run, source, use, touched, own=own)
        for run, source in zip(runs, sources, strict=True)
    ]
    scored = [run for run in built_in if run.used_for == "score"]
    guesses = {
        name: baseline_step_s(runs, scored, recompute=recompute)
        for name, recompute in (("mfu_step_s", False), ("hfu_step_s", True))
    }
    rows = []
    for i, run in enumerate(runs):
        chip, workload = run.problem.cluster.chip, run.problem.workload
        factors = None
        if costs == "calibrated":
            factors = use.interval(run.problem, run.stack, sources[i])
        memory = predicted_memory(run) if costs != "textbook" else None
        rows.append(
            {
                "id": run.id,
                "source": run.source,
                "tier": run.tier,
                "chip": chip.name,
                "kind": chip.kind,
                "precision": workload.precision,
                "experts": "dense",
                "stack": run.stack.name,
                "model": run.problem.model.name,
                "plan": plan_words(run),
                "group": _group(run),
                "alternative": _alternative(run),
                "flags": ", ".join(run.flags),
                "scored": not why[i],
                "why_not": why[i] or None,
                "measured_step_s": run.step_time_s,
                "predicted_step_s": _seconds(honest[i]),
                "low_s": None if factors is None else _seconds(honest[i] * factors[0]),
                "high_s": None if factors is None else _seconds(honest[i] * factors[1]),
                "in_sample_step_s": _seconds(in_sample[i]),
                **{name: _seconds(column[i]) for name, column in guesses.items()},
                "measured_memory_bytes": run.memory_bytes,
                "memory_metric": run.memory_metric or None,
                "predicted_memory_bytes": memory,
                "comparable_memory_bytes": None
                if memory is None
                else comparable_memory(run, memory),
                "fits": None if memory is None else memory <= usable_bytes(run),
            }
        )
    return rows


def _predictions(
    runs: Sequence[Run], sources: Sequence[str], use: Calibration, costs: str
) -> tuple[Column, Column]:
    """Seconds by constants that have not seen a run's source, and by all constants."""
    if costs == "textbook":
        from autoshard.validate_book import textbook_step_s

        seconds = textbook_step_s(runs)
        return seconds, seconds
    honest, in_sample = np.empty(len(runs)), np.empty(len(runs))
    for source in sorted(set(sources)):
        which = [i for i, name in enumerate(sources) if name == source]
        bench = Bench.of([runs[i] for i in which])
        if costs == "priors":
            honest[which] = in_sample[which] = bench.step_s(Fitted(values={}))
            continue
        in_sample[which] = bench.step_s(use.fitted)
        unseen = use.without.get(source)
        honest[which] = in_sample[which] if unseen is None else bench.step_s(unseen)
    return honest, in_sample


def _why_not(
    run: Run, source: str, use: Calibration, touched: Collection[str], *, own: bool
) -> str:
    """Why a predicted run does not count; empty where it does."""
    if not run.step_time_s:
        return "no step time"
    if own and run.id in use.residuals and source not in use.without:
        return "seen by the calibration"
    if source in touched:
        return "source seen by the calibration"
    odd = unusual(run, built_in=bool(source))
    if odd:
        return odd
    # A file of the user's has no tiers; what it holds is meant to be judged.
    return "" if run.used_for == "score" or not source else f"tier {run.tier}"


def _seconds(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def plan_words(run: Run) -> str:
    """``64 chips: FSDP 8 x TP 8, 4 x 2 sequences, full 100 %``."""
    plan = {name: int(getattr(run.candidates, name)[0]) for name in ("dp", "fsdp", "tp", "pp")}
    plan |= {name: int(getattr(run.candidates, name)[0]) for name in ("vpp", "cp")}
    parts = [f"{name.upper()} {degree:,}" for name, degree in plan.items() if degree > 1]
    micro = int(run.candidates.micro_batch_size[0])
    many = int(run.candidates.microbatches[0])
    remat = " + ".join(f"{share:.0%} {name}" for name, share in run.remat.items())
    return (
        f"{run.problem.cluster.chips:,} chips: {' x '.join(parts) or 'no parallelism'}, "
        f"{many} x {micro} sequences of {run.problem.workload.seq_len:,}, {remat}"
    )


def _group(run: Run) -> str:
    """What plans must share to be alternatives of each other."""
    model, work = run.problem.model, run.problem.workload
    shape = (model.n_layers, model.d_model, model.d_ff, model.n_heads, model.n_kv_heads)
    cluster = (run.problem.cluster.chip.name, run.problem.cluster.chips)
    size = (work.global_batch_seqs, work.seq_len, work.precision)
    return " ".join(map(str, (run.source, *shape, model.d_head, model.vocab, *cluster, *size)))


def _alternative(run: Run) -> str:
    """What sets a plan apart from the others of its group."""
    plan = [int(getattr(run.candidates, name)[0]) for name in COLUMNS]
    return f"{plan} {sorted(run.remat.items())} {run.stack}"


def _refused(runs: Sequence[Run]) -> pl.DataFrame:
    rows = []
    for run in runs:
        memory, most = predicted_memory(run), usable_bytes(run)
        rows.append(
            {
                "id": run.id,
                "source": run.source,
                "chip": run.problem.cluster.chip.name,
                "model": run.problem.model.name,
                "plan": plan_words(run),
                "predicted_memory_bytes": memory,
                "usable_bytes": most,
                "fits": None if memory is None else memory <= most,
            }
        )
    return pl.DataFrame(rows, schema=REFUSED)


def _left_out(excluded: Sequence[Excluded]) -> pl.DataFrame:
    columns = ("id", "source", "reason", "detail")
    return pl.DataFrame(
        {name: [getattr(row, name) for row in excluded] for name in columns},
        schema=dict.fromkeys(columns, pl.String),
    )
