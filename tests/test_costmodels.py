"""The textbook cost models against numbers worked out by hand, and any cost model's contract."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from oracle import columns, small_instance

from autoshard.catalog import load_chip
from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.costs import CommsCost, MemoryCost
from autoshard.costmodels.errors import CostModelError, SpecError
from autoshard.costmodels.model import Model
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import CostModel, Profile
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.remat import TEXTBOOK_LADDER, Rung
from autoshard.costmodels.roofline import matmul_s, tree_gather_s
from autoshard.costmodels.textbook import textbook
from autoshard.costmodels.textbook_comms import TextbookComms
from autoshard.costmodels.textbook_compute import TextbookCompute
from autoshard.costmodels.textbook_memory import TextbookMemory
from autoshard.costmodels.textbook_overlap import TextbookOverlap
from autoshard.costmodels.workload import Workload
from autoshard.search.front import Options, solve_front
from autoshard.search.space import expand, meshes

# One small problem, in round numbers. Bytes of one element: 2.
D, F, N, K, H, LAYERS, VOCAB, T = 64, 256, 8, 2, 8, 2, 512, 32
PEAK, ICI, DCN = 1e12, 1e9, 1e7

MODEL = Model(
    name="hand", n_layers=LAYERS, d_model=D, d_ff=F, n_heads=N, n_kv_heads=K, d_head=H, vocab=VOCAB
)
TORUS = Chip(
    name="torus",
    kind="tpu",
    flops_per_s={"bf16": PEAK},
    hbm_bytes=2**30,
    hbm_bytes_per_s=1e18,
    pod_axes=(8, 8),
    wrap="always",
    ici_bytes_per_s=ICI,
    dcn_bytes_per_s=DCN,
)
NVLINK, SCALE_OUT = 4e9, 1e9
TREE = Chip(
    name="tree",
    kind="gpu",
    flops_per_s={"bf16": PEAK},
    hbm_bytes=2**30,
    hbm_bytes_per_s=1e18,
    domain_chips=4,
    domain_bytes_per_s=NVLINK,
    scale_out_bytes_per_s=SCALE_OUT,
)
#: Weights of one layer: q and output D x NH each, k and v D x KH each, three MLP matrices D x F.
LAYER_PARAMS = D * (2 * N * H + 2 * K * H + 3 * F)


def problem(
    chip: Chip = TORUS,
    topology: tuple[int, ...] | None = (4, 4),
    *,
    pods: int = 1,
    model: Model = MODEL,
    recipe: Recipe | None = None,
) -> Problem:
    """16 chips: a torus of 4 x 4, or four domains of four."""
    pod = math.prod(topology or (16,))
    cluster = Cluster.build(chip, chips=pod * pods, pods=pods, topology=topology)
    return Problem(
        model=model,
        cluster=cluster,
        workload=Workload(global_batch_seqs=32, seq_len=T),
        recipe=recipe or Recipe(),
    )


def tree(**options: Any) -> Problem:
    """The same question on the switched tree."""
    return problem(TREE, None, **options)


def mesh(**degrees: int) -> Candidates:
    """One candidate: a single chip with one sequence, but for the degrees given."""
    row = dict.fromkeys(COLUMNS, 1) | {"reshard": 3, "layout": 0} | degrees
    return columns([row])


def seconds(comms: CommsCost, kind: str, phase: str, place: str = "layer") -> dict[str, Any]:
    """Seconds of one flow by resource: numbers, or a list over rungs."""
    found = [f for f in comms.flows if (f.kind, f.phase, f.place) == (kind, phase, place)]
    assert len(found) <= 1
    held = found[0].seconds if found else {}
    return {comms.resources[k]: column[0].tolist() for k, column in held.items()}


def comms_of(asked: Problem, layer: str = "full", **degrees: int) -> CommsCost:
    """All flows of one candidate."""
    return TextbookComms(layer=layer)(asked, mesh(**degrees), TEXTBOOK_LADDER)


def same(found: dict[str, Any], expected: dict[str, float]) -> None:
    """Equal up to rounding, resource by resource; idle resources may be left out."""
    held = {k: v for k, v in found.items() if np.any(v)}
    assert held == {k: pytest.approx(v, rel=1e-12) for k, v in expected.items()}


# Compute: transformers.md


def test_a_layer_takes_two_flops_for_each_parameter_and_token_and_half_of_the_dot_products() -> (
    None
):
    cost = TextbookCompute()(problem(), mesh(), TEXTBOOK_LADDER)
    matmuls = 2 * T * LAYER_PARAMS
    dots = 4 * T * T * N * H / 2  # Q times K and weights times V, and causal
    assert cost.layer_forward_s[0] == pytest.approx((matmuls + dots) / PEAK, rel=1e-12)
    assert cost.layer_backward_s[0] == pytest.approx(2 * (matmuls + dots) / PEAK, rel=1e-12)
    assert cost.head_forward_s[0] == pytest.approx(2 * T * D * VOCAB / PEAK, rel=1e-12)
    assert cost.head_backward_s[0] == pytest.approx(4 * T * D * VOCAB / PEAK, rel=1e-12)
    assert cost.embedding_forward_s[0] == cost.embedding_backward_s[0] == 0.0


def test_a_two_matrix_layer_has_no_attention_and_no_head() -> None:
    cost = TextbookCompute(layer="mlp2")(problem(), mesh(), TEXTBOOK_LADDER)
    assert cost.layer_forward_s[0] == pytest.approx(4 * T * D * F / PEAK, rel=1e-12)
    assert cost.head_forward_s[0] == 0.0


def test_each_rung_runs_again_what_it_does_not_keep() -> None:
    query, key, mlp = 2 * T * D * N * H, 2 * T * D * K * H, 2 * T * D * F
    dots = 2 * T * T * N * H
    everything = 2 * query + 2 * key + dots + 3 * mlp
    expected = {
        "save_all": 0,
        "save_matmuls": dots,
        "checkpoints_4": 2 * key + 2 * mlp,  # the gate and the up projection
        "checkpoints_2": query + 2 * key + dots + 2 * mlp,
        "checkpoints_1": everything,
    }
    cost = TextbookCompute()(problem(), mesh(), TEXTBOOK_LADDER)
    for index, rung in enumerate(TEXTBOOK_LADDER):
        assert cost.recompute_s[0, index] == pytest.approx(expected[rung.name] / PEAK, rel=1e-12)
    assert cost.recompute_s[0, -1] == pytest.approx(cost.layer_forward_s[0], rel=1e-12)


def test_with_few_tokens_loading_the_weights_binds() -> None:
    """roofline.md: one token, 2 D F FLOPs, and D + D F + F numbers of two bytes to move."""
    few, many = (
        matmul_s(
            np.array([tokens]),
            float(D),
            float(F),
            element_bytes=2,
            flops_per_s=PEAK,
            hbm_bytes_per_s=1e10,
        )[0]
        for tokens in (1.0, 1e6)
    )
    assert few == pytest.approx(2 * (D + D * F + F) / 1e10, rel=1e-12)
    assert few > 2 * D * F / PEAK
    slow_memory = 2 * (1e6 * D + D * F + 1e6 * F) / 1e10
    assert many == pytest.approx(max(2 * 1e6 * D * F / PEAK, slow_memory), rel=1e-12)


def test_tensor_parallel_ranks_beyond_the_kv_heads_each_compute_one_head() -> None:
    """tp = 8 over 2 KV heads: keys and values are D x H on every rank, not D x KH / 8."""
    cost = TextbookCompute()(problem(), mesh(tp=8), TEXTBOOK_LADDER)
    matmuls = 2 * T * D * (2 * N * H / 8 + 2 * H + 3 * F / 8)
    dots = 2 * T * T * N * H / 8
    assert cost.layer_forward_s[0] == pytest.approx((matmuls + dots) / PEAK, rel=1e-12)


# Communication on a torus: sharding.md, training.md


def test_fsdp_gathers_weights_twice_and_scatters_gradients_once() -> None:
    """Over two wrapped axes of 1 GB/s each: V / W however many chips."""
    comms = comms_of(problem(), batch_split=16)
    gather = 2 * LAYER_PARAMS / (2 * ICI)
    same(seconds(comms, "fsdp", "forward"), {"ici data axes": gather})
    same(seconds(comms, "fsdp", "backward"), {"ici data axes": 2 * gather})
    for place in ("embedding", "head"):
        table = 2 * D * VOCAB / (2 * ICI)
        same(seconds(comms, "fsdp", "forward", place), {"ici data axes": table})


def test_without_wrap_around_half_of_the_bandwidth_moves_all_but_ones_own_share() -> None:
    comms = comms_of(problem(dataclasses.replace(TORUS, wrap="full")), batch_split=16)
    line = 2 * LAYER_PARAMS * (15 / 16) / (2 * ICI / 2)
    same(seconds(comms, "fsdp", "forward"), {"ici data axes": line})


def test_the_two_matrix_layer_moves_the_volumes_of_training_md() -> None:
    """4 D F bytes forward and 8 D F backward over FSDP; 4 B D and 6 B D over TP."""
    layout = 1  # one axis each
    comms = comms_of(problem(), layer="mlp2", batch_split=4, tp=4, layout=layout)
    weights, tokens = 4 * D * F / 4, T  # of one tensor-parallel rank
    same(seconds(comms, "fsdp", "forward"), {"ici data axes": weights / ICI})
    same(seconds(comms, "fsdp", "backward"), {"ici data axes": 2 * weights / ICI})
    same(seconds(comms, "tp", "forward"), {"ici tensor axes": 4 * tokens * D / ICI})
    same(seconds(comms, "tp", "backward"), {"ici tensor axes": 6 * tokens * D / ICI})


def test_tensor_parallelism_gathers_and_scatters_in_each_of_two_blocks() -> None:
    comms = comms_of(problem(), tp=4, batch_split=4, layout=1)
    once = 2 * T * D / ICI  # one gather of the activations
    same(seconds(comms, "tp", "forward"), {"ici tensor axes": 2 * 2 * once})
    same(seconds(comms, "tp", "backward"), {"ici tensor axes": 2 * 3 * once})
    same(seconds(comms, "tp", "forward", "embedding"), {"ici tensor axes": once})
    same(seconds(comms, "tp", "forward", "head"), {"ici tensor axes": once})
    same(seconds(comms, "tp", "backward", "head"), {"ici tensor axes": 2 * once})


def test_only_block_remat_repeats_collectives_one_scatter_a_block() -> None:
    comms = comms_of(problem(), tp=4, batch_split=4, layout=1)
    once = 2 * T * D / ICI
    again = seconds(comms, "tp", "recompute")["ici tensor axes"]
    assert again == pytest.approx([0.0, 0.0, 0.0, 0.0, 2 * once])


def test_a_parallel_block_communicates_once() -> None:
    parallel = problem(model=dataclasses.replace(MODEL, parallel_block=True))
    two = seconds(comms_of(problem(), tp=4, layout=1), "tp", "forward")
    one = seconds(comms_of(parallel, tp=4, layout=1), "tp", "forward")
    same(one, {k: s / 2 for k, s in two.items()})


def test_a_split_sequence_gathers_its_keys_and_values() -> None:
    """K H numbers each of keys and values for all T tokens; backward, gathers and scatters."""
    comms = comms_of(problem(), seq_split=4)
    gather = 2 * 2 * K * H * T / (2 * ICI)
    same(seconds(comms, "seq", "forward"), {"ici data axes": gather})
    same(seconds(comms, "seq", "backward"), {"ici data axes": 2 * gather})


def test_ring_attention_passes_all_other_blocks_of_keys_and_values_one_way() -> None:
    comms = comms_of(problem(), cp=4)
    block = 2 * 2 * K * H * (T / 4)
    same(seconds(comms, "cp", "forward"), {"ici data axes": 3 * block / (2 * ICI / 2)})
    backward = [f for f in comms.flows if (f.kind, f.phase, f.place) == ("cp", "backward", "layer")]
    reduced = 2 * 2 * LAYER_PARAMS / (2 * ICI)  # an all-reduce: weights are replicated over cp
    total = sum(f.seconds[0][0] for f in backward)
    # Blocks pass all other ranks again; their gradients take a fourth hop, home.
    assert total == pytest.approx((3 + 4) * block / ICI + reduced, rel=1e-12)


def test_pods_reduce_gradients_once_a_step_over_dcn() -> None:
    """training.md: 8 D F / (chips of a pod * W) for two matrices."""
    comms = comms_of(problem(pods=2), layer="mlp2", dp=2, batch_split=16, pods=2)
    same(seconds(comms, "dp", "once_backward"), {"dcn": 8 * D * F / (16 * DCN)})
    alone = comms_of(problem(pods=2), layer="mlp2", batch_split=16)
    assert not seconds(alone, "dp", "once_backward")


def test_a_stage_sends_activations_on_and_gradients_back_for_each_chunk() -> None:
    """One link, one way: half of an axis."""
    comms = comms_of(problem(), pp=2, vpp=2, microbatches=2, tp=4, layout=1)
    assert comms.send_s[0] == pytest.approx(2 * 2 * 2 * T * D / 4 / (ICI / 2), rel=1e-12)
    assert comms_of(problem()).send_s[0] == 0.0


def test_zero_2_gathers_once_a_step_and_zero_1_reduces_once_too() -> None:
    asked = problem(recipe=Recipe(reshard=(1, 2, 3)))
    gather = 2 * LAYER_PARAMS / (2 * ICI)
    expected = {  # forward, backward, once before the first pass, once after the last
        3: (gather, 2 * gather, 0.0, 0.0),
        2: (0.0, gather, gather, 0.0),
        1: (0.0, 0.0, gather, gather),
    }
    for reshard, costs in expected.items():
        comms = comms_of(asked, batch_split=16, reshard=reshard)
        phases = ("forward", "backward", "once_forward", "once_backward")
        for phase, cost in zip(phases, costs, strict=True):
            same(seconds(comms, "fsdp", phase), {"ici data axes": cost} if cost else {})


def test_one_axis_is_shared_by_both_sides() -> None:
    comms = comms_of(problem(topology=(8,)), tp=4, batch_split=2)
    assert comms.resources[0] == "ici"
    same(seconds(comms, "tp", "forward"), {"ici": 4 * 2 * T * D / ICI})


# Communication on a switched tree: gpus.md


def test_a_gather_over_a_tree_takes_each_levels_share() -> None:
    """16 ranks, 4 a domain: inside, V 3/4 over NVLink; between, V 3/4 over four links at once."""
    comms = comms_of(tree(), batch_split=16)
    volume = 2 * LAYER_PARAMS
    same(
        seconds(comms, "fsdp", "forward"),
        {"nvlink": volume * 3 / 4 / NVLINK, "scale-out": volume * 3 / 4 / (4 * SCALE_OUT)},
    )


def test_tensor_parallelism_takes_the_inside_and_leaves_fsdp_the_outside() -> None:
    comms = comms_of(tree(), tp=4, batch_split=4)
    same(seconds(comms, "tp", "forward"), {"nvlink": 4 * (2 * T * D) * 3 / 4 / NVLINK})
    volume = 2 * LAYER_PARAMS_OF_4 * 3 / 4
    same(seconds(comms, "fsdp", "forward"), {"scale-out": volume / SCALE_OUT})


#: One of four ranks: a quarter of everything, but a whole one of the two KV heads.
LAYER_PARAMS_OF_4 = D * (2 * N * H / 4 + 2 * H + 3 * F / 4)


def test_a_ring_runs_at_the_speed_of_its_slowest_hop() -> None:
    block = 2 * 2 * K * H * (T / 4)
    inside, across = comms_of(tree(), cp=4), comms_of(tree(), tp=2, cp=4)
    same(seconds(inside, "cp", "forward"), {"nvlink": 3 * block / NVLINK})
    half = block / 2  # one KV head on each rank
    same(seconds(across, "cp", "forward"), {"scale-out": 3 * half / SCALE_OUT})


def test_replicas_of_a_tree_reduce_over_the_links_between_them() -> None:
    """Two replicas of 8 chips: an all-reduce is a scatter and a gather of (2 - 1) / 2."""
    comms = comms_of(tree(), dp=2, batch_split=8)
    shard = 2 * LAYER_PARAMS / 8
    same(seconds(comms, "dp", "once_backward"), {"scale-out": 2 * shard / 2 / SCALE_OUT})


def test_ranks_that_do_not_fill_domains_share_one_only_where_the_sizes_divide() -> None:
    """Groups of 3 over domains of 4: some group has its ranks on different domains."""
    levels = tree().cluster.levels
    one = np.array([1])
    assert [s[0] for s in tree_gather_s(np.array([12.0]), 3 * one, one, levels)] == pytest.approx(
        [0.0, 12.0 * 2 / 3 / SCALE_OUT]
    )


# Memory: applied-training.md


def memory_of(asked: Problem, **degrees: int) -> MemoryCost:
    """The memory of one candidate."""
    return TextbookMemory()(asked, mesh(**degrees), TEXTBOOK_LADDER)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_one_chip_holds_every_parameter_once(tied: bool, gated: bool, norm: str) -> None:
    model = dataclasses.replace(
        MODEL,
        tied_embeddings=tied,
        gated_mlp=gated,
        norm=norm,
        linear_bias=True,
        n_positions=T,
    )
    cost = memory_of(problem(model=model))
    state = LAYERS * cost.layer_state_bytes + cost.embedding_state_bytes + cost.head_state_bytes
    assert state[0] == pytest.approx(10 * model.total_params, rel=1e-12)


def test_a_tied_table_is_held_on_both_end_stages() -> None:
    tied = problem(model=dataclasses.replace(MODEL, tied_embeddings=True))
    table = 10 * D * VOCAB
    assert memory_of(tied).head_state_bytes[0] == 0.0
    assert memory_of(tied, pp=2).head_state_bytes[0] == table
    assert memory_of(problem()).head_state_bytes[0] == table
    assert memory_of(tied, pp=2).embedding_state_bytes[0] == table


def test_each_zero_stage_shards_what_it_says() -> None:
    """2 bytes of weight, 4 of gradient and 8 of optimizer a parameter, over 4 shards."""
    asked = problem(recipe=Recipe(grad_bytes=4.0, reshard=(1, 2, 3)))
    table = D * VOCAB
    expected = {3: (2 + 4 + 8) / 4, 2: 2 + (4 + 8) / 4, 1: 2 + 4 + 8 / 4}
    for reshard, each in expected.items():
        cost = memory_of(asked, batch_split=2, seq_split=2, reshard=reshard)
        assert cost.embedding_state_bytes[0] == each * table
        assert memory_of(asked, reshard=reshard).embedding_state_bytes[0] == 14 * table


def test_replicated_kv_heads_cost_memory() -> None:
    small = (2 * LAYERS + 1) * D / LAYERS  # norms, on every rank
    assert memory_of(problem(), tp=4).layer_state_bytes[0] == pytest.approx(
        10 * (LAYER_PARAMS_OF_4 + small), rel=1e-12
    )


def test_each_rung_saves_so_many_activations_of_a_ranks_share_of_the_tokens() -> None:
    cost = memory_of(problem(), tp=2, seq_split=2, cp=2, micro_batch_size=3)
    tensor = 2 * (3 * T / 4) * D / 2
    assert cost.saved_bytes[0].tolist() == [20 * tensor, 7 * tensor, 4 * tensor, 2 * tensor, tensor]


# What does not change, whatever the mesh


def priced(seed: int) -> tuple[Problem, Profile, Candidates]:
    """A small problem with every row of its space."""
    instance = small_instance(seed)
    table = expand(instance.problem, meshes(instance.problem))[0]
    return instance.problem, instance.profile, table


@pytest.mark.parametrize("seed", range(30))
def test_all_chips_together_do_the_work_of_the_step(seed: int) -> None:
    """6 P T and the dot products, where memory does not bind and no KV head is replicated."""
    asked, profile, table = priced(seed)
    fast = dataclasses.replace(asked.cluster.chip, hbm_bytes_per_s=1e30)
    asked = dataclasses.replace(asked, cluster=dataclasses.replace(asked.cluster, chip=fast))
    table = table.take(table.tp <= asked.model.n_kv_heads)
    cost = profile.compute(asked, table, profile.ladder)
    model, tokens = asked.model, asked.workload.global_batch_tokens
    params = model.mlp_params + model.attention_params + model.vocab * model.d_model
    dots = 6 * tokens * asked.workload.seq_len * model.d_attention * model.n_layers
    chip_s = model.n_layers * (cost.layer_forward_s + cost.layer_backward_s)
    chip_s += cost.head_forward_s + cost.head_backward_s
    total = chip_s * table.microbatches * table.chips_used / table.pp
    assert total == pytest.approx((6 * params * tokens + dots) / asked.peak_flops_per_s, rel=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_twice_the_shards_hold_half_the_state_and_the_same_activations(seed: int) -> None:
    asked, profile, table = priced(seed)
    table = table.replace(reshard=np.full(len(table), 3))
    once = profile.memory(asked, table, profile.ladder)
    twice = profile.memory(asked, table.replace(batch_split=2 * table.batch_split), profile.ladder)
    for name in ("layer_state_bytes", "embedding_state_bytes", "head_state_bytes"):
        assert getattr(twice, name) == pytest.approx(getattr(once, name) / 2, rel=1e-12)
    assert (twice.saved_bytes == once.saved_bytes).all()


@pytest.mark.parametrize("seed", range(30))
def test_a_longer_microbatch_saves_and_takes_in_proportion(seed: int) -> None:
    asked, profile, table = priced(seed)
    longer = table.replace(micro_batch_size=3 * table.micro_batch_size)
    one, three = (profile.memory(asked, t, profile.ladder) for t in (table, longer))
    assert three.saved_bytes == pytest.approx(3 * one.saved_bytes, rel=1e-12)
    assert (three.layer_state_bytes == one.layer_state_bytes).all()
    once, thrice = (profile.comms(asked, t, profile.ladder) for t in (table, longer))
    assert thrice.send_s == pytest.approx(3 * once.send_s, rel=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_a_lower_zero_stage_holds_more_and_sends_less_in_a_microbatch(seed: int) -> None:
    asked, profile, table = priced(seed)
    costs = [
        profile.price(asked, table.replace(reshard=np.full(len(table), stage)))
        for stage in (1, 2, 3)
    ]
    for low, high in itertools.pairwise(costs):
        for place in ("layer", "embedding", "head"):
            assert (low.state_bytes[place] >= high.state_bytes[place] * (1 - 1e-12)).all()
            assert (low.forward_s[place] <= high.forward_s[place]).all()
            assert (low.backward_s[place] <= high.backward_s[place]).all()


# Overlap, and the contract of a cost model


def test_max_lets_everything_work_at_once_and_sum_takes_networks_in_turn() -> None:
    compute_and_networks = np.array([3.0, 1.0, 2.5])
    resources = ("a", "b")
    assert (TextbookOverlap(rule="max")(resources) @ compute_and_networks).max() == 3.0
    assert (TextbookOverlap(rule="sum")(resources) @ compute_and_networks).max() == 3.5


def test_experts_are_refused_by_name() -> None:
    model = dataclasses.replace(MODEL, name="sparse", n_experts=8, experts_per_token=2)
    with pytest.raises(CostModelError, match=r"sparse has 8 experts.*'textbook-compute'"):
        textbook().check_covers(problem(model=model))
    with pytest.raises(CostModelError, match="experts"):
        solve_front(problem(model=model), textbook(), Options())


@dataclass(frozen=True)
class Broken:
    """The textbook's memory model with one column exchanged."""

    column: str
    value: object
    name: str = "broken-memory"
    role: str = "memory"
    covers: frozenset[str] = frozenset({"dense"})

    def __call__(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> MemoryCost:
        whole = TextbookMemory()(problem, candidates, ladder)
        return dataclasses.replace(whole, **{self.column: self.value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([np.nan]), "NaN or infinite"),
        (np.array([np.inf]), "NaN or infinite"),
        (np.array([-1.0]), "negative"),
        (np.array([1.0, 2.0]), "shape"),
        (np.array(1.0), "shape"),
        (1.0, "float"),
    ],
)
@pytest.mark.parametrize("column", ["fixed_bytes", "layer_state_bytes"])
def test_a_cost_that_is_not_a_cost_is_refused_with_the_models_name(
    value: object, words: str, column: str
) -> None:
    profile = textbook().replace(Broken(column, value))
    with pytest.raises(CostModelError, match=rf"'broken-memory': {column} .*{words}"):
        profile.price(problem(), mesh())


