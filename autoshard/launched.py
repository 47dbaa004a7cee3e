"""A launch config that somebody runs, as the question and the plan that it states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autoshard.completing import data_ranks
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.problem import Problem
from autoshard.launch.read_plan import ReadPlan
from autoshard.stating import COUNTS, LAYERS, REMAT, REMAT_COUNT, Values, read_values

#: Arguments that say how many chips there are.
_SIZES = ("cluster", "chips", "pods", "topology")
_BATCH = ("global_batch_tokens", "global_batch_seqs")


#: Stacks whose launch configs are read.
FORMATS = ("megatron", "torchtitan", "maxtext", "maxtext-gpu")


def read_launch(
    stack: str | None, arguments: Sequence[str], config: str | None, n_layers: int
) -> ReadPlan:
    """What a stack's arguments say, or its config file, or a file with arguments after it.

    ``n_layers`` are those of the model, where they do not say them.

    Raises:
        SpecError: the stack has no such format, or its reader refuses what it says.
    """
    from autoshard.launch.reading import read_maxtext, read_megatron, read_torchtitan

    if stack not in FORMATS:
        said = "none is given" if stack is None else f"it is {stack}"
        raise SpecError(
            f"a launch config is read in the words of --stack, one of {', '.join(FORMATS)}, and "
            f"{said}; or say the plan as --plan tp=8,pp=16."
        )
    if stack == "megatron":
        if config is not None:
            raise SpecError(
                f"--config {config}: Megatron-LM takes arguments; give them after --, as in "
                "-- --tensor-model-parallel-size 8."
            )
        return read_megatron(arguments, n_layers)
    if stack == "torchtitan":
        file = [] if config is None else ["--job.config_file", config]
        return read_torchtitan([*file, *arguments])
    return read_maxtext([*([] if config is None else [config]), *arguments])


def asked_with(read: ReadPlan, question: Mapping[str, Any]) -> dict[str, Any]:
    """The question, with what a launch config says of chips and workload where it says nothing.

    :func:`check_agrees` holds the rest against it.
    """
    asked = dict(question)
    if read.chips is not None and all(asked.get(name) is None for name in _SIZES):
        asked["chips"] = read.chips
    if read.global_batch_seqs is not None and all(asked.get(name) is None for name in _BATCH):
        asked["global_batch_seqs"] = read.global_batch_seqs
    if read.seq_len is not None and asked.get("seq_len") is None:
        asked["seq_len"] = read.seq_len
    return asked


def check_agrees(read: ReadPlan, problem: Problem) -> None:
    """Refuse a launch config for another batch or sequence than the question's.

    Raises:
        SpecError: names both values.
    """
    for name, words in (
        ("global_batch_seqs", "sequences a step"),
        ("seq_len", "tokens a sequence"),
    ):
        said, asked = getattr(read, name), getattr(problem.workload, name)
        if said not in (None, asked):
            raise SpecError(
                f"the launch config says {said:,} {words}, and the options {asked:,}; leave out "
                "the options."
            )


def filled(read: ReadPlan, question: Mapping[str, Any], problem: Problem) -> Problem:
    """The problem with the batch that fills the data ranks, where only microbatches are said."""
    each, many = read.micro_batch_size, read.microbatches
    told = read.global_batch_seqs is not None or any(question.get(n) is not None for n in _BATCH)
    if told or each is None or many is None:
        return problem
    dp, batch_split, _ = data_ranks(problem, values_of(read))
    workload = replace(problem.workload, global_batch_seqs=dp * batch_split * each * many)
    return replace(problem, workload=workload)


def values_of(read: ReadPlan) -> Values:
    """The values of the plan that a launch config states."""
    said = {name: getattr(read, name, None) for name in (*COUNTS, REMAT, REMAT_COUNT, LAYERS)}
    return read_values({**said, "chips_used": read.chips})
