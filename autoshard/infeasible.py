"""Why there is no plan: the constraints that bind, and the nearest changes that work."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from autoshard.asking import Constraints
from autoshard.costmodels.errors import Infeasible
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.diagnosis import BATCH, CHIPS, MEMORY, Diagnosis, conditions_of, diagnose
from autoshard.fixing import possible, why_no_plan_has
from autoshard.search.blocks import EXPANDED_COLUMNS, expansions, mesh_blocks
from autoshard.search.front import Options, solve_front
from autoshard.search.prune import least_memory
from autoshard.sizes import format_bytes, format_seconds
from autoshard.unmet import binding_words, model_flops_share
from autoshard.where import column


def why_infeasible(problem: Problem, profile: Profile, options: Options, asked: Constraints) -> str:
    """A few sentences: what no plan satisfies, and what would work."""
    legality = profile.legality
    stated = "" if legality.free else f" that {legality.framework} can state"
    if options.constrain_master is not None or options.constrain_stages is not None:
        too = f" and {asked.words}" if asked.words else ""
        return f"no plan{stated} satisfies the constraints that were added to the models{too}."
    if asked.fix and asked.where is None:
        unknown = why_no_plan_has(problem, profile.virtual, asked.fix)
        if unknown is not None:
            return unknown
    if options.limit is not None:
        nearest = _nearest(problem, profile, options)
        if nearest is not None:
            rest = "" if options.keep is None else " that satisfies the rest of it"
            said = f"no plan{stated} satisfies {asked.words}: of every plan{rest}, {nearest}."
            return f"{said} {binding_words(problem, profile, options, asked)}".rstrip()
    found = diagnose(problem, profile, asked.expression, asked.fix)
    words = asked.words
    if options.limit is not None:  # what is diagnosed leaves out conditions on predicted columns
        named = conditions_of(asked.expression, asked.fix)
        words = " and ".join(w if w.startswith("--fix") else f"--where {w!r}" for w in named)
    sentences = _sentences(problem, found, asked, stated, words)
    if options.limit is not None:
        sentences.append("The conditions on what plans cost come on top of that.")
    return " ".join(sentences)


def _sentences(
    problem: Problem, found: Diagnosis, asked: Constraints, stated: str, words: str
) -> list[str]:
    said = []
    if math.isinf(found.least_bytes) and words:
        said.append(f"no plan{stated} satisfies {words}{_values(problem, found, asked)}.")
    elif math.isinf(found.least_bytes):
        said.append(f"there is no plan{stated}.")
    else:
        satisfied = f" that satisfies {words}" if words else ""
        said.append(
            f"{problem.model.name} does not fit on {problem.cluster.name}: the smallest plan"
            f"{stated}{satisfied} needs {format_bytes(found.least_bytes)} per chip, and "
            f"{format_bytes(problem.capacity_bytes)} are there."
        )
    names = [_constraint(problem, name) for name in found.binding]
    if len(names) > 1:
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        said.append(f"What binds is {listed} together: without any one of them there is a plan.")
    elif found.binding == (MEMORY,):
        said.append("Neither more chips nor another batch is known to help.")
    if found.least_bytes <= problem.cluster.chip.hbm_bytes:
        said.append(f"A memory limit of {_gib_above(found.least_bytes)} would do.")
    elif found.binding == (MEMORY,):
        said.append("It needs a larger memory limit, on chips with more memory.")
    if found.fewest_chips is not None:
        fewest = ", and no fewer" if found.chips_exact else ""
        said.append(f"{found.fewest_chips:,} chips would do{fewest}.")
    batches = [n for n in (found.smaller_batch, found.larger_batch) if n is not None]
    if batches:
        said.append(f"A batch of {' or '.join(f'{n:,}' for n in batches)} sequences would do.")
    return said


def _constraint(problem: Problem, name: str) -> str:
    """A constraint as the user knows it."""
    if name == MEMORY:
        limited = "the memory limit of" if problem.memory_limit_bytes else "the memory of a chip,"
        return f"{limited} {format_bytes(problem.capacity_bytes)}"
    if name == CHIPS:
        return f"the cluster of {problem.cluster.chips:,} chips"
    if name == BATCH:
        return f"the batch of {problem.workload.global_batch_seqs:,} sequences"
    return repr(name)


def _gib_above(size: float) -> str:
    """A size that is enough, rounded up, to paste back."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= factor:
            return f"{math.ceil(size / factor * 100) / 100:g}{unit}"
    return f"{math.ceil(size)}B"


def _values(problem: Problem, found: Diagnosis, asked: Constraints) -> str:
    """What the columns of the conditions that bind can be."""
    conditions = conditions_of(asked.expression, asked.fix)
    names = sorted(set().union(*(conditions[w].reads for w in found.binding if w in conditions)))
    seen: dict[str, set[int]] = {name: set() for name in names}
    for table in mesh_blocks(problem):
        expands = EXPANDED_COLUMNS & set(names)
        for candidates in (c for c, _ in expansions(problem, table)) if expands else (table,):
            for name in names:
                seen[name].update(np.unique(column(candidates, name)).tolist())
    return "".join(f"; {possible(name, values)}" for name, values in seen.items())


def _nearest(problem: Problem, profile: Profile, options: Options) -> str | None:
    """What can be had without limits on predicted costs, in words; None where there is no plan."""
    free = dataclasses.replace(
        options, limit=None, points=1, objectives=("time",), progress=None, time_limit_s=None
    )
    try:
        best = solve_front(problem, profile, free).points[0]
    except Infeasible:
        return None
    mfu = model_flops_share(problem, profile, best)
    least = least_memory(problem, profile, options.keep)
    return (
        f"the fastest takes {format_seconds(best.step_time_s)} a step (MFU {mfu * 100:.1f} % on "
        f"{best.plan.chips_used:,} chips) with {format_bytes(best.memory_bytes)} per chip, and the "
        f"smallest needs {format_bytes(least)}"
    )
