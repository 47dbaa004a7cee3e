"""What is known: model presets, chips, cost profiles; as plain values and as table columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from autoshard.catalog import chip_names, load_chip, load_model, model_names
from autoshard.columns import Column
from autoshard.costmodels.chip import Chip

#: What is said under the table of chips.
CHIPS_NOTE = "Peaks are dense TFLOP/s. Networks are GB/s per chip and one way (ICI: axes x rate)."


def models() -> list[dict[str, Any]]:
    """Each model preset: its fields, and its parameter count."""
    presets = [load_model(name) for name in model_names()]
    return [{**asdict(model), "total_params": model.total_params} for model in presets]


def chips() -> list[dict[str, Any]]:
    """Each chip preset: its fields, the figures with their sources."""
    return [asdict(load_chip(name)) for name in chip_names()]


def costs() -> list[dict[str, Any]]:
    """Each cost profile that comes with autoshard, and each entry point of others (not loaded)."""
    from autoshard.costmodels.registry import BUILT_IN, GROUP, published

    known = []
    for name, make in BUILT_IN.items():
        profile = make()
        roles = {model.role: model.name for model in profile.models}
        known.append(
            {"name": name, "from": "autoshard", "about": profile.description, "models": roles}
        )
    for name, point in published().items():
        package = point.dist.name if point.dist is not None else ""
        about = f"entry point of {GROUP}: {point.value}"
        known.append({"name": name, "from": package, "about": about, "models": {}})
    return known


def model_columns() -> list[Column]:
    """The table of ``autoshard models``."""
    rows = models()
    counts = ("n_layers", "d_model", "d_ff", "n_heads", "n_kv_heads", "d_head", "vocab")
    heads = ("layers", "d_model", "d_ff", "heads", "kv heads", "d_head", "vocab")
    return [
        _column("model", [row["name"] for row in rows], left=True),
        _column("parameters", [f"{row['total_params'] / 1e9:.1f}B" for row in rows]),
        *(
            _column(head, [f"{row[field]:,}" for row in rows])
            for head, field in zip(heads, counts, strict=True)
        ),
    ]


def chip_columns() -> list[Column]:
    """The table of ``autoshard clusters``."""
    rows = [load_chip(name) for name in chip_names()]
    return [
        _column("chip", [chip.name for chip in rows], left=True),
        *(
            _column(name, [_tflops(chip, name) for chip in rows])
            for name in ("bf16", "fp8", "int8")
        ),
        _column("memory", [f"{chip.hbm_bytes / 1e9:g} GB" for chip in rows]),
        _column("HBM", [f"{chip.hbm_bytes_per_s / 1e12:.2f} TB/s" for chip in rows]),
        _column("pod", [_pod(chip) for chip in rows], left=True),
        _column("networks", [_networks(chip) for chip in rows], left=True),
    ]


def cost_columns() -> list[Column]:
    """The table of ``autoshard models --costs``."""
    rows = costs()
    return [
        _column("cost profile", [row["name"] for row in rows], left=True),
        _column("from", [row["from"] for row in rows], left=True),
        _column("about", [row["about"] for row in rows], left=True),
    ]


def _column(head: str, cells: Sequence[str], left: bool = False) -> Column:
    return Column(head=head, cells=tuple(cells), left=left)


def _tflops(chip: Chip, precision: str) -> str:
    rate = chip.flops_per_s.get(precision)
    return f"{rate / 1e12:,.0f}" if rate else "-"


def _pod(chip: Chip) -> str:
    if chip.kind == "tpu":
        return f"{'x'.join(map(str, chip.pod_axes))} = {math.prod(chip.pod_axes):,}"
    return f"{chip.pod_chips:,}" if chip.pod_chips else "any"


def _networks(chip: Chip) -> str:
    if chip.kind == "tpu":
        ici = f"ICI {len(chip.pod_axes)} x {chip.ici_bytes_per_s / 2e9:g}"
        return ici + (f", DCN {chip.dcn_bytes_per_s / 1e9:g}" if chip.dcn_bytes_per_s else "")
    inner = f"NVLink {chip.domain_bytes_per_s / 1e9:g} among {chip.domain_chips}"
    outer = chip.scale_out_bytes_per_s / 1e9
    return inner + (f", scale-out {outer:g}" if outer else "")
