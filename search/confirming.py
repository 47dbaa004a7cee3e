"""CP-SAT's second answer to every point of a front, found beside the search on another core.

The two methods share the choices of a stage and nothing else. The solver works in a process of its
own (:mod:`autoshard.search.worker`); where none can be had, or it is lost, in a thread of this one.
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from autoshard.costmodels.legality import Legality
from autoshard.search.stage_model import StageModel
from autoshard.search.stages import Leaf, Stage
from autoshard.search.worker import Worker, WorkerLostError, shared_worker

#: Two methods agree on a step time to this, relatively, and to the rounding of costs to integers.
AGREE = 1e-7
#: Relative slack on the memory and time that CP-SAT is given: a plan fits its own.
OWN = 1e-6


class Confirmations:
    """Solves the mesh of each point by CP-SAT as well, at the memory that its plan needs."""

    def __init__(self, legality: Legality, deadline: float) -> None:
        # Rules on degrees are functions, and nothing to a stage.
        self._legality = dataclasses.replace(legality, rules=())
        self._deadline = deadline
        self._asked: list[Future[bool]] = []
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cp-sat")
        self._worker: Worker | None = None
        self._pool.submit(self._begin)

    def _begin(self) -> None:
        """Have the solver imported while the search begins."""
        try:
            self._worker = shared_worker()
            self._worker.call(have_solver)
        except WorkerLostError:
            self._worker = None

    def _confirm(self, stage: Stage, leaf: Leaf) -> bool:
        asked = (stage, leaf, self._legality, self._deadline)
        if self._worker is not None and self._worker.alive:
            try:
                return bool(self._worker.call(confirm, *asked))
            except WorkerLostError:
                pass
        return confirm(*asked)

    def ask(self, stage: Stage, leaf: Leaf) -> None:
        """Start to confirm one answer."""
        self._asked.append(self._pool.submit(self._confirm, stage, leaf))

    def settle(self) -> int:
        """Wait for all answers: how many CP-SAT has confirmed before the deadline.

        Raises:
            AssertionError: the two methods disagree, which is a bug.
        """
        return sum(asked.result() for asked in self._asked)

    def close(self) -> None:
        """End the thread; what has not begun is left out."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def have_solver() -> None:
    """Import the solver."""
    importlib.import_module("ortools.sat.python.cp_model")


def confirm(stage: Stage, leaf: Leaf, legality: Legality, deadline: float = np.inf) -> bool:
    """Whether CP-SAT finds the same step time as the leaf; False where the deadline came first.

    Raises:
        AssertionError: the two methods disagree, which is a bug.
    """
    budget, latest = leaf.memory_bytes * (1.0 + AGREE), leaf.time_s * (1.0 + OWN)
    model = StageModel(stage, budget, below_s=latest, legality=legality)
    left = deadline - time.monotonic()
    again, finished = model.solve(left if np.isfinite(left) else None)
    if not finished:
        return False
    if again is None or abs(again.time_s - leaf.time_s) > leaf.time_s * AGREE + model.error_s:
        raise AssertionError(f"CP-SAT and dealing disagree: {again}, {leaf}")
    return True
