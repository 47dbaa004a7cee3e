"""Solve for eight chips, build the mesh, and train a tiny LLaMA on it for three steps.

    python examples/train_jax.py

needs JAX and no accelerator: the eight devices are threads of the CPU. The plan says what is split
how: the batch over ``data`` and ``fsdp``, each sequence over ``sequence``, ``context`` and (outside
of attention and the MLP) ``tensor``, weights over ``fsdp`` x ``sequence`` and ``tensor``. The model
and the optimizer are as small as they can be; the mesh, the shardings, the microbatches and the
remat are those of a real run.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

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
LEARNING_RATE, BETA1, BETA2, EPSILON = 3e-3, 0.9, 0.95, 1e-8

#: How each array lies on the mesh: weights are sharded over fsdp and split by tensor parallelism.
SHARDED = ("fsdp", "sequence")
WEIGHTS = {
    "embedding": P("tensor", SHARDED),
    "head": P(SHARDED, "tensor"),
    "query": P(None, SHARDED, "tensor"),
    "key": P(None, SHARDED, "tensor"),
    "value": P(None, SHARDED, "tensor"),
    "out": P(None, "tensor", SHARDED),
    "gate": P(None, SHARDED, "tensor"),
    "up": P(None, SHARDED, "tensor"),
    "down": P(None, "tensor", SHARDED),
    "attention_norm": P(),
    "mlp_norm": P(),
    "last_norm": P(),
}
BATCH = ("data", "fsdp")
TOKENS = P(BATCH, ("sequence", "context"))
RESIDUAL = P(BATCH, ("sequence", "context", "tensor"), None)  # norms are split over tensor, too

#: What one layer keeps for its backward pass, by the rungs of the ladder that are policies of JAX.
POLICIES = {
    "save_all": jax.checkpoint_policies.everything_saveable,
    "save_matmuls": jax.checkpoint_policies.dots_saveable,
}


def weights(key: jax.Array) -> dict[str, jax.Array]:
    """Initial weights, the layers of one kind stacked."""
    n, d, f, v = MODEL.n_layers, MODEL.d_model, MODEL.d_ff, MODEL.vocab
    q, kv = MODEL.n_heads * MODEL.d_head, MODEL.n_kv_heads * MODEL.d_head
    shapes = {
        "embedding": (v, d),
        "head": (d, v),
        "query": (n, d, q),
        "key": (n, d, kv),
        "value": (n, d, kv),
        "out": (n, q, d),
        "gate": (n, d, f),
        "up": (n, d, f),
        "down": (n, f, d),
    }
    keys = jax.random.split(key, len(shapes))
    made = {
        name: jax.random.normal(k, shape) * shape[-2] ** -0.5
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    norms = {"attention_norm": (n, d), "mlp_norm": (n, d), "last_norm": (d,)}
    return made | {name: jnp.ones(shape) for name, shape in norms.items()}


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """RMSNorm."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def rotated(x: jax.Array) -> jax.Array:
    """Rotary position embedding of ``[batch, sequence, heads, d_head]``."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 10_000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def layer(x: jax.Array, w: dict[str, jax.Array], mesh: jax.sharding.Mesh) -> jax.Array:
    """One layer, with sequence-parallel norms."""
    on = partial(placed, mesh)
    heads = P(BATCH, None, "tensor", None)
    own_heads = P(BATCH, ("sequence", "context"), "tensor", None)

    def split(y: jax.Array, spec: P) -> jax.Array:
        return on(y.reshape(*y.shape[:2], -1, MODEL.d_head), spec)

    y = on(norm(x, w["attention_norm"]), TOKENS)
    query = rotated(split(y @ w["query"], own_heads))
    # Keys and values of a whole sequence: gathered over the ranks that share it.
    key, value = rotated(split(y @ w["key"], heads)), split(y @ w["value"], heads)
    group = MODEL.n_heads // MODEL.n_kv_heads
    key, value = jnp.repeat(key, group, axis=2), jnp.repeat(value, group, axis=2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", on(query, own_heads), on(key, heads))
    scores = on(scores, P(BATCH, "tensor", ("sequence", "context"), None)) * MODEL.d_head**-0.5
    length = x.shape[1]
    causal = jnp.arange(length)[:, None] >= jnp.arange(length)
    scores = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
    mixed = on(jnp.einsum("bhqk,bkhd->bqhd", scores, on(value, heads)), own_heads)
    x = x + on(mixed.reshape(*x.shape[:2], -1) @ w["out"], RESIDUAL)
    y = on(norm(x, w["mlp_norm"]), TOKENS)
    return x + on((jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"], RESIDUAL)


def placed(mesh: jax.sharding.Mesh, x: jax.Array, spec: P) -> jax.Array:
    """An activation, laid on the mesh."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def loss(
    w: dict[str, jax.Array],
    tokens: jax.Array,
    plan: autoshard.Plan,
    mesh: jax.sharding.Mesh,
) -> jax.Array:
    """Mean cross entropy of the next token of one microbatch."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    x = placed(mesh, w["embedding"][inputs], RESIDUAL)
    stacked = {name: w[name] for name, spec in WEIGHTS.items() if w[name].ndim == 3}
    stacked |= {name: w[name] for name in ("attention_norm", "mlp_norm")}
    first = 0
    for rung, layers in plan.remat[0].items():
        policy = POLICIES.get(rung, jax.checkpoint_policies.nothing_saveable)
        run = jax.checkpoint(partial(layer, mesh=mesh), policy=policy)
        part = {name: a[first : first + layers] for name, a in stacked.items()}
        x, _ = jax.lax.scan(lambda x, w, run=run: (run(x, w), None), x, part)
        first += layers
    logits = norm(x, w["last_norm"]) @ w["head"]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
    return -chosen.mean()


def step(
    state: dict[str, Any], tokens: jax.Array, plan: autoshard.Plan, mesh: jax.sharding.Mesh
) -> tuple[dict[str, Any], jax.Array]:
    """Gradients of all microbatches, then Adam on the shards that each chip holds."""

    def add(total: Any, microbatch: jax.Array) -> tuple[Any, None]:
        found = jax.value_and_grad(loss)(state["weights"], microbatch, plan, mesh)
        return jax.tree.map(jnp.add, total, found), None

    zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), state["weights"]))
    (value, gradients), _ = jax.lax.scan(add, zeros, tokens)
    value, gradients = jax.tree.map(lambda x: x / plan.microbatches, (value, gradients))
    n = state["step"] + 1
    mean = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, state["mean"], gradients)
    square = jax.tree.map(lambda s, g: BETA2 * s + (1 - BETA2) * g * g, state["square"], gradients)

    def moved(w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
        s = jnp.sqrt(s / (1 - BETA2**n)) + EPSILON
        return w - LEARNING_RATE * m / (1 - BETA1**n) / s

    made = jax.tree.map(moved, state["weights"], mean, square)
    return {"weights": made, "mean": mean, "square": square, "step": n}, value


def train(plan: autoshard.Plan, mesh: jax.sharding.Mesh) -> list[float]:
    """The loss of each step."""
    rows = {name: NamedSharding(mesh, spec) for name, spec in WEIGHTS.items()}
    w = jax.jit(weights, out_shardings=rows)(jax.random.key(0))
    zeros = jax.jit(partial(jax.tree.map, jnp.zeros_like), out_shardings=rows)
    state = {"weights": w, "mean": zeros(w), "square": zeros(w), "step": jnp.zeros((), jnp.int32)}
    tokens = jax.random.randint(jax.random.key(1), (SEQUENCES, SEQ_LEN + 1), 0, MODEL.vocab)
    # Microbatches first; every data shard has its part of each.
    tokens = tokens.reshape(plan.microbatches, -1, SEQ_LEN + 1)
    tokens = jax.device_put(tokens, NamedSharding(mesh, P(None, BATCH)))
    run = jax.jit(partial(step, plan=plan, mesh=mesh))
    losses = []
    for _ in range(STEPS):
        state, value = run(state, tokens)
        losses.append(float(value))
    for name, spec in WEIGHTS.items():
        shard = state["weights"][name].addressable_shards[0].data
        whole = state["weights"][name].size
        assert shard.size == whole // ways(mesh, spec), (name, spec)
    return losses


def ways(mesh: jax.sharding.Mesh, spec: P) -> int:
    """Into how many pieces a sharding cuts an array."""
    entries = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
    names = [name for entry in entries for name in entry]
    count = 1
    for name in names:
        count *= mesh.shape[name]
    return count


def main() -> None:
    """Solve, build, train."""
    front = autoshard.solve(
        MODEL,
        topology="2x2x2",
        global_batch_seqs=SEQUENCES,
        seq_len=SEQ_LEN,
        # One program for all devices, and something to see of every kind.
        fix={"pp": 1, "cp": 1, "tp": 2, "seq_split": 2, "microbatches": 2},
    )
    plan = front.fastest()
    mesh = plan.jax_mesh()
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    print(f"mesh of {plan.chips_used} devices: {sizes}; {plan.microbatches} microbatches")
    for number, value in enumerate(train(plan, mesh), start=1):
        print(f"step {number}: loss {value:.4f}")


if __name__ == "__main__":
    main()
