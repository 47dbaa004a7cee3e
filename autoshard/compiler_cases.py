"""What the calibrated costs predict of a plan that a compiler compiles, in the compiler's terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from autoshard.catalog import load_chip, load_model
from autoshard.compiled import Case
from autoshard.costmodels.calibrated import calibrated
from autoshard.costmodels.calibrated_memory import CalibratedMemory
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.legality import one_row
from autoshard.costmodels.memory_facts import MemoryFacts, memory_facts
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.remat import layers_by_rung
from autoshard.costmodels.setting import Setting
from autoshard.costmodels.stack import Stack, stack_by_name
from autoshard.costmodels.volumes import Volume, boundary_bytes, volumes
from autoshard.costmodels.workload import Workload
from autoshard.launch.mesh import mesh_axes
from autoshard.memory_parts import memory_parts

#: Bytes of a token in the batch that a step is given: int32 in JAX; in PyTorch int64, with the
#: targets beside them (the programs in tests/compilers); in MaxText positions and segments of both,
#: and no more of them than are read.
TOKEN_BYTES = {"xla-tpu": 4.0, "torch": 16.0, "maxtext": 20.0}

#: Axes of :func:`~autoshard.launch.mesh.mesh_axes` that an axis of the cost models runs over.
MESH_AXES = {
    "tensor": ("tensor",),
    "fsdp": ("fsdp", "sequence", "context"),
    "sequence": ("sequence",),
    "context": ("context",),
    "replicas": ("data",),
    "stages": ("stage",),
}

#: What a kind of flow moves, in the words of :attr:`autoshard.compiled.Collective.what`.
MOVED = {
    ("fsdp", "all-gather"): "weights",
    ("fsdp", "reduce-scatter"): "gradients",
    ("dp", "all-reduce"): "gradients",
    ("tp", "all-gather"): "activations",
    ("tp", "reduce-scatter"): "activations",
    ("seq", "all-gather"): "keys and values",
    ("seq", "reduce-scatter"): "gradients of keys and values",
    ("cp", "permute"): "keys and values",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Bytes that each chip sends in a step by one kind of collective along some axes.

    ``what`` says what moves, such as ``forward layer weights``.
    """

    kind: str
    axes: tuple[str, ...]
    what: str
    moved_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one chip of the stage that is looked at holds and moves.

    ``state_bytes`` are weights and optimizer state, as they stay from step to step;
    ``batch_bytes`` the step's tokens. ``memory`` is the peak by kind, as tensors take it: without
    what an allocator or the runtime holds beside them, and without the batch.
    """

    state_bytes: float
    batch_bytes: float
    memory: Mapping[str, float]
    moves: tuple[Move, ...]

    @property
    def argument_bytes(self) -> float:
        """What lives through the step."""
        return self.state_bytes + self.batch_bytes

    @property
    def peak_bytes(self) -> float:
        """What the program needs at its fullest."""
        return sum(self.memory.values()) + self.batch_bytes


def predict(case: Case) -> Prediction:
    """What the costs of the case's stack say of it, with the facts that it replaces.

    Raises:
        SpecError: the case names a fact, rung, preset or stage that there is not, or its parts do
            not agree.
    """
    try:
        return _predict(case)
    except SpecError as error:
        raise SpecError(f"case {case.name!r}: {error}") from None


def _predict(case: Case) -> Prediction:
    plan = case.plan
    _check(case)
    stack, facts = _told(case)
    problem = _problem(case, stack.recipe)
    memory = CalibratedMemory(stack=stack, other_facts=facts, allocated=True)
    profile = replace(calibrated(stack), memory=memory)
    row = one_row(plan)
    lasting = memory.lasting(problem, row, stack.ladder)
    state = plan.layers_per_stage[case.stage] * lasting.layer_state_bytes[0]
    if case.stage == 0:
        state += lasting.embedding_state_bytes[0]
    if case.stage == plan.pp - 1:
        state += lasting.head_state_bytes[0]
    sequences = plan.microbatches * plan.micro_batch_size
    if case.compiler == "maxtext":
        # It loads a sequence for each chip, and trains on the first of them.
        sequences = max(sequences, plan.chips_used // (plan.dp * plan.batch_split))
    tokens = sequences * case.seq_len
    parts = memory_parts(problem, profile, plan, row)
    return Prediction(
        state_bytes=float(state),
        batch_bytes=TOKEN_BYTES[case.compiler] * tokens / (plan.seq_split * plan.cp),
        memory={kind: stages[case.stage] for kind, stages in parts.items()},
        moves=tuple(_moves(case, problem, profile, stack)),
    )


def _check(case: Case) -> None:
    plan, rungs = case.plan, {rung.name for rung in stack_by_name(case.stack).ladder}
    if case.compiler not in TOKEN_BYTES:
        raise SpecError(f"compiler {case.compiler!r} is not one of {', '.join(TOKEN_BYTES)}.")
    if not 0 <= case.stage < plan.pp:
        raise SpecError(f"stage {case.stage} is none of the plan's {plan.pp}, counted from 0.")
    if sum(plan.layers_per_stage) != case.n_layers:
        raise SpecError(
            f"the plan deals {sum(plan.layers_per_stage)} layers, and n_layers = {case.n_layers}."
        )
    unknown = sorted({name for stage in plan.remat for name in stage} - rungs)
    if unknown:
        raise SpecError(f"{case.stack} has no remat {unknown[0]!r}; it has {', '.join(rungs)}.")


def _told(case: Case) -> tuple[Stack, MemoryFacts]:
    """The stack and what it spends beside tensors, as the case changes them."""
    stack = stack_by_name(case.stack)
    given = {key: _frozen(value) for key, value in case.facts.items()}

    def taken(kind: type[Any], *but: str) -> dict[str, Any]:
        return {f.name: given.pop(f.name) for f in fields(kind) if f.name in {*given} - {*but}}

    recipe = replace(stack.recipe, **taken(Recipe))
    facts = replace(memory_facts(stack), **taken(MemoryFacts))
    stack = replace(stack, recipe=recipe, **taken(Stack, "name", "recipe", "ladder", "legality"))
    if given:
        raise SpecError(f"{next(iter(given))!r} is no fact of a stack, its recipe or its memory.")
    return stack, facts


def _frozen(value: Any) -> Any:
    """A list out of JSON as the tuple that it was."""
    return tuple(value) if isinstance(value, list) else value


def _problem(case: Case, recipe: Recipe) -> Problem:
    plan, chip = case.plan, load_chip(case.chip)
    try:
        shape = tuple(int(length) for length in case.topology.split("x"))
        (size,) = shape if chip.kind == "gpu" else (None,)
    except ValueError:
        wanted = "a number of GPUs" if chip.kind == "gpu" else "lengths such as 4x4x4"
        raise SpecError(f"topology {case.topology!r} is not {wanted}.") from None
    if size is None:
        cluster = Cluster.build(chip, pods=plan.pods, topology=shape)
    else:
        cluster = Cluster.build(chip, chips=size)
    if plan.chips_used > cluster.chips:
        raise SpecError(f"the plan is for {plan.chips_used} chips, and there are {cluster.chips}.")
    sequences = plan.dp * plan.batch_split * plan.microbatches * plan.micro_batch_size
    return Problem(
        model=replace(load_model(case.model), n_layers=case.n_layers),
        cluster=cluster,
        workload=Workload(global_batch_seqs=sequences, seq_len=case.seq_len),
        recipe=recipe,
    )


def _moves(case: Case, problem: Problem, profile: Profile, stack: Stack) -> Iterator[Move]:
    """Every collective of the stage's chip in a step, and what it passes on to its neighbours."""
    plan, stage = case.plan, case.stage
    setting = Setting.of(problem, one_row(plan))
    rungs = layers_by_rung(plan, profile.ladder)[stage].astype(np.float64)
    places = {
        "layer": float(plan.layers_per_stage[stage]),
        "embedding": float(stage == 0),
        "head": float(stage == plan.pp - 1),
    }
    for volume in volumes(setting, stack, profile.ladder):
        moved = volume.moved_bytes(setting)[0]
        once = volume.phase.startswith("once")
        passes = 1.0 if once else float(plan.microbatches)
        sums = float(rungs @ moved) if volume.phase == "recompute" else places[volume.place] * moved
        if sums:
            yield Move(
                kind=volume.collective,
                axes=_axes(plan, volume.axis),
                what=_what(volume),
                moved_bytes=float(passes * sums),
            )
    sent = plan.microbatches * float(boundary_bytes(setting)[0])
    ends = {"forward": stage == plan.pp - 1, "backward": stage == 0}
    for phase, last in ends.items():
        chunks = plan.vpp - last  # the last chunk of a pass has nobody to send to
        if plan.pp > 1 and chunks:
            yield Move(
                kind="send",
                axes=_axes(plan, "stages"),
                what=f"{phase} activations between stages",
                moved_bytes=chunks * sent,
            )


def _what(volume: Volume) -> str:
    phase = volume.phase.removeprefix("once_")
    return f"{phase} {volume.place} {MOVED[volume.kind, volume.collective]}"


def _axes(plan: Plan, axis: str) -> tuple[str, ...]:
    """The axes of the plan's mesh that have more than one rank."""
    mesh = mesh_axes(plan)
    return tuple(name for name in MESH_AXES[axis] if mesh[name].size > 1)
