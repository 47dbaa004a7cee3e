"""The answer: every plan judged again, where its time goes, what it can be stated in, and notes.

The search is over here. Ctrl-C ends what is said about its plans, never the plans.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

import numpy as np

from autoshard.asking import Constraints
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import CostModel, Evidence, Profile
from autoshard.costmodels.schedules import schedule_name
from autoshard.expressible import Statements
from autoshard.front import FrontPoint, ParetoFront
from autoshard.idle import idle_notes
from autoshard.pricing import judged_point
from autoshard.search.check import uneven_chunks
from autoshard.search.front import Options, Result
from autoshard.stack_notes import restriction_notes, split_notes, torus_notes
from autoshard.statement import Statement

#: The judge and the search must agree to this relative difference.
AGREE = 1e-6
#: Longer fronts say on demand what their plans can be stated in.
STATED = 20
CUT_SHORT = (
    "Interrupted after the search: the plans and their proofs are whole, and what else there is to "
    "say of them is missing."
)


def answer(
    problem: Problem, profile: Profile, options: Options, result: Result, asked: Constraints
) -> ParetoFront:
    """The front that a search has found, dressed."""
    interrupted, notes = False, []
    started = time.monotonic()
    try:
        evidence, points = _judged(problem, profile, result, asked)
    except KeyboardInterrupt:
        # It takes a fraction of a second, and without it there is no answer.
        interrupted = True
        evidence, points = _judged(problem, profile, result, asked)
    result.tally.seconds["judge"] = time.monotonic() - started
    if not interrupted:
        try:
            for note in _notes(problem, profile, options, result, points):
                notes += [note]  # one by one: those that Ctrl-C finds are kept
        except KeyboardInterrupt:
            interrupted = True
    search = {
        "complete": result.complete,
        "gap": options.gap,
        "points": options.points,
        "objectives": list(options.objectives),
        "constrained": bool(options.constrain_master or options.constrain_stages),
        **asdict(result.tally),
    }
    return ParetoFront(
        problem=problem_dict(problem, profile, asked),
        points=tuple(points),
        search=search,
        notes=(
            *notes,
            *evidence_notes(evidence, points, "the fastest plan"),
            *([CUT_SHORT] if interrupted else []),
        ),
        profile=profile,
    )


def _judged(
    problem: Problem, profile: Profile, result: Result, asked: Constraints
) -> tuple[Evidence, list[FrontPoint]]:
    """Judge every point again, and say where its time goes and how well its costs are known."""
    rows = np.array([point.row for point in result.points])
    evidence = profile.evidence(problem, result.rows.candidates.take(rows))
    points = []
    for point in result.points:
        row = result.rows.candidates.take(slice(point.row, point.row + 1))
        judged = judged_point(
            problem,
            profile,
            point.plan,
            row,
            lower_bound_s=point.lower_bound_s,
            proven=point.proven,
            factors=evidence.interval,
        )
        outside = uneven_chunks(problem, point.plan)
        if outside:
            raise AssertionError(f"the search chose {point.plan}: {outside[0]}")
        step_s, memory = judged.step_time_s, judged.memory_bytes
        if (
            abs(step_s - point.step_time_s) > AGREE * step_s
            or abs(memory - point.memory_bytes) > AGREE * memory
        ):
            raise AssertionError(
                f"the judge disagrees with the search on {point.plan}: "
                f"{step_s} s and {memory} bytes, not {point.step_time_s} s and {point.memory_bytes}"
            )
        if memory > problem.capacity_bytes * (1.0 + AGREE):
            raise AssertionError(
                f"the search chose {point.plan}, whose {memory} bytes exceed the "
                f"{problem.capacity_bytes} of a chip"
            )
        if asked.predicted is not None:
            asked.predicted.check_found(problem, profile, row, step_s, memory)
        stated: Mapping[str, Statement] = {}
        if profile.legality.free and len(result.points) <= STATED:
            stated = Statements(
                problem=problem,
                profile=profile,
                row=result.rows.take(np.array([point.row])),
                plan=point.plan,
                memory_bytes=memory,
                step_time_s=step_s,
            )
        points.append(replace(judged, expressible_in=stated))
    return evidence, points


def _notes(
    problem: Problem,
    profile: Profile,
    options: Options,
    result: Result,
    points: Sequence[FrontPoint],
) -> Iterator[str]:
    """Sentences on rules, split dimensions and idle chips, some of which take a search."""
    best = result.points[0]
    if not profile.legality.free and result.complete:
        with result.tally.timed("without the stack's rules"):
            rules = [
                *restriction_notes(problem, profile, options, best),
                *torus_notes(problem, profile, best.plan),
            ]
        yield from rules
    yield from split_notes(problem, profile, best.plan)
    yield from idle_notes(
        problem,
        profile,
        points[0].plan,
        proven=points[0].proven,
        gap=points[0].gap,
        step_time_s=points[0].step_time_s,
        keep=options.keep,
        limit=options.limit,
    )


def evidence_notes(evidence: Evidence, points: Sequence[FrontPoint], first: str) -> Iterator[str]:
    """Which plans the costs cannot tell apart, where constants are from, and what is guessed.

    ``first`` is what the first plan is called.
    """
    if evidence.interval is not None:
        _, high = evidence.interval
        error = high - 1.0
        near = sum(p.step_time_s <= points[0].step_time_s * (1.0 + error) for p in points)
        if near > 1:
            yield (
                f"The first {near} plans lie within the error of the cost models "
                f"({error * 100:.3g} % for four of five runs like these): measure before choosing "
                "between them by time."
            )
    yield from evidence.notes
    if evidence.guessed:
        yield f"Guessed, because no published run fixes them: {_some(evidence.guessed)}."
    if evidence.unmeasured:
        yield f"Outside of what was measured, in {first}: {_some(evidence.unmeasured)}."


def _some(words: Sequence[str], most: int = 2) -> str:
    """The first few, and how many more there are."""
    more = len(words) - most
    return "; ".join(words[:most]) + (f"; and {more} more" if more > 0 else "")


def problem_dict(problem: Problem, profile: Profile, asked: Constraints) -> dict[str, Any]:
    """The resolved problem as plain values: enough to read it, and to ask it again."""
    cluster, workload = problem.cluster, problem.workload
    chip = asdict(cluster.chip)
    chip.pop("sources")
    chip["pod_axes"] = list(cluster.chip.pod_axes)
    framework = None if profile.legality.free else profile.legality.framework
    costs: dict[str, Any] = {"profile": profile.name, "plans_of": framework}
    costs |= {"schedule": schedule_name(profile)}
    costs |= {model.role: model.name for model in profile.models}
    if profile.origin:
        costs["calibration"] = dict(profile.origin)
    costs["options"] = {model.role: _options_of(model) for model in profile.models}
    return {
        "model": asdict(problem.model),
        "cluster": {
            "name": cluster.name,
            "chip": chip,
            "chips": cluster.chips,
            "pods": cluster.pods,
            "topology": list(cluster.topology),
        },
        "workload": {**asdict(workload), "global_batch_tokens": workload.global_batch_tokens},
        "recipe": asdict(problem.recipe) | {"reshard": list(problem.recipe.reshard)},
        "capacity_bytes": problem.capacity_bytes,
        "costs": costs,
        "where": asked.where,
        "fix": dict(asked.fix),
    }


def _options_of(model: CostModel) -> dict[str, Any]:
    """The settings of a cost model that are plain values."""
    if not is_dataclass(model):
        return {}
    said = ("name", "role", "covers")
    values = {f.name: getattr(model, f.name) for f in fields(model) if f.name not in said}
    return {k: v for k, v in values.items() if isinstance(v, (str, int, float, bool))}
