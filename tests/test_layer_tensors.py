"""A layer's tensors against closed forms, and what runs again against reasoning by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from autoshard.costmodels.ladders import (
    LLM_FOUNDRY_LADDER,
    MAXTEXT_LADDER,
    MEGATRON_LADDER,
    TORCHTITAN_LADDER,
)
from autoshard.costmodels.layer_tensors import (
    EVERY_TENSOR,
    TENSORS,
    WIDTHS,
    LayerKind,
    bytes_of,
    layer_operations,
    repeated_operations,
    repeated_shares,
    stored_tensors,
)
from autoshard.costmodels.remat import OPERATIONS, Rung

KINDS = [
    LayerKind(parallel_block=parallel, gated_mlp=gated, unfused=unfused, eager=eager)
    for parallel, gated, unfused, eager in itertools.product((False, True), repeat=4)
]
LADDERS = {
    "megatron": MEGATRON_LADDER,
    "torchtitan": TORCHTITAN_LADDER,
    "llm-foundry": LLM_FOUNDRY_LADDER,
    "maxtext": MAXTEXT_LADDER,
}
RUNGS = [(name, rung) for name, ladder in LADDERS.items() for rung in ladder]


def layer_bytes(kept: tuple[str, ...], kind: LayerKind, **widths: float) -> float:
    """Bytes per token of a layer with these widths that keeps these tensors."""
    per_width = bytes_of(stored_tensors(kept, layer_operations(kind)))
    return float(per_width @ np.array([widths[name] for name in WIDTHS]))


def gpt(h: float, a: float, s: float, t: float, sequence_parallel: bool) -> dict[str, float]:
    """Widths on one rank of the layer of arXiv 2205.05198: four h wide in the MLP, plain heads."""
    residual = h / t if sequence_parallel else h
    return {
        "residual": residual,
        "normed": residual,
        "query": h / t,
        "key": h / t,
        "inner": 4 * h / t,
        "heads": a / t,
        "scores": a * s / t,
    }


H, A, S = 12288.0, 96.0, 2048.0
OLD = LayerKind(gated_mlp=False, unfused=True)


@pytest.mark.parametrize("t", [1.0, 8.0])
def test_korthikanti_without_recompute(t: float) -> None:
    # Equations 1, 2 and 4: s b h (34 + 5 a s / h), (10 + 24/t + 5 a s / (h t)), and all over t.
    tensor = layer_bytes(EVERY_TENSOR, OLD, **gpt(H, A, S, t, sequence_parallel=False))
    assert tensor == pytest.approx(H * (10 + 24 / t + 5 * A * S / (H * t)))
    sequence = layer_bytes(EVERY_TENSOR, OLD, **gpt(H, A, S, t, sequence_parallel=True))
    assert sequence == pytest.approx(H / t * (34 + 5 * A * S / H))


def test_korthikanti_selective_and_full() -> None:
    # Section 5 and table 2: selective recomputation leaves 34 s b h / t, full leaves 2 s b h.
    rungs = {rung.name: rung for rung in MEGATRON_LADDER}
    widths = gpt(H, A, S, 8, sequence_parallel=True)
    assert layer_bytes(rungs["selective"].kept, OLD, **widths) == pytest.approx(34 * H / 8)
    whole = gpt(H, A, S, 8, sequence_parallel=False)
    assert layer_bytes(rungs["full"].kept, OLD, **whole) == pytest.approx(2 * H)


def test_flash_attention_of_a_grouped_gated_layer_by_hand() -> None:
    # Layer input, both norms' outputs, attention residual: 4 d. Query and context: 2 q. Key and
    # value: 2 k. Gate, up, product: 3 f. All 2 bytes; and 4 bytes a head.
    d, q, k, f, heads = 4096.0, 8192.0, 1024.0, 14336.0, 32.0
    widths = dict(zip(WIDTHS, (d, d, q, k, f, heads, 1e9), strict=True))
    got = layer_bytes(EVERY_TENSOR, LayerKind(), **widths)
    assert got == pytest.approx(2 * (4 * d + 2 * q + 2 * k + 3 * f) + 4 * heads)
    plain = layer_bytes(EVERY_TENSOR, LayerKind(gated_mlp=False), **widths)
    assert got - plain == pytest.approx(2 * f)
    eager = layer_bytes(EVERY_TENSOR, LayerKind(eager=True), **widths)
    assert eager - got == pytest.approx(2 * f)


def test_parallel_block_stores_neither_second_norm_nor_attention_residual() -> None:
    sequential = set(stored_tensors(EVERY_TENSOR, layer_operations(LayerKind())))
    parallel = set(stored_tensors(EVERY_TENSOR, layer_operations(LayerKind(parallel_block=True))))
    assert sequential - parallel == {"mlp_norm", "attention_residual"}
    # Nor does it need the output projection again.
    again = repeated_operations(("layer_input",), layer_operations(LayerKind(parallel_block=True)))
    assert "output" not in again
    assert "mlp_in" in again


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_keeping_everything_repeats_nothing(kind: LayerKind) -> None:
    assert repeated_operations(EVERY_TENSOR, layer_operations(kind)) == ()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_tensor_has_one_writer_and_every_read_is_written(kind: LayerKind) -> None:
    written = ["layer_input"]
    for operation in layer_operations(kind):
        assert set(operation.inputs) <= set(written)
        written += operation.outputs
        assert set(operation.backward_reads) <= set(written)
    assert len(written) == len(set(written))
    assert set(written) <= set(TENSORS)


@pytest.mark.parametrize("gated", [False, True])
def test_last_matmul_runs_again_only_where_all_does(gated: bool) -> None:
    # Its output goes into the residual stream, which no backward pass reads.
    again = repeated_operations(("layer_input",), layer_operations(LayerKind(gated_mlp=gated)))
    assert again == tuple(name for name in OPERATIONS if name != "mlp_out")
    assert MEGATRON_LADDER[-1].recompute == OPERATIONS


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("minimal_with_context", set()),
        ("minimal", {"attention"}),
        ("save_dot_with_context_except_mlp", {"mlp_in"}),
        ("save_dot_except_mlp", {"attention", "mlp_in"}),
        ("save_dot_except_mlpwi", {"attention", "mlp_in"}),
        ("save_qkv_context", {"output", "mlp_in"}),
        ("save_qkv_proj", {"attention", "output", "mlp_in"}),
        ("save_out_proj", {"query", "key", "value", "attention", "mlp_in"}),
    ],
)
def test_maxtext_policies_repeat_these_matmuls(policy: str, expected: set[str]) -> None:
    rung = next(rung for rung in MAXTEXT_LADDER if rung.name == policy)
    matmuls = {"query", "key", "value", "attention", "output", "mlp_in", "mlp_out"}
    assert matmuls & set(rung.recompute) == expected


def test_torchtitan_repeats_every_second_matmul() -> None:
    shares = repeated_shares(TORCHTITAN_LADDER[1].kept)
    assert shares["mlp_in"] == 0.5
    assert {"key", "output"} <= set(shares)
    assert not {"query", "value", "attention", "mlp_out"} & set(shares)


@pytest.mark.parametrize(("stack", "rung"), RUNGS, ids=lambda x: getattr(x, "name", x))
def test_rungs_name_known_tensors_and_operations(stack: str, rung: Rung) -> None:
    assert set(rung.kept) <= set(TENSORS), stack
    assert set(rung.recompute) <= set(OPERATIONS), stack
    assert "layer_input" in rung.kept
    positions = [OPERATIONS.index(name) for name in rung.recompute]
    assert positions == sorted(positions)


@pytest.mark.parametrize("stack", LADDERS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.parallel_block], ids=str)
def test_ladders_descend(stack: str, kind: LayerKind) -> None:
    # A parallel block does not read the output projection: there, keeping it keeps nothing.
    numbers = (4096.0, 4096.0, 4096.0, 1024.0, 14336.0, 32.0, 65536.0)
    widths = dict(zip(WIDTHS, numbers, strict=True))
    sizes = [layer_bytes(rung.kept, kind, **widths) for rung in LADDERS[stack]]
    # A context has a log-sum-exp beside it: a few bytes a head more than an output projection.
    slack = 4 * widths["heads"]
    assert all(after <= before + slack for before, after in itertools.pairwise(sizes))


def test_ladders_have_the_names_that_the_frameworks_use() -> None:
    assert [rung.name for rung in MEGATRON_LADDER] == ["none", "selective", "full"]
    assert [rung.name for rung in TORCHTITAN_LADDER] == ["none", "selective_op", "full"]
    assert [rung.name for rung in LLM_FOUNDRY_LADDER] == ["none", "full"]
    assert MAXTEXT_LADDER[0].name == "none"
    assert MAXTEXT_LADDER[-1].name == "full"
    assert len({rung.name for rung in MAXTEXT_LADDER}) == len(MAXTEXT_LADDER) == 10
