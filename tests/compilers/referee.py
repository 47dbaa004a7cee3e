"""Ask a compiler about a list of plans, and keep its answers in a data file.

    python tests/compilers/referee.py CASES.toml [--only NAME] -o DATA.json

A case that is asked again replaces its record. Each compiler is imported when the first of its
cases comes, so that one can be absent.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cases import cut_model, read_cases

from autoshard.compiled import Case, Compiled, read, write
from autoshard.costmodels.errors import AutoshardError, SpecError

#: The module of each compiler; its ``trace`` takes a case and its model.
COMPILERS = {"maxtext": "trace_maxtext", "torch": "trace_torch", "xla-tpu": "trace_xla"}


def ask(case: Case) -> Compiled:
    """What its compiler says of a case.

    Each is asked in a process of its own: PyTorch keeps meshes in caches, and XLA its compiler.

    Raises:
        SpecError: nobody knows that compiler.
    """
    if case.compiler not in COMPILERS:
        raise SpecError(
            f"case {case.name!r}: no compiler {case.compiler!r}; there is {', '.join(COMPILERS)}."
        )
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        return alone.submit(_answer, case).result()


def _answer(case: Case) -> Compiled:
    answer: Compiled = importlib.import_module(COMPILERS[case.compiler]).trace(
        case, cut_model(case)
    )
    return answer


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", type=Path, help="a TOML file of cases")
    parser.add_argument("--only", action="append", metavar="NAME", help="this case; repeatable")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the data file")
    chosen = parser.parse_args(arguments)
    try:
        cases = read_cases(chosen.cases)
        absent = set(chosen.only or ()) - {case.name for case in cases}
        if absent:
            raise SpecError(f"{chosen.cases.name} has no case {min(absent)!r}.")
        known = read(chosen.output) if chosen.output.exists() else ()
        records = {record.case.name: record for record in known}
        for case in cases:
            if chosen.only and case.name not in chosen.only:
                continue
            start = time.monotonic()
            records[case.name] = answer = ask(case)
            write(chosen.output, records.values())  # what is asked is kept, whatever comes next
            print(
                f"{case.name}: {answer.peak_bytes / 1e9:.2f} GB of "
                f"{answer.limit_bytes / 1e9:.2f} GB, {time.monotonic() - start:.0f} s",
                file=sys.stderr,
            )
    except AutoshardError as error:
        print(f"referee: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"referee: {error.name} is not installed; pip install -e '.[compilers]' brings it.",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        print(f"referee: {error.filename}: {error.strerror}.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
