"""Software stacks: what a framework stores, keeps for the backward pass, and overlaps.

A stack is a set of facts about a code base, each with its source; what the code then achieves on a
chip is a matter of calibration (:mod:`autoshard.costmodels.constants`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from autoshard.costmodels.errors import UnknownName
from autoshard.costmodels.ladders import (
    LLM_FOUNDRY_LADDER,
    MAXTEXT_LADDER,
    MEGATRON_LADDER,
    TORCHTITAN_LADDER,
)
from autoshard.costmodels.legality import UNRESTRICTED, Legality
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.remat import Rung
from autoshard.costmodels.stack_rules import (
    LLM_FOUNDRY,
    MAXTEXT,
    MEGATRON,
    MEGATRON_2021,
    NANOTRON,
    TORCHTITAN,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One code base in one configuration.

    ``recipe`` is what it stores for each parameter. ``gradient_bytes`` is one gradient on the wire.
    ``attention`` names the kernel: ``unfused`` (a score matrix in HBM), ``flash1``, ``flash2``,
    ``cudnn`` or ``splash``; ``operators`` how memory-bound operators run: ``fused`` (hand-written),
    ``compiled``, ``eager``. ``sequence_parallel`` shards norms and residuals over TP.
    ``shard_copies`` counts bytes moved in HBM for each parameter whenever FSDP gathers and reduces
    it, beside the collective: copies out of and into its buffers. ``tp_overlap`` and
    ``reduce_overlap`` say whether TP collectives and the gradient reduction run beside compute.
    ``fp8_recipe`` is how FP8 operands are scaled: ``delayed``, ``current``, ``tensorwise``,
    ``rowwise``, ``block``. ``blocking`` says that every kernel launch waits for the one before
    (CUDA_LAUNCH_BLOCKING=1). ``balanced`` says that a split sequence is dealt so that each rank has
    as much of the causal mask. ``regathers_tables`` says that ZeRO-3 gathers the embedding and the
    head again for the backward pass: the lookup's needs no weights, and XLA gathers the embedding
    once a step, outside of the loop over microbatches, and keeps the head. ``reduces_each`` says
    that, without a pipeline, gradients are reduced over the replicas with each microbatch: XLA
    keeps that in the loop, FSDP2 in its hooks. ``fsdp2`` says that FSDP's hooks belong to a
    module's passes: without a pipeline, weights that ZeRO-2 keeps are gathered for each microbatch;
    in one, a backward pass leaves weights gathered, and gradients wait for the last. ``schedules``
    are the pipeline schedules that it runs out of :data:`autoshard.costmodels.schedules.SCHEDULES`,
    its own first: interleaved 1F1B counts as ``1f1b``, a circular or breadth-first pipeline as
    ``gpipe``. ``legality`` says which plans it can state.
    """

    name: str
    description: str
    chips: tuple[str, ...]
    recipe: Recipe
    ladder: tuple[Rung, ...]
    gradient_bytes: float = 2.0
    attention: str = "flash2"
    operators: str = "fused"
    sequence_parallel: bool = True
    shard_copies: float = 0.0
    tp_overlap: bool = False
    reduce_overlap: bool = True
    fp8_recipe: str = "delayed"
    blocking: bool = False
    balanced: bool = True
    regathers_tables: bool = True
    reduces_each: bool = False
    fsdp2: bool = False
    schedules: tuple[str, ...] = ("1f1b",)
    legality: Legality = UNRESTRICTED


