"""Which collectives a compiled XLA program runs, and how often: read from its text.

A program is computations of instructions; fusions, calls and loops name the computations that they
run. XLA:TPU says a reduce-scatter as a fusion ``all-reduce-scatter`` around an all-reduce, whose
shards it pads for alignment and passes round afterwards, and a gather over three dimensions of a
torus as an all-reduce of shards laid into zeros. Both are recorded under names of their own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autoshard.compiled import Collective

#: Words of :attr:`Collective.what` for what XLA:TPU adds or says otherwise.
PADDING, GATHER_BY_REDUCTION = "padding", "gather by all-reduce"

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = (.*?) ([\w-]+)\((.*)$")
_ARRAY = re.compile(r"(pred|bf16|[suf]\d+(?:e\w+)?)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|to_apply)=%?([\w.-]+)")
_BYTES = {"pred": 1, "bf16": 2}
#: Collectives that no program of ours has had: not to be passed over in silence.
_UNKNOWN = ("ragged-all-to-all", "collective-broadcast")
_KINDS = {
    "all-gather": "all-gather",
    "all-reduce": "all-reduce",
    "reduce-scatter": "reduce-scatter",
    "all-to-all": "all-to-all",
    "collective-permute": "permute",
}
#: Instructions that hand on what they are given.
_SAME = ("copy", "copy-done", "copy-start", "bitcast", "reshape", "convert", "transpose")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    rest: str
    root: bool

    @property
    def operands(self) -> list[str]:
        """Names of what it reads, in order."""
        return re.findall(r"%([\w.-]+)", self.rest.split("), ")[0])

    @property
    def channel(self) -> str:
        """The channel of a collective."""
        found = re.search(r"channel_id=(\d+)", self.rest)
        return found.group(1) if found else ""

    @property
    def op_name(self) -> str:
        """The JAX operation that it came from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found.group(1) if found else ""


