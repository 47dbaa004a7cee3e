"""Device meshes: the axes of a plan with where each lies, and the meshes of JAX and PyTorch.

Ranks nest as the cost models have them, the innermost axis last. Names are those of JAX codes
(MaxText's ``mesh_axes``) and of PyTorch's (torchtitan's ``MeshAxisName``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.plan import Plan
from autoshard.launch.launch import Launch, commented, header_of
from autoshard.words import microbatch_words

if TYPE_CHECKING:
    import jax
    from torch.distributed.device_mesh import DeviceMesh

    from autoshard.solved import SolvedPlan

FRAMEWORK = "JAX 0.12.0.1"

#: Axes from the outermost: JAX's name, PyTorch's name, the degree, and what the layout calls it.
AXES = (
    ("stage", "pp", "pp", "pp"),
    ("data", "dp_replicate", "dp", "dp"),
    ("fsdp", "dp_shard", "batch_split", "fsdp"),
    ("sequence", "sp", "seq_split", "fsdp"),
    ("context", "cp", "cp", "cp"),
    ("tensor", "tp", "tp", "tp"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshAxis:
    """One axis of a plan's mesh: its size, its degree's name, and the network that carries it.

    ``network`` is empty where the axis has one rank: nothing is sent along it.
    """

    size: int
    degree: str
    network: str


def mesh_axes(plan: Plan) -> dict[str, MeshAxis]:
    """The axes of a plan from the outermost to the innermost, by JAX's names.

    ``fsdp`` and ``sequence`` together shard the state (``batch_split * seq_split``); the tokens of
    a sequence are split over ``sequence``, which gathers keys and values, and ``context``, which
    passes them round.
    """
    return {
        name: MeshAxis(
            size=getattr(plan, degree),
            degree=degree,
            network=plan.layout.get(word, "") if getattr(plan, degree) > 1 else "",
        )
        for name, _, degree, word in AXES
    }


def jax_mesh(plan: Plan, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A ``jax.sharding.Mesh`` of the plan, by the names of :func:`mesh_axes`.

    Args:
        plan: the plan.
        devices: as many as ``plan.chips_used``; all that JAX has by default. Those of several TPU
            slices become one mesh with the slices along ``data``.

    Raises:
        SpecError: JAX is not installed, or there are more or fewer devices.
    """
    try:
        import jax
        from jax.experimental import mesh_utils
    except ImportError:
        raise SpecError("a JAX mesh needs JAX, which is not here: pip install jax.") from None
    given = list(jax.devices() if devices is None else devices)
    if len(given) != plan.chips_used:
        raise SpecError(
            f"jax_mesh: the plan is a mesh of {plan.chips_used:,} devices, and there are "
            f"{len(given):,}; give {plan.chips_used:,} of them, or solve for {len(given):,} chips."
        )
    shape = {name: axis.size for name, axis in mesh_axes(plan).items()}
    slices = {getattr(device, "slice_index", 0) for device in given}
    if plan.pods > 1 and len(slices) > 1:
        between = {name: plan.pods if name == "data" else 1 for name in shape}
        inside = {name: size // between[name] for name, size in shape.items()}
        placed = mesh_utils.create_hybrid_device_mesh(
            tuple(inside.values()),
            tuple(between.values()),
            given,
            allow_split_physical_axes=True,
        )
    else:
        placed = mesh_utils.create_device_mesh(
            tuple(shape.values()), given, allow_split_physical_axes=True
        )
    return jax.sharding.Mesh(placed, tuple(shape))


def torch_device_mesh(plan: Plan, device_type: str = "cuda") -> DeviceMesh:
    """A ``torch.distributed`` device mesh of the plan, with an axis for each degree.

    Axes are ``pp``, ``dp_replicate``, ``dp_shard``, ``sp`` (``seq_split``), ``cp`` and ``tp``, of
    which those of size one are there too: ``mesh["dp_replicate", "dp_shard"]`` is the mesh of
    ``fully_shard`` and ``mesh["tp"]`` that of ``parallelize_module``. All ranks have to call it.

    Args:
        plan: the plan.
        device_type: ``cuda``, or ``cpu`` for gloo.

    Raises:
        SpecError: PyTorch is not installed, or the world has another size than the plan.
    """
    try:
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
    except ImportError:
        raise SpecError(
            "a device mesh of PyTorch needs it, and it is not here: pip install torch."
        ) from None
    import os

    world = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))
    if world != plan.chips_used:
        raise SpecError(
            f"torch_device_mesh: the plan is a mesh of {plan.chips_used:,} ranks, and the world "
            f"has {world:,}; launch {plan.chips_used:,} processes, or solve for {world:,} chips."
        )
    sizes = tuple(getattr(plan, degree) for _, _, degree, _ in AXES)
    return init_device_mesh(device_type, sizes, mesh_dim_names=tuple(name for _, name, *_ in AXES))


def launch(plan: SolvedPlan) -> Launch:
    """The plan as a JAX mesh: sizes of axes, and the lines of Python that make it."""
    header = header_of(plan, FRAMEWORK)
    axes = mesh_axes(plan)
    values: dict[str, Any] = {
        "axis_names": list(axes),
        "mesh_shape": [
            axis.size // (plan.pods if name == "data" else 1) for name, axis in axes.items()
        ],
        "dcn_mesh_shape": [plan.pods if name == "data" else 1 for name in axes],
        "networks": {name: axis.network for name, axis in axes.items() if axis.network},
    }
    notes = [
        "A mesh says where shards may lie; microbatches "
        f"({microbatch_words(plan)}), remat and the pipeline "
        "schedule are the program's.",
    ]
    if plan.chips_used < plan.problem.cluster.chips:
        notes.append(
            f"The mesh has {plan.chips_used:,} of the cluster's {plan.problem.cluster.chips:,} "
            "chips: give it that many devices."
        )
    return Launch(
        target="jax",
        framework=FRAMEWORK,
        values=values,
        text=_python(header, values, plan.pods),
        header=header,
        chips=plan.chips_used,
        notes=tuple(notes),
    )


def _python(header: tuple[str, ...], values: dict[str, Any], pods: int) -> str:
    shape = tuple(values["mesh_shape"])
    if pods > 1:
        between = tuple(values["dcn_mesh_shape"])
        made = (
            "mesh_utils.create_hybrid_device_mesh(\n"
            f"    {shape},\n    {between},\n    allow_split_physical_axes=True,\n)"
        )
    else:
        made = (
            f"mesh_utils.create_device_mesh(\n    {shape},\n    allow_split_physical_axes=True,\n)"
        )
    comments = "".join(f"# {name}: {where}\n" for name, where in values["networks"].items())
    names = ", ".join(f'"{name}"' for name in values["axis_names"])
    return (
        f"{commented(header)}{comments}from jax.experimental import mesh_utils\n"
        f"from jax.sharding import Mesh\n\ndevices = {made}\n"
        f"mesh = Mesh(devices, ({names}))\n"
    )
