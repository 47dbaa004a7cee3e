"""Calibrated costs: what the search relies on, physics by hand, and fronts against brute force."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from typing import Any

import numpy as np
import pytest
from command import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import brute_front, judge, mesh_of, pareto, rungs_of
from random_costs import check_unpriced
from test_setting import column

import autoshard
from autoshard.catalog import load_chip, load_model
from autoshard.costmodels.calibrated import calibrated
from autoshard.costmodels.calibrated_comms import SHARDS, comms_cost
from autoshard.costmodels.calibrated_compute import compute_cost, layer_operations, update_s
from autoshard.costmodels.calibrated_overlap import CalibratedOverlap
from autoshard.costmodels.calibration import Calibration
from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.constants import Constants, Fitted, family, keys, prior, shipped
from autoshard.costmodels.costs import PLACES, Column, CommsCost
from autoshard.costmodels.errors import CostModelError, SpecError, UnknownName
from autoshard.costmodels.model import Model
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile, StageCosts
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.setting import Setting
from autoshard.costmodels.stack import STACKS, Stack, stack_by_name
from autoshard.costmodels.textbook import textbook
from autoshard.costmodels.workload import Workload
from autoshard.search import bounds
from autoshard.search.check import judge as check
from autoshard.search.floors import mesh_floors
from autoshard.search.rows import price_rows
from autoshard.search.space import expand, meshes
from autoshard.solving import load_profile

#: Float noise of sums in another order.
NOISE = 1e-9
LLAMA_8B = load_model("llama3-8b")
#: llm-foundry's kernel has no prior on TPU.
ON_CHIPS = [
    (name, chip)
    for name, chip in itertools.product(STACKS, ("h100", "a100", "v5p", "v5e"))
    if load_chip(chip).kind in STACKS[name].chips
]
on_chips = pytest.mark.parametrize(("name", "chip"), ON_CHIPS, ids=map("-".join, ON_CHIPS))


def cluster_of(chip: str, chips: int = 32) -> Cluster:
    return Cluster.build(load_chip(chip), chips=chips)


def problem_of(
    stack: Stack,
    cluster: Cluster,
    *,
    seqs: int = 32,
    seq_len: int = 4096,
    precision: str = "bf16",
    **model: Any,
) -> Problem:
    """Llama-3 8B with some fields changed, stored as the stack stores it, at every ZeRO stage."""
    return Problem(
        model=dataclasses.replace(LLAMA_8B, **model),
        cluster=cluster,
        workload=Workload(global_batch_seqs=seqs, seq_len=seq_len, precision=precision),
        recipe=dataclasses.replace(stack.recipe, reshard=(1, 2, 3)),
    )


def leaves(costs: StageCosts) -> dict[str, Column]:
    """Every column of a table of costs by name."""
    found: dict[str, Column] = {}
    for field in dataclasses.fields(costs):
        value = getattr(costs, field.name)
        columns = {"": value} if isinstance(value, np.ndarray) else value
        found |= {f"{field.name} {place}": c for place, c in columns.items()}
    return found


# Tables


@on_chips
def test_a_table_priced_at_once_is_each_of_its_rows_priced_alone(name: str, chip: str) -> None:
    stack = stack_by_name(name)
    problem, profile = problem_of(stack, cluster_of(chip)), calibrated(stack)
    candidates, _ = expand(problem, meshes(problem))
    rows = np.random.default_rng(0).choice(len(candidates), 15, replace=False)
    together = leaves(profile.price(problem, candidates.take(rows)))
    for index, row in enumerate(rows.tolist()):
        alone = leaves(profile.price(problem, candidates.take(slice(row, row + 1))))
        for label, values in together.items():
            assert np.allclose(values[index], alone[label][0], rtol=1e-12, atol=0.0), label


@pytest.mark.parametrize("chip", ["h100", "v5p"])
def test_a_hundred_thousand_candidates_cost_finite_and_non_negative_amounts(chip: str) -> None:
    """``Profile.price`` itself refuses NaN, infinities and negative numbers."""
    stack = stack_by_name("maxtext")
    problem = dataclasses.replace(
        problem_of(stack, cluster_of(chip, 2048), seqs=1024, seq_len=8192),
        model=load_model("llama3-405b"),
    )
    table = meshes(problem)
    few = table.take(np.random.default_rng(0).choice(len(table), 12_000, replace=False))
    candidates = expand(problem, few)[0].take(slice(100_000))
    assert len(candidates) == 100_000
    costs = calibrated(stack).price(problem, candidates)
    assert costs.layer_backward_s.shape == (100_000, 2, len(stack.ladder))
    for label, values in leaves(costs).items():
        assert np.isfinite(values).all(), label
        assert (values >= 0.0).all(), label
    for place in ("layer", "head"):
        assert (costs.forward_s[place].max(axis=1) > 0.0).all()
        assert (costs.state_bytes[place] > 0.0).all()


# What the search relies on


@st.composite
def fitted_constants(draw: st.DrawFn, stack: Stack, chip: Chip) -> Fitted:
    """Any constants that a fit may find: anywhere between their hard bounds."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = {}
    for key in filter(None, keys(family(chip), chip.kind, stack).values()):
        known = prior(key, chip.kind)
        edge = draw(st.sampled_from([0.0, 1.0, None]))
        share = float(rng.uniform()) if edge is None else edge
        values[key] = known.least * (known.most / known.least) ** share
    return Fitted(values=values)


