"""Plans that a front beat, for a picture: even plans of a sample of the meshes of the space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autoshard.asking import read_constraints
from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.costs import Column
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.search.blocks import kept_meshes, mesh_blocks, wanted_candidates
from autoshard.search.bounds import uniform_plans
from autoshard.search.limits import Limit, Limits
from autoshard.search.rows import chunks, price_rows

if TYPE_CHECKING:
    from autoshard.front import ParetoFront

#: Meshes whose plans are priced: every so many of the space, in its own order.
MESHES = 1_500


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherPlans:
    """Plans that are not on the front, ``[n]``: the fastest even plan of each sampled mesh.

    Even: layers dealt evenly to the stages, one remat rung for all of them. ``rung`` names it.
    Memory charges a middle stage as one with the most layers and the most microbatches in flight.
    """

    candidates: Candidates
    step_time_s: Column
    memory_bytes: Column
    rung: tuple[str, ...]
    meshes: int

    def __len__(self) -> int:
        return len(self.step_time_s)


def other_plans(front: ParetoFront, problem: Problem, profile: Profile) -> OtherPlans:
    """Even plans of the space of a front that fit, under its constraints.

    ``meshes`` is how many meshes were looked at. Of a space in blocks it is the first, whose meshes
    use most chips.

    Raises:
        SpecError: the constraints of the front cannot be read from what it says.
    """
    if front.search.get("constrained"):
        raise SpecError("functions constrained the search, and what they exclude is not known.")
    said = front.problem
    asked = read_constraints(said.get("where"), said.get("fix"), problem, profile)
    table = kept_meshes(problem, profile, next(mesh_blocks(problem)), asked.keep)
    if len(table) > MESHES:
        table = table.take(np.linspace(0, len(table) - 1, MESHES).astype(np.intp))
    found: list[Candidates] = []
    costs: list[Column] = []
    ladder = profile.ladder
    for piece, mesh in wanted_candidates(problem, profile, table, asked.keep):
        seconds, memory, rung = _even_plans(problem, profile, piece, asked.predicted)
        # The fastest of each mesh.
        order = np.lexsort((memory, seconds, mesh))
        first = order[np.unique(mesh[order], return_index=True)[1]]
        first = first[np.isfinite(seconds[first])]
        found.append(piece.take(first))
        costs.append(np.stack([seconds[first], memory[first], rung[first]]))
    seconds, memory, rung = np.concatenate([np.zeros((3, 0)), *costs], axis=1)
    empty = Candidates(**{name: np.zeros(0, dtype=np.int64) for name in COLUMNS})
    return OtherPlans(
        candidates=Candidates.concatenate([empty, *found]),
        step_time_s=seconds,
        memory_bytes=memory,
        rung=tuple(ladder[int(i)].name for i in rung),
        meshes=len(table),
    )


def _even_plans(
    problem: Problem, profile: Profile, piece: Candidates, limit: Limit | None
) -> tuple[Column, Column, Column]:
    """Seconds, bytes and rung of each candidate's fastest even plan, ``[n]``; infinite for none."""
    parts = [np.zeros((3, 0))]
    for part in chunks(piece):
        seconds, memory = uniform_plans(price_rows(problem, profile, part))
        limits = Limits.of(limit, problem, profile, part)
        seconds = limits.allowed_s(seconds, memory)
        seconds[memory > problem.capacity_bytes] = np.inf
        if profile.legality.equal_stages:
            seconds[problem.model.n_layers % part.pp != 0] = np.inf
        rung = seconds.argmin(axis=1)
        rows = np.arange(len(part))
        parts.append(np.stack([seconds[rows, rung], memory[rows, rung], rung.astype(np.float64)]))
    seconds, memory, rung = np.concatenate(parts, axis=1)
    return seconds, memory, rung
