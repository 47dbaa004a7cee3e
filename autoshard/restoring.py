"""A front asked again: the problem and the costs that it names, built from what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from autoshard.answering import AGREE, problem_dict
from autoshard.asking import Constraints
from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.legality import one_row
from autoshard.costmodels.model import Model
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.schedules import SCHEDULES, scheduled
from autoshard.costmodels.workload import Workload
from autoshard.search.check import judge
from autoshard.search.layout import layouts_of
from autoshard.solving import load_profile

if TYPE_CHECKING:
    from autoshard.front import ParetoFront


def problem_of(said: Mapping[str, Any]) -> Problem:
    """The problem that a front says it answers; the inverse of ``problem_dict``.

    Raises:
        SpecError: the values describe no problem.
    """
    try:
        chip = Chip(**{**said["cluster"]["chip"], "pod_axes": _axes(said["cluster"]["chip"])})
        cluster = {**said["cluster"], "chip": chip, "topology": tuple(said["cluster"]["topology"])}
        workload = {f.name: said["workload"][f.name] for f in fields(Workload)}
        limit = said["capacity_bytes"]
        return Problem(
            model=Model(**said["model"]),
            cluster=Cluster(**cluster),
            workload=Workload(**workload),
            recipe=Recipe(**{**said["recipe"], "reshard": tuple(said["recipe"]["reshard"])}),
            memory_limit_bytes=0 if limit == chip.hbm_bytes else limit,
        )
    except (KeyError, TypeError) as error:
        raise SpecError(f"the front's problem cannot be built again ({error}).") from None


def _axes(chip: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(chip["pod_axes"])


def profile_of(front: ParetoFront, problem: Problem, costs: str | Profile | None = None) -> Profile:
    """The costs of a front, which give its plans the times and memories that it says.

    ``costs`` says them where their name does not, and the front was not solved by this process.

    Raises:
        SpecError: they cannot be built again, or price its plans otherwise.
    """
    name = front.problem["costs"]["profile"]
    options = front.problem["costs"].get("options", {})
    costs = front.profile if costs is None else costs
    if costs is not None:
        profile = load_profile(costs, chip_kind=problem.cluster.chip.kind)
    elif name == "textbook":
        from autoshard.costmodels.textbook import textbook

        layer, rule = options["compute"]["layer"], options["overlap"]["rule"]
        profile = textbook(layer=layer, overlap=rule)
    else:
        try:
            stack = front.problem["costs"].get("plans_of") and name.removeprefix("calibrated/")
            profile = load_profile(stack=stack) if stack else load_profile(name)
        except SpecError as error:
            raise SpecError(f"give the costs of the front: {error}") from None
    schedule = front.problem["costs"].get("schedule")
    if costs is None and schedule in SCHEDULES:
        profile = scheduled(profile, schedule)
    again = problem_dict(problem, profile, Constraints())
    again |= {name: front.problem.get(name) for name in ("where", "fix")}
    if json.loads(json.dumps(again)) != json.loads(json.dumps(dict(front.problem))):
        raise SpecError(f"the front was found with other costs ({name}): give them as costs.")
    for point in front.points:
        step_s, memory = judge(problem, profile, point.plan, layout_of(problem, point.plan))
        far = abs(step_s - point.step_time_s) > AGREE * step_s
        if far or abs(memory - point.memory_bytes) > AGREE * memory:
            raise SpecError(
                f"the front was found with other costs ({name}): its plans take other times or "
                "memory; give them as costs."
            )
    return profile


def row_of(problem: Problem, plan: Plan) -> Candidates:
    """The degrees and the layout of a plan as a table of one candidate.

    Raises:
        SpecError: the cluster has no such layout.
    """
    layout = np.array([layout_of(problem, plan)], dtype=np.int64)
    return one_row(plan).replace(layout=layout)


def layout_of(problem: Problem, plan: Plan) -> int:
    """The number of a plan's layout among those of the cluster.

    Raises:
        SpecError: the cluster has no such layout.
    """
    layout = next(layouts_of(problem, plan), None)
    if layout is None:
        raise SpecError(f"no layout of {problem.cluster.name} is {dict(plan.layout)}.")
    return layout