@st.composite
def priced_problems(draw: st.DrawFn) -> tuple[Problem, Profile]:
    """Any stack on any chip with any constants, in any precision, blocking or not."""
    name, chip = draw(st.sampled_from(ON_CHIPS))
    stack = dataclasses.replace(
        stack_by_name(name),
        balanced=draw(st.booleans()),
        blocking=draw(st.booleans()),
        sequence_parallel=draw(st.booleans()),
    )
    cluster = cluster_of(chip, draw(st.sampled_from([8, 16])))
    precision = draw(st.sampled_from(sorted(cluster.chip.flops_per_s)))
    problem = problem_of(
        stack,
        cluster,
        seqs=draw(st.sampled_from([8, 12])),
        seq_len=draw(st.sampled_from([256, 4096, 65536])),
        precision=precision,
        n_layers=draw(st.sampled_from([4, 6])),
        d_model=draw(st.sampled_from([512, 4096])),
        parallel_block=draw(st.booleans()),
        gated_mlp=draw(st.booleans()),
        tied_embeddings=draw(st.booleans()),
    )
    return problem, calibrated(
        stack, Calibration(fitted=draw(fitted_constants(stack, cluster.chip)))
    )


some = settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@some
@given(priced_problems())
def test_no_plan_beats_its_chips_peak(case: tuple[Problem, Profile]) -> None:
    problem, profile = case
    candidates, _ = expand(problem, meshes(problem))
    costs = profile.price(problem, candidates)
    layers = problem.model.n_layers
    passes = [
        (layers * layer + at["embedding"] + at["head"]).max(axis=1)
        for layer, at in (
            (costs.forward_s["layer"], costs.forward_s),
            (costs.layer_backward_s.min(axis=2), costs.backward_s),
        )
    ]
    # Without a bubble, and with nothing once a step.
    least_s = candidates.microbatches * sum(passes) / candidates.pp
    flops = profile.compute.flops_per_step(problem)
    peak_s = flops / (problem.peak_flops_per_s * candidates.chips_used)
    assert (least_s >= peak_s * (1.0 - NOISE)).all()


@some
@given(priced_problems())
def test_splitting_a_microbatch_is_never_cheaper(case: tuple[Problem, Profile]) -> None:
    """Each cost of a microbatch is subadditive, and its memory grows with it."""
    problem, profile = case
    whole = meshes(problem)
    costs, memory = profile.price(problem, whole), profile.memory
    for pieces in range(2, int(whole.micro_batch_size.max()) + 1):
        picked = np.nonzero(whole.micro_batch_size % pieces == 0)[0]
        if not len(picked):
            continue
        split = whole.take(picked)
        split = split.replace(
            micro_batch_size=split.micro_batch_size // pieces,
            microbatches=split.microbatches * pieces,
        )
        cut, full = profile.price(problem, split), costs.take(picked)
        for place in PLACES:
            for name in ("forward_s", "backward_s"):
                small, large = getattr(cut, name)[place], getattr(full, name)[place]
                assert (pieces * small >= large * (1.0 - NOISE)).all(), (name, place)
        layers = cut.layer_backward_s
        assert (pieces * layers >= full.layer_backward_s * (1.0 - NOISE)).all()
        assert (pieces * cut.send_s >= full.send_s * (1.0 - NOISE)).all()
        assert (cut.saved_bytes <= full.saved_bytes * (1.0 + NOISE)).all()
        small_memory = memory(problem, split, profile.ladder)
        large_memory = memory(problem, whole.take(picked), profile.ladder)
        for head in (0.0, 1.0):  # a stage with and without the head
            ends = [m.fixed_bytes + head * m.head_state_bytes for m in (small_memory, large_memory)]
            assert (ends[0] <= ends[1] * (1.0 + NOISE)).all()
        alone = split.microbatches == pieces  # one whole microbatch, whose gradients add up to none
        for name in ("layer_state_bytes", "embedding_state_bytes"):
            small, large = getattr(small_memory, name), getattr(large_memory, name)
            assert (small <= large)[~alone].all()
            assert (large <= small * (1.0 + NOISE))[alone].all()


