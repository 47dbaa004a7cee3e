"""Causal attention on a mesh: MaxText's Pallas kernel, and a ring for context parallelism."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH = ("data", "fsdp")
#: Queries and keys that the Pallas kernel has at a time, and queries of a block of the ring.
BLOCK, RING_BLOCK = 512, 64


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mesh: Mesh) -> jax.Array:
    """Attention of ``[batch, sequence, heads, d_head]``; keys and values may have fewer heads."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    run = ring if mesh.shape["context"] > 1 else splash
    return jnp.swapaxes(run(q * q.shape[-1] ** -0.5, k, v, mesh), 1, 2)


def splash(query: jax.Array, key: jax.Array, value: jax.Array, mesh: Mesh) -> jax.Array:
    """Of ``[batch, heads, sequence, d_head]``; ranks that share sequences gather keys and values.

    Source: jax.experimental.pallas.ops.tpu.splash_attention, called as MaxText calls it.
    """
    length, heads = query.shape[2], query.shape[1] // mesh.shape["tensor"]
    block = min(BLOCK, length)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask(
            [splash_attention_mask.CausalMask((length, length))] * heads
        ),
        block_sizes=splash_attention_kernel.BlockSizes(**{f"block_{n}": block for n in names}),
        head_shards=1,
        q_seq_shards=mesh.shape["sequence"],
        residual_checkpoint_name="context",
    )
    own = P(BATCH, "tensor", "sequence", None)
    spec = kernel.manual_sharding_spec(NamedSharding(mesh, P(None, "sequence")))

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(own, own, own, spec),
        out_specs=own,
        check_vma=False,
    )
    def run(q: jax.Array, k: jax.Array, v: jax.Array, kernel: Any) -> jax.Array:
        if mesh.shape["sequence"] > 1:
            k, v = (jax.lax.all_gather(x, "sequence", axis=2, tiled=True) for x in (k, v))
        return jax.vmap(kernel)(q, k, v)

    return run(query, key, value, kernel)


def ring(query: jax.Array, key: jax.Array, value: jax.Array, mesh: Mesh) -> jax.Array:
    """The same where ranks pass keys and values round: Ring Attention (arXiv 2310.01889)."""
    spec = P(BATCH, "tensor", "context", None)

    @partial(jax.shard_map, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return _ring(
            q.reshape(*k.shape[:2], -1, *q.shape[2:]), k, v, mesh.shape["context"]
        ).reshape(q.shape)

    return run(query, key, value)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _ring(q: jax.Array, k: jax.Array, v: jax.Array, ranks: int) -> jax.Array:
    """Queries ``[batch, kv heads, group, own sequence, d_head]`` against every rank's keys."""
    return _ring_forward(q, k, v, ranks)[0]


def _ring_forward(q: jax.Array, k: jax.Array, v: jax.Array, ranks: int) -> tuple[jax.Array, Any]:
    own = jax.lax.axis_index("context")
    total = jnp.zeros(q.shape, jnp.float32)
    norm = jnp.full(q.shape[:-1], -jnp.inf, jnp.float32)
    keys, values = k, v
    for hop in range(ranks):
        if hop:
            keys, values = _passed(keys, ranks), _passed(values, ranks)
        part, part_norm = _block(q, keys, values, own, (own - hop) % ranks)
        new = jnp.logaddexp(norm, part_norm)
        total = total * jnp.exp(norm - new)[..., None] + part * jnp.exp(part_norm - new)[..., None]
        norm = new
    out = checkpoint_name(total.astype(q.dtype), "context")
    norm = checkpoint_name(norm, "log_sum_exp")
    return out, (q, k, v, out, norm)


def _ring_backward(ranks: int, saved: Any, dout: jax.Array) -> tuple[jax.Array, ...]:
    q, k, v, out, norm = saved
    own = jax.lax.axis_index("context")
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    dq = jnp.zeros(q.shape, jnp.float32)
    dk, dv = jnp.zeros_like(k), jnp.zeros_like(v)
    # Another round, as in a loop over hops: XLA would keep the blocks of the one before.
    k, v, dout = jax.lax.optimization_barrier((k, v, dout))
    for hop in range(ranks):
        if hop:
            k, v, dk, dv = (_passed(x, ranks) for x in (k, v, dk, dv))
        block = (q, k, v, dout, norm, delta)
        dq_part, dk_part, dv_part = _block_backward(*block, own, (own - hop) % ranks)
        dq += dq_part
        dk, dv = dk + dk_part.astype(k.dtype), dv + dv_part.astype(v.dtype)
    # One hop more brings the gradients of a block to its owner.
    return dq.astype(q.dtype), _passed(dk, ranks), _passed(dv, ranks)


_ring.defvjp(_ring_forward, _ring_backward)


def _passed(x: jax.Array, ranks: int) -> jax.Array:
    return jax.lax.ppermute(x, "context", [(i, (i + 1) % ranks) for i in range(ranks)])


def _rows(x: jax.Array) -> jax.Array:
    """The own sequence (axis 3) in blocks, blocks first."""
    rows = min(RING_BLOCK, x.shape[3])
    return jnp.moveaxis(x.reshape(*x.shape[:3], -1, rows, *x.shape[4:]), 3, 0)


def _whole(x: jax.Array) -> jax.Array:
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:3], -1, *x.shape[5:])


