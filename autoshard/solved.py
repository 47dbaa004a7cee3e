"""A plan together with the front that it was found on: what a launch script holds in its hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    import altair
    import jax
    from torch.distributed.device_mesh import DeviceMesh

    from autoshard.costmodels.problem import Problem
    from autoshard.costmodels.profile import Profile
    from autoshard.front import FrontPoint, ParetoFront
    from autoshard.launch.launch import Launch
    from autoshard.launch.mesh import MeshAxis
    from autoshard.statement import Statement


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SolvedPlan(Plan):
    """A :class:`Plan` that knows its predicted costs and the problem it answers.

    ``ParetoFront.fastest`` and ``ParetoFront.solved`` make them. It equals the bare plan of the
    same values.

    Raises:
        SpecError: a degree differs from that of its point, as after ``dataclasses.replace``.
    """

    point: FrontPoint = field(repr=False)
    front: ParetoFront = field(repr=False)

    def __post_init__(self) -> None:
        Plan.__post_init__(self)
        if self.to_dict() != self.point.plan.to_dict():
            raise SpecError(
                "a solved plan keeps the values that it was solved with; change a bare plan, "
                "dataclasses.replace(front.point().plan, ...)."
            )

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Plan) else NotImplemented

    @property
    def problem(self) -> Problem:
        """The model, cluster, workload and recipe that it was solved for."""
        from autoshard.restoring import problem_of

        return problem_of(self.front.problem)

    @property
    def profile(self) -> Profile:
        """The cost models that found it.

        Raises:
            SpecError: the front is of costs that its name does not say.
        """
        from autoshard.restoring import profile_of

        return profile_of(self.front, self.problem)

    @property
    def expressible_in(self) -> Mapping[str, Statement]:
        """How each software stack can state the plan: that of its point, or found now.

        Raises:
            SpecError: the front is of costs that its name does not say.
        """
        if self.point.expressible_in:
            return self.point.expressible_in
        from autoshard.expressible import Statements
        from autoshard.restoring import row_of
        from autoshard.search.rows import price_rows

        problem, profile = self.problem, self.profile.unrestricted
        return Statements(
            problem=problem,
            profile=profile,
            row=price_rows(problem, profile, row_of(problem, self.point.plan)),
            plan=self.point.plan,
            memory_bytes=self.point.memory_bytes,
            step_time_s=self.point.step_time_s,
        )

    def chart_time(self) -> altair.LayerChart:
        """Where the step goes: compute, communication hidden and not, bubble, recompute."""
        from autoshard.charts.time import time_chart

        return time_chart(self.front, self.point)

    def chart_memory(self) -> altair.LayerChart:
        """Bytes by kind on a chip of every pipeline stage, against the limit.

        Raises:
            SpecError: the front is of costs that its name does not say.
        """
        from autoshard.charts.memory import memory_chart
        from autoshard.priced import PricedPlan

        return memory_chart(PricedPlan.of(self))

    def chart_pipeline(self) -> altair.VConcatChart:
        """The schedule as a timeline: the passes of each stage, and where it waits.

        Raises:
            SpecError: the front is of costs that its name does not say, or their schedule is not
                one of autoshard's.
        """
        from autoshard.charts.pipeline import pipeline_chart
        from autoshard.priced import PricedPlan

        return pipeline_chart(PricedPlan.of(self))

    def chart_mesh(self) -> altair.LayerChart:
        """Which logical axis lies on which level of the network, with degrees and bandwidths.

        Raises:
            SpecError: the front is of costs that its name does not say.
        """
        from autoshard.charts.mesh import mesh_chart
        from autoshard.priced import PricedPlan

        return mesh_chart(PricedPlan.of(self))

    # Launch configs (autoshard/launch). Each method refuses, as a SpecError, what its target cannot
    # state; `launch` has the same values with the notes, the text of the file and the header.

    def launch(self, target: str) -> Launch:
        """The plan for a framework: values, text for a file, world size, and notes.

        Args:
            target: ``megatron``, ``maxtext``, ``torchtitan``, ``nemo``, ``accelerate``,
                ``deepspeed`` or ``jax``.

        Raises:
            UnknownName: there is no such target.
            SpecError: it cannot state the plan; the message has the field, why, and what it can.
        """
        from autoshard.launch.launch import launch

        return launch(self, target)

    def to_megatron(self) -> list[str]:
        """Arguments of Megatron-LM's ``pretrain_gpt.py``, for Megatron-Core 0.19.2.

        Parallelism, batch, recomputation and precision; the model's sizes, data and optimizer are
        the script's.

        Raises:
            SpecError: Megatron cannot state the plan.
        """
        return list(self.launch("megatron").values)

    def to_maxtext(self) -> dict[str, Any]:
        """Keys over ``base.yml`` of MaxText 0.2.5.

        Raises:
            SpecError: MaxText cannot state the plan.
        """
        return dict(self.launch("maxtext").values)

    def to_torchtitan(self) -> dict[str, Any]:
        """Sections of ``Trainer.Config`` of torchtitan 0.3.0, fields by name.

        ``activation_checkpoint`` is the name of a class of
        ``torchtitan.distributed.activation_checkpoint``, or None. The recipe that sets them is
        ``launch("torchtitan").text``.

        Raises:
            SpecError: torchtitan cannot state the plan.
        """
        return dict(self.launch("torchtitan").values)

    def to_nemo(self) -> list[str]:
        """Overrides of a recipe of Megatron-Bridge 0.6.2, ``section.field=value``.

        Raises:
            SpecError: Megatron cannot state the plan.
        """
        return list(self.launch("nemo").values)

    def to_accelerate(self) -> dict[str, Any]:
        """The config file of Hugging Face accelerate 1.15.0 (FSDP2).

        Raises:
            SpecError: accelerate cannot state the plan.
        """
        return dict(self.launch("accelerate").values)

    def to_deepspeed(self) -> dict[str, Any]:
        """The JSON config of DeepSpeed 0.19.8.

        Raises:
            SpecError: DeepSpeed's JSON cannot state the plan.
        """
        return dict(self.launch("deepspeed").values)

    def mesh_axes(self) -> dict[str, MeshAxis]:
        """The axes of the mesh from the outermost: size, degree, and the network that carries each.

        ``stage``, ``data``, ``fsdp``, ``sequence``, ``context`` and ``tensor``, those of size one
        too.
        """
        from autoshard.launch.mesh import mesh_axes

        return mesh_axes(self)

    def jax_mesh(self, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
        """A ``jax.sharding.Mesh`` with the axes of :meth:`mesh_axes`.

        Args:
            devices: ``chips_used`` of them; all of JAX's by default.

        Raises:
            SpecError: JAX is not installed, or there are more or fewer devices.
        """
        from autoshard.launch.mesh import jax_mesh

        return jax_mesh(self, devices)

    def torch_device_mesh(self, device_type: str = "cuda") -> DeviceMesh:
        """A ``torch.distributed`` device mesh; all ranks of the world have to call it.

        Axes ``pp``, ``dp_replicate``, ``dp_shard``, ``sp`` (``seq_split``), ``cp`` and ``tp``.

        Args:
            device_type: ``cuda``, or ``cpu`` for gloo.

        Raises:
            SpecError: PyTorch is not installed, or the world has another size than the plan.
        """
        from autoshard.launch.mesh import torch_device_mesh

        return torch_device_mesh(self, device_type)
