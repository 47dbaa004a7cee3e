"""What autoshard writes, before the parsers of the frameworks themselves.

Each test is skipped where its framework is not installed: `pip install 'autoshard[launch]'`, and
run with `pytest -m launch`. None needs an accelerator.
"""

from __future__ import annotations

import os
import subprocess
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import launch_plans
import launch_probes
import pytest

from autoshard.catalog import load_model
from autoshard.launch.maxtext import MODELS as MODELS_OF_MAXTEXT
from autoshard.solved import SolvedPlan

pytestmark = [
    pytest.mark.launch,
    pytest.mark.filterwarnings("ignore"),  # those of the frameworks are theirs
]

#: What a script of Megatron's says beside the plan; the last two are for a machine without GPUs.
MODELS = {
    "llama3-8b": ("4096", "14336", "32", "8"),
    "llama3-70b": ("8192", "28672", "64", "8"),
    "llama3-405b": ("16384", "53248", "128", "8"),
}
SCRIPT = (
    *("--max-position-embeddings", "131072", "--tokenizer-type", "NullTokenizer"),
    *("--vocab-size", "128256", "--untie-embeddings-and-output-weights", "--swiglu"),
    *("--normalization", "RMSNorm", "--position-embedding-type", "rope", "--lr", "1e-4"),
    *("--train-iters", "10", "--mock-data", "--disable-bias-linear"),
    *("--transformer-impl", "local", "--no-rope-fusion"),
)


@pytest.fixture(scope="module")
def megatron_arguments() -> Any:
    """Megatron's module of arguments, importable without a GPU and on Python 3.11."""
    if not hasattr(typing, "override"):
        vars(typing)["override"] = lambda function: function
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("megatron.training.arguments")
    gpu = types.SimpleNamespace(major=9, minor=0, name="H100", total_memory=80 * 2**30)
    before = torch.cuda.get_device_properties, torch.cuda.get_device_capability
    torch.cuda.get_device_properties = lambda *_: gpu
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    yield module
    torch.cuda.get_device_properties, torch.cuda.get_device_capability = before


