"""The circumstances of candidates: widths and seconds per byte by hand, and tables put together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autoshard.catalog import load_chip, load_model
from autoshard.costmodels.calibrated_comms import comms_cost
from autoshard.costmodels.calibrated_compute import compute_cost
from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.constants import Fitted
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.setting import AXES, Setting
from autoshard.costmodels.stack import STACKS
from autoshard.costmodels.workload import Workload

LLAMA_8B = load_model("llama3-8b")


def column(**values: int | list[int]) -> Candidates:
    """Candidates out of the columns that are not one."""
    length = max((len(v) for v in values.values() if isinstance(v, list)), default=1)
    default = {"layout": 0, "reshard": 3}
    filled = {name: values.get(name, default.get(name, 1)) for name in COLUMNS}
    return Candidates(
        **{
            name: np.array(v if isinstance(v, list) else [v] * length, dtype=np.int64)
            for name, v in filled.items()
        }
    )


def problem(cluster: Cluster, seq_len: int = 8192, precision: str = "bf16") -> Problem:
    return Problem(
        model=LLAMA_8B,
        cluster=cluster,
        workload=Workload(global_batch_seqs=64, seq_len=seq_len, precision=precision),
    )


def h100s(chips: int) -> Cluster:
    return Cluster.build(load_chip("h100"), chips=chips)


def test_shapes_of_llama3_8b_on_a_rank() -> None:
    # 4,096 wide, 32 heads of 128, 8 KV heads, MLP 14,336, 128,256 entries.
    s = Setting.of(problem(h100s(512)), column(tp=[8, 16], seq_split=2, cp=4, micro_batch_size=3))
    assert s.tokens.tolist() == [3 * 8192 / 8] * 2
    assert s.d_query.tolist() == [4096 / 8, 4096 / 16]
    assert s.d_kv.tolist() == [128, 128]  # a KV head is not divided
    assert s.d_ff.tolist() == [14336 / 8, 14336 / 16]
    assert s.vocab.tolist() == [128256 / 8, 128256 / 16]
    assert s.shards.tolist() == [8, 8]
    assert s.layer_params[0] == 4096 * (2 * 512 + 2 * 128 + 3 * 1792)


def test_fp8_is_a_precision_of_matmuls_alone() -> None:
    half = Setting.of(problem(h100s(8)), column(tp=8))
    fp8 = Setting.of(problem(h100s(8), precision="fp8"), column(tp=8))
    assert fp8.low_flops_per_s[0] == 1.98e15
    assert fp8.peak_flops_per_s[0] == half.peak_flops_per_s[0] == 9.9e14
    assert fp8.element_bytes[0] == half.element_bytes[0] == 2.0
    assert (half.low_precision[0], fp8.low_precision[0]) == (0.0, 1.0)


def test_a_layer_with_one_block_and_one_without_rotation() -> None:
    given = problem(h100s(8))
    other = dataclasses.replace(
        given,
        model=dataclasses.replace(LLAMA_8B, parallel_block=True, gated_mlp=False, n_positions=8192),
    )
    usual, odd = Setting.of(given, column()), Setting.of(other, column())
    assert (usual.blocks[0], usual.gates[0], usual.rotary[0]) == (2, 2, 1)
    assert (odd.blocks[0], odd.gates[0], odd.rotary[0]) == (1, 1, 0)


def test_seconds_per_byte_on_nodes_of_eight() -> None:
    # NVLink 450 GB/s within 8 GPUs; 50 GB/s for each GPU outside.
    s = Setting.of(problem(h100s(512)), column(tp=8, batch_split=16, dp=4))
    assert s.inner["tensor"][0] == pytest.approx(7 / 8 / 450e9)
    assert s.outer["tensor"][0] == 0.0
    # Sixteen ranks of one GPU a node.
    assert s.outer["fsdp"][0] == pytest.approx(15 / 16 / 50e9)
    assert s.inner["fsdp"][0] == 0.0
    # Both halves of an all-reduce.
    assert s.outer["replicas"][0] == pytest.approx(2 * 3 / 4 / 50e9)
    # Sixteen ranks on two nodes: each port brings an eighth of the other node's half, and NVLink
    # seven eighths of everything.
    s = Setting.of(problem(h100s(512)), column(batch_split=16))
    assert s.inner["fsdp"][0] == pytest.approx(7 / 8 / 450e9)
    assert s.outer["fsdp"][0] == pytest.approx(1 / 2 / 8 / 50e9)


def test_seconds_per_byte_on_a_torus() -> None:
    # v5p 4x4x4: axes of 180 GB/s both ways that wrap; the layout gives tp one or two of them.
    cluster = Cluster.build(load_chip("v5p"), topology=(4, 4, 4))
    rate = load_chip("v5p").ici_bytes_per_s
    for number, layout in enumerate(cluster.layouts):
        data, tensor = len(layout.data_axes), len(layout.tensor_axes)
        if not data or not tensor:
            continue
        # Whole dimensions on both sides, and cp on part of the data side.
        degrees = {"tp": 4**tensor, "batch_split": 4**data // 2, "cp": 2}
        s = Setting.of(problem(cluster), column(**degrees, layout=number))
        assert s.inner["fsdp"][0] == pytest.approx(1 / (data * rate))
        assert s.inner["tensor"][0] == pytest.approx(1 / (tensor * rate))
        assert s.inner["context"][0] == pytest.approx(1 / 2 / (data * rate / 2))
        assert not any(s.outer[axis][0] for axis in AXES)


def test_replicas_are_reduced_over_dcn() -> None:
    chip = load_chip("v5e")
    cluster = Cluster.build(chip, pods=2, topology=(8, 8))
    s = Setting.of(problem(cluster), column(dp=2, pods=2, batch_split=32))
    assert s.outer["replicas"][0] == pytest.approx(2 / chip.dcn_bytes_per_s)
    assert s.inner["replicas"][0] == 0.0


def test_context_ranks_share_the_state_with_fsdp_ranks() -> None:
    s = Setting.of(
        problem(h100s(64)), column(tp=2, cp=[4, 1, 2], batch_split=[1, 4, 1], seq_split=[1, 1, 2])
    )
    assert s.shards.tolist() == [4, 4, 4]
    assert s.inner["fsdp"].tolist() == [s.inner["fsdp"][0]] * 3
    assert s.inner["fsdp"][0] == pytest.approx(3 / 4 / 450e9)
    # Keys and values go round the ring of four, or are gathered by two, or stay.
    assert s.inner["context"].tolist() == pytest.approx([3 / 4 / 450e9, 0, 1 / 2 / 450e9])
    assert s.inner["sequence"].tolist() == pytest.approx([0, 0, 1 / 2 / 450e9])


def test_a_ring_through_levels_of_one_rate_is_not_slower_than_through_one() -> None:
    """Pods without oversubscription: the ring's slowest hop is as fast as inside."""
    chip = load_chip("a100")
    candidates = column(tp=8, cp=8)
    one, two = (
        Setting.of(problem(Cluster.build(chip, chips=64, pods=pods)), candidates) for pods in (1, 2)
    )
    assert one.outer["context"][0] == pytest.approx(7 / 8 / 25e9)
    assert two.outer["context"][0] == one.outer["context"][0]


