"""A profile: one cost model per role, priced together into what the search reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import (
    PLACES,
    Column,
    CommsCost,
    ComputeCost,
    MemoryCost,
    Phase,
    PipelineCost,
    Place,
    check_column,
    check_columns,
    check_record,
)
from autoshard.costmodels.errors import CostModelError, SpecError
from autoshard.costmodels.legality import UNRESTRICTED, Legality
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.remat import Rung

ROLES = ("compute", "comms", "overlap", "memory", "pipeline")


@runtime_checkable
class CostModel(Protocol):
    """What every cost model has beside its call: a name, a role, and what it covers.

    ``covers`` names the kinds of model whose cost it knows: ``dense``, ``experts``. A profile
    refuses a model that one of its cost models does not cover.
    """

    @property
    def name(self) -> str:
        """How errors and answers call it."""

    @property
    def role(self) -> str:
        """One of :data:`ROLES`."""

    @property
    def covers(self) -> frozenset[str]:
        """Kinds of model that it prices."""


class ComputeModel(CostModel, Protocol):
    """Seconds of arithmetic of a layer, the embedding and the head, and of each rung's recompute.

    ``flops_per_step`` is what MFU counts. No plan may be faster than it at its chips' peak: the
    search relies on it.
    """

    def flops_per_step(self, problem: Problem) -> float:
        """Model FLOPs of one step."""

    def __call__(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> ComputeCost:
        """Price every candidate."""


class CommsModel(CostModel, Protocol):
    """Seconds of every collective and transfer, on the resources that they hold."""

    def __call__(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> CommsCost:
        """Price every candidate."""


class OverlapModel(CostModel, Protocol):
    """Linear forms ``[j, 1 + k]``; a pass takes the largest of its compute and resources."""

    def __call__(self, resources: tuple[str, ...]) -> Column:
        """The forms over compute and these resources."""


class MemoryModel(CostModel, Protocol):
    """Bytes of state, saved activations and everything else on one chip."""

    def __call__(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> MemoryCost:
        """Price every candidate."""


class PipelineModel(CostModel, Protocol):
    """Step time from stage times, and microbatches in flight at each stage.

    More microbatches or virtual stages never make the bubble a larger share of the step: the search
    relies on it. ``virtual = False`` says that there are no virtual stages, ``remat = False`` that
    a stage of several holds every tensor of a microbatch, whatever rung it runs.
    """

    def __call__(self, candidates: Candidates) -> PipelineCost:
        """Price every candidate."""

    def in_flight(self, pp: int, vpp: int, microbatches: int) -> Column:
        """Microbatches held at the peak of each stage, ``[pp]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """Coefficients of each candidate, linear in layers per stage and layers per rung.

    ``n`` candidates, ``j`` overlap forms, ``r`` rungs. For a stage with ``k[r]`` layers on each
    rung, a pass takes the largest form; per microbatch, in seconds:

        forward[j]  = sum(k) * forward_s["layer"][j] + its embedding and head
        backward[j] = sum_r k[r] * backward_s[j, r]  + its embedding and head
        stage       = max_j forward + max_j backward + send_s
        step        = max_weight * max(stage) + sum_weight * sum(stage) + exposed
        exposed     = max over stages of what ``once_*`` adds to the longest form of a forward pass
        and
                      of a backward pass without recompute
        memory      = sum(k) * layer_state + ends + in_flight * sum_r k[r] * saved_bytes[r] + fixed
    """

    forward_s: Mapping[Place, Column]
    backward_s: Mapping[Place, Column]
    layer_backward_s: Column
    once_forward_s: Mapping[Place, Column]
    once_backward_s: Mapping[Place, Column]
    send_s: Column
    max_weight: Column
    sum_weight: Column
    state_bytes: Mapping[Place, Column]
    saved_bytes: Column
    fixed_bytes: Column
    comms_s: Column

    def take(self, rows: Any) -> StageCosts:
        """The coefficients of those rows; in memory, one form or rung stays together."""
        return _map_columns(lambda column: column.T[..., rows].T, self)

    @classmethod
    def concatenate(cls, parts: Sequence[StageCosts]) -> StageCosts:
        """One table out of several."""
        return _map_columns(lambda *cs: np.concatenate([c.T for c in cs], axis=-1).T, *parts)


