"""What stands in the way of stating a plan in a framework: refusals, in one sentence each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.legality import broken_stack_rules, one_row
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.remat import TEXTBOOK_LADDER, Rung, counterpart
from autoshard.costmodels.stack import STACKS, Stack

if TYPE_CHECKING:
    from autoshard.solved import SolvedPlan

#: What a framework has that comes nearest to a rung that it has no setting for.
NEAR_RUNGS = {
    ("torchtitan", "save_matmuls"): "selective_op keeps every second matmul",
    ("maxtext", "none"): "minimal_with_context keeps the most",
    ("maxtext-gpu", "none"): "minimal_with_context keeps the most",
}

#: Rungs of the textbook that every framework's ends are: nothing runs again (the book's 20 tensors
#: are all that it counts), or the layer's input alone is kept ("block remat", transformers.md).
ENDS = {"save_all": "none", "checkpoints_1": "full"}


def refuse(framework: str, what: str, reason: str, nearest: str) -> NoReturn:
    """Say that a framework cannot state something, why, and what would work.

    Raises:
        SpecError: always.
    """
    raise SpecError(f"{framework} cannot state {what}: {reason}; {nearest}.")


def textbook_rungs(stack: Stack) -> dict[str, str]:
    """The rungs of the textbook that are a setting of a stack, as ``expressible_in`` has them."""
    settings = [rung for rung in stack.ladder if rung.name not in stack.legality.missing_rungs]
    same = {rung.name: counterpart(rung, settings) for rung in TEXTBOOK_LADDER}
    return {name: setting.name for name, setting in same.items() if setting is not None}


def stated(plan: SolvedPlan, stack: Stack | str, extra: tuple[Rung, ...] = ()) -> Plan:
    """The plan under the names of a stack's remat ladder, where its framework can state it.

    ``extra`` are rungs beside the stack's ladder that the framework has a setting for.

    Raises:
        SpecError: it cannot; the message has the reason and what it can.
    """
    stack = STACKS[stack] if isinstance(stack, str) else stack
    problem, framework = plan.problem, stack.legality.framework
    check_chips(problem, framework, stack.chips)
    check_schedule(plan, framework, stack.schedules)
    check_degree(plan, framework, "ep", "the cost models cover dense models alone")
    rungs = textbook_rungs(stack)
    bare = renamed(plan, rungs)
    stack = dataclasses.replace(stack, ladder=(*stack.ladder, *extra))
    broken = broken_stack_rules(problem, stack, bare)
    if broken:
        near = "".join(f"{text}; " for text in _nearest(problem, stack, bare, rungs))
        raise SpecError(
            f"{framework} cannot state this plan: {'; '.join(broken)}; {near}solve with "
            f"--stack {stack.name} for the fastest plan that it can."
        )
    return bare


def renamed(plan: SolvedPlan, rungs: Mapping[str, str]) -> Plan:
    """The bare plan with its rungs under other names; rungs without layers are left out."""
    remat = tuple(
        {rungs.get(name, name): layers for name, layers in stage.items() if layers}
        for stage in plan.remat
    )
    return dataclasses.replace(plan.point.plan, remat=remat)


def check_chips(problem: Problem, framework: str, kinds: tuple[str, ...]) -> None:
    """Refuse a plan for chips that the framework does not run on.

    Raises:
        SpecError: it does not.
    """
    chip = problem.cluster.chip
    if chip.kind not in kinds:
        nearest = "export with maxtext or jax" if chip.kind == "tpu" else "solve for a GPU"
        refuse(framework, f"a plan for {chip.name}", f"it does not run on {chip.kind}s", nearest)


def check_schedule(plan: SolvedPlan, framework: str, schedules: tuple[str, ...]) -> None:
    """Refuse a plan whose pipeline runs under a schedule that the framework does not have.

    Raises:
        SpecError: it does not.
    """
    name = schedule_of(plan)
    if plan.pp > 1 and name not in schedules:
        refuse(
            framework,
            f"schedule = {name}",
            f"its pipelines run {' or '.join(schedules)}",
            f"solve with --schedule {schedules[0]}",
        )


def schedule_of(plan: SolvedPlan) -> str:
    """The pipeline schedule that a plan was priced under."""
    return str(plan.front.problem["costs"].get("schedule", "1f1b"))


def check_degree(plan: Plan, framework: str, degree: str, lacks: str, instead: str = "") -> None:
    """Refuse a degree above one that the framework does not have.

    Raises:
        SpecError: it is above one.
    """
    if getattr(plan, degree) > 1:
        nearest = instead or f'solve with --where "{degree} == 1"'
        refuse(framework, f"{degree} = {getattr(plan, degree)}", lacks, nearest)


def check_heads(problem: Problem, plan: Plan, framework: str) -> None:
    """Refuse a tensor degree that does not split the heads and the KV heads.

    Raises:
        SpecError: it does not.
    """
    for name, heads in (("heads", problem.model.n_heads), ("KV heads", problem.model.n_kv_heads)):
        if heads % plan.tp:
            nearest = max(d for d in range(1, plan.tp) if heads % d == 0)
            refuse(
                framework,
                f"tp = {plan.tp}",
                f"it does not divide {heads} {name}",
                f"tp = {nearest} would",
            )


def one_rung(
    plan: SolvedPlan, framework: str, rungs: Mapping[str, str], allowed: tuple[str, ...]
) -> str:
    """The remat setting of a plan whose layers all have the same, in the names of ``rungs``.

    Raises:
        SpecError: they do not, or it is no setting of the framework.
    """
    used = sorted({name for stage in renamed(plan, rungs).remat for name in stage})
    if len(used) > 1 or used[0] not in allowed:
        refuse(
            framework,
            f"remat {' and '.join(used)}",
            f"it has one setting for all layers out of {', '.join(allowed)}",
            "the textbook's save_all is none and its checkpoints_1 is full",
        )
    return used[0]


def assumed(plan: SolvedPlan, stack: Stack) -> list[str]:
    """What the prediction assumes that the framework does otherwise by default, in sentences."""
    costs = plan.front.problem["costs"]
    notes = []
    if costs.get("plans_of") != stack.name and costs["profile"] != f"calibrated/{stack.name}":
        notes.append(
            f"The time and memory are predicted by the costs {costs['profile']}, which are not "
            f"those of {stack.legality.framework}; `autoshard solve --stack {stack.name}` has them."
        )
    recipe, own = plan.problem.recipe, stack.recipe
    if recipe.state_bytes != own.state_bytes:
        notes.append(
            f"The predicted memory has {recipe.state_bytes:g} bytes of weight, gradient and "
            f"optimizer state a parameter; {stack.legality.framework} keeps {own.state_bytes:g} by "
            "default."
        )
    rungs = textbook_rungs(stack)
    used = {name for stage in plan.remat for name in stage}
    notes += [
        f"{old} of the textbook is {setting} here, which runs the same matmuls and attention again "
        "and does not keep the same tensors: its memory is another."
        for old, setting in rungs.items()
        if old in used and ENDS.get(old) != setting
    ]
    return notes


def _nearest(problem: Problem, stack: Stack, plan: Plan, rungs: Mapping[str, str]) -> list[str]:
    """One-degree changes that the broken rules themselves suggest."""
    rules = {rule.name: rule for rule in stack.legality.rules}
    heads = [rules[name] for name in ("heads", "kv_heads") if name in rules]
    said = []

    def allowed(tp: int) -> bool:
        row = one_row(dataclasses.replace(plan, tp=tp))
        return all(bool(rule.allows(problem, row)[0]) for rule in heads)

    if not allowed(plan.tp):
        tp = max(degree for degree in range(1, plan.tp) if allowed(degree))
        said.append(f"tp = {tp} would do")
    if plan.cp > 1 and "no_cp" in rules:
        said.append("seq_split is what it has in the place of cp")
    counts = {stage.get(stack.ladder[-1].name, 0) for stage in plan.remat}
    if stack.legality.remat == "one-count" and len(counts) > 1:
        said.append("the largest count of all stages would fit and be slower")
    if stack.legality.equal_stages and len(set(plan.layers_per_stage)) > 1:
        said.append(f"a pp that divides {problem.model.n_layers} layers would do")
    used = {name for stage in plan.remat for name in stage}
    said += [NEAR_RUNGS[key] for name in sorted(used) if (key := (stack.name, name)) in NEAR_RUNGS]
    said += [f"{new!r} is {old!r} here" for old, new in rungs.items() if new in used and old != new]
    return said