@some
@given(priced_problems())
def test_the_floors_of_a_mesh_are_below_each_row_it_expands_to(
    case: tuple[Problem, Profile],
) -> None:
    problem, profile = case
    table = meshes(problem)
    floors = mesh_floors(problem, profile, table)
    candidates, mesh = expand(problem, table)
    rows = price_rows(problem, profile, candidates)
    time_s, size = bounds.time_floor_s(rows), bounds.memory_floor_bytes(rows)
    assert (floors.least_s[mesh] <= time_s * (1.0 + NOISE)).all()
    assert (floors.memory_bytes[mesh] <= size * (1.0 + NOISE)).all()
    check_unpriced(problem, profile, candidates, mesh, floors)


@some
@given(priced_problems())
def test_what_keeps_less_repeats_more(case: tuple[Problem, Profile]) -> None:
    problem, profile = case
    candidates = meshes(problem)
    again = profile.compute(problem, candidates, profile.ladder).recompute_s
    talk = profile.comms(problem, candidates, profile.ladder).recompute_s()
    for (high, upper), (low, lower) in itertools.combinations(enumerate(profile.ladder), 2):
        if set(lower.kept) < set(upper.kept):
            assert (again[:, low] >= again[:, high]).all(), (upper.name, lower.name)
            for seconds in talk.values():
                assert (seconds[:, low] >= seconds[:, high]).all(), (upper.name, lower.name)
    assert (again[:, 0] == 0.0).all()
    assert (again[:, -1] == again.max(axis=1)).all()


# Physics, by hand

#: Peaks reached, no latency, nothing that moves bytes: what is left is what a test is about.
IDEAL = Constants(
    matmul=1.0,
    low_matmul=1.0,
    tile=0.0,
    depth=0.0,
    attention=1.0,
    hbm=1.0,
    operators=0.0,
    casts=0.0,
    tensor_link=1.0,
    tensor_latency_s=0.0,
    shard_link=1.0,
    shard_latency_s=0.0,
    network=1.0,
    tensor_exposed=1.0,
    contention=1.0,
    reduce_exposed=1.0,
    layer_floor_s=0.0,
    overhead=1.0,
    blocking=1.0,
)
#: An H100: FLOP/s in bf16 and fp8, and bytes/s of HBM, NVLink and network.
BF16, FP8, HBM, NVLINK, NETWORK = 9.9e14, 1.98e15, 3.35e12, 4.5e11, 5e10
MEGATRON = stack_by_name("megatron")


def setting(
    candidates: Candidates | None = None,
    *,
    stack: Stack = MEGATRON,
    chips: int = 512,
    seq_len: int = 8192,
    **changes: Any,
) -> Setting:
    given = problem_of(stack, cluster_of("h100", chips), seqs=512, seq_len=seq_len, **changes)
    return Setting.of(given, column() if candidates is None else candidates)


def ideal(**changes: float) -> Constants:
    return dataclasses.replace(IDEAL, **changes)


def held_s(cost: CommsCost, kind: str, phase: str, place: str = "layer") -> Column:
    """Seconds of the flows of one kind, over all resources."""
    found = [
        seconds
        for flow in cost.flows
        if (flow.kind, flow.phase, flow.place) == (kind, phase, place)
        for seconds in flow.seconds.values()
    ]
    return np.sum(found, axis=0) if found else np.zeros(len(cost.send_s))


def test_a_matmul_of_known_size() -> None:
    """``[8192, 4096] x [4096, 4096]``, the output projection."""
    constants = ideal(matmul=0.72, tile=150.0, depth=100.0)
    ahead, back = layer_operations(setting(), constants, MEGATRON)
    flops = 2 * 8192 * 4096 * 4096
    rate = 0.72 * BF16
    fill = (1 + 150 / 8192) * (1 + 150 / 4096) * (1 + 100 / 4096)
    assert ahead["output"][0] == pytest.approx(flops * fill / rate)
    # Of the input, [8192, 4096] x [4096, 4096]; of the weight, [4096, 8192] x [8192, 4096].
    weight = (1 + 150 / 4096) * (1 + 150 / 4096) * (1 + 100 / 8192)
    assert back["output"][0] == pytest.approx(flops * (fill + weight) / rate)


