"""What binds where there is no plan, and the nearest questions that have one.

Everything here is found by the search: a size is named where the least memory of all its plans has
been computed and fits, and a constraint binds where the problem without it has a plan.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from autoshard.conjuncts import conjuncts
from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.fixing import fix_words, keep_fixed
from autoshard.predicted import PREDICTED
from autoshard.search import nearest
from autoshard.search.prune import least_memory
from autoshard.search.space import Keep
from autoshard.where import compile_where

if TYPE_CHECKING:
    import polars as pl

MEMORY, CHIPS, BATCH = "memory", "chips", "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Why a problem has no plan.

    ``binding`` is a smallest set of constraints that no plan satisfies together: ``memory``,
    ``chips``, ``batch`` and conditions of ``--where`` in their own words; without any one of them
    the others have a plan. ``least_bytes`` is the least memory per chip of any plan that satisfies
    ``--where`` on these chips with this batch, infinite where there is none. ``fewest_chips`` and
    the nearest ``smaller_batch`` and ``larger_batch``, in sequences, each make the whole problem
    feasible; None where none is known to. ``chips_exact`` says that fewer chips are excluded.
    """

    binding: tuple[str, ...]
    least_bytes: float
    fewest_chips: int | None = None
    chips_exact: bool = False
    smaller_batch: int | None = None
    larger_batch: int | None = None


def diagnose(
    problem: Problem,
    profile: Profile,
    where: str | pl.Expr | None = None,
    fix: Mapping[str, int] | None = None,
) -> Diagnosis:
    """Why a problem has no plan; the problem must have none.

    Conditions on what is predicted are left out.
    """
    ask = _Ask(problem=problem, profile=profile, conditions=conditions_of(where, fix))
    binding = ask.binding()
    keep = ask.all_of(ask.conditions)
    least = least_memory(problem, profile, keep)
    chips = nearest.fewest_chips(problem, profile, keep) if CHIPS in binding else None
    batches = nearest.nearest_batches(problem, profile, keep) if BATCH in binding else (None, None)
    return Diagnosis(
        binding=binding,
        least_bytes=least,
        fewest_chips=None if chips is None else chips[0],
        chips_exact=chips is not None and chips[1],
        smaller_batch=batches[0],
        larger_batch=batches[1],
    )


#: Columns that change with the batch.
OF_BATCH = frozenset(
    {"dp", "batch_split", "fsdp", "microbatches", "micro_batch_size", "pods", "chips_used", "vpp"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition of the user, and the columns that it reads."""

    keep: Keep
    reads: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Several conditions as one constraint."""

    parts: tuple[Condition, ...]

    def __call__(self, candidates: Candidates) -> np.ndarray:
        """Which candidates satisfy all."""
        return functools.reduce(np.logical_and, (part.keep(candidates) for part in self.parts))

    @property
    def reads(self) -> frozenset[str]:
        """The columns that any of them reads."""
        return frozenset().union(*(part.reads for part in self.parts))


def conditions_of(
    where: str | pl.Expr | None, fix: Mapping[str, int] | None
) -> Mapping[str, Condition]:
    """The user's conditions on the integers of a plan, by their words."""
    found = {
        fix_words({name: value}): Condition(keep=keep_fixed({name: value}), reads=frozenset({name}))
        for name, value in (fix or {}).items()
    }
    for words, part in [] if where is None else conjuncts(where):
        reads = frozenset(part.meta.root_names())
        if not reads & set(PREDICTED):
            found[words] = Condition(keep=compile_where(part), reads=reads)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """A problem whose constraints can be taken away one by one."""

    problem: Problem
    profile: Profile
    conditions: Mapping[str, Condition]
    known: dict[frozenset[str], bool] = field(default_factory=dict)

    def all_of(self, names: Collection[str]) -> Conditions | None:
        """Those of the conditions that are named, as one constraint."""
        wanted = tuple(value for name, value in self.conditions.items() if name in names)
        return Conditions(parts=wanted) if wanted else None

    def binding(self) -> tuple[str, ...]:
        """A smallest set that has no plan: whatever can go while there still is none, goes.

        Memory goes first and the user's own conditions last, so that they are named where they
        alone exclude everything.
        """
        left = [MEMORY, CHIPS, BATCH, *self.conditions]
        for name in tuple(left):
            fewer = [other for other in left if other != name]
            if not self.feasible(frozenset(fewer)):
                left = fewer
        return tuple(left)

    def feasible(self, names: frozenset[str]) -> bool:
        """Whether there is a plan under those constraints alone."""
        if names not in self.known:
            self.known[names] = self._feasible(names)
        return self.known[names]

    def _feasible(self, names: frozenset[str]) -> bool:
        keep = self.all_of(names)
        memory = MEMORY in names
        problem, profile = self.problem, self.profile
        if nearest.fits(problem, profile, keep, memory=memory):
            return True
        if CHIPS not in names and nearest.fewest_chips(problem, profile, keep, memory=memory):
            return True
        if BATCH in names or not (memory or (keep is not None and keep.reads & OF_BATCH)):
            return False
        return nearest.nearest_batches(problem, profile, keep, memory=memory) != (None, None)
