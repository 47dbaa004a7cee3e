"""Solve for eight ranks, build the device mesh, and train a tiny LLaMA on it for three steps.

    torchrun --nproc-per-node 8 examples/train_torch.py

needs PyTorch and no accelerator: the ranks are processes of the CPU that talk over gloo. FSDP2
shards weights over ``dp_shard``, tensor parallelism with sequence-parallel norms splits them over
``tp``, and microbatches, remat and whether weights stay gathered are the plan's.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import autoshard

MODEL = autoshard.Model(
    name="tiny-llama",
    n_layers=4,
    d_model=64,
    d_ff=256,
    n_heads=8,
    n_kv_heads=4,
    d_head=8,
    vocab=256,
)
SEQUENCES, SEQ_LEN, STEPS = 16, 64, 3


class Attention(nn.Module):
    """Causal attention with grouped queries; heads are split by tensor parallelism."""

    def __init__(self) -> None:
        super().__init__()
        d, q, kv = MODEL.d_model, MODEL.n_heads * MODEL.d_head, MODEL.n_kv_heads * MODEL.d_head
        self.query = nn.Linear(d, q, bias=False)
        self.key = nn.Linear(d, kv, bias=False)
        self.value = nn.Linear(d, kv, bias=False)
        self.out = nn.Linear(q, d, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of ``[batch, sequence, d_model]``; the number of heads is what this rank has."""
        query, key, value = (
            project(x).unflatten(-1, (-1, MODEL.d_head)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(
            rotated(query), rotated(key), value, is_causal=True, enable_gqa=True
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(MODEL.d_model, MODEL.d_ff, bias=False)
        self.up = nn.Linear(MODEL.d_model, MODEL.d_ff, bias=False)
        self.down = nn.Linear(MODEL.d_ff, MODEL.d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of ``[batch, sequence, d_model]``."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """One layer; ``again`` says that its backward pass computes it again."""

    def __init__(self) -> None:
        super().__init__()
        self.again = False
        self.attention_norm, self.attention = nn.RMSNorm(MODEL.d_model), Attention()
        self.mlp_norm, self.mlp = nn.RMSNorm(MODEL.d_model), Mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of ``[batch, sequence, d_model]``."""
        if self.again:
            return checkpoint(self._run, x, use_reentrant=False)
        return self._run(x)

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """Embedding, layers, norm and head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(MODEL.vocab, MODEL.d_model)
        self.layers = nn.ModuleList(Layer() for _ in range(MODEL.n_layers))
        self.norm = nn.RMSNorm(MODEL.d_model)
        self.head = nn.Linear(MODEL.d_model, MODEL.vocab, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of ``[batch, sequence]`` tokens."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)).clone()  # FSDP2 wants no view of a tensor


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of ``[batch, heads, sequence, d_head]``."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2])[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def parallel(model: Llama, plan: autoshard.Plan, mesh: DeviceMesh) -> Llama:
    """The model as the plan cuts it: tensor parallelism, then remat, then FSDP2."""
    tp = mesh["tp"]
    parallelize_module(
        model,
        tp,
        {
            "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
            "norm": SequenceParallel(),
            "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        },
    )
    gathered = PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate())
    for layer in model.layers:
        parallelize_module(
            layer,
            tp,
            {
                "attention_norm": SequenceParallel(),
                "attention": gathered,
                "attention.query": ColwiseParallel(),
                "attention.key": ColwiseParallel(),
                "attention.value": ColwiseParallel(),
                "attention.out": RowwiseParallel(output_layouts=Shard(1)),
                "mlp_norm": SequenceParallel(),
                "mlp": gathered,
                "mlp.gate": ColwiseParallel(),
                "mlp.up": ColwiseParallel(),
                "mlp.down": RowwiseParallel(output_layouts=Shard(1)),
            },
        )
    kept = plan.remat[0].get("save_all", 0)
    for number, layer in enumerate(model.layers):
        layer.again = number >= kept
        fully_shard(layer, mesh=mesh["dp_shard"], reshard_after_forward=plan.reshard == 3)
    return fully_shard(model, mesh=mesh["dp_shard"], reshard_after_forward=plan.reshard == 3)


def train(model: nn.Module, batch: torch.Tensor, microbatches: int) -> list[float]:
    """The loss of each step on this rank's sequences."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        total = 0.0
        for tokens in batch.chunk(microbatches):
            logits = model(tokens[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            (loss / microbatches).backward()
            total += loss.item() / microbatches
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def main() -> None:
    """Solve, build, train."""
    dist.init_process_group("gloo")
    front = autoshard.solve(
        MODEL,
        chip="h100",
        chips=dist.get_world_size(),
        global_batch_seqs=SEQUENCES,
        seq_len=SEQ_LEN,
        # What one script can run without a pipeline engine, and something to see of every kind.
        fix={"dp": 1, "pp": 1, "cp": 1, "seq_split": 1, "tp": 2, "microbatches": 2},
    )
    plan = front.fastest()
    mesh = plan.torch_device_mesh("cpu")
    torch.manual_seed(0)  # all ranks make the same weights and tokens, and keep their part
    model = parallel(Llama(), plan, mesh)
    tokens = torch.randint(MODEL.vocab, (SEQUENCES, SEQ_LEN + 1))
    shard = mesh["dp_shard"]
    losses = train(model, tokens.chunk(shard.size())[shard.get_local_rank()], plan.microbatches)
    mean = torch.tensor(losses)
    dist.all_reduce(mean)
    if dist.get_rank() == 0:
        sizes = ", ".join(
            f"{name} {size}" for name, size in zip(mesh.mesh_dim_names, mesh.shape, strict=True)
        )
        print(f"mesh of {plan.chips_used} ranks: {sizes}; {plan.microbatches} microbatches")
        for number, value in enumerate((mean / dist.get_world_size()).tolist(), start=1):
            print(f"step {number}: loss {value:.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
