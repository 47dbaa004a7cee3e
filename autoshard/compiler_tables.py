"""A verdict's collectives, grouped over cases: what its tables and its JSON are made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from autoshard.compiler_exceptions import NamedException
from autoshard.compiler_verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Collectives of one compiler, kind and axes that both sides have; bytes of all cases.

    Errors are shares, signed where they are those of one case; ``worst_priced`` and
    ``worst_compiled`` are bytes of what moves in the worst.
    """

    compiler: str
    kind: str
    axes: tuple[str, ...]
    cases: int
    priced_bytes: float
    compiled_bytes: float
    median_error: float
    worst_error: float
    worst_case: str
    worst_priced: Mapping[str, float]
    worst_compiled: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class OneSided:
    """Collectives that one side has alone, or has otherwise: by name, or counted as an error.

    ``side`` is who has them, ``most`` their largest share of what a program moves in a step.
    """

    compiler: str
    kind: str
    axes: tuple[str, ...]
    side: str
    what: str
    cases: int
    moved_bytes: float
    most: float
    exception: NamedException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """Collectives too small to count that only one side has: how many kinds, in how many cases."""

    kinds: int
    cases: int
    moved_bytes: float
    most: float


def compared(verdict: Verdict) -> list[Compared]:
    """What both sides have, by compiler, kind and axes."""
    groups = defaultdict(list)
    for case in verdict.judged:
        for cell in case.cells:
            if cell.side == "both":
                key = (case.record.case.compiler, cell.kind, cell.axes)
                groups[key].append((case.record.case.name, cell))
    made = []
    for (compiler, kind, axes), cells in sorted(groups.items()):
        name, worst = max(cells, key=lambda pair: abs(pair[1].error))
        made.append(
            Compared(
                compiler=compiler,
                kind=kind,
                axes=axes,
                cases=len(cells),
                priced_bytes=sum(cell.priced_bytes for _, cell in cells),
                compiled_bytes=sum(cell.compiled_bytes for _, cell in cells),
                median_error=median(abs(cell.error) for _, cell in cells),
                worst_error=worst.error,
                worst_case=name,
                worst_priced=worst.priced,
                worst_compiled=worst.compiled,
            )
        )
    return made


def one_sided(verdict: Verdict) -> list[OneSided]:
    """What one side has alone and nothing names, then what an exception covers."""
    alone, named = defaultdict(list), defaultdict(list)
    for case in verdict.judged:
        name, total = case.record.case.name, case.moved_bytes or 0.0
        for cell in case.cells:
            if cell.side != "both" and not cell.small:
                moved = max(cell.priced_bytes, cell.compiled_bytes)
                what = ", ".join(sorted(cell.priced or cell.compiled))
                key = (case.record.case.compiler, cell.kind, cell.axes, cell.side, what)
                alone[key].append((name, moved, total))
        for exception, move in case.covered:
            place = (exception, move.axes)
            named[place].append((name, move.moved_bytes, total))
    return [
        *(_one_sided(*key, None, found) for key, found in sorted(alone.items())),
        *(
            _one_sided(e.compiler, e.kind, axes, e.side, e.what, e, found)
            for (e, axes), found in named.items()
        ),
    ]


def _one_sided(
    compiler: str,
    kind: str,
    axes: tuple[str, ...],
    side: str,
    what: str,
    exception: NamedException | None,
    found: list[tuple[str, float, float]],
) -> OneSided:
    by_case: dict[str, float] = defaultdict(float)
    totals = {name: total for name, _, total in found}
    for name, moved, _ in found:
        by_case[name] += moved
    return OneSided(
        compiler=compiler,
        kind=kind,
        axes=axes,
        side=side,
        what=what,
        cases=len(by_case),
        moved_bytes=sum(by_case.values()),
        most=max(_share(moved, totals[name]) for name, moved in by_case.items()),
        exception=exception,
    )


def small(verdict: Verdict) -> Small:
    """What is too small to count."""
    found = [
        (case.record.case.name, max(cell.priced_bytes, cell.compiled_bytes), case.moved_bytes)
        for case in verdict.judged
        for cell in case.cells
        if cell.small
    ]
    by_case: dict[str, float] = defaultdict(float)
    totals = {name: total or 0.0 for name, _, total in found}
    for name, moved, _ in found:
        by_case[name] += moved
    return Small(
        kinds=len(found),
        cases=len(by_case),
        moved_bytes=sum(by_case.values()),
        most=max((_share(moved, totals[name]) for name, moved in by_case.items()), default=0.0),
    )


def _share(moved: float, total: float) -> float:
    return moved / total if total else 1.0
