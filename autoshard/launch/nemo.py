"""Megatron-Bridge overrides: a plan for a recipe of NeMo's, as ``section.field=value``.

Fields: megatron/bridge/training/config.py of Megatron-Bridge 0.6.2, which are those of
Megatron-Core under the sections of its config. A recipe comes with a plan of its own: what this
plan has not, it unsets.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from autoshard.launch.launch import Launch, header_of, shell_text
from autoshard.launch.megatron import Value, environment_of, notes_of, settings

if TYPE_CHECKING:
    from autoshard.solved import SolvedPlan

FRAMEWORK = "Megatron-Bridge 0.6.2"

#: Where Bridge has each setting of Megatron's.
FIELDS: dict[str, tuple[str, ...]] = {
    "tensor_model_parallel_size": ("model.tensor_model_parallel_size",),
    "sequence_parallel": ("model.sequence_parallel",),
    "pipeline_model_parallel_size": ("model.pipeline_model_parallel_size",),
    "num_virtual_stages_per_pipeline_rank": ("model.virtual_pipeline_model_parallel_size",),
    "pipeline_model_parallel_layout": ("model.pipeline_model_parallel_layout",),
    "context_parallel_size": ("model.context_parallel_size",),
    "cp_comm_type": ("model.cp_comm_type",),
    "seq_length": ("model.seq_length", "dataset.seq_length"),
    "micro_batch_size": ("train.micro_batch_size",),
    "global_batch_size": ("train.global_batch_size",),
    "recompute_granularity": ("model.recompute_granularity",),
    "recompute_method": ("model.recompute_method",),
    "recompute_num_layers": ("model.recompute_num_layers",),
    "recompute_modules": ("model.recompute_modules",),
    "use_distributed_optimizer": (
        "ddp.use_distributed_optimizer",
        "optimizer.use_distributed_optimizer",
    ),
    "use_megatron_fsdp": ("dist.use_megatron_fsdp", "ddp.use_megatron_fsdp"),
    "data_parallel_sharding_strategy": ("ddp.data_parallel_sharding_strategy",),
    "ckpt_format": ("checkpoint.ckpt_format",),
    "overlap_grad_reduce": ("ddp.overlap_grad_reduce",),
    "overlap_param_gather": ("ddp.overlap_param_gather",),
    "num_distributed_optimizer_instances": ("ddp.num_distributed_optimizer_instances",),
}

#: What unsets a setting that a recipe may have.
UNSET = {
    "sequence_parallel": "false",
    "num_virtual_stages_per_pipeline_rank": "null",
    "pipeline_model_parallel_layout": "null",
    "recompute_granularity": "null",
    "recompute_method": "null",
    "recompute_num_layers": "null",
    "use_distributed_optimizer": "false",
    "use_megatron_fsdp": "false",
    "overlap_grad_reduce": "false",
    "overlap_param_gather": "false",
    "num_distributed_optimizer_instances": "1",
}

#: Names of megatron/bridge/training/mixed_precision.py.
PRECISION = {"bf16": "bf16_mixed", "fp8": "bf16_with_fp8_delayed_scaling_mixed"}


def launch(plan: SolvedPlan) -> Launch:
    """The plan as overrides of a Megatron-Bridge recipe.

    Raises:
        SpecError: Megatron cannot state it.
    """
    values = settings(plan)
    if "pipeline_model_parallel_layout" in values and plan.vpp > 1:
        values["num_virtual_stages_per_pipeline_rank"] = plan.vpp
    given = [
        f"{field}={_said(values[name]) if name in values else UNSET[name]}"
        for name, fields in FIELDS.items()
        if name in values or name in UNSET
        for field in fields
    ]
    given.append(f"mixed_precision={PRECISION[plan.problem.workload.precision]}")
    header = header_of(plan, FRAMEWORK)
    environment = environment_of(plan, values)
    layers = plan.problem.model.n_layers
    return Launch(
        target="nemo",
        framework=FRAMEWORK,
        values=given,
        text=shell_text(header, environment, "PLAN_OVERRIDES", map(_quoted, given)),
        header=header,
        chips=plan.chips_used,
        notes=(
            *notes_of(plan, values),
            f"The recipe must be of a model of {layers} layers: overrides leave the model alone.",
        ),
        environment=environment,
    )


def _quoted(word: str) -> str:
    """A word for a shell; one with quotes for OmegaConf in double ones."""
    return f'"{word}"' if "'" in word else shlex.quote(word)


def _said(value: Value) -> str:
    """A value as OmegaConf reads it; a list of modules and a layout are quoted there."""
    if value is True:
        return "true"
    if value == "core_attn":
        return "[core_attn]"
    return f"'{value}'" if isinstance(value, str) and "|" in value else str(value)
