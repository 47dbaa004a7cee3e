"""How far a command is: one line on a terminal, or every step where that is asked for."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType

#: A solve shorter than this is not worth a line.
QUIET_S = 1.0
EVERY_S = 0.25


class Progress:
    """A context in which :meth:`tell` says on stderr how far things are, with seconds since.

    One line, kept up to date and gone at the end: silent unless stderr is a terminal and more than
    a second has passed. With ``verbose`` a line for each thing told, at once and anywhere.
    """

    def __init__(self, *, quiet: bool, verbose: bool = False) -> None:
        self._verbose = verbose and not quiet and sys.stderr is not None
        shown = not quiet and not verbose and sys.stderr is not None and sys.stderr.isatty()
        self._text = "pricing candidate plans"
        self._width = 0
        self._started = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True) if shown else None

    def tell(self, text: str) -> None:
        """The newest state, such as the fastest plan so far and what is proven of it."""
        self._text = text
        if self._verbose:
            sys.stderr.write(f"{self._line()}\n")
            sys.stderr.flush()

    def steps(self, seconds: Mapping[str, float]) -> None:
        """What took how long, for those who want every step."""
        if not self._verbose:
            return
        width = max(map(len, seconds), default=0)
        for name, spent in seconds.items():
            sys.stderr.write(f"  {name.ljust(width)} {spent:7.2f} s\n")
        sys.stderr.flush()

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            self._draw("")

    def _line(self) -> str:
        return f"{time.monotonic() - self._started:5.1f} s  {self._text}"

    def _run(self) -> None:
        self._done.wait(QUIET_S)
        while not self._done.is_set():
            self._draw(self._line())
            self._done.wait(EVERY_S)

    def _draw(self, line: str) -> None:
        """Replace the line by another, without escape codes, which not all terminals know."""
        # A line that wraps could not be replaced.
        line = line[: max(shutil.get_terminal_size().columns - 1, 1)]
        if line or self._width:
            sys.stderr.write("\r" + line.ljust(self._width) + ("" if line else "\r"))
            sys.stderr.flush()
            self._width = len(line)
