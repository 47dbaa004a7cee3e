"""Cases of gpus.md: switched networks, data, tensor and pipeline parallelism between nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
from textbook_registry import (
    B200,
    BATCH,
    GB200,
    H100,
    MIDDLE,
    NOMINAL,
    Figures,
    case,
    leave,
    matmul_bytes,
    matmul_seconds,
    row,
    tree_s,
)

from autoshard.costmodels import book, book_bounds
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.cluster import Cluster, Level
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.roofline import tree_gather_s
from autoshard.costmodels.textbook_pipeline import OneForwardOneBackward
from autoshard.costmodels.workload import Workload

PEAK = H100.flops_per_s["bf16"]


def node(chip: Chip) -> float:
    return book_bounds.intensity(chip.flops_per_s["bf16"], chip.domain_bytes_per_s)


def beyond(chip: Chip) -> float:
    return book_bounds.node_intensity(chip, chip.flops_per_s["bf16"])


def sharded(shards: int) -> float:
    return book_bounds.sharded_bound_tokens(H100, PEAK, shards)


@case("GP-04")
def weight_bound() -> Figures:
    return {
        name: book_bounds.weight_bound_tokens(chip.flops_per_s["bf16"], chip.hbm_bytes_per_s)
        for name, chip in (("H100", H100), ("B200", B200))
    }


@case("GP-05")
def b200_matmul() -> Figures:
    def us(tokens: int) -> float:
        return 1e6 * matmul_seconds(
            tokens, 4096, 8192, B200.flops_per_s["bf16"], B200.hbm_bytes_per_s
        )

    # the book's 512 tokens are bound by its rounded table entry of 2.3e15
    rounded = 1e6 * matmul_seconds(512, 4096, 8192, 2.3e15, B200.hbm_bytes_per_s)
    assert us(512) > rounded
    return {"MB": matmul_bytes(64, 4096, 8192) / 1e6, "us": us(64), "us 512": rounded}


@case("GP-07")
def node_bandwidth() -> Figures:
    nvlink = Cluster.build(H100, chips=8).levels[0]
    return {"TB/s": nvlink.chips * nvlink.bytes_per_s / 1e12}


@case("GP-08")
def gather_in_node() -> Figures:
    volume = 2.0 * 4096 * 65536
    (held,) = tree_s(volume, 8, chips=8)
    return {"V MB": volume / 1e6, "ms": held * 1e3}


leave("GP-08", "an approximation; the planner keeps (N-1)/N", "approx ms")


@case("GP-09")
def fat_tree() -> Figures:
    _, scale_out = Cluster.build(H100, chips=1024).levels
    return {
        "node GB/s": 8 * scale_out.bytes_per_s / 1e9,
        "SU TB/s": 256 * scale_out.bytes_per_s / 1e12,
        "spine TB/s": 1024 * scale_out.bytes_per_s / 1e12,
    }


@case("GP-11")
def effective_in_node() -> Figures:
    return {"eff. GB/s": 1 / tree_s(1e9, 8, chips=8)[0]}


@case("GP-12")
def small_gather() -> Figures:
    return {"exact us": tree_s(2 * 1024 * 16384, 8, chips=8)[0] * 1e6}


leave("GP-12", "an approximation; the planner keeps (N-1)/N", "us")


@case("GP-16")
def three_levels() -> Figures:
    """A SuperPod with its leaf and spine switches as levels of their own."""
    levels = (
        Level(name="node", chips=8, bytes_per_s=H100.domain_bytes_per_s),
        Level(name="leaf", chips=256, bytes_per_s=H100.scale_out_bytes_per_s),
        Level(name="spine", chips=1024, bytes_per_s=H100.scale_out_bytes_per_s),
    )
    held = tree_gather_s(np.array([1e9]), np.array([1024]), np.array([1]), levels)
    in_node, leaf, spine = (1 / float(column[0]) for column in held)
    return {"node": in_node, "leaf": leaf, "spine TB/s": spine / 1e3}


@case("GP-18")
def sharded_reduction() -> Figures:
    """128 units each, the array sharded over an inner axis that fills one node or eight."""

    def held(inner: int) -> float:
        group = 128 * 8 if inner == 1 else 128
        return tree_s(1e9 / inner, group, chips=128 * max(inner, 8), stride=inner)[-1]

    return {"Y=8 scale-out factor": held(8) / held(1), "Y=64": held(64) / held(1)}


@case("GP-19")
def gather_on_256() -> Figures:
    volume = 2 * 8192 * 32768

    def held(inner: int) -> float:
        return tree_s(volume / inner, 256 // inner, chips=256, stride=inner)[1] * 1e3

    # past eight ways the book leaves the factor (M - 1)/M = 15/16 out
    return {"Y<=8 ms": held(8), "Y=16 ms": held(16) * 16 / 15}


@case("GP-20")
def spine() -> Figures:
    w_node = 8 * H100.scale_out_bytes_per_s
    return {"M=32 factor": tree_s(1e9, 256, chips=256)[1] * w_node / 1e9}


@case("GP-22")
def two_nodes() -> Figures:
    in_node, cross = tree_s(1e9, 16, chips=16)
    return {"node GB/s": 1 / in_node, "cross GB/s": 1 / cross}


@case("GP-23")
def data_parallel() -> Figures:
    return {"node": node(H100), "beyond": sharded(1)}


@case("GP-24")
def data_parallel_examples() -> Figures:
    deepseek = book_bounds.data_bound_tokens(book_bounds.intensity(PEAK, 300e9))
    return {
        "M tokens": 16_000 * sharded(1) / 1e6,
        "16,384 M": 16_384 * sharded(1) / 1e6,
        "DeepSeek bound": deepseek,
        "DeepSeek M tokens": 2048 * deepseek / 1e6,
    }


@case("GP-25")
def experts() -> Figures:
    return {"tokens": book_bounds.data_bound_tokens(beyond(H100), experts_ratio=128 / 4)}


@case("GP-26")
def data_parallel_over_two() -> Figures:
    return {"tokens": book_bounds.data_bound_tokens(beyond(H100), units=2)}


@case("GP-27")
def tensor_parallel() -> Figures:
    return {
        "F/2200": book_bounds.tensor_bound_ways(node(H100), 28_000),
        "F/2475": book_bounds.tensor_bound_ways(beyond(H100), 28_000),
        "two nodes": book_bounds.spanning_tensor_bound_ways(H100, PEAK, 28_000),
        "F=28672 in node": book_bounds.tensor_bound_ways(node(H100), MIDDLE.d_ff),
    }


def plan(**degrees: Any) -> Plan:
    stages = degrees.get("pp", 1)
    return Plan(**degrees, layers_per_stage=(8,) * stages, remat=({"checkpoints_4": 8},) * stages)


@case("GP-30")
def llama3() -> Figures:
    chips = plan(tp=8, pp=16, dp=128).chips_used
    return {
        "GPUs": chips,
        "tokens per GPU": Workload.from_tokens(2**24).global_batch_tokens / chips,
        "critical with PP16": sharded(8 * 16),
    }


@case("GP-31")
def deepseek() -> Figures:
    tokens = Workload(global_batch_seqs=15_360, seq_len=4096).global_batch_tokens
    return {"tokens": tokens, "per GPU": tokens / 2048}


leave("GP-31", "experts are not planned with", "model parallel")


@case("GP-32")
def b200() -> Figures:
    return {"node": node(B200), "beyond": beyond(B200), "GB200 NVL72 beyond": beyond(GB200)}


@case("GP-33")
def bubble() -> Figures:
    """From the schedule's own weights: a stage of one second, m of them useful."""

    def step(stages: int, microbatches: int) -> float:
        cost = OneForwardOneBackward()(row(pp=stages, microbatches=microbatches))
        return float(cost.max_weight[0] + stages * cost.sum_weight[0])

    idle = {m: 1 - m / step(16, m) for m in (64, 16)}
    assert all(abs(book.bubble_fraction(16, m) - part) < 1e-12 for m, part in idle.items())
    return {
        "p=16,m=64": idle[64],
        "over useful": step(16, 64) / 64 - 1,
        "p=16,m=16": idle[16],
    }


