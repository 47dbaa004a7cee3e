"""One memory budget: the fastest plan, proven, then the smallest at that time, then the tie-breaks.

The least step time is a loop of master and sub-problem that stops when no row's lower bound is
below the incumbent: the proof. Then the least memory at that time, then the stated tie-breaks
among plans within the gap: less communication, smaller ``tp``, smaller ``seq_split``, fewer chips.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.costs import Column
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.search import bounds, dealing, families, stagewise
from autoshard.search.budget_floors import BudgetFloors
from autoshard.search.check import judge
from autoshard.search.confirming import Confirmations
from autoshard.search.layout import layout_words
from autoshard.search.limits import EDGE, Limit, Limits
from autoshard.search.master import MasterModel
from autoshard.search.prune import Tally
from autoshard.search.queue import Queue
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
    which a plan counts as optimal. ``keep`` is the user's constraint on candidates, ``limit`` one
    on what they cost; ``objectives`` are what the front trades. ``constrain_master`` and
    ``constrain_stages`` add to either CP-SAT model. ``progress`` is told about each point as it is
    proven. ``known_s`` is the step time of some plan of the space.
    """

    points: int = 12
    gap: float = 1e-3
    time_limit_s: float | None = None
    keep: Keep | None = None
    limit: Limit | None = None
    objectives: tuple[str, ...] = ("time", "memory")
    constrain_master: Constrain | None = None
    constrain_stages: Constrain | None = None
    progress: Callable[[str], None] | None = None
    known_s: float = float("inf")


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
    floors: BudgetFloors = field(init=False)
    stage_floors: stagewise.StageFloors = field(init=False)
    limits: Limits = field(init=False)
    confirmations: Confirmations | None = None
    master: MasterModel | None = field(init=False, default=None)
    _stages: dict[int, tuple[bytes, Stage]] = field(init=False, default_factory=dict)
    _answers: dict[tuple[bytes, str, float], tuple[float, Leaf | None]] = field(
        init=False, default_factory=dict
    )

    _points: list[tuple[float, Point]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.floor_s = bounds.time_floor_s(self.rows)
        self.floor_bytes = stagewise.smallest_bytes(self.rows, self.profile) * (1.0 - bounds.SLACK)
        self.floors = BudgetFloors.of(self.rows, self.profile.legality.remat)
        self.stage_floors = stagewise.StageFloors(self.rows, self.profile)
        self.limits = Limits.of(
            self.options.limit, self.problem, self.profile, self.rows.candidates
        )
        plan_s, plan_bytes = bounds.uniform_plans(self.rows)
        self.ceiling = self.limits.allowed_s(plan_s, plan_bytes), plan_bytes
        if self.options.constrain_master is not None:
            self.master = MasterModel(self.rows, self.options.constrain_master)

    # One mesh

    def answer(
        self, row: int, goal: str, limit: float, below: float, floor: float = 0.0
    ) -> Leaf | None:
        """Solve one mesh exactly: ``fastest`` within bytes, or ``smallest`` within seconds.

        None where it has no plan below the incumbent and within the user's limits. No plan of the
        mesh is below ``floor``.
        """
        if self.options.limit is None:
            return self._answer(row, goal, limit, below, floor)
        # At the very edge of a limit the judge decides, whose figures the user will see.
        for slack in (EDGE, -EDGE):
            latest_s, most_bytes = self.limits.of_row(row, slack)
            if goal == "fastest":
                below_s = min(below, float(np.nextafter(latest_s, np.inf)))
                leaf = self._answer(row, goal, min(limit, most_bytes), below_s, floor)
            else:
                leaf = self._answer(row, goal, min(limit, latest_s), min(below, most_bytes), floor)
            # An answer remembered from another row may be beyond the limits of this one.
            if leaf is None or leaf.time_s > latest_s or leaf.memory_bytes > most_bytes:
                return None
            if slack < 0 or self._within_limits(row, leaf):
                return leaf
        return None

    def _within_limits(self, row: int, leaf: Leaf) -> bool:
        """Whether the judge finds a plan within the user's limits."""
        latest_s, most_bytes = self.limits.of_row(row, -EDGE)
        if leaf.time_s <= latest_s and leaf.memory_bytes <= most_bytes:
            return True
        layout = int(self.rows.candidates.layout[row])
        time_s, memory = judge(self.problem, self.profile, self.plan(row, leaf), layout)
        return bool(time_s <= self.limits.latest_s[row] and memory <= self.limits.most_bytes[row])

    def _answer(self, row: int, goal: str, limit: float, below: float, floor: float) -> Leaf | None:
        """Solve one mesh exactly, or remember that it is solved."""
        if time.monotonic() >= self.deadline:
            raise Interrupted
        key, stage = self.stage(row)
        memo = self._answers.get((key, goal, limit))
        if memo is not None and memo[1] is not None:
            known = memo[1]
            within = known.time_s < below if goal == "fastest" else known.memory_bytes <= below
            return known if within else None
        if memo is not None and memo[0] >= below:
            return None
        self.tally.answers += 1
        by_model = self.options.constrain_stages is not None
        legality = self.profile.legality
        with self.tally.timed("stages"):
            if by_model and goal == "smallest":
                choices = None
                if legality.restricts_stages:
                    choices = families.choices_of(stage, legality, stage.n_layers)
                leaf = dealing.smallest(stage, limit, below, self._by_model, choices)
            elif by_model:
                leaf = self._by_model(stage, limit, below)
            elif legality.restricts_stages:
                solve = families.smallest if goal == "smallest" else families.fastest
                leaf = solve(stage, legality, limit, below)
            elif goal == "smallest":
                leaf = dealing.smallest(stage, limit, below, least_bytes=floor)
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
                stage,
                budget_bytes,
                below_s=below_s,
                constrain=self.options.constrain_stages,
                legality=self.profile.legality,
            )
            self.tally.solves += 1
            left = self.deadline - time.monotonic()
            leaf, finished = model.solve(left if np.isfinite(left) else None)
        if not finished:
            raise Interrupted
        return leaf, model

    def confirm(self, row: int, leaf: Leaf) -> None:
        """Have the chosen mesh solved by CP-SAT as well, beside the search.

        Not where CP-SAT found the answer itself, under the user's constraints.
        """
        if self.options.constrain_stages is None and self.confirmations is not None:
            self.confirmations.ask(self.stage(row)[1], leaf)

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

        def sharpen(rows: NDArray[np.intp], below: float) -> Column:
            budget, enough_s = (limit, below) if goal == "fastest" else (best.value, limit)
            with self.tally.timed("bounds"):
                took = self.stage_floors.time_s(rows, budget, enough_s)
            took[took > self.limits.latest_s[rows]] = np.inf
            return took if goal == "fastest" else np.where(took <= limit, 0.0, np.inf)

        queue = Queue(floor, self.master, None if self.master else sharpen)
        while True:
            row, bound = queue.next(min(best.value, below))
            if not bound < best.value * (1.0 - SAME):
                best.bound = min(best.bound, bound, best.value)
                return best
            leaf = self.answer(row, goal, limit, min(best.value, below), bound)
            queue.done(row)
            if leaf is None:
                continue
            value = leaf.time_s if goal == "fastest" else leaf.memory_bytes
            if value < best.value * (1.0 - SAME):
                best.row, best.leaf, best.value = row, leaf, value

    def point(self, budget_bytes: float) -> Point | None:
        """The lexicographic optimum within a budget, ties broken; None where nothing fits."""
        for asked_bytes, point in self._points:
            # What is best within more bytes and fits is best within these.
            if point.memory_bytes <= budget_bytes <= asked_bytes:
                return point
        found = self._point(budget_bytes)
        if found is not None:
            self._points.append((budget_bytes, found))
        return found

    def _point(self, budget_bytes: float) -> Point | None:
        """The same, where no answer holds it."""
        ceiling = self._ceiling_s(budget_bytes)
        fits = self.floor_bytes <= budget_bytes * (1.0 + SAME)
        alive = np.nonzero(fits & (self.floor_s <= ceiling * (1.0 + self.options.gap)))[0]
        floor = np.full(len(self.rows), np.inf)
        floor[alive] = self.floors.take(alive).time_s(budget_bytes)
        floor[floor > self.limits.latest_s] = np.inf
        fastest = self.least("fastest", budget_bytes, floor, below=ceiling * (1.0 + SAME))
        if fastest.leaf is None:
            return None
        return self._finish(fastest, floor)

    def smallest_bytes(self, time_s: float) -> float:
        """The least memory of any plan that takes at most a time; infinite where none does."""
        near = np.nonzero(self.floor_s <= time_s)[0]
        floor = np.full(len(self.rows), np.inf)
        capacity = float(self.problem.capacity_bytes)
        floor[near] = self.floors.take(near).memory_bytes(time_s, capacity)
        return self.least("smallest", time_s, floor, Best(value=self.problem.capacity_bytes)).value

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
        bytes_floor[near] = self.floors.take(near).memory_bytes(time_s, fastest.leaf.memory_bytes)
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
        latest_s = np.minimum(latest, self.limits.latest_s)
        alive = np.nonzero((self.floor_bytes <= budget) & (self.floor_s <= latest_s))[0]
        alive = alive[self.floors.take(alive).time_s(budget) <= latest_s[alive]]
        alive = alive[self.stage_floors.time_s(alive, budget, latest) <= latest_s[alive]]
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
        if "chips" in self.options.objectives:
            keys.insert(0, c.chips_used[picked])
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