def _scores(q: jax.Array, k: jax.Array, first: jax.Array, place: Any, source: Any) -> jax.Array:
    """Masked scores of a block of queries; ``first`` is the block's first row on its rank."""
    length = k.shape[2]
    scores = jnp.einsum("bhgqd,bhkd->bhgqk", q, k, preferred_element_type=jnp.float32)
    row = place * length + first + jnp.arange(q.shape[3])[:, None]
    return jnp.where(row >= source * length + jnp.arange(length), scores, -1e30)


def _firsts(q: jax.Array) -> jax.Array:
    return jnp.arange(0, q.shape[3], min(RING_BLOCK, q.shape[3]))


def _block(
    q: jax.Array, k: jax.Array, v: jax.Array, place: Any, source: Any
) -> tuple[jax.Array, jax.Array]:
    """Attention to one rank's keys, normalised, and the logarithms of its sums."""

    def rows(_: None, block: Any) -> tuple[None, Any]:
        q, first = block
        scores = _scores(q, k, first, place, source)
        norm = jax.nn.logsumexp(scores, axis=-1)
        p = jnp.exp(scores - norm[..., None]).astype(v.dtype)
        out = jnp.einsum("bhgqk,bhkd->bhgqd", p, v, preferred_element_type=jnp.float32)
        return None, (out, norm)

    _, (out, norm) = jax.lax.scan(rows, None, (_rows(q), _firsts(q)))
    return _whole(out), _whole(norm)


def _block_backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    dout: jax.Array,
    norm: jax.Array,
    delta: jax.Array,
    place: Any,
    source: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of one rank's keys and values, and the queries' part (arXiv 2307.08691)."""
    wide = {"preferred_element_type": jnp.float32}

    def rows(total: Any, block: Any) -> tuple[Any, jax.Array]:
        q, dout, norm, delta, first = block
        p = jnp.exp(_scores(q, k, first, place, source) - norm[..., None])
        dv = jnp.einsum("bhgqk,bhgqd->bhkd", p.astype(v.dtype), dout, **wide)
        dp = jnp.einsum("bhgqd,bhkd->bhgqk", dout, v, **wide)
        ds = (p * (dp - delta[..., None])).astype(q.dtype)
        dk = jnp.einsum("bhgqk,bhgqd->bhkd", ds, q, **wide)
        return (total[0] + dk, total[1] + dv), jnp.einsum("bhgqk,bhkd->bhgqd", ds, k, **wide)

    zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    blocks = (_rows(q), _rows(dout), _rows(norm), _rows(delta), _firsts(q))
    (dk, dv), dq = jax.lax.scan(rows, zeros, blocks)
    return _whole(dq), dk, dv