def _map_columns(function: Callable[..., Column], *parts: StageCosts) -> StageCosts:
    """Apply a function to the same column of each part, place by place."""
    made: dict[str, Any] = {}
    for field in dataclasses.fields(StageCosts):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], np.ndarray):
            made[field.name] = function(*values)
        else:
            made[field.name] = {p: function(*(v[p] for v in values)) for p in values[0]}
    return StageCosts(**made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """How well measurements support a profile's answer to a problem.

    ``interval`` are the factors on a predicted step time between which four of five measured ones
    lie; None where nobody has measured. ``guessed`` says in words what no measured run fixes, with
    the value that was taken and its source; ``unmeasured`` which matmuls and messages of the first
    plan are outside of those that were measured; ``notes`` are sentences on where constants are
    from.
    """

    interval: tuple[float, float] | None = None
    guessed: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _no_evidence(_: Problem, __: Candidates) -> Evidence:
    """The evidence for a profile that was never held against runs."""
    return Evidence()


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A named set of one cost model per role, and the remat ladder they share.

    ``recipe`` is how state is stored where a problem does not say; ``evidence`` says how well the
    plans that answer a problem are supported by measurements; ``origin`` is where constants are
    from, as plain values; ``schedules`` names the pipeline schedules that its software stack runs,
    none where it is of no stack; ``chips`` the kinds of chip. ``legality`` restricts the plans that
    the search considers (:meth:`under`); ``whole_ladder`` is the ladder without the restriction.
    """

    name: str
    compute: ComputeModel
    comms: CommsModel
    overlap: OverlapModel
    memory: MemoryModel
    pipeline: PipelineModel
    ladder: tuple[Rung, ...]
    recipe: Recipe | None = None
    evidence: Callable[[Problem, Candidates], Evidence] = _no_evidence
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    description: str = ""
    schedules: tuple[str, ...] = ()
    chips: tuple[str, ...] = ("gpu", "tpu")
    legality: Legality = UNRESTRICTED
    whole_ladder: tuple[Rung, ...] = ()

    def under(self, legality: Legality) -> Profile:
        """The same costs for the plans that a framework can state."""
        whole = self.whole_ladder or self.ladder
        ladder = tuple(rung for rung in whole if rung.name not in legality.missing_rungs)
        return dataclasses.replace(self, legality=legality, ladder=ladder, whole_ladder=whole)

    @property
    def unrestricted(self) -> Profile:
        """The same costs for every plan."""
        return dataclasses.replace(
            self, legality=UNRESTRICTED, ladder=self.whole_ladder or self.ladder, whole_ladder=()
        )

    @property
    def models(self) -> tuple[CostModel, ...]:
        """The five cost models, in the order of :data:`ROLES`."""
        return (self.compute, self.comms, self.overlap, self.memory, self.pipeline)

    @property
    def virtual(self) -> bool:
        """Whether the schedule has virtual stages; a pipeline model that does not say has."""
        return getattr(self.pipeline, "virtual", True)

    def replace(self, *models: Any, name: str | None = None) -> Profile:
        """This profile with each given model in the place of its role.

        Raises:
            CostModelError: an object is not a cost model.
        """
        changed: dict[str, Any] = {}
        for model in models:
            if not isinstance(model, CostModel) or not callable(model) or model.role not in ROLES:
                raise CostModelError(
                    f"{model!r} is not a cost model: it needs name, covers, a role out of "
                    f"{', '.join(ROLES)}, and to be callable."
                )
            changed[model.role] = model
        label = name or "+".join([self.name, *(m.name for m in models)])
        return dataclasses.replace(self, name=label, **changed)

    def check_covers(self, problem: Problem) -> None:
        """Refuse a model whose cost a cost model does not know, and a chip of another kind.

        Raises:
            CostModelError: names the cost model and what it lacks.
            SpecError: the chip is of a kind that the profile is not for.
        """
        chip = problem.cluster.chip
        if chip.kind not in self.chips:
            raise SpecError(
                f"the costs {self.name!r} are for {' and '.join(self.chips)}, and {chip.name} is a "
                f"{chip.kind}; the calibrated costs have a stack for each kind."
            )
        kind = "experts" if problem.model.n_experts > 1 else "dense"
        for model in self.models:
            if kind not in model.covers:
                raise CostModelError(
                    f"{problem.model.name} has {problem.model.n_experts} experts, which cost model "
                    f"{model.name!r} ({model.role}) does not price; use a profile "
                    "that covers experts."
                )
        flops = self.compute.flops_per_step(problem)
        if not isinstance(flops, (int, float)) or not 0 < flops < np.inf:
            raise CostModelError(
                f"cost model {self.compute.name!r}: flops_per_step must be finite and greater than "
                f"zero, got {flops!r}."
            )

    def price(self, problem: Problem, candidates: Candidates) -> StageCosts:
        """Coefficients of every candidate, each model's answer checked.

        Raises:
            CostModelError: a model returned a wrong shape, NaN or a negative cost; it is named.
        """
        compute, comms = self.price_parts(problem, candidates)
        memory = self.price_memory(problem, candidates)
        memory = dataclasses.replace(memory, saved_bytes=self.kept_bytes(candidates, memory))
        pipeline = self.pipeline(candidates)
        n = len(candidates)
        check_record(self.pipeline.name, pipeline, PipelineCost)
        check_columns(self.pipeline.name, pipeline, {"max_weight": (n,), "sum_weight": (n,)})
        forms = self.overlap(comms.resources)
        check_record(self.overlap.name, forms, np.ndarray)
        rows = max(len(forms), 1) if forms.ndim else 1  # at least one form
        check_column(self.overlap.name, "forms", forms, (rows, 1 + len(comms.resources)))
        return stage_costs(
            compute,
            comms,
            memory,
            pipeline,
            forms,
            comms_s=comms_seconds(problem, candidates, comms),
        )

    def price_memory(self, problem: Problem, candidates: Candidates) -> MemoryCost:
        """The checked answer of the memory model."""
        memory = self.memory(problem, candidates, self.ladder)
        check_record(self.memory.name, memory, MemoryCost)
        n, rungs = len(candidates), len(self.ladder)
        shapes = {f.name: (n,) for f in dataclasses.fields(MemoryCost)}
        check_columns(self.memory.name, memory, shapes | {"saved_bytes": (n, rungs)})
        return memory

    def kept_bytes(self, candidates: Candidates, memory: MemoryCost) -> Column:
        """Saved bytes per layer and microbatch as the schedule keeps them, ``[n, r]``.

        Those of the memory model, or of its largest rung where remat saves a stage nothing.
        """
        saved = memory.saved_bytes
        if getattr(self.pipeline, "remat", True):
            return saved
        return np.where(candidates.pp[:, None] > 1, saved.max(axis=1, keepdims=True), saved)

    def in_flight(self, schedules: Sequence[tuple[int, int, int]]) -> list[Column]:
        """The checked answers of the pipeline model to each ``(pp, vpp, microbatches)``.

        Microbatches held by each stage, ``[pp]`` each.

        Raises:
            CostModelError: a stage holds none, or an answer is no column.
        """
        name = self.pipeline.name
        held = [self.pipeline.in_flight(*each) for each in schedules]
        for (pp, _, _), column in zip(schedules, held, strict=True):
            if not isinstance(column, np.ndarray) or column.shape != (pp,):
                check_column(name, "in_flight", column, (pp,))
        if held:
            everything = np.concatenate(held)
            check_column(name, "in_flight", everything, everything.shape)
            if not everything.all():
                raise CostModelError(f"cost model {name!r}: in_flight must be greater than zero.")
        return held

    def price_parts(
        self, problem: Problem, candidates: Candidates
    ) -> tuple[ComputeCost, CommsCost]:
        """The checked answers of the compute and comms models, before overlap."""
        n, rungs = len(candidates), len(self.ladder)
        compute = self.compute(problem, candidates, self.ladder)
        check_record(self.compute.name, compute, ComputeCost)
        check_columns(
            self.compute.name,
            compute,
            {f.name: (n,) for f in dataclasses.fields(ComputeCost)} | {"recompute_s": (n, rungs)},
        )
        comms = self.comms(problem, candidates, self.ladder)
        check_record(self.comms.name, comms, CommsCost)
        check_columns(self.comms.name, comms, {"send_s": (n,)})
        for flow in comms.flows:
            shape = (n, rungs) if flow.phase == "recompute" else (n,)
            for resource, seconds in flow.seconds.items():
                if not 0 <= resource < len(comms.resources):
                    raise CostModelError(
                        f"cost model {self.comms.name!r}: flow {flow.kind} holds resource "
                        f"{resource} of {len(comms.resources)}."
                    )
                check_column(
                    self.comms.name, f"{flow.kind} {flow.phase} {flow.place}", seconds, shape
                )
        return compute, comms


def stage_costs(
    compute: ComputeCost,
    comms: CommsCost,
    memory: MemoryCost,
    pipeline: PipelineCost,
    forms: Column,
    *,
    comms_s: Column,
) -> StageCosts:
    """What the five answers come to, stage by stage; ``forms`` ``[j, 1 + k]`` are the overlap."""
    n = len(comms.send_s)

    def passes(phase: Phase, compute_s: Mapping[Place, Column]) -> dict[Place, Column]:
        return {p: _forms(forms, compute_s.get(p), comms.total_s(phase, p), n) for p in PLACES}

    forward = passes(
        "forward",
        {
            "layer": compute.layer_forward_s,
            "embedding": compute.embedding_forward_s,
            "head": compute.head_forward_s,
        },
    )
    backward = passes(
        "backward",
        {
            "layer": compute.layer_backward_s,
            "embedding": compute.embedding_backward_s,
            "head": compute.head_backward_s,
        },
    )
    # Built as [r, j, n] and seen as [n, j, r]: reductions over forms and rungs run along memory.
    recompute = np.multiply.outer(compute.recompute_s.T, forms[:, 0]).swapaxes(1, 2)
    for resource, seconds in comms.recompute_s().items():
        recompute = recompute + seconds.T[:, None, :] * forms[None, :, 1 + resource, None]
    once_forward, once_backward = passes("once_forward", {}), passes("once_backward", {})
    return StageCosts(
        forward_s=forward,
        backward_s=backward,
        layer_backward_s=(backward["layer"].T[None, :, :] + recompute).T,
        once_forward_s=once_forward,
        once_backward_s=once_backward,
        send_s=comms.send_s,
        max_weight=pipeline.max_weight,
        sum_weight=pipeline.sum_weight,
        state_bytes={
            "layer": memory.layer_state_bytes,
            "embedding": memory.embedding_state_bytes,
            "head": memory.head_state_bytes,
        },
        saved_bytes=memory.saved_bytes,
        fixed_bytes=memory.fixed_bytes,
        comms_s=comms_s,
    )


def comms_seconds(problem: Problem, candidates: Candidates, comms: CommsCost) -> Column:
    """Communication of one step on an average chip, hidden or not, without remat's, ``[n]``.

    What ties are broken by: of two plans that are equally fast, the one that talks less.
    """
    total = candidates.microbatches * comms.send_s
    for flow in comms.flows:
        if flow.phase == "recompute":
            continue
        times = problem.model.n_layers if flow.place == "layer" else 1
        steps = 1 if flow.phase.startswith("once") else candidates.microbatches
        for seconds in flow.seconds.values():
            total = total + seconds * (times * steps / candidates.pp)
    return total


def _forms(forms: Column, compute: Column | None, comms: Mapping[int, Column], n: int) -> Column:
    """Each overlap form of compute ``[n]`` and comms per resource: ``[n, j]``, column by column."""
    priced = np.zeros((len(forms), n))
    for j, weights in enumerate(forms.tolist()):
        if compute is not None and weights[0]:
            priced[j] += weights[0] * compute
        for resource, seconds in comms.items():
            if weights[1 + resource]:
                priced[j] += weights[1 + resource] * seconds
    return priced.T
