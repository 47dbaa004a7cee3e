"""Cases of the hardware tables, roofline.md, tpus.md and sharding.md: chips and collectives."""

from __future__ import annotations

import dataclasses

import numpy as np
from textbook_registry import (
    A100,
    B200,
    GB200,
    H100,
    POD,
    SMALL,
    V4P,
    V5E,
    V5P,
    C,
    Figures,
    case,
    closed,
    gather_s,
    leave,
    matmul_intensity,
    matmul_seconds,
    reduce_s,
    seconds,
    torus,
)

from autoshard.catalog import load_chip
from autoshard.costmodels import book, book_bounds
from autoshard.costmodels.cluster import Cluster, side_key
from autoshard.costmodels.recipe import Recipe

MATMUL = 2 * 4096 * 1024  # bytes of the array of sharding.md, Q2: bf16[1024, 4096]


def alpha(name: str, precision: str = "bf16") -> float:
    chip = load_chip(name)
    return book_bounds.intensity(chip.peak_flops_per_s(precision), chip.ici_bytes_per_s)


def hbm_intensity(name: str) -> float:
    chip = load_chip(name)
    return book_bounds.weight_bound_tokens(chip.peak_flops_per_s("bf16"), chip.hbm_bytes_per_s)


@case("HW-01")
def v5p() -> Figures:
    return {
        "chips per pod": POD.chips,
        "alpha=C/W": alpha("v5p"),
        "alpha int8": alpha("v5p", "int8"),
        "HBM intensity C/hbw": hbm_intensity("v5p"),
    }


@case("HW-02")
def other_tpus() -> Figures:
    chips = {"v3": "v3", "v4p": "v4p", "v5e": "v5e", "v6e": "v6e", "TPU7x": "tpu7x"}
    return {f"alpha {label}": alpha(name) for label, name in chips.items()}


@case("HW-03")
def wrap_around() -> Figures:
    small, cubes = (Cluster.build(V5P, topology=t).torus for t in ((2, 2, 2), (4, 4, 4)))
    return {"bandwidth factor without wrap": side_key(small, (0,))[0] / side_key(cubes, (0,))[0]}


@case("HW-04")
def dcn() -> Figures:
    return {"2.5e10/4": V5P.dcn_bytes_per_s}


@case("HW-05")
def gpus() -> Figures:
    return {
        "H100 HBM intensity": hbm_intensity("h100"),
        "B200 HBM intensity": hbm_intensity("b200"),
    }


@case("HW-06")
def nvlink() -> Figures:
    chips = {"A100": A100, "H100": H100, "B200": B200}
    return {name: chip.domain_bytes_per_s / 1e9 for name, chip in chips.items()}


@case("HW-07")
def node_egress() -> Figures:
    h100 = H100.peak_flops_per_s("bf16")
    return {
        "8x400/8 GB/s": H100.domain_chips * H100.scale_out_bytes_per_s / 1e9,
        "4x18x400/8 GB/s": GB200.domain_chips * GB200.scale_out_bytes_per_s / 1e9,
        "H100 alpha node": book_bounds.intensity(h100, H100.domain_bytes_per_s),
        "H100 alpha scale-out": book_bounds.node_intensity(H100, h100),
    }


def superpod(chips: int) -> float:
    """TB/s of a fat tree's levels below ``chips`` chips."""
    level = next(a for a in Cluster.build(H100, chips=1024).levels if a.chips >= chips)
    return chips * level.bytes_per_s / 1e12


@case("HW-08")
def h100_superpod() -> Figures:
    return {"node TB/s": superpod(8), "leaf TB/s": superpod(256), "spine TB/s": superpod(1024)}


leave("HW-08", "switches are counted, not planned with", "switches")


@case("RL-01")
def math_time() -> Figures:
    return {  # this chapter's peaks, which differ from the tables' in the third digit
        "H100 ms": book.compute_s(1e12, chips=1, flops_per_s=9.89e14) * 1e3,
        "v6e ms": book.compute_s(1e12, chips=1, flops_per_s=9.1e14) * 1e3,
    }


