"""Model shapes from a Hugging Face ``config.json``, for the dense decoder families.

Which key means what, the defaults of absent keys, and which layers carry biases follow the
configuration and modelling code of each family in Hugging Face Transformers
(https://github.com/huggingface/transformers/tree/main/src/transformers/models), so that
``Model.total_params`` is the count that Transformers prints. Attention windows are not read: a
sliding-window model is costed as full causal attention.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoshard.costmodels.checks import check_count
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.model import Model

#: A config is a few kilobytes; anything far larger is weights passed by mistake.
LARGEST_CONFIG_BYTES = 16 * 2**20

_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def model_from_config(path: str | os.PathLike[str]) -> Model:
    """The model that a ``config.json``, or a directory that holds one, describes.

    The model is called after the directory, or after the file where that has a name of its own.

    Raises:
        SpecError: the file cannot be read, is of a family that is not covered, or lacks a key; the
            message names the file and the key.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    try:
        return _model(_read(file), _name(file), source=f"{file} (Hugging Face config)")
    except SpecError as error:
        raise SpecError(f"model config {file}: {error}") from error


def _read(file: Path) -> dict[str, object]:
    try:
        size = file.stat().st_size
        if size > LARGEST_CONFIG_BYTES:
            raise SpecError(f"{size} bytes are too many for a config; pass a config.json.")
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise SpecError("there is no such file; pass the path of a config.json.") from None
    except OSError as error:
        raise SpecError(f"it cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"it is not JSON ({error}); pass a Hugging Face config.json.") from error
    if not isinstance(config, dict):
        kind = type(config).__name__
        raise SpecError(f"the top level must be a JSON object, got {kind}.")
    return config


def _name(file: Path) -> str:
    if file.name != "config.json":
        return file.stem
    return file.resolve().parent.name or "model"


def _model(keys: Mapping[str, object], name: str, source: str) -> Model:
    families = ", ".join(sorted(_FAMILIES))
    family = keys.get("model_type")
    if family is None:
        raise SpecError(f"key model_type is missing; these families work: {families}.")
    if not isinstance(family, str):
        raise SpecError(f"model_type must be a string, got {family!r}; known: {families}.")
    experts = [key for key in _EXPERT_KEYS if keys.get(key) not in (None, 0, 1)]
    if experts or "moe" in family or family == "mixtral":
        reason = f"{experts[0]} = {keys[experts[0]]!r}" if experts else f"model_type {family!r}"
        raise SpecError(
            f"{reason} means a mixture of experts, and experts are not costed yet; "
            f"dense models of these families work: {families}."
        )
    if family not in _FAMILIES:
        raise SpecError(f"model_type {family!r} is not covered; these families work: {families}.")
    fields = _FAMILIES[family](_Config(family=family, keys=keys))
    return Model(name=name, source=source, **fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """Typed reading of one config; ``null`` counts as absent, as it does in Transformers."""

    family: str
    keys: Mapping[str, object]

    def count(self, key: str, default: int | None = None) -> int:
        """A positive whole number; ``default`` of None makes the key required."""
        value = self.keys.get(key)
        if value is None:
            if default is None:
                raise SpecError(f"key {key} is missing; a {self.family} config must have it.")
            return default
        check_count(f"{self.family} config", key, value)
        assert isinstance(value, int)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.keys.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise SpecError(f"{self.family} config: {key} must be true or false, got {value!r}.")
        return value

    def head_width(self, width_key: str, heads_key: str) -> int:
        """The width of a head that the model's width is dealt to."""
        width, heads = self.count(width_key), self.count(heads_key)
        if width % heads:
            raise SpecError(
                f"{self.family} config: {width_key} = {width} is not a multiple of "
                f"{heads_key} = {heads}, so heads have no whole width."
            )
        return width // heads


def _llama(config: _Config) -> dict[str, Any]:
    attention_bias = config.flag("attention_bias", False)
    return _rotary_gated(config) | {
        "qkv_bias": attention_bias,
        "out_bias": attention_bias,
        "mlp_bias": config.flag("mlp_bias", False),
    }


def _mistral(config: _Config) -> dict[str, Any]:
    return _rotary_gated(config)


def _qwen2(config: _Config) -> dict[str, Any]:
    # The family always has biases on q, k and v; the config has no key for them.
    return _rotary_gated(config) | {"qkv_bias": True}


def _gemma(config: _Config) -> dict[str, Any]:
    attention_bias = config.flag("attention_bias", False)
    return _rotary_gated(config, tied=True, default_head=256) | {
        "qkv_bias": attention_bias,
        "out_bias": attention_bias,
    }


def _rotary_gated(
    config: _Config, *, tied: bool = False, default_head: int | None = None
) -> dict[str, Any]:
    """What Llama, Mistral, Qwen2 and Gemma share: grouped queries, gated MLP, RMSNorm, rotary."""
    heads = config.count("num_attention_heads")
    kv_heads = config.count("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise SpecError(
            f"{config.family} config: num_attention_heads = {heads} is not a multiple of "
            f"num_key_value_heads = {kv_heads}."
        )
    if default_head is None and config.keys.get("head_dim") is None:
        default_head = config.head_width("hidden_size", "num_attention_heads")
    return {
        "n_layers": config.count("num_hidden_layers"),
        "d_model": config.count("hidden_size"),
        "d_ff": config.count("intermediate_size"),
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "d_head": config.count("head_dim", default=default_head),
        "vocab": config.count("vocab_size"),
        "tied_embeddings": config.flag("tie_word_embeddings", tied),
    }


def _gpt2(config: _Config) -> dict[str, Any]:
    if config.flag("add_cross_attention", False):
        raise SpecError("add_cross_attention = true is not covered: only decoders are costed.")
    width = config.count("n_embd")
    heads = config.count("n_head")
    return {
        "n_layers": config.count("n_layer"),
        "d_model": width,
        "d_ff": config.count("n_inner", default=4 * width),
        "n_heads": heads,
        "n_kv_heads": heads,
        "d_head": config.head_width("n_embd", "n_head"),
        "vocab": config.count("vocab_size"),
        "n_positions": config.count("n_positions"),
        "gated_mlp": False,
        "norm": "layernorm",
        "linear_bias": True,
        "tied_embeddings": config.flag("tie_word_embeddings", True),
    }


def _gpt_neox(config: _Config) -> dict[str, Any]:
    heads = config.count("num_attention_heads")
    attention_bias = config.flag("attention_bias", True)
    return {
        "n_layers": config.count("num_hidden_layers"),
        "d_model": config.count("hidden_size"),
        "d_ff": config.count("intermediate_size"),
        "n_heads": heads,
        "n_kv_heads": heads,
        "d_head": config.head_width("hidden_size", "num_attention_heads"),
        "vocab": config.count("vocab_size"),
        "gated_mlp": False,
        "norm": "layernorm",
        "parallel_block": config.flag("use_parallel_residual", True),
        "qkv_bias": attention_bias,
        "out_bias": attention_bias,
        "mlp_bias": True,
        "tied_embeddings": config.flag("tie_word_embeddings", False),
    }


_FAMILIES: dict[str, Callable[[_Config], dict[str, Any]]] = {
    "gemma": _gemma,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
}
