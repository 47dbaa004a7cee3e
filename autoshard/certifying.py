"""A certificate: of every mesh of the space, the bound that excludes it at each point of a front.

The front is plain data, so the problem and its costs are built again from what it says, and its
plans are priced again before anything is certified about them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoshard.asking import Constraints, read_constraints
from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.front import ParetoFront
from autoshard.restoring import problem_of, profile_of
from autoshard.search.certificate import BYTES_SLACK, KINDS, SLACK, Claim, Exclusions, exclude
from autoshard.search.layout import layouts_of

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
    problem = problem_of(front.problem)
    profile = profile_of(front, problem, costs)
    asked = _constraints(front, where, problem, profile)
    by_chips = "chips" in front.objectives
    claims = [
        Claim(
            budget_bytes=point.memory_bytes,
            time_s=point.lower_bound_s,
            most_chips=point.plan.chips_used if by_chips else np.inf,
        )
        for point in front.points
    ]
    found = exclude(problem, profile, claims, asked.keep, asked.predicted)
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
        "objectives": list(front.objectives),
        "slack": SLACK,
        "bytes_slack": BYTES_SLACK,
        "points": points,
    }
    return Certificate(head=head, exclusions=found)


_SAID = ("step_time_s", "memory_bytes", "lower_bound_s", "gap", "proven")


def _constraints(
    front: ParetoFront, where: str | pl.Expr | None, problem: Problem, profile: Profile
) -> Constraints:
    """The constraints of a front, from their text or as they were given."""
    said = front.problem["where"]
    if where is not None and str(where) != said:
        raise SpecError(f"the front was found under another constraint: where = {said!r}.")
    try:
        return read_constraints(
            said if where is None else where, front.problem.get("fix"), problem, profile
        )
    except SpecError as error:
        if where is not None:
            raise
        raise SpecError(f"give the constraint of the front as where: {error}") from None


def _mesh_of(problem: Problem, plan: Plan, table: Candidates) -> int:
    """The row of a plan's mesh."""
    there = np.isin(table.layout, list(layouts_of(problem, plan)))
    for name in MESH[:-1]:
        there &= getattr(table, name) == getattr(plan, name)
    return int(np.nonzero(there)[0][0])
