"""Priced candidates: the rows that bounds and stage models work on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import Column
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile, StageCosts

#: Candidates priced in one call: their columns fit the cache of one core.
CHUNK = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Candidates with their coefficients and what the schedule keeps in flight.

    ``in_flight_first``, ``in_flight_second`` and ``in_flight_last`` are microbatches held by those
    stages; ``capacity_share`` is the sum over stages of 1 / in-flight. All ``[n]``.
    """

    candidates: Candidates
    costs: StageCosts
    n_layers: int
    in_flight_first: Column
    in_flight_second: Column
    in_flight_last: Column
    capacity_share: Column

    def __len__(self) -> int:
        return len(self.candidates)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Rows:
        """The rows at those indices."""
        return Rows(
            candidates=self.candidates.take(rows),
            costs=self.costs.take(rows),
            n_layers=self.n_layers,
            in_flight_first=self.in_flight_first[rows],
            in_flight_second=self.in_flight_second[rows],
            in_flight_last=self.in_flight_last[rows],
            capacity_share=self.capacity_share[rows],
        )

    @classmethod
    def concatenate(cls, parts: list[Rows]) -> Rows:
        """One table out of several."""
        arrays = {
            name: np.concatenate([getattr(p, name) for p in parts])
            for name in ("in_flight_first", "in_flight_second", "in_flight_last", "capacity_share")
        }
        return cls(
            candidates=Candidates.concatenate([p.candidates for p in parts]),
            costs=StageCosts.concatenate([p.costs for p in parts]),
            n_layers=parts[0].n_layers,
            **arrays,
        )


def price_rows(problem: Problem, profile: Profile, candidates: Candidates) -> Rows:
    """Price candidates in one call and look up their schedules."""
    costs = profile.price(problem, candidates)
    key = np.stack([candidates.pp, candidates.vpp, candidates.microbatches])
    schedules, which = np.unique(key, axis=1, return_inverse=True)
    table = np.empty((4, schedules.shape[1]))
    for column, (pp, vpp, microbatches) in enumerate(schedules.T.tolist()):
        held = profile.pipeline.in_flight(pp, vpp, microbatches)
        second = held[1:].max() if pp > 1 else held[0]
        table[:, column] = held[0], second, held[-1], (1.0 / held).sum()
    first, second, last, share = table[:, which.reshape(-1)]
    return Rows(
        candidates=candidates,
        costs=costs,
        n_layers=problem.model.n_layers,
        in_flight_first=first,
        in_flight_second=second,
        in_flight_last=last,
        capacity_share=share,
    )


def chunks(candidates: Candidates) -> Iterator[Candidates]:
    """Candidates in pieces of at most :data:`CHUNK`."""
    for start in range(0, len(candidates), CHUNK):
        yield candidates.take(slice(start, start + CHUNK))
