"""What ``explain`` says of models on clusters: figures, verdicts, and bad arguments."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoshard.catalog import load_chip, load_model
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.workload import Workload
from autoshard.explain import SCHEMA, Explanation, explain
from autoshard.explain_rows import compare_tokens, number_pair


def question(model: str, chip: str, *, tokens: int = 2**22, **size: Any) -> Problem:
    return Problem(
        model=load_model(model),
        cluster=Cluster.build(load_chip(chip), **size),
        workload=Workload.from_tokens(tokens),
    )


def told(model: str, chip: str, **size: Any) -> Explanation:
    return explain(question(model, chip, **size))


def said(explanation: Explanation, quantity: str) -> str:
    return explanation.row(quantity).verdict


def test_70b_on_a_pod_is_the_book_s_chain() -> None:
    """applied-training.md, with 2**22 tokens for its 4M."""
    one = told("llama3-70b", "v5p", pods=1)
    assert one.row("MLP").value == 56_371_445_760
    assert one.row("attention").value == 12_079_595_520
    assert one.row("vocabulary").value == 2_101_346_304
    assert one.row("norms").value == (2 * 80 + 1) * 8192
    assert one.row("total parameters").value_text == "70,553,706,496"
    assert one.row("FLOPs per token").value == 6 * 70_552_387_584
    assert one.row("FLOPs in total").value == pytest.approx(6 * 70_552_387_584 * 15e12)
    assert one.row("days at assumed MFU").value_text == "44.67 days"  # 44.32 of a nominal 70e9
    assert one.row("weights").value_text == "141.1 GB"
    assert one.row("optimizer state").value_text == "564.4 GB"
    assert one.row("checkpoints").value_text == "21.99 TB"
    assert one.row("minimum chips").value == 237
    assert one.row("memory per chip").holds is True
    assert said(one, "FSDP alone") == "communication-bound by 1.816x: 468.1 < 850 tokens per chip"
    assert said(one, "FSDP with TP") == "compute-bound: 468.1 >= 113.4 tokens per chip"
    assert one.row("X_opt").value_text == "1,619.1"
    assert one.row("Y_opt").value_text == "5.53"
    assert said(one, "TP alone") == "compute-bound: 5.53 <= 11.2 ways, at any batch"
    assert "7,936 of 8,960 chips idle" in said(one, "sequences")


def test_70b_on_a_pod_under_the_first_edition_is_just_compute_bound() -> None:
    first = explain(question("llama3-70b", "v5p", pods=1), overlap="sum")
    assert said(first, "FSDP with TP") == "compute-bound: 468.1 >= 453.6 tokens per chip"


def test_70b_on_four_pods_is_a_knife_edge() -> None:
    four = told("llama3-70b", "v5p", pods=4)
    assert said(four, "FSDP with TP") == "compute-bound: 117.0 >= 113.4 tokens per chip"
    between = four.row("data parallel between pods")
    assert between.verdict == "compute-bound: 1,048,576 >= 73,440 tokens per pod"
    assert four.row("X_opt").value_text == "809.5"
    assert four.row("days at assumed MFU").value_text == "11.17 days"


def test_405b_on_eight_pods_is_communication_bound_by_two_percent() -> None:
    eight = told("llama3-405b", "v5p", pods=8)
    assert (
        said(eight, "FSDP with TP") == "communication-bound by 1.022x: 58.5 < 61.1 tokens per chip"
    )
    assert said(eight, "TP alone") == (
        "communication-bound by 1.022x: 21.3 > 20.9 ways, at any batch"
    )
    assert said(eight, "data parallel between pods") == (
        "compute-bound: 524,288 >= 73,440 tokens per pod"
    )
    assert eight.row("days at assumed MFU").value_text == "32.12 days"
    assert eight.row("X_opt").value_text == "420.1"


def test_memory_per_chip_counts_the_state_once_a_pod() -> None:
    eight = told("llama3-405b", "v5p", pods=8)
    state = 10 * eight.row("total parameters").value
    saved = 2 * 2**22 * 16384 * 4 * 126
    each = eight.row("memory per chip").value
    assert each == pytest.approx(state / 8960 + saved / 71_680, rel=1e-12)


@pytest.mark.parametrize(
    ("model", "sequences", "size", "verdict"),
    [
        ("llama3-8b", 1000, {"chips": 64}, "leaves 14 of 64 chips idle: 1,000 sequences do not"),
        ("llama3-8b", 32, {"chips": 64}, "leaves 32 of 64 chips idle unless sequences are split"),
        # 4.06 TB of state over 4 chips of 96 GB
        ("llama3-405b", 4, {"chips": 1024}, "does not fit: the state over 4 chips takes 1.015 TB"),
        # dp divides 8,961 = 3 * 29 * 103, and is 1 on two pods
        ("llama3-70b", 8961, {"pods": 2}, "leaves 14,933 of 17,920 chips idle"),
        # 42 * 2 chips fit the batch, and 4.06 TB need at least 43 of 96 GB in a pod
        ("llama3-405b", 84, {"topology": (4, 4, 4), "pods": 2}, "does not fit"),
    ],
)
def test_what_data_parallelism_alone_can_use(
    model: str, sequences: int, size: dict[str, Any], verdict: str
) -> None:
    asked = question(model, "v5p", tokens=sequences * 4096, **size)
    assert f"data parallelism alone {verdict}" in said(explain(asked), "sequences")


def test_405b_on_16384_h100_needs_pipeline_stages_at_4m_tokens() -> None:
    meta = told("llama3-405b", "h100", chips=16_384)
    assert said(meta, "FSDP alone") == "communication-bound by 9.7x: 256 < 2,475 tokens per chip"
    assert meta.row("TP in a node").holds is True
    assert meta.row("TP in a node").bound == pytest.approx(53_248 * 450e9 / 990e12)
    assert said(meta, "model shards").endswith("such as TP8 x PP10")
    assert meta.row("days at assumed MFU").value_text == "65.16 days"
    with pytest.raises(KeyError):
        meta.row("X_opt")  # no torus to split


def test_405b_on_16384_h100_at_meta_s_batch_needs_three_nodes_a_replica() -> None:
    meta = explain(question("llama3-405b", "h100", chips=16_384, tokens=2**24))
    assert meta.row("FSDP alone").value == 1024
    assert said(meta, "model shards").endswith("such as TP8 x PP3")


def test_8b_on_8_h100_shares_one_network_and_needs_microbatches() -> None:
    node = told("llama3-8b", "h100", chips=8)
    assert node.row("FSDP alone").bound == pytest.approx(2200)
    # both sides on NVLink take turns: 4 alpha^2 / F
    assert node.row("FSDP with TP").bound == pytest.approx(4 * 2200**2 / 14_336)
    assert node.row("minimum chips").holds is False
    assert said(node, "memory per chip").startswith("fits only in microbatches")
    assert said(node, "sequences").startswith("every chip can have a sequence")


def test_gpt3_on_a100_counts_biases_positions_and_one_table() -> None:
    gpt3 = told("gpt3-175b", "a100", chips=1024)
    assert gpt3.row("total parameters").value == 174_604_259_328
    assert gpt3.row("vocabulary").value == 50_257 * 12_288
    assert gpt3.row("positions").value == 2048 * 12_288
    assert gpt3.row("biases").value > 0
    assert gpt3.row("FSDP alone").bound == pytest.approx(3.1e14 / 2e11)
    assert gpt3.row("model shards").holds is True


def test_oversubscribed_gpu_pods_are_bound_like_dcn() -> None:
    two = told("llama3-8b", "h100", pods=2)
    assert two.row("data parallel between pods").bound == pytest.approx(990e12 * 7 / 50e9)


def test_a_model_too_large_for_the_cluster_does_not_fit() -> None:
    small = told("llama3-405b", "v5e", chips=8)
    assert said(small, "memory per chip").startswith("does not fit: the state alone")


def test_one_chip_has_nothing_to_communicate() -> None:
    rows = told("llama3-8b", "h100", chips=1).rows
    assert [row.quantity for row in rows if row.section == "parallelism"] == ["tokens per chip"]


def test_one_torus_axis_carries_both_sides_in_turn() -> None:
    line = told("llama3-8b", "v5e", topology=(16,))
    assert line.row("FSDP with TP").bound == pytest.approx(4 * (1.97e14 / 9e10) ** 2 / 14_336)


def test_an_axis_without_wrap_around_counts_half() -> None:
    small = told("llama3-8b", "v5p", topology=(2, 2, 2))
    assert small.row("FSDP alone").bound == pytest.approx(2 * 850)


def test_half_the_bytes_and_twice_the_peak_leave_the_bound() -> None:
    """training.md: in int8 alpha doubles and the traffic halves."""
    asked = question("llama3-70b", "v5p", pods=1)
    int8 = dataclasses.replace(asked, workload=Workload(precision="int8"))
    assert explain(int8).row("FSDP alone").bound == pytest.approx(850)


def test_every_row_has_a_source_and_bounds_are_complete() -> None:
    for size in ({"pods": 4}, {"chips": 64}):
        for row in told("llama3-70b", "v5p", **size).rows:
            assert row.source.endswith(".md")
            assert row.value_text
            assert (row.bound is None) == (row.holds is None) == (row.bound_text == "")


def book_plan(**degrees: Any) -> Plan:
    stages = degrees.get("pp", 1)
    layers = (80 // stages,) * stages
    remat = tuple({"checkpoints_4": n} for n in layers)
    return Plan(**degrees, layers_per_stage=layers, remat=remat)


def test_a_plan_is_judged_beside_the_best_split() -> None:
    """applied-training.md's final scheme: 3584 units of FSDP against 5757 of arithmetic."""
    words = {"fsdp": "ici xy", "tp": "ici z"}
    plan = book_plan(batch_split=1024, seq_split=2, tp=4, layout=words)
    pod = question("llama3-70b", "v5p", pods=1)
    found = explain(pod, plan=plan, step_time_s=0.5)
    ratio = found.row("plan communication over arithmetic")
    assert ratio.value == pytest.approx(3584 / 5756.887843137255)
    assert ratio.holds is True
    took = found.row("days of the plan")
    assert took.value == pytest.approx(0.5 * 15e12 / 2**22 / 86_400)
    own = found.row("MFU of the plan")
    assert own.value == pytest.approx(
        6 * (70_552_387_584 - 128_256 * 8192) * 2**22 / (0.5 * 8192 * 4.59e14)
    )
    assert own.verdict == (
        "over the 8,192 chips of the plan, without the lookup of an untied embedding; "
        "768 chips idle"
    )


