"""What published runs recompute: their words, as shares of a stack's remat ladder."""

from __future__ import annotations

import re
from collections.abc import Collection

from autoshard.costmodels.layer_tensors import repeated_operations
from autoshard.costmodels.model import Model
from autoshard.costmodels.remat import Rung
from autoshard.costmodels.stack import Stack
from autoshard.run_words import Unpriced

#: Tensors by the names that MaxText's ``remat_policy: custom`` and its readers use.
_TENSORS = {
    "context": ("context", "log_sum_exp"),
    "qkv": ("query_proj", "key_proj", "value_proj"),
    "qkv_proj": ("query_proj", "key_proj", "value_proj"),
    "kv_proj": ("key_proj", "value_proj"),
    "q": ("query_proj",),
    "query_proj": ("query_proj",),
    "k": ("key_proj",),
    "key_proj": ("key_proj",),
    "v": ("value_proj",),
    "value_proj": ("value_proj",),
    "out_proj": ("out_proj",),
    "mlpwi": ("mlpwi_0", "mlpwi_1"),
    "mlpwi_0": ("mlpwi_0",),
    "mlpwi_1": ("mlpwi_1",),
    "mlpwo": ("mlpwo",),
}
#: Policies of other names that keep what a rung keeps, and older names of rungs.
_SYNONYMS = {
    # praxis keeps every dot; those of flash attention are inside its kernel.
    "save_dot_only": "minimal",
    "save_dot_except_logits": "minimal",
    "minimal_flash": "minimal_with_context",
    "minimal_offloaded": "minimal",
    "qkv_proj_offloaded": "save_qkv_proj",
    "proj": "save_qkv_proj",
}
_NOTHING = r"none|off|no|false|disabled|no (recompute|remat|activation checkpointing|checkpointing)"
_EVERYTHING = (
    r"full\b|uniform|\bscan\b|whole layer|block remat|true\b|yes\b|on\b|"
    r"(per-layer )?(gradient|activation) checkpointing"
)

Shares = tuple[dict[str, float], tuple[str, ...]]


def remat_of(said: str, stack: Stack, model: Model, seq_len: int) -> Shares:
    """The share of the layers under each rung, and flags for what was assumed.

    Raises:
        Unpriced: nothing is said, or nothing that the ladder of the stack knows.
    """
    text = said.strip().lower()
    if not text:
        raise Unpriced(
            "recompute not stated", f"what is recomputed is not stated; {_words(stack)}."
        )
    rungs = {rung.name for rung in stack.ladder}
    if re.fullmatch(_NOTHING, text):
        return {"none": 1.0}, ()
    if "full" in rungs:
        partial = _partial(text, model)
        if partial:
            return partial
    if stack.name.startswith("maxtext"):
        return _policy(text, stack, model, seq_len)
    if re.match(_EVERYTHING, text):
        return {"full": 1.0}, ()
    if "selective" in text or "sac" in text or "core_attn" in text or "core attention" in text:
        return _selective(text, said, stack)
    raise _unknown(said, stack)


def _unknown(said: str, stack: Stack) -> Unpriced:
    return Unpriced(
        "recompute not known", f"{stack.name} has no rung for {said!r}; {_words(stack)}."
    )


def _words(stack: Stack) -> str:
    return f"known: {', '.join(rung.name for rung in stack.ladder)}"


def _partial(text: str, model: Model) -> Shares | None:
    """Some layers recomputed whole, the others not at all."""
    if "selective module" in text:
        return None
    of = re.search(r"\b(\d+) (?:of|in|out of) (?:every )?(\d+) layers?\b", text)
    if of and 0 < int(of[1]) <= int(of[2]):
        return _split(int(of[1]) / int(of[2])), ()
    some = re.search(r"\b(\d+) layers?\b", text)
    if some and "full" in text and int(some[1]) <= model.n_layers:
        return _split(int(some[1]) / model.n_layers), ()
    if "selective_layer" in text or "selective layer" in text or text == "selective ac":
        # torchtitan's default and fms-fsdp's example: every second layer.
        return _split(0.5), ("share-assumed",)
    return None


def _split(full: float) -> dict[str, float]:
    shares = {"none": 1.0 - full, "full": full}
    return {name: share for name, share in shares.items() if share > 0}


def _selective(text: str, said: str, stack: Stack) -> Shares:
    rungs = {rung.name for rung in stack.ladder}
    if "selective_op" in rungs:
        return {"selective_op": 1.0}, ()
    modules = re.search(r"modules?: ?([\w+, ]+)", text)
    named = re.split(r"[+, ]+", modules[1].strip()) if modules else ["core_attn"]
    if "selective" in rungs and "core_attn" in named:
        return {"selective": 1.0}, () if named == ["core_attn"] else ("nearest-rung",)
    raise _unknown(said, stack)


def _policy(text: str, stack: Stack, model: Model, seq_len: int) -> Shares:
    """A policy of MaxText by name, or by the tensors that it lists."""
    rungs = {rung.name: rung for rung in stack.ladder}
    flags = ("host-offload",) if "offload" in text else ()
    for word in re.findall(r"\w+", text):
        name = _SYNONYMS.get(word, word)
        if name in rungs and word not in _TENSORS:
            return {name: 1.0}, flags
    if re.match(_EVERYTHING, text):
        return {"full": 1.0}, flags
    if not re.search(r"custom|save|keep|offload|device", text):
        raise _unknown(text, stack)
    clauses = [c for c in re.split(r"[;(]", text) if not re.search(r"\bre(mat|compute)\b$|^re", c)]
    kept = {
        tensor
        for clause in clauses
        for word in re.findall(r"\w+", clause)
        for tensor in _TENSORS.get(word, ())
    }
    name, exact = _nearest(kept, stack.ladder, model, seq_len)
    return {name: 1.0}, flags if exact else (*flags, "nearest-rung")


def layer_work(model: Model, seq_len: int) -> dict[str, int]:
    """Multiply-adds of each operation of a layer for each token; attention over the square."""
    d, attention = model.d_model, model.d_attention
    return {
        "query": d * attention,
        "key": d * model.d_kv,
        "value": d * model.d_kv,
        "attention": seq_len * attention,
        "output": attention * d,
        "mlp_in": (model.mlp_matrices - 1) * d * model.d_ff,
        "mlp_out": d * model.d_ff,
    }


def _nearest(
    kept: Collection[str], ladder: tuple[Rung, ...], model: Model, seq_len: int
) -> tuple[str, bool]:
    """The rung that repeats the same operations, or the fewest FLOPs more and less."""
    flops = layer_work(model, seq_len)
    repeats = set(repeated_operations(("layer_input", *kept)))

    def distance(rung: Rung) -> tuple[int, int]:
        odd = repeats ^ set(rung.recompute)
        return sum(flops.get(name, 0) for name in odd), len(set(rung.kept) ^ set(kept))

    best = min(ladder, key=distance)
    return best.name, distance(best)[0] == 0
