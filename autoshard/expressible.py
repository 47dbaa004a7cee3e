"""Which frameworks can state a plan: as it is, rounded to what they can state, or not at all.

A plan is stated *exactly* if it breaks no rule of the framework
(:mod:`autoshard.costmodels.stack_rules`), whose pipeline schedule is the plan's. If only its stages
or their remat break one, it is *rounded*: to the fastest plan of the same degrees and microbatches
within the same memory that the framework can state, by the exact search under its rules
(:mod:`autoshard.search.families`). Costs are those of the front, before and after.

A framework names its remat settings by itself. A rung of the front is one of them if it is the same
setting (:func:`autoshard.costmodels.remat.counterpart`). Settings that the front's ladder lacks
have no price there and are left out, so that rounding costs what is said or less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autoshard.costmodels.legality import Legality, one_row
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.remat import Rung, counterpart
from autoshard.costmodels.schedules import schedule_name
from autoshard.costmodels.stack import STACKS, Stack
from autoshard.search import families
from autoshard.search.rows import Rows
from autoshard.search.stages import Stage
from autoshard.sizes import format_bytes
from autoshard.statement import Statement

#: A plan within a budget may come out as so much larger, by sums in another order.
FLOAT = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statements(Mapping[str, Statement]):
    """How each stack for the kind of chip can state a plan, by its name; found when asked for.

    ``row`` is the one that the plan was found on, priced by ``profile``.
    """

    problem: Problem
    profile: Profile
    row: Rows
    plan: Plan
    memory_bytes: float
    step_time_s: float
    _known: dict[str, Statement] = field(default_factory=dict, init=False)

    @property
    def stacks(self) -> list[str]:
        """The stacks that run on the chip."""
        kind = self.problem.cluster.chip.kind
        return [name for name, stack in STACKS.items() if kind in stack.chips]

    def __getitem__(self, name: str) -> Statement:
        if name not in self.stacks:
            raise KeyError(name)
        if name not in self._known:
            asked = _Asked(self.problem, self.profile, STACKS[name], self.plan)
            self._known[name] = asked.statement(self.row, self.memory_bytes, self.step_time_s)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stacks)

    def __len__(self) -> int:
        return len(self.stacks)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[type[dict[str, Statement]], tuple[dict[str, Statement]]]:
        return dict, (dict(self),)


class _Asked:
    """One plan and one stack."""

    def __init__(self, problem: Problem, profile: Profile, stack: Stack, plan: Plan) -> None:
        self.problem, self.profile, self.stack, self.plan = problem, profile, stack, plan
        missing = stack.legality.missing_rungs
        settings = [rung for rung in stack.ladder if rung.name not in missing]
        self.settings: dict[str, Rung] = {}
        for rung in profile.ladder:
            setting = counterpart(rung, settings)
            if setting is not None and setting not in self.settings.values():
                self.settings[rung.name] = setting
        priced = {setting.name for setting in self.settings.values()}
        self.unpriced = tuple(rung.name for rung in settings if rung.name not in priced)

    def statement(self, row: Rows, memory_bytes: float, step_s: float) -> Statement:
        broken = tuple(self.broken_by_degrees())
        if broken:
            return Statement(verdict="no", why=broken)
        broken = tuple(self.broken_by_stages())
        if not broken:
            return Statement(
                verdict="exact",
                layers_per_stage=self.plan.layers_per_stage,
                remat=self.renamed(),
                step_time_s=step_s,
                memory_bytes=memory_bytes,
                slower=0.0,
            )
        return self.rounded(row, memory_bytes, step_s, broken)

    def broken_by_degrees(self) -> Iterator[str]:
        """Rules on degrees and on the schedule, which no choice of stages mends."""
        legality, schedule = self.stack.legality, schedule_name(self.profile)
        yield from legality.reasons(self.problem, one_row(self.plan))[0]
        if self.plan.pp > 1 and schedule not in self.stack.schedules:
            yield (
                f"{legality.framework} runs pipelines by {' or '.join(self.stack.schedules)}, and "
                f"the schedule is {schedule}"
            )

    def broken_by_stages(self) -> Iterator[str]:
        """Rules on the layers of stages and on their remat."""
        used = {name for stage in self.plan.remat for name, layers in stage.items() if layers}
        strange = [r.name for r in self.profile.ladder if r.name in used - set(self.settings)]
        if strange:
            named = " and ".join(strange)
            yield f"{self.stack.legality.framework} has no setting for remat {named}"
            return
        stated = replace(self.plan, remat=self.renamed())
        yield from self.stack.legality.stage_reasons(stated, self.stack.ladder)

    def renamed(self) -> tuple[dict[str, int], ...]:
        """The plan's remat in the names of the framework."""
        return tuple(
            {self.settings[name].name: layers for name, layers in stage.items() if layers}
            for stage in self.plan.remat
        )

    def rounded(
        self, row: Rows, memory_bytes: float, step_s: float, broken: Sequence[str]
    ) -> Statement:
        """The fastest plan of the same row and memory that the framework can state."""
        keep = [r for r, rung in enumerate(self.profile.ladder) if rung.name in self.settings]
        settings = [self.settings[self.profile.ladder[r].name] for r in keep]
        leaf = None
        if keep:
            costs = replace(
                row.costs,
                layer_backward_s=row.costs.layer_backward_s[:, :, keep],
                saved_bytes=row.costs.saved_bytes[:, keep],
            )
            plan = self.plan
            (held,) = self.profile.in_flight([(plan.pp, plan.vpp, plan.microbatches)])
            stage = Stage.of(replace(row, costs=costs), 0, held)
            budget = memory_bytes * (1.0 + FLOAT)
            # Most settings end early where a good plan is known; few plans round to a bad one.
            for below_s in (1.02 * step_s, 1.25 * step_s, np.inf):
                leaf = families.fastest(stage, self.rules_on(settings), budget, below_s)
                if leaf is not None:
                    break
        if leaf is None:
            none = (
                f"no plan of the same degrees that it can state fits {format_bytes(memory_bytes)}"
            )
            return Statement(verdict="no", why=(*broken, none), unpriced=self.unpriced)
        names = [setting.name for setting in settings]
        return Statement(
            verdict="rounded",
            why=tuple(broken),
            layers_per_stage=tuple(int(n) for n in leaf.rungs.sum(axis=1)),
            remat=tuple(
                {name: int(n) for name, n in zip(names, stage, strict=True) if n}
                for stage in leaf.rungs
            ),
            step_time_s=leaf.time_s,
            memory_bytes=leaf.memory_bytes,
            slower=leaf.time_s / step_s - 1.0,
            unpriced=self.unpriced,
        )

    def rules_on(self, settings: Sequence[Rung]) -> Legality:
        """The framework's rules on stages, for a ladder of some of its settings.

        A recompute count mixes the first and the last setting of the framework, so that without one
        of them there is none.
        """
        legality, ends = self.stack.legality, (self.stack.ladder[0], self.stack.ladder[-1])
        if legality.remat == "one-count" and (settings[0], settings[-1]) != ends:
            return replace(legality, remat="one-policy")
        return legality
