"""Hugging Face accelerate: a plan as the YAML that ``accelerate launch --config_file`` reads.

Keys and rules: accelerate/parallelism_config.py, commands/config/config_args.py and
commands/launch.py of accelerate 1.15.0 (FSDP2). Its context ranks shard the weights and gather
keys and values, which is ``seq_split`` (``fsdp_dim_names``; cp_comm_strategy = allgather).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoshard.launch.checking import (
    ENDS,
    check_chips,
    check_degree,
    check_heads,
    one_rung,
    refuse,
)
from autoshard.launch.launch import Launch, header_of, yaml_text

if TYPE_CHECKING:
    from autoshard.solved import SolvedPlan

FRAMEWORK = "accelerate 1.15.0"

#: More GPUs than any host of one operating system has: an NVLink domain above that is many hosts.
LARGEST_HOST = 8

#: The decoder layer of each family of presets in transformers, which FSDP wraps.
LAYERS = {
    "llama": "LlamaDecoderLayer",
    "mistral": "MistralDecoderLayer",
    "qwen2": "Qwen2DecoderLayer",
    "gemma": "GemmaDecoderLayer",
}


def launch(plan: SolvedPlan) -> Launch:
    """The plan for accelerate.

    Raises:
        SpecError: accelerate cannot state it.
    """
    values = settings(plan)
    header = header_of(plan, FRAMEWORK)
    return Launch(
        target="accelerate",
        framework=FRAMEWORK,
        values=values,
        text=yaml_text(header, values),
        header=header,
        chips=plan.chips_used,
        notes=tuple(_notes(plan, values)),
    )


def settings(plan: SolvedPlan) -> dict[str, Any]:
    """The plan as accelerate's keys.

    Raises:
        SpecError: accelerate cannot state it.
    """
    problem = plan.problem
    check_chips(problem, FRAMEWORK, ("gpu",))
    check_degree(plan, FRAMEWORK, "pp", "it has no pipelines")
    check_degree(plan, FRAMEWORK, "ep", "it has no expert parallelism")
    instead = "its context ranks shard the weights too: seq_split says that"
    check_degree(plan, FRAMEWORK, "cp", "it does not leave weights whole there", instead)
    check_heads(problem, plan, FRAMEWORK)
    recompute = one_rung(plan, FRAMEWORK, ENDS, ("none", "full")) == "full"
    precision = problem.workload.precision
    if precision == "int8":
        refuse(
            FRAMEWORK, "precision = int8", "it trains in bf16 or fp8", "solve with --precision bf16"
        )
    if plan.fsdp == 1 and plan.tp > 1:
        refuse(
            FRAMEWORK,
            f"tp = {plan.tp} with fsdp = 1",
            "tensor parallelism goes with FSDP2, and that needs shards",
            'solve with --where "fsdp > 1"',
        )
    hosts = _hosts(plan)
    values: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "num_processes": plan.chips_used,
        **({} if hosts is None else {"num_machines": hosts}),
        "mixed_precision": precision,
    }
    if plan.fsdp == 1:
        if recompute:
            refuse(
                FRAMEWORK,
                "remat full without FSDP",
                "checkpointing is one of its FSDP settings",
                "enable it in the model, or solve for fsdp > 1",
            )
        return values | {"distributed_type": "MULTI_GPU"}
    if plan.reshard == 1:
        refuse(
            FRAMEWORK,
            f"reshard = 1 over {plan.fsdp} shards",
            "FSDP2 shards weights or gathers them for a whole step",
            "reshard = 2 or 3 would do",
        )
    return values | {
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": plan.reshard == 3,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            **_wrapped(problem.model.name),
            "fsdp_activation_checkpointing": recompute,
        },
        "parallelism_config": {
            "parallelism_config_dp_replicate_size": plan.dp,
            "parallelism_config_dp_shard_size": plan.batch_split,
            "parallelism_config_tp_size": plan.tp,
            "parallelism_config_cp_size": plan.seq_split,
        },
    }


def _hosts(plan: SolvedPlan) -> int | None:
    """Machines, where the NVLink domain is one host."""
    domain = plan.problem.cluster.chip.domain_chips
    return -(-plan.chips_used // domain) if domain <= LARGEST_HOST else None


def _wrapped(model: str) -> dict[str, str]:
    name = next((layer for family, layer in LAYERS.items() if model.startswith(family)), None)
    return {} if name is None else {"fsdp_transformer_layer_cls_to_wrap": name}


def _notes(plan: SolvedPlan, values: dict[str, Any]) -> list[str]:
    steps = plan.microbatches
    notes = [
        f"Batches are the script's: {plan.micro_batch_size} sequences of "
        f"{plan.problem.workload.seq_len:,} tokens in a batch of each data rank, and "
        f"Accelerator(gradient_accumulation_steps={steps}).",
        "The time and memory are predicted by the costs "
        f"{plan.front.problem['costs']['profile']}; no costs are of accelerate itself.",
    ]
    if "num_machines" not in values:
        notes.append("An NVLink domain is more than one host here: say num_machines.")
    if "fsdp_transformer_layer_cls_to_wrap" not in values.get("fsdp_config", {}):
        notes.append("The class of the model's decoder layer is not known: say what FSDP wraps.")
    if plan.tp > 1:
        notes.append("Tensor parallelism is the model's own plan: transformers 4.52 or later.")
    return notes
