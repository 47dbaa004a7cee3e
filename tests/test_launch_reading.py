"""Launch configs read as plans: the rules of each framework, and the way back from an export."""

from __future__ import annotations

import contextlib
from pathlib import Path

import launch_plans
import launch_probes
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoshard.catalog import load_model
from autoshard.costmodels.errors import SpecError
from autoshard.launch.read_maxtext import KEYS as MAXTEXT_KEYS
from autoshard.launch.read_megatron import FLAGS as MEGATRON_FLAGS
from autoshard.launch.read_torchtitan import DEFAULTS as TORCHTITAN_FIELDS
from autoshard.launch.reading import ReadPlan, read_maxtext, read_megatron, read_torchtitan
from autoshard.solved import SolvedPlan

FIELDS = (
    *("tp", "pp", "vpp", "cp", "dp", "fsdp", "seq_split"),
    *("micro_batch_size", "microbatches", "layers_per_stage"),
)


def megatron_words(probe: launch_probes.Probe) -> list[str]:
    model = load_model(probe.model)
    base = (
        f"--num-layers {model.n_layers} --num-attention-heads {model.n_heads} "
        f"--group-query-attention --num-query-groups {model.n_kv_heads} --seq-length 8192 "
        "--micro-batch-size 1"
    )
    return [f"WORLD_SIZE={probe.world}", *base.split(), *probe.given.split()]


# Megatron


@pytest.mark.parametrize("name", launch_probes.MEGATRON)
def test_reading_agrees_with_the_rules_of_megatron(name: str) -> None:
    probe = launch_probes.MEGATRON[name]
    if probe.readable:
        assert read_megatron(megatron_words(probe)).framework == "megatron"
    else:
        with pytest.raises(SpecError):
            read_megatron(megatron_words(probe))


@pytest.mark.parametrize(
    ("name", "stages", "vpp"),
    [
        ("embedding and loss count", (7, *(8,) * 14, 7), 1),
        ("ends of 7", (7, *(8,) * 14, 7), 1),
        ("layout", (7, *(8,) * 14, 7), 1),
        ("layout of groups", (7, *(8,) * 14, 7), 1),
        ("layout of empty ends", (0, *(9,) * 14, 0), 1),
        ("layout of two chunks", (7, *(8,) * 14, 7), 2),
        ("one layer a chunk", (20,) * 4, 20),
        ("five chunks", (20,) * 4, 5),
    ],
)
def test_stages_are_what_megatron_builds(name: str, stages: tuple[int, ...], vpp: int) -> None:
    read = read_megatron(megatron_words(launch_probes.MEGATRON[name]))
    assert (read.layers_per_stage, read.vpp) == (stages, vpp)


def test_a_command_of_torchrun_says_the_world() -> None:
    words = (
        "torchrun --nnodes=4 --nproc_per_node 8 pretrain_gpt.py --tensor-model-parallel-size 8 "
        "--use-distributed-optimizer --micro-batch-size 2 --global-batch-size 64 --lr 1e-4"
    )
    read = read_megatron(words.split())
    assert (read.chips, read.dp, read.fsdp, read.reshard) == (32, 1, 4, 1)
    assert (read.micro_batch_size, read.microbatches) == (2, 8)
    assert read.ignored == ("--lr", "no --sequence-parallel (priced with it)")


def test_without_a_world_shards_are_not_known() -> None:
    read = read_megatron(["--use-distributed-optimizer", "--micro-batch-size", "1"])
    assert (read.chips, read.fsdp, read.microbatches) == (None, None, None)
    assert (read.tp, read.pp, read.cp, read.dp, read.reshard) == (1, 1, 1, 1, 1)
    assert read_megatron([]).fsdp == 1


