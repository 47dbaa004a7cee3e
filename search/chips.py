"""Chips as an objective: one front of step time and memory for each number of chips allowed.

A plan that no other beats in time, memory and chips lies on the front of the plans that use no more
chips than it does. So fronts are solved from all chips downwards; between the most chips that a
front uses and the number it was allowed there is nothing new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from autoshard.costmodels.candidates import IntColumn
from autoshard.costmodels.errors import Infeasible
from autoshard.search.budget import SAME, Options, Point
from autoshard.search.rows import Rows

if TYPE_CHECKING:
    from autoshard.search.front import Result

#: Numbers of chips that a limited front is spread over, by halving, and points for each at least.
LEVELS, LEAST_POINTS = 6, 3


def front_by_chips(
    options: Options, numbers: IntColumn, solve: Callable[[Options, int], Result]
) -> Result:
    """The front in time, chips and, where that is an objective, memory; fastest first.

    ``numbers`` are chips that plans can use, ascending; ``solve`` finds the front of the plans that
    use at most so many. A limited front goes down by halving, any other through every number.

    Raises:
        Infeasible: no plan on any number of chips.
    """
    shares = _shares(options)
    results: list[Result] = []
    allowed, complete = int(numbers[-1]), True
    while complete and (not shares or len(results) < len(shares)):
        points = shares[len(results)] if shares else _each(options)
        try:
            result = solve(dataclasses.replace(options, points=points), allowed)
        except Infeasible:
            if not results:
                raise
            break
        except KeyboardInterrupt:
            if not results:
                raise
            complete = False
            break
        results.append(result)
        complete = result.complete
        if not result.points:
            break
        # Fronts of fewer chips than were allowed and more than were used are this one.
        used = max(point.plan.chips_used for point in result.points)
        below = min(used - 1, allowed // 2 if shares else used - 1)
        left = numbers[numbers <= below]
        if not len(left):
            break
        allowed = int(left[-1])
    return _joined(results, complete, options)


def _each(options: Options) -> int:
    """Points of each front where every number of chips is tried."""
    return 0 if "memory" in options.objectives else 1


def _shares(options: Options) -> list[int]:
    """Points of each front that a limited number is dealt to; none where all are wanted."""
    if options.points == 0:
        return []
    if "memory" not in options.objectives:
        return [1] * options.points
    levels = min(max(options.points // LEAST_POINTS, 1), LEVELS)
    each, rest = divmod(options.points, levels)
    return [each + (level < rest) for level in range(levels)]


def _joined(results: list[Result], complete: bool, options: Options) -> Result:
    """One result: the points that none beats, with the rows they are of."""
    found = [
        dataclasses.replace(point, row=index)
        for index, point in enumerate(p for result in results for p in result.points)
    ]
    parts = [
        result.rows.take(np.array([point.row for point in result.points], dtype=np.intp))
        for result in results
        if result.points
    ]
    rows = Rows.concatenate(parts) if parts else results[0].rows
    kept = unbeaten(found, memory="memory" in options.objectives)
    return dataclasses.replace(results[0], points=kept, complete=complete, rows=rows)


def unbeaten(points: list[Point], *, memory: bool) -> list[Point]:
    """Points by time, without those that another beats, or equals before them, in everything."""

    def key(point: Point) -> tuple[float, float, float]:
        return (
            point.step_time_s,
            point.memory_bytes if memory else 0.0,
            float(point.plan.chips_used),
        )

    def covers(a: Point, b: Point) -> bool:
        return all(x <= y * (1.0 + 10 * SAME) for x, y in zip(key(a), key(b), strict=True))

    kept: list[Point] = []
    for point in sorted(points, key=key):
        if not any(covers(other, point) for other in kept):
            kept = [other for other in kept if not covers(point, other)] + [point]
    return kept