def test_a_flow_that_is_not_a_cost_is_refused_with_the_models_name() -> None:
    @dataclass(frozen=True)
    class Odd(TextbookComms):
        name: str = "odd-comms"

        def __call__(
            self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
        ) -> CommsCost:
            whole = super().__call__(problem, candidates, ladder)
            flow = dataclasses.replace(whole.flows[0], seconds={0: np.array([np.nan])})
            return dataclasses.replace(whole, flows=(flow,))

    with pytest.raises(CostModelError, match=r"'odd-comms'.*fsdp forward layer.*NaN"):
        textbook().replace(Odd()).price(problem(), mesh(batch_split=16))


def test_replace_swaps_one_role_and_says_so() -> None:
    plain, cheap = textbook(), Broken("fixed_bytes", np.zeros(1))
    mixed = plain.replace(cheap)
    assert mixed.memory is cheap
    assert (mixed.compute, mixed.comms, mixed.overlap, mixed.pipeline) == (
        plain.compute,
        plain.comms,
        plain.overlap,
        plain.pipeline,
    )
    assert mixed.name == "textbook+broken-memory"
    assert plain.replace(cheap, name="mine").name == "mine"
    assert plain.memory == TextbookMemory()


def test_replace_refuses_what_is_not_a_cost_model() -> None:
    with pytest.raises(CostModelError, match="not a cost model"):
        textbook().replace(print)
    with pytest.raises(CostModelError, match="role"):
        textbook().replace(Broken("fixed_bytes", np.zeros(1), role="weather"))


def test_every_textbook_model_says_what_it_is() -> None:
    profile = textbook()
    for role, model in zip(
        ("compute", "comms", "overlap", "memory", "pipeline"), profile.models, strict=True
    ):
        assert isinstance(model, CostModel)
        assert model.role == role
        assert "dense" in model.covers


def test_gpu_pods_that_split_an_nvlink_domain_are_refused_with_the_nearest_size() -> None:
    """24 chips in 2 pods of 12 would cut a domain of 8: the tree's levels must nest."""
    with pytest.raises(SpecError, match="not whole domains of 8; 16 chips in 2 pods would be"):
        Cluster.build(load_chip("h100"), chips=24, pods=2)
