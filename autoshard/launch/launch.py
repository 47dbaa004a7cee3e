"""What an export is: values in the target's own names, its text, and what it cannot say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import autoshard
from autoshard.costmodels.errors import UnknownName
from autoshard.sizes import format_bytes, format_seconds
from autoshard.words import chips_words, microbatch_words, plan_words, proof_words, remat_words

if TYPE_CHECKING:
    from autoshard.solved import SolvedPlan

#: Targets and the module of each, which has a function ``launch(plan) -> Launch``.
TARGETS = {
    "megatron": "megatron",
    "maxtext": "maxtext",
    "torchtitan": "torchtitan",
    "nemo": "nemo",
    "accelerate": "accelerate",
    "deepspeed": "deepspeed",
    "jax": "mesh",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A plan in the words of one target.

    ``framework`` is the target with the version whose names these are. ``values`` are plain: a list
    of arguments, or a mapping ready for JSON or YAML. ``text`` is what goes into a file, in the
    target's syntax, under ``header`` where that has comments. ``chips`` is the world size to launch
    and ``environment`` what has to be set there. ``notes`` are sentences on what the target cannot
    express, or on what has to be said elsewhere.
    """

    target: str
    framework: str
    values: Any
    text: str
    header: tuple[str, ...]
    chips: int
    notes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The export as plain values, ready for JSON."""
        return {
            "schema": "autoshard.launch/1",
            "target": self.target,
            "framework": self.framework,
            "chips": self.chips,
            "environment": dict(self.environment),
            "values": self.values,
            "header": list(self.header),
            "notes": list(self.notes),
        }


def launch(plan: SolvedPlan, target: str) -> Launch:
    """A solved plan in the words of a target, one of :data:`TARGETS`.

    Raises:
        UnknownName: there is no such target.
        SpecError: the target cannot state the plan; the message says why, and what it can.
    """
    if not isinstance(target, str) or target not in TARGETS:
        raise UnknownName("launch target", str(target), TARGETS)
    made: Launch = import_module(f"autoshard.launch.{TARGETS[target]}").launch(plan)
    return made


def header_of(plan: SolvedPlan, framework: str) -> tuple[str, ...]:
    """The comment above a config: for what it is, what is predicted, and how well proven."""
    problem, point = plan.front.problem, plan.point
    cluster, workload = problem["cluster"], problem["workload"]
    gap = float(plan.front.search.get("gap", 0.0))
    proof = proof_words(point, gap, complete=plan.front.complete)
    lower = format_seconds(point.lower_bound_s)
    return (
        f"autoshard {autoshard.__version__} for {framework}: {problem['model']['name']} on "
        f"{chips_words(plan, cluster['chips'])} ({cluster['chip']['name']})",
        f"predicted: {format_seconds(point.step_time_s)} a step, "
        f"{format_bytes(point.memory_bytes)} a chip, MFU {point.mfu * 100:.1f} %, by the costs "
        f"{problem['costs']['profile']}; {proof} (no plan below {lower})",
        f"plan: {plan_words(plan)}; {microbatch_words(plan)} of {workload['seq_len']:,} tokens; "
        f"remat: {remat_words(plan)}",
        f"world size: {plan.chips_used} chips, {workload['global_batch_seqs']:,} sequences a step",
    )


def commented(header: tuple[str, ...]) -> str:
    """The header as lines that begin with ``#``, as in shell, YAML and Python."""
    return "".join(f"# {line}\n" for line in header)


def yaml_text(header: tuple[str, ...], values: Mapping[str, Any]) -> str:
    """Values as YAML below the header, in their order."""
    import yaml

    return commented(header) + str(yaml.safe_dump(values, sort_keys=False))


def shell_text(
    header: tuple[str, ...], environment: Mapping[str, str], name: str, lines: Iterable[str]
) -> str:
    """An array of shell words below the header and what has to be set, a line each."""
    exports = "".join(f"export {key}={value}\n" for key, value in environment.items())
    words = "".join(f"    {line}\n" for line in lines)
    return f"{commented(header)}{exports}{name}=(\n{words})\n"
