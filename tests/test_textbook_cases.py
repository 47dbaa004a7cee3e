"""Every case of the textbook that a planner can compute, by the product's code."""

from __future__ import annotations

import numpy as np
import pytest
import textbook_cases_applied  # noqa: F401  (each module registers its cases)
import textbook_cases_gpus  # noqa: F401
import textbook_cases_hardware  # noqa: F401
import textbook_cases_training
from textbook_registry import (
    BATCH,
    COMPUTED,
    DATA,
    EXPECTED,
    LEFT,
    MIDDLE,
    POD,
    V5P,
    problem,
    row,
)

from autoshard.costmodels.book_bounds import OVERLAPS
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.textbook import textbook
from autoshard.costmodels.textbook_overlap import RULES
from autoshard.costmodels.workload import Workload

INFERENCE = "inference, and plans are for training"
INSIDE_CHIP = "inside a chip: cores and caches are below the planner's roofline"
HOST = "PCIe and host memory: plans keep everything in HBM"
LATENCY = "textbook times have no latency"
ALL_TO_ALL = "an all-to-all serves experts, and only dense models are planned"
ONE_ARRAY = "how one array lies on a mesh, without a plan"
IN_SWITCH = "reduction inside switches (SHARP) is not planned with"

OUT_OF_SCOPE = {
    "TPU-01": INSIDE_CHIP,
    "TPU-02": INFERENCE,
    "TPU-04": HOST,
    "TPU-06": "a copy between two corners of a slice, in hops: " + LATENCY,
    "TPU-07": HOST,
    "TPU-08": INSIDE_CHIP,
    "SH-04": ALL_TO_ALL,
    "SH-05": ALL_TO_ALL,
    "SH-06": LATENCY,
    "SH-08": ONE_ARRAY,
    "SH-09": ONE_ARRAY,
    "SH-11": ONE_ARRAY,
    "SH-16": LATENCY,
    "SH-21": "gather or scatter around one matmul: a plan fixes which",
    "SH-22": ALL_TO_ALL,
    "TR-10": INFERENCE,
    "TR-12": ONE_ARRAY,
    "TR-13": "FLOPs of an einsum that no transformer has",
    "TR-14": INFERENCE,
    "TN-31": "names the place of a formula, not a figure",
    "GP-01": INSIDE_CHIP,
    "GP-02": INSIDE_CHIP,
    "GP-03": INSIDE_CHIP,
    "GP-06": INSIDE_CHIP,
    "GP-10": "how many switches a fat tree needs",
    "GP-13": ALL_TO_ALL,
    "GP-14": "the measurements of others",
    "GP-15": IN_SWITCH,
    "GP-17": ALL_TO_ALL,
    "GP-21": IN_SWITCH,
    "GP-28": "expert parallelism, and only dense models are planned",
    "GP-29": "the planner charges each of the p stages for its sends, m + p - 1 hops, where the "
    "book counts m + p - 2",
}

#: Cases whose expected figures have four digits, or whose formula is a limit.
PRECISION = {"AT-07": 5e-4, "RL-03": 1e-6, "RL-09": 1e-5}


@pytest.mark.parametrize("id_", sorted(COMPUTED))
def test_case_comes_out_of_the_product(id_: str) -> None:
    expected = {k: v for k, v in EXPECTED[id_].items() if k not in LEFT.get(id_, {})}
    computed = COMPUTED[id_]()
    assert computed.keys() == expected.keys()
    for label, right in expected.items():
        rel = PRECISION.get(id_, 1e-12 if isinstance(right, int) else 1e-9)
        assert computed[label] == pytest.approx(right, rel=rel), label


def test_every_case_is_computed_or_out_of_scope() -> None:
    assert len(DATA["cases"]) == len(EXPECTED) == 162
    assert not set(COMPUTED) & set(OUT_OF_SCOPE)
    assert set(COMPUTED) | set(OUT_OF_SCOPE) == set(EXPECTED)


def test_what_is_left_of_a_computed_case_exists_and_is_not_all_of_it() -> None:
    for id_, labels in LEFT.items():
        assert set(labels) < set(EXPECTED[id_]), id_


def test_overlap_rules_have_one_pair_of_names() -> None:
    assert OVERLAPS == RULES


def test_a_batch_of_broken_sequences_is_refused() -> None:
    """training.md, Q3: 3e6 tokens are 91.55 sequences of 32,768; 96 need 3 * 2**20."""
    with pytest.raises(SpecError, match="not a whole number"):
        Workload.from_tokens(3_000_000, 32_768)
    assert Workload.from_tokens(3 * 2**20, 32_768).global_batch_seqs == 96


@pytest.mark.parametrize(
    ("topology", "wraps"),
    [
        ((2, 2, 1), False),
        ((2, 2, 2), False),
        ((2, 2, 4), False),
        ((4, 4, 4), True),
        ((4, 4, 8), True),
    ],
)
def test_v5p_wraps_where_slices_are_built_of_cubes(topology: tuple[int, ...], wraps: bool) -> None:
    axes = Cluster.build(V5P, topology=topology).torus
    assert {axis.wraps for axis in axes} == {wraps}


@pytest.mark.parametrize(("x", "y"), [(2048, 4), (1024, 8)])
def test_the_profile_prices_the_book_s_layer(x: int, y: int) -> None:
    """The three times of training.md out of the search's own coefficients, to the last digit."""
    chosen = next(
        i for i, a in enumerate(POD.layouts) if (len(a.data_axes), len(a.tensor_axes)) == (2, 1)
    )
    profile = textbook(layer="mlp2")
    mesh = row(batch_split=1024, seq_split=x // 1024, tp=y, micro_batch_size=1, layout=chosen)
    compute, comms = profile.price_parts(problem(MIDDLE, POD), mesh)
    book = textbook_cases_training.layer(BATCH, MIDDLE.d_ff, x, y)
    forward = {
        flow.kind: sum(float(s[0]) for s in flow.seconds.values())
        for flow in comms.flows
        if (flow.phase, flow.place) == ("forward", "layer") and flow.kind in ("fsdp", "tp")
    }
    assert compute.layer_forward_s[0] == pytest.approx(book.math_s, rel=1e-12)
    assert forward == pytest.approx({"fsdp": book.fsdp_s, "tp": book.tensor_s}, rel=1e-12)


def test_tensor_collectives_move_4bd_forward_and_6bd_backward() -> None:
    """training.md gives 4BD and 8BD for the backward pass; inputs saved in shards make it 6BD."""
    _, comms = textbook(layer="mlp2").price_parts(
        problem(MIDDLE, POD), row(batch_split=1024, tp=8, layout=1)
    )
    moved = {
        flow.phase: sum(float(np.sum(s)) for s in flow.seconds.values())
        for flow in comms.flows
        if flow.kind == "tp" and flow.phase in ("forward", "backward")
    }
    assert moved["backward"] / moved["forward"] == pytest.approx(1.5)
