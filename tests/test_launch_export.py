"""Plans in the words of frameworks: what each says, what it refuses, and what it notes."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import launch_plans
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_plans import solved

import autoshard
from autoshard.catalog import load_model
from autoshard.costmodels.errors import SpecError, UnknownName
from autoshard.costmodels.layer_tensors import repeated_operations
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.remat import TEXTBOOK_LADDER
from autoshard.costmodels.stack import STACKS
from autoshard.launch.checking import textbook_rungs
from autoshard.launch.launch import TARGETS
from autoshard.launch.maxtext import CUSTOM
from autoshard.launch.megatron import layout_of
from autoshard.launch.read_megatron_stages import _laid_out
from autoshard.launch.read_plan import ReadPlan
from autoshard.launch.reading import read_maxtext, read_megatron
from autoshard.launch.stages import chunk_layers, stage_layers
from autoshard.options import LAUNCHES
from autoshard.solving import solve

#: 70B, but so wide that twelve, 96 or 49 x 32 shards cut it evenly, as MaxText wants them.
DIVISIBLE = dataclasses.replace(load_model("llama3-70b"), name="wide", d_model=3 * 49 * 64)


def flags(words: list[str]) -> dict[str, str]:
    """Flags with their value, empty where a flag stands alone."""
    said: dict[str, str] = {}
    for word in words:
        if word.startswith("--"):
            flag = word
            said[flag] = ""
        else:
            said[flag] = word
    return said


# Megatron


def test_megatron_arguments_of_405b_on_uneven_stages() -> None:
    plan = launch_plans.megatron("uneven stages")
    assert flags(plan.to_megatron()) == {
        "--num-layers": "126",
        "--seq-length": "4096",
        "--tensor-model-parallel-size": "8",
        "--sequence-parallel": "",
        "--pipeline-model-parallel-size": "16",
        "--pipeline-model-parallel-layout": "Et*7|(t*8|)*14t*7L",
        "--context-parallel-size": "1",
        "--micro-batch-size": "1",
        "--global-batch-size": "128",
        "--use-distributed-optimizer": "",
        "--overlap-grad-reduce": "",
        "--overlap-param-gather": "",
        "--bf16": "",
    }
    made = plan.launch("megatron")
    assert made.environment == {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert made.chips == 512
    assert "    --pipeline-model-parallel-layout 'Et*7|(t*8|)*14t*7L'\n" in made.text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ring attention", {"--context-parallel-size": "4", "--cp-comm-type": "p2p"}),
        ("gathered context", {"--context-parallel-size": "4", "--cp-comm-type": "all_gather"}),
        ("virtual stages", {"--num-virtual-stages-per-pipeline-rank": "5"}),
        ("zero-2", {"--data-parallel-sharding-strategy": "optim_grads"}),
        ("zero-3", {"--data-parallel-sharding-strategy": "optim_grads_params"}),
        ("zero-3", {"--use-megatron-fsdp": "", "--ckpt-format": "fsdp_dtensor"}),
        ("replicas of zero-1", {"--num-distributed-optimizer-instances": "2"}),
        ("selective", {"--recompute-modules": "core_attn"}),
        ("full", {"--recompute-method": "uniform", "--recompute-num-layers": "1"}),
        (
            "some layers of each chunk",
            {"--recompute-method": "block", "--recompute-num-layers": "3"},
        ),
        ("all layers of short chunks", {"--recompute-num-layers": "40"}),
        ("fp8", {"--fp8-format": "hybrid", "--bf16": ""}),
    ],
)
def test_megatron_says(name: str, expected: dict[str, str]) -> None:
    said = flags(launch_plans.megatron(name).to_megatron())
    assert expected.items() <= said.items()


def test_megatron_fsdp_leaves_connections_unset() -> None:
    made = launch_plans.megatron("replicas of zero-3").launch("megatron")
    assert made.environment == {}
    assert any("leave it unset" in note for note in made.notes)


@given(st.lists(st.integers(0, 12), min_size=2, max_size=64))
def test_a_layout_reads_back(chunks: list[int]) -> None:
    read = _laid_out(layout_of(chunks), sum(chunks), 1, ReadPlan(framework="megatron"))
    assert (read.vpp, read.layers_per_stage) == (len(chunks), (sum(chunks),))
    deep = _laid_out(layout_of(chunks), None, len(chunks), ReadPlan(framework="megatron"))
    assert deep.layers_per_stage == tuple(chunks)


@given(
    st.integers(1, 5).flatmap(
        lambda vpp: st.tuples(st.just(vpp), st.lists(st.integers(vpp, 20), min_size=2, max_size=9))
    )
)
def test_chunks_have_the_layers_of_their_stages(pair: tuple[int, list[int]]) -> None:
    vpp, layers = pair
    plan = Plan(
        pp=len(layers),
        vpp=vpp,
        layers_per_stage=tuple(layers),
        remat=tuple({"none": count} for count in layers),
    )
    chunks = chunk_layers(plan)
    assert stage_layers(chunks, plan.pp) == plan.layers_per_stage
    for stage in range(plan.pp):
        mine = chunks[stage :: plan.pp]
        assert max(mine) - min(mine) <= 1
        # The embedding is in the first chunk of all, the head in the last.
        assert mine == sorted(mine, reverse=stage > 0)


# Bridge


def test_bridge_unsets_what_the_recipe_may_have() -> None:
    said = launch_plans.megatron("even pipeline").to_nemo()
    assert "model.tensor_model_parallel_size=4" in said
    assert "model.virtual_pipeline_model_parallel_size=null" in said
    assert "model.pipeline_model_parallel_layout=null" in said
    assert "model.recompute_granularity=null" in said
    assert "dist.use_megatron_fsdp=false" in said
    assert len({word.partition("=")[0] for word in said}) == len(said)


def test_bridge_has_megatrons_values() -> None:
    said = launch_plans.megatron("uneven virtual stages").to_nemo()
    assert "model.virtual_pipeline_model_parallel_size=8" in said
    assert "model.pipeline_model_parallel_layout='E|(t|)*126L'" in said
    assert "train.global_batch_size=32" in said
    assert "mixed_precision=bf16_mixed" in said


# torchtitan


def test_torchtitan_lists_every_module_once() -> None:
    plan = launch_plans.torchtitan("virtual stages")
    values = plan.to_torchtitan()
    parts = values["parallelism"]["module_fqns_per_model_part"]
    assert len(parts) == 32
    names = [name for part in parts for name in part]
    assert names == ["tok_embeddings", *(f"layers.{n}" for n in range(126)), "norm", "lm_head"]
    assert values["parallelism"]["pipeline_parallel_schedule"] == "Interleaved1F1B"
    assert values["training"]["local_batch_size"] == 32
    assert values["activation_checkpoint"] == "FullAC"


def test_torchtitan_accumulates_without_a_pipeline() -> None:
    values = launch_plans.torchtitan("fsdp").to_torchtitan()
    assert values["training"] == {
        "local_batch_size": 1,
        "global_batch_size": 16,
        "seq_len": 4096,
    }


@pytest.mark.parametrize("name", launch_plans.TORCHTITAN)
def test_the_recipe_of_torchtitan_is_python(name: str) -> None:
    made = launch_plans.torchtitan(name).launch("torchtitan")
    compile(made.text, "recipe.py", "exec")
    assert "def plan() -> Trainer.Config:" in made.text


def test_a_model_that_torchtitan_has_not_gets_half_a_recipe() -> None:
    plan = solved("llama2-13b", stack="torchtitan", reshard=3, layers=(40,), batch_split=8)
    made = plan.launch("torchtitan")
    assert "def plan(" not in made.text
    assert any("no stock config of llama2-13b" in note for note in made.notes)


# MaxText


def test_maxtext_on_pods() -> None:
    values = launch_plans.maxtext("pods").to_maxtext()
    assert values["dcn_data_parallelism"] == 2
    assert values["ici_data_parallelism"] == 1
    assert values["ici_fsdp_parallelism"] == 64
    assert values["per_device_batch_size"] == 0.125


def test_maxtext_drops_sequences_where_it_has_more_devices() -> None:
    said = launch_plans.maxtext("pods").launch("maxtext").notes
    wanted = "of every 1,024 sequences that MaxText loads it trains on the first 128"
    assert any(wanted in note for note in said)
    assert not any("drops" in note for note in launch_plans.maxtext("fsdp").launch("maxtext").notes)


def test_a_model_has_the_name_that_maxtext_takes() -> None:
    plan = launch_plans.solved("llama3-405b", layers=(126,), remat="full", **launch_plans.SHARED)
    assert plan.to_maxtext()["model_name"] == "llama3.1-405b"


def test_a_fraction_of_a_sequence_is_not_cut_off() -> None:
    # 1 / 3 of a sequence on 96 chips: int(96 * (1 / 3)) could be 31.
    for tp, split in ((1, 3), (8, 3), (2, 7), (1, 49)):
        plan = solved(
            **launch_plans.SHARED,
            model=DIVISIBLE,
            seq_len=2 * 3 * 49 * 8 * 8,
            batch_split=32,
            tp=tp,
            seq_split=split,
            remat="full",
            chips=8960,
        )
        each = plan.to_maxtext()["per_device_batch_size"]
        assert int(plan.chips_used * each) == 32


def test_maxtext_on_gpus_fills_domains() -> None:
    plan = solved(stack="maxtext-gpu", reshard=3, batch_split=16, tp=4, remat="full")
    values = plan.to_maxtext()
    assert values["hardware"] == "gpu"
    assert (values["ici_tensor_parallelism"], values["ici_fsdp_parallelism"]) == (4, 2)
    assert (values["dcn_fsdp_parallelism"], values["dcn_data_parallelism"]) == (8, 1)
    read = read_maxtext(values)
    assert (read.dp, read.fsdp, read.tp, read.chips) == (1, 16, 4, 64)


@pytest.mark.parametrize("textbook", ["save_matmuls", "checkpoints_4", "checkpoints_2"])
def test_a_policy_repeats_what_the_rung_of_the_textbook_does(textbook: str) -> None:
    """Of the matmuls: norms and activations are what the book does not count."""
    rung = next(rung for rung in TEXTBOOK_LADDER if rung.name == textbook)
    ladder = {rung.name: rung.kept for rung in STACKS["maxtext"].ladder}
    kept = (
        ("layer_input", *CUSTOM[textbook], "log_sum_exp")
        if textbook in CUSTOM
        else ladder[textbook_rungs(STACKS["maxtext"])[textbook]]
    )
    counted = {"query", "key", "value", "attention", "output", "mlp_in", "mlp_out"}
    assert set(repeated_operations(kept)) & counted == set(rung.recompute) & counted


@pytest.mark.parametrize(
    ("chip", "stack", "seq_len"), [("v5p", "maxtext", 4096), ("h100", "megatron", 131072)]
)
def test_what_a_stack_states_exactly_is_exported_and_nothing_that_it_rounds(
    chip: str, stack: str, seq_len: int
) -> None:
    """``expressible_in`` and ``export`` know one another's settings: book, one rung on all."""
    front = autoshard.solve("llama3-8b", chip=chip, chips=64, seq_len=seq_len)
    said = set()
    for point in front.points:
        plan, statement = front.solved(point), point.expressible_in[stack]
        said.add(statement.verdict)
        if statement.verdict != "exact":
            if "checkpoints_4" not in str(statement.why):  # see the next test
                with pytest.raises(SpecError, match="cannot state"):
                    plan.launch(stack)
            continue
        made = plan.launch(stack)
        (setting,) = {name for stage in statement.remat for name in stage}
        assert setting == "none" or setting in str(made.values)
        (rung,) = {name for stage in plan.remat for name, layers in stage.items() if layers}
        noted = f"{rung} of the textbook is {setting} here" in " ".join(made.notes)
        assert noted == ((rung, setting) not in {("save_all", "none"), ("checkpoints_1", "full")})
    assert {"exact", "rounded"} <= said