@case("RL-02")
def upper_over_lower() -> Figures:
    equal = book_bounds.LayerTimes(math_s=1.0, fsdp_s=1.0, tensor_s=0.5)
    return {"max of sum/max": equal.upper_s() / equal.lower_s()}


@case("RL-03")
def dot_product() -> Figures:
    return {"N=1e6": matmul_intensity(1, 1e6, 1)}


@case("RL-04")
def v5e_weight_bound() -> Figures:
    return {"B crit": hbm_intensity("v5e")}


@case("RL-05")
def split_contraction() -> Figures:
    one_way = book_bounds.intensity(V5E.flops_per_s["bf16"], V5E.ici_bytes_per_s / 2)
    return {"C/W": one_way, "D": 2 / book_bounds.tensor_bound_ways(one_way, 1)}


@case("RL-06")
def int8_matmul() -> Figures:
    peak = V5E.peak_flops_per_s("int8")
    return {
        "E1": book_bounds.weight_bound_tokens(peak, 8.1e11, weight_bytes=1),
        "E3": book_bounds.weight_bound_tokens(peak, V5E.hbm_bytes_per_s, weight_bytes=1),
    }


def int8_weights(d: float | None = None) -> float:
    peak, hbm = V5E.flops_per_s["bf16"], V5E.hbm_bytes_per_s
    if d is None:
        return book_bounds.weight_bound_tokens(peak, hbm, weight_bytes=1)
    return book_bounds.matmul_bound_tokens(
        d, d, flops_per_s=peak, hbm_bytes_per_s=hbm, weight_bytes=1
    )


@case("RL-07")
def int8_weights_limit() -> Figures:
    return {"B crit": int8_weights()}


@case("RL-08")
def int8_weights_exact() -> Figures:
    return {f"D=F={d}": int8_weights(d) for d in (4096, 1024)}


@case("RL-09")
def batched_matmul() -> Figures:
    return {"limit": matmul_intensity(1, 2**20, 2**20, element=1)}  # one matrix for each token


@case("RL-10")
def h100_weight_bound() -> Figures:
    hbm = H100.hbm_bytes_per_s
    return {c: book_bounds.weight_bound_tokens(float(c), hbm) for c in ("1e15", "9.89e14")}


@case("TPU-03")
def pod_totals() -> Figures:
    v5e = Cluster.build(V5E, pods=1)
    return {
        "v5e FLOPs/s": v5e.chips * V5E.flops_per_s["bf16"],
        "v5e TB": v5e.chips * V5E.hbm_bytes / 1e12,
        "v5p FLOPs/s": POD.chips * C,
        "v5p TB": POD.chips * V5P.hbm_bytes / 1e12,
    }


leave("TPU-03", "hosts and cores are not planned with", "v5e hosts", "v5p hosts", "v5p cores")


@case("TPU-05")
def int8_latency() -> Figures:
    def bound(hbm: float) -> float:
        return book_bounds.matmul_bound_tokens(
            4096,
            16384,
            flops_per_s=V5E.peak_flops_per_s("int8"),
            hbm_bytes_per_s=hbm,
            weight_bytes=1,
            activation_bytes=1,
        )

    return {"E1 exact": bound(8.1e11), "E3 exact": bound(8.2e11), "VMEM": bound(22 * 8.2e11)}


@case("SH-01")
def all_gather() -> Figures:
    return {"V=1e9, v5p s": gather_s(V5P, (4, 4, 4), 1, 4, 1e9)}


@case("SH-02")
def all_reduce() -> Figures:
    shape = (V5P, (4, 4, 4), 1, 4, 1e9)
    return {"AR/AG": reduce_s(*shape) / gather_s(*shape)}


@case("SH-03")
def three_axes() -> Figures:
    return {"v5p 3 axes B/s": 1e9 / gather_s(V5P, (4, 4, 4), 3, 64, 1e9)}


