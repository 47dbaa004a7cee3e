"""Lists of plans for compilers: a TOML file of cases becomes cases.

An entry ``[[case]]`` has what :class:`autoshard.compiled.Case` has, and the plan's degrees flat
among it. ``remat`` is a rung for all layers, or a table of rungs with the layers of each stage that
run under them. Keys above the first entry hold for all of them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoshard.catalog import load_model
from autoshard.compiled import Case
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.model import Model
from autoshard.costmodels.plan import DEGREES, Plan

_OF_CASE = (
    *("name", "compiler", "model", "n_layers", "chip", "topology", "seq_len", "stack"),
    *("stage", "facts", "held_back"),
)
_OF_PLAN = (*DEGREES, "reshard", "pods", "layers_per_stage", "layout")


def read_cases(path: Path) -> tuple[Case, ...]:
    """The cases of a file, in its order.

    Raises:
        SpecError: a key is unknown, a name is there twice, or a plan does not add up.
    """
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    shared = {key: value for key, value in data.items() if key != "case"}
    cases = tuple(_case({**shared, **entry}) for entry in data.get("case", ()))
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpecError(f"{path.name}: {twice[0]!r} is there twice; a case needs its own name.")
    return cases


def cut_model(case: Case) -> Model:
    """The preset with the layers of the case."""
    return replace(load_model(case.model), n_layers=case.n_layers)


def _case(entry: Mapping[str, Any]) -> Case:
    name = entry.get("name", "without a name")
    unknown = set(entry) - {*_OF_CASE, *_OF_PLAN, "remat"}
    missing = {"name", "compiler", "model", "n_layers", "chip", "seq_len", "stack"} - set(entry)
    if unknown or missing:
        what = f"unknown key {min(unknown)!r}" if unknown else f"no {min(missing)!r}"
        raise SpecError(f"case {name!r}: {what}; keys are those of Case and Plan.")
    plan = _plan(entry)
    values = {key: entry[key] for key in _OF_CASE if key in entry}
    return Case(**{"topology": str(plan.chips_used), **values}, plan=plan)


def _plan(entry: Mapping[str, Any]) -> Plan:
    values = {key: entry[key] for key in _OF_PLAN if key in entry}
    pp, layers = values.get("pp", 1), entry["n_layers"]
    dealt = tuple(values.pop("layers_per_stage", ()))
    if not dealt:
        dealt = (layers // pp,) * pp
    if sum(dealt) != layers:
        raise SpecError(
            f"case {entry['name']!r}: stages of {dealt} layers are not {layers}; "
            "give layers_per_stage."
        )
    remat = entry.get("remat", "none")
    rungs = tuple({remat: count} if isinstance(remat, str) else dict(remat) for count in dealt)
    return Plan(**values, layers_per_stage=dealt, remat=rungs)
