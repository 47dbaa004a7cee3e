"""What a Hugging Face ``config.json`` means: published values in, published counts out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoshard.catalog import load_model
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.model import Model
from autoshard.hf_config import LARGEST_CONFIG_BYTES, model_from_config

LLAMA3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
LLAMA32_1B = LLAMA3_8B | {
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "mlp_bias": False,
    "num_hidden_layers": 16,
    "tie_word_embeddings": True,
}
LLAMA2_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}
MISTRAL_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "vocab_size": 32000,
}
QWEN25_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
QWEN25_HALF_B: dict[str, Any] = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
GEMMA_7B: dict[str, Any] = {
    "attention_bias": False,
    "head_dim": 256,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "model_type": "gemma",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
    "vocab_size": 256000,
}
GEMMA_2B = GEMMA_7B | {
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_inner": None,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}
GPT2_XL = GPT2 | {"n_embd": 1600, "n_head": 25, "n_layer": 48}
NEOX_20B: dict[str, Any] = {
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "model_type": "gpt_neox",
    "num_attention_heads": 64,
    "num_hidden_layers": 44,
    "tie_word_embeddings": False,
    "vocab_size": 50432,
}
PYTHIA_160M = NEOX_20B | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
PYTHIA_6_9B = NEOX_20B | {
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
}


def write(folder: Path, config: object, name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    return path


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != key}


@pytest.mark.parametrize(
    ("config", "params"),
    [
        pytest.param(LLAMA3_8B, 8_030_261_248, id="Llama-3 8B"),
        pytest.param(LLAMA32_1B, 1_235_814_400, id="Llama-3.2 1B, tied"),
        pytest.param(LLAMA2_7B, 6_738_415_616, id="Llama-2 7B, no num_key_value_heads"),
        pytest.param(MISTRAL_7B, 7_241_732_096, id="Mistral 7B v0.1"),
        pytest.param(QWEN25_7B, 7_615_616_512, id="Qwen2.5 7B, q k v biases"),
        pytest.param(QWEN25_HALF_B, 494_032_768, id="Qwen2.5 0.5B, tied"),
        pytest.param(GEMMA_7B, 8_537_680_896, id="Gemma 7B, heads wider than the model"),
        pytest.param(GEMMA_2B, 2_506_172_416, id="Gemma 2B, one KV head"),
        pytest.param(GPT2, 124_439_808, id="GPT-2"),
        pytest.param(GPT2_XL, 1_557_611_200, id="GPT-2 XL"),
        pytest.param(NEOX_20B, 20_554_567_680, id="GPT-NeoX 20B"),
        pytest.param(PYTHIA_160M, 162_322_944, id="Pythia 160M"),
        pytest.param(PYTHIA_6_9B, 6_857_302_016, id="Pythia 6.9B"),
    ],
)
def test_the_parameter_count_is_the_published_one(
    tmp_path: Path, config: dict[str, Any], params: int
) -> None:
    assert model_from_config(write(tmp_path, config)).total_params == params


@pytest.mark.parametrize(
    ("config", "preset"),
    [
        (LLAMA3_8B, "llama3-8b"),
        (LLAMA2_7B, "llama2-7b"),
        (MISTRAL_7B, "mistral-7b"),
        (QWEN25_7B, "qwen2.5-7b"),
        (GEMMA_7B, "gemma-7b"),
    ],
)
def test_a_published_config_and_its_preset_are_the_same_model(
    tmp_path: Path, config: dict[str, Any], preset: str
) -> None:
    folder = tmp_path / preset
    folder.mkdir()
    ours, theirs = model_from_config(write(folder, config)), load_model(preset)
    fields = set(Model.__dataclass_fields__) - {"source"}
    assert {f: getattr(ours, f) for f in fields} == {f: getattr(theirs, f) for f in fields}


def test_llama_attention_bias_adds_q_k_v_and_output(tmp_path: Path) -> None:
    plain = model_from_config(write(tmp_path, LLAMA3_8B))
    biased = model_from_config(write(tmp_path, LLAMA3_8B | {"attention_bias": True}))
    assert biased.total_params - plain.total_params == 32 * (4096 + 1024 + 1024 + 4096)


def test_llama_mlp_bias_adds_gate_up_and_down(tmp_path: Path) -> None:
    plain = model_from_config(write(tmp_path, LLAMA3_8B))
    biased = model_from_config(write(tmp_path, LLAMA3_8B | {"mlp_bias": True}))
    assert biased.total_params - plain.total_params == 32 * (14336 + 14336 + 4096)


def test_neox_without_attention_bias_keeps_its_mlp_biases(tmp_path: Path) -> None:
    config = NEOX_20B | {"attention_bias": False}
    assert model_from_config(write(tmp_path, config)).bias_params == 44 * (24576 + 6144)


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        (LLAMA2_7B, False),
        (MISTRAL_7B, False),
        (QWEN25_7B, False),
        (GEMMA_7B, True),
        (GPT2, True),
        (without(NEOX_20B, "tie_word_embeddings"), False),
    ],
)
@pytest.mark.parametrize("absent", [{}, {"tie_word_embeddings": None}], ids=["absent", "null"])
def test_an_absent_tie_is_the_familys_own(
    tmp_path: Path, config: dict[str, Any], tied: bool, absent: dict[str, None]
) -> None:
    model = model_from_config(write(tmp_path, config | absent))
    assert model.tied_embeddings is tied


@pytest.mark.parametrize(("flag", "parallel"), [(True, True), (False, False), (None, True)])
def test_neox_says_whether_its_residuals_are_parallel(
    tmp_path: Path, flag: bool | None, parallel: bool
) -> None:
    config = NEOX_20B | {"use_parallel_residual": flag}
    assert model_from_config(write(tmp_path, config)).parallel_block is parallel


def test_gpt2_n_inner_sets_the_mlp_width(tmp_path: Path) -> None:
    assert model_from_config(write(tmp_path, GPT2)).d_ff == 4 * 768
    assert model_from_config(write(tmp_path, GPT2 | {"n_inner": 2048})).d_ff == 2048


def test_gemma_heads_are_256_wide_unless_said(tmp_path: Path) -> None:
    """The default of Transformers' GemmaConfig; 3072 / 16 would be 192."""
    assert model_from_config(write(tmp_path, without(GEMMA_7B, "head_dim"))).d_head == 256


