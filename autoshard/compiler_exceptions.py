"""Where a compiler's collectives differ from the ideal that is priced, and why: by name.

An exception is printed with its reason and its bytes wherever it applies. One that applies nowhere
is an error of the table (tests/test_compilers_verdict.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from autoshard.compiler_cases import Move


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedException:
    """Collectives of one side that the other has not, or has otherwise.

    ``side`` is who has them: ``compiled`` the program, ``priced`` the cost model. ``what`` is a
    pattern, as of file names, of :attr:`autoshard.compiled.Collective.what`; ``axes`` are all that
    they run along, ``("*",)`` any. Where ``stands_for`` names kinds of collectives, they are
    compared as those, to which their bytes go in equal parts: an all-reduce moves what a
    reduce-scatter and an all-gather move. ``excess`` is the share of the bytes that these would do
    without, which is not compared. Where ``stands_for`` is empty, nothing is.
    """

    name: str
    compiler: str
    side: Literal["compiled", "priced"]
    kind: str
    axes: tuple[str, ...]
    what: str
    reason: str
    stands_for: tuple[str, ...] = ()
    excess: float = 0.0

    def covers(self, compiler: str, side: str, move: Move) -> bool:
        """Whether it is said of these collectives."""
        return (
            (compiler, side, move.kind) == (self.compiler, self.side, self.kind)
            and self.axes in (("*",), move.axes)
            and fnmatchcase(move.what, self.what)
        )


def _by_reduction(
    name: str, compiler: str, axes: tuple[str, ...], what: str, kind: str, reason: str
) -> NamedException:
    """An all-reduce in the place of half of one: twice the bytes."""
    return NamedException(
        name=name,
        compiler=compiler,
        side="compiled",
        kind="all-reduce",
        axes=axes,
        what=what,
        reason=reason,
        stands_for=(kind,),
        excess=0.5,
    )


def _beside(
    name: str, compiler: str, kind: str, axes: tuple[str, ...], what: str, reason: str
) -> NamedException:
    """What a program moves beside all that is priced."""
    return NamedException(
        name=name,
        compiler=compiler,
        side="compiled",
        kind=kind,
        axes=axes,
        what=what,
        reason=reason,
    )


_GATHERED = (
    "where FSDP takes all of a v5p slice, and for single arrays elsewhere, XLA:TPU lays shards "
    "into zeros and all-reduces them, twice the bytes; MaxText's own program gathers"
)
_SCATTERED = (
    "without TP, and for some weights with it, XLA:TPU all-reduces gradients and keeps a shard, "
    "twice the bytes"
)
_INNER = (
    "XLA:TPU scatters along the outermost dimension alone: gradients of keys and values are "
    "all-reduced and cut, twice the bytes"
)
_PADDED = "XLA:TPU pads the shards of a fused reduce-scatter for alignment"
_RIGHT = "what padding moved over a shard's edge goes to its owner afterwards"
_ROWS = "MaxText does not gather the embedding: rows of tokens go to where they are wanted"
_PIPELINE = (
    "MaxText's pipeline has the embedding and the head on every stage, and cuts whole gradients of "
    "queries, keys and values"
)

#: The table; the first that covers a collective counts.
EXCEPTIONS: tuple[NamedException, ...] = (
    _by_reduction(
        "gather by all-reduce",
        "xla-tpu",
        ("*",),
        "gather by all-reduce: *",
        "all-gather",
        _GATHERED,
    ),
    *(
        _by_reduction(
            "scatter by all-reduce", compiler, axes, "backward", "reduce-scatter", _SCATTERED
        )
        for compiler, axes in (
            ("xla-tpu", ("fsdp",)),
            ("xla-tpu", ("fsdp", "sequence")),
            ("xla-tpu", ("fsdp", "context")),
            ("maxtext", ("fsdp",)),
        )
    ),
    _by_reduction(
        "scatter of an inner dimension", "xla-tpu", ("sequence",), "step", "reduce-scatter", _INNER
    ),
    *(
        _beside(name, compiler, kind, ("*",), "padding", reason)
        for compiler in ("xla-tpu", "maxtext")
        for name, kind, reason in (
            ("padded shards", "reduce-scatter", _PADDED),
            ("padded shards put right", "permute", _RIGHT),
        )
    ),
    *(
        _beside("pipeline of MaxText", "maxtext", kind, axes, "*", _PIPELINE)
        for kind, axes in (
            ("all-gather", ("stage", "fsdp")),
            ("all-reduce", ("stage", "fsdp")),
            ("all-to-all", ("tensor",)),
        )
    ),
    _beside("rows of the embedding", "maxtext", "all-to-all", ("fsdp",), "*", _ROWS),
    NamedException(
        name="pipeline of MaxText",
        compiler="maxtext",
        side="compiled",
        kind="permute",
        axes=("stage",),
        what="*",
        reason="a circular pipeline turns its buffer twice for each boundary",
        stands_for=("send",),
        excess=0.5,
    ),
)


def without_exceptions(
    compiler: str, side: str, moves: Sequence[Move], table: Sequence[NamedException]
) -> tuple[list[Move], list[tuple[NamedException, Move]]]:
    """The collectives that are compared, and those that an exception covers."""
    compared: list[Move] = []
    covered: list[tuple[NamedException, Move]] = []
    for move in moves:
        found = next((e for e in table if e.covers(compiler, side, move)), None)
        if found is None:
            compared.append(move)
            continue
        covered.append((found, move))
        part = (1.0 - found.excess) * move.moved_bytes / max(len(found.stands_for), 1)
        compared += [replace(move, kind=kind, moved_bytes=part) for kind in found.stands_for]
    return compared, covered
