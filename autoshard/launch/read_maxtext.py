"""MaxText configs as a plan: YAML over ``base.yml``, and ``key=value`` over that.

Keys and defaults: maxtext/configs/base.yml, types.py and pyconfig.py of MaxText 0.2.5.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoshard.costmodels.checks import shown
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.ladders import MAXTEXT_LADDER
from autoshard.launch.read_plan import ReadPlan, check_spelling, part, whole

#: Axes that a plan has, as they are named in ``ici_*_parallelism`` and ``dcn_*_parallelism``.
AXES = ("tensor", "context", "fsdp", "fsdp_transpose", "data", "pipeline")

#: Axes that no cost model prices, unless of size one.
OTHER_AXES = (
    "diloco",
    "sequence",
    "context_usp_ulysses",
    "context_autoregressive",
    "tensor_sequence",
    "expert",
    "autoregressive",
)

#: Defaults of base.yml where they are a plan's; axes are 1 but ``ici_fsdp`` and ``dcn_data``, which
#: are what is left of a slice and of the slices.
DEFAULTS: Mapping[str, Any] = {
    "ici_fsdp_parallelism": -1,
    "dcn_data_parallelism": -1,
    "per_device_batch_size": 12.0,
    "gradient_accumulation_steps": 1,
    "max_target_length": 2048,
    "num_layers_per_pipeline_stage": 1,
    "num_pipeline_repeats": -1,
    "num_pipeline_microbatches": -1,
    "pipeline_parallel_layers": -1,
    "remat_policy": "full",
    "shard_optimizer_over_data": False,
    "context_parallel_strategy": "all_gather",
    "compile_topology": "",
    "compile_topology_num_slices": 1,
    "num_slices": -1,
    "base_num_decoder_layers": None,
}

#: Keys of a plan.
KEYS = (
    *DEFAULTS,
    *(f"{net}_{axis}_parallelism" for net in ("ici", "dcn") for axis in (*AXES, *OTHER_AXES)),
)

#: Policies of other names that keep what a rung keeps.
SYNONYMS = {"minimal_flash": "minimal_with_context"}

#: Tensors that ``custom`` chooses among, beside the layer's input (``mlpwi`` is both of its kind).
TENSORS = {
    "context": ("context", "log_sum_exp"),
    "query_proj": ("query_proj",),
    "key_proj": ("key_proj",),
    "value_proj": ("value_proj",),
    "qkv_proj": ("query_proj", "key_proj", "value_proj"),
    "out_proj": ("out_proj",),
    "mlpwi": ("mlpwi_0", "mlpwi_1"),
    "mlpwi_0": ("mlpwi_0",),
    "mlpwi_1": ("mlpwi_1",),
    "mlpwo": ("mlpwo",),
}

#: TensorCores of a chip, which the names of these topologies count
#: (maxtext/utils/accelerator_to_spec_map.py); the others count chips.
_CORES = {"v4": 2, "v5p": 2}


def read_maxtext(config: str | os.PathLike[str] | Sequence[str] | Mapping[str, Any]) -> ReadPlan:
    """The plan of a MaxText config.

    Args:
        config: the path of a YAML file, a list of such paths and of ``key=value`` where later ones
            win (``base.yml`` itself may be left out or missing), or a mapping of keys.

    Raises:
        SpecError: a file or value cannot be read, MaxText would refuse the config, or it asks for
            what no cost model prices.
    """
    said = _said(config)
    for name in said:
        if name not in KEYS and name not in TENSORS:
            check_spelling("MaxText", name, KEYS)
    keys = {**DEFAULTS, **{name: value for name, value in said.items() if value is not None}}
    _check_priced(keys)
    chips, slices = _world(keys)
    degrees = _degrees(keys, chips, slices)
    tensor, context, stages = (
        _known(axis, degrees[axis]) for axis in ("tensor", "context", "pipeline")
    )
    layers = keys["base_num_decoder_layers"] or _layers_of(said.get("model_name"))
    read = _sharded(keys, degrees)
    read.update(_piped(keys, stages, layers))
    if chips is None:
        chips = _product(read["dp"], read["fsdp"], tensor, stages)
    read.update(_batched(keys, tensor * context * stages, stages, chips))
    known = set(KEYS) | set(TENSORS) | {"base_config", "model_name", "allow_split_physical_axes"}
    return ReadPlan(
        framework="maxtext",
        tp=tensor,
        cp=1,
        seq_split=context,
        seq_len=whole("max_target_length", keys["max_target_length"]),
        remat=_remat(keys),
        chips=chips,
        ignored=tuple(name for name in said if name not in known),
        **read,
    )


def _said(config: str | os.PathLike[str] | Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    words = [config] if isinstance(config, (str, os.PathLike)) else list(config)
    said: dict[str, Any] = {}
    for word in words:
        text = os.fspath(word)
        name, has_value, value = text.partition("=")
        if has_value and re.fullmatch(r"\w+", name):
            said[name] = _loaded(f"{name}=", value)
        elif text.endswith((".yml", ".yaml")):
            if Path(text).name != "base.yml":
                said |= _file(text)
        elif not text.endswith(".py"):
            raise SpecError(f"MaxText: {shown(text)} is neither a .yml file nor key=value.")
    return said


def _file(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8"
        raise SpecError(f"{path}: cannot be read ({reason}).") from None
    values = _loaded(path, text)
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise SpecError(f"{path}: is not a MaxText config, which maps keys to values.")
    return values


def _loaded(where: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{where}: is not YAML ({' '.join(str(error).split())}).") from None


def _check_priced(keys: Mapping[str, Any]) -> None:
    for network in ("ici", "dcn"):
        for axis in OTHER_AXES:
            name = f"{network}_{axis}_parallelism"
            if keys.get(name, 1) != 1:
                raise SpecError(f"{name} = {keys[name]}: no cost model prices that axis; 1 is.")
    strategy = keys["context_parallel_strategy"]
    if strategy != "all_gather" and keys.get("ici_context_parallelism", 1) != 1:
        raise SpecError(f"context_parallel_strategy = {strategy}: priced is all_gather.")
    if keys["pipeline_parallel_layers"] != -1:
        raise SpecError("pipeline_parallel_layers: priced is -1, all layers in the pipeline.")


def _world(keys: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Chips and slices, where the topology to compile for says them."""
    name = keys["compile_topology"]
    if not name:
        slices = keys["num_slices"]
        return None, None if slices == -1 else whole("num_slices", slices)
    found = re.fullmatch(r"(v\w+?)-(\d+)", str(name))
    if not found:
        raise SpecError(f"compile_topology = {shown(name)} is no name such as v5p-1024.")
    slices = whole("compile_topology_num_slices", keys["compile_topology_num_slices"])
    return int(found[2]) // _CORES.get(found[1], 1) * slices, slices


