"""The Pareto front of step time against memory: the lexicographic epsilon-constraint method.

Each point is one budget solved (``search.budget``); the next budget lies below it. A limited number
of points is spread by halving the largest step of the front.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from autoshard.costmodels.errors import Infeasible
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.search.budget import SAME, Interrupted, Options, Point, Search
from autoshard.search.chips import front_by_chips
from autoshard.search.confirming import Confirmations
from autoshard.search.prune import Tally, promising_rows
from autoshard.search.rows import Rows
from autoshard.search.space import meshes

__all__ = ["Options", "Point", "Result", "solve_front"]

#: A limited front shows steps up to this many times the fastest.
SLOWEST = 4.0
#: Points of a limited front are at least this far apart in memory, relatively.
FINEST_STEP = 0.001


@dataclass(slots=True)
class Result:
    """The front, fastest first, how it was found, and whether all of it was."""

    points: list[Point]
    tally: Tally
    complete: bool
    rows: Rows


def solve_front(problem: Problem, profile: Profile, options: Options) -> Result:
    """The proven Pareto front of a problem in step time and ``options.objectives``.

    Ctrl-C and the time limit end the search with the points found so far.

    Raises:
        Infeasible: no plan of the space fits, or the user's constraints leave none.
        CostModelError: a cost model refuses the problem or breaks its contract.
    """
    profile.check_covers(problem)
    tally = Tally()
    deadline = time.monotonic() + (options.time_limit_s or np.inf)
    if "memory" not in options.objectives and "chips" not in options.objectives:
        options = replace(options, points=1)
    if "chips" not in options.objectives:
        return _solve(problem, profile, options, tally, deadline)

    def within(asked: Options, most_chips: int) -> Result:
        return _solve(problem, profile, asked, tally, deadline, most_chips)

    return front_by_chips(options, np.unique(meshes(problem).chips_used), within)


def _solve(
    problem: Problem,
    profile: Profile,
    options: Options,
    tally: Tally,
    deadline: float,
    most_chips: int | None = None,
) -> Result:
    """The front of step time and memory, of plans on at most so many chips."""
    # Who asks for one point asks for no slower one.
    slowest = {0: np.inf, 1: 1.0}.get(options.points, SLOWEST)
    free = options.constrain_master is None and options.constrain_stages is None
    # Where CP-SAT answers under the user's constraints, nothing is left to confirm.
    confirmations = None
    if options.constrain_stages is None:
        confirmations = Confirmations(profile.legality, deadline)
    try:
        rows, complete = promising_rows(
            problem,
            profile,
            gap=options.gap,
            keep=options.keep,
            tally=tally,
            slowest=slowest,
            known_s=options.known_s,
            prune=free,
            deadline=deadline,
            limit=options.limit,
            most_chips=most_chips,
            tell=options.progress,
        )
        if not len(rows) and complete:
            raise Infeasible("no candidate is left")
        started = time.perf_counter()
        before = sum(tally.seconds.values())
        search = Search(
            problem=problem,
            profile=profile,
            options=options,
            rows=rows,
            tally=tally,
            deadline=deadline,
            all_rows=complete,
            confirmations=confirmations,
        )
        points, complete = _trace(search)
    finally:
        if confirmations is not None:
            confirmations.close()
    named = sum(tally.seconds.values()) - before
    spent = time.perf_counter() - started - named
    tally.seconds["front"] = tally.seconds.get("front", 0.0) + spent
    if not points and complete:
        raise Infeasible("no candidate is left")
    return Result(points=points, tally=tally, complete=complete, rows=rows)


def _trace(search: Search) -> tuple[list[Point], bool]:
    """Points of the front, fastest first, and whether the search ran to its end."""
    found: list[Point] = []

    def add(point: Point | None) -> bool:
        if point is None or any(_same(point, p) for p in found):
            return False
        found.append(point)
        if search.options.progress is not None:
            search.options.progress(_point_words(found, search.options.points))
        return True

    complete = True
    try:
        if not search.all_rows:
            raise Interrupted
        if search.options.progress is not None:
            search.options.progress(_first_words(search))
        capacity = float(search.problem.capacity_bytes)
        if add(search.point(capacity)):
            if search.options.points == 0:
                below = found[0]
                while (point := search.point(below.memory_bytes * (1.0 - 2 * SAME))) is not None:
                    add(point)
                    below = point
            elif search.options.points > 1:
                _spread(search, found, add)
        if search.confirmations is not None:
            with search.tally.timed("CP-SAT"):
                search.tally.solves += search.confirmations.settle()
    except (Interrupted, KeyboardInterrupt):
        complete = False
        if not found:
            add(search.even_point())
    return _undominated(found), complete


def _first_words(search: Search) -> str:
    """What is left of the space, and the fastest even plan in it with its gap: no proof yet."""
    said = f"{len(search.rows):,} of {search.tally.priced:,} candidates within the bounds"
    plan_s, plan_bytes = search.ceiling
    fits = plan_bytes <= search.problem.capacity_bytes
    even_s = float(np.min(plan_s, where=fits, initial=np.inf))
    # Whether an even plan satisfies the functions of a user, nobody knows yet.
    if not np.isfinite(even_s) or search.master or search.options.constrain_stages:
        return said
    gap = even_s / float(search.floor_s.min()) - 1.0
    return f"{said}; incumbent {even_s:.4g} s, gap {_percent(gap)}"


def _point_words(found: list[Point], asked: int) -> str:
    """The fastest plan and its gap, and the points so far with the newest of them."""
    best, newest = found[0], found[-1]
    count = f"{len(found)} of {asked} points" if asked else f"{len(found)} points"
    return (
        f"fastest {best.step_time_s:.4g} s, gap {_percent(best.gap)}; {count}, last "
        f"{newest.step_time_s:.4g} s at {newest.memory_bytes / 2**30:.2f} GiB"
    )


def _percent(share: float) -> str:
    return f"{share * 100:.2f} %"


def _spread(search: Search, found: list[Point], add: Callable[[Point | None], bool]) -> None:
    """Add points until there are enough: each halves the largest rectangle that could hold one.

    The small end is the smallest even plan that takes up to ``SLOWEST`` times the fastest step;
    under limits on what plans cost, which even plans may miss, the smallest of all plans.
    """
    latest_s = SLOWEST * found[0].step_time_s
    plan_s, plan_bytes = search.ceiling
    smallest = float(np.min(plan_bytes, where=plan_s <= latest_s, initial=np.inf))
    if search.options.limit is not None:
        smallest = search.smallest_bytes(latest_s)
    smallest *= 1.0 + SAME
    add(search.point(min(smallest, float(search.problem.capacity_bytes))))
    floor_of: dict[float, float] = {}
    while len(found) < search.options.points:
        ordered = _undominated(found)
        rectangles = []
        for fast, small in itertools.pairwise(ordered):
            low = max(floor_of.get(fast.memory_bytes, 0.0), small.memory_bytes)
            high = fast.memory_bytes
            area = np.log(high / low) * np.log(small.step_time_s / fast.step_time_s)
            if high > low * (1.0 + FINEST_STEP) and small.step_time_s > fast.step_time_s:
                rectangles.append((float(area), low, high))
        if not rectangles:
            return
        _, low, high = max(rectangles)
        middle = float(np.sqrt(low * high))
        point = search.point(middle)
        if point is None or any(_same(point, p) for p in found):
            # Nothing new at or under the middle: only the upper half can hold more.
            floor_of[high] = middle
        add(point)


def _same(a: Point, b: Point) -> bool:
    return bool(
        np.isclose(a.step_time_s, b.step_time_s, rtol=10 * SAME, atol=0)
        and np.isclose(a.memory_bytes, b.memory_bytes, rtol=10 * SAME, atol=0)
    )


def _undominated(points: list[Point]) -> list[Point]:
    """Points sorted by time, without those that another beats or equals in both."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.step_time_s, p.memory_bytes)):
        if not kept or point.memory_bytes < kept[-1].memory_bytes:
            kept.append(point)
    return kept
