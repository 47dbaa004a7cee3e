"""What more of a resource gives: the problem solved again with it, and the plan as it is."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from autoshard.asking import DEFAULT_OBJECTIVES, read_constraints, search_options
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.errors import Infeasible, SpecError
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.front import ParetoFront
from autoshard.pricing import price_plans, rules_broken
from autoshard.search.front import solve_front
from autoshard.solving import resolve, solve

if TYPE_CHECKING:
    import polars

SCHEMA = "autoshard.sensitivity/1"

#: How much more of each resource.
MORE = 0.1
#: Factors on the batch.
BATCHES = (2.0, 0.5)

_SEARCH = ("where", "fix", "gap", "time_limit_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What one change of the problem gives, in tokens a second relative to what is.

    ``resource`` names what changes and ``change`` by how much; ``bought`` says that it is a
    resource and not the batch. ``same_plan`` is the gain of the fastest plan left as it is (with
    another number of microbatches where the batch changes), None where it is illegal then or does
    not fit; ``replanned`` that of the best plan known for the changed problem, None where there is
    none. ``plan``, ``step_time_s`` and ``memory_bytes`` are of that one, and no plan is faster
    than ``lower_bound_s``; ``proven`` says that this is within the gap asked for.
    """

    resource: str
    change: str
    bought: bool
    same_plan: float | None
    replanned: float | None
    plan: Plan | None
    step_time_s: float | None
    memory_bytes: float | None
    lower_bound_s: float | None
    proven: bool

    def to_dict(self) -> dict[str, Any]:
        """The gain as plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "plan": None if self.plan is None else self.plan.to_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The fastest plan as things are, and gains: resources first, each kind by what it gives.

    ``asked`` counts the changes that there are; a search that is stopped leaves some without an
    answer.
    """

    front: ParetoFront
    gains: tuple[Gain, ...]
    asked: int

    @property
    def best(self) -> Gain | None:
        """The resource that gives most."""
        bought = [gain for gain in self.gains if gain.bought and gain.replanned is not None]
        return bought[0] if bought else None

    @property
    def frame(self) -> polars.DataFrame:
        """The gains as a polars frame, one row a change, without the plans."""
        import polars as pl

        return pl.DataFrame(
            [{k: v for k, v in gain.to_dict().items() if k != "plan"} for gain in self.gains],
            infer_schema_length=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values ready for JSON, under the versioned key ``schema``."""
        return {
            "schema": SCHEMA,
            "problem": dict(self.front.problem),
            "fastest": self.front.points[0].to_dict(),
            "asked": self.asked,
            "gains": [gain.to_dict() for gain in self.gains],
        }


def sensitivity(model: Any, **question: Any) -> Sensitivity:
    """What 10 % more of each resource gives, and twice or half of the batch.

    A memory limit grows with the HBM; constraints stay as they are.

    Args:
        model: as for :func:`autoshard.solve`.
        question: every other argument of :func:`autoshard.solve` but ``points``, ``objectives``
            and the two functions.

    Raises:
        SpecError: an input is wrong.
        Infeasible: the question has no plan as it is.
    """
    front = solve(model, points=1, **question)
    search = {name: question[name] for name in _SEARCH if name in question}
    tell = question.pop("progress", None)
    asked = {name: value for name, value in question.items() if name not in _SEARCH}
    problem, profile = resolve(model, **asked)
    gains: list[Gain] = []
    started = time.monotonic()
    every = list(changes(problem))
    for resource, change, changed in every if front.complete else ():
        if tell is not None:
            tell(f"{resource} {change}")
        limit = search.get("time_limit_s")
        if limit is not None:
            # The limit is one for all: what the first search took is gone.
            limit -= sum(front.search.get("seconds", {}).values()) + time.monotonic() - started
            limit = max(limit, 1e-3)
        found = _gain(problem, profile, front, changed, {**search, "time_limit_s": limit})
        if found is None:
            break
        bought = changed.workload == problem.workload
        gains.append(Gain(resource=resource, change=change, bought=bought, **found))
    gains.sort(key=lambda gain: (not gain.bought, _rank(gain.replanned)))
    return Sensitivity(front=front, gains=tuple(gains), asked=len(every))


def _rank(replanned: float | None) -> float:
    """What sorts by gain, the largest first and no plan at all last."""
    return math.inf if replanned is None else -replanned


def changes(problem: Problem) -> Iterator[tuple[str, str, Problem]]:
    """Each resource that the cluster has, ``+10 %``, and the problem with that much more of it."""
    chip, cluster = problem.cluster.chip, problem.cluster
    more = 1.0 + MORE
    changed: dict[str, Chip] = {
        "chip FLOP/s": replace(
            chip, flops_per_s={name: rate * more for name, rate in chip.flops_per_s.items()}
        ),
        "HBM bandwidth": replace(chip, hbm_bytes_per_s=chip.hbm_bytes_per_s * more),
    }
    if chip.kind == "tpu":
        changed["ICI"] = replace(chip, ici_bytes_per_s=chip.ici_bytes_per_s * more)
        if cluster.pods > 1:
            changed["DCN"] = replace(chip, dcn_bytes_per_s=chip.dcn_bytes_per_s * more)
    else:
        if min(chip.domain_chips, cluster.chips) > 1:
            changed["NVLink"] = replace(chip, domain_bytes_per_s=chip.domain_bytes_per_s * more)
        if cluster.chips > chip.domain_chips:
            rate = chip.scale_out_bytes_per_s * more
            changed["scale-out network"] = replace(chip, scale_out_bytes_per_s=rate)
    percent = f"+{MORE * 100:.0f} %"
    for name, other in changed.items():
        yield name, percent, replace(problem, cluster=replace(cluster, chip=other))
    larger = replace(chip, hbm_bytes=int(chip.hbm_bytes * more))
    yield (
        "HBM size",
        percent,
        replace(
            problem,
            cluster=replace(cluster, chip=larger),
            memory_limit_bytes=int(problem.memory_limit_bytes * more),
        ),
    )
    for factor in BATCHES:
        batch = problem.workload.global_batch_seqs * factor
        if batch == int(batch):
            workload = replace(problem.workload, global_batch_seqs=int(batch))
            yield "batch", f"x {factor:g}", replace(problem, workload=workload)


def _gain(
    problem: Problem,
    profile: Profile,
    front: ParetoFront,
    changed: Problem,
    search: Mapping[str, Any],
) -> dict[str, Any] | None:
    """The plan as it is, and the problem solved again; None where that search was stopped."""
    base = front.points[0]
    rate = problem.workload.global_batch_tokens / base.step_time_s
    tokens = changed.workload.global_batch_tokens
    plan = rebatched(base.plan, tokens / problem.workload.global_batch_tokens)
    kept = None
    if plan is not None and not rules_broken(changed, profile, plan):
        (priced,) = price_plans(changed, profile, [plan])
        kept = priced if priced.memory_bytes <= changed.capacity_bytes else None
    asked = read_constraints(search.get("where"), search.get("fix"), changed, profile)
    options = search_options(
        asked,
        objectives=DEFAULT_OBJECTIVES,
        points=1,
        gap=search.get("gap", 1e-3),
        time_limit_s=search.get("time_limit_s"),
    )
    try:
        result = solve_front(changed, profile, options)
        if not result.complete:
            return None
        points = result.points
    except Infeasible:
        points = []
    found: dict[str, Any] = {
        "same_plan": None if kept is None else tokens / kept.step_time_s / rate - 1.0,
        "replanned": None,
        "plan": None,
        "step_time_s": None,
        "memory_bytes": None,
        "lower_bound_s": None,
        "proven": False,
    }
    if not points:
        return found
    point = points[0]
    # Within the gap the search may prefer a plan that is a little slower than this one.
    best = point if kept is None or point.step_time_s <= kept.step_time_s else kept
    return found | {
        "replanned": tokens / best.step_time_s / rate - 1.0,
        "plan": best.plan,
        "step_time_s": best.step_time_s,
        "memory_bytes": best.memory_bytes,
        "lower_bound_s": min(point.lower_bound_s, best.step_time_s),
        "proven": point.proven,
    }


def rebatched(plan: Plan, factor: float) -> Plan | None:
    """The plan with so many times the batch, by its microbatches, or by their size; None if odd.

    Raises:
        SpecError: the factor is neither a whole number nor one over it.
    """
    if factor == 1.0:
        return plan
    if factor > 1.0 and factor == int(factor):
        return replace(plan, microbatches=plan.microbatches * int(factor))
    parts = round(1.0 / factor)
    if parts * factor != 1.0:
        raise SpecError(f"a batch grows or shrinks by whole numbers, got {factor}.")
    if plan.microbatches % parts == 0:
        return replace(plan, microbatches=plan.microbatches // parts)
    if plan.micro_batch_size % parts == 0:
        return replace(plan, micro_batch_size=plan.micro_batch_size // parts)
    return None
