"""The stages that Megatron-LM arguments ask for: even, of uneven ends, or laid out by letters.

Rules: megatron/training/arguments.py (validate_args), core/transformer/transformer_config.py and
core/transformer/pipeline_parallel_layer_layout.py of Megatron-Core 0.19.2.
"""

from __future__ import annotations

import re
from dataclasses import replace

from autoshard.costmodels.errors import SpecError
from autoshard.launch.read_plan import ReadPlan, Said, part
from autoshard.launch.stages import stage_layers

LAYERS_A_CHUNK = "--num-layers-per-virtual-pipeline-stage"
CHUNKS = "--num-virtual-stages-per-pipeline-rank"
LAYOUT = "--pipeline-model-parallel-layout"
FIRST = "--decoder-first-pipeline-num-layers"
LAST = "--decoder-last-pipeline-num-layers"
EMBEDDING = "--account-for-embedding-in-pipeline-split"
LOSS = "--account-for-loss-in-pipeline-split"

#: Flags that say stages.
STAGE_FLAGS = (LAYERS_A_CHUNK, CHUNKS, LAYOUT, FIRST, LAST, EMBEDDING, LOSS, "--num-layers")

#: The letters of a layout: embedding, layer, MTP layer, loss; bars are between chunks.
_LETTERS = frozenset("EtmL|")


def staged(said: Said, read: ReadPlan, n_layers: int | None) -> ReadPlan:
    """Virtual stages, and layers of each stage; of ``n_layers`` where no argument says how many."""
    layers, pp = said.number("--num-layers", n_layers), read.pp or 1
    ways = [flag for flag in (LAYERS_A_CHUNK, CHUNKS, LAYOUT) if flag in said]
    if len(ways) > 1:
        raise SpecError(f"Megatron takes one of {' and '.join(ways)}.")
    if LAYOUT in said:
        return _laid_out(said.word(LAYOUT), layers, pp, read)
    ends = [1 if flag in said else 0 for flag in (EMBEDDING, LOSS)]
    first, last = said.number(FIRST), said.number(LAST)
    uneven = first is not None or last is not None
    if uneven and any(ends):
        raise SpecError(f"Megatron takes {FIRST} and {LAST}, or {EMBEDDING} and {LOSS}.")
    vpp = said.number(CHUNKS) or 1
    each = said.number(LAYERS_A_CHUNK)
    if each is not None:
        if uneven:
            raise SpecError(f"{LAYERS_A_CHUNK} wants even stages; say {CHUNKS}.")
        if layers is None:
            raise SpecError(f"{LAYERS_A_CHUNK} is a part of --num-layers; say those too.")
        deep = layers + sum(ends)
        stage = part(deep, pp, f"Megatron refuses this: {deep} layers do not divide by PP {pp}.")
        vpp = part(
            stage,
            each,
            f"Megatron refuses this: {stage} layers of a stage do not divide by {LAYERS_A_CHUNK} "
            f"{each}.",
        )
    if vpp > 1 and pp == 1:
        raise SpecError(f"{ways[0]} wants --pipeline-model-parallel-size above 1.")
    if layers is None:
        return replace(read, vpp=vpp)
    stages = _uneven(layers, pp, vpp, first, last) if uneven else _even(layers, pp, vpp, ends)
    return replace(read, vpp=vpp, layers_per_stage=stages)


def _even(layers: int, pp: int, vpp: int, ends: list[int]) -> tuple[int, ...]:
    """As many layers a chunk, of which the embedding and the loss may count as one each."""
    deep = layers + sum(ends)
    chunk = part(
        deep,
        pp * vpp,
        f"Megatron refuses this: {deep} layers do not divide by PP {pp}"
        + (f" and {vpp} virtual stages." if vpp > 1 else "."),
    )
    stages = [chunk * vpp] * pp
    stages[0] -= ends[0]
    stages[-1] -= ends[1]
    return tuple(stages)


def _uneven(layers: int, pp: int, vpp: int, first: int | None, last: int | None) -> tuple[int, ...]:
    given = [count for count in (first, last) if count is not None]
    left, middle = layers - sum(given), pp - len(given)
    if any(count % vpp for count in given):
        raise SpecError(f"Megatron refuses this: {given} layers do not divide by {vpp} chunks.")
    message = (
        f"Megatron refuses this: {left} layers do not divide by the {middle} stages between the "
        "first and the last" + (f" and {vpp} chunks." if vpp > 1 else ".")
    )
    if middle <= 0 or left <= 0:
        raise SpecError(message)
    each = part(left, middle * vpp, message) * vpp
    return (
        *([] if first is None else [first]),
        *[each] * middle,
        *([] if last is None else [last]),
    )


def _laid_out(layout: str, layers: int | None, pp: int, read: ReadPlan) -> ReadPlan:
    """The stages of ``--pipeline-model-parallel-layout``.

    Commas are cosmetic, ``( )*n`` is expanded before ``x*n``, and chunk ``c`` is on stage
    ``c % pp`` (pipeline_parallel_layer_layout.py).
    """
    text = layout.replace(",", "")
    for pattern in (r"\(([^)]+)\)\*(\d+)", r"(.)\*(\d+)"):
        text = re.sub(pattern, lambda found: found[1] * min(int(found[2]), 2**12), text)
    odd = set(text) - _LETTERS
    if odd:
        raise SpecError(f"{LAYOUT} {layout!r}: {sorted(odd)[0]!r} is none of E, t, m, L and |.")
    flat = text.replace("|", "")
    if "m" in flat:
        raise SpecError(f"{LAYOUT} {layout!r}: no cost model covers MTP layers (m).")
    if flat[:1] != "E" or flat[-1:] != "L" or flat.count("E") + flat.count("L") != 2:
        raise SpecError(f"{LAYOUT} {layout!r} must begin with one E and end with one L.")
    chunks = [piece.count("t") for piece in text.split("|")]
    if layers is not None and sum(chunks) != layers:
        raise SpecError(f"{LAYOUT} {layout!r} has {sum(chunks)} layers, --num-layers {layers}.")
    vpp = part(
        len(chunks), pp, f"{LAYOUT} {layout!r}: PP {pp} does not divide its {len(chunks)} chunks."
    )
    return replace(read, vpp=vpp, layers_per_stage=stage_layers(chunks, pp))
