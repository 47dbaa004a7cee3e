"""A small LLaMA in plain JAX, for XLA to judge: sharded by ``plan.mesh_axes()``, and no more.

Where shards lie is said at the arrays and at the ends of each matmul; which collectives that takes,
and what memory, is the compiler's to find, but for the lookup of the embedding, keys and values of
a cut sequence and one gradient (docs/compilers.md). As in MaxText, weights and Adam's moments are
fp32, compute is in bf16, layers run in a ``scan``, and a remat policy names the tensors that a
layer keeps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from attention_jax import attend
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from autoshard import Model, Plan
from autoshard.costmodels.remat import Rung

LEARNING_RATE, BETA1, BETA2, EPSILON = 3e-4, 0.9, 0.95, 1e-8

#: Mesh axes over which the state is sharded, and those of tokens.
SHARDS = ("fsdp", "sequence", "context")
BATCH, SEQUENCE = ("data", "fsdp"), ("sequence", "context")

#: How each array lies on the mesh.
WEIGHTS = {
    "embedding": P("tensor", SHARDS),
    "head": P(SHARDS, "tensor"),
    "query": P(None, SHARDS, "tensor", None),
    "key": P(None, SHARDS, "tensor", None),
    "value": P(None, SHARDS, "tensor", None),
    "out": P(None, "tensor", None, SHARDS),
    "gate": P(None, SHARDS, "tensor"),
    "up": P(None, SHARDS, "tensor"),
    "down": P(None, "tensor", SHARDS),
    "attention_norm": P(None, SHARDS),
    "mlp_norm": P(None, SHARDS),
    "last_norm": P(SHARDS),
}
TOKENS = P(BATCH, SEQUENCE)
RESIDUAL = P(BATCH, (*SEQUENCE, "tensor"), None)  # norms are split over tensor, too
INNER = P(BATCH, SEQUENCE, "tensor")
HEADS = P(BATCH, SEQUENCE, "tensor", None)

Weights = dict[str, jax.Array]


def weight_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights, the layers of one kind stacked."""
    n, d, f, v = model.n_layers, model.d_model, model.d_ff, model.vocab
    q, kv, h = model.n_heads, model.n_kv_heads, model.d_head
    return {
        "embedding": (v, d),
        "head": (d, v),
        "query": (n, d, q, h),
        "key": (n, d, kv, h),
        "value": (n, d, kv, h),
        "out": (n, q, h, d),
        "gate": (n, d, f),
        "up": (n, d, f),
        "down": (n, f, d),
        "attention_norm": (n, d),
        "mlp_norm": (n, d),
        "last_norm": (d,),
    }


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """RMSNorm, in fp32."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-5)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


def rotated(x: jax.Array) -> jax.Array:
    """Rotary position embedding of ``[batch, sequence, heads, d_head]``."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 500_000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None].astype(x.dtype), jnp.sin(angle)[:, None].astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def layer(x: jax.Array, w: Weights, model: Model, mesh: Mesh) -> jax.Array:
    """One layer, with sequence-parallel norms; tensors have MaxText's names."""
    on = partial(placed, mesh)
    w = {name: a.astype(x.dtype) for name, a in w.items()}

    def heads(y: jax.Array, weight: jax.Array) -> jax.Array:
        return on(jnp.einsum("bsd,dhk->bshk", y, weight), HEADS)

    y = on(norm(x, w["attention_norm"]), TOKENS)
    query = checkpoint_name(rotated(heads(y, w["query"])), "query_proj")
    key = checkpoint_name(rotated(heads(y, w["key"])), "key_proj")
    value = checkpoint_name(heads(y, w["value"]), "value_proj")
    mixed = on(attend(query, key, value, mesh), HEADS)
    # Said by hand where TP meets a cut sequence: XLA would send both factors of weights' gradients
    # over all axes. Elsewhere it gathers the gradient of what a row-parallel matmul made by itself.
    cut = mesh.shape["sequence"] * mesh.shape["context"] > 1 and mesh.shape["tensor"] > 1
    rows = gathered_back if cut else as_it_is
    out = rows(mesh, jnp.einsum("bshk,hkd->bsd", mixed, w["out"]))
    x = x + checkpoint_name(on(out, RESIDUAL), "out_proj")
    y = on(norm(x, w["mlp_norm"]), TOKENS)
    gate = checkpoint_name(on(y @ w["gate"], INNER), "mlpwi_0")
    up = checkpoint_name(on(y @ w["up"], INNER), "mlpwi_1")
    down = rows(mesh, (jax.nn.silu(gate) * up) @ w["down"])
    return x + checkpoint_name(on(down, RESIDUAL), "mlpwo")


def as_it_is(mesh: Mesh, x: jax.Array) -> jax.Array:
    """What a row-parallel matmul made."""
    return x


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def gathered_back(mesh: Mesh, x: jax.Array) -> jax.Array:
    """What a row-parallel matmul made; its gradient is gathered over ``tensor``."""
    return x