def test_a_rung_of_the_textbook_that_only_custom_states() -> None:
    plan = solved(chip="v5p", stack=None, reshard=3, batch_split=8, remat="checkpoints_4")
    values = plan.to_maxtext()
    assert values["remat_policy"] == "custom"
    assert values["query_proj"] == values["context"] == values["out_proj"] == "device"


def test_a_mesh_on_part_of_a_slice_wants_a_smaller_slice() -> None:
    plan = solved(**launch_plans.SHARED, batch_split=256, remat="full", chips=512)
    made = plan.launch("maxtext")
    assert made.values["allow_split_physical_axes"] is True
    assert "this plan wants a slice of 256 chips" in " ".join(made.notes)


# accelerate and DeepSpeed


def test_accelerate_config() -> None:
    plan = solved(stack="torchtitan", reshard=2, batch_split=8, dp=2, tp=4, remat="full")
    values = plan.to_accelerate()
    assert values["num_processes"] == 64
    assert values["num_machines"] == 8
    assert values["fsdp_config"]["fsdp_reshard_after_forward"] is False
    assert values["fsdp_config"]["fsdp_activation_checkpointing"] is True
    assert values["parallelism_config"] == {
        "parallelism_config_dp_replicate_size": 2,
        "parallelism_config_dp_shard_size": 8,
        "parallelism_config_tp_size": 4,
        "parallelism_config_cp_size": 1,
    }
    assert yaml.safe_load(plan.launch("accelerate").text) == values


