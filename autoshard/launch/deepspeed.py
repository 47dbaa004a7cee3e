"""DeepSpeed: a plan as the JSON of ``deepspeed --deepspeed_config``.

Keys and rules: deepspeed/runtime/config.py of DeepSpeed 0.19.8. One equation holds it together:
``train_batch_size == micro * accumulation * data ranks``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from autoshard.launch.checking import (
    ENDS,
    check_chips,
    check_degree,
    check_heads,
    one_rung,
    refuse,
)
from autoshard.launch.launch import Launch, header_of

if TYPE_CHECKING:
    from autoshard.solved import SolvedPlan

FRAMEWORK = "DeepSpeed 0.19.8"


def launch(plan: SolvedPlan) -> Launch:
    """The plan for DeepSpeed.

    Raises:
        SpecError: DeepSpeed's JSON cannot state it.
    """
    values = settings(plan)
    return Launch(
        target="deepspeed",
        framework=FRAMEWORK,
        values=values,
        text=json.dumps(values, indent=2) + "\n",  # JSON has no comments
        header=header_of(plan, FRAMEWORK),
        chips=plan.chips_used,
        notes=tuple(_notes(plan)),
    )


def settings(plan: SolvedPlan) -> dict[str, Any]:
    """The plan as DeepSpeed's keys.

    Raises:
        SpecError: DeepSpeed's JSON cannot state it.
    """
    problem = plan.problem
    check_chips(problem, FRAMEWORK, ("gpu",))
    lacks = "its pipelines are code (PipelineModule), not JSON"
    check_degree(plan, FRAMEWORK, "pp", lacks)
    check_degree(plan, FRAMEWORK, "ep", "experts are code, not JSON")
    for degree in ("seq_split", "cp"):
        lacks = "its sequence parallelism is Ulysses, which exchanges heads"
        check_degree(plan, FRAMEWORK, degree, lacks)
    check_heads(problem, plan, FRAMEWORK)
    one_rung(plan, FRAMEWORK, ENDS, ("none", "full"))
    if plan.dp > 1 and plan.fsdp > 1:
        refuse(
            FRAMEWORK,
            f"dp = {plan.dp} replicas of fsdp = {plan.fsdp} shards",
            "ZeRO shards over all data ranks",
            f"dp = 1 and fsdp = {plan.dp * plan.fsdp} would do",
        )
    if problem.workload.precision != "bf16":
        refuse(
            FRAMEWORK,
            f"precision = {problem.workload.precision}",
            "its JSON has bf16 and fp16",
            "solve with --precision bf16",
        )
    if plan.tp > 1 and plan.reshard == 3 and plan.fsdp > 1:
        refuse(
            FRAMEWORK,
            f"tp = {plan.tp} with ZeRO-3",
            "its engine refuses that (runtime/engine.py, _configure_tensor_parallel_states)",
            "reshard = 2 would do",
        )
    values: dict[str, Any] = {
        "train_batch_size": problem.workload.global_batch_seqs,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.microbatches,
        "zero_optimization": {
            "stage": plan.reshard if plan.fsdp > 1 else 0,
            "overlap_comm": True,
        },
    }
    if plan.tp > 1:
        values["tensor_parallel"] = {"autotp_size": plan.tp}
    return values | {"bf16": {"enabled": True}}


def _notes(plan: SolvedPlan) -> list[str]:
    notes = [
        "The time and memory are predicted by the costs "
        f"{plan.front.problem['costs']['profile']}; no costs are of DeepSpeed itself.",
    ]
    if one_rung(plan, FRAMEWORK, ENDS, ("none", "full")) == "full":
        notes.append(
            "Activation checkpointing is switched on in the model, as by Hugging Face's "
            "model.gradient_checkpointing_enable(); the JSON only tunes it."
        )
    notes.append(
        f"Launch {plan.chips_used} processes with sequences of "
        f"{plan.problem.workload.seq_len:,} tokens; the JSON has neither."
    )
    return notes
