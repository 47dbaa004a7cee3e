"""How many bytes a stack's collectives work on, each by who causes it, when, and along which axis.

The calibrated costs turn these volumes into seconds, and compilers judge them
(``autoshard validate --compilers``). Sources: Megatron's TP collectives (arXiv 2205.05198), ZeRO
(arXiv 1910.02054), PyTorch FSDP (arXiv 2304.11277), Ring Attention (arXiv 2310.01889).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from autoshard.costmodels.costs import Column, Phase, Place
from autoshard.costmodels.remat import Rung
from autoshard.costmodels.setting import Setting
from autoshard.costmodels.stack import Stack

#: The column of a setting that counts the ranks of each of its axes.
RANKS = {
    "tensor": "tp",
    "fsdp": "shards",
    "sequence": "seq_split",
    "context": "cp",
    "replicas": "dp",
}

#: Times that each chip sends its share of the array, as a ring does it (sharding.md).
ROUNDS = {"all-gather": 1.0, "reduce-scatter": 1.0, "all-reduce": 2.0, "permute": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One collective of each candidate: ``kind``, ``phase`` and ``place`` are those of its flow.

    ``collective`` is ``all-gather``, ``reduce-scatter``, ``all-reduce``, or ``permute``: blocks
    passed all the way round a ring. ``axis`` is one of
    :data:`autoshard.costmodels.setting.AXES`. ``array_bytes`` ``[n]`` is the array of one group:
    gathered, before it is scattered, reduced, or all blocks of the ring together. It is moved
    ``times`` for each place and pass, or each place and step in a phase that is once a step:
    ``[n]`` or a number, ``[n, r]`` in the phase ``recompute``.
    """

    kind: str
    collective: str
    axis: str
    phase: Phase
    place: Place
    array_bytes: Column
    times: Column | float

    def moved_bytes(self, s: Setting) -> Column:
        """Bytes that each chip sends: ``[n]``, or ``[n, r]`` in the phase ``recompute``."""
        ranks = getattr(s, RANKS[self.axis])
        share = ROUNDS[self.collective] * (ranks - 1.0) / ranks * self.array_bytes
        moved: Column = self.times * (share[:, None] if np.ndim(self.times) == 2 else share)
        return moved


def volumes(s: Setting, stack: Stack, ladder: tuple[Rung, ...]) -> Iterator[Volume]:
    """Every collective of a stage but the sends to the next (:func:`boundary_bytes`)."""
    yield from state_volumes(s, stack)
    yield from activation_volumes(s, ladder)


def state_volumes(s: Setting, stack: Stack) -> Iterator[Volume]:
    """Weights that are gathered and gradients that are reduced, place by place."""
    table = s.d_model * s.vocab
    params: dict[Place, Column] = {"layer": s.layer_params, "embedding": table, "head": table}
    sharded = (s.shards > 1).astype(np.float64)
    hooked, piped = (s.pp == 1) * float(stack.fsdp2), (s.pp > 1) * float(stack.fsdp2)
    looped = (s.pp == 1) * float(stack.reduces_each)
    each = sharded * (s.reshard == 3)
    kept = sharded - each
    # Under a pipeline, gradients are reduced with the last microbatch, even where they are sharded.
    once = sharded * np.maximum(s.reshard == 1, (s.pp > 1) * (s.reshard == 2))
    once = np.maximum(once, piped * each)
    for place, count in params.items():
        weights, gradients = s.element_bytes * count, stack.gradient_bytes * count

        def fsdp(collective: str, phase: Phase, array: Column, times: Column, at: Place) -> Volume:
            return Volume(
                kind="fsdp",
                collective=collective,
                axis="fsdp",
                phase=phase,
                place=at,
                array_bytes=array,
                times=times,
            )

        lookup = place == "embedding" and not stack.regathers_tables
        first: Phase = "once_forward" if lookup else "forward"
        yield fsdp("all-gather", first, weights, each + kept * hooked, place)
        if place == "layer" or stack.regathers_tables:
            # In a pipeline with hooks, a pass finds what the one before has left: a forward pass
            # after a backward one gathers nothing, nor does the other way round.
            yield fsdp("all-gather", "backward", weights, each * (1.0 - piped), place)
        yield fsdp("reduce-scatter", "backward", gradients, sharded - once, place)
        late = kept * (1.0 - hooked) + each * piped
        yield fsdp("all-gather", "once_backward", weights, late, place)
        yield fsdp("reduce-scatter", "once_backward", gradients, once, place)
        phases: tuple[tuple[Phase, Column], ...] = (
            ("backward", looped),
            ("once_backward", 1.0 - looped),
        )
        for phase, times in phases:
            yield Volume(
                kind="dp",
                collective="all-reduce",
                axis="replicas",
                phase=phase,
                place=place,
                array_bytes=gradients / s.shards,
                times=times,
            )