def test_a_plan_across_pods_can_be_communication_bound_where_the_bound_is_not() -> None:
    plan = book_plan(dp=4, batch_split=256, seq_split=4, tp=8, pods=4)
    found = explain(question("llama3-70b", "v5p", pods=4), plan=plan)
    row = found.row("plan communication over arithmetic")
    assert row.value == pytest.approx(1.2451171875)
    assert row.verdict.startswith("communication-bound by 1.245x")


def test_weights_gathered_for_each_microbatch_are_counted_each_time() -> None:
    asked = question("llama3-70b", "v5p", pods=1)
    once, twice = (
        explain(asked, plan=book_plan(batch_split=512, tp=8, microbatches=m))
        .row("plan communication over arithmetic")
        .value
        for m in (16, 32)  # one gather would hide behind the tensor collectives
    )
    assert twice == pytest.approx(2 * once)


def test_a_plan_between_nodes_is_bound_by_its_model_shards() -> None:
    plan = book_plan(dp=4, batch_split=4, tp=8, pp=8)
    found = explain(question("llama3-70b", "h100", chips=1024), plan=plan)
    row = found.row("plan between nodes")
    assert row.bound == pytest.approx(2475 / 8)
    assert row.value == 2**22 / 1024

    again = book_plan(batch_split=16, tp=8, pp=8, microbatches=16)
    found = explain(question("llama3-70b", "h100", chips=1024), plan=again)
    # ZeRO-3 gathers for each microbatch, so each must hide a gather of its own (gpus.md)
    assert found.row("plan between nodes").value == 2**22 / 1024 / 16


