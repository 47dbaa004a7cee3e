"""Layers on model chunks: how the layers of a pipeline stage are dealt to its virtual stages."""

from __future__ import annotations

from autoshard.costmodels.plan import Plan


def chunk_layers(plan: Plan) -> list[int]:
    """Layers of each model chunk, in the order of the layers.

    Chunk ``c`` is on stage ``c % pp``, as in Megatron's interleaving and PyTorch's loop. A stage
    whose layers do not divide has one more in its first chunks; the first stage in its last ones,
    as its first chunk has the embedding.
    """
    dealt = [
        [layers // plan.vpp + (virtual < layers % plan.vpp) for virtual in range(plan.vpp)]
        for layers in plan.layers_per_stage
    ]
    if plan.pp > 1:
        dealt[0].reverse()
    return [stage[virtual] for virtual in range(plan.vpp) for stage in dealt]


def even(plan: Plan) -> bool:
    """Whether all chunks have as many layers."""
    return len(set(chunk_layers(plan))) == 1


def stage_layers(chunks: list[int], pp: int) -> tuple[int, ...]:
    """Layers of each stage; the inverse of :func:`chunk_layers`."""
    return tuple(sum(chunks[stage::pp]) for stage in range(pp))
