"""The exceptions that a user can meet.

    AutoshardError
    ├── SpecError          an input is wrong (status 2); also a ValueError
    │   └── UnknownName    a preset, column or cost model by that name does not exist
    ├── Infeasible         the question is sound and has no answer (status 3)
    └── CostModelError     a cost model returned something that is not a cost (status 2)

Each message is a sentence that names the input, what is wrong with it and what would work.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutoshardError(Exception):
    """Root of every error that autoshard raises on purpose."""


class SpecError(AutoshardError, ValueError):
    """An input is wrong: the message names it, says why, and says what would work."""


class UnknownName(SpecError):
    """A name that nobody registered; the nearest registered names are offered."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}."
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class Infeasible(AutoshardError):
    """No plan satisfies the problem; the message names what binds and a change that works."""


class CostModelError(AutoshardError):
    """A cost model broke its contract: wrong shape, NaN, negative, or a cost it does not cover."""
