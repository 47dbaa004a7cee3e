"""Megatron-LM arguments: a plan as what ``pretrain_gpt.py`` reads.

Flags and rules: megatron/training/arguments.py and megatron/core/transformer/transformer_config.py
of Megatron-Core 0.19.2. Ranks nest tp, cp, dp, pp from the inside, as the cost models have them.
"""

from __future__ import annotations

import shlex
from itertools import groupby
from typing import TYPE_CHECKING

from autoshard.costmodels.plan import Plan
from autoshard.costmodels.stack import STACKS
from autoshard.launch.checking import assumed, refuse, stated
from autoshard.launch.launch import Launch, header_of, shell_text
from autoshard.launch.stages import chunk_layers, even, stage_layers

if TYPE_CHECKING:
    from autoshard.solved import SolvedPlan

FRAMEWORK = "Megatron-Core 0.19.2"

#: ``--data-parallel-sharding-strategy`` of Megatron FSDP for each ZeRO stage; ZeRO-1 is the
#: distributed optimizer's.
SHARDING = {2: "optim_grads", 3: "optim_grads_params"}

Value = int | str | bool


def launch(plan: SolvedPlan) -> Launch:
    """The plan for Megatron-LM.

    Raises:
        SpecError: Megatron cannot state it.
    """
    values = settings(plan)
    given = arguments(values)
    environment = environment_of(plan, values)
    header = header_of(plan, FRAMEWORK)
    return Launch(
        target="megatron",
        framework=FRAMEWORK,
        values=given,
        text=shell_text(header, environment, "PLAN_ARGS", _lines(given)),
        header=header,
        chips=plan.chips_used,
        notes=tuple(notes_of(plan, values)),
        environment=environment,
    )


def settings(plan: SolvedPlan) -> dict[str, Value]:
    """The plan under Megatron's names, with underscores; what is at its default is left out.

    Raises:
        SpecError: Megatron cannot state it.
    """
    problem = plan.problem
    mine = stated(plan, "megatron")
    values: dict[str, Value] = {
        "num_layers": problem.model.n_layers,
        "seq_length": problem.workload.seq_len,
        "tensor_model_parallel_size": mine.tp,
    }
    if mine.tp > 1:
        values["sequence_parallel"] = True
    values["pipeline_model_parallel_size"] = mine.pp
    values |= _virtual_stages(mine)
    values["context_parallel_size"] = mine.seq_split * mine.cp  # one of them is one
    if mine.seq_split * mine.cp > 1:
        values["cp_comm_type"] = "p2p" if mine.cp > 1 else "all_gather"
    values["micro_batch_size"] = mine.micro_batch_size
    values["global_batch_size"] = problem.workload.global_batch_seqs
    return values | _sharding(mine) | _recompute(mine) | _precision(problem.workload.precision)


def arguments(values: dict[str, Value]) -> list[str]:
    """Settings as an argument list: ``True`` is a flag alone."""
    given: list[str] = []
    for name, value in values.items():
        given.append(f"--{name.replace('_', '-')}")
        if value is not True:
            given.append(str(value))
    return given


def _virtual_stages(plan: Plan) -> dict[str, Value]:
    if plan.pp == 1:
        return {}
    if not even(plan):
        return {"pipeline_model_parallel_layout": layout_of(chunk_layers(plan))}
    return {"num_virtual_stages_per_pipeline_rank": plan.vpp} if plan.vpp > 1 else {}


def layout_of(chunks: list[int]) -> str:
    """Layers of each model chunk in Megatron's grammar: ``Et*7|(t*8|)*14t*7L``.

    Equal neighbours become one group; the expansion of ``( )*n`` comes before that of ``t*n``
    (megatron/core/transformer/pipeline_parallel_layer_layout.py, parse_str_to_list).
    """
    first, *inner, last = (_layers(count) for count in chunks)
    text = f"E{first}|"
    for piece, same in groupby(inner):
        count = len(list(same))
        text += f"({piece}|)*{count}" if count > 1 else f"{piece}|"
    return f"{text}{last}L"


def _layers(count: int) -> str:
    return "t" * count if count < 2 else f"t*{count}"


def _sharding(plan: Plan) -> dict[str, Value]:
    """The state over data ranks; context ranks are among those that share it."""
    if plan.fsdp * plan.cp == 1:
        return {"overlap_grad_reduce": True} if plan.dp > 1 else {}
    values: dict[str, Value] = {"use_distributed_optimizer": True}
    if plan.reshard in SHARDING:
        values |= {
            "use_megatron_fsdp": True,
            "data_parallel_sharding_strategy": SHARDING[plan.reshard],
            "ckpt_format": "fsdp_dtensor",
        }
    values |= {"overlap_grad_reduce": True, "overlap_param_gather": True}
    if plan.dp > 1:
        values["num_distributed_optimizer_instances"] = plan.dp
    return values


def _recompute(plan: Plan) -> dict[str, Value]:
    """One rung for all layers, or the first ``k`` layers of every chunk in full.

    Megatron takes any ``k`` (``block`` stops at the layers that there are), so that it is kept
    here to what the largest chunk has.
    """
    used = {name for stage in plan.remat for name in stage}
    if used == {"none"}:
        return {}
    if used == {"selective"}:
        return {"recompute_granularity": "selective", "recompute_modules": "core_attn"}
    values: dict[str, Value] = {"recompute_granularity": "full"}
    if used == {"full"}:
        return values | {"recompute_method": "uniform", "recompute_num_layers": 1}
    return values | {"recompute_method": "block", "recompute_num_layers": _count(plan)}


def _count(plan: Plan) -> int:
    """Layers of a chunk that run again; ``stated`` has seen that one number says it."""
    chunks = chunk_layers(plan)
    wanted = [stage.get("full", 0) for stage in plan.remat]
    return next(
        count
        for count in range(max(chunks) + 1)
        if [*stage_layers([min(count, layers) for layers in chunks], plan.pp)] == wanted
    )


def _precision(name: str) -> dict[str, Value]:
    if name == "int8":
        refuse(
            FRAMEWORK,
            "precision = int8",
            "it trains in bf16, fp16 or fp8",
            "solve with --precision fp8",
        )
    if name == "fp8":
        return {"bf16": True, "fp8_format": "hybrid", "fp8_recipe": "delayed"}
    return {"bf16": True}


def environment_of(plan: Plan, values: dict[str, Value]) -> dict[str, str]:
    """What has to be set: collectives of TP and CP in order before Blackwell, not with FSDP."""
    if "use_megatron_fsdp" in values or plan.tp * plan.seq_split * plan.cp == 1:
        return {}
    return {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}


def notes_of(plan: SolvedPlan, values: dict[str, Value]) -> list[str]:
    """What a person has to know beside the flags."""
    notes = assumed(plan, STACKS["megatron"])
    tp_overlap = plan.front.problem["costs"]["profile"] == "calibrated/megatron" and plan.tp > 1
    if tp_overlap:
        notes.append(
            "The prediction overlaps the collectives of TP with matmuls, which --tp-comm-overlap "
            "does; it needs Transformer Engine built with user buffers."
        )
    if "use_megatron_fsdp" in values:
        notes.append("Megatron FSDP refuses CUDA_DEVICE_MAX_CONNECTIONS=1: leave it unset.")
    return notes


def _lines(given: list[str]) -> list[str]:
    """A flag with its value on each line, quoted for a shell."""
    lines: list[str] = []
    for word in given:
        if word.startswith("--"):
            lines.append(word)
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return lines
