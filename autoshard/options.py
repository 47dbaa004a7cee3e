"""The options that say what is asked, shared by the commands that solve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from autoshard import shell_completion as complete
from autoshard.costmodels.errors import SpecError
from autoshard.sizes import parse_count

if TYPE_CHECKING:
    from autoshard.costmodels.profile import Profile
    from autoshard.costmodels.recipe import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])

#: The words of ``autoshard.textbook``; a test compares them.
LAYERS = ("full", "mlp2")
OVERLAPS = ("max", "sum")

#: The targets of ``autoshard export``; a test compares them.
LAUNCHES = ("megatron", "maxtext", "torchtitan", "nemo", "accelerate", "deepspeed", "jax")

#: The options that :func:`autoshard.build_problem` takes under the same name.
PROBLEM = (
    "cluster",
    "chip",
    "chips",
    "pods",
    "topology",
    "global_batch_tokens",
    "global_batch_seqs",
    "seq_len",
    "precision",
    "memory_limit",
)


class Count(click.ParamType[int]):
    """A positive count as people write it: ``4194304``, ``16M``, ``15T``, ``4Mi``."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The count; a usage error where it is none."""
        try:
            return parse_count(value)
        except SpecError as error:
            self.fail(str(error), param, ctx)


class Ratio(click.ParamType[float]):
    """A share: ``0.001`` or ``0.1%``."""

    name = "ratio"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The share as a number; a usage error where it is none."""
        text = str(value).strip()
        try:
            return float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            self.fail(f"{value!r} is not a number such as 0.001 or 0.1%.", param, ctx)


def problem_options(command: Command) -> Command:
    """Add the options that describe a problem and its costs."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "--model",
        required=True,
        metavar="NAME|PATH",
        shell_complete=complete.models,
        help="A preset (see `autoshard models`) or a Hugging Face config.json on disk.",
    ),
    click.option("--cluster", metavar="FILE", help="A cluster described in a TOML file."),
    click.option(
        "--chip",
        metavar="NAME",
        shell_complete=complete.chips,
        help="A chip (see `autoshard clusters`).  [default: v5p]",
    ),
    click.option("--chips", type=int, help="Number of chips in all."),
    click.option("--pods", type=int, help="Number of whole pods.  [default: 1 on TPU]"),
    click.option("--topology", metavar="AxBxC", help="Torus of one pod, such as 16x20x28."),
    click.option(
        "--global-batch-tokens",
        type=Count(),
        help="Tokens of one step: 4194304, 16M or 4Mi.  [default: 4Mi]",
    ),
    click.option("--global-batch-seqs", type=int, help="The same, in sequences."),
    click.option("--seq-len", type=int, default=4096, show_default=True, help="Tokens a sequence."),
    click.option(
        "--precision",
        default="bf16",
        show_default=True,
        shell_complete=complete.one_of(*complete.PRECISIONS),
        help="bf16, fp8 or int8, for matmuls.",
    ),
    click.option(
        "--memory-limit",
        metavar="SIZE",
        help="What a plan may use on one chip, such as 72GiB.  [default: all of its HBM]",
    ),
    click.option(
        "--costs",
        metavar="NAME",
        shell_complete=complete.costs,
        help="Cost profile (see `autoshard models --costs`).  [default: textbook]",
    ),
    click.option(
        "--stack",
        metavar="NAME",
        shell_complete=complete.one_of(*complete.STACKS),
        help="Software stack: its calibrated costs, and the plans that it can state: megatron, "
        "torchtitan, maxtext, ...",
    ),
    click.option(
        "--calibration",
        metavar="FILE",
        help="Constants of your own cluster, as `autoshard calibrate` wrote them.",
    ),
    click.option(
        "--schedule",
        metavar="NAME",
        shell_complete=complete.one_of(*complete.SCHEDULES),
        help="Pipeline schedule: 1f1b (interleaved where vpp > 1), gpipe or zero-bubble.  "
        "[default: 1f1b, or the stack's]",
    ),
    click.option(
        "--layer",
        type=click.Choice(LAYERS),
        help="Layer of the textbook profile: all of it, or the book's two-matrix MLP.",
    ),
    click.option(
        "--overlap",
        type=click.Choice(OVERLAPS),
        help="Overlap of the textbook profile: networks run side by side, or in turn.",
    ),
    click.option(
        "--reshard",
        metavar="LIST",
        shell_complete=complete.some_of("3", "2", "1"),
        help="ZeRO stages that plans may use, such as 2,3.  [default: 3, or the stack's]",
    ),
    click.option(
        "--where",
        metavar="TEXT",
        help='A constraint on plans and what is predicted of them: "tp <= 8 and mfu > 0.4".',
    ),
    click.option(
        "--fix",
        metavar="NAME=N,...",
        multiple=True,
        help="Values that are given, such as tp=8,pp=16: solve what is left.",
    ),
    click.option(
        "--gap",
        type=Ratio(),
        default="0.1%",
        show_default=True,
        help="How near to the optimum counts as proven.",
    ),
    click.option(
        "--time-limit", type=float, metavar="SECONDS", help="Stop then, with what is found."
    ),
    click.option(
        "--tokens",
        type=Count(),
        default="15T",
        show_default=True,
        help="Tokens of the whole training run, for the days that it takes.",
    ),
)


