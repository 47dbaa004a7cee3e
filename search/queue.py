"""Rows in the order of their lower bounds, which get better the nearer a row comes to the front."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.costs import Column
from autoshard.search.master import MasterModel

#: Better bounds of rows, by their indices, for a queue to which bounds above a value are one.
Sharpen = Callable[[NDArray[np.intp], float], Column]

#: Rows whose bounds are sharpened in one call.
BATCH = 256


class Queue:
    """Rows by their lower bound, smallest first; bounds may be raised, rows taken out.

    ``sharpen`` finds better bounds, asked for when a row comes first and for those that follow it.
    """

    def __init__(
        self, floor: Column, master: MasterModel | None, sharpen: Sharpen | None = None
    ) -> None:
        self._floor = floor.copy()
        self._master = master
        self._sharpen = sharpen
        self._sharp = np.zeros(len(floor), dtype=np.bool_)
        self._heap: list[tuple[float, int]] = []
        if master is None:
            finite = np.nonzero(np.isfinite(floor))[0]
            self._heap = list(zip(floor[finite].tolist(), finite.tolist(), strict=True))
            heapq.heapify(self._heap)

    def next(self, below: float) -> tuple[int, float]:
        """The row with the least bound, left in the queue; an infinite bound where none is left.

        Bounds from ``below`` upwards are of no interest, and need not be sharp.
        """
        if self._master is not None:
            row = self._master.best(self._floor)
            return (-1, float("inf")) if row is None else (row, float(self._floor[row]))
        while self._heap:
            bound, row = self._heap[0]
            if bound != self._floor[row]:
                heapq.heappop(self._heap)
            elif self._sharpen is None or self._sharp[row] or bound >= below:
                return row, bound
            else:
                self._raise(self._sharpen, below)
        return -1, float("inf")

    def _raise(self, sharpen: Sharpen, below: float) -> None:
        """Sharpen the bounds of the first rows, those that are below what is sought."""
        batch: list[int] = []
        while self._heap and len(batch) < BATCH and self._heap[0][0] < below:
            bound, row = heapq.heappop(self._heap)
            if bound == self._floor[row]:
                batch.append(row)
        rows = np.array(batch, dtype=np.intp)
        fresh = rows[~self._sharp[rows]]
        self._floor[fresh] = np.maximum(self._floor[fresh], sharpen(fresh, below))
        self._sharp[fresh] = True
        for row in batch:
            if np.isfinite(self._floor[row]):
                heapq.heappush(self._heap, (float(self._floor[row]), row))

    def done(self, row: int) -> None:
        """Take a row out: its exact answer is known."""
        self._floor[row] = np.inf