def test_json_is_versioned_and_plain() -> None:
    answer = told("llama3-70b", "v5p", pods=4).to_dict()
    again = json.loads(json.dumps(answer, allow_nan=False))
    assert again == answer
    assert answer["schema"] == SCHEMA == "autoshard.explain/1"
    assert answer["assumptions"] == {
        "tokens": 15e12,
        "mfu": 0.4,
        "checkpoints": 4,
        "overlap": "max",
    }
    keys = {"section", "quantity", "value", "unit", "bound", "verdict", "source"}
    assert all(keys <= row.keys() for row in answer["rows"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mfu": 0}, "mfu must be finite and greater than zero"),
        ({"mfu": 1.5}, "at most 1"),
        ({"mfu": float("nan")}, "mfu must be finite"),
        ({"mfu": "0.4"}, "mfu must be a number"),
        ({"tokens": -1}, "tokens must be finite"),
        ({"tokens": float("inf")}, "tokens must be finite"),
        ({"tokens": 1e30}, "beyond any real training run"),
        ({"checkpoints": 0}, "checkpoints must be at least 1"),
        ({"checkpoints": 2.5}, "checkpoints must be a whole number"),
        ({"overlap": "none"}, "overlap must be one of max, sum"),
        ({"step_time_s": 1.0}, "needs the plan"),
        ({"step_time_s": -1.0, "plan": book_plan()}, "step_time_s must be finite"),
        ({"plan": book_plan(tp=8, batch_split=2048)}, "uses 16,384 chips"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        explain(question("llama3-70b", "v5p", pods=1), **arguments)


def test_experts_are_refused() -> None:
    asked = question("llama3-8b", "h100", chips=8)
    mixture = dataclasses.replace(asked.model, n_experts=8, experts_per_token=2)
    with pytest.raises(SpecError, match="8 experts"):
        explain(dataclasses.replace(asked, model=mixture))


def test_close_numbers_never_read_as_equal() -> None:
    assert number_pair(113.39, 113.41) == ("113.39", "113.41")
    assert compare_tokens(113.39, 113.41, "tokens").startswith("communication-bound by 1.000x")


def test_explaining_loads_neither_numpy_nor_a_solver() -> None:
    code = (
        "import sys\n"
        "import autoshard.explain\n"
        "print(sorted({'numpy', 'ortools', 'polars', 'altair', 'rich'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        check=True,
        text=True,
    )
    assert run.stdout.strip() == "[]"
