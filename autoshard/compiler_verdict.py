"""Predictions held against compilers, term by term.

Nothing is printed here: :func:`judge` returns what ``autoshard validate --compilers`` shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoshard import compiled
from autoshard.compiled import Compiled
from autoshard.compiler_cases import Move, Prediction, predict
from autoshard.compiler_cells import Cell, compare
from autoshard.compiler_exceptions import EXCEPTIONS, NamedException
from autoshard.costmodels.errors import SpecError

#: The records that come with autoshard.
SHIPPED = Path(__file__).parent / "measured" / "compilers.json"

#: What is to be reached: errors as shares.
STATE, MOVED, PEAK_MEDIAN, PEAK_P90, FITS = 0.001, 0.02, 0.08, 0.20, 0.95
#: The compiler label of plans that went through it as a framework's own program, under the launch
#: config that autoshard exports: examples, which are shown beside the verdict.
EXAMPLES = "maxtext"
#: A plan that leaves this share of the limit free is called feasible with room to spare.
SPARE = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One compiled plan, what was predicted of it, and how the two compare.

    ``moved_bytes`` is all that the program moves in a step; ``covered`` are collectives that a
    named exception covers. Where the compiler refused before it said what it had made,
    ``moved_bytes`` is None and there are no cells; what it counts as zero bytes it did not say.
    """

    record: Compiled
    prediction: Prediction
    cells: tuple[Cell, ...]
    covered: tuple[tuple[NamedException, Move], ...]
    moved_bytes: float | None

    @property
    def example(self) -> bool:
        """Whether it is a framework's own program."""
        return self.record.case.compiler == EXAMPLES

    @property
    def state_error(self) -> float | None:
        """Of weights and optimizer state with the batch, as the compiler counts arguments."""
        said = self.record.argument_bytes
        return self.prediction.argument_bytes / said - 1.0 if said else None

    @property
    def peak_error(self) -> float | None:
        """Of the peak; None where the compiler refused by an estimate and knew no peak."""
        said = self.record.peak_bytes
        if self.record.temporary_bytes is None or not said:
            return None
        return self.prediction.peak_bytes / said - 1.0

    @property
    def total_error(self) -> float | None:
        """Of all bytes moved, with nothing waived and every kind counted."""
        if not self.moved_bytes:
            return None
        return sum(move.moved_bytes for move in self.prediction.moves) / self.moved_bytes - 1.0

    @property
    def fits(self) -> bool:
        """Whether it is predicted to fit."""
        return self.prediction.peak_bytes <= self.record.limit_bytes

    @property
    def refused_with_spare(self) -> bool:
        """Predicted to fit with room to spare, and refused."""
        room = (1.0 - SPARE) * self.record.limit_bytes
        return not self.record.fits and self.prediction.peak_bytes <= room


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """The figures of some cases; None where there is nothing to take one of.

    Errors are shares: ``state`` and ``moved`` the worst, of peaks the median and the 90th
    percentile. ``one_sided`` counts the kinds of collectives that only one side has, case by case,
    without small ones and named exceptions.
    """

    cases: int
    state: float | None
    moved: float | None
    one_sided: int
    peak_median: float | None
    peak_p90: float | None
    fits: float | None
    refused_with_spare: int

    @classmethod
    def by(cls, judged: Sequence[Judged]) -> Reached:
        """The figures of these cases."""
        cells = [cell for case in judged for cell in case.cells if not cell.small]
        peaks = np.abs([case.peak_error for case in judged if case.peak_error is not None])
        right = [case.fits == case.record.fits for case in judged]
        return cls(
            cases=len(judged),
            state=_worst(case.state_error for case in judged),
            moved=_worst(cell.error for cell in cells if cell.side == "both"),
            one_sided=sum(cell.side != "both" for cell in cells),
            peak_median=float(np.quantile(peaks, 0.5)) if len(peaks) else None,
            peak_p90=float(np.quantile(peaks, 0.9)) if len(peaks) else None,
            fits=sum(right) / len(right) if right else None,
            refused_with_spare=sum(case.refused_with_spare for case in judged),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One line of the verdict: figures of all cases and of those held back, and whether it is met.

    ``met`` is None where no case was held back and only those count. ``examples`` is the figure of
    the exported configs.
    """

    key: str
    what: str
    wanted: float
    all: float | None
    held_back: float | None
    examples: float | None
    met: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Every case, in the order of the file, and the terms.

    ``all`` and ``held_back`` are figures of the programs written for this purpose, ``examples`` of
    the exported configs.
    """

    judged: tuple[Judged, ...]
    all: Reached
    held_back: Reached
    examples: Reached
    terms: tuple[Term, ...]
    exceptions: tuple[NamedException, ...]

    @property
    def own(self) -> tuple[Judged, ...]:
        """The cases on which the terms rest."""
        return tuple(case for case in self.judged if not case.example)

    @property
    def unused(self) -> tuple[NamedException, ...]:
        """Exceptions that cover nothing."""
        used = {id(found) for case in self.judged for found, _ in case.covered}
        return tuple(e for e in self.exceptions if id(e) not in used)


def load_records() -> tuple[Compiled, ...]:
    """The records that come with autoshard.

    Raises:
        SpecError: the file is not there, or it holds no records.
    """
    path = SHIPPED
    wanted = "tests/compilers makes it (docs/compilers.md)"
    try:
        records = compiled.read(path)
    except OSError as error:
        raise SpecError(
            f"{path.name}: what compilers say cannot be read ({error.strerror}); {wanted}."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{path.name}: not a file of compiled plans ({error!r}); {wanted}.") from (
            None
        )
    if not records:
        raise SpecError(f"{path.name}: no compiled plan in it; {wanted}.")
    return records


def judge(
    records: Iterable[Compiled], exceptions: Sequence[NamedException] = EXCEPTIONS
) -> Verdict:
    """Predict every record and compare.

    Raises:
        SpecError: a case cannot be predicted; it is named.
    """
    judged = tuple(_judged(record, exceptions) for record in records)
    own = [case for case in judged if not case.example]
    whole = Reached.by(own)
    held = Reached.by([case for case in own if case.record.case.held_back])
    examples = Reached.by([case for case in judged if case.example])
    return Verdict(
        judged=judged,
        all=whole,
        held_back=held,
        examples=examples,
        terms=tuple(_terms(whole, held, examples)),
        exceptions=tuple(exceptions),
    )


def _judged(record: Compiled, exceptions: Sequence[NamedException]) -> Judged:
    prediction = predict(record.case)
    if not record.collectives and record.temporary_bytes is None:
        return Judged(record=record, prediction=prediction, cells=(), covered=(), moved_bytes=None)
    cells, covered, moved = compare(record, prediction, exceptions)
    return Judged(
        record=record, prediction=prediction, cells=cells, covered=covered, moved_bytes=moved
    )


def _terms(whole: Reached, held: Reached, examples: Reached) -> Iterator[Term]:
    def at_most(key: str, what: str, wanted: float, *, only_held: bool = False) -> Term:
        reached, apart = getattr(whole, key), getattr(held, key)
        counts = apart if only_held else reached
        met = None if counts is None else bool(counts <= wanted)
        return Term(
            key=key,
            what=what,
            wanted=wanted,
            all=reached,
            held_back=apart,
            examples=getattr(examples, key) if examples.cases else None,
            met=met,
        )

    yield at_most("state", "state bytes per chip, worst", STATE)
    yield at_most("moved", "bytes moved, exceptions apart, worst", MOVED)
    yield at_most("one_sided", "collectives on one side alone", 0)
    yield at_most("peak_median", "peak memory, median", PEAK_MEDIAN, only_held=True)
    yield at_most("peak_p90", "peak memory, 90th percentile", PEAK_P90, only_held=True)
    yield Term(
        key="fits",
        what="fits or not, right",
        wanted=FITS,
        all=whole.fits,
        held_back=held.fits,
        examples=examples.fits,
        met=None if whole.fits is None else whole.fits >= FITS,
    )
    yield at_most("refused_with_spare", "refused with 10 % to spare", 0)


def _worst(errors: Iterable[float | None]) -> float | None:
    found = [abs(error) for error in errors if error is not None]
    return max(found) if found else None