def _forward(mesh: Mesh, x: jax.Array) -> tuple[jax.Array, None]:
    return x, None


def _backward(mesh: Mesh, saved: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (placed(mesh, gradient, TOKENS),)


gathered_back.defvjp(_forward, _backward)


def placed(mesh: Mesh, x: jax.Array, spec: P) -> jax.Array:
    """An activation, laid on the mesh."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def looked_up(table: jax.Array, tokens: jax.Array, mesh: Mesh) -> jax.Array:
    """Rows of the embedding: each tensor rank has those of its part of the vocabulary.

    Said by hand: left alone, XLA gathers the whole table, or sends every token's row to its chip.
    """

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P("tensor", None), TOKENS),
        out_specs=RESIDUAL,
        check_vma=False,
    )
    def run(table: jax.Array, tokens: jax.Array) -> jax.Array:
        own = tokens - jax.lax.axis_index("tensor") * table.shape[0]
        here = (own >= 0) & (own < table.shape[0])
        rows = jnp.where(here[..., None], table[jnp.where(here, own, 0)], 0)
        return jax.lax.psum_scatter(rows, "tensor", scatter_dimension=1, tiled=True)

    return run(table, tokens)


def policy_of(rung: Rung) -> Any:
    """What one layer keeps for its backward pass, as a policy of JAX."""
    return jax.checkpoint_policies.save_only_these_names(*rung.kept)


def loss(
    w: Weights,
    tokens: jax.Array,
    *,
    model: Model,
    plan: Plan,
    ladder: dict[str, Rung],
    mesh: Mesh,
) -> jax.Array:
    """Mean cross entropy of the next token of one microbatch ``[sequences, seq_len]``."""
    x = looked_up(w["embedding"].astype(jnp.bfloat16), placed(mesh, tokens, TOKENS), mesh)
    stacked = {name: w[name] for name, shape in weight_shapes(model).items() if name in LAYER}
    first = 0
    for name, layers in plan.remat[0].items():
        run = partial(layer, model=model, mesh=mesh)
        if name != "none":
            run = jax.checkpoint(run, policy=policy_of(ladder[name]), prevent_cse=False)
        part = stacked
        if layers < model.n_layers:
            part = {key: a[first : first + layers] for key, a in stacked.items()}
        x, _ = jax.lax.scan(lambda x, w, run=run: (run(x, w), None), x, part)
        first += layers
    x = placed(mesh, norm(x, w["last_norm"]), TOKENS)
    logits = placed(mesh, x @ w["head"].astype(x.dtype), INNER)
    return cross_entropy(logits, jnp.roll(tokens, -1, axis=1)).mean()


LAYER = tuple(name for name in WEIGHTS if name not in ("embedding", "head", "last_norm"))


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Of each token; the sums are in fp32, the logits stay in bf16."""
    wide = logits.astype(jnp.float32)
    picked = jnp.arange(logits.shape[-1]) == targets[..., None]
    own = jnp.sum(jnp.where(picked, wide, 0.0), axis=-1)
    return jax.nn.logsumexp(wide, axis=-1) - own


def step(state: dict[str, Any], tokens: jax.Array, **setting: Any) -> tuple[Any, jax.Array]:
    """Gradients of all microbatches ``[microbatches, sequences, seq_len]``, then Adam."""
    plan, mesh = setting["plan"], setting["mesh"]
    find = jax.value_and_grad(partial(loss, **setting))

    def sharded(gradients: Weights) -> Weights:
        return {name: placed(mesh, g, WEIGHTS[name]) for name, g in gradients.items()}

    if plan.microbatches == 1:
        value, gradients = find(state["weights"], tokens[0])
        gradients = sharded(gradients)
    else:

        def add(total: Any, microbatch: jax.Array) -> tuple[Any, None]:
            value, gradients = find(state["weights"], microbatch)
            return jax.tree.map(jnp.add, total, (value, sharded(gradients))), None

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


def arguments(model: Model, plan: Plan, seq_len: int, mesh: Mesh) -> tuple[Any, Any]:
    """Shapes and shardings of what :func:`step` is given: the state and the batch."""

    def rows() -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(
                shape, jnp.float32, sharding=NamedSharding(mesh, WEIGHTS[name])
            )
            for name, shape in weight_shapes(model).items()
        }

    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, P()))
    state = {"weights": rows(), "mean": rows(), "square": rows(), "step": count}
    sequences = plan.dp * plan.batch_split * plan.micro_batch_size
    tokens = jax.ShapeDtypeStruct(
        (plan.microbatches, sequences, seq_len),
        jnp.int32,
        sharding=NamedSharding(mesh, P(None, *TOKENS)),
    )
    return state, tokens