STACKS = {
    stack.name: stack
    for stack in (
        Stack(
            name="megatron",
            description="Megatron-Core with its distributed optimizer (NeMo, Megatron-Bridge)",
            chips=("gpu",),
            # bf16 weights and gradients (their buffer has the type of the wire), fp32 master
            # weights and Adam moments.
            recipe=Recipe(param_bytes=2.0, grad_bytes=2.0, optimizer_bytes=12.0, reshard=(1,)),
            ladder=MEGATRON_LADDER,
            legality=MEGATRON,
            attention="cudnn",
            tp_overlap=True,
        ),
        Stack(
            name="megatron-2021",
            description="Megatron-LM and Megatron-DeepSpeed up to 2022: no flash attention, no "
            "distributed optimizer",
            chips=("gpu",),
            recipe=Recipe(param_bytes=2.0, grad_bytes=4.0, optimizer_bytes=12.0, reshard=(1,)),
            ladder=MEGATRON_LADDER,
            legality=MEGATRON_2021,
            attention="unfused",
            sequence_parallel=False,
            reduce_overlap=False,
        ),
        Stack(
            name="torchtitan",
            description="torchtitan: FSDP2 and DTensor, compiled",
            chips=("gpu",),
            # fp32 sharded weights and gradients, Adam moments; weights are gathered in bf16.
            recipe=Recipe(param_bytes=4.0, grad_bytes=4.0, optimizer_bytes=8.0, reshard=(3,)),
            ladder=TORCHTITAN_LADDER,
            legality=TORCHTITAN,
            gradient_bytes=4.0,
            operators="compiled",
            # Out of the gathered buffer, read and written, for both passes; gradients read in bf16
            # and written in fp32, scaled and cast on the way (FSDP2's copy-out and copy-in).
            shard_copies=18.0,
            fp8_recipe="tensorwise",
            # torch/distributed/fsdp/_fully_shard, and backward_maybe_with_nosync of
            # torch/distributed/pipelining/stage.py (docs/compilers.md).
            reduces_each=True,
            fsdp2=True,
            # Its zero bubbles, InterleavedZeroBubble and ZBVZeroBubble, want two stages or more on
            # each rank and no torch.compile (torch/distributed/pipelining/schedules.py).
            schedules=("1f1b", "gpipe"),
        ),
        Stack(
            name="llm-foundry",
            description="llm-foundry: Composer on PyTorch FSDP",
            chips=("gpu",),
            recipe=Recipe(param_bytes=4.0, grad_bytes=4.0, optimizer_bytes=8.0, reshard=(3,)),
            ladder=LLM_FOUNDRY_LADDER,
            legality=LLM_FOUNDRY,
            attention="flash1",
            operators="eager",
            sequence_parallel=False,
        ),
        Stack(
            name="nanotron",
            description="nanotron: Megatron-like, eager",
            chips=("gpu",),
            recipe=Recipe(param_bytes=2.0, grad_bytes=4.0, optimizer_bytes=12.0, reshard=(1,)),
            ladder=MEGATRON_LADDER,
            legality=NANOTRON,
            gradient_bytes=4.0,
            operators="eager",
            reduce_overlap=False,
            # OneForwardOneBackwardPipelineEngine and AllForwardAllBackwardPipelineEngine.
            schedules=("1f1b", "gpipe"),
        ),
        Stack(
            name="maxtext",
            description="MaxText: JAX, XLA, fp32 weights and Adam",
            chips=("tpu",),
            recipe=Recipe(param_bytes=4.0, grad_bytes=4.0, optimizer_bytes=8.0, reshard=(3,)),
            ladder=MAXTEXT_LADDER,
            legality=MAXTEXT,
            attention="splash",
            operators="compiled",
            tp_overlap=True,
            regathers_tables=False,
            reduces_each=True,
            # One loop over microbatches and repeats, which JAX differentiates as a whole
            # (layers/pipeline.py; "gPipe" and "circular" of its Sharding.md).
            schedules=("gpipe",),
        ),
    )
}


STACKS["maxtext-gpu"] = replace(
    STACKS["maxtext"],
    name="maxtext-gpu",
    description="MaxText on GPUs: JAX, XLA, fp32 weights and Adam",
    chips=("gpu",),
    attention="cudnn",
)


def stack_by_name(name: str) -> Stack:
    """A stack from its name.

    Raises:
        UnknownName: there is no such stack.
    """
    if name not in STACKS:
        raise UnknownName("stack", name, STACKS)
    return STACKS[name]


def default_stack(chip_kind: str) -> Stack:
    """The stack that a chip is most often used with."""
    return STACKS["maxtext" if chip_kind == "tpu" else "megatron"]