def problem_arguments(values: Mapping[str, Any], profile: Profile | None = None) -> dict[str, Any]:
    """Arguments of :func:`autoshard.build_problem` from a command's options, but for the model."""
    stored = None if profile is None else profile.recipe
    recipe = _recipe(values["reshard"], stored)
    return {name: values[name] for name in PROBLEM} | {"recipe": recipe}


def search_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a command's options say of the search, as arguments of :func:`autoshard.solve`."""
    from autoshard.fixing import parse_fix

    return {
        "where": values["where"],
        "fix": parse_fix(values["fix"]),
        "gap": values["gap"],
        "time_limit_s": values["time_limit"],
    }


def cost_profile(values: Mapping[str, Any]) -> Profile:
    """The cost profile that a command's options name, under the schedule that they name.

    Raises:
        SpecError: ``--layer`` or ``--overlap`` with a profile that has neither, or a schedule that
            it does not run.
    """
    from autoshard.costmodels.schedules import scheduled

    profile, schedule = _named_profile(values), values["schedule"]
    return profile if schedule is None else scheduled(profile, schedule)


def _named_profile(values: Mapping[str, Any]) -> Profile:
    from autoshard.costmodels.textbook import textbook
    from autoshard.solving import build_problem, load_profile

    costs, stack, calibration = values["costs"], values["stack"], values["calibration"]
    layer, overlap = values["layer"], values["overlap"]
    if costs in (None, "textbook") and stack is None and calibration is None:
        return textbook(layer=layer or LAYERS[0], overlap=overlap or OVERLAPS[0])
    for name, value in (("--layer", layer), ("--overlap", overlap)):
        if value is not None:
            said = "calibrated" if costs is None else costs
            raise SpecError(f"{name} belongs to the textbook profile; leave it out with {said!r}.")
    kind = "gpu"
    if costs in (None, "calibrated") and stack is None:
        kind = build_problem(values["model"], **problem_arguments(values)).cluster.chip.kind
    return load_profile(costs, stack, calibration, kind)


def _recipe(reshard: str | None, stored: Recipe | None) -> Recipe | None:
    from autoshard.costmodels.recipe import Recipe

    if reshard is None:
        return stored

    words = [word.strip() for word in reshard.split(",")]
    if not all(word in ("1", "2", "3") for word in words):
        raise SpecError(
            f"--reshard lists ZeRO stages out of 1, 2, 3, such as 2,3; got {reshard!r}."
        )
    stages = tuple(sorted({int(word) for word in words}, reverse=True))
    return replace(stored or Recipe(), reshard=stages)