def test_head_dim_frees_the_width_from_the_heads(tmp_path: Path) -> None:
    config = MISTRAL_7B | {"hidden_size": 5120, "head_dim": 128}
    model = model_from_config(write(tmp_path, config))
    assert (model.d_head, model.d_attention, model.d_model) == (128, 4096, 5120)


def test_a_model_is_called_after_its_folder_or_its_own_file(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    assert model_from_config(write(folder, GPT2)).name == "tiny"
    assert model_from_config(folder).name == "tiny"
    assert model_from_config(write(folder, GPT2, "small.json")).name == "small"


def test_the_source_is_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, GPT2)
    assert str(path) in model_from_config(path).source


def test_a_byte_order_mark_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GPT2), encoding="utf-8-sig")
    assert model_from_config(path).n_layers == 12


FAMILIES = "gemma, gpt2, gpt_neox, llama, mistral, qwen2"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        pytest.param("", ["not JSON"], id="empty file"),
        pytest.param("{'model_type': 'llama'}", ["not JSON", "line 1"], id="Python, not JSON"),
        pytest.param('{"model_type": "llama",', ["not JSON"], id="cut off"),
        pytest.param("[" * 100_000, ["not JSON"], id="nested without end"),
        pytest.param([LLAMA3_8B], ["JSON object", "list"], id="a list"),
        pytest.param('"llama"', ["JSON object", "str"], id="a string"),
        pytest.param("null", ["JSON object", "NoneType"], id="null"),
        pytest.param({}, ["model_type is missing", FAMILIES], id="no keys"),
        pytest.param({"model_type": 5}, ["model_type", "string", "5"], id="family is a number"),
        pytest.param({"model_type": "falcon"}, ["'falcon'", FAMILIES], id="unknown family"),
        pytest.param({"model_type": "Llama"}, ["'Llama'", FAMILIES], id="family in capitals"),
        pytest.param(
            MISTRAL_7B | {"model_type": "mixtral", "num_local_experts": 8},
            ["num_local_experts = 8", "experts are not costed yet", FAMILIES],
            id="Mixtral",
        ),
        pytest.param(
            {"model_type": "mixtral"}, ["'mixtral'", "not costed yet"], id="Mixtral, bare"
        ),
        pytest.param(
            QWEN25_7B | {"model_type": "qwen2_moe"},
            ["'qwen2_moe'", "not costed yet"],
            id="Qwen2 MoE",
        ),
        pytest.param(
            LLAMA3_8B | {"num_local_experts": 4}, ["num_local_experts = 4"], id="Llama with experts"
        ),
        *(
            pytest.param(without(LLAMA3_8B, key), [key, "missing", "llama"], id=f"llama, no {key}")
            for key in (
                "hidden_size",
                "intermediate_size",
                "num_attention_heads",
                "num_hidden_layers",
                "vocab_size",
            )
        ),
        *(
            pytest.param(without(GPT2, key), [key, "missing", "gpt2"], id=f"gpt2, no {key}")
            for key in ("n_embd", "n_head", "n_layer", "n_positions", "vocab_size")
        ),
        pytest.param(
            without(NEOX_20B, "intermediate_size"), ["intermediate_size", "gpt_neox"], id="neox"
        ),
        pytest.param(
            LLAMA3_8B | {"hidden_size": "4096"},
            ["hidden_size", "whole number", "'4096'"],
            id="size in quotes",
        ),
        pytest.param(
            LLAMA3_8B | {"vocab_size": 128256.0}, ["vocab_size", "128256.0"], id="fractional size"
        ),
        pytest.param(
            LLAMA3_8B | {"num_hidden_layers": True}, ["num_hidden_layers", "True"], id="true layers"
        ),
        pytest.param(
            LLAMA3_8B | {"num_hidden_layers": 0}, ["num_hidden_layers", "at least 1"], id="0 layers"
        ),
        pytest.param(
            LLAMA3_8B | {"num_key_value_heads": -8},
            ["num_key_value_heads", "at least 1", "-8"],
            id="negative heads",
        ),
        pytest.param(
            LLAMA3_8B | {"intermediate_size": 2**50}, ["intermediate_size", "2**40"], id="absurd"
        ),
        pytest.param(
            LLAMA3_8B | {"vocab_size": [128256]}, ["vocab_size", "[128256]"], id="size in a list"
        ),
        pytest.param(LLAMA3_8B | {"hidden_size": float("nan")}, ["hidden_size", "nan"], id="NaN"),
        pytest.param(
            LLAMA3_8B | {"hidden_size": 4097},
            ["hidden_size = 4097", "num_attention_heads = 32"],
            id="width over heads",
        ),
        pytest.param(
            LLAMA3_8B | {"num_key_value_heads": 5},
            ["num_attention_heads = 32", "num_key_value_heads = 5"],
            id="heads over KV heads",
        ),
        pytest.param(GPT2 | {"n_head": 11}, ["n_embd = 768", "n_head = 11"], id="gpt2 heads"),
        pytest.param(
            NEOX_20B | {"num_attention_heads": 60},
            ["hidden_size = 6144", "num_attention_heads = 60"],
            id="neox heads",
        ),
        pytest.param(
            LLAMA3_8B | {"tie_word_embeddings": "yes"},
            ["tie_word_embeddings", "true or false", "'yes'"],
            id="tie in words",
        ),
        pytest.param(
            LLAMA3_8B | {"attention_bias": 1}, ["attention_bias", "true or false"], id="bias 1"
        ),
        pytest.param(
            GPT2 | {"add_cross_attention": True}, ["add_cross_attention"], id="cross attention"
        ),
    ],
)
def test_a_bad_config_names_the_file_and_what_is_wrong(
    tmp_path: Path, config: object, says: list[str]
) -> None:
    path = write(tmp_path, config)
    with pytest.raises(SpecError) as caught:
        model_from_config(path)
    message = str(caught.value)
    assert [text for text in (str(path), *says) if text not in message] == []


def test_a_folder_without_a_config_names_the_file_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file") as caught:
        model_from_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_weights_passed_as_a_config_are_refused(tmp_path: Path) -> None:
    """A binary file is not JSON, and gigabytes are not even read."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"\xff\xfe\x00\x81" * 64)
    with pytest.raises(SpecError, match="not JSON"):
        model_from_config(weights)
    with weights.open("wb") as stream:
        stream.truncate(LARGEST_CONFIG_BYTES + 1)
    with pytest.raises(SpecError, match="too many for a config"):
        model_from_config(weights)
