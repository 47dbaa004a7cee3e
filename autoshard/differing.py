"""What separates two plans, term by term: degrees, seconds, bytes, and the problems they answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoshard.breakdown import step_parts
from autoshard.costmodels.checks import shown
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.plan import Plan
from autoshard.evaluating import SCHEMA as EVALUATION
from autoshard.evaluating import Evaluation
from autoshard.front import SCHEMA as FRONT
from autoshard.front import FrontPoint, ParetoFront
from autoshard.solved import SolvedPlan

SCHEMA = "autoshard.diff/1"

#: What is compared of a plan, in the order in which people say it.
DEGREES = (
    *("chips_used", "dp", "fsdp", "batch_split", "seq_split", "tp", "cp", "ep", "pp", "vpp"),
    *("microbatches", "micro_batch_size", "reshard", "pods", "layers_per_stage", "remat", "layout"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two plans ``a`` and ``b``; every difference is ``b`` less ``a``.

    ``degrees`` are the values that differ; ``problem`` what differs between the problems, by the
    path of the value, and is empty where the points came without a problem. ``parts_s`` are the
    seconds of both steps by part: their differences add up to that of the steps. ``comms_s`` are
    the seconds of each kind of communication, hidden or not.
    """

    a: FrontPoint
    b: FrontPoint
    degrees: Mapping[str, tuple[Any, Any]]
    problem: Mapping[str, tuple[Any, Any]]
    parts_s: Mapping[str, tuple[float, float]]
    comms_s: Mapping[str, tuple[float, float]]
    batch_tokens: tuple[int | None, int | None] = (None, None)

    @property
    def step_s(self) -> float:
        """Seconds that the step of ``b`` takes more."""
        return self.b.step_time_s - self.a.step_time_s

    @property
    def tokens_per_s(self) -> tuple[float, float] | None:
        """Tokens a second of both; None where the batches are not known."""
        first, second = self.batch_tokens
        if first is None or second is None:
            return None
        return first / self.a.step_time_s, second / self.b.step_time_s

    def to_dict(self) -> dict[str, Any]:
        """Plain values ready for JSON, under the versioned key ``schema``."""

        def both(values: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
            return {name: {"a": a, "b": b} for name, (a, b) in values.items()}

        def less(values: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
            return {n: {"a": a, "b": b, "difference": b - a} for n, (a, b) in values.items()}

        figures = {
            name: (getattr(self.a, name), getattr(self.b, name))
            for name in ("step_time_s", "memory_bytes", "mfu")
        }
        if self.tokens_per_s is not None:
            figures["tokens_per_s"] = self.tokens_per_s
        return {
            "schema": SCHEMA,
            "problem": both(self.problem),
            "degrees": both(self.degrees),
            "figures": less(figures),
            "parts_s": less(self.parts_s),
            "comms_s": less(self.comms_s),
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
        }


def diff(
    a: FrontPoint | SolvedPlan | Evaluation | ParetoFront,
    b: FrontPoint | SolvedPlan | Evaluation | ParetoFront,
) -> Difference:
    """What separates two plans, term by term.

    Args:
        a: a point, a solved plan, an evaluation, or a front, which stands for its fastest.
        b: the same.

    Raises:
        SpecError: one of them is none of these.
    """
    (first, problem), (second, other) = _side("a", a), _side("b", b)
    parts = step_parts(first.breakdown), step_parts(second.breakdown)
    comms = first.breakdown["comms_s"], second.breakdown["comms_s"]
    return Difference(
        a=first,
        b=second,
        degrees=dict(_degrees(first.plan, second.plan)),
        problem=dict(_apart(problem, other)) if problem and other else {},
        parts_s={name: (parts[0][name], parts[1][name]) for name in parts[0]},
        comms_s={
            kind: (comms[0].get(kind, 0.0), comms[1].get(kind, 0.0))
            for kind in dict.fromkeys([*comms[0], *comms[1]])
        },
        batch_tokens=(_tokens(problem), _tokens(other)),
    )


def _side(name: str, given: object) -> tuple[FrontPoint, Mapping[str, Any] | None]:
    """The point, and the problem that it answers where that is known."""
    if isinstance(given, ParetoFront):
        return _priced(name, given.points[0]), given.problem
    if isinstance(given, SolvedPlan):
        return _priced(name, given.point), given.front.problem
    if isinstance(given, Evaluation):
        return given.point, given.problem
    if isinstance(given, FrontPoint):
        return _priced(name, given), None
    raise SpecError(
        f"diff compares points, solved plans, evaluations and fronts; {name} is {shown(given)}."
    )


def _priced(name: str, point: FrontPoint) -> FrontPoint:
    """The point, if it says where its time goes."""
    needed = ("busy_s", "compute_s", "recompute_s", "idle_s", "comms_s")
    if not all(key in point.breakdown for key in needed):
        raise SpecError(f"{name} does not say where its time goes; solve or evaluate it again.")
    return point


def _tokens(problem: Mapping[str, Any] | None) -> int | None:
    return None if problem is None else int(problem["workload"]["global_batch_tokens"])


def _degrees(a: Plan, b: Plan) -> Iterator[tuple[str, tuple[Any, Any]]]:
    mine, theirs = a.to_dict(), b.to_dict()
    for name in DEGREES:
        if mine[name] != theirs[name]:
            yield name, (mine[name], theirs[name])


def _apart(
    a: Mapping[str, Any], b: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Values that differ between two problems, by their path; lists are single values."""
    for name in dict.fromkeys([*a, *b]):
        mine, theirs = a.get(name), b.get(name)
        where = f"{path}.{name}" if path else name
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            yield from _apart(mine, theirs, where)
        elif _plain(mine) != _plain(theirs):
            yield where, (_plain(mine), _plain(theirs))


def _plain(value: Any) -> Any:
    """The value as JSON has it: a tuple is a list."""
    return json.loads(json.dumps(value))


def read_side(said: str) -> SolvedPlan:
    """The plan of ``FRONT.json`` (its fastest), or of ``FRONT.json:3`` (the third).

    What ``evaluate --json`` printed will do as well.

    Raises:
        SpecError: the file is missing or holds no plan, or has no such point.
    """
    path, number = said, 1
    head, colon, tail = said.rpartition(":")
    if colon and not Path(said).exists():
        if not (tail.isascii() and tail.isdigit() and len(tail) < 9):
            raise SpecError(
                f"{said}: no such file, and {tail!r} is no number of a point; say "
                "FRONT.json or FRONT.json:3."
            )
        path, number = head, int(tail)
    front = _load(path)
    if not 1 <= number <= len(front.points):
        many = len(front.points)
        raise SpecError(
            f"{said}: {path} has {'one point' if many == 1 else f'points 1 to {many}'}, "
            f"counted from the fastest."
        )
    return front.solved(front.points[number - 1])


def _load(path: str) -> ParetoFront:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ParetoFront.load(path)  # says what is wrong with it
    if isinstance(data, dict) and data.get("schema") == EVALUATION:
        data = {"schema": FRONT, "problem": data.get("problem"), "front": [data.get("point")]}
    try:
        return ParetoFront.from_dict(data)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
