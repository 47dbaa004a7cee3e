"""What a framework's rules cost, and which of its flags a plan wants: sentences for the answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from autoshard.costmodels.calibrated_comms import CalibratedComms
from autoshard.costmodels.errors import Infeasible
from autoshard.costmodels.legality import one_row
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.torus import splits
from autoshard.search.budget import Point
from autoshard.search.front import Options, solve_front
from autoshard.search.layout import layouts_of
from autoshard.sizes import format_seconds
from autoshard.words import percent, plan_words


def unstatable(problem: Problem, profile: Profile, plan: Plan) -> list[str]:
    """Why the profile's framework cannot state a plan, in sentences; none where it can."""
    legality = profile.legality
    ladder = profile.whole_ladder or profile.ladder
    return legality.reasons(problem, one_row(plan))[0] + list(legality.stage_reasons(plan, ladder))


def restriction_notes(
    problem: Problem, profile: Profile, options: Options, best: Point
) -> Iterator[str]:
    """What the framework's rules cost: one search for the fastest plan without them.

    Nothing where the search was constrained otherwise, or has no time left.
    """
    legality = profile.legality
    left = options.time_limit_s
    constrained = options.constrain_master or options.constrain_stages
    if legality.free or constrained or (left is not None and left <= 0):
        return
    asked = replace(options, points=1, progress=None, known_s=best.step_time_s)
    try:
        result = solve_front(problem, profile.unrestricted, asked)
    except Infeasible:
        return
    if not result.points or not result.complete:
        return
    fastest = result.points[0]
    faster = best.step_time_s / fastest.step_time_s - 1.0
    if faster <= options.gap + 1e-9:
        if best.proven:
            more = f" by more than {percent(options.gap)}" if options.gap else ""
            yield f"The rules of {legality.framework} cost nothing: no plan is faster{more}."
        return
    reasons = unstatable(problem, profile, fastest.plan)
    yield (
        f"Without the rules of {legality.framework}: {format_seconds(fastest.step_time_s)} a step, "
        f"{percent(faster)} faster, with {plan_words(fastest.plan)}; but {'; '.join(reasons)}."
    )


def torus_notes(problem: Problem, profile: Profile, plan: Plan) -> Iterator[str]:
    """Which flag or slice a TPU plan wants from the framework, beside its degrees."""
    cluster, flag = problem.cluster, profile.legality.split_axes_flag
    if cluster.chip.kind != "tpu" or not flag:
        return
    name = profile.legality.framework
    used = plan.chips_used // plan.pods
    if used != cluster.pod_chips:
        yield (
            f"A mesh of {name} takes every chip of its slice: this plan wants slices of {used:,} "
            "chips."
        )
        return
    degrees = [plan.batch_split, plan.seq_split, plan.tp, plan.pp, plan.cp]
    if not whole_dimensions([d for d in degrees if d > 1], cluster.topology):
        shape = "x".join(str(length) for length in cluster.topology)
        yield f"The degrees are not products of whole dimensions of {shape}: set {flag}."


def split_notes(problem: Problem, profile: Profile, plan: Plan) -> Iterator[str]:
    """Which dimensions of a torus the plan splits, where its costs know that."""
    if problem.cluster.chip.kind != "tpu" or not isinstance(profile.comms, CalibratedComms):
        return
    layout = next(layouts_of(problem, plan), 0)
    row = one_row(plan)
    parts = splits(problem.cluster, row.replace(layout=np.full_like(row.layout, layout)))[0]
    if parts:
        said = ", ".join(
            f"{part.axis} has {part.taken} of the {part.length} chips along {part.dimension}"
            for part in parts
        )
        yield (
            f"Dimensions of the torus are split: {said}. A part is priced as a line without "
            "wrap-around, and those who share a dimension share its links."
        )


def whole_dimensions(degrees: Sequence[int], topology: Sequence[int]) -> bool:
    """Whether each degree is the product of dimensions of the torus of its own."""
    for owners in itertools.product(range(len(degrees) + 1), repeat=len(topology)):
        made = [
            math.prod(n for n, owner in zip(topology, owners, strict=True) if owner == index)
            for index in range(len(degrees))
        ]
        if made == list(degrees):
            return True
    return not degrees
