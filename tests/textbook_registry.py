"""The textbook's cases, who computes which, and the small set-ups that several of them share.

A computation gives one figure for each label of its case, through the product's own code. Labels
that no plan needs are listed in ``LEFT`` with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autoshard.catalog import load_chip, load_model
from autoshard.costmodels.book_bounds import intensity
from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.model import Model
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.roofline import matmul_s, tree_gather_s
from autoshard.costmodels.textbook_comms import Network, torus_network
from autoshard.costmodels.workload import Workload

Figures = dict[str, float]

DATA: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "textbook_cases.json").read_text(encoding="utf-8")
)
EXPECTED: dict[str, Figures] = {case["id"]: case["expected"] for case in DATA["cases"]}

COMPUTED: dict[str, Callable[[], Figures]] = {}
LEFT: dict[str, dict[str, str]] = {}


def case(id_: str) -> Callable[[Callable[[], Figures]], Callable[[], Figures]]:
    """Register the computation of a case."""

    def register(function: Callable[[], Figures]) -> Callable[[], Figures]:
        assert id_ not in COMPUTED, f"{id_} is computed twice"
        COMPUTED[id_] = function
        return function

    return register


def leave(id_: str, reason: str, *labels: str) -> None:
    """Labels of a computed case that no plan needs."""
    LEFT.setdefault(id_, {}).update(dict.fromkeys(labels, reason))


V5P, V5E, V4P, V6E = (load_chip(name) for name in ("v5p", "v5e", "v4p", "v6e"))
H100, B200, GB200, A100 = (load_chip(name) for name in ("h100", "b200", "gb200", "a100"))
SMALL, MIDDLE, LARGE = (load_model(f"llama3-{size}") for size in ("8b", "70b", "405b"))
LLAMA2 = load_model("llama2-13b")

#: Nominal counts of applied-training.md, which its worked numbers use.
NOMINAL = {"8b": 8e9, "70b": 70e9, "405b": 405e9}
BATCH = 2**22
POD = Cluster.build(V5P, pods=1)
C = V5P.flops_per_s["bf16"]
ALPHA = intensity(C, V5P.ici_bytes_per_s)
#: The two sides of a v5p pod at M = (2, 1).
DATA_ALPHA, TENSOR_ALPHA = ALPHA / 2, ALPHA


def problem(model: Model, cluster: Cluster, *, seqs: int = 1024, seq_len: int = 4096) -> Problem:
    """A problem with the textbook recipe."""
    workload = Workload(global_batch_seqs=seqs, seq_len=seq_len)
    return Problem(model=model, cluster=cluster, workload=workload)


def row(**degrees: int) -> Candidates:
    """One candidate; what is not named is 1, ``layout`` is 0 and ``reshard`` 3."""
    values = dict.fromkeys(COLUMNS, 1) | {"layout": 0, "reshard": 3} | degrees
    return Candidates(**{name: np.array([values[name]], dtype=np.int64) for name in COLUMNS})


def torus(chip: Chip, topology: tuple[int, ...], data_axes: int, **degrees: int) -> Network:
    """The planner's network of one slice: ``data_axes`` axes for data, the others for tensors."""
    cluster = Cluster.build(chip, topology=topology)
    layout = next(
        i
        for i, a in enumerate(cluster.layouts)
        if len(a.data_axes) == data_axes and len(a.tensor_axes) == len(topology) - data_axes
    )
    return torus_network(problem(SMALL, cluster), row(layout=layout, **degrees))


def seconds(held: Any) -> float:
    """Seconds of a collective that holds one resource."""
    (column,) = held.values()
    return float(column[0])


def gather_s(chip: Chip, topology: tuple[int, ...], axes: int, ways: int, volume: float) -> float:
    """Seconds of an all-gather of ``volume`` bytes over ``ways`` chips on ``axes`` axes."""
    network = torus(chip, topology, axes, batch_split=ways)
    return seconds(network.gather_fsdp(np.array([volume])))


def reduce_s(chip: Chip, topology: tuple[int, ...], axes: int, ways: int, volume: float) -> float:
    """Seconds of an all-reduce, as the planner reduces gradients over context ranks."""
    network = torus(chip, topology, axes, cp=ways)
    return seconds(network.reduce_context(np.array([volume])))


def tree_s(
    volume: float, group: int, *, chips: int, stride: int = 1, chip: Chip = H100
) -> tuple[float, ...]:
    """Seconds that an all-gather holds each level of a switched network of ``chips`` chips."""
    levels = Cluster.build(chip, chips=chips).levels
    held = tree_gather_s(np.array([volume]), np.array([group]), np.array([stride]), levels)
    return tuple(float(column[0]) for column in held)


def matmul_seconds(
    tokens: float, d_in: float, d_out: float, flops_per_s: float, hbm: float, *, element: int = 2
) -> float:
    """Seconds of one matmul in the planner's roofline."""
    column = matmul_s(
        np.array([float(tokens)]),
        float(d_in),
        float(d_out),
        element_bytes=element,
        flops_per_s=flops_per_s,
        hbm_bytes_per_s=hbm,
    )
    return float(column[0])


def matmul_bytes(tokens: float, d_in: float, d_out: float, *, element: int = 2) -> float:
    """HBM traffic of one matmul: what it takes where arithmetic is free and HBM moves a byte/s."""
    return matmul_seconds(tokens, d_in, d_out, np.inf, 1.0, element=element)


def matmul_intensity(tokens: float, d_in: float, d_out: float, *, element: int = 2) -> float:
    """FLOPs for each byte of one matmul."""
    flops = matmul_seconds(tokens, d_in, d_out, 1.0, np.inf, element=element)
    return flops / matmul_bytes(tokens, d_in, d_out, element=element)


def closed(chip: Chip) -> Chip:
    """The same chip with every axis wrapped around."""
    return replace(chip, wrap="always")