def _degrees(
    keys: Mapping[str, Any], chips: int | None, slices: int | None
) -> dict[str, int | None]:
    """Each axis over both networks; None where it is what is left of a world that is not known."""
    total: dict[str, int | None] = dict.fromkeys(AXES, 1)
    each = None if chips is None or slices is None else chips // slices
    for network, room in (("ici", each), ("dcn", slices)):
        sizes = {axis: keys.get(f"{network}_{axis}_parallelism", 1) for axis in AXES}
        left = [axis for axis, size in sizes.items() if size == -1]
        if len(left) > 1:
            raise SpecError(f"MaxText refuses this: {' and '.join(left)} of {network} are both -1.")
        rest = math.prod(
            whole(f"{network}_{axis}_parallelism", size)
            for axis, size in sizes.items()
            if size != -1
        )
        if room is not None:
            message = (
                f"MaxText refuses this: {network} axes of {rest} in all do not make the {room} "
                f"{'devices of a slice' if network == 'ici' else 'slices'}."
            )
            over = part(room, rest, message)
            if left:
                sizes[left[0]] = over
            elif over != 1:
                raise SpecError(message)
        for axis, size in sizes.items():
            before = total[axis]
            unknown = size == -1 or before is None
            total[axis] = None if unknown or before is None else before * size
    return total


def _product(*factors: int | None) -> int | None:
    return None if None in factors else math.prod(factor or 1 for factor in factors)


def _known(axis: str, size: int | None) -> int:
    if size is None:
        raise SpecError(
            f"the {axis} axis is what is left of a world that is not said: give its size, or "
            "compile_topology."
        )
    return size


