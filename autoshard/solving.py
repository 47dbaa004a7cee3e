"""The one verb: from a model and a cluster to a proven Pareto front."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autoshard.answering import answer
from autoshard.asking import DEFAULT_OBJECTIVES, read_constraints, search_options
from autoshard.costmodels.checks import shown
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import Infeasible, SpecError
from autoshard.costmodels.model import Model
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import CostModel, Profile
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.schedules import scheduled
from autoshard.costmodels.workload import DEFAULT_BATCH_TOKENS, DEFAULT_SEQ_LEN, Workload
from autoshard.front import ParetoFront
from autoshard.infeasible import why_infeasible
from autoshard.search.front import solve_front
from autoshard.search.stage_model import Constrain
from autoshard.sizes import parse_bytes

if TYPE_CHECKING:
    import polars as pl


def build_problem(
    model: Model | str | os.PathLike[str],
    *,
    cluster: Cluster | str | os.PathLike[str] | None = None,
    chip: str | None = None,
    chips: int | None = None,
    pods: int | None = None,
    topology: str | Sequence[int] | None = None,
    global_batch_tokens: int | None = None,
    global_batch_seqs: int | None = None,
    seq_len: int = DEFAULT_SEQ_LEN,
    precision: str = "bf16",
    memory_limit: str | float | None = None,
    recipe: Recipe | None = None,
) -> Problem:
    """The problem behind :func:`solve`, from names, files or specs; same arguments, same errors."""
    from autoshard.catalog import load_chip, load_model
    from autoshard.cluster_file import load_cluster, topology_axes

    if isinstance(model, (str, os.PathLike)):
        model = load_model(os.fspath(model))
    if not isinstance(model, Model):
        raise SpecError(
            "model must be a preset's name, the path of a config.json or a Model, got "
            f"{shown(model)}."
        )
    if recipe is not None and not isinstance(recipe, Recipe):
        raise SpecError(f"recipe must be a Recipe, as Recipe() is, got {shown(recipe)}.")
    if cluster is None:
        shape = None if topology is None else topology_axes(topology)
        preset = load_chip("v5p" if chip is None else chip)
        cluster = Cluster.build(preset, chips=chips, pods=pods, topology=shape)
    else:
        sizes = {"chip": chip, "chips": chips, "pods": pods, "topology": topology}
        given = [name for name, value in sizes.items() if value is not None]
        if given:
            raise SpecError(
                f"a cluster is given, and {given[0]} as well: say the size in one place only."
            )
        if not isinstance(cluster, Cluster):
            cluster = load_cluster(cluster)
    if global_batch_tokens is not None and global_batch_seqs is not None:
        raise SpecError("give the global batch in tokens or in sequences, not both.")
    if global_batch_seqs is not None:
        workload = Workload(
            global_batch_seqs=global_batch_seqs, seq_len=seq_len, precision=precision
        )
    else:
        tokens = DEFAULT_BATCH_TOKENS if global_batch_tokens is None else global_batch_tokens
        workload = Workload.from_tokens(tokens, seq_len, precision)
    return Problem(
        model=model,
        cluster=cluster,
        workload=workload,
        recipe=recipe or Recipe(),
        memory_limit_bytes=0 if memory_limit is None else parse_bytes(memory_limit),
    )


def solve(
    model: Model | str | os.PathLike[str],
    *,
    cluster: Cluster | str | os.PathLike[str] | None = None,
    chip: str | None = None,
    chips: int | None = None,
    pods: int | None = None,
    topology: str | Sequence[int] | None = None,
    global_batch_tokens: int | None = None,
    global_batch_seqs: int | None = None,
    seq_len: int = DEFAULT_SEQ_LEN,
    precision: str = "bf16",
    memory_limit: str | float | None = None,
    recipe: Recipe | None = None,
    costs: str | Profile | None = None,
    stack: str | None = None,
    calibration: str | os.PathLike[str] | None = None,
    schedule: str | None = None,
    where: str | pl.Expr | None = None,
    fix: Mapping[str, int] | None = None,
    objectives: str | Sequence[str] = DEFAULT_OBJECTIVES,
    points: int = 12,
    gap: float = 1e-3,
    time_limit_s: float | None = None,
    constrain_master: Constrain | None = None,
    constrain_stages: Constrain | None = None,
    progress: Callable[[str], None] | None = None,
) -> ParetoFront:
    """The proven Pareto front of step time against memory per chip.

    Args:
        model: a preset's name, the path of a Hugging Face ``config.json``, or a :class:`Model`.
        cluster: a :class:`Cluster` or the path of a TOML file; or leave it out and say
            the chip and a size.
        chip: the name of a chip (default ``v5p``).
        chips: number of chips.
        pods: number of whole pods.
        topology: torus of one pod, ``"16x20x28"`` or a sequence of lengths.
        global_batch_tokens: tokens of one step (default 2^22).
        global_batch_seqs: the same in sequences; give one of the two.
        seq_len: tokens of one sequence.
        precision: ``bf16``, ``fp8`` or ``int8``; the chip must have that peak.
        memory_limit: what a plan may use on one chip, ``"72GiB"`` or bytes; part of a byte
            counts as a whole one (default: all HBM).
        recipe: bytes per parameter, gradient and optimizer state; allowed ``reshard`` (default:
            the profile's own, or the book's).
        costs: the name of a cost profile, or a :class:`Profile` (default ``textbook``).
        stack: the software stack, such as ``megatron``: its calibrated profile answers, for the
            plans that its framework can state.
        calibration: a file that ``autoshard calibrate`` wrote, for that profile.
        schedule: the pipeline schedule, ``1f1b`` (interleaved where ``vpp > 1``), ``gpipe`` or
            ``zero-bubble`` (default: ``1f1b``, or what the stack runs).
        where: a constraint on plans, text (``"tp <= 8 and mfu > 0.4"``) or a polars expression.
        fix: values of a plan that are given, such as ``{"tp": 8}``.
        objectives: what the front trades: ``time`` and any of ``memory`` and ``chips``.
        points: how many points the front shows at most; 0 for every point there is.
        gap: relative gap within which a plan counts as optimal.
        time_limit_s: stop then, with the best front so far.
        constrain_master: called with the CP-SAT master model and its named variables.
        constrain_stages: called with each CP-SAT stage model and its named variables.
        progress: called with a line of text at each step of the search: what is left to search,
            the incumbent and its gap, each point as it is proven.

    Raises:
        SpecError: an input is wrong; the message names it.
        Infeasible: no plan satisfies the problem; the message says what would.
        CostModelError: a cost model refuses the problem or breaks its contract.
    """
    problem, profile = resolve(
        model,
        cluster=cluster,
        chip=chip,
        chips=chips,
        pods=pods,
        topology=topology,
        global_batch_tokens=global_batch_tokens,
        global_batch_seqs=global_batch_seqs,
        seq_len=seq_len,
        precision=precision,
        memory_limit=memory_limit,
        recipe=recipe,
        costs=costs,
        stack=stack,
        calibration=calibration,
        schedule=schedule,
    )
    asked = read_constraints(where, fix, problem, profile)
    options = search_options(
        asked,
        objectives=objectives,
        points=points,
        gap=gap,
        time_limit_s=time_limit_s,
        constrain_master=constrain_master,
        constrain_stages=constrain_stages,
        progress=progress,
    )
    started = time.monotonic()
    try:
        result = solve_front(problem, profile, options)
    except Infeasible:
        raise Infeasible(why_infeasible(problem, profile, options, asked)) from None
    if not result.points and time_limit_s is None:
        raise KeyboardInterrupt
    if not result.points:
        raise Infeasible(
            f"the time limit of {time_limit_s} s ended the search before a first plan was found; "
            "give it more time."
        )
    if options.time_limit_s is not None:
        left = options.time_limit_s - (time.monotonic() - started)
        options = replace(options, time_limit_s=left)
    return answer(problem, profile, options, result, asked)


def resolve(
    model: Model | str | os.PathLike[str],
    *,
    costs: str | Profile | None = None,
    stack: str | None = None,
    calibration: str | os.PathLike[str] | None = None,
    schedule: str | None = None,
    **asked: Any,
) -> tuple[Problem, Profile]:
    """The problem and the costs behind :func:`solve`, state stored as the costs say."""
    problem = build_problem(model, **asked)
    profile = load_profile(costs, stack, calibration, problem.cluster.chip.kind)
    if schedule is not None:
        profile = scheduled(profile, schedule)
    if asked.get("recipe") is None and profile.recipe is not None:
        problem = replace(problem, recipe=profile.recipe)
    return problem, profile


def load_profile(
    costs: str | Profile | None = None,
    stack: str | None = None,
    calibration: str | os.PathLike[str] | None = None,
    chip_kind: str = "gpu",
) -> Profile:
    """A profile by name, or the one given; ``stack`` names that of the calibrated profile.

    With a stack, the profile is for the plans that its framework can state.

    ``calibration`` is the file of constants that it reads; ``chip_kind`` chooses the stack where
    nobody does. Nothing named is the textbook's.

    Raises:
        SpecError: the three contradict each other, or one of them is wrong.
    """
    from autoshard.costmodels.registry import profile_by_name
    from autoshard.costmodels.stack import default_stack, stack_by_name

    for name, given in (("stack", stack), ("calibration", calibration)):
        if given is None:
            continue
        if not isinstance(given, str if name == "stack" else (str, os.PathLike)) or not given:
            wants = "the name of a stack" if name == "stack" else "the path of a file"
            raise SpecError(f"{name} must be {wants}, got {shown(given)}.")
        named = costs is None or costs == "calibrated"
        own = name == "calibration" and isinstance(costs, str) and costs.startswith("calibrated/")
        if not named and not own:
            raise SpecError(
                f"{name} = {shown(given)} belongs to the calibrated costs, not to {shown(costs)}; "
                "leave out one."
            )
    if stack is not None:
        found = stack_by_name(stack)
        return load_profile(f"calibrated/{found.name}", None, calibration).under(found.legality)
    if calibration is not None:
        from autoshard.costmodels.calibrated import calibrated
        from autoshard.costmodels.calibration import load_calibration

        of = default_stack(chip_kind).name
        if isinstance(costs, str) and costs != "calibrated":
            of = costs.removeprefix("calibrated/")
        return calibrated(of, load_calibration(calibration))
    if costs is None or isinstance(costs, str):
        return profile_by_name("textbook" if costs is None else costs, chip_kind)
    if not isinstance(costs, Profile):
        hint = "; textbook().replace(model) makes one" if isinstance(costs, CostModel) else ""
        raise SpecError(
            f"costs must be the name of a cost profile or a Profile, got {shown(costs)}{hint}."
        )
    return costs
