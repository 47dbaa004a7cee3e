"""What a framework can state: rules on the degrees of a plan, and on its stages.

A rule is a sentence with a source and a Boolean column over candidates. Stages are restricted by a
few facts, which the search turns into families of plans (:mod:`autoshard.search.families`). The
rules of each framework are in :mod:`autoshard.costmodels.stack_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem

if TYPE_CHECKING:
    from autoshard.costmodels.remat import Rung
    from autoshard.costmodels.stack import Stack

Allowed = NDArray[np.bool_]

#: How far the remat of one layer is the business of its own: each stage has up to two rungs of its
#: own; one rung for all layers, or so many layers of every model chunk on the last rung and the
#: others on the first; one rung for all layers.
REMAT = ("by-stage", "one-count", "one-policy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule on degrees: which candidates it allows, and what is said of the others.

    ``sentence`` may hold any degree in braces, and ``model``, ``workload`` and ``cluster``.
    ``late`` says that microbatches or virtual stages have to be known.
    """

    name: str
    sentence: str
    source: str
    allows: Callable[[Problem, Candidates], Allowed]
    late: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Legality:
    """Which plans a framework can state.

    ``remat`` is one of :data:`REMAT`; ``equal_stages`` says that all stages have as many layers,
    ``counted_ends`` that embedding and head may count as a layer each when they are dealt;
    ``missing_rungs`` names rungs of the stack's ladder that no setting gives. Each has its source
    in ``stage_source``. ``split_axes_flag`` is what allows a mesh axis that is not a product of
    whole dimensions of a torus.
    """

    framework: str = "any framework"
    rules: tuple[Rule, ...] = ()
    remat: str = "by-stage"
    equal_stages: bool = False
    counted_ends: bool = False
    missing_rungs: tuple[str, ...] = ()
    stage_source: str = ""
    split_axes_flag: str = ""

    def __post_init__(self) -> None:
        if self.counted_ends and (self.remat == "by-stage" or not self.equal_stages):
            raise ValueError("counted_ends is for equal stages with one remat setting.")

    @property
    def free(self) -> bool:
        """Whether every plan can be stated."""
        return not (self.rules or self.restricts_stages or self.missing_rungs)

    @property
    def restricts_stages(self) -> bool:
        """Whether the stages of a mesh are not independent of each other."""
        return self.remat != "by-stage" or self.equal_stages

    def dealt(self, n_layers: int, pp: int) -> NDArray[np.int64] | None:
        """Layers of each stage, ``[pp]``; None where a plan may choose, zeros where none can be.

        As many on each, or, where embedding and head make up the numbers, one less on the ends.
        """
        if not self.equal_stages:
            return None
        layers = np.full(pp, n_layers // pp, dtype=np.int64)
        if self.counted_ends and n_layers % pp == pp - 2 > 0:
            layers[1:-1] += 1
        return layers if layers.sum() == n_layers else np.zeros_like(layers)

    def allows(self, problem: Problem, candidates: Candidates, *, late: bool = True) -> Allowed:
        """Candidates whose degrees can be stated, ``[n]``; without ``late``, of whole meshes."""
        allowed = np.ones(len(candidates), dtype=np.bool_)
        for rule in self.rules:
            if late or not rule.late:
                allowed &= rule.allows(problem, candidates)
        return allowed

    def reasons(self, problem: Problem, candidates: Candidates) -> list[list[str]]:
        """The sentences of the rules that each candidate breaks."""
        said: list[list[str]] = [[] for _ in range(len(candidates))]
        known = {"model": problem.model, "workload": problem.workload, "cluster": problem.cluster}
        for rule in self.rules:
            for row in np.nonzero(~rule.allows(problem, candidates))[0].tolist():
                degrees = {name: int(getattr(candidates, name)[row]) for name in COLUMNS}
                degrees["fsdp"] = degrees["batch_split"] * degrees["seq_split"]
                said[row].append(rule.sentence.format(**degrees, **known))
        return said

    def stage_reasons(self, plan: Plan, ladder: tuple[Rung, ...]) -> Iterator[str]:
        """What of a plan's stages cannot be stated, in sentences.

        ``ladder`` is the one whose rungs the plan names.
        """
        dealt = self.dealt(sum(plan.layers_per_stage), plan.pp)
        if dealt is not None and tuple(dealt.tolist()) != plan.layers_per_stage:
            low, high = min(plan.layers_per_stage), max(plan.layers_per_stage)
            ends = ", or the first and the last one lighter" if self.counted_ends else ""
            yield f"stages have {low} to {high} layers, and {self.framework} makes them equal{ends}"
        used = [{name for name, layers in stage.items() if layers} for stage in plan.remat]
        names = set().union(*used)
        known = [rung.name for rung in ladder]
        for name in sorted(names & set(self.missing_rungs)):
            yield f"{self.framework} has no setting for remat {name!r}"
        for name in sorted(names - set(known)):
            yield f"{name!r} is no rung of the ladder {', '.join(known)}"
        if self.remat == "by-stage" or len(names) == 1 or not names <= set(known):
            return
        if self.remat == "one-policy":
            yield (
                f"layers run under {_listed(names, known)}, and {self.framework} has one remat "
                "setting for all of them"
            )
        elif names != {known[0], known[-1]}:
            yield (
                f"layers run under {_listed(names, known)}, and {self.framework} mixes only "
                f"{known[0]} and {known[-1]}"
            )
        elif not _one_count(plan, known[-1]):
            counts = sorted({stage.get(known[-1], 0) for stage in plan.remat})
            yield (
                f"stages recompute {counts[0]} to {counts[-1]} layers each ({known[-1]}), and "
                f"{self.framework} has one count for all model chunks"
                if len(counts) > 1
                else f"stages recompute {counts[0]} layers in {plan.vpp} chunks each, and "
                f"{self.framework} has one count for all model chunks"
            )


#: Every plan of the space.
UNRESTRICTED = Legality()


def _listed(names: set[str], known: list[str]) -> str:
    return " and ".join(sorted(names, key=known.index))


def _one_count(plan: Plan, name: str) -> bool:
    """Whether some ``k`` has every stage recompute ``k`` layers of each chunk, or all it has."""
    return any(
        all(
            stage.get(name, 0) == min(k * plan.vpp, layers)
            for stage, layers in zip(plan.remat, plan.layers_per_stage, strict=True)
        )
        for k in range(max(plan.layers_per_stage) // plan.vpp + 2)
    )


def one_row(plan: Plan) -> Candidates:
    """The degrees of a plan as a table of one row, on the cluster's first layout."""
    return Candidates(
        **{
            name: np.array([0 if name == "layout" else getattr(plan, name)], dtype=np.int64)
            for name in COLUMNS
        }
    )


@overload
def broken_stack_rules(problem: Problem, stack: Stack | str, plans: Plan) -> list[str]: ...


@overload
def broken_stack_rules(
    problem: Problem, stack: Stack | str, plans: Candidates
) -> list[list[str]]: ...


def broken_stack_rules(
    problem: Problem, stack: Stack | str, plans: Plan | Candidates
) -> list[str] | list[list[str]]:
    """Why a stack's framework cannot state a plan, in sentences; none where it can.

    Of :class:`Candidates`, a list for each, of what their degrees break.

    Raises:
        UnknownName: there is no such stack.
    """
    from autoshard.costmodels.stack import stack_by_name

    stack = stack_by_name(stack) if isinstance(stack, str) else stack
    if isinstance(plans, Candidates):
        return stack.legality.reasons(problem, plans)
    broken = stack.legality.reasons(problem, one_row(plans))[0]
    return broken + list(stack.legality.stage_reasons(plans, stack.ladder))