@dataclass(frozen=True)
class Program:
    """A compiled module."""

    text: str
    computations: dict[str, dict[str, Instruction]] = field(init=False)
    entry: str = field(init=False)

    def __post_init__(self) -> None:
        made: dict[str, dict[str, Instruction]] = {}
        name = entry = ""
        for line in self.text.splitlines():
            if head := _COMPUTATION.match(line):
                name = head.group(1)
                made[name] = {}
                entry = name if line.startswith("ENTRY") else entry
            elif name and (found := _INSTRUCTION.match(line)):
                root = line.lstrip().startswith("ROOT ")
                own, shape, opcode, rest = found.groups()
                made[name][own] = Instruction(own, shape, opcode, rest, root)
        if not entry:
            raise ValueError("no ENTRY computation: this is not the text of an XLA module")
        object.__setattr__(self, "computations", made)
        object.__setattr__(self, "entry", entry)

    @cached_property
    def times(self) -> Counter[str]:
        """How often each computation runs in a step."""
        counted: Counter[str] = Counter()
        todo = [(self.entry, 1)]
        while todo:
            name, times = todo.pop()
            counted[name] += times
            for instruction in self.computations[name].values():
                todo += [(called, times * n) for called, n in self._calls(name, instruction)]
        return counted

    def _calls(self, computation: str, instruction: Instruction) -> Iterator[tuple[str, int]]:
        if instruction.opcode == "while":
            body = re.search(r"body=%?([\w.-]+)", instruction.rest)
            condition = re.search(r"condition=%?([\w.-]+)", instruction.rest)
            assert body is not None
            assert condition is not None
            first = self._first_count(computation, instruction, condition.group(1))
            yield body.group(1), self._limit(condition.group(1)) - first
        elif instruction.opcode in ("fusion", "call", "async-start"):
            yield from ((name, 1) for name in _CALLED.findall(instruction.rest))
        elif instruction.opcode == "conditional":
            raise ValueError(f"%{instruction.name}: a conditional runs one of several computations")

    def _first_count(self, computation: str, loop: Instruction, condition: str) -> int:
        """Where a loop's count begins: at 1 where XLA has taken the first turn out of it."""
        inside, outside = self.computations[condition], self.computations[computation]
        counts = [
            i for i in inside.values() if i.opcode == "get-tuple-element" and "s32[]" in i.shape
        ]
        index = re.search(r"index=(\d+)", counts[0].rest) if len(counts) == 1 else None
        begin = outside.get(loop.operands[0])
        if index is None or begin is None or begin.opcode != "tuple":
            return 0
        count = outside.get(begin.operands[int(index.group(1))])
        while count is not None and count.opcode in _SAME:
            count = outside.get(count.operands[0])
        found = re.match(r"(\d+)\)", count.rest) if count else None
        return int(found.group(1)) if count and count.opcode == "constant" and found else 0

    def _limit(self, condition: str) -> int:
        """Where a loop's count ends: its condition compares it with one constant."""
        names, numbers = [condition], set()
        while names:
            for instruction in self.computations[names.pop()].values():
                names += _CALLED.findall(instruction.rest) if instruction.opcode == "fusion" else []
                if instruction.opcode == "compare" and "direction=LT" not in instruction.rest:
                    raise ValueError(f"%{condition}: the trip count is not below a constant")
                found = re.match(r"(\d+)\)", instruction.rest)
                if instruction.opcode == "constant" and found and "[]" in instruction.shape:
                    numbers.add(int(found.group(1)))
        if len(numbers - {0}) != 1:
            raise ValueError(f"%{condition}: the trip count is not one constant: {numbers}")
        return max(numbers)

    def collectives(self, axes: dict[str, int]) -> tuple[Collective, ...]:
        """Every collective of a step, equal ones counted together.

        ``axes`` are the axes of the mesh and their sizes, in the order of its devices.

        Raises:
            ValueError: a group is no part of mesh axes, or the text has a form that this
                module does not know.
        """
        counted: Counter[Collective] = Counter()
        carried = self._carried
        for name, instructions in self.computations.items():
            if not (times := self.times[name]):
                continue
            for instruction in instructions.values():
                if instruction.opcode.removesuffix("-start") in _UNKNOWN:
                    raise ValueError(f"%{instruction.name}: {instruction.opcode} is not known")
                if found := self._between_slices(instruction, axes):
                    counted[found] += times
                kind = _KINDS.get(instruction.opcode.removesuffix("-start"))
                if kind is not None:
                    channel = instruction.channel
                    if channel in carried and carried[channel] != instruction.name:
                        continue
                    for found in self._parts(kind, name, instruction, axes):
                        counted[found] += times
        order = sorted(counted, key=lambda c: (c.kind, c.axes, -c.array_bytes, c.what))
        return tuple(replace(found, times=counted[found]) for found in order)

    @cached_property
    def _carried(self) -> dict[str, str]:
        """Channels of collectives that several fusions carry on, and the first of each."""
        first: dict[str, str] = {}
        channels = set()
        for name, instructions in self.computations.items():
            for instruction in instructions.values():
                if instruction.opcode in _KINDS:
                    first.setdefault(instruction.channel, instruction.name)
                    if name.startswith("async_collective_fusion"):
                        channels.add(instruction.channel)
        return {channel: first[channel] for channel in channels}

    def _between_slices(self, instruction: Instruction, axes: dict[str, int]) -> Collective | None:
        """An all-reduce over DCN, which a program hands to its host."""
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
        if instruction.opcode != "send" or kind is None:
            return None
        if kind.group(1) != "ALL_REDUCE":
            raise ValueError(f"%{instruction.name}: a transfer {kind.group(1)} between slices")
        dtype, dims = _ARRAY.findall(instruction.shape)[0]
        return Collective(
            kind="all-reduce",
            axes=("data",),
            group_size=axes["data"],
            array_bytes=_size(dtype, dims),
            times=0,
            dtype=dtype,
            what="between slices",
        )

    def _parts(
        self, kind: str, computation: str, instruction: Instruction, axes: dict[str, int]
    ) -> Iterator[Collective]:
        """The arrays of one collective."""
        scatter = computation.startswith("all-reduce-scatter")
        if kind == "permute":
            along, size = _permuted(instruction.rest, axes)
        else:
            along, size = _axes_of(_groups(instruction.rest), axes)
        arrays = [(dtype, _size(dtype, dims)) for dtype, dims in _ARRAY.findall(instruction.shape)]
        if instruction.opcode.endswith("-start") and kind != "all-reduce":
            # (operand, result, contexts...)
            if instruction.shape.startswith("(("):
                raise ValueError(f"%{instruction.name}: several arrays begin together")
            arrays = arrays[1:2]
        phase = _phase(instruction.op_name)
        for index, (dtype, bytes_) in enumerate(arrays):
            one = Collective(
                kind=kind,
                axes=along,
                group_size=size,
                array_bytes=bytes_ * (size if kind == "reduce-scatter" else 1),
                times=0,
                dtype=dtype,
                what=phase,
            )
            if kind == "permute" and not instruction.op_name:
                one = replace(one, what=PADDING)
            if scatter:
                padded = self.computations[computation][instruction.operands[index]]
                whole = self._unpadded(computation, padded)
                one = replace(one, kind="reduce-scatter", array_bytes=whole, what="")
                if bytes_ > whole:
                    yield replace(one, array_bytes=bytes_ - whole, what=PADDING)
                yield replace(one, what=self._phase_of_caller(computation))
            elif kind == "all-reduce" and self._is_gather(computation, instruction.operands[index]):
                yield replace(one, what=f"{GATHER_BY_REDUCTION}: {phase}")
            else:
                yield one

    def _unpadded(self, computation: str, operand: Instruction) -> int:
        """Bytes of an operand before its shards were padded."""
        if operand.opcode == "pad":
            operand = self.computations[computation][operand.operands[0]]
        return _size(*_ARRAY.findall(operand.shape)[0])

    def _phase_of_caller(self, computation: str) -> str:
        for instructions in self.computations.values():
            for instruction in instructions.values():
                if instruction.opcode == "fusion" and computation in _CALLED.findall(
                    instruction.rest
                ):
                    return _phase(instruction.op_name)
        return ""

    def _is_gather(self, computation: str, name: str) -> bool:
        """Whether an operand is a shard that was laid into zeros."""
        instructions = self.computations[computation]
        while (found := instructions.get(name)) is not None and found.opcode in _SAME:
            name = found.operands[0]
        if found is None:
            return False
        if found.opcode == "fusion":
            called = self.computations[_CALLED.findall(found.rest)[0]]
            found = next(inner for inner in called.values() if inner.root)
            while found.opcode in _SAME:
                found = called[found.operands[0]]
        return found.opcode == "dynamic-update-slice"