def test_more_recomputed_layers_than_a_chunk_has_are_all_of_them() -> None:
    read = read_megatron(megatron_words(launch_probes.MEGATRON["more layers than there are"]))
    assert (read.remat, read.remat_layers_per_chunk) == ("full", None)
    read = read_megatron(megatron_words(launch_probes.MEGATRON["full in blocks"]))
    assert (read.remat, read.remat_layers_per_chunk) == ("full", 5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tensor-model-paralel-size 8", "did you mean --tensor-model-parallel-size"),
        ("tensor_model_parallel_size=8", "has no argument of Megatron-LM"),
        ("--tensor-model-parallel-size eight", "must be a whole number, got 'eight'"),
        ("--tensor-model-parallel-size", "takes one value, got 0"),
        ("--tensor-model-parallel-size 0", "at least 1 and at most 2..40, got 0"),
        ("--context-parallel-size 2 --cp-comm-type a2a", "priced are p2p and all_gather"),
        ("--recompute-granularity selective --recompute-modules mlp", "priced is core_attn"),
        ("--num-layers 8 --num-virtual-stages-per-pipeline-rank 2", "above 1"),
        ("--use-megatron-fsdp --use-torch-fsdp2", "takes one of"),
        (
            "--recompute-granularity full --recompute-method uniform --recompute-num-layers 4",
            "groups of 4 layers is not priced",
        ),
        (
            "--use-megatron-fsdp --data-parallel-sharding-strategy zero",
            "known are no_shard, optim",
        ),
    ],
)
def test_what_cannot_be_read_is_named(words: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_megatron(words.split())


# MaxText


@pytest.mark.parametrize("name", launch_probes.MAXTEXT)
def test_reading_agrees_with_the_rules_of_maxtext(name: str) -> None:
    keys, accepted = launch_probes.MAXTEXT[name]
    if accepted:
        assert read_maxtext(keys.split()).chips == 512
    else:
        with pytest.raises(SpecError):
            read_maxtext(keys.split())


def test_a_file_of_maxtext_and_keys_over_it(tmp_path: Path) -> None:
    file = tmp_path / "ours.yml"
    file.write_text(
        "base_config: base.yml\nmodel_name: llama3.1-405b\nici_tensor_parallelism: 8\n"
        "per_device_batch_size: 2.0\nlearning_rate: 3.e-5\n",
        encoding="utf-8",
    )
    read = read_maxtext(
        ["maxtext/configs/base.yml", str(file), "compile_topology=v5p-1024", "remat_policy=full"]
    )
    assert (read.tp, read.fsdp, read.dp, read.chips) == (8, 64, 1, 512)
    assert (read.micro_batch_size, read.microbatches, read.global_batch_seqs) == (16, 1, 1024)
    assert read.layers_per_stage == (126,)
    assert read.ignored == ("learning_rate",)
    assert read_maxtext(file) == read_maxtext(str(file))


def test_a_world_that_is_not_said_leaves_fsdp_open() -> None:
    read = read_maxtext(["ici_tensor_parallelism=4", "per_device_batch_size=1"])
    assert (read.tp, read.fsdp, read.chips, read.dp) == (4, None, None, None)
    assert read.micro_batch_size == 4


@pytest.mark.parametrize(
    ("policy", "rung"),
    [
        (("remat_policy=minimal_flash",), "minimal_with_context"),
        (("remat_policy=custom", "out_proj=device"), "save_out_proj"),
        (("remat_policy=custom", "qkv_proj=device"), "save_qkv_proj"),
        ((), "full"),
    ],
)
def test_policies_are_rungs(policy: tuple[str, ...], rung: str) -> None:
    assert read_maxtext(["per_device_batch_size=1", *policy]).remat == rung


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ici_expert_parallelism=2"], "no cost model prices that axis"),
        (["ici_tensor_parallelism=two"], "must be a whole number, got 'two'"),
        (["per_device_batch_size=0.3"], "which are no whole ones"),
        (["per_device_batch_size=-1"], "must be a positive number"),
        (["there is no such file"], "neither a .yml file nor key=value"),
        (["missing.yml"], "cannot be read"),
        (["remat_policy=custom", "mlpwo=device"], "custom that keeps mlpwo"),
        (["ici_fsdp_paralelism=2"], "did you mean ici_fsdp_parallelism"),
        (["per_device_batch_size=["], "is not YAML"),
    ],
)
def test_what_maxtext_cannot_mean_is_named(words: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_maxtext(words)


# torchtitan


def test_toml_of_torchtitan(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text(
        '[model]\nname = "llama3"\nflavor = "70B"\n'
        "[training]\nlocal_batch_size = 4\nglobal_batch_size = 256\nseq_len = 8192\n"
        "[parallelism]\ndata_parallel_shard_degree = 16\ntensor_parallel_degree = 8\n"
        "context_parallel_degree = 2\n"
        '[activation_checkpoint]\nmode = "selective"\nselective_ac_option = "op"\n',
        encoding="utf-8",
    )
    read = read_torchtitan(file)
    assert (read.tp, read.fsdp, read.seq_split, read.dp, read.chips) == (8, 32, 2, 1, 256)
    assert (read.micro_batch_size, read.microbatches, read.global_batch_seqs) == (4, 4, 256)
    assert (read.remat, read.reshard, read.seq_len) == ("selective_op", 3, 8192)
    assert read.ignored == ("model.name", "model.flavor")
    flags = ["--job.config_file", str(file), "--parallelism.tensor_parallel_degree=4"]
    assert read_torchtitan(flags).tp == 4


def test_a_pipeline_of_torchtitan() -> None:
    words = (
        "--parallelism.pipeline_parallel_degree 4 --parallelism.data_parallel_shard_degree 2 "
        "--training.local_batch_size 8 --parallelism.pipeline_parallel_schedule Interleaved1F1B "
        "activation-checkpoint:full"
    )
    read = read_torchtitan(words.split())
    assert (read.pp, read.vpp, read.fsdp, read.chips) == (4, 2, 2, 8)
    assert (read.micro_batch_size, read.microbatches, read.global_batch_seqs) == (1, 8, 16)
    assert (read.reshard, read.remat) == (2, "full")


def test_what_a_recipe_leaves_open_stays_open() -> None:
    read = read_torchtitan(["--parallelism.tensor_parallel_degree", "8"])
    assert (read.fsdp, read.chips, read.remat) == (None, None, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parallelism.tensor_paralel_degree", "8"], "did you mean parallelism.tensor_parallel"),
        (["--parallelism.num_pp_microbatches", "8"], "a version after 0.3.0"),
        (["--parallelism.expert_parallel_degree", "8"], "no cost model covers experts"),
        (["--activation_checkpoint.mode", "selective"], "some layers whole"),
        (["--activation_checkpoint.mode", "memory_budget"], "priced are none, selective, full"),
        (
            ["--parallelism.context_parallel_degree=3", "--training.seq_len=8192"],
            "are not two pieces",
        ),
    ],
)
def test_what_torchtitan_cannot_mean_is_named(words: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_torchtitan(words)


def test_a_recipe_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "recipe.py"
    file.write_text("raise SystemExit\n", encoding="utf-8")
    with pytest.raises(SpecError, match="is a program, which is not run here"):
        read_torchtitan(file)


# There and back


def same(plan: SolvedPlan, read: ReadPlan, *unknown: str) -> None:
    for name in set(FIELDS) - set(unknown):
        assert getattr(read, name) == getattr(plan, name), name
    assert read.global_batch_seqs == plan.problem.workload.global_batch_seqs
    assert read.seq_len == plan.problem.workload.seq_len
    assert read.chips == plan.chips_used
    assert read.reshard == (plan.reshard if plan.fsdp * plan.cp > 1 else None)


@pytest.mark.parametrize("name", launch_plans.MEGATRON)
def test_megatron_there_and_back(name: str) -> None:
    plan = launch_plans.megatron(name)
    read = read_megatron([f"WORLD_SIZE={plan.chips_used}", *plan.to_megatron()])
    same(plan, read)
    full = [stage.get("full", 0) for stage in plan.remat]
    if read.remat != "full":
        assert read.remat == next(iter(plan.remat[0]))
    elif read.remat_layers_per_chunk is None:
        assert full == list(plan.layers_per_stage)
    else:
        each = read.remat_layers_per_chunk * plan.vpp
        assert full == [min(each, layers) for layers in plan.layers_per_stage]


@pytest.mark.parametrize("name", launch_plans.TORCHTITAN)
def test_torchtitan_there_and_back(name: str) -> None:
    plan = launch_plans.torchtitan(name)
    read = read_torchtitan(plan.to_torchtitan())
    same(plan, read, *(["layers_per_stage"] if plan.pp == 1 else []))
    assert read.remat == next(iter(plan.remat[0]))


@pytest.mark.parametrize("name", launch_plans.MAXTEXT)
def test_maxtext_there_and_back(name: str, tmp_path: Path) -> None:
    plan = launch_plans.maxtext(name)
    file = tmp_path / "plan.yml"
    file.write_text(plan.launch("maxtext").text, encoding="utf-8")
    for read in (read_maxtext(plan.to_maxtext()), read_maxtext(file)):
        same(plan, read)
        assert read.remat == next(iter(plan.remat[0]))


# Whatever is given, the answer is a plan or a sentence

WORDS = st.one_of(
    st.sampled_from(["1", "2", "8", "0", "-1", "full", "block", "selective", "p2p", "E|t*3|L", ""]),
    st.text(max_size=6),
)
VALUES = st.one_of(
    st.integers(-2, 2**70),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
    st.lists(st.integers(0, 3), max_size=2),
    st.sampled_from(["full", "custom", "v5p-1024", "always", "1F1B", "selective"]),
)


@given(st.lists(st.tuples(st.sampled_from(MEGATRON_FLAGS), st.lists(WORDS, max_size=2))))
def test_any_megatron_arguments(said: list[tuple[str, list[str]]]) -> None:
    words = [word for flag, values in said for word in (flag, *values)]
    with contextlib.suppress(SpecError):
        assert read_megatron(words).framework == "megatron"


@given(st.dictionaries(st.sampled_from(MAXTEXT_KEYS), VALUES, max_size=6))
def test_any_maxtext_values(said: dict[str, object]) -> None:
    with contextlib.suppress(SpecError):
        assert read_maxtext(said).framework == "maxtext"


@given(st.dictionaries(st.sampled_from(sorted(TORCHTITAN_FIELDS)), VALUES, max_size=6))
def test_any_torchtitan_values(said: dict[str, object]) -> None:
    with contextlib.suppress(SpecError):
        assert read_torchtitan(said).framework == "torchtitan"