def accepted_by_megatron(
    module: Any,
    model: str,
    given: list[str],
    world: int,
    environment: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """The parsed arguments and the config; Megatron's own error where it refuses them."""
    hidden, ffn, heads, groups = MODELS[model]
    shape = ("--hidden-size", hidden, "--ffn-hidden-size", ffn, "--num-attention-heads", heads)
    grouped = ("--group-query-attention", "--num-query-groups", groups)
    monkeypatch.setattr(sys, "argv", ["pretrain_gpt.py", *given, *shape, *grouped, *SCRIPT])
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    args = module.parse_args()
    args.world_size, args.rank = world, 0
    module.validate_args(args, {})
    return args, _megatron_config(module)(args)


def _megatron_config(module: Any) -> Any:
    if hasattr(module, "core_transformer_config_from_args"):
        return module.core_transformer_config_from_args
    return pytest.importorskip("megatron.training.argument_utils").core_transformer_config_from_args


@pytest.mark.parametrize("name", launch_plans.MEGATRON)
def test_megatron_accepts_its_arguments(
    megatron_arguments: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = launch_plans.megatron(name)
    made = plan.launch("megatron")
    args, config = accepted_by_megatron(
        megatron_arguments,
        plan.problem.model.name,
        made.values,
        made.chips,
        made.environment,
        monkeypatch,
    )
    assert args.data_parallel_size == plan.dp * plan.batch_split
    assert args.context_parallel_size == plan.seq_split * plan.cp
    assert (args.virtual_pipeline_model_parallel_size or 1) == plan.vpp
    assert args.global_batch_size == (
        plan.dp * plan.batch_split * plan.microbatches * plan.micro_batch_size
    )
    assert args.bf16
    layout = config.pipeline_model_parallel_layout
    if layout is not None:
        layers = [
            sum(str(kind).endswith("decoder") for chunk in stage for kind in chunk)
            for stage in layout.layout
        ]
        assert tuple(layers) == plan.layers_per_stage


@pytest.mark.parametrize("name", launch_probes.MEGATRON)
def test_megatron_judges_the_probes_as_the_table_says(
    megatron_arguments: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = launch_probes.MEGATRON[name]
    layers = load_model(probe.model).n_layers
    base = f"--num-layers {layers} --seq-length 8192 --micro-batch-size 1 --bf16"
    given = [*base.split(), *probe.given.split()]
    fsdp = any("fsdp" in word for word in given)
    environment = {} if fsdp else {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    refused = None
    try:
        accepted_by_megatron(
            megatron_arguments, probe.model, given, probe.world, environment, monkeypatch
        )
    except (AssertionError, ValueError, RuntimeError, SystemExit) as error:
        refused = error
    assert (refused is None) is probe.accepted, refused


@pytest.mark.parametrize("name", launch_plans.MEGATRON)
def test_overrides_of_bridge_are_hydras(name: str) -> None:
    """Megatron-Bridge itself cannot be imported without Transformer Engine; its grammar can."""
    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser")
    plan = launch_plans.megatron(name)
    parsed = parser.OverridesParser.create().parse_overrides(plan.to_nemo())
    said = {override.key_or_group: override.value() for override in parsed}
    assert said["model.tensor_model_parallel_size"] == plan.tp
    assert said["train.micro_batch_size"] == plan.micro_batch_size
    virtual = said["model.virtual_pipeline_model_parallel_size"]
    assert virtual == (plan.vpp if plan.vpp > 1 else None)
    layout = said["model.pipeline_model_parallel_layout"]
    assert layout is None or str(layout).count("|") > 0


@pytest.mark.parametrize("name", launch_plans.TORCHTITAN)
def test_torchtitan_accepts_its_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = pytest.importorskip("torchtitan.config.manager")
    dims = pytest.importorskip("torchtitan.distributed.parallel_dims")
    plan = launch_plans.torchtitan(name)
    made = plan.launch("torchtitan")
    (tmp_path / "recipe_of_plan.py").write_text(made.text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("recipe_of_plan", None)
    config = manager.ConfigManager().parse_args(["--module", "recipe_of_plan", "--config", "plan"])
    parallel = config.parallelism
    meshes = dims.ParallelDims(
        dp_replicate=parallel.data_parallel_replicate_degree,
        dp_shard=parallel.data_parallel_shard_degree,
        cp=parallel.context_parallel_degree,
        tp=parallel.tensor_parallel_degree,
        pp=parallel.pipeline_parallel_degree,
        ep=parallel.expert_parallel_degree,
        world_size=made.chips,
    )
    assert meshes.world_size == plan.chips_used
    assert len(config.model_spec.model.layers) == sum(plan.layers_per_stage)
    if plan.pp > 1:
        parts = parallel.module_fqns_per_model_part
        assert len(parts) == plan.pp * plan.vpp
        assert [name for part in parts for name in part if name.startswith("layers.")] == [
            f"layers.{n}" for n in range(sum(plan.layers_per_stage))
        ]


@pytest.mark.parametrize("name", launch_probes.TORCHTITAN)
def test_torchtitan_judges_the_probes_as_the_table_says(name: str) -> None:
    manager = pytest.importorskip("torchtitan.config.manager")
    dims = pytest.importorskip("torchtitan.distributed.parallel_dims")
    words, world, accepted = launch_probes.TORCHTITAN[name]
    module = ["--module", "llama3", "--config", "llama3_70b"]
    config = manager.ConfigManager().parse_args([*module, *words.split()])
    refused = None
    try:
        dims.ParallelDims.from_config(config.parallelism, world)
    except (AssertionError, ValueError) as error:
        refused = error
    assert (refused is None) is accepted, refused


@pytest.fixture
def maxtext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MaxText's config of keys, and the mesh of a TPU slice for it where libtpu is installed."""
    pyconfig = pytest.importorskip("maxtext.configs.pyconfig")
    base = Path(pyconfig.__file__).parent / "base.yml"
    common = [
        "run_name=plan",
        f"base_output_directory={tmp_path}",
        "skip_jax_distributed_system=true",
        "enable_checkpointing=false",
        "dataset_type=synthetic",
    ]

    def config(text: str, *words: str) -> Any:
        file = tmp_path / "plan.yml"
        file.write_text(text.replace("base_config: base.yml", f"base_config: {base}"))
        return pyconfig.initialize(["train.py", str(file), *common, *words])

    def mesh(made: Any) -> Any:
        libtpu = pytest.importorskip("libtpu")
        monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
        monkeypatch.setenv("TPU_LIBRARY_PATH", libtpu.get_library_path())
        monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        compiling = pytest.importorskip("maxtext.trainers.pre_train.train_compile")
        return compiling.get_topology_mesh(made)

    return types.SimpleNamespace(config=config, mesh=mesh)


def topology(plan: SolvedPlan) -> tuple[str, str]:
    """The slices of v5p that a plan fills; their names count two cores a chip."""
    cores = 2 * plan.chips_used // plan.pods
    return f"compile_topology=v5p-{cores}", f"compile_topology_num_slices={plan.pods}"


@pytest.mark.parametrize("name", launch_plans.MAXTEXT)
def test_maxtext_accepts_its_config(maxtext: Any, name: str) -> None:
    plan = launch_plans.maxtext(name)
    config = maxtext.config(plan.launch("maxtext").text, *topology(plan))
    sequences = plan.dp * plan.batch_split * plan.microbatches * plan.micro_batch_size
    assert config.global_batch_size_to_train_on == sequences
    assert config.num_decoder_layers == sum(plan.layers_per_stage)
    assert config.remat_policy == plan.to_maxtext()["remat_policy"]


@pytest.mark.parametrize("name", MODELS_OF_MAXTEXT)
def test_maxtext_knows_the_models_that_are_named(maxtext: Any, name: str) -> None:
    model = load_model(name)
    plan = launch_plans.solved(
        name, "v5p", stack="maxtext", reshard=3, layers=(model.n_layers,), remat="full", dp=8
    )
    config = maxtext.config(plan.launch("maxtext").text, *topology(plan))
    assert config.num_decoder_layers == model.n_layers
    assert (config.emb_dim, config.mlp_dim) == (model.d_model, model.d_ff)
    assert 0 <= config.vocab_size - model.vocab <= 128  # it pads Gemma's by 128
    assert (config.num_query_heads, config.num_kv_heads) == (model.n_heads, model.n_kv_heads)


@pytest.mark.parametrize("name", launch_plans.MAXTEXT)
def test_a_mesh_of_maxtext_fits_the_slice(maxtext: Any, name: str) -> None:
    plan = launch_plans.maxtext(name)
    mesh = maxtext.mesh(maxtext.config(plan.launch("maxtext").text, *topology(plan)))
    assert mesh.devices.size == plan.chips_used
    assert mesh.shape["tensor"] == plan.tp


@pytest.mark.parametrize("name", ["context", "pipeline"])
def test_split_dimensions_want_the_flag_that_the_export_sets(maxtext: Any, name: str) -> None:
    plan = launch_plans.maxtext(name)
    text = plan.launch("maxtext").text.replace("allow_split_physical_axes: true", "")
    config = maxtext.config(text, *topology(plan))
    with pytest.raises(NotImplementedError, match="product of some subset of the physical mesh"):
        maxtext.mesh(config)


@pytest.mark.parametrize("name", launch_probes.MAXTEXT)
def test_maxtext_judges_the_probes_as_the_table_says(maxtext: Any, name: str) -> None:
    if name == "bogus policy":
        pytest.skip("policies are judged when the decoder is traced")
    given, accepted = launch_probes.MAXTEXT[name]
    slices = [] if "num_slices" in given else ["compile_topology_num_slices=1"]
    split = "allow_split_physical_axes=true"
    refused = None
    try:
        config = maxtext.config("base_config: base.yml\n", *given.split(), *slices, split)
        maxtext.mesh(config)
    except (AssertionError, KeyError, ValueError) as error:
        refused = error
    assert (refused is None) is accepted, refused


@pytest.mark.parametrize(
    "degrees",
    [
        {"batch_split": 8},
        {"batch_split": 8, "tp": 8},
        {"batch_split": 8, "dp": 2, "tp": 4, "seq_split": 2},
        {"dp": 8},
    ],
)
def test_accelerate_accepts_its_config(degrees: dict[str, Any], tmp_path: Path) -> None:
    if degrees.get("tp", 1) > 1:
        pytest.importorskip("transformers")
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    parallelism = pytest.importorskip("accelerate.parallelism_config")
    plan = launch_plans.solved(stack="torchtitan", reshard=3, remat="none", **degrees)
    made = plan.launch("accelerate")
    file = tmp_path / "plan.yaml"
    file.write_text(made.text, encoding="utf-8")
    config = config_args.load_config_from_file(str(file))
    assert config.num_processes == plan.chips_used
    prefix = "parallelism_config_"
    sizes = {k.removeprefix(prefix): v for k, v in config.parallelism_config.items()}
    if sizes:
        assert parallelism.ParallelismConfig(**sizes).total_size == plan.chips_used


def test_jax_makes_the_mesh() -> None:
    """In a process of its own: the number of host devices is fixed when JAX starts."""
    pytest.importorskip("jax")
    program = (
        "import launch_plans\n"
        "plan = launch_plans.solved(stack=None, remat='save_all', batch_split=2, seq_split=2, tp=2)"
        "\nmesh = plan.jax_mesh()\n"
        "assert dict(mesh.shape) == {n: axis.size for n, axis in plan.mesh_axes().items()}\n"
        "assert mesh.devices.size == 8\n"
        "exec(plan.launch('jax').text)\n"
        "assert dict(mesh.shape)['tensor'] == 2\n"
        "try:\n    launch_plans.solved(batch_split=4).jax_mesh()\n"
        "except ValueError as error:\n    print(error)\n"
    )
    devices = "--xla_force_host_platform_device_count=8"
    here = str(Path(__file__).parent)
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ
        | {"XLA_FLAGS": devices, "JAX_PLATFORMS": "cpu"}
        | {"PYTHONPATH": os.pathsep.join([here, str(Path(here).parent)])},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "a mesh of 4 devices, and there are 8" in run.stdout


def test_torch_makes_the_mesh() -> None:
    dist = pytest.importorskip("torch.distributed")
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")

    plan = launch_plans.solved(batch_split=2, dp=2, tp=2)
    dist.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=8)
    try:
        mesh = plan.torch_device_mesh("cpu")
        assert mesh.mesh_dim_names == ("pp", "dp_replicate", "dp_shard", "sp", "cp", "tp")
        assert tuple(mesh.shape) == (1, 2, 2, 1, 1, 2)
    finally:
        dist.destroy_process_group()
