"""torchtitan configs as a plan: TOML up to 0.2, and the flags of 0.2 and 0.3.

Fields: torchtitan/config/job_config.py of 0.2 (``[activation_checkpoint] mode``) and
torchtitan/config/configs.py of 0.3, whose recipes are Python and are not run here.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoshard.costmodels.checks import shown
from autoshard.costmodels.errors import SpecError
from autoshard.launch.read_plan import ReadPlan, check_spelling, part, whole
from autoshard.launch.stages import stage_layers

#: Fields of a plan with their defaults.
DEFAULTS: Mapping[str, Any] = {
    "training.local_batch_size": 8,
    "training.global_batch_size": -1,
    "training.seq_len": 2048,
    "parallelism.data_parallel_replicate_degree": 1,
    "parallelism.data_parallel_shard_degree": -1,
    "parallelism.fsdp_reshard_after_forward": "default",
    "parallelism.tensor_parallel_degree": 1,
    "parallelism.context_parallel_degree": 1,
    "parallelism.pipeline_parallel_degree": 1,
    "parallelism.pipeline_parallel_schedule": "1F1B",
    "parallelism.pipeline_parallel_microbatch_size": 1,
    "parallelism.module_fqns_per_model_part": None,
    "parallelism.expert_parallel_degree": 1,
    "activation_checkpoint.mode": None,
    "activation_checkpoint.selective_ac_option": "2",
}

#: Fields that divide the layers, which the config does not say: the model's flavor does.
_UNEVEN = (
    "parallelism.pipeline_parallel_layers_per_stage",
    "parallelism.pipeline_parallel_first_stage_less_layers",
    "parallelism.pipeline_parallel_last_stage_less_layers",
)

#: Fields of main after 0.3.0, which count tokens.
_LATER = ("training.num_tokens_per_microbatch_per_dp_rank", "parallelism.num_pp_microbatches")

#: Chunks of a stage under each schedule, where the config lists no model parts.
_SCHEDULES = {"1f1b": 1, "gpipe": 1, "interleaved1f1b": 2, "loopedbfs": 2}


def read_torchtitan(config: str | os.PathLike[str] | Sequence[str] | Mapping[str, Any]) -> ReadPlan:
    """The plan of a torchtitan config.

    Args:
        config: the path of a TOML file, flags such as ``--parallelism.tensor_parallel_degree 8``
            (``--job.config_file FILE`` among them is read first), or sections as a mapping, as
            ``SolvedPlan.to_torchtitan`` gives them.

    Raises:
        SpecError: a file or value cannot be read, torchtitan would refuse the config, or it asks
            for what no cost model prices.
    """
    said = _fields(config)
    for name in said:
        if name in _LATER:
            raise SpecError(f"torchtitan: {name} is of a version after 0.3.0, which is not read.")
        if name not in DEFAULTS and name not in _UNEVEN:
            check_spelling("torchtitan", name, DEFAULTS)
    fields = {**DEFAULTS, **said}

    def number(name: str) -> int:
        return whole(name, fields[name])

    if number("parallelism.expert_parallel_degree") > 1:
        raise SpecError("parallelism.expert_parallel_degree: no cost model covers experts.")
    replicas = number("parallelism.data_parallel_replicate_degree")
    left = str(fields["parallelism.data_parallel_shard_degree"]) == "-1"
    shard = -1 if left else number("parallelism.data_parallel_shard_degree")
    split = number("parallelism.context_parallel_degree")
    tp, pp = (number(f"parallelism.{axis}_parallel_degree") for axis in ("tensor", "pipeline"))
    shards = None if shard == -1 else shard * split
    read = ReadPlan(
        framework="torchtitan",
        tp=tp,
        pp=pp,
        cp=1,
        dp=replicas,
        fsdp=shards,
        seq_split=split,
        seq_len=number("training.seq_len"),
        reshard=_reshard(fields, shards, pp),
        chips=None if shards is None else replicas * shards * tp * pp,
        ignored=tuple(name for name in said if name not in DEFAULTS),
    )
    if split > 1 and (read.seq_len or 0) % (2 * tp * split):
        raise SpecError(
            f"torchtitan refuses this: {read.seq_len} tokens are not two pieces for each of TP x "
            f"CP = {tp * split} ranks."
        )
    return _remat(fields, _staged(fields, _batched(fields, read, number)))


def _fields(
    config: str | os.PathLike[str] | Sequence[str] | Mapping[str, Any],
) -> dict[str, Any]:
    """Fields by their dotted names."""
    if isinstance(config, Mapping):
        return _flat(config)
    if isinstance(config, (str, os.PathLike)):
        return _file(os.fspath(config))
    said: dict[str, Any] = {}
    words = list(config)
    while words:
        word = words.pop(0)
        if word.startswith("activation-checkpoint:"):
            said |= _policy(word.partition(":")[2])
            continue
        if not word.startswith("--"):
            continue
        name, has_value, value = word[2:].partition("=")
        if not has_value:
            alone = not words or words[0].startswith(("--", "activation-checkpoint:"))
            value = "true" if alone else words.pop(0)
        name = name.replace("-", "_")
        if name == "job.config_file":
            said = {**_file(value), **said}
        else:
            said[name] = value
    return said


def _file(path: str) -> dict[str, Any]:
    if path.endswith(".py"):
        raise SpecError(
            f"{path}: a recipe of torchtitan is a program, which is not run here; give its "
            "parallelism as flags, --parallelism.tensor_parallel_degree 8 ..."
        )
    try:
        return _flat(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise SpecError(f"{path}: is not TOML ({error}).") from None


def _flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for section, values in sections.items():
        if isinstance(values, Mapping):
            said |= {f"{section}.{name}": value for name, value in values.items()}
        elif section == "activation_checkpoint":
            classes = {None: "none", "FullAC": "full", "SelectiveAC": "selective"}
            said |= _policy(classes.get(values, str(values)))
        else:
            said[section] = values
    return said


def _policy(name: str) -> dict[str, str]:
    """A policy of 0.3, whose selective checkpointing is by operation."""
    return {
        "activation_checkpoint.mode": name,
        "activation_checkpoint.selective_ac_option": "op",
    }


def _reshard(fields: Mapping[str, Any], shards: int | None, pp: int) -> int | None:
    """ZeRO-3, or ZeRO-2 where weights stay gathered: by default, where there is a pipeline."""
    name = "parallelism.fsdp_reshard_after_forward"
    stages = {"always": 3, "never": 2, "default": 2 if pp > 1 else 3}
    word = str(fields[name])
    if word not in stages:
        raise SpecError(f"{name} must be one of {', '.join(stages)}, got {shown(fields[name])}.")
    return None if shards == 1 else stages[word]


def _batched(fields: Mapping[str, Any], read: ReadPlan, number: Any) -> ReadPlan:
    """Microbatches: of a pipeline those of a local batch, else the steps of accumulation."""
    local = number("training.local_batch_size")
    batch = fields["training.global_batch_size"]
    batch = None if str(batch) == "-1" else whole("training.global_batch_size", batch)
    data = None
    if read.chips is not None:
        data = read.chips // math.prod((read.tp or 1, read.pp or 1, read.seq_split or 1))
    steps: int | None = 1 if batch is None else None
    if data is not None:
        batch = local * data if batch is None else batch
        steps = part(
            batch,
            local * data,
            f"torchtitan refuses this: {batch} sequences are no multiple of {local} on each of "
            f"{data} data ranks.",
        )
    size = local
    many = steps
    if (read.pp or 1) > 1:
        if steps is not None and steps > 1:
            raise SpecError(
                "gradient accumulation beside a pipeline is not priced: each step would fill and "
                f"drain it; say training.local_batch_size {local * steps}."
            )
        size = number("parallelism.pipeline_parallel_microbatch_size")
        many = part(
            local,
            size,
            f"torchtitan refuses this: a local batch of {local} is not microbatches of {size}.",
        )
    return replace(read, micro_batch_size=size, microbatches=many, global_batch_seqs=batch)


def _staged(fields: Mapping[str, Any], read: ReadPlan) -> ReadPlan:
    """Virtual stages, and the layers of each stage where model parts are listed."""
    pp = read.pp or 1
    if pp == 1:
        return replace(read, vpp=1)
    schedule = str(fields["parallelism.pipeline_parallel_schedule"])
    if schedule.lower() not in _SCHEDULES:
        raise SpecError(
            f"parallelism.pipeline_parallel_schedule = {schedule!r}: priced are 1F1B, GPipe, "
            "Interleaved1F1B and LoopedBFS."
        )
    vpp = _SCHEDULES[schedule.lower()]
    parts = fields["parallelism.module_fqns_per_model_part"]
    if parts is None:
        deep = "parallelism.pipeline_parallel_layers_per_stage" in fields
        return replace(read, vpp=None if deep and vpp > 1 else vpp)
    if not isinstance(parts, list) or not all(isinstance(names, list) for names in parts):
        raise SpecError("parallelism.module_fqns_per_model_part must be a list of lists of names.")
    chunks = [sum(str(name).startswith("layers.") for name in names) for names in parts]
    deep_vpp = part(
        len(parts), pp, f"torchtitan refuses this: {len(parts)} model parts on {pp} stages."
    )
    if (deep_vpp > 1) != (vpp > 1):
        raise SpecError(
            f"torchtitan refuses this: {schedule} with {deep_vpp} model parts on each stage."
        )
    return replace(read, vpp=deep_vpp, layers_per_stage=stage_layers(chunks, pp))


def _remat(fields: Mapping[str, Any], read: ReadPlan) -> ReadPlan:
    """A rung of torchtitan's ladder; none where nothing is said.

    A recipe has its own then, and 0.2 recomputes every second layer, which is no rung.
    """
    mode = fields["activation_checkpoint.mode"]
    if mode is None:
        return read
    if mode in ("none", "full"):
        return replace(read, remat=mode)
    option = str(fields["activation_checkpoint.selective_ac_option"])
    if mode == "selective" and option in ("op", "1"):
        return replace(read, remat="full" if option == "1" else "selective_op")
    if mode == "selective":
        raise SpecError(
            f"activation_checkpoint.selective_ac_option = {option!r} recomputes some layers whole, "
            "which is not priced; op, and mode none and full are."
        )
    raise SpecError(
        f"activation_checkpoint.mode = {shown(mode)}: priced are none, selective, full."
    )
