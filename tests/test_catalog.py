"""What the presets are, and how names and paths find them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from autoshard.catalog import chip_names, load_chip, load_model, model_names
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import SpecError, UnknownName

# The safetensors totals that huggingface.co shows beside each repository.
PUBLISHED_PARAMS = {
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "gemma-7b": 8_537_680_896,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
}


@pytest.mark.parametrize(("name", "params"), PUBLISHED_PARAMS.items())
def test_a_preset_has_exactly_the_published_parameters(name: str, params: int) -> None:
    assert load_model(name).total_params == params


def test_gpt3_has_174_point_6_billion_parameters() -> None:
    """Its weights are not public: shapes of arXiv 2005.14165, table 2.1, counted by hand."""
    width, layers = 12288, 96
    # q, k, v and output with biases, two MLP matrices with biases, two LayerNorms
    layer = 4 * (width * width + width) + (2 * 4 * width * width + 4 * width + width) + 4 * width
    by_hand = layers * layer + (50257 + 2048) * width + 2 * width
    gpt3 = load_model("gpt3-175b")
    assert gpt3.total_params == by_hand == 174_604_259_328
    assert (gpt3.tied_embeddings, gpt3.gated_mlp, gpt3.norm) == (True, False, "layernorm")


def test_every_model_preset_has_a_published_count_or_a_hand_count() -> None:
    assert set(model_names()) == {*PUBLISHED_PARAMS, "gpt3-175b"}


@pytest.mark.parametrize("name", model_names())
def test_a_model_preset_names_its_source(name: str) -> None:
    model = load_model(name)
    assert model.name == name
    assert model.source.startswith("https://")


@pytest.mark.parametrize("name", chip_names())
def test_every_figure_of_a_chip_has_a_source(name: str) -> None:
    chip = load_chip(name)
    assert chip.name == name
    without_figure = {"name", "kind", "sources"}
    defaults = {f.name: f.default for f in dataclasses.fields(Chip)}
    figures = {f for f in defaults if getattr(chip, f) != defaults[f]} - without_figure
    assert figures <= set(chip.sources)
    assert all(text.strip() for text in chip.sources.values())


def test_the_chips_are_the_documented_ones() -> None:
    tpus = ("v3", "v4p", "v5e", "v5p", "v6e", "ironwood")
    assert chip_names() == (*tpus, "a100", "h100", "h200", "b200", "gb200")


@pytest.mark.parametrize(
    ("name", "alpha"),
    [("v3", 700), ("v4p", 3056), ("v5e", 2189), ("v5p", 2550), ("v6e", 5111), ("ironwood", 12778)],
)
def test_tpu_flops_per_ici_byte_are_the_books(name: str, alpha: int) -> None:
    """tpus.md: alpha = C / W, with W one axis in both directions."""
    chip = load_chip(name)
    assert chip.flops_per_s["bf16"] / chip.ici_bytes_per_s == pytest.approx(alpha, abs=0.5)


def test_v5p_is_the_books_to_the_digit() -> None:
    v5p = load_chip("v5p")
    assert v5p.flops_per_s == {"bf16": 4.59e14, "int8": 9.18e14}
    assert v5p.ici_bytes_per_s == 1.8e11
    assert v5p.flops_per_s["bf16"] / v5p.ici_bytes_per_s == 2550
    assert (v5p.hbm_bytes, v5p.hbm_bytes_per_s, v5p.dcn_bytes_per_s) == (96 * 10**9, 2.8e12, 6.25e9)
    assert Cluster.build(v5p, pods=8).chips == 8 * 8960


@pytest.mark.parametrize(
    ("name", "in_domain", "beyond"),
    [("h100", 2200, 2475 * 8), ("b200", 2500, 5625 * 8), ("gb200", 2500, 625 * 72)],
)
def test_gpu_flops_per_network_byte_are_the_books(name: str, in_domain: int, beyond: int) -> None:
    """gpus.md counts the bytes beyond a node per node, so per GPU its bound is multiplied back."""
    chip = load_chip(name)
    peak = chip.flops_per_s["bf16"]
    assert peak / chip.domain_bytes_per_s == pytest.approx(in_domain)
    assert peak / chip.scale_out_bytes_per_s == pytest.approx(beyond)


@pytest.mark.parametrize(
    ("name", "intensity"), [("h100", 295.5), ("b200", 281.2), ("v5p", 163.9), ("v5e", 240.2)]
)
def test_flops_per_hbm_byte_are_the_books(name: str, intensity: float) -> None:
    chip = load_chip(name)
    assert chip.flops_per_s["bf16"] / chip.hbm_bytes_per_s == pytest.approx(intensity, abs=0.06)


def test_h100_pods_are_those_of_the_llama_3_paper() -> None:
    """Section 3.3.1 of arXiv 2407.21783: 3,072 GPUs a pod, 1:7 between pods."""
    h100 = load_chip("h100")
    assert (h100.pod_chips, h100.oversubscription) == (3072, 7)


@pytest.mark.parametrize(
    ("chip", "topology", "wraps"),
    [
        ("v5p", (4, 4, 4), (True, True, True)),
        ("v5p", (2, 2, 4), (False, False, False)),
        ("v4p", (4, 4, 8), (True, True, True)),
        ("v5e", (8, 16), (False, True)),
        ("v6e", (8, 8), (False, False)),
        ("ironwood", (16, 24, 24), (True, True, True)),
        ("v3", (32, 32), (True, True)),
        ("v3", (8, 16), (False, False)),
    ],
)
def test_slices_wrap_as_documented(
    chip: str, topology: tuple[int, ...], wraps: tuple[bool, ...]
) -> None:
    cluster = Cluster.build(load_chip(chip), topology=topology)
    assert tuple(axis.wraps for axis in cluster.torus) == wraps


@pytest.mark.parametrize("name", chip_names())
def test_a_pod_of_every_chip_is_a_cluster(name: str) -> None:
    assert Cluster.build(load_chip(name), pods=1).chips > 0


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("tpu-v5p", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU_V5E", "v5e"),
        ("trillium", "v6e"),
        ("Trillium", "v6e"),
        ("tpu7x", "ironwood"),
        ("v4", "v4p"),
        ("H100", "h100"),
        ("gb200-nvl72", "gb200"),
    ],
)
def test_a_chip_answers_to_its_aliases_in_any_case(alias: str, name: str) -> None:
    assert load_chip(alias) == load_chip(name)


def test_a_model_preset_is_found_in_any_case() -> None:
    assert load_model("LLaMA3-8B") == load_model("llama3-8b")


def test_no_alias_stands_for_two_chips() -> None:
    import tomllib

    import autoshard.catalog

    text = Path(autoshard.catalog.__file__).parent.joinpath("catalog", "chips.toml").read_text()
    names = [n for id_, t in tomllib.loads(text).items() for n in (id_, *t["aliases"])]
    assert len(names) == len(set(names))
    assert names == [n.lower() for n in names]


def test_changing_a_loaded_chip_leaves_the_catalog_alone() -> None:
    chip = load_chip("h100")
    chip.flops_per_s["bf16"] = 1.0  # type: ignore[index]
    assert load_chip("h100").flops_per_s["bf16"] == 990e12


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5", ["unknown chip 'v5'", "v5p"]),
        ("h10", ["unknown chip 'h10'", "h100"]),
        ("tpu-v5q", ["unknown chip 'tpu-v5q'", "tpu-v5p"]),
        ("", ["unknown chip ''", "known:", "v5p"]),
        ("zzzzzz", ["unknown chip 'zzzzzz'", "known:", "gb200"]),
    ],
)
def test_an_unknown_chip_offers_the_nearest_names(name: str, says: list[str]) -> None:
    with pytest.raises(UnknownName) as caught:
        load_chip(name)
    assert all(text in str(caught.value) for text in says)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("llama3-9b", ["unknown model 'llama3-9b'", "llama3-8b"]),
        ("qwen2.5-70b", ["unknown model 'qwen2.5-70b'", "qwen2.5-72b"]),
        ("", ["unknown model ''", "known:", "gemma-7b"]),
        ("\0", ["unknown model", "known:"]),
        ("x" * 5000, ["unknown model", "known:"]),
    ],
)
def test_an_unknown_model_offers_the_nearest_names(name: str, says: list[str]) -> None:
    with pytest.raises(UnknownName) as caught:
        load_model(name)
    assert all(text in str(caught.value) for text in says)


@pytest.mark.parametrize("name", [5, None, ["h100"]])
def test_a_name_that_is_not_text_is_refused(name: object) -> None:
    with pytest.raises(SpecError, match="chip is a preset name"):
        load_chip(name)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="model is a preset name or a path"):
        load_model(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("meta-llama/Llama-3.1-70B", ["'meta-llama/Llama-3.1-70B'", "config.json", "llama3-70b"]),
        ("tiiuae/falcon-40b", ["'tiiuae/falcon-40b'", "config.json", "preset"]),
    ],
)
def test_a_hugging_face_id_is_not_fetched_and_says_so(name: str, says: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        load_model(name)
    assert all(text in str(caught.value) for text in [*says, "nothing is fetched"])


@pytest.mark.parametrize("path", ["no-such.json", "./no-such-folder", "a/b/no-such.json"])
def test_a_missing_config_is_named(path: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_model(path)
    assert str(Path(path)) in str(caught.value)
    assert "no such file" in str(caught.value)


GPT2 = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}


def test_a_config_is_found_by_file_and_by_directory(tmp_path: Path) -> None:
    folder = tmp_path / "my-gpt2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GPT2))
    by_file = load_model(str(folder / "config.json"))
    assert by_file.total_params == 124_439_808
    assert load_model(str(folder)) == load_model(folder) == by_file


def test_a_bare_directory_name_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").mkdir()
    Path("checkpoint", "config.json").write_text(json.dumps(GPT2))
    assert load_model("checkpoint").total_params == 124_439_808


def test_a_path_that_looks_like_a_hugging_face_id_is_read_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("openai-community", "gpt2").mkdir(parents=True)
    Path("openai-community", "gpt2", "config.json").write_text(json.dumps(GPT2))
    assert load_model("openai-community/gpt2").total_params == 124_439_808


def test_a_preset_wins_over_a_directory_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a preset means must not depend on the folder it is named in; ``./`` says otherwise."""
    monkeypatch.chdir(tmp_path)
    Path("llama3-8b").mkdir()
    Path("llama3-8b", "config.json").write_text(json.dumps(GPT2))
    assert load_model("llama3-8b").total_params == PUBLISHED_PARAMS["llama3-8b"]
    assert load_model("./llama3-8b").total_params == 124_439_808
