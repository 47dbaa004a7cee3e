"""What ``autoshard validate --compilers`` shows: tables for a terminal, and JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from autoshard.columns import Column, Section
from autoshard.compiler_cells import SMALL
from autoshard.compiler_tables import OneSided, compared, one_sided, small
from autoshard.compiler_verdict import MOVED, Judged, Reached, Term, Verdict
from autoshard.words import percent

SCHEMA = "autoshard.validate-compilers/1"

GIB = 2**30

#: Terms that are counts; of the others, the share that is right is to be reached from below.
_COUNTS = ("one_sided", "refused_with_spare")
_SIDES = {"compiled": "compiled, not priced", "priced": "priced, not compiled"}


def compilers_report(verdict: Verdict) -> str:
    """The tables as text."""
    from autoshard.report import sections_text

    return sections_text(sections(verdict))


def sections(verdict: Verdict) -> list[Section]:
    """Title, table and notes of each part of the report; a part without rows is left out."""
    held = [case for case in verdict.judged if case.record.case.held_back]
    others = [case for case in verdict.judged if not case.record.case.held_back]
    made = [_terms(verdict), _compared(verdict), _one_sided(verdict)]
    title = "Memory of a chip, in GiB, and errors in percent"
    made += [_memory(f"{title}: {_many(len(others), 'plan')}", others)] if others else []
    made += [_memory(f"{title}: {_many(len(held), 'plan')} held back", held)] if held else []
    return made


def _terms(verdict: Verdict) -> Section:
    cases = verdict.judged
    compilers = Counter(case.record.case.compiler for case in cases)
    said = ", ".join(f"{count:,} by {name}" for name, count in sorted(compilers.items()))
    title = f"{_many(len(cases), 'plan')} compiled ({said}), {verdict.held_back.cases:,} held back"
    columns = [
        _column("what", [term.what for term in verdict.terms], left=True),
        _column("wanted", [_wanted(term) for term in verdict.terms]),
        _column("reached", [_figure(term, term.all) for term in verdict.terms]),
        _column("held back", [_figure(term, term.held_back) for term in verdict.terms]),
        _column("verdict", [_met(term) for term in verdict.terms], left=True),
    ]
    if verdict.examples.cases:
        shown = [_figure(term, term.examples) for term in verdict.terms]
        columns.insert(-1, _column("exported", shown, spare=1))
    return title, columns, _notes(verdict)


def _notes(verdict: Verdict) -> list[str]:
    own = verdict.own
    notes = [
        "Held back: chosen after the memory model was final. Peak memory is judged by these alone, "
        "everything else by all."
    ]
    if verdict.examples.cases:
        notes.append(
            f"Exported: {_many(verdict.examples.cases, 'plan')} as MaxText's own program, under "
            "the config that autoshard writes; examples, on which no verdict rests."
        )
    worst = [
        f"{what} of {max(found)[1]}"
        for what, found in (
            ("state", _by_case(own, "state_error")),
            ("peak", _by_case(own, "peak_error")),
        )
        if found
    ]
    notes += [f"Worst: {'; '.join(worst)}."] if worst else []
    if len(peaks := _peaks(verdict)) > 1:
        notes.append(f"Peak memory by compiler, median and 90th percentile: {'; '.join(peaks)}.")
    refused = [case for case in own if not case.record.fits]
    if own:
        likely = (len(own) - len(refused)) / len(own)
        notes.append(
            f"Refused: {len(refused):,} of {len(own):,}, of which "
            f"{sum(not case.fits for case in refused):,} are predicted not to fit; who always says "
            f"that a plan fits is right in {percent(likely)}."
        )
    wrong = [case for case in own if case.fits != case.record.fits]
    if wrong:
        names = "; ".join(case.record.case.name for case in wrong)
        notes.append(f"Fits or not, wrong for {len(wrong):,}: {names}.")
    silent = [case.record.case.name for case in own if case.moved_bytes is None]
    if silent:
        notes.append(
            "Refused by an estimate, before the program could be read, so that neither its peak "
            f"nor its collectives are judged: {'; '.join(silent)}."
        )
    facts = Counter(name for case in verdict.judged for name in case.record.case.facts)
    if facts:
        said = ", ".join(f"{name} ({count:,})" for name, count in sorted(facts.items()))
        notes.append(f"Facts of the stack that the compiled program replaces, by cases: {said}.")
    return notes


def _peaks(verdict: Verdict) -> list[str]:
    """The errors of peak memory of each compiler, in words."""
    made = []
    for compiler in sorted({case.record.case.compiler for case in verdict.judged}):
        of = Reached.by([c for c in verdict.judged if c.record.case.compiler == compiler])
        if of.peak_median is not None and of.peak_p90 is not None:
            made.append(f"{compiler} {percent(of.peak_median)} and {percent(of.peak_p90)}")
    return made


def _totals(verdict: Verdict) -> list[str]:
    """The errors of all bytes moved of each compiler, in words."""
    made = []
    for compiler in sorted({case.record.case.compiler for case in verdict.judged}):
        of = [c.total_error for c in verdict.judged if c.record.case.compiler == compiler]
        errors = sorted((error for error in of if error is not None), key=abs)
        if errors:
            middle, worst = errors[len(errors) // 2], errors[-1]
            made.append(f"{compiler} {100 * middle:+.1f} % and {100 * worst:+.1f} %")
    return made


def _by_case(cases: Sequence[Judged], error: str) -> list[tuple[float, str]]:
    """The size of an error and the name of its case."""
    return [
        (abs(getattr(case, error)), case.record.case.name)
        for case in cases
        if getattr(case, error) is not None
    ]


def _compared(verdict: Verdict) -> Section:
    rows, few = compared(verdict), small(verdict)
    title = "Bytes that a chip moves in a step, all cases together in GB; errors in percent"
    columns = [
        _column("compiler", [row.compiler for row in rows], left=True),
        _column("collective", [row.kind for row in rows], left=True),
        _column("axes", ["+".join(row.axes) for row in rows], left=True),
        _column("cases", [f"{row.cases:,}" for row in rows]),
        _column("predicted", [_gb(row.priced_bytes) for row in rows]),
        _column("compiled", [_gb(row.compiled_bytes) for row in rows]),
        _column("median", [_share(row.median_error) for row in rows]),
        _column("worst", [_share(row.worst_error, signed=True) for row in rows]),
        _column("of", [row.worst_case for row in rows], left=True),
    ]
    notes = []
    if few.kinds:
        notes.append(
            f"Small, each below {percent(SMALL)} of the bytes of its step, on one side only and "
            f"not compared: {_many(few.kinds, 'kind')} of collectives in "
            f"{_many(few.cases, 'case')}, {few.moved_bytes:,.0f} bytes in all, together at most "
            f"{percent(few.most)} of a step."
        )
    if totals := _totals(verdict):
        notes.append(
            "All bytes of a program, exceptions and all, against all that is priced, median and "
            f"worst: {'; '.join(totals)}."
        )
    notes += [
        f"{row.kind} along {'+'.join(row.axes)} in {row.worst_case}: predicted "
        f"{_parts(row.worst_priced)}; compiled {_parts(row.worst_compiled)}."
        for row in rows
        if abs(row.worst_error) > MOVED
    ]
    return title, columns if rows else [], notes


def _parts(moved: Mapping[str, float]) -> str:
    return ", ".join(f"{_gb(value)} {what or 'unnamed'}" for what, value in sorted(moved.items()))


def _one_sided(verdict: Verdict) -> Section:
    rows = one_sided(verdict)
    title = (
        f"Collectives that one side has alone: {sum(row.exception is None for row in rows):,} "
        "without a reason, "
        f"{_many(sum(row.exception is not None for row in rows), 'kind')} by named exceptions"
    )
    columns = [
        _column("compiler", [row.compiler for row in rows], left=True),
        _column("collective", [row.kind for row in rows], left=True),
        _column("axes", ["+".join(row.axes) for row in rows], left=True),
        _column("has it", [_SIDES[row.side] for row in rows], left=True),
        _column("cases", [f"{row.cases:,}" for row in rows], spare=3),
        _column("GB", [_gb(row.moved_bytes) for row in rows], spare=1),
        _column("at most %", [_share(row.most) for row in rows], spare=2),
        _column("why", [_why(row) for row in rows], left=True),
    ]
    notes = ["At most: the largest share of the bytes that a program moves in a step."]
    unused = [f"Exception {e.name} covers nothing." for e in verdict.unused]
    return title, columns if rows else [], [*(notes if rows else []), *unused]


def _why(row: OneSided) -> str:
    found = row.exception
    if found is None:
        return f"no reason: {row.what}"
    counted = f" Counted as {' and '.join(found.stands_for)}" if found.stands_for else ""
    counted += f", {percent(found.excess)} of it as excess" if counted and found.excess else ""
    counted += "." if counted else ""
    return f"{found.name}: {found.reason}{counted}"


def _memory(title: str, cases: Sequence[Judged]) -> Section:
    columns = [
        _column("plan", [case.record.case.name for case in cases], left=True),
        _column("compiler", [case.record.case.compiler for case in cases], left=True, spare=1),
        _column("state", [_share(c.state_error, signed=True, digits=3) for c in cases], spare=2),
        _column("predicted", [_gib(case.prediction.peak_bytes) for case in cases], spare=4),
        _column("compiled", [_gib(case.record.peak_bytes or None) for case in cases]),
        _column("error", [_share(case.peak_error, signed=True) for case in cases]),
        _column("limit", [_gib(case.record.limit_bytes) for case in cases], spare=3),
        _column("fits", [_fits(case) for case in cases], left=True),
    ]
    return title, columns, ["State: the error of the bytes of weights, optimizer and batch."]


def _fits(case: Judged) -> str:
    said = "yes" if case.record.fits else "no"
    return said if case.fits == case.record.fits else f"{said}, predicted otherwise"


def _wanted(term: Term) -> str:
    if term.key in _COUNTS:
        return "none" if not term.wanted else f"{term.wanted:,.0f}"
    return percent(term.wanted)


def _figure(term: Term, value: float | None) -> str:
    if value is None:
        return "-"
    if term.key in _COUNTS:
        return f"{value:,.0f}" if value else "none"
    return percent(value)


def _met(term: Term) -> str:
    return {True: "met", False: "missed", None: "no case"}[term.met]


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _column(head: str, cells: Sequence[str], left: bool = False, spare: int = 0) -> Column:
    return Column(head=head, cells=tuple(cells), left=left, spare=spare)


def _gb(value: float) -> str:
    return f"{value / 1e9:,.3f}"


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value / GIB:,.2f}"


def _share(value: float | None, signed: bool = False, digits: int = 1) -> str:
    if value is None:
        return "-"
    return f"{100 * value:+.{digits}f}" if signed else f"{100 * value:.{digits}f}"


# JSON


def compilers_dict(verdict: Verdict) -> dict[str, Any]:
    """The documented JSON: the terms, and every case once."""
    return {
        "schema": SCHEMA,
        "cases": verdict.all.cases,
        "held_back": verdict.held_back.cases,
        "examples": verdict.examples.cases,
        "terms": [asdict(term) for term in verdict.terms],
        "collectives": [asdict(row) for row in compared(verdict)],
        "one_sided": [asdict(row) for row in one_sided(verdict)],
        "small": asdict(small(verdict)),
        "exceptions_unused": [e.name for e in verdict.unused],
        "plans": [_plan(case) for case in verdict.judged],
    }


def _plan(judged: Judged) -> dict[str, Any]:
    record, predicted = judged.record, judged.prediction
    case = record.case
    return {
        "name": case.name,
        "compiler": case.compiler,
        "held_back": case.held_back,
        "model": case.model,
        "n_layers": case.n_layers,
        "chip": case.chip,
        "topology": case.topology,
        "seq_len": case.seq_len,
        "stack": case.stack,
        "facts": dict(case.facts),
        "plan": case.plan.to_dict(),
        "stage": case.stage,
        "versions": dict(record.versions),
        "date": record.date,
        "notes": list(record.notes),
        "predicted_state_bytes": predicted.state_bytes,
        "predicted_batch_bytes": predicted.batch_bytes,
        "compiled_argument_bytes": record.argument_bytes,
        "state_error": judged.state_error,
        "predicted_memory_bytes": dict(predicted.memory),
        "predicted_peak_bytes": predicted.peak_bytes,
        "compiled_peak_bytes": record.peak_bytes,
        "peak_error": judged.peak_error,
        "limit_bytes": record.limit_bytes,
        "predicted_fits": judged.fits,
        "fits": record.fits,
        "refused_with_spare": judged.refused_with_spare,
        "compiled_moved_bytes": judged.moved_bytes,
        "collectives": [
            {
                "kind": cell.kind,
                "axes": list(cell.axes),
                "side": cell.side,
                "priced_bytes": cell.priced_bytes,
                "compiled_bytes": cell.compiled_bytes,
                "error": cell.error if cell.side == "both" else None,
                "small": cell.small,
                "priced": dict(cell.priced),
                "compiled": dict(cell.compiled),
            }
            for cell in judged.cells
        ],
    }