def _size(dtype: str, dims: str) -> int:
    bits = re.search(r"\d+", dtype)
    width = _BYTES.get(dtype) or int(bits.group()) // 8 if bits else _BYTES[dtype]
    return int(np.prod([int(n) for n in dims.split(",") if n], dtype=np.int64)) * width


def _phase(op_name: str) -> str:
    if "rematted_computation" in op_name:
        return "recompute"
    if "transpose(" in op_name:
        return "backward"
    return "forward" if "jvp(" in op_name else "step"


def _groups(rest: str) -> NDArray[np.int64]:
    """The device groups of a collective, ``[groups, size]``."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", found.group(1))}
        # An axis may be cut: 'fsdp':(4)256 are 256 of it in a row, the inner ones of 4 x 256.
        cut = {
            k: (int(before or 1), int(size or sizes[k]))
            for k, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", found.group(2))
        }
        parts = [(before, size, sizes[k] // before // size) for k, (before, size) in cut.items()]
        ids = np.arange(np.prod(list(sizes.values()))).reshape(tuple(sizes.values()))
        names = list(sizes)
        order = [names.index(k) for k in names if k not in cut] + [names.index(k) for k in cut]
        ids = ids.transpose(order).reshape(-1, *(n for part in parts for n in part))
        inner = [2 + 3 * k for k in range(len(parts))]
        outer = [axis for axis in range(ids.ndim) if axis not in inner]
        size = int(np.prod([size for _, size, _ in parts]))
        return ids.transpose(outer + inner).reshape(-1, size)
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, source, order = (
            [int(n) for n in (part or "").split(",") if n] for part in found.groups()
        )
        ids = np.arange(np.prod(source)).reshape(source)
        return (ids.transpose(order) if order else ids).reshape(shape)
    if found := re.search(r"replica_groups=\{((?:\{[\d,]+\},?)+)\}", rest):
        rows = found.group(1).strip("{}").split("},{")
        return np.array([[int(n) for n in row.split(",")] for row in rows])
    raise ValueError(f"replica groups of an unknown form: {rest[:300]}")


def _axes_of(groups: NDArray[np.int64], axes: dict[str, int]) -> tuple[tuple[str, ...], int]:
    """The mesh axes that groups run along, all of them or a part, and the size of a group."""
    coordinates = np.stack(np.unravel_index(groups, tuple(axes.values())))
    vary = (coordinates != coordinates[:, :, :1]).any(axis=(1, 2))
    along = tuple(name for name, moves in zip(axes, vary, strict=True) if moves)
    size = groups.shape[1]
    if np.prod([axes[name] for name in along]) % size:
        raise ValueError(f"groups of {size} devices are no part of the axes {along}")
    return along, size


def _permuted(rest: str, axes: dict[str, int]) -> tuple[tuple[str, ...], int]:
    """The mesh axes that a permutation runs along, and their size."""
    found = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", rest)
    if found is None:
        raise ValueError(f"a permutation of an unknown form: {rest[:300]}")
    pairs = np.array(
        [[int(n) for n in pair.split(",")] for pair in re.findall(r"\d+,\d+", found.group(1))]
    )
    source, target = (np.stack(np.unravel_index(pairs[:, k], tuple(axes.values()))) for k in (0, 1))
    vary = (source != target).any(axis=1)
    along = tuple(name for name, moves in zip(axes, vary, strict=True) if moves)
    return along, int(np.prod([axes[name] for name in along]))


def read_collectives(text: str, axes: Sequence[tuple[str, int]]) -> tuple[Collective, ...]:
    """The collectives of the text of a compiled module, on a mesh of these axes."""
    return Program(text).collectives(dict(axes))
