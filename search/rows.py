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
class InFlight:
    """What the schedule of each candidate keeps in flight, ``[n]`` each.

    ``first``, ``second`` and ``last`` are microbatches held by those stages; ``capacity_share`` is
    the sum over stages of 1 / in-flight.
    """

    first: Column
    second: Column
    last: Column
    capacity_share: Column

    @classmethod
    def of(cls, profile: Profile, candidates: Candidates) -> InFlight:
        """Look up every schedule once."""
        schedules, which = schedules_of(candidates)
        if not schedules:
            none = np.zeros(0)
            return cls(first=none, second=none, last=none, capacity_share=none)
        held = profile.in_flight(schedules)
        every = np.concatenate(held)
        ends = np.cumsum([len(column) for column in held])
        starts = np.concatenate([[0], ends[:-1]])
        # The most that any stage but the first holds; a single stage is its own second.
        later = every.copy()
        later[starts[ends - starts > 1]] = 0.0
        return cls(
            first=every[starts][which],
            second=np.maximum.reduceat(later, starts)[which],
            last=every[ends - 1][which],
            capacity_share=np.add.reduceat(1.0 / every, starts)[which],
        )

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> InFlight:
        """Those of some candidates."""
        return InFlight(**{name: getattr(self, name)[rows] for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Candidates with their coefficients and what the schedule keeps in flight."""

    candidates: Candidates
    costs: StageCosts
    n_layers: int
    in_flight: InFlight

    def __len__(self) -> int:
        return len(self.candidates)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Rows:
        """The rows at those indices."""
        return Rows(
            candidates=self.candidates.take(rows),
            costs=self.costs.take(rows),
            n_layers=self.n_layers,
            in_flight=self.in_flight.take(rows),
        )

    @classmethod
    def concatenate(cls, parts: list[Rows]) -> Rows:
        """One table out of several."""
        held = {
            name: np.concatenate([getattr(p.in_flight, name) for p in parts])
            for name in InFlight.__slots__
        }
        return cls(
            candidates=Candidates.concatenate([p.candidates for p in parts]),
            costs=StageCosts.concatenate([p.costs for p in parts]),
            n_layers=parts[0].n_layers,
            in_flight=InFlight(**held),
        )


def price_rows(
    problem: Problem,
    profile: Profile,
    candidates: Candidates,
    in_flight: InFlight | None = None,
) -> Rows:
    """Price candidates in one call and look up their schedules, where that has not been done."""
    return Rows(
        candidates=candidates,
        costs=profile.price(problem, candidates),
        n_layers=problem.model.n_layers,
        in_flight=InFlight.of(profile, candidates) if in_flight is None else in_flight,
    )


def schedules_of(candidates: Candidates) -> tuple[list[tuple[int, int, int]], NDArray[np.intp]]:
    """The distinct ``(pp, vpp, microbatches)`` of candidates, and which one each has."""
    columns = (candidates.pp, candidates.vpp, candidates.microbatches)
    # Ranks of small integers pack into one, which sorts ten times faster than a row of three.
    key = np.zeros(len(candidates), dtype=np.int64)
    for column in columns:
        values, rank = np.unique(column, return_inverse=True)
        key = key * len(values) + rank
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    return list(zip(*(column[first].tolist() for column in columns), strict=True)), which


def chunks(candidates: Candidates) -> Iterator[Candidates]:
    """Candidates in pieces of at most :data:`CHUNK`."""
    for start in range(0, len(candidates), CHUNK):
        yield candidates.take(slice(start, start + CHUNK))
