"""The front as a picture of characters: step time over memory per chip."""

from __future__ import annotations

import math

from autoshard.front import ParetoFront
from autoshard.sizes import format_bytes, format_seconds

MARKS = {"compute": "o", "communication": "x", "bubble": "b", "hbm": "h"}
#: Mark of a binding that is not in the list.
OTHER = "*"


def scatter(front: ParetoFront, width: int = 72, height: int = 10) -> list[str]:
    """Lines of text: memory runs to the right and step time upwards, both on logarithmic scales.

    Where two points share a cell the faster one is shown. Empty for fewer than three points, of
    which a picture says no more than the table.
    """
    points = front.points
    if len(points) < 3:
        return []
    memory = [math.log(point.memory_bytes) for point in points]
    times = [math.log(point.step_time_s) for point in points]
    cells = [[" "] * width for _ in range(height)]
    for point, x, y in reversed(list(zip(points, memory, times, strict=True))):
        column = round(_share(x, memory) * (width - 1))
        row = height - 1 - round(_share(y, times) * (height - 1))
        cells[row][column] = MARKS.get(point.binding, OTHER)
    slowest, fastest = max(p.step_time_s for p in points), points[0].step_time_s
    labels = {0: format_seconds(slowest), height - 1: format_seconds(fastest)}
    margin = max(map(len, labels.values()))
    lines = [
        f"{labels.get(row, ''):>{margin}} |{''.join(line).rstrip()}"
        for row, line in enumerate(cells)
    ]
    smallest = format_bytes(min(p.memory_bytes for p in points))
    largest = format_bytes(max(p.memory_bytes for p in points))
    middle = "memory per chip (log scales)".center(width - len(smallest) - len(largest))
    indent = " " * margin
    present = {point.binding for point in points}
    legend = [f"{mark} {name}-bound" for name, mark in MARKS.items() if name in present]
    legend += [f"{OTHER} other"] if present - set(MARKS) else []
    return [
        *lines,
        f"{indent} +{'-' * width}",
        f"{indent}  {smallest}{middle}{largest}",
        f"{indent}  {'   '.join(legend)}",
    ]


def _share(value: float, values: list[float]) -> float:
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.0
