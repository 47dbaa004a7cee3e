"""``--plan tp=8,pp=16,...``: the values of a plan as people say them, read and checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from autoshard.costmodels.checks import check_count, shown
from autoshard.costmodels.errors import SpecError, UnknownName
from autoshard.costmodels.remat import Rung

EXAMPLE = "tp=8,pp=16,micro_batch_size=1,remat=full:2"

#: Values that are whole numbers.
COUNTS = (
    *("dp", "fsdp", "batch_split", "seq_split", "tp", "pp", "vpp", "cp", "ep"),
    *("microbatches", "micro_batch_size", "reshard", "chips_used"),
)
REMAT, REMAT_COUNT, LAYERS = "remat", "remat_layers_per_chunk", "layers_per_stage"
#: All values that a plan can be said by.
NAMES = (*COUNTS, REMAT, REMAT_COUNT, LAYERS)

Values = dict[str, Any]


def read_values(said: str | Mapping[str, Any]) -> Values:
    """The values of ``"tp=8,pp=16,remat=full:2,layers_per_stage=7+14x8+7"``, or of a mapping.

    ``remat=full:2`` runs two layers of each model chunk under ``full`` and the others under the
    first rung of the ladder; ``layers_per_stage=7+14x8+7`` are 7, fourteen times 8 and 7 layers.

    Raises:
        SpecError: no values, an unknown name, one that is said twice, or no value of its kind.
    """
    values: Values = {}
    if isinstance(said, str):
        for part in said.split(","):
            name, equals, value = (word.strip() for word in part.partition("="))
            if not equals or not name or not value:
                raise SpecError(f"--plan wants NAME=VALUE, as in {EXAMPLE}, got {shown(part)}.")
            if name in values:
                raise SpecError(f"--plan gives {name} twice; say it once.")
            values[name] = value
    elif isinstance(said, Mapping):
        values = dict(said)
    if not values:
        raise SpecError(f"a plan is said by values such as {EXAMPLE}, got {shown(said)}.")
    read: Values = {}
    for name, value in values.items():
        if name not in NAMES:
            raise UnknownName("value of a plan", str(name), NAMES)
        if value is not None:
            read |= _READERS.get(name, _count)(name, value)
    return read


def _count(name: str, value: Any) -> Values:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    check_count("plan", name, value, least=0 if name == REMAT_COUNT else 1)
    return {name: value}


def _remat(name: str, value: Any) -> Values:
    if not isinstance(value, str):
        raise SpecError(f"plan: remat is the name of a rung, such as full, got {shown(value)}.")
    rung, colon, count = value.partition(":")
    return {name: rung} | (_count(REMAT_COUNT, count) if colon else {})


def _layers(name: str, value: Any) -> Values:
    if isinstance(value, str):
        numbers: list[int] = []
        for part in value.split("+"):
            match = re.fullmatch(r"\s*(?:([0-9]{1,6})\s*x\s*)?([0-9]{1,6})\s*", part)
            if match is None or int(match[1] or 1) > 10**5:
                raise SpecError(
                    f"plan: layers_per_stage lists layers, as in 7+14x8+7, got {shown(value)}."
                )
            numbers += [int(match[2])] * int(match[1] or 1)
        value = numbers
    if not isinstance(value, (list, tuple)) or not value:
        raise SpecError(f"plan: layers_per_stage lists layers, got {shown(value)}.")
    for number in value:
        check_count("plan", name, number)
    return {name: tuple(value)}


_READERS: Mapping[str, Callable[[str, Any], Values]] = {
    REMAT: _remat,
    LAYERS: _layers,
}


def rung_named(name: str, ladder: tuple[Rung, ...]) -> str:
    """The rung that a name means; ``none`` and ``full`` are the ends of a ladder without them.

    Raises:
        UnknownName: the ladder has no such rung.
    """
    names = [rung.name for rung in ladder]
    if name in names:
        return name
    if name == "none" and not ladder[0].recompute:
        return names[0]
    if name == "full":
        return names[-1]
    raise UnknownName("remat rung", name, names)
