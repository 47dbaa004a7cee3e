"""Published runs at the textbook's price."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoshard.costmodels.costs import Column
from autoshard.costmodels.remat import TEXTBOOK_LADDER, Rung
from autoshard.costmodels.textbook import textbook
from autoshard.runs import Run
from autoshard.search.bounds import uniform_plans
from autoshard.search.rows import price_rows


def textbook_step_s(runs: Sequence[Run]) -> Column:
    """Seconds of a step of each run, ``[runs]``: of its plan, on the book's nearest remat rungs."""
    profile = textbook()
    seconds = np.empty(len(runs))
    for index, run in enumerate(runs):
        whole = np.minimum(run.candidates.vpp, run.problem.model.n_layers // run.candidates.pp)
        rows = price_rows(run.problem, profile, run.candidates.replace(vpp=whole))
        by_rung, _ = uniform_plans(rows)
        rungs = {rung.name: rung for rung in run.stack.ladder}
        seconds[index] = sum(
            share * by_rung[0, _nearest(rungs[name])] for name, share in run.remat.items()
        )
    return seconds


def _nearest(rung: Rung) -> int:
    """The rung of the book that repeats most nearly the same operations."""
    repeated = set(rung.recompute)
    odd = [len(repeated ^ set(known.recompute)) for known in TEXTBOOK_LADDER]
    return odd.index(min(odd))
