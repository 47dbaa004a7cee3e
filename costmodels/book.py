"""The scaling book's accounts of a training run: FLOPs, days, bytes, chips, and the idle bubble.

Pure functions of plain numbers, so that a count can be nominal (70e9) or a model's own. Its bounds
on communication are in :mod:`autoshard.costmodels.book_bounds`. Chapters are those of Austin et
al., *How to Scale Your Model*.
"""

from __future__ import annotations

import math

from autoshard.costmodels.model import Model
from autoshard.costmodels.recipe import Recipe

DAY_S = 86_400.0

#: FLOPs of one training step for each parameter and token: 2 forward and 4 backward
#: (transformers.md).
TRAINING_FLOPS = 6.0


def training_flops(params: float, tokens: float) -> float:
    """FLOPs of training ``params`` parameters on ``tokens`` tokens: ``6 P T`` (transformers.md).

    The dot products of attention are left out, as in the book; :func:`dot_flops_per_token` has
    them.

    >>> training_flops(70e9, 15e12)
    6.3e+24
    """
    return TRAINING_FLOPS * params * tokens


def dot_flops_per_token(model: Model, seq_len: float, *, causal: bool = True) -> float:
    """FLOPs of the attention dot products for each trained token, all layers (transformers.md).

    ``12 T N H`` a layer over the whole square of scores, and half of it under a causal mask.
    """
    square = 12.0 * seq_len * model.d_attention * model.n_layers
    return square / 2 if causal else square


def dot_flops_share(model: Model, seq_len: float, *, causal: bool = True) -> float:
    """Attention dot products over the matmul FLOPs of the layers (transformers.md).

    ``T / (8 D)`` for a gated MLP of ``4 D`` and attention as wide as ``D``, without the mask.
    """
    matmuls = TRAINING_FLOPS * (model.mlp_params + model.attention_params)
    return dot_flops_per_token(model, seq_len, causal=causal) / matmuls


def compute_s(flops: float, *, chips: float, flops_per_s: float, mfu: float = 1.0) -> float:
    """Seconds that chips take for some FLOPs at a fraction of their peak (roofline.md)."""
    return flops / (chips * flops_per_s * mfu)


def training_days(flops: float, *, chips: float, flops_per_s: float, mfu: float) -> float:
    """Days of a run at an assumed MFU (applied-training.md).

    >>> round(training_days(6.3e24, chips=8960, flops_per_s=4.59e14, mfu=0.4), 1)
    44.3
    """
    return compute_s(flops, chips=chips, flops_per_s=flops_per_s, mfu=mfu) / DAY_S


def mfu(flops: float, *, seconds: float, chips: float, flops_per_s: float) -> float:
    """Useful FLOPs over what the dense peak allows in that time (transformers.md, Q7)."""
    return flops / (seconds * chips * flops_per_s)


def state_bytes(params: float, recipe: Recipe) -> float:
    """Weights, gradients and optimizer state, unsharded: ``2 P + 8 P`` in the book's recipe."""
    return recipe.state_bytes * params


def checkpoint_bytes(
    model: Model,
    tokens: float,
    d_model_tensors: int,
    *,
    d_ff_tensors: int = 0,
    element_bytes: float = 2.0,
) -> float:
    """Activations kept for the backward pass of ``tokens`` tokens, all layers, unsharded.

    ``2 B D n L`` with ``n`` tensors of ``d_model`` a layer (applied-training.md); training.md, Q2,
    keeps outputs of the MLP's big matmuls too, which are ``d_ff`` wide.
    """
    width = d_model_tensors * model.d_model + d_ff_tensors * model.d_ff
    return element_bytes * tokens * width * model.n_layers


def minimum_chips(total_bytes: float, chip_bytes: float) -> int:
    """The fewest chips whose memory holds ``total_bytes``, split evenly (applied-training.md)."""
    return math.ceil(total_bytes / chip_bytes)


def bubble_fraction(stages: int, microbatches: int, *, virtual_stages: int = 1) -> float:
    """Idle fraction of a 1F1B step, ``(p - 1) / (v m + p - 1)``.

    Not in the book, which only draws the bubble; Narayanan et al. 2021, arXiv 2104.04473, section
    2.2.
    """
    return (stages - 1) / (virtual_stages * microbatches + stages - 1)