@case("SH-07")
def line() -> Figures:
    """A line moves (X - 1)/X of V one way, where a ring moves V over both ways."""
    one_way = V5E.ici_bytes_per_s / 2
    return {"X=4 factor": gather_s(V5E, (4, 4), 1, 4, 1.0) * one_way}


@case("SH-10")
def gather_on_v5e() -> Figures:
    volume = 2 * 2048 * 8192
    return {
        "V/W us": gather_s(closed(V5E), (8, 4), 1, 4, volume) * 1e6,
        "3 hops us": gather_s(V5E, (8, 4), 1, 4, volume) * 1e6,
        "small hop us": gather_s(V5E, (8, 4), 1, 4, 2 * 256 * 256) * 1e6 / 3,
    }


leave("SH-10", "textbook times have no latency", "small us")


@case("SH-12")
def gather_x() -> Figures:
    return {"us": gather_s(V4P, (4, 4, 4), 1, 4, MATMUL / 4) * 1e6}


@case("SH-13")
def gather_xy() -> Figures:
    return {"us": gather_s(V4P, (4, 4, 4), 2, 16, MATMUL) * 1e6}


@case("SH-14")
def reduce_z() -> Figures:
    return {  # the first edition forgot that the array is sharded 16 ways already
        "E1 formula us": reduce_s(V4P, (4, 4, 4), 1, 4, MATMUL) * 1e6,
        "right us": reduce_s(V4P, (4, 4, 4), 1, 4, MATMUL / 16) * 1e6,
    }


@case("SH-15")
def idle_links() -> Figures:
    return {
        "XZ us": gather_s(V4P, (4, 4, 4), 2, 16, MATMUL / 4) * 1e6,
        "XYZ us": gather_s(V4P, (4, 4, 4), 3, 64, MATMUL) * 1e6,
    }


@case("SH-17")
def strategies() -> Figures:
    """Gather the weights or split the contraction: where the all-reduce hides behind arithmetic."""
    tokens, d, d_ff = 1024.0, 8192.0, 32768.0
    reduce = reduce_s(V5P, (4, 4, 4), 1, 4, 2 * tokens * d_ff)
    return {
        "X": matmul_seconds(tokens, d, d_ff, C, np.inf) / reduce,
        "D": d * reduce / matmul_seconds(tokens, d, d_ff, C, np.inf),
    }


@case("SH-18")
def replicated_result() -> Figures:
    shape = (V5P, (4, 4, 4), 3, 64, 1e6)
    return {"AG/AR comm ratio": gather_s(*shape) / reduce_s(*shape)}


@case("SH-19")
def reduce_without_wrap() -> Figures:
    return {"AR_Y, s per byte of 2IK/X, no wrap": reduce_s(V5E, (4, 4), 1, 4, 1.0)}


@case("SH-20")
def four_chips() -> Figures:
    model = dataclasses.replace(
        SMALL, n_layers=1, d_model=8192, d_ff=32768, gated_mlp=False, n_heads=64, n_kv_heads=64
    )
    weights = Recipe().param_bytes * model.mlp_params
    times = book_bounds.layer_times(
        tokens=128,
        d_model=8192,
        d_ff=32768,
        data_ways=1,
        tensor_ways=4,
        flops_per_s=V5E.flops_per_s["bf16"],
        data_intensity=1,
        tensor_intensity=1,
    )
    tensors = torus(V5E, (2, 2), 0, tp=4)
    return {
        "MB each": weights / 2 / 1e6,
        "weights per chip MB": weights / 4 / 1e6,
        "T_math us": times.math_s * 1e6,
        # gathered before the block and scattered after it
        "TP AG+RS us": 2 * seconds(tensors.gather_tensor(np.array([2.0 * 128 * 8192]))) * 1e6,
        "FSDP gather us": gather_s(V5E, (2, 2), 2, 4, weights) * 1e6,
    }