def state() -> float:
    return book.state_bytes(NOMINAL["70b"], Recipe())


@case("GP-34")
def fewest_gpus() -> Figures:
    return {
        "GPUs": state() / H100.hbm_bytes,
        "ceil": book.minimum_chips(state(), H100.hbm_bytes),
    }


@case("GP-35")
def days_on_4096() -> Figures:
    flops = book.training_flops(NOMINAL["70b"], 15e12)
    days = book.training_days(flops, chips=4096, flops_per_s=PEAK, mfu=0.45)
    return {"s": days * book.DAY_S, "days": days}


@case("GP-36")
def tensor_limit() -> Figures:
    return {
        "right": book_bounds.tensor_bound_ways(node(H100), MIDDLE.d_ff),
        "as printed": book_bounds.tensor_bound_ways(1995, MIDDLE.d_ff),
    }


@case("GP-37")
def tensor_and_data() -> Figures:
    return {"GB": state() / 8 / 1e9}


@case("GP-38")
def tensor_and_zero3() -> Figures:
    chips = plan(tp=8, batch_split=512).chips_used
    return {"4e6": 4e6 / chips, "2^22": BATCH / chips}


@case("GP-39")
def pipeline() -> Figures:
    return {"critical": sharded(8 * 8)}


@case("GP-40")
def megatron() -> Figures:
    return {"70B bound": sharded(16), "314B bound": sharded(64)}


leave("GP-40", "batches and GPU counts of runs of others", "16B", "70B", "314B")


@case("GP-41")
def gb200_gain() -> Figures:
    return {"gain": beyond(H100) / beyond(GB200)}
