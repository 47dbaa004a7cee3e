"""The answer: a Pareto front of step time against memory per chip, every point with its proof."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoshard.costmodels.checks import shown
from autoshard.costmodels.errors import Infeasible, SpecError
from autoshard.costmodels.plan import Plan
from autoshard.sizes import format_bytes, parse_bytes
from autoshard.statement import Statement

if TYPE_CHECKING:
    import altair
    import polars

    from autoshard.certifying import Certificate
    from autoshard.costmodels.profile import Profile
    from autoshard.nearly import NearOptimal
    from autoshard.solved import SolvedPlan

#: Version of the JSON form; a reader accepts every schema of the same major number.
SCHEMA = "autoshard.front/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """One plan of the front, in SI units.

    ``mfu`` is ``6 P T`` over the peak of the chips used, ``P`` the parameters of matmuls: attention
    dot products and the lookup of the input embedding are not counted. No plan of the space within
    ``memory_bytes`` is faster than ``lower_bound_s``; ``gap`` is the relative distance to it and
    ``proven`` that it is within the gap asked for. ``binding`` is the largest loss of the step,
    ``communication``, ``bubble`` or ``hbm``, or ``compute`` where there is none; ``binding_by``
    says of what; ``comms_over_compute`` is the communication that holds the busiest network
    longest, over compute (recompute left out of both). ``expressible_in`` says of each software
    stack how it can state the plan; empty where the stack was given, or the front has more than 20
    points (:attr:`~autoshard.solved.SolvedPlan.expressible_in` answers on demand).
    """

    plan: Plan
    step_time_s: float
    memory_bytes: float
    mfu: float
    binding: str
    binding_by: str
    comms_over_compute: float
    lower_bound_s: float
    gap: float
    proven: bool
    interval_s: tuple[float, float] | None = None
    breakdown: Mapping[str, Any] = field(default_factory=dict)
    expressible_in: Mapping[str, Statement] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The point as plain values."""
        plan = self.plan.to_dict()
        return {
            "plan": plan,
            "layers_per_stage": plan["layers_per_stage"],
            "remat": plan["remat"],
            "chips_used": plan["chips_used"],
            **{name: getattr(self, name) for name in POINT_FIELDS},
            "interval_s": None if self.interval_s is None else list(self.interval_s),
            "breakdown": dict(self.breakdown),
            "expressible_in": {name: s.to_dict() for name, s in self.expressible_in.items()},
        }


POINT_FIELDS = (
    "step_time_s",
    "memory_bytes",
    "mfu",
    "binding",
    "binding_by",
    "comms_over_compute",
    "lower_bound_s",
    "gap",
    "proven",
)

#: Parts of a problem that everything made of a front counts on.
PROBLEM_PARTS = ("model", "cluster", "workload", "costs")

