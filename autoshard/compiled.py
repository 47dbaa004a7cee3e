"""What a compiler says of a plan: the records of ``autoshard/measured/compilers.json``.

Compilers are referees without hardware: XLA:TPU compiles ahead of time for any slice, PyTorch
traces under fake tensors. ``tests/compilers`` makes the records, where the extra ``compilers`` is
installed; this module reads them anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autoshard.costmodels.plan import Plan

SCHEMA = "autoshard.compilers/1"

#: Kinds of collectives; ``permute`` passes blocks round, ``send`` goes to the next stage.
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "permute", "all-to-all", "send")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """Collectives of one kind and size in the program of one chip.

    ``array_bytes`` is the array of one group that one of them works on: gathered, before it is
    scattered, reduced; or what one chip passes on. ``axes`` are names of
    :func:`autoshard.launch.mesh.mesh_axes`. ``times`` counts how often it runs in a step, trip
    counts of loops included; ``what`` says what moves, such as ``forward layer weights``.
    """

    kind: str
    axes: tuple[str, ...]
    group_size: int
    array_bytes: int
    times: int
    dtype: str
    what: str = ""

    @property
    def moved_bytes(self) -> float:
        """Bytes that each chip sends in a step, as a ring moves them (sharding.md)."""
        share = (self.group_size - 1) / self.group_size
        factor = {"all-gather": share, "reduce-scatter": share, "all-reduce": 2 * share}
        factor["all-to-all"] = share
        return factor.get(self.kind, 1.0) * self.array_bytes * self.times


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A plan for a compiler: what is compiled, and for what.

    ``model`` is a preset cut to ``n_layers``. ``topology`` is the slice of one pod (``4x4x4``), or
    the number of GPUs. ``facts`` replace those of the stack
    (:class:`autoshard.costmodels.stack.Stack`) that the program does otherwise. ``stage`` is the
    pipeline stage whose chip is looked at. ``held_back`` says that the case was chosen after the
    cost models were final.
    """

    name: str
    compiler: str
    model: str
    n_layers: int
    chip: str
    topology: str
    seq_len: int
    stack: str
    plan: Plan
    stage: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    held_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What a compiler made of a case; bytes of one chip.

    ``argument_bytes`` live through the step: weights, optimizer state and the batch.
    ``peak_bytes`` is what the program needs at its fullest, arguments included, ``limit_bytes``
    what it may have, and ``fits`` the compiler's verdict. ``temporary_bytes`` is None where the
    compiler refused before it said so.
    """

    case: Case
    argument_bytes: int
    temporary_bytes: int | None
    peak_bytes: int
    limit_bytes: int
    fits: bool
    collectives: tuple[Collective, ...]
    versions: Mapping[str, str]
    date: str
    notes: tuple[str, ...] = ()


def to_dict(compiled: Compiled) -> dict[str, Any]:
    """A record as plain values."""
    made = asdict(compiled)
    made["case"]["plan"] = compiled.case.plan.to_dict()
    return made


def from_dict(record: Mapping[str, Any]) -> Compiled:
    """The inverse of :func:`to_dict`."""
    case = dict(record["case"])
    case["plan"] = Plan.from_dict(case["plan"])
    collectives = tuple(
        Collective(**{**entry, "axes": tuple(entry["axes"])}) for entry in record["collectives"]
    )
    values = {**record, "case": Case(**case), "collectives": collectives}
    values["notes"] = tuple(record["notes"])
    return Compiled(**values)


def read(path: Path) -> tuple[Compiled, ...]:
    """The records of a file, in its order.

    Raises:
        ValueError: it is no such file, or a record contradicts itself.
        SpecError: a plan does.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema {data['schema']!r} is not {SCHEMA!r}")
    records = tuple(from_dict(record) for record in data["compiled"])
    if len({record.case.name for record in records}) != len(records):
        raise ValueError("a name is there twice")
    for record in records:
        numbers = (record.argument_bytes, record.peak_bytes, record.limit_bytes)
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"{record.case.name}: bytes must be whole numbers, got {numbers}")
        for c in record.collectives:
            sizes = (c.group_size, c.array_bytes, c.times)
            if c.kind not in KINDS or not all(type(n) is int and n > 0 for n in sizes):
                raise ValueError(f"{record.case.name}: not a collective: {c}")
    return records


def write(path: Path, records: Iterable[Compiled]) -> None:
    """Write records, one a line, sorted by name: a change of one is a change of a line."""
    lines = ",\n".join(
        json.dumps(to_dict(record), ensure_ascii=False)
        for record in sorted(records, key=lambda record: record.case.name)
    )
    path.write_text(f'{{"schema": "{SCHEMA}", "compiled": [\n{lines}\n]}}\n', encoding="utf-8")
