"""Interleaving: into how many chunks stages may fall, and how many layers a stage then has.

A pipeline's price knows stages, not chunks, and one longer chunk on every stage holds all of them
up: 8 layers in 7 chunks are priced up to 15 % too fast. So the chunks of a full stage, one of
``ceil(L / pp)`` layers, are equal. Stages may still differ, by what their memory, the embedding
and the head ask for; ``tests/test_pipeline.py`` measures what the price is then off by.

Every chunk has a layer. Where those of a full stage have but one, none has more, and the first
and the last stage may have one less: the embedding or the head is then all that is in a chunk
(LLaMA-3 405B, arXiv 2407.21783, section 3.3.2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.candidates import IntColumn
from autoshard.search.divisors import divisors


def full_stage(n_layers: int, pp: int) -> int:
    """Layers of the mean stage, rounded up."""
    return -(-n_layers // pp)


def virtual_stages(n_layers: int, pp: int) -> list[int]:
    """Chunks that a stage may have, ascending: of equal layers on a full stage."""
    full = full_stage(n_layers, pp)
    # Two halves of a full stage are never more than the layers there are; single layers may be.
    return [v for v in divisors(full) if v < full or pp * v <= n_layers + 2]


def fewest_of(n_layers: int, pp: IntColumn, vpp: IntColumn) -> tuple[IntColumn, IntColumn]:
    """Layers that a stage has at least: one between others, and the first or the last, ``[n]``."""
    return vpp, vpp - _single(n_layers, pp, vpp)


def fewest_layers(n_layers: int, pp: int, vpp: IntColumn) -> IntColumn:
    """The same of each stage, ``[n, pp]``."""
    inner, ends = fewest_of(n_layers, np.full_like(vpp, pp), vpp)
    fewest = np.repeat(inner[:, None], pp, axis=1)
    fewest[:, 0] = fewest[:, -1] = ends
    return fewest


def most_layers(n_layers: int, pp: int, vpp: IntColumn) -> IntColumn:
    """Layers that a stage has at most, ``[n]``."""
    return np.where(_single(n_layers, pp, vpp), vpp, n_layers - (pp - 1) * vpp)


def _single(n_layers: int, pp: int | IntColumn, vpp: IntColumn) -> NDArray[np.bool_]:
    """Whether the chunks of a full stage have a layer each, ``[n]``."""
    single: NDArray[np.bool_] = (vpp > 1) & (vpp == -(-n_layers // pp))
    return single
