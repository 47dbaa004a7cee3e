"""A LLaMA in plain PyTorch, cut as a plan says: FSDP2, tensor parallelism, stages, checkpointing.

Written to be traced, after the way in which torchtitan puts these together (0.3.0,
models/llama3/infra/parallelize.py): each layer, the embedding, and norm and head together are units
of FSDP2, fp32 weights compute in bf16 and reduce in fp32, and tensor parallelism keeps the sequence
split between its matmuls, up to the loss. Layers are eager but for the norms; these and the loss
are single operators that keep what fused kernels keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import fused_torch as fused
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn import functional
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from autoshard.costmodels.model import Model

ROTARY_BASE = 500_000.0


class RmsNorm(nn.Module):
    """Root-mean-square norm of one kernel; its weight may be a tensor of a device mesh."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if isinstance(weight, DTensor):  # each rank has seen its part of the sequence
            weight = weight.to_local(grad_placements=[Partial()])
        return fused.rms_norm(x, weight)


class Attention(nn.Module):
    """Causal attention with grouped queries; the number of heads is what this rank has."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.d_head = model.d_head
        self.query = nn.Linear(model.d_model, model.d_attention, bias=False)
        self.key = nn.Linear(model.d_model, model.d_kv, bias=False)
        self.value = nn.Linear(model.d_model, model.d_kv, bias=False)
        self.out = nn.Linear(model.d_attention, model.d_model, bias=False)

    def forward(self, x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            project(x).unflatten(-1, (-1, self.d_head))
            for project in (self.query, self.key, self.value)
        )
        query, key = rotated(query, rotary), rotated(key, rotary)
        # The operator that CUDA picks, by name: fake tensors need no GPU for it.
        context = torch.ops.aten._scaled_dot_product_flash_attention(
            *(each.transpose(1, 2) for each in (query, key, value)), 0.0, True
        )[0]
        return self.out(context.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.gate = nn.Linear(model.d_model, model.d_ff, bias=False)
        self.up = nn.Linear(model.d_model, model.d_ff, bias=False)
        self.down = nn.Linear(model.d_ff, model.d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside the residual stream."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.attention_norm, self.attention = RmsNorm(model.d_model), Attention(model)
        self.mlp_norm, self.mlp = RmsNorm(model.d_model), Mlp(model)

    def forward(self, x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), rotary)
        return x + self.mlp(self.mlp_norm(x))


class Stage(nn.Module):
    """The layers of a pipeline stage; the embedding before the first, the head after the last."""

    def __init__(self, model: Model, layers: int, seq_len: int, *, first: bool, last: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(model.vocab, model.d_model) if first else None
        self.layers = nn.ModuleList(Layer(model) for _ in range(layers))
        self.norm = RmsNorm(model.d_model) if last else None
        self.head = nn.Linear(model.d_model, model.vocab, bias=False) if last else None
        self.rotary: torch.Tensor
        self.register_buffer("rotary", rotary_table(seq_len, model.d_head), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of tokens ``[batch, sequence]`` or activations; logits or activations."""
        if self.embedding is not None:
            x = self.embedding(x)
        for layer in self.layers:
            x = layer(x, self.rotary)
        if self.norm is not None and self.head is not None:
            x = self.head(self.norm(x))
        return x


def rotary_table(seq_len: int, d_head: int) -> torch.Tensor:
    """``[sequence, 1, d_head / 2]`` complex rotations, which all heads share."""
    rates = ROTARY_BASE ** (-torch.arange(0, d_head, 2) / d_head)
    angles = torch.outer(torch.arange(seq_len), rates)
    return torch.polar(torch.ones_like(angles), angles)[:, None]


def rotated(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """``[batch, sequence, heads, d_head]`` turned by its position, in fp32 as LLaMA's own code."""
    turned = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * rotary
    return torch.view_as_real(turned).flatten(-2).type_as(x)


def split_tensors(stage: Stage, tp: DeviceMesh) -> None:
    """Tensor parallelism: heads, the inner width and the vocabulary over ``tp``.

    Between the matmuls each rank has its part of the sequence; norms are whole on every rank.
    """
    gather = PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate())
    gather_x = PrepareModuleInput(
        input_layouts=(Shard(1), None), desired_input_layouts=(Replicate(), None)
    )
    if stage.embedding is not None:
        parallelize_module(
            stage.embedding,
            tp,
            RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        )
    for layer in stage.layers:
        parallelize_module(
            layer,
            tp,
            {
                "attention": gather_x,
                **{f"attention.{name}": ColwiseParallel() for name in ("query", "key", "value")},
                "attention.out": RowwiseParallel(output_layouts=Shard(1)),
                "mlp": gather,
                **{f"mlp.{name}": ColwiseParallel() for name in ("gate", "up")},
                "mlp.down": RowwiseParallel(output_layouts=Shard(1)),
            },
        )
    if stage.head is not None:
        parallelize_module(
            stage.head,
            tp,
            ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1)),
        )
    for module in stage.modules():
        if isinstance(module, RmsNorm):
            whole = distribute_tensor(module.weight.detach(), tp, [Replicate()])
            module.weight = nn.Parameter(whole)


#: What torchtitan's selective checkpointing ``op`` keeps of a layer: these, and every second matmul
#: (``_op_sac_save_list`` of models/llama3/infra/parallelize.py).
KEPT = (
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
)
_MATMUL = torch.ops.aten.mm.default


def checkpoint_layers(stage: Stage, rungs: Iterable[str], again: Callable[[], Any]) -> None:
    """Wrap layers by the rungs of torchtitan's ladder; one runs again inside ``again()``."""

    def full() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), again()

    def selective() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        matmuls = 0

        def keeps(_context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> bool:
            nonlocal matmuls
            matmuls += operator is _MATMUL
            return operator in KEPT or (operator is _MATMUL and matmuls % 2 == 1)

        forward, recompute = create_selective_checkpoint_contexts(keeps)
        return forward, _both(recompute, again())

    contexts = {"full": full, "selective_op": selective}
    for number, rung in enumerate(rungs):
        if rung != "none":
            stage.layers[number] = checkpoint_wrapper(
                stage.layers[number], context_fn=contexts[rung], preserve_rng_state=False
            )


@contextmanager
def _both(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Iterator[None]:
    with one, other:
        yield


def shard_state(stage: Stage, mesh: DeviceMesh, *, reshard: bool) -> None:
    """FSDP2 over the last dimension of ``mesh``, copies over the first of two; ZeRO-3 or ZeRO-2."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    shared: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    if stage.embedding is not None:
        fully_shard(stage.embedding, **shared, reshard_after_forward=reshard)
    for layer in stage.layers:
        fully_shard(layer, **shared, reshard_after_forward=reshard)
    if stage.norm is not None and stage.head is not None:
        fully_shard([stage.norm, stage.head], **shared, reshard_after_forward=reshard)
    fully_shard(stage, **shared)
