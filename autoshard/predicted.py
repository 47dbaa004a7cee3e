"""``--where`` on what is predicted: step time, MFU, tokens a second and memory.

A constraint is taken apart at its ``and``. A part that names a predicted column may speak of one of
them at a time, of time or of memory, and must hold up to some value and not beyond: ``mfu > 0.4``,
``step_time_s < 5``, ``tp = 8 or memory_gib <= 60``. Of each row of integers it is then a latest
step time or a most memory, found by bisection over all floats. So a front stays proven: its plans
are those that are fast and small enough, and no faster or smaller plan is shut out.

Whether a part holds up to a value is tried on thousands of values, not derived; every plan shown is
held against the whole constraint again.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.costs import Column
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.search.space import Keep
from autoshard.where import NAMES, column, condition, expression_of, truth

if TYPE_CHECKING:
    import polars as pl

#: Predicted columns, and what each of them limits.
PREDICTED = {
    "step_time_s": "time",
    "mfu": "time",
    "tokens_per_s": "time",
    "memory_bytes": "memory",
    "memory_gib": "memory",
}
#: Seconds and bytes between which a limit is looked for; one that holds at the top is none.
RANGE = {"time": (1e-9, 1e9), "memory": (1.0, 2.0**60)}
WORDS = {"time": "step time", "memory": "memory"}
#: Values on which a condition is tried, and the integers of plans that it is tried with.
TRIES, PROBES = 4_000, tuple(2**k for k in range(9))

#: Columns of an answer that are known of a plan that was found, not of every plan.
FOUND_ONLY = (
    "binding", "binding_by", "comms_over_compute", "lower_bound_s", "gap", "proven",
    "interval_low_s", "interval_high_s", "layers_per_stage", "remat", "layout",
)  # fmt: skip

ACCEPTED = (
    "predicted columns may only ask for less time (step_time_s < 5, mfu > 0.4, tokens_per_s > 1e6) "
    "or less memory (memory_gib < 60)"
)


def read_where(
    where: str | pl.Expr, problem: Problem, profile: Profile
) -> tuple[Keep | None, Predicted | None]:
    """The two halves of a constraint: on the integers of a plan, and on what is predicted of it.

    Raises:
        SpecError: it is no condition, or one on predicted columns that is not accepted.
    """
    known = (*NAMES, *PREDICTED)
    expression = expression_of(where, (*known, *FOUND_ONLY))
    for name in expression.meta.root_names():
        if name in FOUND_ONLY:
            raise SpecError(
                f"--where {str(where)!r}: {name} is known only of a plan that is found; "
                f"a constraint may name {', '.join(known)}."
            )
    parts = split(expression, operator.and_)
    on_costs = [part for part in parts if _predicted(part)]
    on_plans = [part for part in parts if not _predicted(part)]
    if not on_costs:
        return condition(where, expression), None
    if on_plans and not any(part.meta.root_names() for part in on_plans):
        # Constants alone are no condition on a plan: they join one that is.
        on_costs = [functools.reduce(operator.and_, [on_costs[0], *on_plans]), *on_costs[1:]]
        on_plans = []
    keep = condition(where, functools.reduce(operator.and_, on_plans)) if on_plans else None
    conditions = tuple(Condition.of(where, part) for part in on_costs)
    for part in conditions:
        part.check(problem, profile)
    return keep, Predicted(where=where, conditions=conditions)


def split(expression: pl.Expr, join: Callable[[Any, Any], Any]) -> list[pl.Expr]:
    """The parts that an operator joins, in their order; the expression itself where it is none."""
    parts: list[pl.Expr] = []
    stack = [expression]
    while stack:
        part = stack.pop()
        leaf = part.meta.is_literal() or part.meta.is_column()
        inputs = [] if leaf else part.meta.pop()
        for pair in (inputs, inputs[::-1]) if len(inputs) == 2 else ():
            # Polars has no name for the operator of an expression: put it together again.
            if join(*pair).meta.eq(part):
                stack += pair[::-1]
                break
        else:
            parts.append(part)
    return parts


def _predicted(expression: pl.Expr) -> list[str]:
    """The predicted columns of an expression, each as often as it occurs."""
    return [name for name in expression.meta.root_names() if name in PREDICTED]


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What a constraint says of predicted columns: a :data:`~autoshard.search.limits.Limit`."""

    where: str | pl.Expr
    conditions: tuple[Condition, ...]

    def __call__(
        self, problem: Problem, profile: Profile, candidates: Candidates
    ) -> tuple[Column, Column]:
        """The latest step time and the most memory of each candidate."""
        most = {kind: np.full(len(candidates), np.inf) for kind in RANGE}
        for part in self.conditions:
            limit = part.limit(problem, profile, candidates)
            most[part.kind] = np.minimum(most[part.kind], limit)
        return most["time"], most["memory"]

    def check_found(
        self, problem: Problem, profile: Profile, row: Candidates, step_s: float, memory: float
    ) -> None:
        """Hold a plan that was found against the constraint again.

        Raises:
            SpecError: it breaks it, so the constraint does not hold up to a value.
        """
        value = {"time": np.array([step_s]), "memory": np.array([memory])}
        for part in self.conditions:
            if not part.holds(problem, profile, row, value[part.kind])[0]:
                raise part.refused()


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One part of a constraint: ``kind`` is what it limits, ``time`` or ``memory``.

    It remembers what it has found for the integers that it names.
    """

    where: str | pl.Expr
    expression: pl.Expr
    kind: str
    names: tuple[str, ...]
    _known: dict[tuple[float, ...], float] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, where: str | pl.Expr, expression: pl.Expr) -> Condition:
        """Take in one part, if it speaks of one predicted column at a time, of time or of memory.

        Raises:
            SpecError: it does not.
        """
        names = tuple(dict.fromkeys(_predicted(expression)))
        kinds = {PREDICTED[name] for name in names}
        if len(kinds) > 1:
            raise SpecError(
                f"--where {str(where)!r} ties time and memory together ({', '.join(names)}); join "
                "conditions on them with and, as in mfu > 0.4 and memory_gib < 60."
            )
        for leaf in _comparisons(expression):
            if len(_predicted(leaf)) > 1:
                raise SpecError(
                    f"--where {str(where)!r} holds predicted columns against each other "
                    f"({', '.join(_predicted(leaf))}); hold each against a number or a column of "
                    "integers, as in mfu > 0.4."
                )
        return cls(where=where, expression=expression, kind=kinds.pop(), names=names)

    def refused(self) -> SpecError:
        """What is wrong with a condition that does not hold up to a value and not beyond."""
        return SpecError(
            f"--where {str(self.where)!r}: its condition on {', '.join(self.names)} does not hold "
            f"up to some {WORDS[self.kind]} and never beyond; {ACCEPTED}."
        )

    def holds(
        self, problem: Problem, profile: Profile, rows: Candidates, values: Column
    ) -> NDArray[np.bool_]:
        """Whether it holds for a step time, or a memory, of each row."""
        columns: dict[str, NDArray[Any]] = {
            name: column(rows, name) for name in self._integers() if name in NAMES
        }
        if self.kind == "time":
            columns["step_time_s"] = values
            columns["tokens_per_s"] = problem.workload.global_batch_tokens / values
            # In the order of operations in which an answer's MFU is computed.
            peak_flops_per_s = problem.peak_flops_per_s * rows.chips_used
            columns["mfu"] = profile.compute.flops_per_step(problem) / (values * peak_flops_per_s)
        else:
            columns |= {"memory_bytes": values, "memory_gib": values / 2**30}
        named = {*self._integers(), *self.names}
        wanted = {name: values for name, values in columns.items() if name in named}
        return truth(self.where, self.expression, wanted)

    def _integers(self) -> list[str]:
        """The integers of a plan that decide about it."""
        names = [n for n in self.expression.meta.root_names() if n not in PREDICTED]
        return list(dict.fromkeys([*names, *(["chips_used"] if "mfu" in self.names else [])]))

    def check(self, problem: Problem, profile: Profile) -> None:
        """Try every comparison of it on values small and large.

        ``and`` and ``or`` of what holds up to some value hold up to some value.

        Raises:
            SpecError: one holds for no value, or for a larger one where a smaller one fails.
        """
        for leaf in _comparisons(self.expression):
            if _predicted(leaf):
                replace(self, expression=leaf)._try(problem, profile)

    def _try(self, problem: Problem, profile: Profile) -> None:
        values = np.geomspace(*RANGE[self.kind], TRIES)
        rows = Candidates(**{name: np.array(PROBES, dtype=np.int64) for name in COLUMNS})
        which = np.repeat(np.arange(len(PROBES)), TRIES)
        held = self.holds(problem, profile, rows.take(which), np.tile(values, len(PROBES)))
        held = held.reshape(len(PROBES), TRIES)
        if not held.any() or (held[:, 1:] & ~held[:, :-1]).any():
            raise self.refused()
        for n, together in enumerate(held):
            alone = self.holds(problem, profile, rows.take(np.full(TRIES, n)), values)
            if (alone != together).any():
                raise SpecError(f"--where {str(self.where)!r} judges several plans together.")

    def limit(self, problem: Problem, profile: Profile, candidates: Candidates) -> Column:
        """The last value for which it holds, of each candidate; infinite or negative for none."""
        names = self._integers()
        first, which = _distinct(candidates, names)
        rows = candidates.take(first)
        # Beside its integers, a plan is known by what makes a step time an MFU or tokens a second.
        asked = (
            problem.workload.global_batch_tokens,
            problem.peak_flops_per_s,
            profile.compute.flops_per_step(problem),
        )
        integers = [column(rows, name).tolist() for name in names]
        keys = [(*asked, *each) for each in zip(*integers, strict=True)] or [asked] * len(rows)
        fresh = np.array([n for n, key in enumerate(keys) if key not in self._known], dtype=np.intp)
        if len(fresh):
            found = self._last(problem, profile, rows.take(fresh))
            self._known.update(zip((keys[n] for n in fresh), found.tolist(), strict=True))
        return np.array([self._known[key] for key in keys])[which]

    def _last(self, problem: Problem, profile: Profile, rows: Candidates) -> Column:
        """The same, of rows whose integers nobody has asked for."""
        low, high = (np.full(len(rows), value) for value in RANGE[self.kind])
        never = ~self.holds(problem, profile, rows, low)
        always = self.holds(problem, profile, rows, high)
        # Positive floats are in the order of their bits.
        below, above = low.view(np.int64), high.view(np.int64)
        while len(rows) and (above - below).max() > 1:
            middle = below + (above - below) // 2
            fits = self.holds(problem, profile, rows, middle.view(np.float64))
            below, above = np.where(fits, middle, below), np.where(fits, above, middle)
        last = np.where(always, np.inf, below.view(np.float64))
        return np.where(never, -np.inf, last)


def _comparisons(expression: pl.Expr) -> Iterator[pl.Expr]:
    """What ``and`` and ``or`` join, all the way down."""
    parts = split(expression, operator.and_)
    if len(parts) == 1:
        parts = split(expression, operator.or_)
    if len(parts) == 1:
        yield expression
        return
    for part in parts:
        yield from _comparisons(part)


def _distinct(
    candidates: Candidates, names: Sequence[str]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """One candidate for each combination of some columns, and the combination of each candidate."""
    which = np.zeros(len(candidates), dtype=np.intp)
    for name in names:
        values, index = np.unique(column(candidates, name), return_inverse=True)
        _, which = np.unique(which * len(values) + index, return_inverse=True)
    _, first = np.unique(which, return_index=True)
    return first, which
