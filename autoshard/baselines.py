"""What a person would guess: one utilisation for each chip, fitted to the same runs.

Model FLOPs are 6 for each matmul parameter and token, with causal attention at half of the square;
hardware FLOPs add what the backward pass computes again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoshard.costmodels.constants import family
from autoshard.costmodels.costs import Column
from autoshard.run_remat import layer_work
from autoshard.runs import Run


def baseline_step_s(runs: Sequence[Run], known: Sequence[Run], *, recompute: bool) -> Column:
    """Seconds of a step at constant utilisation, ``[runs]``; NaN where nothing is known.

    The utilisation of a run is the median over those of ``known`` with the same chip and precision
    and another source; over the same kind of chip where no other source has that chip.
    """
    ideal = np.array([ideal_step_s(run, recompute=recompute) for run in known])
    share = ideal / np.array([run.step_time_s for run in known], dtype=np.float64)
    sources = np.array([run.source for run in known])
    classes = np.array([_classes(run) for run in known]).reshape(len(known), -1)
    medians: dict[tuple[str, ...], float] = {}
    seconds = np.full(len(runs), np.nan)
    for index, run in enumerate(runs):
        for level, name in enumerate(_classes(run)):
            case = (run.source, name)
            if case not in medians:
                chosen = share[(sources != run.source) & (classes[:, level] == name)]
                medians[case] = float(np.median(chosen)) if len(chosen) else np.nan
            if np.isfinite(medians[case]):
                seconds[index] = ideal_step_s(run, recompute=recompute) / medians[case]
                break
    return seconds


def _classes(run: Run) -> tuple[str, str, str]:
    """What shares a utilisation, from narrow to wide: chip and precision, then kinds of chips."""
    chip = run.problem.cluster.chip
    width = "16-bit" if run.problem.workload.precision == "bf16" else "8-bit"
    design = family(chip).split("-")[0]
    return f"{design} {width}", f"{chip.kind} {width}", chip.kind


def ideal_step_s(run: Run, *, recompute: bool) -> float:
    """Seconds of a step at the peak of all chips."""
    problem, model = run.problem, run.problem.model
    work = layer_work(model, problem.workload.seq_len)
    attention = 6.0 * model.n_layers * work["attention"]
    again = 0.0
    if recompute:
        for rung in run.stack.ladder:
            share = run.remat.get(rung.name, 0.0)
            again += 2.0 * model.n_layers * share * sum(work.get(o, 0) for o in rung.recompute)
    tokens = problem.workload.global_batch_tokens
    flops = problem.flops_per_step + tokens * (attention + again)
    return float(flops / (problem.cluster.chips * problem.peak_flops_per_s))
