"""Clusters from a TOML file, for hardware that no preset describes.

    name = "our-cluster"        # optional
    chip = "h100"               # a preset, or a [chip] table
    chips = 1024                # or pods = 2, or topology = "16x20x28" on TPU

A ``[chip]`` table starts from a preset with ``base = "h100"`` and replaces any field of ``Chip``,
or gives all of them.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autoshard.catalog import chip_names, load_chip
from autoshard.costmodels.checks import shown
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.cluster import AXIS_NAMES, Cluster
from autoshard.costmodels.errors import SpecError, UnknownName

_KEYS = ("name", "chip", "chips", "pods", "topology")
_CHIP_KEYS = tuple(field.name for field in dataclasses.fields(Chip))
_REQUIRED_CHIP_KEYS = ("name", "kind", "flops_per_s", "hbm_bytes", "hbm_bytes_per_s")
#: Fields that only one kind of chip reads; on the other kind they would be ignored in silence.
_ONE_KIND = {
    "pod_axes": "tpu",
    "wrap": "tpu",
    "ici_bytes_per_s": "tpu",
    "dcn_bytes_per_s": "tpu",
    "domain_chips": "gpu",
    "domain_bytes_per_s": "gpu",
    "scale_out_bytes_per_s": "gpu",
    "pod_chips": "gpu",
    "oversubscription": "gpu",
}
#: Counts that people write as ``hbm_bytes = 80e9``, which TOML reads as a float.
_COUNTS = ("hbm_bytes", "domain_chips", "pod_chips")


def load_cluster(path: str | os.PathLike[str]) -> Cluster:
    """The cluster that a TOML file describes.

    Raises:
        SpecError: the file cannot be read, a key is unknown or of the wrong type, or the sizes
            contradict each other; the message names the file and the key.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise SpecError(f"cluster must be a Cluster or the path of a TOML file, got {shown(path)}.")
    file = Path(path)
    try:
        return _cluster(_read(file), source=f"cluster file {file}")
    except SpecError as error:
        raise SpecError(f"cluster file {file}: {error}") from error


def parse_topology(text: str) -> tuple[int, ...]:
    """The axes of a torus written as ``16x20x28``.

    Raises:
        SpecError: it is not one to three positive whole numbers joined by ``x``.
    """
    parts = [part.strip() for part in text.lower().split("x")]
    if not all(re.fullmatch("0*[1-9][0-9]{0,11}", part) for part in parts):
        raise SpecError(
            f"topology {text!r} is not one to three positive whole numbers joined by x, such as "
            "16x20x28."
        )
    return _axes(tuple(int(part) for part in parts))


def _axes(axes: tuple[int, ...]) -> tuple[int, ...]:
    if not 1 <= len(axes) <= len(AXIS_NAMES):
        raise SpecError(
            f"topology {'x'.join(map(str, axes[:8])) or '[]'} has {len(axes)} axes; a torus has "
            f"one to {len(AXIS_NAMES)}, such as 16x20x28."
        )
    return axes


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SpecError("there is no such file; pass the path of a TOML file.") from None
    except OSError as error:
        raise SpecError(f"it cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"it is not TOML ({error}).") from error


def _cluster(table: Mapping[str, Any], source: str) -> Cluster:
    _refuse_unknown("key", table, _KEYS)
    if "chip" not in table:
        raise SpecError(
            f"key chip is missing; give a preset ({', '.join(chip_names())}) or a [chip] table."
        )
    chip = table["chip"]
    topology = table.get("topology")
    return Cluster.build(
        _chip(chip, source) if isinstance(chip, dict) else load_chip(_text("chip", chip)),
        chips=table.get("chips"),
        pods=table.get("pods"),
        topology=None if topology is None else topology_axes(topology),
        name=_text("name", table["name"]) if "name" in table else None,
    )


def topology_axes(value: object) -> tuple[int, ...]:
    """The axes of a torus from ``"16x20x28"`` or a list of lengths.

    Raises:
        SpecError: it is neither, or has no axis or more than three.
    """
    if isinstance(value, str):
        return parse_topology(value)
    if isinstance(value, (list, tuple)) and all(type(n) is int and n > 0 for n in value):
        return _axes(tuple(value))
    raise SpecError(
        'topology must be text such as "16x20x28" or a list such as [16, 20, 28], got '
        f"{shown(value)}."
    )


def _chip(table: Mapping[str, Any], source: str) -> Chip:
    _refuse_unknown("[chip] key", table, (*_CHIP_KEYS, "base"))
    given = {key: _chip_field(key, value) for key, value in table.items()}
    base = load_chip(given.pop("base")) if "base" in given else None
    if base is None:
        missing = [key for key in _REQUIRED_CHIP_KEYS if key not in given]
        if missing:
            raise SpecError(
                f"[chip] lacks {', '.join(missing)}; add that, or start from a preset with "
                'base = "h100".'
            )
    kind = given.get("kind", base.kind if base else "")
    for key in given:
        if _ONE_KIND.get(key, kind) != kind and kind in _ONE_KIND.values():
            raise SpecError(
                f"[chip] {key} belongs to a {_ONE_KIND[key]}, and this chip is a {kind}."
            )
    # A changed figure must not keep the preset's source.
    own = {key: source for key in given if key not in ("name", "kind", "sources")}
    sources = own | given.get("sources", {})
    if base is None:
        return Chip(**(given | {"sources": sources}))
    if "flops_per_s" in given:
        given["flops_per_s"] = {**base.flops_per_s, **given["flops_per_s"]}
    return dataclasses.replace(base, **(given | {"sources": {**base.sources, **sources}}))


def _chip_field(key: str, value: Any) -> Any:
    """The value as ``Chip`` takes it; ``Chip`` itself judges the numbers."""
    if key in ("name", "base", "kind", "wrap"):
        return _text(f"[chip] {key}", value)
    if key in ("flops_per_s", "sources"):
        if not isinstance(value, dict):
            raise SpecError(f"[chip] {key} must be a table, got {value!r}.")
        if key == "sources":
            return {name: _text(f"[chip] sources.{name}", text) for name, text in value.items()}
        return value
    if key == "pod_axes":
        if not isinstance(value, list):
            raise SpecError(f"[chip] pod_axes must be a list such as [16, 16], got {value!r}.")
        return tuple(value)
    if key in _COUNTS and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SpecError(f"{key} must be text in quotes, got {value!r}.")
    return value


def _refuse_unknown(kind: str, table: Iterable[str], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise UnknownName(kind, key, known)
