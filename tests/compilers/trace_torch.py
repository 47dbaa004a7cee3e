"""One optimizer step of one rank of a plan in PyTorch, traced without a device or other ranks.

Tensors are fake, so that a layer of 405B costs nothing, and so is the process group, which answers
every collective at once. What runs is PyTorch's own: FSDP2, DTensor, checkpointing, the pipeline
schedules and AdamW.
"""

from __future__ import annotations

import datetime
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import fused_torch as fused
import torch
import torch.distributed as dist
from llama_torch import RmsNorm, Stage, checkpoint_layers, shard_state, split_tensors
from memory_torch import Tally, allocated_bytes
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B
from torch.distributed.pipelining.stage import InferenceMode
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._ops._mask_buffer import MaskBuffer
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore

from autoshard.catalog import load_chip
from autoshard.compiled import Case, Collective, Compiled
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.model import Model
from autoshard.costmodels.plan import Plan
from autoshard.launch.mesh import AXES, torch_device_mesh
from autoshard.launch.stages import chunk_layers
from autoshard.run_memory import usable_chip_bytes

#: Fake, and of a device whose allocations :class:`Tally` counts like any other.
DEVICE = "cpu"

Step = Callable[[], None]


def trace(case: Case, model: Model) -> Compiled:
    """What a rank of the case's stage allocates and sends in its second step.

    The first step makes the optimizer's state. ``model`` is the preset cut to its layers.

    Raises:
        SpecError: the plan has a degree that this program does not have.
    """
    traced = measure(case, model)
    chip = load_chip(case.chip)
    limit = int(usable_chip_bytes(chip, chip.hbm_bytes))
    return Compiled(
        case=case,
        argument_bytes=traced.state_bytes,
        temporary_bytes=traced.tally.peak_bytes - traced.state_bytes,
        peak_bytes=traced.tally.peak_bytes,
        limit_bytes=limit,
        fits=traced.tally.peak_bytes <= limit,
        collectives=traced.collectives,
        versions={"torch": torch.__version__.partition("+")[0]},
        date=datetime.date.today().isoformat(),
    )


