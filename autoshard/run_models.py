"""The models of published runs: a family says what a table of sizes leaves out."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from autoshard.costmodels.model import Model
from autoshard.run_table import Row
from autoshard.run_words import Unpriced


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the models of one name share; ``ff_ratio`` is ``d_ff / d_model`` where that is fixed."""

    gated: bool = True
    norm: str = "rmsnorm"
    tied: bool = False
    parallel: bool = False
    biased: bool = False
    qkv_bias: bool = False
    learned_positions: bool = False
    ff_ratio: int = 0
    one_norm: bool = False


_LLAMA = Family()
_GPT = Family(
    gated=False, norm="layernorm", tied=True, biased=True, learned_positions=True, ff_ratio=4
)
_MAXTEXT_2023 = Family(gated=False, tied=True, parallel=True, one_norm=True)

#: The first word that occurs in a model's name decides.
_FAMILIES = (
    # MPT: GELU, biases, learned positions, tied; the tests compare with the counts in the notes.
    ("mpt", _GPT),
    # Nemotron: squared ReLU, layernorm1p, rotary, no biases, untied (arXiv 2402.16819).
    ("nemotron", Family(gated=False, norm="layernorm")),
    # BLOOM: ALiBi instead of positions (arXiv 2211.05100).
    ("bloom", dataclasses.replace(_GPT, learned_positions=False)),
    ("opt-", _GPT),
    ("gpt", _GPT),
    # Qwen 1.5 to 2.5 have biases on q, k and v; Qwen 3 has not.
    ("qwen3", _LLAMA),
    ("qwen", Family(qkv_bias=True)),
    ("gemma", Family(tied=True)),
    ("falcon", Family(gated=False, norm="layernorm", tied=True, parallel=True, one_norm=True)),
    ("pythia", Family(gated=False, norm="layernorm", parallel=True, biased=True, ff_ratio=4)),
    ("starcoder", _GPT),
    *((word, _LLAMA) for word in ("llama", "mistral", "mixtral", "deepseek", "yi-", "olmo")),
    *((word, _LLAMA) for word in ("internlm", "baichuan", "granite")),
)


def model_of(row: Row) -> tuple[Model, tuple[str, ...]]:
    """The model of a row, and flags for what had to be assumed.

    Raises:
        Unpriced: it has experts, local attention, or sizes that are not stated.
        SpecError: sizes contradict each other.
    """
    name = row.text("model") or row.id
    if (row.count("n_experts") or 1) > 1:
        raise Unpriced("experts", f"{name} has experts, which no cost model covers.")
    said = name.lower()
    if re.search(r"gemma-?[234](?![\db])", said):
        # Gemma 2 to 4 attend to a window of tokens in most of their layers.
        raise Unpriced("local attention", f"{name} attends to a window in some of its layers.")
    sizes = {
        field: row.count(field)
        for field in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_ff", "vocab")
    }
    family = _family(row, said)
    flags: tuple[str, ...] = ()
    if family is None:
        family = _guessed(sizes["d_ff"], sizes["d_model"])
        flags = ("mlp-assumed",)
    d_model, heads = sizes["d_model"], sizes["n_heads"]
    if d_model and heads:
        if family in (_GPT, _MAXTEXT_2023):
            sizes["n_kv_heads"] = sizes["n_kv_heads"] or heads
        if d_model % heads == 0:
            sizes["d_head"] = sizes["d_head"] or d_model // heads
        sizes["d_ff"] = sizes["d_ff"] or family.ff_ratio * d_model
    stated = {field: size for field, size in sizes.items() if size}
    if len(stated) < len(sizes):
        missing = ", ".join(field for field in sizes if field not in stated)
        raise Unpriced("shape not stated", f"{name}: {missing} not stated.")
    # ALiBi instead of positions: BLOOM and the models tried out for it.
    positions = family.learned_positions and "alibi + " not in row.words("notes")
    model = Model(
        name=name,
        n_layers=stated["n_layers"],
        d_model=stated["d_model"],
        d_ff=stated["d_ff"],
        n_heads=stated["n_heads"],
        n_kv_heads=stated["n_kv_heads"],
        d_head=stated["d_head"],
        vocab=stated["vocab"],
        gated_mlp=family.gated,
        tied_embeddings=family.tied or _small_and_tied(said),
        parallel_block=family.parallel,
        norm=family.norm,
        norms_per_layer=1 if family.one_norm else 2,
        qkv_bias=family.qkv_bias,
        linear_bias=family.biased,
        n_positions=(row.count("seq_len") or 0) if positions else 0,
        source=row.text("source"),
    )
    return _tied_by_size(model, said), flags


def _family(row: Row, said: str) -> Family | None:
    if "maxtext" in said:
        # Until 2023 the default block was PaLM's: attention and a plain MLP side by side.
        modern = "2024" in said or (row.count("year") or 0) >= 2024
        return _LLAMA if modern else _MAXTEXT_2023
    return next((family for word, family in _FAMILIES if word in said), None)


def _guessed(d_ff: int | None, d_model: int | None) -> Family:
    """A family for a name nobody knows: a plain MLP is four times as wide as the model."""
    return Family(gated=d_ff != 4 * (d_model or 0))


def _small_and_tied(said: str) -> bool:
    """Llama 3.2 and the small Qwens share one table; their larger sisters do not."""
    return bool(re.search(r"llama-?3\.2-[13]b|qwen(2|2\.5|3)-(0\.5|0\.6|1\.5|1\.7|3|4)b", said))


def _tied_by_size(model: Model, said: str) -> Model:
    """Nanotron's "Llama-like" models: the stated size tells whether the table is shared."""
    size = re.search(r"llama-like-(\d+(?:\.\d+)?)b", said)
    if not size:
        return model
    both = [dataclasses.replace(model, tied_embeddings=tied) for tied in (False, True)]
    return min(both, key=lambda choice: abs(choice.total_params - float(size[1]) * 1e9))


def flops_per_token(model: Model, seq_len: int, convention: str) -> float | None:
    """Training FLOPs of a token under a source's own convention; None where it is unclear.

    The conventions are listed in ``measured/README.md``; what a recomputation adds is not in any of
    those used here.
    """
    said = convention.lower()
    attention = 12.0 * model.n_layers * model.d_attention * seq_len
    if "hardware" in said:
        return None
    if said.startswith("6n_noattn"):
        return 6.0 * model.total_params
    weights = model.total_params if said.startswith("6n") else model.matmul_params
    unclear = "ambiguous" in said or "causal handling not stated" in said
    if not unclear and ("full" in said or "12*l*" in said):
        return 6.0 * weights + attention
    if "causal" not in said or (unclear and attention > weights):
        return None
    # Where it is unclear, attention is halved: a few per cent of the step at most.
    return 6.0 * weights + attention / 2
