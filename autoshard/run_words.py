"""The words of published runs: chips, frameworks and precisions, as their sources say them."""

from __future__ import annotations

import dataclasses
import re

from autoshard.catalog import load_chip
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.stack import Stack, stack_by_name


class Unpriced(Exception):
    """A row that the cost models cannot price: the reason in a word or three, and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def chip_of(name: str) -> Chip:
    """The chip that a source names; hardware that is no preset is derived from one that is.

    Raises:
        Unpriced: the chip is not known, or the name leaves open which one it is.
    """
    said = name.lower()
    if " or " in said:
        raise Unpriced("chip not named", f"{name!r} leaves open which chip it is.")
    if "pcie" in said or ("nvl " in f"{said} " and "nvl72" not in said):
        raise Unpriced(
            "chip not known", f"no figures for {name!r}, another board of the same name."
        )
    for word, preset in _CHIPS:
        if word in said:
            return _variant(said, load_chip(preset))
    known = ", ".join(dict.fromkeys(preset for _, preset in _CHIPS))
    raise Unpriced("chip not known", f"no chip is known by the name {name!r}; known: {known}.")


#: The first word that occurs in a name decides.
_CHIPS = (
    *(("gb300", "gb200"), ("b300", "b200"), ("gb200", "gb200"), ("b200", "b200")),
    *(("h200", "h200"), ("h100", "h100"), ("a100", "a100")),
    *(("tpu7x", "ironwood"), ("v7x", "ironwood"), ("ironwood", "ironwood")),
    *(("v6e", "v6e"), ("trillium", "v6e"), ("v5p", "v5p"), ("v5e", "v5e"), ("v5lite", "v5e")),
    *(("v4", "v4p"), ("v3", "v3")),
)


def _variant(said: str, chip: Chip) -> Chip:
    """Hardware that shares a name with a preset; each figure has its source beside it."""
    if "b300" in said:
        # NVIDIA DGX B300 and GB300 NVL72 data sheets: 288 GB of HBM3e at 8 TB/s, and 800 Gb/s of
        # ConnectX-8 per GPU. Dense bf16 and fp8 peaks are those of B200; int8 was cut.
        rates = {name: rate for name, rate in chip.flops_per_s.items() if name != "int8"}
        return dataclasses.replace(
            chip,
            name=chip.name.replace("200", "300"),
            flops_per_s=rates,
            hbm_bytes=288_000_000_000,
            scale_out_bytes_per_s=1e11,
        )
    if "b200" in said and "limit" in said:
        return dataclasses.replace(chip, name=f"{chip.name}-power-limited")
    if "h100" in said and ("hbm2e" in said or "500w" in said):
        # torchtitan's performance notes: 96 GB of HBM2e at 2.4 TB/s, capped at 500 W.
        return dataclasses.replace(
            chip, name="h100-hbm2e-500w", hbm_bytes=96_000_000_000, hbm_bytes_per_s=2.4e12
        )
    if "a100" in said and re.search(r"\b40 ?gb", said):
        # NVIDIA A100 data sheet, 40 GB SXM: 1,555 GB/s.
        return dataclasses.replace(
            chip, name="a100-40gb", hbm_bytes=40_000_000_000, hbm_bytes_per_s=1.555e12
        )
    return chip


#: Publications whose runs all had one machine, whatever the notes of a row say: bytes/s per GPU.
_MACHINES = {"bigscience": 6.25e9}  # JeanZay: 4 Omni-Path ports of 100 Gb/s for 8 GPUs


def fabric(chip: Chip, row_chip: str, notes: str, per_node: int, publication: str) -> Chip:
    """The chip with the network that publication or notes state, else with its own.

    ``per_node`` GPUs share NVLink, except in an NVL72 rack, where the table counts a tray.
    """
    domain = chip.domain_chips if chip.domain_chips > 8 else per_node
    rate = (
        next((rate for name, rate in _MACHINES.items() if name in publication), 0.0)
        or _nic_bytes_per_s(row_chip, notes, per_node)
        or chip.scale_out_bytes_per_s
    )
    # One flat network: the pods of a preset are a size to plan for, not what these runs had.
    return dataclasses.replace(
        chip,
        domain_chips=domain,
        scale_out_bytes_per_s=rate,
        pod_chips=0,
        oversubscription=1.0,
    )


def _nic_bytes_per_s(row_chip: str, notes: str, per_node: int) -> float:
    """Bytes/s per GPU out of notes such as ``4x100Gb Omni-Path`` or ``1600 Gb/s RoCE per node``."""
    family = row_chip.split("-")[0].split(" ")[0]
    by_chip = re.search(rf"\b{re.escape(family)} cluster (\d+) ?Gb/s", notes)
    per_gpu = re.search(r"\b(\d+) ?Gb/s(?: \w+)? per GPU", notes)
    nics = re.search(r"\b(\d+)x(\d+) ?Gb(?:/s)? ", notes)
    node = re.search(r"\b(\d+) ?Gb/s(?: \w+)? per node", notes)
    if by_chip:
        return float(by_chip[1]) * 1e9 / 8 / per_node
    if per_gpu:
        return float(per_gpu[1]) * 1e9 / 8
    if nics:
        return float(nics[1]) * float(nics[2]) * 1e9 / 8 / per_node
    return float(node[1]) * 1e9 / 8 / per_node if node else 0.0


def stack_of(framework: str, year: int) -> Stack:
    """The stack nearest to a framework of that year; blank years count as recent.

    Raises:
        Unpriced: no stack is near.
    """
    said = framework.lower()
    old = 0 < year <= 2022
    for words, name in _FRAMEWORKS:
        if any(word in said for word in words):
            return stack_by_name(name)
    if "megatron" in said:
        return stack_by_name("megatron-2021" if old else "megatron")
    if "deepspeed" in said and old:
        return stack_by_name("megatron-2021")
    if "fsdp" in said:
        return stack_by_name("torchtitan")
    known = "MaxText, torchtitan, llm-foundry, nanotron, NeMo, Megatron, DeepSpeed (2022), FSDP"
    raise Unpriced(
        "framework not known",
        f"no stack is near the framework {framework!r}; words that are known: {known}.",
    )


_FRAMEWORKS = (
    (("maxtext", "paxml", "pax", "jax", "torchprime", "xla", "axlearn", "levanter"), "maxtext"),
    (("torchtitan", "torchao", "fms-fsdp", "meta internal"), "torchtitan"),
    (("llm-foundry", "llm foundry", "composer", "mosaic"), "llm-foundry"),
    (("nanotron",), "nanotron"),
    (("megatron-deepspeed", "megatron deepspeed", "megatron-lm ptd"), "megatron-2021"),
    (("nemo", "megatron-core", "megatron core", "mcore", "bridge"), "megatron"),
)


_COVERED = "known: bf16, fp16, fp8, int8"


def precision_of(said: str, stack: Stack) -> tuple[str, str]:
    """The precision of the matmuls, and how FP8 operands are scaled.

    Raises:
        Unpriced: it is blank, or one that no cost model covers.
    """
    text = said.lower()
    if four := re.search(r"\w*(fp4|float4)", text):
        raise Unpriced(f"precision {four[0]}", f"no cost model covers {said!r}; {_COVERED}.")
    if "fp8" in text or "float8" in text:
        scaled = {"mxfp8": "block", "block": "block", "current": "current", "delayed": "delayed"}
        scaled |= {"row": "rowwise", "tensor": "tensorwise"}
        return "fp8", next((v for k, v in scaled.items() if k in text), stack.fp8_recipe)
    if "int8" in text:
        return "int8", stack.fp8_recipe
    if re.search(r"bf16|fp16|bfloat16|float16|half|16-mixed", text):
        return "bf16", stack.fp8_recipe
    if not text:
        raise Unpriced("precision not stated", "the precision is not stated.")
    raise Unpriced("precision not known", f"no cost model covers {said!r}; {_COVERED}.")
