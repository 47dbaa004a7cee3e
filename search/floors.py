"""Floors of meshes and of their candidates, before each candidate is priced.

They assume that cost models are subadditive in the microbatch: splitting a microbatch never makes
the pieces cheaper in time together, nor what one of them holds larger. State may be larger where
there are several, whose gradients are added up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.candidates import Candidates, IntColumn
from autoshard.costmodels.costs import Column, PipelineCost, Place
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile, StageCosts
from autoshard.search import bounds
from autoshard.search.interleaving import virtual_stages
from autoshard.search.rows import InFlight, Rows, chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshFloors:
    """Of each mesh over its microbatches and virtual stages, ``[n]``.

    ``slowest_s`` is what the slowest stage is busy in a step, ``total_s`` what all stages are
    together; ``least_s`` is a step with the smallest bubble there can be. ``state_layer_bytes``,
    ``saved_bytes`` and the others are those of one microbatch of one sequence, ``memory_bytes`` a
    stage with it in flight.
    """

    slowest_s: Column
    total_s: Column
    least_s: Column
    layer_state_bytes: Column
    embedding_state_bytes: Column
    head_state_bytes: Column
    saved_bytes: Column
    fixed_bytes: Column
    memory_bytes: Column

    @classmethod
    def concatenate(cls, parts: Sequence[MeshFloors]) -> MeshFloors:
        """One table out of several."""
        return cls(
            **{
                name: np.concatenate([getattr(part, name) for part in parts])
                for name in cls.__slots__
            }
        )

    def take(self, rows: NDArray[np.intp]) -> MeshFloors:
        """The floors of those meshes."""
        return MeshFloors(**{name: getattr(self, name)[rows] for name in self.__slots__})

    def step_s(self, profile: Profile, candidates: Candidates, mesh: NDArray[np.intp]) -> Column:
        """Floors on the step of candidates of those meshes, each with its own bubble, ``[n]``."""
        weights = profile.pipeline(candidates)
        return step_s(weights, candidates.microbatches, self.slowest_s[mesh], self.total_s[mesh])


def mesh_floors(
    problem: Problem, profile: Profile, table: Candidates, deadline: float = np.inf
) -> MeshFloors:
    """Least time and least memory of each mesh; zero where the deadline left it unpriced.

    Time: one microbatch of everything. Memory: one microbatch of one sequence, in flight. Some
    stage is no lighter than the mean, nor than ceil(L / pp) bare layers.
    """
    layers = problem.model.n_layers
    parts = [MeshFloors(**dict.fromkeys(MeshFloors.__slots__, np.zeros(0)))]
    for piece in chunks(table):
        if time.monotonic() >= deadline:
            parts.append(MeshFloors(**dict.fromkeys(MeshFloors.__slots__, np.zeros(len(piece)))))
            continue
        slowest_s, total_s = busy_s(profile.price(problem, piece), piece.pp, layers)
        one = np.ones_like(piece.micro_batch_size)
        single = piece.replace(microbatches=one, micro_batch_size=one)
        small = profile.price_memory(problem, single)
        saved = small.saved_bytes.min(axis=1)
        of_layer = small.layer_state_bytes + saved
        held = layers * of_layer + small.embedding_state_bytes + small.head_state_bytes
        held = np.maximum(held / piece.pp, -(-layers // piece.pp) * of_layer) + small.fixed_bytes
        parts.append(
            MeshFloors(
                slowest_s=slowest_s,
                total_s=total_s,
                least_s=_least_step_s(profile, piece, layers, slowest_s, total_s),
                layer_state_bytes=small.layer_state_bytes,
                embedding_state_bytes=small.embedding_state_bytes,
                head_state_bytes=small.head_state_bytes,
                saved_bytes=saved,
                fixed_bytes=small.fixed_bytes,
                memory_bytes=held * (1.0 - bounds.SLACK),
            )
        )
    return MeshFloors.concatenate(parts)


def busy_s(costs: StageCosts, pp: IntColumn, n_layers: int) -> tuple[Column, Column]:
    """Floors on the passes of a microbatch in the slowest stage and in all together, ``[n]``."""
    layer, rung = costs.forward_s["layer"], costs.layer_backward_s.min(axis=2)
    total_s = (n_layers * layer + bounds.ends(costs, "forward_s")).max(axis=1)
    total_s += (n_layers * rung + bounds.ends(costs, "backward_s")).max(axis=1)
    bare_s = -(-n_layers // pp) * (layer.max(axis=1) + rung.max(axis=1))
    fine = 1.0 - bounds.SLACK
    return np.maximum(total_s / pp, bare_s) * fine, total_s * fine


def _least_step_s(
    profile: Profile, table: Candidates, n_layers: int, slowest_s: Column, total_s: Column
) -> Column:
    """A step with the microbatches and virtual stages that leave the smallest bubble, ``[n]``."""
    chunks_of = np.ones(int(table.pp.max(initial=1)) + 1, dtype=np.int64)
    for pp in np.unique(table.pp) if profile.virtual else ():
        chunks_of[pp] = virtual_stages(n_layers, int(pp))[-1]
    microbatches = table.micro_batch_size * table.microbatches
    chunk = np.where(microbatches >= table.pp, chunks_of[table.pp], 1)
    weights = profile.pipeline(table.replace(microbatches=microbatches, vpp=chunk))
    return step_s(weights, microbatches, slowest_s, total_s)


def step_s(weights: PipelineCost, count: IntColumn, slowest_s: Column, total_s: Column) -> Column:
    """A step of stages that are busy so long, under a schedule's weights for a microbatch."""
    step: Column = weights.max_weight * slowest_s + weights.sum_weight * total_s
    return step / count


