"""MaxText config: a plan as keys over ``base.yml``.

Keys and rules: maxtext/configs/base.yml, types.py and pyconfig.py of MaxText 0.2.5. A mesh of
MaxText is a product of two, inside a slice (``ici``) and between slices (``dcn``): a slice is a TPU
slice, or the GPUs of one NVLink domain.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.remat import Rung
from autoshard.costmodels.stack import STACKS
from autoshard.launch.checking import assumed, refuse, stated
from autoshard.launch.launch import Launch, header_of, yaml_text
from autoshard.stack_notes import whole_dimensions

if TYPE_CHECKING:
    from autoshard.solved import SolvedPlan

FRAMEWORK = "MaxText 0.2.5"

#: Rungs of the textbook that ``remat_policy: custom`` states, by the tensors that it keeps: beside
#: both inputs (``out_proj`` and the layer's input add up to the second), the queries and the
#: attention output. The names are in maxtext/layers/decoders.py, get_remat_policy.
CUSTOM = {"checkpoints_4": ("query_proj", "context", "out_proj")}

#: What MaxText calls the presets that it has: ``model_name`` of maxtext/configs/types.py. Its files
#: in configs/models are more, llama3-405b.yml among them, which it refuses by name. Preset
#: ``qwen2.5-72b`` has no file there, and gpt3-175b is another variant.
MODELS = {
    name: name
    for name in (
        *("llama2-7b", "llama2-13b", "llama2-70b", "llama3-8b", "llama3-70b"),
        *("gemma-7b", "mistral-7b", "qwen2.5-7b"),
    )
} | {"llama3-405b": "llama3.1-405b"}

#: Logical axes of MaxText from the innermost, and the degree of each where FSDP is ZeRO-3.
AXES = {
    "tensor": "tp",
    "context": "seq_split",
    "fsdp": "batch_split",
    "data": "dp",
    "pipeline": "pp",
}


def launch(plan: SolvedPlan) -> Launch:
    """The plan for MaxText.

    Raises:
        SpecError: MaxText cannot state it.
    """
    values, notes = settings(plan)
    header = header_of(plan, FRAMEWORK)
    return Launch(
        target="maxtext",
        framework=FRAMEWORK,
        values=values,
        text=yaml_text(header, values),
        header=header,
        chips=plan.chips_used,
        notes=(*assumed(plan, STACKS[_stack(plan.problem)]), *notes),
    )


def settings(plan: SolvedPlan) -> tuple[dict[str, Any], list[str]]:
    """The plan as MaxText's keys, and sentences on what they leave open.

    Raises:
        SpecError: MaxText cannot state it.
    """
    problem = plan.problem
    extra = tuple(Rung(name=name) for name in CUSTOM)
    mine = stated(plan, _stack(problem), extra)
    degrees = {axis: getattr(mine, degree) for axis, degree in AXES.items()}
    values: dict[str, Any] = {"base_config": "base.yml"}
    if problem.model.name in MODELS:
        values["model_name"] = MODELS[problem.model.name]
    values["hardware"] = problem.cluster.chip.kind
    values["max_target_length"] = problem.workload.seq_len
    values |= _batch(mine)
    if mine.reshard == 1 and mine.fsdp > 1:
        degrees |= _optimizer_alone(mine)
        values["shard_optimizer_over_data"] = True
    inside, between = _slices(problem, mine, degrees)
    for prefix, sizes in (("ici", inside), ("dcn", between)):
        values |= {f"{prefix}_{axis}_parallelism": size for axis, size in sizes.items()}
    if mine.seq_split > 1:
        values["context_parallel_strategy"] = "all_gather"
    if mine.pp > 1:
        values |= {
            "num_layers_per_pipeline_stage": mine.layers_per_stage[0] // mine.vpp,
            "num_pipeline_repeats": mine.vpp,
            "num_pipeline_microbatches": mine.microbatches,
        }
    values |= _remat(mine) | {"scan_layers": True} | _precision(problem)
    notes = _torus(problem, mine, values) + _dropped(mine, values["per_device_batch_size"])
    if "model_name" not in values:
        notes.append(f"MaxText has no model {problem.model.name!r}: say its shape beside this.")
    return values, notes


def _stack(problem: Problem) -> str:
    return "maxtext" if problem.cluster.chip.kind == "tpu" else "maxtext-gpu"


def _batch(plan: Plan) -> dict[str, Any]:
    """Sequences a device and accumulated steps.

    ``micro_batch_to_train = int(devices * per_device_batch_size)`` and the global batch is that
    times ``gradient_accumulation_steps`` (types.py); a pipeline splits the former into its
    microbatches. A fraction that would be cut below the whole number is rounded up.
    """
    steps = 1 if plan.pp > 1 else plan.microbatches
    sequences = plan.dp * plan.batch_split * plan.micro_batch_size * plan.microbatches // steps
    each = sequences / plan.chips_used
    if int(plan.chips_used * each) < sequences:
        each = math.nextafter(each, math.inf)
    return {"per_device_batch_size": each, "gradient_accumulation_steps": steps}


def _dropped(plan: Plan, each: float) -> list[str]:
    """What becomes of data where there are more devices than sequences.

    As many as devices are loaded, and a step cuts off those beyond its batch (maxtext/configs/
    types.py, calculate_global_batch_sizes, and trainers/pre_train/train.py, loss_fn).
    """
    if each >= 1.0:
        return []
    return [
        f"per_device_batch_size is below one: of every {plan.chips_used:,} sequences that MaxText "
        f"loads it trains on the first {int(plan.chips_used * each):,}, and drops the rest."
    ]


def _optimizer_alone(plan: Plan) -> dict[str, int]:
    """ZeRO-1: optimizer state over the ranks of ``data``, and no others."""
    for degree, reason in (
        ("dp", "shard_optimizer_over_data shards over all data ranks, replicas between pods too"),
        ("seq_split", "its context axis shards the weights as well, which is ZeRO-3"),
    ):
        if getattr(plan, degree) > 1:
            refuse(
                FRAMEWORK,
                f"reshard = 1 with {degree} = {getattr(plan, degree)}",
                reason,
                "reshard = 3 would do",
            )
    return {"fsdp": 1, "data": plan.batch_split}


def _slices(
    problem: Problem, plan: Plan, degrees: dict[str, int]
) -> tuple[dict[str, int], dict[str, int]]:
    """Degrees inside a slice and between slices: pods of a TPU, NVLink domains of GPUs.

    Ranks nest in the order of :data:`AXES`, so that the innermost degrees fill a domain.
    """
    if problem.cluster.chip.kind == "tpu":
        return {**degrees, "data": degrees["data"] // plan.pods}, {"data": plan.pods}
    room = min(problem.cluster.chip.domain_chips, plan.chips_used)
    inside, between = {}, {}
    for axis, size in degrees.items():
        inside[axis] = math.gcd(size, room)
        room //= inside[axis]
        between[axis] = size // inside[axis]
    if room > 1:
        domain = problem.cluster.chip.domain_chips
        refuse(
            FRAMEWORK,
            "this mesh",
            f"its degrees do not fill NVLink domains of {domain} GPUs",
            f"degrees whose products divide {domain} would",
        )
    return inside, {axis: size for axis, size in between.items() if size > 1 or axis == "data"}


def _remat(plan: Plan) -> dict[str, str]:
    name = next(name for stage in plan.remat for name in stage)
    if name in CUSTOM:
        return {"remat_policy": "custom"} | dict.fromkeys(CUSTOM[name], "device")
    return {"remat_policy": name}


def _precision(problem: Problem) -> dict[str, str]:
    """``quantization`` of base.yml: ``int8`` and ``fp8`` train, the weights stay in fp32."""
    name = problem.workload.precision
    return {} if name == "bf16" else {"quantization": name}


def _torus(problem: Problem, plan: Plan, values: dict[str, Any]) -> list[str]:
    """The slice that the mesh wants, and whether its axes split dimensions of the torus.

    A mesh axis has to be a product of whole dimensions unless ``allow_split_physical_axes``
    (jax.experimental.mesh_utils).
    """
    cluster = problem.cluster
    if cluster.chip.kind != "tpu":
        return []
    used = plan.chips_used // plan.pods
    degrees = [d for d in (plan.batch_split, plan.seq_split, plan.tp, plan.pp) if d > 1]
    if used != cluster.pod_chips:
        values["allow_split_physical_axes"] = True
        slices = "a slice" if plan.pods == 1 else f"{plan.pods} slices"
        return [
            f"A mesh of MaxText takes every chip of its slice: this plan wants {slices} of "
            f"{used:,} chips, and those of the cluster have {cluster.pod_chips:,}."
        ]
    if not whole_dimensions(degrees, cluster.topology):
        values["allow_split_physical_axes"] = True
        shape = "x".join(str(length) for length in cluster.topology)
        return [
            f"The degrees are not products of whole dimensions of {shape}; "
            "allow_split_physical_axes lets them split some."
        ]
    return []