def test_problems_put_together_cost_what_each_does() -> None:
    """Other models, chips, batches and precisions; each stack."""
    gpu = column(tp=[1, 8, 4], cp=[1, 1, 2], batch_split=[8, 4, 2], pp=[1, 2, 4], vpp=[1, 1, 2])
    tpu = column(tp=[4, 1], batch_split=[16, 32], seq_split=[1, 2], micro_batch_size=2)
    parts = [
        Setting.of(problem(h100s(64), precision="fp8"), gpu),
        Setting.of(problem(Cluster.build(load_chip("v5p"), topology=(4, 4, 4))), tpu),
        Setting.of(
            dataclasses.replace(problem(h100s(64), 32768), model=load_model("gpt3-175b")), gpu
        ),
    ]
    whole = Setting.concatenate(parts)
    assert len(whole) == sum(map(len, parts)) == 8
    for stack in STACKS.values():
        constants = Fitted(values={}).constants(load_chip("h100"), stack)
        ladder = stack.ladder
        alone = [compute_cost(part, constants, stack, ladder) for part in parts]
        together = compute_cost(whole, constants, stack, ladder)
        for name in together.__dataclass_fields__:
            expected = np.concatenate([getattr(cost, name) for cost in alone])
            assert np.array_equal(getattr(together, name), expected), (stack.name, name)
        talk = [comms_cost(part, constants, stack, ladder) for part in parts]
        all_talk = comms_cost(whole, constants, stack, ladder)
        assert np.array_equal(all_talk.send_s, np.concatenate([cost.send_s for cost in talk]))
        for flow in all_talk.flows:
            for resource, seconds in flow.seconds.items():
                key = (flow.kind, flow.phase, flow.place)
                pieces = []
                for part, cost in zip(parts, talk, strict=True):
                    same = [f for f in cost.flows if (f.kind, f.phase, f.place) == key]
                    none = np.zeros((len(part), *seconds.shape[1:]))
                    pieces.append(same[0].seconds[resource] if same else none)
                assert np.array_equal(seconds, np.concatenate(pieces)), (stack.name, key)