def _sharded(keys: Mapping[str, Any], degrees: Mapping[str, int | None]) -> dict[str, Any]:
    """FSDP is ZeRO-3 over ``fsdp`` and ``context``; ZeRO-1 is over ``data``."""
    fsdp = _product(degrees["fsdp"], degrees["fsdp_transpose"], degrees["context"])
    if not keys["shard_optimizer_over_data"]:
        return {"dp": degrees["data"], "fsdp": fsdp, "reshard": None if fsdp == 1 else 3}
    if fsdp != 1:
        raise SpecError(
            "shard_optimizer_over_data beside FSDP is not priced; leave it out, or set "
            "ici_fsdp_parallelism=1."
        )
    return {"dp": 1, "fsdp": degrees["data"], "reshard": 1}


def _piped(keys: Mapping[str, Any], pp: int, layers: int | None) -> dict[str, Any]:
    if layers is not None:
        layers = whole("base_num_decoder_layers", layers)
    if pp == 1:
        return {"pp": 1, "vpp": 1, "layers_per_stage": None if layers is None else (layers,)}
    each = whole("num_layers_per_pipeline_stage", keys["num_layers_per_pipeline_stage"])
    repeats = keys["num_pipeline_repeats"]
    if layers is not None:
        message = (
            f"MaxText refuses this: {layers} layers do not divide by {pp} stages of {each} layers"
        )
        all_repeats = part(layers, pp * each, f"{message}.")
        if repeats not in (-1, all_repeats):
            raise SpecError(f"{message} times {repeats} repeats.")
        repeats = all_repeats
    if repeats == -1:
        return {"pp": pp, "vpp": None, "layers_per_stage": None}
    vpp = whole("num_pipeline_repeats", repeats)
    return {"pp": pp, "vpp": vpp, "layers_per_stage": (each * vpp,) * pp}


def _batched(keys: Mapping[str, Any], ranks: int, pp: int, devices: int | None) -> dict[str, Any]:
    """Batches: ``int(devices * per_device_batch_size)`` in each of the accumulated steps.

    ``ranks`` have the batch of one data shard together.
    """
    size = keys["per_device_batch_size"]
    if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 < size < 2**40:
        raise SpecError(f"per_device_batch_size must be a positive number, got {shown(size)}.")
    steps = whole("gradient_accumulation_steps", keys["gradient_accumulation_steps"])
    shard = size * ranks if devices is None else int(devices * size) * ranks / devices
    if abs(shard - round(shard)) > 1e-6 or round(shard) < 1:
        raise SpecError(
            f"per_device_batch_size = {size:g}: a data shard has {shard:g} sequences, which are no "
            "whole ones."
        )
    sequences = round(shard)
    many = 1
    if pp > 1:
        many = keys["num_pipeline_microbatches"]
        many = pp if many == -1 else whole("num_pipeline_microbatches", many)
        part(many, pp, f"MaxText refuses this: {many} microbatches on {pp} stages.")
        part(
            sequences,
            many,
            f"MaxText refuses this: {sequences} sequences are not {many} microbatches.",
        )
        if steps > 1:
            raise SpecError(
                "gradient_accumulation_steps beside a pipeline is not priced: each step would fill "
                "and drain it; say num_pipeline_microbatches."
            )
    else:
        many = steps
        sequences *= steps
    total = None if devices is None else int(devices * size) * steps
    return {
        "micro_batch_size": sequences // many,
        "microbatches": many,
        "global_batch_seqs": total,
    }


def _remat(keys: Mapping[str, Any]) -> str:
    rungs = {rung.name: rung for rung in MAXTEXT_LADDER if rung.name != "none"}
    name = str(keys["remat_policy"])
    name = SYNONYMS.get(name, name)
    if name in rungs:
        return name
    if name != "custom":
        raise SpecError(f"remat_policy = {shown(name)}: priced are {', '.join(rungs)}, custom.")
    kept = {
        tensor
        for key, tensors in TENSORS.items()
        if keys.get(key) == "device"
        for tensor in tensors
    }
    for rung in rungs.values():
        if set(rung.kept) - {"layer_input"} == kept:
            return rung.name
    said = ", ".join(sorted(kept)) or "nothing"
    raise SpecError(f"remat_policy = custom that keeps {said}: priced are {', '.join(rungs)}.")


def _layers_of(name: Any) -> int | None:
    """Layers of a model that autoshard has a preset of."""
    from autoshard.catalog import load_model, model_names

    known = str(name).replace("llama3.1-", "llama3-")
    return load_model(known).n_layers if known in model_names() else None
