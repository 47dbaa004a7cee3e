"""One memory budget: the fastest plan, proven, then the smallest at that time, then the tie-breaks.

The least step time is a loop of master and sub-problem that stops when no row's lower bound is
below the incumbent: the proof. Then the least memory at that time, then the stated tie-breaks
among plans within the gap: less communication, smaller ``tp``, smaller ``seq_split``, fewer chips.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.costs import Column
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.search import bounds, dealing, stagewise
from autoshard.search.layout import layout_words
from autoshard.search.master import MasterModel
from autoshard.search.prune import Tally
from autoshard.search.rows import Rows
from autoshard.search.space import Keep
from autoshard.search.stage_model import Constrain, StageModel
from autoshard.search.stages import Leaf, Stage

#: Relative slack when two floats are the same time or the same memory.
SAME = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of the front: a plan, what it costs, and what is proven about it.

    No plan of the space within ``memory_bytes`` is faster than ``lower_bound_s``; ``gap`` is how
    far the plan is above it, and ``proven`` says that the gap is at most the one asked for.
    """

    plan: Plan
    row: int
    step_time_s: float
    memory_bytes: float
    lower_bound_s: float
    proven: bool

    @property
    def gap(self) -> float:
        """Relative distance of the step time from its lower bound."""
        return max(self.step_time_s / self.lower_bound_s - 1.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to search.

    ``points`` limits the front (0: every point). ``gap`` is the relative distance from the bound at
    which a plan counts as optimal. ``keep`` is the user's constraint on candidates;
    ``constrain_master`` and ``constrain_stages`` add to either CP-SAT model. ``progress`` is told
    about each point as it is proven.
    """

    points: int = 12
    gap: float = 1e-3
    time_limit_s: float | None = None
    keep: Keep | None = None
    constrain_master: Constrain | None = None
    constrain_stages: Constrain | None = None
    progress: Callable[[str], None] | None = None


@dataclass(slots=True)
class Interrupted(Exception):
    """The time limit was reached or the user pressed Ctrl-C in the middle of a point."""


@dataclass(slots=True)
class Best:
    """The incumbent of one minimisation: a row, its leaf, and the bound on everything else."""

    row: int = -1
    leaf: Leaf | None = None
    value: float = float("inf")
    bound: float = float("inf")


class Queue:
    """Rows by their lower bound, smallest first; bounds may be raised, rows taken out."""

    def __init__(self, floor: Column, master: MasterModel | None) -> None:
        self._floor = floor.copy()
        self._master = master
        self._heap: list[tuple[float, int]] = []
        if master is None:
            finite = np.nonzero(np.isfinite(floor))[0]
            self._heap = list(zip(floor[finite].tolist(), finite.tolist(), strict=True))
            heapq.heapify(self._heap)

    def next(self) -> tuple[int, float]:
        """The row with the least bound, left in the queue; an infinite bound where none is left."""
        if self._master is not None:
            row = self._master.best(self._floor)
            return (-1, float("inf")) if row is None else (row, float(self._floor[row]))
        while self._heap:
            bound, row = self._heap[0]
            if bound == self._floor[row]:
                return row, bound
            heapq.heappop(self._heap)
        return -1, float("inf")

    def done(self, row: int) -> None:
        """Take a row out: its exact answer is known."""
        self._floor[row] = np.inf


@dataclass(slots=True)
class Search:
    """The state of one solve: rows, memoised leaves, and the clock.

    ``all_rows`` says that ``rows`` has every row that can hold a point of the front.
    """

    problem: Problem
    profile: Profile
    options: Options
    rows: Rows
    tally: Tally
    deadline: float
    all_rows: bool = True
    floor_s: Column = field(init=False)
    floor_bytes: Column = field(init=False)
    ceiling: tuple[Column, Column] = field(init=False)
    master: MasterModel | None = field(init=False, default=None)
    _stages: dict[int, tuple[bytes, Stage]] = field(init=False, default_factory=dict)
    _answers: dict[tuple[bytes, str, float], tuple[float, Leaf | None]] = field(
        init=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        self.floor_s = bounds.time_floor_s(self.rows)
        self.floor_bytes = stagewise.smallest_bytes(self.rows, self.profile) * (1.0 - bounds.SLACK)
        self.ceiling = bounds.uniform_plans(self.rows)
        if self.options.constrain_master is not None:
            self.master = MasterModel(self.rows, self.options.constrain_master)

    # One mesh

    def answer(self, row: int, goal: str, limit: float, below: float) -> Leaf | None:
        """Solve one mesh exactly: ``fastest`` within bytes, or ``smallest`` within seconds.

        None where it has no plan below the incumbent.
        """
        if time.monotonic() >= self.deadline:
            raise Interrupted
        key, stage = self.stage(row)
        memo = self._answers.get((key, goal, limit))
        if memo is not None and (memo[1] is not None or memo[0] >= below):
            return memo[1]
        self.tally.answers += 1
        by_model = self.options.constrain_stages is not None
        with self.tally.timed("stages"):
            if goal == "smallest":
                leaf = dealing.smallest(stage, limit, below, self._by_model if by_model else None)
            elif by_model:
                leaf = self._by_model(stage, limit, below)
            else:
                leaf = dealing.fastest(stage, limit, below)
        self._answers[key, goal, limit] = (below, leaf)
        return leaf

    def _by_model(self, stage: Stage, budget_bytes: float, below_s: float) -> Leaf | None:
        """The fastest plan of one mesh by CP-SAT, where the user constrains the stages."""
        leaf = self._solve(stage, budget_bytes, below_s)[0]
        return leaf if leaf is not None and leaf.time_s < below_s else None

    def _solve(
        self, stage: Stage, budget_bytes: float, below_s: float
    ) -> tuple[Leaf | None, StageModel]:
        """Solve one mesh by CP-SAT, with the user's constraints."""
        with self.tally.timed("CP-SAT"):
            model = StageModel(
                stage, budget_bytes, below_s=below_s, constrain=self.options.constrain_stages
            )
            self.tally.solves += 1
            left = self.deadline - time.monotonic()
            leaf, finished = model.solve(left if np.isfinite(left) else None)
        if not finished:
            raise Interrupted
        return leaf, model

    def confirm(self, row: int, leaf: Leaf) -> None:
        """Solve the chosen mesh by CP-SAT as well, at the memory that its plan needs.

        Raises:
            AssertionError: the two methods disagree, which is a bug.
        """
        again, model = self._solve(
            self.stage(row)[1], leaf.memory_bytes * (1.0 + SAME), leaf.time_s * (1.0 + 1e-6)
        )
        if again is None or abs(again.time_s - leaf.time_s) > leaf.time_s * SAME + model.error_s:
            raise AssertionError(f"CP-SAT and dealing disagree on row {row}: {again}, {leaf}")

    def stage(self, row: int) -> tuple[bytes, Stage]:
        """The coefficients of one row with its schedule, and their key."""
        if row not in self._stages:
            c = self.rows.candidates
            held = self.profile.pipeline.in_flight(
                int(c.pp[row]), int(c.vpp[row]), int(c.microbatches[row])
            )
            stage = Stage.of(self.rows, row, held)
            self._stages[row] = (stage.key, stage)
        return self._stages[row]

    # One budget

    def least(
        self,
        goal: str,
        limit: float,
        floor: Column,
        best: Best | None = None,
        below: float = np.inf,
    ) -> Best:
        """Minimise over all rows, given a lower bound per row: the Benders loop.

        ``below`` is a value that the optimum is known to be below.

        The master proposes the row with the least bound; the sub-problem answers exactly; the
        answer is a cut on the row. It ends when no bound left is below the incumbent.
        """
        best = best or Best()
        queue = Queue(floor, self.master)
        while True:
            row, bound = queue.next()
            if not bound < best.value * (1.0 - SAME):
                best.bound = min(best.bound, bound, best.value)
                return best
            leaf = self.answer(row, goal, limit, min(best.value, below))
            queue.done(row)
            if leaf is None:
                continue
            value = leaf.time_s if goal == "fastest" else leaf.memory_bytes
            if value < best.value * (1.0 - SAME):
                best.row, best.leaf, best.value = row, leaf, value

    def point(self, budget_bytes: float) -> Point | None:
        """The lexicographic optimum within a budget, ties broken; None where nothing fits."""
        ceiling = self._ceiling_s(budget_bytes)
        fits = self.floor_bytes <= budget_bytes * (1.0 + SAME)
        alive = np.nonzero(fits & (self.floor_s <= ceiling * (1.0 + self.options.gap)))[0]
        floor = np.full(len(self.rows), np.inf)
        floor[alive] = bounds.time_floor_within_s(self.rows.take(alive), budget_bytes)
        fastest = self.least("fastest", budget_bytes, floor, below=ceiling * (1.0 + SAME))
        if fastest.leaf is None:
            return None
        return self._finish(fastest, floor)

    def _ceiling_s(self, budget_bytes: float) -> float:
        """The fastest even plan with one rung within a budget; infinite if none is known."""
        if self.master is not None or self.options.constrain_stages is not None:
            return float("inf")
        plan_s, plan_bytes = self.ceiling
        return float(np.min(plan_s, where=plan_bytes <= budget_bytes, initial=np.inf))

    def _finish(self, fastest: Best, floor: Column) -> Point:
        """Least memory at the least time, then the tie-breaks."""
        time_s = fastest.value * (1.0 + bounds.SLACK)
        assert fastest.leaf is not None
        near = np.nonzero(floor <= time_s)[0]
        bytes_floor = np.full(len(self.rows), np.inf)
        bytes_floor[near] = bounds.memory_floor_within_bytes(
            self.rows.take(near), time_s, fastest.leaf.memory_bytes
        )
        start = Best(row=fastest.row, leaf=fastest.leaf, value=fastest.leaf.memory_bytes)
        smallest = self.least("smallest", time_s, bytes_floor, start)
        row, leaf = self._tie_break(smallest, fastest.bound)
        self.confirm(row, leaf)
        return Point(
            plan=self.plan(row, leaf),
            row=row,
            step_time_s=leaf.time_s,
            memory_bytes=leaf.memory_bytes,
            lower_bound_s=min(fastest.bound, leaf.time_s),
            proven=leaf.time_s <= fastest.bound * (1.0 + self.options.gap + SAME),
        )

    def _tie_break(self, smallest: Best, bound_s: float) -> tuple[int, Leaf]:
        """Among plans no larger and within the gap of the bound, the first in the stated order."""
        assert smallest.leaf is not None
        budget = smallest.leaf.memory_bytes * (1.0 + SAME)
        latest = max(bound_s * (1.0 + self.options.gap), smallest.leaf.time_s)
        alive = np.nonzero((self.floor_bytes <= budget) & (self.floor_s <= latest))[0]
        within = bounds.time_floor_within_s(self.rows.take(alive), budget) <= latest
        alive = alive[within]
        for row in self._in_order(np.append(alive, smallest.row)).tolist():
            if row == smallest.row:
                break
            if self.master is not None and not self.master.allows(row):
                continue
            leaf = self.answer(row, "fastest", budget, latest * (1.0 + SAME))
            if leaf is not None:
                return row, leaf
        return smallest.row, smallest.leaf

    def _in_order(self, picked: NDArray[np.intp]) -> NDArray[np.intp]:
        """Rows in the order of the tie-breaks, and then by every column, so that one is first."""
        c = self.rows.candidates
        comms = self.rows.costs.comms_s[picked]
        # Sums of floats in another order are the same communication.
        comms = np.round(comms / max(float(comms.max(initial=0.0)), 1e-30), 9)
        keys = [comms, c.tp[picked], c.seq_split[picked], c.chips_used[picked]]
        keys += [c.pp[picked], c.cp[picked], c.dp[picked], c.batch_split[picked]]
        keys += [c.microbatches[picked], c.vpp[picked], c.layout[picked], -c.reshard[picked]]
        return picked[np.lexsort(keys[::-1])]

    def even_point(self) -> Point | None:
        """The fastest plan with even stages and one rung: what there is before a proof."""
        plan_s, plan_bytes = self.ceiling
        fits = np.where(plan_bytes <= self.problem.capacity_bytes, plan_s, np.inf)
        if not np.isfinite(fits).any() or self.master or self.options.constrain_stages:
            return None
        row, rung = (int(i) for i in np.unravel_index(fits.argmin(), fits.shape))
        stage = self.stage(row)[1]
        floor, extra = divmod(stage.n_layers, stage.pp)
        # The middle stages take what is left over first, then the last, then the first.
        heavy = [*range(1, stage.pp - 1), stage.pp - 1, 0][:extra]
        rungs = np.zeros((stage.pp, len(stage.saved)), dtype=np.int64)
        rungs[:, rung] = floor
        rungs[heavy, rung] += 1
        time_s, memory = stage.evaluate(rungs)
        leaf = Leaf(rungs=rungs, time_s=time_s, memory_bytes=memory)
        bound_s = float(self.floor_s.min())
        if not self.all_rows:
            bound_s = self.profile.compute.flops_per_step(self.problem)
            bound_s /= self.problem.peak_flops_per_s * self.problem.cluster.chips
        return Point(
            plan=self.plan(row, leaf),
            row=row,
            step_time_s=time_s,
            memory_bytes=memory,
            lower_bound_s=bound_s,
            proven=time_s <= bound_s * (1.0 + self.options.gap),
        )

    # The plan of a leaf

    def plan(self, row: int, leaf: Leaf) -> Plan:
        """The integers of a row and its leaf."""
        c = self.rows.candidates
        degrees = {
            name: int(getattr(c, name)[row]) for name in c.__slots__ if name not in ("layout",)
        }
        names = [rung.name for rung in self.profile.ladder]
        remat = tuple(
            {n: int(k) for n, k in zip(names, stage, strict=True) if k} for stage in leaf.rungs
        )
        return Plan(
            **degrees,
            layers_per_stage=tuple(int(n) for n in leaf.rungs.sum(axis=1)),
            remat=remat,
            layout=layout_words(self.problem, int(c.layout[row]), degrees),
        )
