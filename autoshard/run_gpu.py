"""Rows of the GPU table as runs."""

from __future__ import annotations

import dataclasses
import re

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.stack import STACKS, Stack
from autoshard.costmodels.workload import Workload
from autoshard.run_models import model_of
from autoshard.run_parts import (
    NOT_SCORED,
    flags_of,
    needed,
    one_candidate,
    per_microbatch,
    step_time,
    tokens_of,
)
from autoshard.run_remat import remat_of
from autoshard.run_table import Row
from autoshard.run_words import Unpriced, chip_of, fabric, precision_of, stack_of
from autoshard.runs import Run

#: Tier B sources that score: vTrain's sweep, whose gaps are the defaults of its own tool.
_SCORED_B = ("vt",)


def gpu_run(row: Row, source: str) -> Run:
    """A row of the GPU table.

    Raises:
        Unpriced: no cost model covers it, or too little is stated.
        SpecError: its values contradict each other.
    """
    model, assumed = model_of(row)
    tier = _tier(row)
    framework = row.text("framework")
    chips, seq_len = needed(row, "n_chips", "chips not stated"), tokens_of(row)
    batch = needed(row, "global_batch_seqs", "batch not stated")
    base = stack_of(framework, row.count("year") or 0)
    precision, scaling = precision_of(row.text("precision"), base)
    flags = [*flags_of(row), *assumed]

    ranks = _data_ranks(row, chips)
    zero = _zero_stage(row, base)
    llama3 = "meta internal" in framework.lower()
    if llama3:
        flags.append("assumed")
    candidates, sequence_flags = _plan(row, base, batch, ranks, zero, llama3)
    flags += sequence_flags
    stack = _stack(row, base, zero, scaling)
    said = "none" if llama3 else row.text("recompute")
    remat, remat_flags = remat_of(said, stack, model, seq_len)
    step_s, step_flags = step_time(row, model, batch * seq_len, chips)
    memory, metric = _memory(row, framework)
    flags += [*remat_flags, *step_flags]

    problem = Problem(
        model=model,
        cluster=_cluster(row, chips, llama3),
        workload=Workload(global_batch_seqs=batch, seq_len=seq_len, precision=precision),
        recipe=stack.recipe,
    )
    scored = (
        (tier == "A" or source in _SCORED_B)
        and "host-offload" not in flags
        and not NOT_SCORED.keys() & flags
    )
    return Run(
        id=row.id,
        source=source,
        tier=tier,
        year=row.count("year") or 0,
        problem=problem,
        candidates=candidates,
        remat=remat,
        stack=stack,
        flags=tuple(dict.fromkeys(flags)),
        step_time_s=step_s,
        memory_bytes=memory,
        memory_metric=metric,
        used_for="score" if scored else "report",
    )


def _tier(row: Row) -> str:
    """``A`` to ``C``, which opens the notes; ``B`` where nothing is said."""
    found = re.search(r"\btier: ?([abc])\b", row.words("notes"))
    tier = found[1].upper() if found else "B"
    if tier == "C":
        raise Unpriced("tier C", "the table marks it as inconsistent or incomplete.")
    return tier


def _data_ranks(row: Row, chips: int) -> int:
    """GPUs that hold the same part of a sequence and of the model, and different sequences."""
    tp = needed(row, "tp", "mesh not stated")
    pp = needed(row, "pp", "mesh not stated")
    shards = tp * pp * (row.count("cp") or 1)
    ranks, rest = divmod(chips, shards)
    dp = row.count("dp") or ranks
    if rest or not ranks or dp != ranks:
        raise Unpriced(
            "mesh contradictory",
            f"{chips} GPUs are not tp * pp * cp = {shards} times dp = {dp}.",
        )
    return ranks


def _zero_stage(row: Row, stack: Stack) -> int:
    """The ZeRO stage; where it is not stated, the default of the framework at the time."""
    stated = row.count("zero_stage")
    if stated is not None:
        if stated > 3:
            raise Unpriced("mesh contradictory", f"there is no ZeRO stage {stated}.")
        return stated
    if row.count("fsdp") or stack.name in ("torchtitan", "llm-foundry", "maxtext"):
        return 3  # fully sharded is what these frameworks do unless told otherwise
    # NeMo's and Megatron-Bridge's recipes switch the distributed optimizer on; Megatron-LM up to
    # 2022 and nanotron have none by default.
    return 1 if stack.name == "megatron" else 0


