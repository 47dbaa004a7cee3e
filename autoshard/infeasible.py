"""Why there is no plan: the rule that binds, and the nearest change that works."""

from __future__ import annotations

import dataclasses

import numpy as np

from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.search.front import Options
from autoshard.search.space import expand, meshes
from autoshard.sizes import format_bytes


def why_infeasible(problem: Problem, profile: Profile, options: Options, where: str | None) -> str:
    """One or two sentences: what no plan satisfies, and what would work."""
    model, cluster = problem.model, problem.cluster
    table, _ = expand(problem, meshes(problem), virtual=profile.virtual)
    if options.keep is not None and not options.keep(table).any():
        return f"no plan satisfies --where {where!r}; {_values(table, where or '')}."
    if options.constrain_master is not None or options.constrain_stages is not None:
        return "no plan satisfies the constraints that were added to the models."
    least = least_memory_bytes(problem, profile, options)
    needs = f"{model.name} does not fit on {cluster.name}: the smallest plan"
    if where is not None:
        needs += f" that satisfies --where {where!r}"
    there = format_bytes(problem.capacity_bytes)
    needs += f" needs {format_bytes(least)} per chip, and {there} are there."
    bigger = _enough_chips(problem, profile, options)
    if bigger is None:
        return needs + " More chips of this kind would not help: give a larger memory limit."
    return needs + f" {bigger:,} chips would do."


def least_memory_bytes(problem: Problem, profile: Profile, options: Options) -> float:
    """The least memory per chip of any plan, whatever the capacity."""
    from autoshard.search.prune import least_memory

    return least_memory(problem, profile, options.keep)


def _values(table: object, where: str) -> str:
    """What the columns that a constraint names can be."""
    from autoshard.where import NAMES, column

    said = []
    for name in NAMES:
        if name in where.replace("(", " ").replace(")", " ").split() or f"{name}" in where:
            values = np.unique(column(table, name))  # type: ignore[arg-type]
            shown = ", ".join(str(v) for v in values[:12].tolist())
            more = f", ... up to {values[-1]}" if len(values) > 12 else ""
            said.append(f"{name} can be {shown}{more}")
    return "; ".join(said) or "loosen it"


def _enough_chips(problem: Problem, profile: Profile, options: Options) -> int | None:
    """The least doubling of the cluster on which a plan fits; None above 2**20 chips."""
    cluster = problem.cluster
    chips = cluster.chips
    while (chips := 2 * chips) <= 2**20:
        try:
            grown = _grown(cluster, chips)
        except SpecError:
            continue
        asked = dataclasses.replace(problem, cluster=grown)
        if least_memory_bytes(asked, profile, options) <= problem.capacity_bytes:
            return chips
    return None


def _grown(cluster: Cluster, chips: int) -> Cluster:
    pods = None if cluster.chip.kind == "tpu" else cluster.pods
    return Cluster.build(cluster.chip, chips=chips, pods=pods)