def test_a_matmul_of_few_tokens_waits_for_its_weight() -> None:
    ahead, _ = layer_operations(setting(seq_len=64), ideal(hbm=0.8), MEGATRON)
    moved = 2 * (64 * 4096 + 4096 * 4096 + 64 * 4096)
    assert moved / (0.8 * HBM) > 2 * 64 * 4096 * 4096 / BF16
    assert ahead["output"][0] == pytest.approx(moved / (0.8 * HBM))


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_an_ideal_layer_takes_its_flops_at_the_peak(precision: str) -> None:
    """Six per parameter and token, causal attention twice and five times half a square, no more."""
    given = setting(precision=precision, seq_len=8192)
    cost = compute_cost(given, IDEAL, MEGATRON, MEGATRON.ladder)
    params = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    rate = FP8 if precision == "fp8" else BF16
    attention = 4 * 8192 * 8192 * 4096 / 2 / BF16
    assert cost.layer_forward_s[0] == pytest.approx(2 * params * 8192 / rate + attention)
    back = 4 * params * 8192 / rate + 2.9 * attention
    assert cost.layer_backward_s[0] == pytest.approx(back)
    # The head stays in 16 bits; logits pass four times through HBM in four bytes.
    head, logits = 2 * 8192 * 4096 * 128256 / BF16, 4 * 4 * 8192 * 128256 / HBM
    assert cost.head_forward_s[0] == pytest.approx(head + logits)
    assert cost.head_backward_s[0] == pytest.approx(2 * head + logits)
    whole = cost.layer_forward_s[0]
    # Megatron: nothing, attention, or everything again.
    assert cost.recompute_s[0].tolist() == pytest.approx([0.0, attention, whole])


def test_attention_without_a_fused_kernel_sees_the_whole_square_and_stores_it() -> None:
    stack = stack_by_name("megatron-2021")
    given = setting(column(tp=8), stack=stack, seq_len=2048)
    ahead, back = layer_operations(given, ideal(attention=0.5), stack)
    square = 2048 * 2048
    flops, scores = 4 * square * 4096 / 8, square * 32 / 8 * 2
    expected = flops / BF16 + 5 * scores / (0.5 * HBM)
    assert ahead["attention"][0] == pytest.approx(expected)
    assert back["attention"][0] == pytest.approx(2 * expected)