@dataclass(slots=True, kw_only=True)
class Unpriced:
    """Candidates of some meshes with floors on what they take and hold, ``[n]``.

    In the order of their meshes, and of microbatches in each.
    """

    n_layers: int
    candidates: Candidates
    mesh: NDArray[np.intp]
    weights: PipelineCost
    in_flight: InFlight
    slowest_s: Column
    total_s: Column
    state_bytes: dict[Place, Column]
    saved_bytes: Column
    fixed_bytes: Column

    @classmethod
    def of(
        cls,
        profile: Profile,
        n_layers: int,
        candidates: Candidates,
        mesh: NDArray[np.intp],
        floors: MeshFloors,
    ) -> Unpriced:
        """Candidates with the floors of their meshes."""
        order = np.lexsort((candidates.vpp, candidates.microbatches, mesh))
        candidates, mesh = candidates.take(order), mesh[order]
        of_mesh = floors.take(mesh)
        return cls(
            n_layers=n_layers,
            candidates=candidates,
            mesh=mesh,
            weights=profile.pipeline(candidates),
            in_flight=InFlight.of(profile, candidates),
            slowest_s=of_mesh.slowest_s,
            total_s=of_mesh.total_s,
            state_bytes={
                "layer": of_mesh.layer_state_bytes,
                "embedding": of_mesh.embedding_state_bytes,
                "head": of_mesh.head_state_bytes,
            },
            saved_bytes=of_mesh.saved_bytes,
            fixed_bytes=of_mesh.fixed_bytes,
        )

    def take(self, rows: NDArray[np.bool_]) -> Unpriced:
        """Some of the candidates."""
        made = {
            name: getattr(self, name)[rows]
            for name in ("mesh", "slowest_s", "total_s", "saved_bytes", "fixed_bytes")
        }
        return Unpriced(
            n_layers=self.n_layers,
            candidates=self.candidates.take(rows),
            weights=PipelineCost(
                max_weight=self.weights.max_weight[rows], sum_weight=self.weights.sum_weight[rows]
            ),
            in_flight=self.in_flight.take(rows),
            state_bytes={place: held[rows] for place, held in self.state_bytes.items()},
            **made,
        )

    def held_bytes(self) -> Column:
        """Floors on the memory, with what each schedule holds."""
        return bounds.held_floor_bytes(
            self.n_layers,
            self.candidates.pp,
            self.in_flight,
            saved=self.saved_bytes,
            state=self.state_bytes,
            fixed=self.fixed_bytes,
        )

    def step_s(self) -> Column:
        """Floors on the step, each with its own bubble."""
        return step_s(self.weights, self.candidates.microbatches, self.slowest_s, self.total_s)

    def middle(self) -> NDArray[np.intp]:
        """The candidate in the middle of each mesh."""
        _, starts, counts = np.unique(self.mesh, return_index=True, return_counts=True)
        middle: NDArray[np.intp] = starts + counts // 2
        return middle

    def learn(self, part: NDArray[np.intp], rows: Rows) -> None:
        """Raise the floors of each mesh by what one of its candidates costs."""
        slowest, total = busy_s(rows.costs, rows.candidates.pp, self.n_layers)
        count = rows.candidates.microbatches
        which = np.full(int(self.mesh[-1]) + 1, -1)
        which[self.mesh[part]] = np.arange(len(part))
        of = which[self.mesh]
        known, own = count[of], self.candidates.microbatches
        smaller = np.nonzero((of >= 0) & (own % known == 0))[0]
        larger = np.nonzero((of >= 0) & (known % own == 0))[0]
        # Buffers between stages are as many as virtual ones, and state may grow after the first
        # microbatch.
        alike = (self.candidates.vpp >= rows.candidates.vpp[of]) & ((own > 1) | (known == 1))
        alike = larger[alike[larger]]
        for column, rows_of, new in (
            (self.slowest_s, smaller, slowest * count),
            (self.total_s, smaller, total * count),
            (self.saved_bytes, larger, rows.costs.saved_bytes.min(axis=1)),
        ):
            column[rows_of] = np.maximum(column[rows_of], new[of[rows_of]])
        # What the ends need beyond the others may shrink as these grow: it goes with them.
        raised = alike[rows.costs.fixed_bytes[of[alike]] > self.fixed_bytes[alike]]
        self.fixed_bytes[raised] = rows.costs.fixed_bytes[of[raised]]
        for place in ("embedding", "head"):
            self.state_bytes[place][raised] = rows.costs.state_bytes[place][of[raised]]
