"""The single changes of a plan that gain most, each legal, priced and named."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from autoshard.completing import layers_words
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.front import FrontPoint
from autoshard.neighbours import MOVED, neighbours, policy_of
from autoshard.pricing import price_plans, rules_broken
from autoshard.words import remat_words

#: Changes that are kept, those that gain most.
MOST = 8
#: A change gains something from this share of the step; below, it is the same plan.
GAINS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of a plan: ``words`` name it, ``plan`` is what it leads to.

    ``faster_by`` is the relative gain in steps a second, negative where it is slower.
    """

    words: str
    plan: Plan
    step_time_s: float
    memory_bytes: float
    faster_by: float

    def to_dict(self) -> dict[str, Any]:
        """The change as plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "plan": self.plan.to_dict()}


def gaining_changes(
    problem: Problem, profile: Profile, point: FrontPoint
) -> tuple[tuple[Change, ...], int, int]:
    """The changes that fit and gain most; how many are legal; how many of these fit and gain.

    Of a plan that does not fit, the fastest of those that do, whether they gain or not.
    """
    plan = point.plan
    known = {_key(plan)}
    legal = []
    for near in neighbours(problem, profile, plan):
        if _key(near) not in known:
            known.add(_key(near))
            if not rules_broken(problem, profile, near):
                legal.append(near)
    capacity = problem.capacity_bytes
    over = point.memory_bytes > capacity
    changes = []
    for found in price_plans(problem, profile, legal):
        gain = point.step_time_s / found.step_time_s - 1.0
        if found.memory_bytes <= capacity and (over or gain > GAINS):
            changes.append(
                Change(
                    words=change_words(profile, plan, found.plan),
                    plan=found.plan,
                    step_time_s=found.step_time_s,
                    memory_bytes=found.memory_bytes,
                    faster_by=gain,
                )
            )
    changes.sort(key=lambda change: (-change.faster_by, change.memory_bytes))
    return tuple(changes[:MOST]), len(legal), len(changes)


def _key(plan: Plan) -> str:
    """A plan but for its layout, which follows from the rest."""
    return str({k: v for k, v in plan.to_dict().items() if k != "layout"})


def change_words(profile: Profile, before: Plan, after: Plan) -> str:
    """``tp 8 -> 4, fsdp 128 -> 256``: what separates two plans, in the names of ``--plan``."""
    split = before.seq_split > 1 or after.seq_split > 1
    names = {name: name for name in (*MOVED, "vpp", "micro_batch_size", "reshard")}
    if not split:
        names["batch_split"] = "fsdp"
    parts = [
        f"{said} {getattr(before, name):,} -> {getattr(after, name):,}"
        for name, said in names.items()
        if getattr(before, name) != getattr(after, name)
    ]
    if before.chips_used != after.chips_used:
        parts.append(f"on {after.chips_used:,} chips")
    if before.layers_per_stage != after.layers_per_stage:
        parts.append(f"layers {layers_words(after.layers_per_stage)}")
    if before.remat != after.remat:
        policy = policy_of(profile, after)
        if policy is None:
            parts.append(f"remat {remat_words(after)}")
        elif policy != policy_of(profile, before):
            name, count = policy
            parts.append(f"remat {name}" if count is None else f"remat {name}:{count}")
    return ", ".join(parts)
