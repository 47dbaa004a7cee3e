"""Why no other mesh is better: for every mesh of the space and every claim, the bound that says so.

Made after a search, from its claims alone, so that a mistake of the search shows. A mesh is one row
of :func:`autoshard.search.space.meshes`: it stands for all its microbatches and virtual stages.
Bounds are tried from the cheapest to the dearest, until one reaches what is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import Column
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.search import bounds, families, stagewise
from autoshard.search.blocks import wanted_candidates
from autoshard.search.budget_floors import BudgetFloors
from autoshard.search.floors import MeshFloors, mesh_floors, step_s
from autoshard.search.limits import EDGE, Limit, Limits
from autoshard.search.rows import Rows, chunks, price_rows
from autoshard.search.space import Keep, meshes
from autoshard.search.stages import Stage

#: A bound reaches a claim if it is at most this much below it, relatively.
SLACK = 1e-6
#: What an exact answer says: no plan is faster than the claim less this much.
EXACT_SLACK = 2e-7
#: What does not fit is larger than a budget by more than this, relatively.
BYTES_SLACK = 1e-9
#: Sums in another order, relatively: a plan within a budget may come out as so much larger.
FLOAT = 1e-12
#: Meshes given their microbatches and virtual stages in one go.
BLOCK = 20_000

#: What excludes a mesh, from the cheapest argument to the dearest.
KINDS = ("user", "rule", "chips", "peak", "memory", "limit", "mesh", "row", "stage", "exact")
USER, RULE, CHIPS, PEAK, MEMORY, LIMIT, MESH, ROW, STAGE, EXACT = range(len(KINDS))

Kinds = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """No plan within ``budget_bytes``, on at most ``most_chips``, is faster than ``time_s``."""

    budget_bytes: float
    time_s: float
    most_chips: float = np.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusions:
    """``n`` meshes and ``k`` claims, and of each pair what excludes the mesh.

    ``bound_s`` ``[n, k]``: no plan of the mesh within the claim's budget is faster; infinite where
    none fits, NaN where the user or a rule of the framework excludes it, or its chips are too many.
    ``by`` ``[n, k]`` indexes :data:`KINDS`. ``least_bytes`` ``[n]``: no plan of the mesh is
    smaller; NaN where nobody needed to know.
    """

    meshes: Candidates
    least_bytes: Column
    bound_s: Column
    by: Kinds


def exclude(
    problem: Problem,
    profile: Profile,
    claims: list[Claim],
    keep: Keep | None = None,
    limit: Limit | None = None,
) -> Exclusions:
    """Of every mesh of the space, the bounds that prove the claims.

    ``keep`` and ``limit`` are the user's constraints; the claims are of plans that satisfy them.

    Raises:
        AssertionError: a plan is faster than claimed, which is a bug.
    """
    table = meshes(problem)
    limit_s = np.array([claim.time_s for claim in claims]) * (1.0 - SLACK)
    budget = np.array([claim.budget_bytes for claim in claims])
    flops = profile.compute.flops_per_step(problem)
    peak_s = flops / (problem.peak_flops_per_s * table.chips_used)
    bound_s = np.repeat(peak_s[:, None], len(claims), axis=1)
    by = np.full(bound_s.shape, PEAK, dtype=np.uint8)
    least_bytes = np.full(len(table), np.nan)
    stated = _with_rows(problem, profile, table, None)
    wanted = stated if keep is None else _with_rows(problem, profile, table, keep)
    beyond = table.chips_used[:, None] > np.array([claim.most_chips for claim in claims])
    beyond &= wanted[:, None]
    by[~wanted], by[~stated], by[beyond] = USER, RULE, CHIPS
    bound_s[~wanted], bound_s[beyond] = np.nan, np.nan

    open_ = (bound_s < limit_s) & wanted[:, None]
    part = np.nonzero(open_.any(axis=1))[0]
    floors = mesh_floors(problem, profile, table.take(part))
    floor_of = np.zeros(len(table), dtype=np.intp)
    floor_of[part], least_bytes[part] = np.arange(len(part)), floors.memory_bytes
    _put(part, open_, MESH, floors.least_s[:, None], bound_s, by)
    _put(part, open_, MEMORY, _infinite(floors.memory_bytes, budget), bound_s, by)
    open_ &= bound_s < limit_s

    part = np.nonzero(open_.any(axis=1))[0]
    for start in range(0, len(part), BLOCK):
        block = part[start : start + BLOCK]
        closer = _Rows(problem, profile, claims, table.take(block), open_[block], keep, limit)
        closer.bound(floors.take(floor_of[block]))
        least_bytes[block] = np.maximum(least_bytes[block], closer.least_bytes)
        none = np.where(closer.limited, LIMIT, MEMORY)
        kinds = np.where(np.isinf(closer.bound_s), none, closer.by)
        bound_s[block] = np.where(open_[block], closer.bound_s, bound_s[block])
        by[block] = np.where(open_[block], kinds, by[block])
    return Exclusions(meshes=table, least_bytes=least_bytes, bound_s=bound_s, by=by)


def _with_rows(
    problem: Problem, profile: Profile, table: Candidates, keep: Keep | None
) -> NDArray[np.bool_]:
    """Meshes of which the framework's rules and the user's constraint leave a row."""
    there = np.ones(len(table), dtype=np.bool_)
    if keep is None and profile.legality.free:
        return there
    there[:] = False
    for start in range(0, len(table), BLOCK):
        part = table.take(slice(start, start + BLOCK))
        for _, mesh in wanted_candidates(problem, profile, part, keep):
            there[start + mesh] = True
    return there


def _infinite(least_bytes: Column, budget: Column) -> Column:
    """Infinite where a budget is too small, ``[n, k]``; zero elsewhere."""
    small = least_bytes[:, None] > budget * (1.0 + BYTES_SLACK)
    found: Column = np.where(small, np.inf, 0.0)
    return found


def _put(
    part: NDArray[np.intp],
    open_: NDArray[np.bool_],
    kind: int,
    value: Column,
    bound_s: Column,
    by: Kinds,
) -> None:
    """Put a better bound in the place of what is there, for the pairs that are open."""
    better = open_[part] & (value > bound_s[part])
    bound_s[part] = np.where(better, value, bound_s[part])
    by[part] = np.where(better, kind, by[part])


class _Rows:
    """Bounds of some meshes from the rows that they expand to: the least of any row."""

    def __init__(
        self,
        problem: Problem,
        profile: Profile,
        claims: list[Claim],
        table: Candidates,
        open_: NDArray[np.bool_],
        keep: Keep | None,
        limit: Limit | None,
    ) -> None:
        self.problem, self.profile, self.claims, self.open_ = problem, profile, claims, open_
        self.limit_s = np.array([claim.time_s for claim in claims]) * (1.0 - SLACK)
        pieces = list(wanted_candidates(problem, profile, table, keep))
        self.candidates = Candidates.concatenate([candidates for candidates, _ in pieces])
        self.mesh = np.concatenate([mesh for _, mesh in pieces])
        self.limits = Limits.of(limit, problem, profile, self.candidates)
        self.bound_s = np.full(open_.shape, np.inf)
        self.by = np.full(open_.shape, ROW, dtype=np.uint8)
        #: Meshes of which the user's limits on costs exclude a row, not memory alone.
        self.limited = np.zeros(open_.shape, dtype=np.bool_)
        self.least_bytes = np.full(len(open_), np.inf)

    def bound(self, floors: MeshFloors) -> None:
        """Fill in the bounds, given the floors of each mesh."""
        c, of = self.candidates, floors.take(self.mesh)
        weights = self.profile.pipeline(c)
        early_s = step_s(weights, c.microbatches, of.slowest_s, of.total_s)
        last_s = np.where(self.open_, self.limit_s, 0.0).max(axis=1)
        late = early_s >= last_s[self.mesh]
        # The bubble alone makes these rows too slow for every claim; what they hold is not asked.
        self._least(self.mesh[late], np.repeat(early_s[late, None], len(self.claims), axis=1))
        np.minimum.at(self.least_bytes, self.mesh[late], 0.0)
        rest = np.nonzero(~late)[0]
        start = 0
        for piece in chunks(c.take(rest)):
            rows = price_rows(self.problem, self.profile, piece)
            these = rest[start : start + len(rows)]
            mesh = self.mesh[these]
            floor_s = np.maximum(early_s[these], bounds.time_floor_s(rows))
            needs = stagewise.smallest_bytes(rows, self.profile) * (1.0 - bounds.SLACK)
            np.minimum.at(self.least_bytes, mesh, needs)
            found = np.repeat(floor_s[:, None], len(self.claims), axis=1)
            nearer = stagewise.StageFloors(rows, self.profile)
            for k in range(len(self.claims)):
                small = needs > self.claims[k].budget_bytes * (1.0 + BYTES_SLACK)
                found[small, k] = np.inf
                self._raise(k, nearer, these, needs, found[:, k])
            self._least(mesh, found)
            start += len(rows)

    def _least(self, mesh: NDArray[np.intp], found: Column) -> None:
        np.minimum.at(self.bound_s, mesh, found)

    def _raise(
        self,
        k: int,
        nearer: stagewise.StageFloors,
        these: NDArray[np.intp],
        needs: Column,
        found: Column,
    ) -> None:
        """Raise the bounds of rows that are below a claim, by one method after the other.

        ``these`` are the rows' places, ``needs`` the least memory of each. A row of which no plan
        is within the user's limits has an infinite bound.
        """
        claim, rows, mesh = self.claims[k], nearer.rows, self.mesh[these]
        latest_s, most_bytes = self.limits.latest_s[these], self.limits.most_bytes[these]

        def left(some: NDArray[np.intp]) -> NDArray[np.intp]:
            late = found[some] > latest_s[some] * (1.0 + BYTES_SLACK)
            late |= needs[some] > most_bytes[some] * (1.0 + BYTES_SLACK)
            self.limited[mesh[some[late]], k] = True
            found[some[late]] = np.inf
            open_: NDArray[np.intp] = some[found[some] < self.limit_s[k]]
            return open_

        todo = left(np.nonzero((found < self.limit_s[k]) & self.open_[mesh, k])[0])
        if not len(todo):
            return
        budget = min(claim.budget_bytes, float(most_bytes[todo].max())) * (1.0 + BYTES_SLACK)
        legality = self.profile.legality
        within = BudgetFloors.of(rows.take(todo), legality.remat).time_s(budget)
        found[todo] = np.maximum(found[todo], within)
        todo = left(todo)
        if not len(todo):
            return
        self.by[mesh[todo], k] = np.maximum(self.by[mesh[todo], k], STAGE)
        within = nearer.time_s(todo, budget)
        found[todo] = np.maximum(found[todo], within)
        answers: set[tuple[bytes, float, float]] = set()
        for row in left(todo).tolist():
            self.by[mesh[row], k] = EXACT
            latest, most = latest_s[row] * (1.0 + EDGE), min(claim.budget_bytes, most_bytes[row])
            within_limits = Claim(budget_bytes=most, time_s=min(claim.time_s, latest))
            self._exact(rows, row, within_limits, answers)
            self.limited[mesh[row], k] |= latest < claim.time_s
            found[row] = np.inf if latest < claim.time_s else claim.time_s * (1.0 - EXACT_SLACK)

    def _exact(
        self, rows: Rows, row: int, claim: Claim, answers: set[tuple[bytes, float, float]]
    ) -> None:
        """Ask for the exact answer to one row, which must not be faster than claimed."""
        c = rows.candidates
        held = self.profile.pipeline.in_flight(
            int(c.pp[row]), int(c.vpp[row]), int(c.microbatches[row])
        )
        stage = Stage.of(rows, row, held)
        least_s = claim.time_s * (1.0 - EXACT_SLACK)
        key = (stage.key, claim.budget_bytes, claim.time_s)
        if key not in answers:
            budget = claim.budget_bytes * (1.0 + FLOAT)
            leaf = families.fastest(stage, self.profile.legality, budget, least_s)
            if leaf is not None:
                degrees = {name: int(getattr(c, name)[row]) for name in c.__slots__}
                raise AssertionError(
                    f"within {claim.budget_bytes} bytes a step of {leaf.time_s} s is possible, "
                    f"faster than the bound of {claim.time_s} s: {degrees}"
                )
            answers.add(key)
