"""Models and chips by name: presets that ship as data, and Hugging Face configs on disk.

The figures and their sources are in ``catalog/models.toml`` and ``catalog/chips.toml``.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from autoshard.costmodels.chip import Chip
from autoshard.costmodels.errors import SpecError, UnknownName
from autoshard.costmodels.model import Model

_DATA = Path(__file__).parent / "catalog"

#: ``organisation/model``, as on huggingface.co, and not a path such as ``./model`` or ``~/model``.
_HUGGING_FACE_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def model_names() -> tuple[str, ...]:
    """The model presets, in the order of the catalog."""
    return tuple(_tables("models.toml"))


def chip_names() -> tuple[str, ...]:
    """The chip presets without their aliases, in the order of the catalog."""
    return tuple(_tables("chips.toml"))


def load_model(name_or_path: str | os.PathLike[str]) -> Model:
    """A model by preset name, or from a Hugging Face ``config.json`` (or its directory) on disk.

    A preset wins over a file or directory of the same name; write ``./llama3-8b`` for the latter.

    Raises:
        UnknownName: no preset has that name; the nearest are offered.
        SpecError: it is a path and there is no usable config, or an id on huggingface.co.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise SpecError(f"a model is a preset name or a path, got {name_or_path!r}.")
    if isinstance(name_or_path, str):
        key, presets = _key(name_or_path), _tables("models.toml")
        if key in presets:
            return Model(name=key, **presets[key])
        if not os.path.exists(name_or_path):
            _refuse_what_is_no_path(name_or_path, presets)
    # Only a config on disk needs the reader; presets stay quick to load.
    from autoshard.hf_config import model_from_config

    return model_from_config(name_or_path)


def load_chip(name: str) -> Chip:
    """A chip by preset name or alias, in any case.

    Raises:
        UnknownName: no chip has that name; the nearest are offered.
    """
    if not isinstance(name, str):
        raise SpecError(f"a chip is a preset name, got {name!r}.")
    tables = _tables("chips.toml")
    ids = {alias: id_ for id_, table in tables.items() for alias in (id_, *table["aliases"])}
    key = _key(name)
    if key not in ids:
        near = difflib.get_close_matches(key, ids, n=1, cutoff=0.5)
        raise UnknownName("chip", name, ids if near else tables)
    fields = {field: value for field, value in tables[ids[key]].items() if field != "aliases"}
    fields["pod_axes"] = tuple(fields.get("pod_axes", ()))
    # Fresh mappings: a caller that changes its chip must not change the cached tables.
    fields["flops_per_s"] = dict(fields["flops_per_s"])
    fields["sources"] = dict(fields["sources"])
    return Chip(name=ids[key], **fields)


@functools.cache
def _tables(file: str) -> dict[str, dict[str, Any]]:
    import tomllib

    with (_DATA / file).open("rb") as stream:
        return tomllib.load(stream)


def _key(name: str) -> str:
    return name.strip().lower().replace(" ", "-").replace("_", "-")


def _refuse_what_is_no_path(name: str, presets: Collection[str]) -> None:
    """Answer a name that is neither a preset nor on disk, unless it is written like a path."""
    if name.lower().endswith(".json"):
        return
    if _HUGGING_FACE_ID.fullmatch(name):
        near = difflib.get_close_matches(_key(name.partition("/")[2]), list(presets), n=2)
        hint = f"such as {' or '.join(near)}" if near else f"one of {', '.join(presets)}"
        raise SpecError(
            f"model {name!r} is not on disk; if it is a Hugging Face id, download its "
            f"config.json and pass that path (nothing is fetched), or use a preset, {hint}."
        )
    if os.sep not in name and (os.altsep or os.sep) not in name:
        raise UnknownName("model", name, presets)
