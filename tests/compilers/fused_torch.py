"""Fused kernels as single operators: an RMS norm, and a cross entropy over a split vocabulary.

An eager PyTorch on a GPU has the norm as one kernel (``aten._fused_rms_norm``), whose CPU form is
many; a compiled one has the loss as a few that keep the 16-bit logits and one number a token. As
operators of their own they allocate on any device what these do: their outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional

EPSILON = 1e-5


@torch.library.custom_op("referee::rms_norm", mutates_args=())
def _rms_norm(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = x.float()
    rate = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
    return (wide * rate * weight).to(x.dtype), rate


@_rms_norm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


@torch.library.custom_op("referee::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rate: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    normed, scaled = x.float() * rate, grad.float() * weight
    mean = (scaled * normed).mean(-1, keepdim=True)
    of_x = (rate * (scaled - normed * mean)).to(x.dtype)
    of_weight = (grad.float() * normed).flatten(0, -2).sum(0).to(weight.dtype)
    return of_x, of_weight


@_rms_norm_backward.register_fake
def _(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rate: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, grad: torch.Tensor, _rate: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return _rms_norm_backward(grad, *ctx.saved_tensors)


_rms_norm.register_autograd(_backward, setup_context=_keep)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x`` over the root of its mean square, times ``weight``; keeps ``x`` and a number a row."""
    return _rms_norm(x, weight)[0]


@torch.library.custom_op("referee::row_max", mutates_args=())
def _row_max(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().amax(-1)


@torch.library.custom_op("referee::row_sum", mutates_args=())
def _row_sum(logits: torch.Tensor, peak: torch.Tensor) -> torch.Tensor:
    return (logits.float() - peak[..., None]).exp().sum(-1)


@torch.library.custom_op("referee::row_pick", mutates_args=())
def _row_pick(logits: torch.Tensor, targets: torch.Tensor, start: int) -> torch.Tensor:
    mine = (targets >= start) & (targets < start + logits.shape[-1])
    found = logits.float().gather(-1, torch.where(mine, targets - start, 0)[..., None])[..., 0]
    return torch.where(mine, found, 0.0)


@torch.library.custom_op("referee::softmax_minus_one", mutates_args=())
def _softmax_minus_one(
    logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, start: int, scale: torch.Tensor
) -> torch.Tensor:
    chances = (logits.float() - rows[..., None]).exp()
    mine = (targets >= start) & (targets < start + logits.shape[-1])
    chances.scatter_add_(
        -1, torch.where(mine, targets - start, 0)[..., None], -mine.float()[..., None]
    )
    return (chances * scale).to(logits.dtype)


def _rows(logits: torch.Tensor, *_: Any) -> torch.Tensor:
    return logits.new_empty(logits.shape[:-1], dtype=torch.float32)


for _operator in (_row_max, _row_sum, _row_pick):
    _operator.register_fake(_rows)
_softmax_minus_one.register_fake(lambda logits, *_: torch.empty_like(logits))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, group: dist.ProcessGroup | None
    ) -> torch.Tensor:
        def over(rows: torch.Tensor, how: str) -> torch.Tensor:
            # As loss_parallel does: three reductions of a number a token.
            if group is None:
                return rows
            return functional.wait_tensor(functional.all_reduce(rows, how, group))

        start = 0 if group is None else group.rank() * logits.shape[-1]
        peak = over(_row_max(logits), "max")
        rows = over(_row_sum(logits, peak), "sum").log_().add_(peak)
        ctx.start = start
        ctx.save_for_backward(logits, rows, targets)
        return (rows - over(_row_pick(logits, targets, start), "sum")).mean()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, rows, targets = ctx.saved_tensors
        scale = grad / targets.numel()
        return _softmax_minus_one(logits, rows, targets, ctx.start, scale), None, None


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """The mean loss of ``[batch, sequence, vocabulary]`` logits, split over ``group``."""
    loss: torch.Tensor = _CrossEntropy.apply(logits, targets, group)
    return loss