def check(case: Case) -> None:
    """Raises:
    SpecError: the plan has a degree or a rung that this program does not have.
    """
    plan = case.plan
    if plan.seq_split > 1 or plan.cp > 1 or plan.ep > 1 or plan.fsdp == 1:
        raise SpecError(
            f"case {case.name!r}: this program shards weights over a split batch, with dp, tp and "
            "pp beside; it has no seq_split, cp or ep."
        )
    unknown = set(_rungs(case)) - {"none", "selective_op", "full"}
    if unknown:
        raise SpecError(
            f"case {case.name!r}: no rung {min(unknown)!r}; there is none, selective_op and full."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A step: its tally, the bytes of weights, optimizer state and batch, and what it sends."""

    tally: Tally
    state_bytes: int
    collectives: tuple[Collective, ...]


def measure(case: Case, model: Model, *, watch: bool = False) -> Traced:
    """The second step of a rank; with ``watch`` the tally keeps what lives at the peak."""
    check(case)
    plan = case.plan
    rank = case.stage * (plan.chips_used // plan.pp)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=plan.chips_used)
    try:
        mesh = _Mesh.of(plan)
        tally = Tally(watch=watch)
        with torch.device("meta"):  # meshes are made of real ranks, so not yet under fake tensors
            stages = tuple(_stages(case, model, mesh, tally))
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with (
            warnings.catch_warnings(),
            mode,
            tally,
            patch.object(MaskBuffer, "apply_mask", _apply_mask),
        ):
            # FSDP2 fears operators in place on what TP hands over; there are none.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            step = _Program(case, model, mesh, tally, stages)
            step()
            step.clear()
            tally.start()
            step()
            sent = _collectives(step, mesh)
            return Traced(tally=tally, state_bytes=step.state_bytes(), collectives=sent)
    finally:
        dist.destroy_process_group()
        _clear_sharding_prop_cache()  # it names the groups of this mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mesh:
    """What a program takes from the plan's mesh; ``axes`` has JAX's name and size of each group."""

    tensor: DeviceMesh
    shards: DeviceMesh
    stages: DeviceMesh
    axes: Mapping[str, tuple[str, int]]

    @classmethod
    def of(cls, plan: Plan) -> _Mesh:
        whole = torch_device_mesh(plan, DEVICE)
        return cls(
            tensor=whole["tp"],
            shards=whole["dp_replicate", "dp_shard"] if plan.dp > 1 else whole["dp_shard"],
            stages=whole["pp"],
            axes={
                whole.get_group(torch_name).group_name: (name, whole[torch_name].size())
                for name, torch_name, *_ in AXES
            },
        )


class _Program:
    """Stages of one rank with their optimizer, and the batch that they train on."""

    def __init__(
        self, case: Case, model: Model, mesh: _Mesh, tally: Tally, stages: tuple[Stage, ...]
    ) -> None:
        plan = case.plan
        self.plan, self.tally, self.stages = plan, tally, stages
        for stage in stages:
            stage.to_empty(device=DEVICE)
        parameters = [each for stage in self.stages for each in stage.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
        rows = plan.microbatches * plan.micro_batch_size
        self.tokens, self.targets = (
            torch.zeros(rows, case.seq_len, dtype=torch.int64, device=DEVICE) for _ in range(2)
        )
        group = mesh.tensor.get_group() if plan.tp > 1 else None
        chunks = plan.pp * plan.vpp
        self.numbers = range(case.stage, chunks, plan.pp)
        self.loss = partial(fused.cross_entropy, group=group)
        self.passes = self._pipeline(model, mesh, chunks) if plan.pp > 1 else self._alone

    def __call__(self) -> None:
        self.passes()
        with self.tally.during("optimizer"):
            self.optimizer.step()

    def clear(self) -> None:
        """Drop gradients, as a trainer does ahead of its step."""
        self.optimizer.zero_grad()

    def state_bytes(self) -> int:
        """Allocated for weights, optimizer state and the batch."""
        kept = [*self.optimizer.param_groups[0]["params"], self.tokens, self.targets]
        kept += [each for state in self.optimizer.state.values() for each in state.values()]
        local = (each.to_local() if isinstance(each, DTensor) else each for each in kept)
        storages = {each.untyped_storage()._cdata: each.untyped_storage() for each in local}
        return sum(allocated_bytes(each) for each in storages.values())

    def _alone(self) -> None:
        count = self.plan.microbatches
        for tokens, targets in zip(
            self.tokens.chunk(count), self.targets.chunk(count), strict=True
        ):
            loss = self.loss(self.stages[0](tokens), targets)
            (loss / count).backward()
            del loss

    def _pipeline(self, model: Model, mesh: _Mesh, chunks: int) -> Step:
        plan, seq_len = self.plan, self.tokens.shape[1]
        rows = plan.micro_batch_size
        kind = {"dtype": torch.bfloat16, "device": "meta", "requires_grad": True}
        passed = torch.empty(rows, seq_len // plan.tp, model.d_model, **kind)
        logits = torch.empty(rows, seq_len, model.vocab // plan.tp, **kind)
        tokens = torch.empty(rows, seq_len, dtype=torch.int64, device="meta")
        last = chunks - 1
        stages = [
            PipelineStage(
                stage,
                number,
                chunks,
                torch.device(DEVICE),
                input_args=passed if number else tokens,
                output_args=logits if number == last else passed,
                input_grads=passed.detach() if number else None,
                output_grads=passed.detach() if number < last else None,
                group=mesh.stages.get_group(),
            )
            for number, stage in zip(self.numbers, self.stages, strict=True)
        ]
        for stage in stages:
            # Ranks agree on this in a first exchange, which a fake group cannot answer.
            stage._inference_mode = InferenceMode.STATIC
            # It runs ahead of the optimizer, outside autograd.
            stage.perform_reduce_grad = self._in_backward(stage.perform_reduce_grad)
        options = {"n_microbatches": plan.microbatches, "loss_fn": self.loss, "scale_grads": False}
        schedule: Any
        if plan.vpp > 1:
            schedule = ScheduleInterleaved1F1B(stages, **options)
        else:
            schedule = Schedule1F1B(stages[0], **options)
        schedule._warmup_p2p = lambda *_: None
        given = (self.tokens,) if self.numbers[0] == 0 else ()
        asked = {"target": self.targets} if self.numbers[-1] == last else {}
        return lambda: schedule.step(*given, return_outputs=False, **asked) and None

    def _in_backward(self, reduce: Callable[[int], None]) -> Callable[[int], None]:
        def reduced(factor: int) -> None:
            with self.tally.during("backward"):
                reduce(factor)

        return reduced


def _stages(case: Case, model: Model, mesh: _Mesh, tally: Tally) -> Iterator[Stage]:
    """What the rank has of the model: one stage, or one for each of its chunks."""
    plan, chunks = case.plan, chunk_layers(case.plan)
    dealt = _rungs(case)
    for number in range(case.stage, len(chunks), plan.pp):
        ends = {"first": number == 0, "last": number == len(chunks) - 1}
        stage = Stage(model, chunks[number], case.seq_len, **ends)
        if plan.tp > 1:
            split_tensors(stage, mesh.tensor)
        rungs = [next(dealt) for _ in range(chunks[number])]
        checkpoint_layers(stage, rungs, partial(tally.during, "recompute"))
        shard_state(stage, mesh.shards, reshard=plan.reshard == 3)
        yield stage


def _apply_mask(buffer: MaskBuffer, tensor: torch.Tensor) -> None:
    """DTensor's own indexes with a mask, which fake tensors cannot; this allocates no less."""
    tensor.masked_fill_(buffer.data[..., None], 0.0)


def _rungs(case: Case) -> Iterator[str]:
    """The rung of each layer of the stage, in the order in which the plan names them."""
    for rung, layers in case.plan.remat[case.stage].items():
        yield from (rung for _ in range(layers))


def _collectives(program: _Program, mesh: _Mesh) -> tuple[Collective, ...]:
    """What the tally saw, by the axes of the mesh."""
    words = dict(_words(program))
    found: Counter[Collective] = Counter()
    for (kind, group, size, dtype, phase), times in program.tally.sent.items():
        axis, ranks = mesh.axes[group]
        word = words.get((axis, size, dtype, phase), "activations")
        what = "activations and their gradients" if axis == "stage" else f"{phase} {word}"
        entry = Collective(
            kind=kind,
            axes=(axis,),
            group_size=ranks,
            array_bytes=size,
            times=1,
            dtype=dtype,
            what=what,
        )
        found[entry] += times if ranks > 1 else 0
    return tuple(replace(entry, times=times) for entry, times in found.items() if times)


def _words(program: _Program) -> Iterator[tuple[tuple[str, int, str, str], str]]:
    """What is told by axis, size, type and phase, and its name; the rest are activations."""
    tokens = program.plan.micro_batch_size * program.tokens.shape[1]
    yield ("tensor", 4 * tokens, "float32", "forward"), "loss of each token"
    for module in (each for stage in program.stages for each in stage.modules()):
        if isinstance(module, RmsNorm):
            for size, dtype in ((2, "bfloat16"), (4, "float32")):
                width = module.weight.shape[0]
                yield ("tensor", size * width, dtype, "backward"), "norm gradients"
    shards = program.plan.fsdp
    for module in (each for stage in program.stages for each in stage.modules()):
        if not isinstance(module, FSDPModule):
            continue
        for group in module._get_fsdp_state()._fsdp_param_groups:
            count = sum(each._sharded_param_data.numel() for each in group.fsdp_params)
            name = _unit(group.modules[0])
            for phase in ("forward", "backward", "recompute"):
                yield ("fsdp", 2 * count * shards, "bfloat16", phase), f"{name} weights"
            yield ("fsdp", 4 * count * shards, "float32", "backward"), f"{name} gradients"
            yield ("data", 4 * count, "float32", "backward"), f"{name} gradients"


def _unit(module: nn.Module) -> str:
    """The unit of FSDP that begins with a module."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "head" if isinstance(module, RmsNorm) else "layer"
