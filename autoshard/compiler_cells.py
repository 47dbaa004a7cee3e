"""The collectives of a compiled plan beside those that are priced, by kind and mesh axes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from autoshard.compiled import Compiled
from autoshard.compiler_cases import Move, Prediction
from autoshard.compiler_exceptions import NamedException, without_exceptions
from autoshard.costmodels.errors import SpecError
from autoshard.launch.mesh import mesh_axes

#: Collectives of one kind and axis that only one side has are small below this share of the bytes
#: that the program moves in a step: sums of a loss, norms of gradients.
SMALL = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The collectives of one kind along the same axes of one case: bytes that a chip sends.

    ``priced`` and ``compiled`` say what moves. ``side`` is ``both``, or who alone has them:
    ``priced`` or ``compiled``; ``small`` says that this is too little to count.
    """

    kind: str
    axes: tuple[str, ...]
    priced: Mapping[str, float]
    compiled: Mapping[str, float]
    small: bool

    @property
    def priced_bytes(self) -> float:
        """What the cost model says."""
        return sum(self.priced.values())

    @property
    def compiled_bytes(self) -> float:
        """What the program moves."""
        return sum(self.compiled.values())

    @property
    def side(self) -> str:
        """Who has them."""
        if self.priced_bytes and self.compiled_bytes:
            return "both"
        return "priced" if self.priced_bytes else "compiled"

    @property
    def error(self) -> float:
        """Prediction over compiled, minus one, where both have them."""
        return self.priced_bytes / self.compiled_bytes - 1.0


def compare(
    record: Compiled, prediction: Prediction, exceptions: Sequence[NamedException]
) -> tuple[tuple[Cell, ...], tuple[tuple[NamedException, Move], ...], float]:
    """The cells, what exceptions cover on either side, and all bytes that the program moves.

    Raises:
        SpecError: a collective runs along an axis that no mesh has.
    """
    compiler = record.case.compiler
    made = [
        Move(
            kind=one.kind,
            axes=_in_order(record, one.axes),
            what=one.what,
            moved_bytes=one.moved_bytes,
        )
        for one in record.collectives
    ]
    emitted, named = without_exceptions(compiler, "compiled", made, exceptions)
    priced, waived = without_exceptions(compiler, "priced", prediction.moves, exceptions)
    total = sum(move.moved_bytes for move in made)
    return tuple(_cells(priced, emitted, total)), (*named, *waived), total


def _in_order(record: Compiled, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Axes from the outermost, without those of one rank."""
    mesh = mesh_axes(record.case.plan)
    unknown = sorted({*axes} - {*mesh})
    if unknown:
        raise SpecError(
            f"case {record.case.name!r}: a collective runs along {unknown[0]!r}, which is no axis "
            f"of a mesh; axes are {', '.join(mesh)}."
        )
    return tuple(name for name, axis in mesh.items() if name in axes and axis.size > 1)


def _cells(priced: list[Move], emitted: list[Move], total: float) -> Iterator[Cell]:
    kinds = {(move.kind, move.axes) for move in (*priced, *emitted) if move.moved_bytes}
    for kind, axes in sorted(kinds):
        predicted, made = (
            _by_what(move for move in side if (move.kind, move.axes) == (kind, axes))
            for side in (priced, emitted)
        )
        few = max(sum(predicted.values()), sum(made.values())) < SMALL * total
        yield Cell(
            kind=kind,
            axes=axes,
            priced=predicted,
            compiled=made,
            small=few and not (predicted and made),
        )


def _by_what(moves: Iterable[Move]) -> dict[str, float]:
    """Bytes of what moves."""
    made: dict[str, float] = {}
    for move in moves:
        if move.moved_bytes:
            made[move.what] = made.get(move.what, 0.0) + move.moved_bytes
    return made
