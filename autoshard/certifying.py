"""A certificate: of every mesh of the space, the bound that excludes it at each point of a front.

The front is plain data, so the problem and its costs are built again from what it says, and its
plans are priced again before anything is certified about them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoshard.asking import Constraints, read_constraints
from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.model import Model
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.workload import Workload
from autoshard.front import ParetoFront
from autoshard.search.certificate import BYTES_SLACK, KINDS, SLACK, Claim, Exclusions, exclude
from autoshard.search.check import judge
from autoshard.search.layout import layouts_of
from autoshard.search.space import Keep
from autoshard.solving import AGREE, load_profile, problem_dict

if TYPE_CHECKING:
    import polars as pl

SCHEMA = "autoshard.certificate/1"

#: What tells one mesh from another; the rest of a plan is what the search decides under it.
MESH = ("dp", "batch_split", "seq_split", "tp", "pp", "cp", "reshard", "pods", "layout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What is claimed (``head``, plain values) and the bounds that prove it, one row a mesh."""

    head: Mapping[str, Any]
    exclusions: Exclusions

    @property
    def frame(self) -> pl.DataFrame:
        """One row a mesh; of each point ``k`` a bound ``bound_s_k`` and its kind ``by_k``."""
        import polars as pl

        found = self.exclusions
        columns = {name: getattr(found.meshes, name) for name in MESH}
        frame = pl.DataFrame({**columns, "least_bytes": found.least_bytes}, nan_to_null=True)
        kinds = pl.Enum([*KINDS, "chosen"])
        for k, point in enumerate(self.head["points"]):
            words = np.array(KINDS, dtype=object)[found.by[:, k]]
            words[point["mesh"]] = "chosen"
            frame = frame.with_columns(
                pl.Series(f"bound_s_{k}", found.bound_s[:, k], nan_to_null=True),
                pl.Series(f"by_{k}", words.tolist(), dtype=kinds),
            )
        return frame

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON form; an infinite bound is the text ``inf``."""
        columns = self.frame.to_dict(as_series=False)
        for values in (v for name, v in columns.items() if name.startswith("bound_s_")):
            values[:] = ["inf" if value == float("inf") else value for value in values]
        return {**self.head, "meshes": columns}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, ``.json`` or ``.parquet`` (the head as metadata ``autoshard``)."""
        if os.fspath(path).lower().endswith(".json"):
            Path(path).write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")
        elif os.fspath(path).lower().endswith(".parquet"):
            self.frame.write_parquet(Path(path), metadata={"autoshard": json.dumps(self.head)})
        else:
            raise SpecError(f"certificate {os.fspath(path)}: the ending must be .parquet or .json.")


def certify(
    front: ParetoFront,
    *,
    costs: str | Profile | None = None,
    where: str | pl.Expr | None = None,
) -> Certificate:
    """The certificate of a front.

    Args:
        front: what a search found, of this session or loaded from a file.
        costs: the profile of the front, where its name does not say all of it.
        where: the constraint of the front, where it was not text.

    Raises:
        SpecError: the search was stopped or constrained by functions, so that there is none; or the
            front's costs or constraint cannot be built again and are not given.
    """
    if not front.complete:
        raise SpecError(
            "the search was stopped before its end, and there is no certificate of that; give it "
            "more time."
        )
    if front.search.get("constrained"):
        raise SpecError(
            "functions constrained the models of the search, and there is no certificate of what "
            "they exclude; say it with where."
        )
    if "chips" in front.search.get("objectives", ()):
        raise SpecError("a certificate is of time and memory; leave chips out of the objectives.")
    problem = problem_of(front.problem)
    profile = _profile(front, problem, costs)
    keep = _keep(front, where, problem, profile)
    claims = [Claim(budget_bytes=p.memory_bytes, time_s=p.lower_bound_s) for p in front.points]
    found = exclude(problem, profile, claims, keep)
    points = [
        {
            "plan": point.plan.to_dict(),
            "mesh": _mesh_of(problem, point.plan, found.meshes),
            **{name: getattr(point, name) for name in _SAID},
        }
        for point in front.points
    ]
    head = {
        "schema": SCHEMA,
        "problem": dict(front.problem),
        "gap": front.search["gap"],
        "slack": SLACK,
        "bytes_slack": BYTES_SLACK,
        "points": points,
    }
    return Certificate(head=head, exclusions=found)


_SAID = ("step_time_s", "memory_bytes", "lower_bound_s", "gap", "proven")


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


def _profile(front: ParetoFront, problem: Problem, costs: str | Profile | None) -> Profile:
    """The costs of a front, which give its plans the times and memories that it says."""
    name = front.problem["costs"]["profile"]
    options = front.problem["costs"].get("options", {})
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
    again = problem_dict(problem, profile, Constraints())
    again |= {name: front.problem.get(name) for name in ("where", "fix")}
    if json.loads(json.dumps(again)) != json.loads(json.dumps(dict(front.problem))):
        raise SpecError(f"the front was found with other costs ({name}): give them as costs.")
    for point in front.points:
        step_s, memory = judge(problem, profile, point.plan, _layout_of(problem, point.plan))
        far = abs(step_s - point.step_time_s) > AGREE * step_s
        if far or abs(memory - point.memory_bytes) > AGREE * memory:
            raise SpecError(
                f"the front was found with other costs ({name}): its plans take other times or "
                "memory; give them as costs."
            )
    return profile


def _keep(
    front: ParetoFront, where: str | pl.Expr | None, problem: Problem, profile: Profile
) -> Keep | None:
    """The constraint of a front, from its text or as it was given."""
    said = front.problem["where"]
    if where is not None and str(where) != said:
        raise SpecError(f"the front was found under another constraint: where = {said!r}.")
    try:
        asked = read_constraints(
            said if where is None else where, front.problem.get("fix"), problem, profile
        )
    except SpecError as error:
        if where is not None:
            raise
        raise SpecError(f"give the constraint of the front as where: {error}") from None
    if asked.predicted is not None:
        raise SpecError(
            f"the constraint {said!r} is on what plans cost, and there is no certificate of that."
        )
    return asked.keep


def _layout_of(problem: Problem, plan: Plan) -> int:
    layout = next(layouts_of(problem, plan), None)
    if layout is None:
        raise SpecError(f"no layout of {problem.cluster.name} is {dict(plan.layout)}.")
    return layout


def _mesh_of(problem: Problem, plan: Plan, table: Candidates) -> int:
    """The row of a plan's mesh."""
    there = np.isin(table.layout, list(layouts_of(problem, plan)))
    for name in MESH[:-1]:
        there &= getattr(table, name) == getattr(plan, name)
    return int(np.nonzero(there)[0][0])