#: Fields of a point that are not numbers.
_KINDS: Mapping[str, type] = {"binding": str, "binding_by": str, "proven": bool}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoFront:
    """Points from the fastest to the smallest, with the problem they answer.

    ``problem`` and ``search`` are plain values: what was asked (model, cluster, workload, recipe,
    costs) and how it was found (candidates seen, seconds spent, whether the search ran to its end).
    ``notes`` are sentences about the answer: idle chips and the batch that could fill them.
    ``profile`` are the costs of a front that this process has solved: charts of its plans need no
    name for them. It is in no file and in no pickle.
    """

    problem: Mapping[str, Any]
    points: tuple[FrontPoint, ...]
    search: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    profile: Profile | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # A cost model of one's own need not be one that can be pickled.
        return _without_profile, (self.problem, self.points, self.search, self.notes)

    @property
    def objectives(self) -> tuple[str, ...]:
        """What the front trades: ``time`` and ``memory``, and ``chips`` where that was asked."""
        return tuple(self.search.get("objectives", ("time", "memory")))

    @property
    def complete(self) -> bool:
        """Whether the search ran to its end: no time limit, no Ctrl-C."""
        return bool(self.search.get("complete", True))

    def point(self, within: str | float | None = None) -> FrontPoint:
        """The fastest point, or the fastest that fits ``within`` bytes (``"72GiB"`` or a number).

        Raises:
            Infeasible: no point of this front is that small; the smallest is named.
            SpecError: the size cannot be read.
        """
        if within is None:
            return self.points[0]
        budget = parse_bytes(within)
        for point in self.points:
            if point.memory_bytes <= budget:
                return point
        raise Infeasible(
            f"no plan of this front fits in {format_bytes(budget)} per chip; the smallest needs "
            f"{format_bytes(min(point.memory_bytes for point in self.points))}."
        )

    def fastest(self, within: str | float | None = None) -> SolvedPlan:
        """The plan of :meth:`point`, with its costs and the problem it answers."""
        return self.solved(self.point(within))

    def solved(self, point: FrontPoint) -> SolvedPlan:
        """The plan of one of the points, with its costs and the problem it answers."""
        from autoshard.solved import SolvedPlan

        plan = point.plan
        values = {f.name: getattr(plan, f.name) for f in fields(Plan)}
        return SolvedPlan(**values, point=point, front=self)

    @property
    def frame(self) -> polars.DataFrame:
        """The front as a polars frame, one row a point; nested values as JSON text."""
        import polars as pl

        return pl.DataFrame([flat_row(point) for point in self.points])

    def chart(self, plan: Any = None, *, others: bool = True) -> altair.LayerChart:
        """Step time against memory per chip, coloured by what binds, and the memory limit.

        Args:
            plan: a plan of one's own to mark: a :class:`Plan`, which the costs of this front
                price, or what has ``step_time_s`` and ``memory_bytes``.
            others: whether to draw plans that this front beat, faint behind it. They are priced
                for the picture, and left out where the costs or constraints of the front cannot be
                built again from what it says.

        Raises:
            SpecError: the plan breaks a rule, or cannot be priced.
        """
        from autoshard.charts.drawing import draw_front

        return draw_front(self, plan, others=others)

    def certificate(
        self, costs: str | Profile | None = None, where: str | polars.Expr | None = None
    ) -> Certificate:
        """For every mesh of the space, the bound that excludes it at each point of the front.

        Args:
            costs: the costs that found the front, where their name does not say all of them.
            where: the constraint of the front, where it was not text.

        Raises:
            SpecError: the search did not come to its end or was constrained by functions, or its
                costs or constraint are not known.
        """
        from autoshard.certifying import certify

        return certify(self, costs=costs, where=where)

    def near_optimal(
        self,
        within: float,
        costs: str | Profile | None = None,
        where: str | polars.Expr | None = None,
    ) -> NearOptimal:
        """The best plan of each mesh that is within a share (0.02 for 2 %) of the fastest.

        Args:
            within: how much longer its step may take, relatively.
            costs: the costs that found the front, where their name does not say all of them.
            where: the constraint of the front, where it was not text.

        Raises:
            SpecError: the share is out of range, the search did not come to its end or was
                constrained by functions, or its costs or constraint are not known.
        """
        from autoshard.nearly import near_optimal

        return near_optimal(self, within, costs=costs, where=where)

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON form, ``schema`` first."""
        points = [point.to_dict() for point in self.points]
        return {
            "schema": SCHEMA,
            "problem": dict(self.problem),
            "fastest": points[0],
            "front": points,
            "notes": list(self.notes),
            "search": dict(self.search),
        }

    def to_json(self) -> str:
        """The JSON form as text."""
        return json.dumps(self.to_dict(), indent=2)

    def save(self, path: str | Path) -> None:
        """Write the JSON form to a file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> ParetoFront:
        """Read a front that :meth:`save` or ``--json`` wrote.

        Raises:
            SpecError: the file is missing, is not JSON, or is not a front.
        """
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise SpecError(f"a front is loaded from the path of its JSON file, got {shown(path)}.")
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise SpecError(f"{path}: cannot be read ({error.strerror}).") from None
        except (ValueError, RecursionError) as error:
            raise SpecError(f"{path}: is not JSON ({error}).") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Any) -> ParetoFront:
        """The inverse of :meth:`to_dict`.

        Raises:
            SpecError: the values are not a front of this major schema.
        """
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise SpecError(f"not a front: schema is {schema!r}, this version reads {SCHEMA!r}.")
        try:
            front = cls(
                problem=dict(data["problem"]),
                points=tuple(_point(point) for point in data["front"]),
                search=dict(data.get("search", {})),
                notes=tuple(data.get("notes", ())),
            )
        except KeyError as error:
            raise SpecError(f"not a front: key {error.args[0]!r} is missing.") from None
        except SpecError as error:
            raise SpecError(f"not a front: {error}") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise SpecError(f"not a front: a value is of the wrong kind ({error}).") from None
        if not front.points:
            raise SpecError("not a front: it has no point.")
        for name in PROBLEM_PARTS:
            if not isinstance(front.problem.get(name), Mapping):
                raise SpecError(f"not a front: its problem does not say the {name}.")
        return front


def _without_profile(
    problem: Mapping[str, Any],
    points: tuple[FrontPoint, ...],
    search: Mapping[str, Any],
    notes: tuple[str, ...],
) -> ParetoFront:
    return ParetoFront(problem=problem, points=points, search=search, notes=notes)


def _point(data: Mapping[str, Any]) -> FrontPoint:
    for name in POINT_FIELDS:
        kind = _KINDS.get(name, (int, float))
        if not isinstance(data[name], kind) or (name not in _KINDS and not isfinite(data[name])):
            raise TypeError(f"{name} = {shown(data[name])}")
    if not isinstance(data.get("breakdown", {}), Mapping):
        raise TypeError(f"breakdown = {shown(data['breakdown'])}")
    return FrontPoint(
        plan=Plan.from_dict(data["plan"]),
        interval_s=_interval(data.get("interval_s")),
        breakdown=data.get("breakdown", {}),
        expressible_in={
            name: Statement.from_dict(said) for name, said in data.get("expressible_in", {}).items()
        },
        **{name: data[name] for name in POINT_FIELDS},
    )


def _interval(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = (float(number) for number in value)
    return low, high


def flat_row(point: FrontPoint) -> dict[str, Any]:
    """One point as a flat row: numbers as they are, stages and layout as JSON text."""
    plan = point.plan.to_dict()
    nested = {k: json.dumps(plan.pop(k)) for k in ("layers_per_stage", "remat", "layout")}
    low, high = point.interval_s or (None, None)
    values = {name: getattr(point, name) for name in POINT_FIELDS}
    return {**values, "interval_low_s": low, "interval_high_s": high, **plan, **nested}


def breakdown_dict(value: Any) -> dict[str, Any]:
    """A breakdown as plain values, without what the point says already."""
    said = ("step_time_s", "binding", "binding_by", "comms_over_compute")
    return {k: v for k, v in asdict(value).items() if k not in said}