def activation_volumes(s: Setting, ladder: tuple[Rung, ...]) -> Iterator[Volume]:
    """Activations that TP gathers and scatters, keys and values that ranks share.

    Forward, each block of a layer gathers its input and scatters its output; backward, it gathers
    the gradient of the output and scatters that of the input. What remat repeats is the rung's to
    say.
    """
    residual = s.element_bytes * s.tokens * s.d_model
    gathers = s.blocks[:, None] * np.array([rung.repeat_gathers for rung in ladder])
    scatters = s.blocks[:, None] * np.array([rung.repeat_scatters for rung in ladder])
    gather, scatter = "all-gather", "reduce-scatter"
    tensor: tuple[tuple[str, Phase, Place, Column | float], ...] = (
        (gather, "forward", "layer", s.blocks),
        (scatter, "forward", "layer", s.blocks),
        (gather, "backward", "layer", s.blocks),
        (scatter, "backward", "layer", s.blocks),
        (scatter, "forward", "embedding", 1.0),
        (gather, "backward", "embedding", 1.0),
        (gather, "forward", "head", 1.0),
        (scatter, "backward", "head", 1.0),
        (gather, "recompute", "layer", gathers),
        (scatter, "recompute", "layer", scatters),
    )
    for collective, phase, place, times in tensor:
        yield Volume(
            kind="tp",
            collective=collective,
            axis="tensor",
            phase=phase,
            place=place,
            array_bytes=residual,
            times=times,
        )

    # Of one rank: its keys and its values. Backward, both go round again, and their gradients with
    # them; attention that is computed again passes them round once more.
    kv = 2.0 * s.element_bytes * s.d_kv * s.tokens
    gathered, rotated = kv * s.seq_split, kv * s.cp
    again = np.array([float("attention" in rung.recompute) for rung in ladder])
    shared: tuple[tuple[str, str, Column, Phase, str, Column | float], ...] = (
        ("seq", "sequence", gathered, "forward", gather, 1.0),
        ("seq", "sequence", gathered, "backward", gather, 1.0),
        ("seq", "sequence", gathered, "backward", scatter, 1.0),
        ("cp", "context", rotated, "forward", "permute", 1.0),
        ("cp", "context", rotated, "recompute", "permute", np.tile(again, (len(s), 1))),
        ("cp", "context", rotated, "backward", "permute", 1.0),
        ("cp", "context", rotated, "backward", "permute", ring_home(s.cp)),
    )
    for kind, axis, array, phase, collective, times in shared:
        yield Volume(
            kind=kind,
            collective=collective,
            axis=axis,
            phase=phase,
            place="layer",
            array_bytes=array,
            times=times,
        )


def ring_home(ranks: Column) -> Column:
    """Hops round a ring and home, over those of passing a block on to every other rank, ``[n]``."""
    return ranks / np.maximum(ranks - 1.0, 1.0)


def boundary_bytes(s: Setting) -> Column:
    """Bytes that one chunk of a stage passes on to the next for a microbatch, ``[n]``."""
    boundary: Column = s.element_bytes * s.tokens * s.d_model / s.tp
    return boundary