def _plan(
    row: Row, stack: Stack, batch: int, ranks: int, zero: int, llama3: bool
) -> tuple[Candidates, tuple[str, ...]]:
    pp, cp = row.count("pp") or 1, row.count("cp") or 1
    micro = row.count("micro_batch_seqs") or 0
    flags: tuple[str, ...] = ()
    if not micro and llama3:
        micro = 1
    if not micro and zero == 3 and pp == 1 and stack.name in ("torchtitan", "llm-foundry"):
        # Without pipeline a step of these frameworks is one microbatch unless told otherwise.
        micro, rest = divmod(batch, ranks)
        flags = ("micro-batch-implied",)
        if rest:
            micro = 0
    if not micro:
        raise Unpriced("micro batch not stated", "the microbatch is not stated.")
    fsdp = ranks if zero == 1 else (row.count("fsdp") or ranks) if zero else 1
    if ranks % fsdp:
        raise Unpriced("mesh contradictory", f"{ranks} data ranks are not whole groups of {fsdp}.")
    # FSDP of PyTorch shards weights over the context ranks too, which is a split of the sequence
    # in autoshard's words; Megatron keeps them whole there, and rings keys and values.
    sequence = cp if zero >= 2 and stack.name == "torchtitan" else 1
    if sequence > 1:
        flags = (*flags, "ring-attention")
    vpp = row.count("vp") or 1
    if llama3:
        # "Interleaved", without a number: a layer to each chunk, as its authors balance stages by
        # single layers (arXiv 2407.21783, section 3.3.2).
        vpp = max((row.count("n_layers") or 1) // pp, 1)
    return (
        one_candidate(
            dp=ranks // fsdp,
            batch_split=fsdp,
            seq_split=sequence,
            tp=row.count("tp") or 1,
            pp=pp,
            vpp=vpp if pp > 1 else 1,
            cp=cp // sequence,
            microbatches=per_microbatch(batch, ranks, micro),
            micro_batch_size=micro,
            reshard=max(zero, 1),
        ),
        flags,
    )


def _stack(row: Row, stack: Stack, zero: int, scaling: str) -> Stack:
    """The stack as the row runs it."""
    notes = f"{row.words('framework')} {row.words('notes')}"
    precision = row.words("precision")
    recipe, gradient_bytes = _state(row, stack)
    if stack.name == "maxtext":
        stack = STACKS["maxtext-gpu"]
    attention, operators, overlap = stack.attention, stack.operators, stack.tp_overlap
    if stack.name == "torchtitan" and "meta internal" not in notes:
        operators = "compiled" if "compile" in notes else "eager"
        overlap = re.search(r"async ?tp", notes) is not None
    if "no flash attention" in notes:
        attention = "unfused"
    if "fms-fsdp" in notes:  # PyTorch's first FSDP: it gathers in place
        stack = dataclasses.replace(stack, name="fms-fsdp", shard_copies=0.0)
    if "meta internal" in notes:
        stack = dataclasses.replace(stack, name="meta-internal")
    # The torchtitan of 2024 keeps more for its loss; that of today fuses it. torchao's H100 table
    # was made with the former.
    early = (row.count("year") or 0) == 2024 or ("torchao" in notes and "h100" in row.words("chip"))
    aged = stack.name == "torchtitan" and early
    return dataclasses.replace(
        stack,
        name="torchtitan-2024" if aged else stack.name,
        recipe=dataclasses.replace(recipe, reshard=(max(zero, 1),)),
        gradient_bytes=gradient_bytes,
        attention=attention,
        operators=operators,
        sequence_parallel=row.truths.get("sequence_parallel", stack.sequence_parallel),
        tp_overlap=overlap,
        fp8_recipe=scaling if "8" in precision else stack.fp8_recipe,
        blocking="cuda_launch_blocking=1" in notes,
    )


def _state(row: Row, stack: Stack) -> tuple[Recipe, float]:
    """Bytes of each parameter's state, and of its gradient on the wire."""
    precision, notes = row.words("precision"), row.words("notes")
    if stack.name == "megatron-2021":
        # fp16 gradients stay at two bytes; bf16 ones are accumulated in fp32 (Megatron-DeepSpeed's
        # BF16 optimizer, from 28 February 2022 in BigScience's tables).
        wide = 4.0 if "fp32 grad" in precision or "bf16" in precision else 2.0
        return dataclasses.replace(stack.recipe, grad_bytes=wide), wide
    if stack.name == "megatron" and "bf16 grad sync" in notes:
        # Megatron-Core's gradient buffer has the type that is reduced.
        return dataclasses.replace(stack.recipe, grad_bytes=2.0), 2.0
    if stack.name == "llm-foundry" and "pure" in precision:
        # MP mode PURE: weights, gradients and both moments are bf16.
        return dataclasses.replace(
            stack.recipe, param_bytes=2.0, grad_bytes=2.0, optimizer_bytes=4.0
        ), 2.0
    if "fms-fsdp" in row.words("framework"):
        return stack.recipe, 2.0  # fms_fsdp/policies/mixed_precision.py: reduce_dtype is bf16
    return stack.recipe, stack.gradient_bytes


def _cluster(row: Row, chips: int, llama3: bool) -> Cluster:
    named = row.text("chip")
    notes = row.text("notes")
    per_node = row.count("chips_per_node") or 8
    base = chip_of(named)
    chip = fabric(base, named, notes, per_node, row.words("source"))
    name = f"{chips} {chip.name}"
    if not llama3 or chips <= base.pod_chips:
        return Cluster.build(chip, chips=chips, name=name)
    # The paper's pods of 3,072 GPUs at 1:7 are not whole parts of these jobs: the fewest equal pods
    # that are no larger stand in for them.
    fewest = -(-chips // base.pod_chips)
    pods = next((n for n in range(fewest, 2 * fewest) if chips % (n * per_node) == 0), 1)
    tree: Chip = dataclasses.replace(
        chip, pod_chips=base.pod_chips, oversubscription=base.oversubscription
    )
    return Cluster.build(tree, chips=chips, pods=pods, name=name)


def _memory(row: Row, framework: str) -> tuple[float | None, str]:
    """Peak bytes and what was read: sources write GB for 2**30 where PyTorch's counters are."""
    value = row.number("peak_mem_gb")
    if value is None:
        return None, ""
    notes, said = row.words("notes"), framework.lower()
    if "bytes/1e9" in notes:
        return value * 1e9, "unnamed"
    if "nvidia-smi" in notes or "deepspeed" in said:
        return value * 2**30, "nvidia-smi"
    if "allocated" in notes:
        return value * 2**30, "allocated"
    if "reserved" in notes or "torchtitan" in said or "torchao" in said:
        return value * 2**30, "reserved"
    giga = 2**30 if "gib" in notes or "nanotron" in said else 10**9
    return value * giga, "unnamed"