def test_deepspeed_satisfies_its_equation() -> None:
    plan = solved(reshard=2, batch_split=8, tp=4, microbatches=4, micro_batch_size=2)
    values = plan.to_deepspeed()
    assert values["train_batch_size"] == 2 * 4 * 8
    assert values["train_micro_batch_size_per_gpu"] == 2
    assert values["gradient_accumulation_steps"] == 4
    assert values["tensor_parallel"] == {"autotp_size": 4}
    assert values["zero_optimization"]["stage"] == 2
    assert json.loads(plan.launch("deepspeed").text) == values


# Meshes


def test_mesh_axes_say_where_they_lie() -> None:
    axes = launch_plans.megatron("ring attention").mesh_axes()
    assert list(axes) == ["stage", "data", "fsdp", "sequence", "context", "tensor"]
    assert (axes["tensor"].size, axes["tensor"].network) == (8, "nvlink")
    assert (axes["context"].size, axes["context"].degree) == (4, "cp")
    assert (axes["data"].size, axes["data"].network) == (1, "")


def test_a_mesh_on_pods_is_hybrid() -> None:
    made = launch_plans.maxtext("pods").launch("jax")
    assert made.values["mesh_shape"] == [1, 1, 64, 1, 1, 8]
    assert made.values["dcn_mesh_shape"] == [1, 2, 1, 1, 1, 1]
    assert "create_hybrid_device_mesh" in made.text
    compile(made.text, "mesh.py", "exec")


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_a_mesh_without_its_library_says_what_to_install(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.distributed", None)
    plan = launch_plans.megatron("full")
    with pytest.raises(SpecError, match=f"pip install {library}"):
        plan.jax_mesh() if library == "jax" else plan.torch_device_mesh()


# What targets have in common

STATABLE = {
    "megatron": ("megatron", "full"),
    "nemo": ("megatron", "full"),
    "torchtitan": ("torchtitan", "hybrid"),
    "accelerate": ("torchtitan", "hybrid"),
    "maxtext": ("maxtext", "pods"),
    "jax": ("maxtext", "pods"),
    "deepspeed": ("megatron", "zero-1"),
}


def statable(target: str) -> Any:
    family, name = STATABLE[target]
    return getattr(launch_plans, family)(name)


@pytest.mark.parametrize("target", TARGETS)
def test_each_export_says_what_is_predicted_and_for_which_version(target: str) -> None:
    plan = statable(target)
    made = plan.launch(target)
    header = "\n".join(made.header)
    assert made.framework in header
    assert "predicted: 5.00 s a step, 64.00 GiB a chip, MFU 40.0 %" in header
    assert "proven" in header
    assert f"world size: {plan.chips_used} chips" in header
    assert made.chips == plan.chips_used
    if target != "deepspeed":  # JSON has no comments
        assert made.text.startswith(f"# {made.header[0]}\n")
    json.dumps(made.to_dict())


def test_the_command_knows_the_targets() -> None:
    assert tuple(TARGETS) == LAUNCHES


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(UnknownName, match=r"unknown launch target 'megatrn': did you mean megat"):
        launch_plans.megatron("full").launch("megatrn")


def test_other_costs_and_another_recipe_are_noted() -> None:
    plan = solved(stack=None, reshard=1, batch_split=8, remat="checkpoints_1")
    notes = plan.launch("megatron").notes
    assert any("predicted by the costs textbook" in note for note in notes)
    assert any("10 bytes" in note and "keeps 16" in note for note in notes)
    assert flags(plan.to_megatron())["--recompute-granularity"] == "full"


@pytest.mark.parametrize(
    ("target", "values", "message"),
    [
        ("accelerate", {"pp": 2, "layers": (40, 40)}, "pp = 2: it has no pipelines"),
        ("deepspeed", {"pp": 2, "layers": (40, 40)}, r"pp = 2: its pipelines are code"),
        ("deepspeed", {"cp": 2}, "cp = 2: its sequence parallelism is Ulysses"),
        ("deepspeed", {"dp": 2, "batch_split": 4}, "dp = 1 and fsdp = 8 would do"),
        ("deepspeed", {"tp": 2, "batch_split": 4, "reshard": 3}, "reshard = 2 would do"),
        ("deepspeed", {"tp": 16}, "does not divide 8 KV heads; tp = 8 would"),
        ("deepspeed", {"precision": "fp8"}, "its JSON has bf16 and fp16"),
        ("deepspeed", {"remat": "selective"}, "one setting for all layers out of none, full"),
        ("accelerate", {"cp": 2, "batch_split": 2}, "seq_split says that"),
        ("accelerate", {"tp": 8}, "tensor parallelism goes with FSDP2"),
        ("accelerate", {"dp": 2, "remat": "full"}, "remat full without FSDP"),
        ("accelerate", {"batch_split": 8}, "reshard = 2 or 3 would do"),
        ("torchtitan", {"tp": 16, "batch_split": 2, "reshard": 3}, r"8 KV heads; tp = 8 would do"),
        ("torchtitan", {"cp": 2}, "seq_split is what it has in the place of cp"),
        ("torchtitan", {"batch_split": 8}, "there is only ZeRO-2 and ZeRO-3"),
        (
            "torchtitan",
            {
                "pp": 2,
                "layers": (40, 40),
                "microbatches": 4,
                "remat": ({"none": 30, "full": 10}, {"full": 40}),
            },
            "one remat setting for all of them",
        ),
        (
            "megatron",
            {"pp": 2, "layers": (40, 40), "remat": ({"none": 30, "full": 10}, {"full": 40})},
            "one count for all model chunks; the largest count of all stages would fit",
        ),
        ("megatron", {"seq_split": 2, "cp": 2}, "all context ranks do the same"),
        ("megatron", {"precision": "int8", "chip": "a100"}, "it trains in bf16, fp16 or fp8"),
        ("megatron", {"pp": 4, "vpp": 2, "layers": (20,) * 4, "microbatches": 6}, "in rounds of"),
        ("megatron", {"chip": "v5p", "stack": None, "remat": "save_all"}, "does not run on tpus"),
        (
            "megatron",
            {
                "stack": None,
                "schedule": "gpipe",
                "pp": 2,
                "layers": (40, 40),
                "remat": "save_all",
                "reshard": 3,
            },
            "schedule = gpipe: its pipelines run 1f1b",
        ),
        (
            "maxtext",
            {**launch_plans.SHARED, "pp": 3, "layers": (26, 27, 27), "remat": "full"},
            "a pp that divides 80 layers would do",
        ),
        (
            "megatron",
            {"stack": None, "remat": "checkpoints_4"},
            "'checkpoints_4' is no rung of the ladder none, selective, full",
        ),
        (
            "maxtext",
            {"stack": "torchtitan", "reshard": 3, "remat": "none", "batch_split": 8},
            "no setting for remat 'none'; minimal_with_context keeps the most",
        ),
        (
            "maxtext",
            {
                **launch_plans.SHARED,
                "remat": "full",
                "dp": 2,
                "pods": 2,
                "batch_split": 4,
                "reshard": 1,
            },
            "reshard = 3 would do",
        ),
        (
            "maxtext",
            {
                "model": DIVISIBLE,
                "stack": "maxtext-gpu",
                "reshard": 3,
                "tp": 1,
                "batch_split": 12,
                "remat": "full",
            },
            "do not fill NVLink domains of 8",
        ),
    ],
)
def test_what_a_target_cannot_state_is_refused(
    target: str, values: dict[str, Any], message: str
) -> None:
    plan = solved(**values)
    with pytest.raises(SpecError, match=message):
        plan.launch(target)


# Fronts as they are solved


@pytest.mark.parametrize(
    ("model", "chips", "stack", "targets"),
    [
        ("llama3-405b", 16_384, "megatron", ("megatron", "nemo")),
        ("llama3-70b", 512, "torchtitan", ("torchtitan",)),
        ("llama3-70b", 512, "maxtext-gpu", ("maxtext",)),
    ],
)
def test_every_plan_for_a_stack_can_be_stated(
    model: str, chips: int, stack: str, targets: tuple[str, ...]
) -> None:
    front = solve(model, chip="h100", chips=chips, stack=stack, points=4)
    for point in front.points:
        for target in targets:
            assert front.solved(point).launch(target).chips == point.plan.chips_used


@pytest.mark.parametrize(("model", "pods"), [("llama3-70b", 1), ("llama3-405b", 8)])
def test_fronts_of_the_textbook_are_meshes_and_say_why_they_are_no_configs(
    model: str, pods: int
) -> None:
    front = solve(model, pods=pods, points=3)
    for point in front.points:
        plan = front.solved(point)
        assert plan.launch("jax").chips == plan.chips_used
        for target in ("megatron", "torchtitan", "accelerate"):
            with pytest.raises(SpecError, match="does not run on tpus; export with maxtext or jax"):
                plan.launch(target)


@settings(deadline=None, max_examples=40)
@given(
    dp=st.sampled_from([1, 2]),
    batch_split=st.sampled_from([1, 2, 8]),
    tp=st.sampled_from([1, 2, 8, 16]),
    context=st.sampled_from([(1, 1), (2, 1), (1, 4)]),
    pp=st.sampled_from([1, 2, 3]),
    vpp=st.sampled_from([1, 2]),
    reshard=st.sampled_from([1, 2, 3]),
    rounds=st.integers(1, 3),
    again=st.integers(0, 40),
)
def test_any_plan_is_stated_as_it_is_or_refused(
    dp: int,
    batch_split: int,
    tp: int,
    context: tuple[int, int],
    pp: int,
    vpp: int,
    reshard: int,
    rounds: int,
    again: int,
) -> None:
    layers = tuple(80 // pp + (stage < 80 % pp) for stage in range(pp))
    counts = [min(again * vpp, count) for count in layers]
    plan = solved(
        dp=dp,
        batch_split=batch_split,
        tp=tp,
        seq_split=context[0],
        cp=context[1],
        pp=pp,
        vpp=vpp,
        reshard=reshard,
        microbatches=pp * rounds,
        layers=layers,
        remat=tuple(
            {"none": count - full, "full": full} for count, full in zip(layers, counts, strict=True)
        ),
    )
    try:
        words = plan.to_megatron()
    except SpecError:
        assert vpp > 1
        assert pp == 1
        return
    read = read_megatron([f"WORLD_SIZE={plan.chips_used}", *words])
    assert (read.dp, read.fsdp, read.tp, read.pp) == (dp, plan.fsdp, tp, pp)
    assert (read.vpp, read.cp, read.seq_split) == (vpp, context[1], context[0])
    assert (read.layers_per_stage, read.microbatches) == (layers, plan.microbatches)
    assert read.reshard == (reshard if plan.fsdp * plan.cp > 1 else None)
