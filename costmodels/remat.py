"""The remat ladder: what one layer keeps for its backward pass, rung by rung.

Source: transformers.md of the scaling book, "Gradient checkpointing". Saving everything keeps 20
tensors of ``d_model`` per token and layer; saving the seven big matmul outputs leaves the attention
dot products to recompute (4 B T^2 N H FLOPs); keeping the layer input alone ("block remat") turns
6 P T FLOPs into 8 P T. applied-training.md counts "n checkpoints per layer" without pricing what
they recompute; the two rungs in between follow from which matmuls the kept tensors make
unnecessary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from autoshard.costmodels.plan import Plan

#: The operations of one layer that a rung may run again in the backward pass, in their order.
OPERATIONS = (
    "attention_norm",
    "query",
    "key",
    "value",
    "rotary",
    "attention",
    "output",
    "attention_residual",
    "mlp_norm",
    "mlp_in",
    "activation",
    "mlp_out",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One rung: what is kept of a layer, and what the backward pass redoes.

    ``saved_tensors`` counts tensors of size ``d_model`` per token, the book's measure; ``kept``
    names the tensors themselves, where a cost model knows their sizes. ``recompute`` names
    operations. ``repeat_gathers`` and ``repeat_scatters`` are the shares of the forward pass's TP
    collectives that the backward pass runs again beside its own: gathers of what the matmuls read,
    reductions of what they make.
    """

    name: str
    saved_tensors: int = 0
    kept: tuple[str, ...] = ()
    recompute: tuple[str, ...] = ()
    repeat_gathers: float = 0.0
    repeat_scatters: float = 0.0


TEXTBOOK_LADDER = (
    Rung(name="save_all", saved_tensors=20),
    Rung(name="save_matmuls", saved_tensors=7, recompute=("attention",)),
    # The input of both blocks, the queries and the attention output.
    Rung(
        name="checkpoints_4",
        saved_tensors=4,
        recompute=("key", "value", "mlp_in"),
    ),
    # The input of both blocks: neither block's last matmul is needed again.
    Rung(
        name="checkpoints_2",
        saved_tensors=2,
        recompute=("query", "key", "value", "attention", "mlp_in"),
    ),
    # The book's backward pass gathers what the matmuls read on every rung.
    Rung(name="checkpoints_1", saved_tensors=1, recompute=OPERATIONS, repeat_scatters=1.0),
)

#: Operations by which settings of two frameworks are told apart: matmuls and attention. The last
#: matmul is not among them. What it makes is no input of any backward pass, so that PyTorch's
#: checkpoint and XLA leave it out where Megatron and the book run it: no other setting.
_TOLD_APART_BY = frozenset({"query", "key", "value", "attention", "output", "mlp_in"})


def counterpart(rung: Rung, ladder: Iterable[Rung]) -> Rung | None:
    """The rung of another ladder that is the same setting; None where none is.

    Where both name the tensors that they keep, these are the same. The book only counts them: its
    rungs are the settings that run the same matmuls and attention again, and of several the one
    that keeps most, the first.
    """
    for other in ladder:
        if rung.kept and other.kept:
            same = set(rung.kept) == set(other.kept)
        else:
            same = not _TOLD_APART_BY & (set(rung.recompute) ^ set(other.recompute))
        if same:
            return other
    return None


def layers_by_rung(plan: Plan, ladder: tuple[Rung, ...]) -> NDArray[np.int64]:
    """Layers of each stage of a plan on each rung of a ladder, ``[pp, r]``."""
    counts = [[stage.get(rung.name, 0) for rung in ladder] for stage in plan.remat]
    return np.array(counts, dtype=np.int64)
