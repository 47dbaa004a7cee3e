"""torchtitan config: a plan as fields of ``Trainer.Config`` and as a recipe.

Fields and rules: torchtitan/config/configs.py, distributed/pipeline_parallel.py and
distributed/activation_checkpoint.py of torchtitan 0.3.0, whose configs are Python functions.
"""

from __future__ import annotations

import pprint
from typing import TYPE_CHECKING, Any

from autoshard.costmodels.plan import Plan
from autoshard.costmodels.stack import STACKS
from autoshard.launch.checking import assumed, refuse, schedule_of, stated
from autoshard.launch.launch import Launch, commented, header_of
from autoshard.launch.stages import chunk_layers

if TYPE_CHECKING:
    from autoshard.solved import SolvedPlan

FRAMEWORK = "torchtitan 0.3.0"

#: Stock configs of torchtitan/models/llama3/config_registry.py, and the flavor of the model. The
#: 405B's trains in FP8 through torchao; another one with its model in bf16 takes its place.
RECIPES = {
    "llama3-8b": ("llama3_8b", ""),
    "llama3-70b": ("llama3_70b", ""),
    "llama3-405b": ("llama3_70b", "405B"),
}

#: Classes of torchtitan/distributed/activation_checkpoint.py by the rungs of the ladder.
CHECKPOINTING = {"none": None, "selective_op": "SelectiveAC", "full": "FullAC"}

#: Schedules of torch.distributed.pipelining by ours, with one stage a rank and with more.
SCHEDULES = {"1f1b": ("1F1B", "Interleaved1F1B"), "gpipe": ("GPipe", "LoopedBFS")}


def launch(plan: SolvedPlan) -> Launch:
    """The plan for torchtitan.

    Raises:
        SpecError: torchtitan cannot state it.
    """
    values = settings(plan)
    header = header_of(plan, FRAMEWORK)
    model = plan.problem.model.name
    return Launch(
        target="torchtitan",
        framework=FRAMEWORK,
        values=values,
        text=recipe(header, values, model),
        header=header,
        chips=plan.chips_used,
        notes=tuple(_notes(plan, model)),
    )


def settings(plan: SolvedPlan) -> dict[str, Any]:
    """The plan as sections of torchtitan's config, fields by name.

    ``activation_checkpoint`` is the name of a class, or None.

    Raises:
        SpecError: torchtitan cannot state it.
    """
    problem = plan.problem
    mine = stated(plan, "torchtitan")
    if problem.workload.precision == "int8":
        refuse(
            FRAMEWORK,
            "precision = int8",
            "it trains in bf16 or fp8",
            "solve with --precision fp8",
        )
    # Each step of gradient accumulation is a pipeline of its own, so that all microbatches are one.
    local = mine.micro_batch_size * (mine.microbatches if mine.pp > 1 else 1)
    parallelism: dict[str, Any] = {
        "data_parallel_replicate_degree": mine.dp,
        "data_parallel_shard_degree": mine.batch_split,
        "fsdp_reshard_after_forward": "always" if mine.reshard == 3 else "never",
        "tensor_parallel_degree": mine.tp,
        "enable_sequence_parallel": True,
        "context_parallel_degree": mine.seq_split,
        "pipeline_parallel_degree": mine.pp,
    }
    training: dict[str, Any] = {
        "local_batch_size": local,
        "global_batch_size": problem.workload.global_batch_seqs,
        "seq_len": problem.workload.seq_len,
    }
    if mine.pp > 1:
        parallelism |= {
            "pipeline_parallel_schedule": SCHEDULES[schedule_of(plan)][mine.vpp > 1],
            "pipeline_parallel_microbatch_size": mine.micro_batch_size,
            "module_fqns_per_model_part": model_parts(mine),
        }
        training["disable_cuda_graphs"] = True  # "Pipeline parallelism is not supported yet"
    rung = next(name for stage in mine.remat for name in stage)
    return {
        "training": training,
        "parallelism": parallelism,
        "activation_checkpoint": CHECKPOINTING[rung],
    }


def model_parts(plan: Plan) -> list[list[str]]:
    """The modules of each model part, by the names that torchtitan's decoders give them.

    Raises:
        SpecError: a model part would have neither layers nor the embedding or the head.
    """
    chunks = chunk_layers(plan)
    if min(chunks[1:-1], default=1) == 0:
        refuse(
            FRAMEWORK,
            f"vpp = {plan.vpp} on a stage of {min(plan.layers_per_stage)} layers",
            "a model part between the first and the last has a layer at least",
            f"vpp = {min(plan.layers_per_stage)} would do",
        )
    first = [sum(chunks[:place]) for place in range(len(chunks))]
    parts = [
        [f"layers.{layer}" for layer in range(start, start + count)]
        for start, count in zip(first, chunks, strict=True)
    ]
    parts[0].insert(0, "tok_embeddings")
    parts[-1] += ["norm", "lm_head"]
    return parts


def recipe(header: tuple[str, ...], values: dict[str, Any], model: str) -> str:
    """A Python module with the plan: ``--module MODULE --config plan``."""
    policy = values["activation_checkpoint"]
    base, flavor = RECIPES.get(model, ("", ""))
    imports = []
    if policy:
        imports.append(f"from torchtitan.distributed.activation_checkpoint import {policy}")
    if flavor:
        imports.append("from torchtitan.models.llama3 import model_registry")
    if base:
        imports.append(f"from torchtitan.models.llama3.config_registry import {base}")
    imports.append("from torchtitan.trainer import Trainer")
    body = [
        *_assignments("training", values["training"]),
        *_assignments("parallelism", values["parallelism"]),
        f"config.activation_checkpoint = {f'{policy}.Config()' if policy else None}",
        "return config",
    ]
    text = commented(header) + "\n" + "\n".join(imports)
    text += "\n\n\ndef with_plan(config: Trainer.Config) -> Trainer.Config:\n"
    text += '    """A config of the model, with this plan in the place of its own."""\n'
    text += "".join(f"    {line}\n" for line in body)
    if base:
        text += "\n\ndef plan() -> Trainer.Config:\n"
        text += f'    """{model} with this plan: `--module THIS --config plan`."""\n'
        text += f"    config = {base}()\n"
        if flavor:
            text += f'    config.model_spec = model_registry("{flavor}")\n'
        text += "    return with_plan(config)\n"
    return text


def _assignments(section: str, values: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in values.items():
        said = pprint.pformat(value, width=90, compact=True).replace("'", '"').splitlines()
        lines += [f"config.{section}.{name} = {said[0]}", *said[1:]]
    return lines


def _notes(plan: SolvedPlan, model: str) -> list[str]:
    notes = assumed(plan, STACKS["torchtitan"])
    if model not in RECIPES:
        notes.append(
            f"torchtitan has no stock config of {model}: call with_plan on a config of yours."
        )
    elif RECIPES[model][1]:
        notes.append(
            "torchtitan's own config of this model trains in FP8 and needs torchao; the recipe "
            "takes the 70B's with the model of 405B: check its learning rate and tokenizer."
        )
    if plan.problem.workload.precision == "fp8":
        notes.append(
            "FP8 is a property of the model's layers in torchtitan: give Float8LinearConverter to "
            "model_registry."
        )
    if plan.seq_split > 1:
        notes.append("Context parallelism wants FlexAttention, the default of model_registry.")
    if any(name not in ("none", "save_all") for stage in plan.remat for name in stage):
        notes.append(
            "Checkpointing of 0.3.0 does not stop early: it runs the last matmul of a layer again, "
            "which the costs of torchtitan leave out."
        )
    return notes