@pytest.mark.parametrize("ways", [1, 2, 8])
def test_attention_dealt_in_order_waits_for_the_rank_with_the_end(ways: int) -> None:
    """The last of ``n`` parts of a causal mask has ``2 - 1/n`` of the mean: 15/8 of eight."""
    mask = np.tril(np.ones((64, 64)), -1) + 0.5 * np.eye(64)
    factor = mask[-64 // ways :].sum() / (mask.sum() / ways)
    assert factor == pytest.approx(2 - 1 / ways)
    for split in (column(cp=ways), column(seq_split=ways)):
        dealt = layer_operations(setting(split), IDEAL, MEGATRON)[0]["attention"]
        odd = dataclasses.replace(MEGATRON, balanced=False)
        in_order = layer_operations(setting(split), IDEAL, odd)[0]["attention"]
        assert in_order / dealt == pytest.approx(factor)


def test_fp8_casts_inputs_and_weights_forward_and_gradients_backward() -> None:
    given = setting(column(tp=2), precision="fp8")
    plain, cast = (layer_operations(given, ideal(casts=casts), MEGATRON) for casts in (0.0, 3.0))
    # The product of the MLP's first matmul: [8192, 4096] x [4096, 14336].
    ahead = cast[0]["mlp_in"] - plain[0]["mlp_in"]
    assert ahead[0] == pytest.approx(3 * 2 * (8192 * 4096 + 4096 * 14336) / HBM)
    back = cast[1]["mlp_in"] - plain[1]["mlp_in"]
    assert back[0] == pytest.approx(3 * 2 * 8192 * 14336 / HBM)
    half = setting(column(tp=2))
    first, second = (layer_operations(half, ideal(casts=casts), MEGATRON) for casts in (0.0, 3.0))
    assert all((first[0][name] == second[0][name]).all() for name in first[0])


def test_norms_are_shared_by_tensor_ranks_where_sequences_are() -> None:
    constants, given = ideal(operators=1.5), setting(column(tp=4))
    alone = dataclasses.replace(MEGATRON, sequence_parallel=False)
    shared, whole = (layer_operations(given, constants, stack) for stack in (MEGATRON, alone))
    # Read and written, two bytes each.
    moved = 2 * 2 * 8192 * 4096
    assert whole[0]["attention_norm"][0] == pytest.approx(1.5 * moved / HBM)
    assert shared[0]["attention_norm"][0] == pytest.approx(1.5 * moved / 4 / HBM)
    assert whole[0]["activation"][0] == shared[0]["activation"][0]


def test_tensor_parallelism_gathers_and_scatters_once_each_a_block() -> None:
    """Two all-gathers and two reduce-scatters a layer; 7/8 of an activation each, over NVLink."""
    cost = comms_cost(setting(column(tp=8)), IDEAL, MEGATRON, MEGATRON.ladder)
    once = 2 * 8192 * 4096 * 7 / 8 / NVLINK
    assert held_s(cost, "tp", "forward")[0] == pytest.approx(4 * once)
    assert held_s(cost, "tp", "backward")[0] == pytest.approx(4 * once)
    # The lookup is scattered; the head's input gathered, and its gradient scattered.
    assert held_s(cost, "tp", "forward", "embedding")[0] == pytest.approx(once)
    assert held_s(cost, "tp", "forward", "head")[0] == pytest.approx(once)
    assert held_s(cost, "tp", "backward", "head")[0] == pytest.approx(once)
    # Three doublings of the group, each of four collectives.
    late = comms_cost(
        setting(column(tp=8)), ideal(tensor_latency_s=1e-5), MEGATRON, MEGATRON.ladder
    )
    assert held_s(late, "tp", "forward")[0] == pytest.approx(4 * once + 12e-5)
    # Full recompute repeats them; what stays on one chip has none.
    again = cost.recompute_s()
    assert [seconds.tolist() for seconds in again.values()] == [
        [[0.0, 0.0, pytest.approx(4 * once)]]
    ]
    alone = comms_cost(setting(), ideal(tensor_latency_s=1e-5), MEGATRON, MEGATRON.ladder)
    assert not held_s(alone, "tp", "forward").any()


def test_a_parallel_block_has_half_of_the_tensor_collectives() -> None:
    two, one = (
        comms_cost(setting(column(tp=8), parallel_block=parallel), IDEAL, MEGATRON, MEGATRON.ladder)
        for parallel in (False, True)
    )
    for phase in ("forward", "backward"):
        assert held_s(one, "tp", phase)[0] == pytest.approx(held_s(two, "tp", phase)[0] / 2)
    assert held_s(one, "tp", "forward", "head") == held_s(two, "tp", "forward", "head")


def test_what_fsdp_gathers_and_reduces_in_a_step() -> None:
    """ZeRO-3 gathers each pass of each microbatch, ZeRO-2 once, and ZeRO-1 reduces once as well."""
    stack = dataclasses.replace(stack_by_name("torchtitan"), fsdp2=False)
    given = setting(column(batch_split=8, reshard=[1, 2, 3]), stack=stack)
    cost = comms_cost(given, IDEAL, stack, stack.ladder)
    params = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    # Weights in bf16, gradients in fp32, seven eighths of them over NVLink.
    for place, count in (("layer", params), ("embedding", 4096 * 128256)):
        gather, reduce = 2 * count * 7 / 8 / NVLINK, 4 * count * 7 / 8 / NVLINK
        forward = held_s(cost, "fsdp", "forward", place)
        backward = held_s(cost, "fsdp", "backward", place)
        once = held_s(cost, "fsdp", "once_backward", place)
        assert forward.tolist() == pytest.approx([0, 0, gather])
        assert backward.tolist() == pytest.approx([0, reduce, gather + reduce])
        assert once.tolist() == pytest.approx([gather + reduce, gather, 0])
    assert not held_s(cost, "fsdp", "once_forward").any()


def test_hooks_gather_and_reduce_with_each_microbatch_and_less_in_a_pipeline() -> None:
    """FSDP2 (docs/compilers.md)."""
    stack = stack_by_name("torchtitan")
    given = setting(column(batch_split=8, reshard=[2, 3, 2, 3], pp=[1, 1, 2, 2]), stack=stack)
    cost = comms_cost(given, IDEAL, stack, stack.ladder)
    params = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    gather, reduce = 2 * params * 7 / 8 / NVLINK, 4 * params * 7 / 8 / NVLINK
    forward = held_s(cost, "fsdp", "forward")
    assert forward.tolist() == pytest.approx([gather, gather, 0, gather])
    backward = held_s(cost, "fsdp", "backward")
    assert backward.tolist() == pytest.approx([reduce, gather + reduce, 0, 0])
    once = held_s(cost, "fsdp", "once_backward")
    assert once.tolist() == pytest.approx([0, 0, gather + reduce, gather + reduce])


@pytest.mark.parametrize(("each", "phase"), [(False, "once_backward"), (True, "backward")])
def test_replicas_reduce_what_each_rank_answers_for(each: bool, phase: str) -> None:
    stack = dataclasses.replace(stack_by_name("torchtitan"), reduces_each=each)
    given = setting(column(batch_split=8, dp=4), stack=stack)
    cost = comms_cost(given, ideal(network=0.5), stack, stack.ladder)
    params = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    expected = 2 * 3 / 4 * 4 * params / 8 / (0.5 * NETWORK)
    assert held_s(cost, "dp", phase)[0] == pytest.approx(expected)
    other = {"backward", "once_backward"} - {phase}
    assert not held_s(cost, "dp", *other).any()


def test_gradients_of_context_ranks_are_reduced_once_a_step() -> None:
    """Ranks of one sequence see different tokens: the same bytes as over as many FSDP ranks."""
    ring = comms_cost(
        setting(column(cp=[4, 1], batch_split=[1, 4], reshard=1)),
        IDEAL,
        MEGATRON,
        MEGATRON.ladder,
    )
    once = held_s(ring, "fsdp", "once_backward")
    params = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    assert once[0] == pytest.approx((2 + 2) * params * 3 / 4 / NVLINK)
    assert once[1] == once[0]
    # Keys and values of the whole sequence pass through each rank, and their gradients with them,
    # which take a fourth hop home.
    passed = 2 * 2 * 8192 * 1024 * 3 / 4 / NVLINK
    assert held_s(ring, "cp", "forward").tolist() == pytest.approx([passed, 0])
    assert held_s(ring, "cp", "backward").tolist() == pytest.approx([(3 + 4) / 3 * passed, 0])


def test_a_split_sequence_gathers_its_keys_and_values() -> None:
    cost = comms_cost(setting(column(seq_split=4, tp=2)), IDEAL, MEGATRON, MEGATRON.ladder)
    kv = 2 * 2 * 8192 * 512 * 3 / 4 / NVLINK
    assert held_s(cost, "seq", "forward")[0] == pytest.approx(kv)
    assert held_s(cost, "seq", "backward")[0] == pytest.approx(2 * kv)
    assert {k for f in cost.flows if f.kind == "seq" for k in f.seconds} == {SHARDS}


def test_stages_send_shards_of_activations_for_every_chunk() -> None:
    given = setting(column(tp=8, pp=[1, 4, 4], vpp=[1, 1, 2]))
    cost = comms_cost(given, ideal(network=0.8), MEGATRON, MEGATRON.ladder)
    boundary = 2 * 8192 * 4096 / 8 / (0.8 * NETWORK)
    assert cost.send_s.tolist() == pytest.approx([0.0, 2 * boundary, 4 * boundary])


def test_the_update_reads_and_writes_the_state_of_a_rank() -> None:
    given = setting(column(batch_split=[1, 8]))
    layer, table = update_s(given, IDEAL)
    # Twice 12 bytes of master weight and moments, two of gradient, and two of weight written.
    params = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    assert layer.tolist() == pytest.approx([28 * params / HBM, 28 * params / 8 / HBM])
    assert table[0] == pytest.approx(28 * 4096 * 128256 / HBM)
    cost = comms_cost(given, IDEAL, MEGATRON, MEGATRON.ladder)
    assert held_s(cost, "optimizer", "once_backward").tolist() == pytest.approx(layer.tolist())


def test_copies_of_fsdp_buffers_take_memory_bandwidth_in_both_passes() -> None:
    stack = stack_by_name("torchtitan")
    given = setting(column(batch_split=[1, 8]), stack=stack)
    cost = compute_cost(given, IDEAL, stack, stack.ladder)
    params = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    for seconds, share in ((cost.layer_forward_s, 0.25), (cost.layer_backward_s, 0.75)):
        assert seconds[1] - seconds[0] == pytest.approx(share * 18 * params / HBM)


def test_launches_are_a_floor_and_gaps_a_factor() -> None:
    tiny = setting(seq_len=8)
    constants = ideal(layer_floor_s=1e-3, overhead=1.1, blocking=1.2)
    cost = compute_cost(tiny, constants, MEGATRON, MEGATRON.ladder)
    assert cost.layer_forward_s[0] == pytest.approx(1.32e-3)
    assert cost.layer_backward_s[0] == pytest.approx(2.64e-3)
    large = setting(seq_len=65536)
    slow, plain = (compute_cost(large, c, MEGATRON, MEGATRON.ladder) for c in (constants, IDEAL))
    assert slow.layer_forward_s[0] == pytest.approx(1.32 * plain.layer_forward_s[0])
    assert slow.recompute_s[0].tolist() == pytest.approx((1.32 * plain.recompute_s[0]).tolist())


@pytest.mark.parametrize(("chip", "kind"), [("h100", "gpu"), ("v5p", "tpu")])
def test_a_stack_of_two_kinds_of_chip_overlaps_as_the_chip_does(chip: str, kind: str) -> None:
    """MaxText runs on both; what its profile hides is known of the problem's chip."""
    stack = stack_by_name("maxtext")
    problem, profile = problem_of(stack, cluster_of(chip, 8)), calibrated(stack)
    comms = profile.comms(problem, column(batch_split=8), profile.ladder)
    tensor, contention, reduce = shipped().overlap(stack, kind)
    forms = profile.overlap(comms.resources)
    assert forms.tolist() == [
        [1.0, tensor, contention, reduce, 1.0],
        [0.0, tensor, 1.0, 1.0, 1.0],
    ]
    assert shipped().overlap(stack, "gpu") != shipped().overlap(stack, "tpu")
    assert isinstance(profile.overlap, CalibratedOverlap)


# Fronts


def tiny(seed: int) -> tuple[Stack, Problem]:
    """A few wide layers on a few chips: two nodes of two or four H100, or a slice of v5p."""
    rng = np.random.default_rng(seed)

    def pick(*options: Any) -> Any:
        return options[int(rng.integers(len(options)))]

    stack = list(STACKS.values())[seed % len(STACKS)]
    many = len(stack.ladder) > 3
    if "tpu" in stack.chips:
        shape = pick((2, 2, 1), (1, 2, 2), (2, 2, 4))
        cluster = Cluster.build(load_chip("v5p"), topology=shape)
    else:
        chip = dataclasses.replace(load_chip("h100"), domain_chips=pick(2, 4), pod_chips=0)
        cluster = Cluster.build(chip, chips=4 if many else pick(4, 6))
    heads, groups = pick((4, 4), (8, 2), (6, 2))
    d_model = heads * 128 * pick(4, 8)
    model = Model(
        name=f"tiny-{seed}",
        n_layers=2 if many else pick(3, 4),
        d_model=d_model,
        d_ff=d_model * pick(2, 4),
        n_heads=heads,
        n_kv_heads=groups,
        d_head=128,
        vocab=pick(32_000, 128_000),
        gated_mlp=pick(True, False),
        tied_embeddings=pick(True, False),
        parallel_block=pick(True, False),
        norm=pick("rmsnorm", "layernorm"),
    )
    return stack, Problem(
        model=model,
        cluster=cluster,
        workload=Workload(
            global_batch_seqs=pick(2, 4, 4, 6),
            seq_len=pick(2048, 4096, 16384),
            precision=pick("bf16", "fp8") if cluster.chip.kind == "gpu" else "bf16",
        ),
        recipe=dataclasses.replace(stack.recipe, reshard=pick((1,), (3,), (1, 2, 3))),
    )


@functools.cache
def tiny_front(seed: int) -> autoshard.ParetoFront:
    stack, problem = tiny(seed)
    return autoshard.solve(
        problem.model,
        cluster=problem.cluster,
        global_batch_seqs=problem.workload.global_batch_seqs,
        seq_len=problem.workload.seq_len,
        precision=problem.workload.precision,
        recipe=problem.recipe,
        costs=f"calibrated/{stack.name}",
        points=0,
        gap=0.0,
    )


SEEDS = range(20)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_front_is_the_brute_force_front_point_for_point(seed: int) -> None:
    stack, problem = tiny(seed)
    whole = pareto(brute_front(problem, calibrated(stack)), 1e-7)
    expected = [(s, size) for s, size in whole if size <= problem.capacity_bytes]
    front = tiny_front(seed)
    found = [(point.step_time_s, point.memory_bytes) for point in front.points]
    assert len(found) == len(expected)
    assert np.allclose(found, expected, rtol=1e-6, atol=0.0)
    assert all(point.proven for point in front.points)


def test_the_small_problems_are_not_too_small() -> None:
    plans = [[point.plan for point in tiny_front(seed).points] for seed in SEEDS]
    assert sum(len(front) > 3 for front in plans) >= len(SEEDS) / 2
    for name in ("tp", "pp", "batch_split", "microbatches"):
        assert sum(any(getattr(p, name) > 1 for p in front) for front in plans) >= 5, name
    mixed = [any(len({r for s in p.remat for r in s}) > 1 for p in front) for front in plans]
    assert sum(mixed) >= 5


@pytest.mark.parametrize(
    ("name", "chip"), [(name, chip) for name, chip in ON_CHIPS if chip in ("h100", "v5p")]
)
def test_every_stack_answers_with_proven_plans_that_cost_what_is_said(name: str, chip: str) -> None:
    front = autoshard.solve(
        "llama3-8b",
        chip=chip,
        chips=16,
        global_batch_seqs=64,
        seq_len=4096,
        stack=name,
        points=3,
    )
    stack = stack_by_name(name)
    profile = calibrated(name)
    problem = dataclasses.replace(
        problem_of(stack, cluster_of(chip, 16), seqs=64), recipe=stack.recipe
    )
    assert front.problem["costs"]["profile"] == f"calibrated/{name}"
    assert front.problem["recipe"]["param_bytes"] == stack.recipe.param_bytes
    assert front.points
    for point in front.points:
        assert point.proven
        assert point.mfu < 1.0
        assert point.memory_bytes <= problem.capacity_bytes
        costs = {
            check(problem, profile, point.plan, layout)
            for layout in range(len(problem.cluster.layouts))
        } | {
            judge(problem, profile, mesh_of(point.plan, layout), rungs_of(point.plan, profile))
            for layout in range(len(problem.cluster.layouts))
        }
        said = (point.step_time_s, point.memory_bytes)
        assert any(cost == pytest.approx(said, rel=1e-9) for cost in costs)


# Names and errors


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_is_a_profile_of_its_own_name(name: str) -> None:
    profile = load_profile(stack=name)
    assert profile.models == calibrated(name).models
    assert profile.name == f"calibrated/{name}"
    assert profile.whole_ladder is STACKS[name].ladder
    assert profile.recipe == STACKS[name].recipe
    assert {model.role for model in profile.models} == {
        "compute",
        "comms",
        "overlap",
        "memory",
        "pipeline",
    }
    assert load_profile(f"calibrated/{name}").models == profile.models


@pytest.mark.parametrize(
    ("costs", "stack", "calibration", "message"),
    [
        ("textbook", "megatron", None, "stack = 'megatron' belongs to the calibrated costs"),
        ("textbook", None, "mine.toml", "calibration = 'mine.toml' belongs to the calibrated"),
        ("calibrated/megatron", "torchtitan", None, "stack = 'torchtitan' belongs to"),
        (None, 3, None, "stack must be the name of a stack, got 3"),
        (None, "", None, "stack must be the name of a stack, got ''"),
        (None, None, "", "calibration must be the path of a file, got ''"),
    ],
)
def test_costs_that_contradict_each_other_are_refused(
    costs: Any, stack: Any, calibration: Any, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        autoshard.solve(
            "llama3-8b", chip="h100", chips=8, costs=costs, stack=stack, calibration=calibration
        )


def test_a_stack_of_another_kind_of_chip_is_refused() -> None:
    with pytest.raises(SpecError, match="'calibrated/megatron' are for gpu, and v5p is a tpu"):
        autoshard.solve("llama3-8b", chip="v5p", chips=8, stack="megatron")


def test_calibrated_alone_is_the_usual_stack_of_the_chip() -> None:
    assert load_profile("calibrated", chip_kind="gpu").name == "calibrated/megatron"
    assert load_profile("calibrated", chip_kind="tpu").name == "calibrated/maxtext"


def test_a_stack_that_nobody_knows_is_named_beside_those_that_are_known() -> None:
    for ask in (
        lambda: calibrated("megatrom"),
        lambda: autoshard.solve("llama3-8b", chip="h100", chips=8, stack="megatrom"),
    ):
        with pytest.raises(UnknownName, match="megatron") as error:
            ask()
        assert "megatrom" in str(error.value)


@pytest.mark.parametrize("costs", [textbook(), calibrated("maxtext"), "calibrated/maxtext"])
def test_a_stack_beside_other_costs_is_refused(costs: str | Profile) -> None:
    with pytest.raises(SpecError, match=r"'megatron'.*calibrated"):
        autoshard.solve("llama3-8b", chip="h100", chips=8, costs=costs, stack="megatron")


def test_experts_are_refused_by_name() -> None:
    problem = problem_of(MEGATRON, cluster_of("h100"), n_experts=8)
    with pytest.raises(CostModelError, match=r"8 experts.*calibrated-compute"):
        calibrated(MEGATRON).check_covers(problem)


def test_a_recipe_of_ones_own_stands_before_that_of_the_stack() -> None:
    own = Recipe(param_bytes=4.0, grad_bytes=4.0, optimizer_bytes=8.0)
    front = autoshard.solve(
        "llama3-8b",
        chip="h100",
        chips=8,
        global_batch_seqs=8,
        stack="megatron",
        recipe=own,
        points=1,
    )
    assert front.problem["recipe"]["param_bytes"] == 4.0


def test_the_command_line_lists_every_stack() -> None:
    listed = json.loads(run("models", "--costs", "--json").stdout)["costs"]
    profiles = {row["name"]: row for row in listed if row["from"] == "autoshard"}
    assert set(profiles) == {"textbook", *(f"calibrated/{name}" for name in STACKS)}
    for name, stack in STACKS.items():
        assert stack.description in profiles[f"calibrated/{name}"]["about"]
        assert profiles[f"calibrated/{name}"]["models"]["comms"] == "calibrated-comms"
    table = run("models", "--costs").stdout
    assert all(f"calibrated/{name}" in table for name in STACKS)
