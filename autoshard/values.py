"""Values that somebody asks a plan to have: read, and held against the rules of the space."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.checks import check_count, shown
from autoshard.costmodels.errors import SpecError, UnknownName
from autoshard.costmodels.problem import Problem
from autoshard.search.blocks import EXPANDED_COLUMNS, expansions, mesh_blocks
from autoshard.search.interleaving import full_stage, virtual_stages
from autoshard.search.space import tensor_degrees
from autoshard.where import NAMES, column

EXAMPLE = "tp=16,pp=16"


def parse_values(text: str) -> dict[str, int]:
    """``"tp=16,pp=16"`` as a mapping.

    Raises:
        SpecError: the text says no values, or the same one twice.
    """
    values: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not value.isdecimal():
            raise SpecError(f"values are said as in {EXAMPLE}, got {shown(text)}.")
        if name in values:
            raise SpecError(f"{name} is given twice in {shown(text)}.")
        values[name] = int(value)
    return check_values(values)


def check_values(values: Any) -> dict[str, int]:
    """The same values, known by name and whole.

    Raises:
        SpecError: a name is not known, or a value is no count.
    """
    if not isinstance(values, Mapping) or not values:
        raise SpecError(f"values are text such as {EXAMPLE} or a mapping, got {shown(values)}.")
    for name, value in values.items():
        if name not in NAMES:
            raise UnknownName("value of a plan", str(name), NAMES)
        check_count("values", name, value)
    return dict(values)


def rules_against(problem: Problem, values: Mapping[str, int]) -> Iterator[str]:
    """The rules of the space that no plan with these values keeps, as sentences.

    Where each value alone is legal and no rule is broken by name, one sentence says so.
    """
    broken = [*rules_by_name(problem, values), *chunk_rules(problem, values)]
    if not broken:
        said = " and ".join(f"{name} = {value}" for name, value in values.items())
        broken = [f"no mesh of the space has {said} together"]
    yield from broken


def rules_by_name(problem: Problem, values: Mapping[str, int]) -> list[str]:
    """The rules that single values break, or several by what they come to, as sentences.

    No framework trains with such values; uneven chunks (:func:`chunk_rules`) are not among them.
    """
    return [*_shape_rules(problem, values), *_size_rules(problem, values)]


def _shape_rules(problem: Problem, values: Mapping[str, int]) -> Iterator[str]:
    """Rules of the model, the sequence and the batch."""
    model, workload = problem.model, problem.workload
    tp, cp = values.get("tp", 1), values.get("cp", 1)
    split = values.get("seq_split", 1)
    if tp not in tensor_degrees(model):
        sizes = {"query heads": model.n_heads, "d_ff": model.d_ff, "d_model": model.d_model}
        parts = [f"{size:,} {name}" for name, size in sizes.items() if size % tp]
        if parts:
            yield f"tp divides the query heads, d_ff and d_model; {tp} does not divide " + (
                " nor ".join(parts)
            )
        else:
            yield (
                f"tp divides the KV heads or is a multiple of them; {tp} is neither for "
                f"{model.n_kv_heads}"
            )
    ways = split * cp * tp
    if workload.seq_len % ways:
        yield (
            f"seq_split * cp * tp divides the {workload.seq_len:,} tokens of a sequence; "
            f"{ways:,} does not"
        )
    elif cp > 1 and workload.seq_len % (2 * cp * split):
        yield (
            f"a ring of cp = {cp} deals a sequence in 2 cp pieces; {2 * cp * split:,} do not "
            f"divide its {workload.seq_len:,} tokens"
        )
    named = [n for n in ("dp", "batch_split", "microbatches", "micro_batch_size") if n in values]
    shards = math.prod(values[name] for name in named)
    if workload.global_batch_seqs % shards:
        yield (
            f"{' * '.join(named)} divides the {workload.global_batch_seqs:,} sequences of the "
            f"batch; {shards:,} does not"
        )
    if values.get("ep", 1) > 1:
        yield "ep is for models with experts"
    if "fsdp" in values and values["fsdp"] % (values.get("batch_split", 1) * split):
        yield f"fsdp = batch_split * seq_split, and {values['fsdp']} is no multiple of them"


def _size_rules(problem: Problem, values: Mapping[str, int]) -> Iterator[str]:
    """Rules of the pipeline, the cluster and the recipe."""
    model, cluster = problem.model, problem.cluster
    pp, vpp = values.get("pp", 1), values.get("vpp", 1)
    if pp > model.n_layers:
        yield f"pp is at most the {model.n_layers} layers; {pp:,} is more"
    elif vpp > 1 and pp * vpp > model.n_layers + 2:
        yield (
            f"pp * vpp is at most the {model.n_layers} layers, the embedding and the head; "
            f"{pp * vpp:,} is more"
        )
    if vpp > 1 and "pp" in values and (pp == 1 or values.get("microbatches", pp) % pp):
        yield f"interleaving (vpp > 1) wants pp > 1 and microbatches in whole rounds of pp = {pp}"
    fsdp = values.get("fsdp", values.get("batch_split", 1) * values.get("seq_split", 1))
    used = fsdp * math.prod(values.get(name, 1) for name in ("dp", "tp", "pp", "cp"))
    used = max(used, values.get("chips_used", 1))
    if used > cluster.chips:
        yield f"chips used are at most the {cluster.chips:,} offered; these values take {used:,}"
    if cluster.chip.kind == "tpu":
        pods = values.get("pods", values.get("dp", 1))
        if pods > cluster.pods:
            yield (
                f"dp is the number of pods used, one replica each, and there "
                f"{'is' if cluster.pods == 1 else 'are'} {cluster.pods}; inside a pod, data "
                "parallelism is fsdp"
            )
        elif used // values.get("dp", 1) > cluster.pod_chips:
            yield f"a replica lies inside one pod, of {cluster.pod_chips:,} chips"
    elif values.get("pods", 1) > 1:
        yield "pods is 1 on switched networks: ranks nest by stride, whatever they cross"
    if "reshard" in values and values["reshard"] not in problem.recipe.reshard:
        allowed = ", ".join(map(str, sorted(problem.recipe.reshard)))
        yield f"reshard is one of those that the recipe allows ({allowed})"


def chunk_rules(problem: Problem, values: Mapping[str, int]) -> Iterator[str]:
    """The rule on chunks that ``pp`` and ``vpp`` break together, as a sentence."""
    layers, pp, vpp = problem.model.n_layers, values.get("pp", 1), values.get("vpp", 1)
    if 1 < pp <= layers and pp * vpp <= layers + 2 and vpp not in virtual_stages(layers, pp):
        full = full_stage(layers, pp)
        yield f"vpp divides the layers of a full stage, {full}; {vpp} does not"


def nearest_values(problem: Problem, values: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """For each value, the nearest on both sides with which the others are legal.

    A value that no other can make legal is left out, unless no value is: then each stands alone.
    """
    found = {}
    for name in values:
        others = {other: value for other, value in values.items() if other != name}
        found[name] = _around(_legal(problem, name, others), values[name])
    found = {name: near for name, near in found.items() if near}
    if not found:
        found = {name: _around(_legal(problem, name, {}), values[name]) for name in values}
    return found


def _around(legal: set[int], value: int) -> tuple[int, ...]:
    below = max((n for n in legal if n < value), default=None)
    above = min((n for n in legal if n > value), default=None)
    return tuple(n for n in (below, value if value in legal else None, above) if n is not None)


def _legal(problem: Problem, name: str, others: Mapping[str, int]) -> set[int]:
    """Every value that a column of the space has beside the others."""
    legal: set[int] = set()
    expands = EXPANDED_COLUMNS & {name, *others}
    for table in mesh_blocks(problem):
        table = _with(table, {k: v for k, v in others.items() if k not in EXPANDED_COLUMNS})
        for candidates in (c for c, _ in expansions(problem, table)) if expands else (table,):
            legal.update(np.unique(column(_with(candidates, others), name)).tolist())
    return legal


def _with(table: Candidates, values: Mapping[str, int]) -> Candidates:
    """The candidates that have these values."""
    keep = np.ones(len(table), dtype=np.bool_)
    for name, value in values.items():
        keep &= column(table, name) == value
    return table.take(keep)
