"""One line on a terminal that says how far a search is; nothing anywhere else."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

#: A solve shorter than this is not worth a line.
QUIET_S = 1.0
EVERY_S = 0.25


class Progress:
    """A context in which :meth:`tell` keeps one line on stderr up to date.

    Silent unless stderr is a terminal and more than a second has passed; gone at the end.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._text = "pricing candidate plans"
        self._width = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def tell(self, text: str) -> None:
        """The newest state: how many points, and the last one."""
        self._text = text

    def __enter__(self) -> Progress:
        if self._shown:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._shown:
            self._thread.join()
            self._draw("")

    def _run(self) -> None:
        started = time.monotonic()
        self._done.wait(QUIET_S)
        while not self._done.is_set():
            self._draw(f"{time.monotonic() - started:5.1f} s  {self._text}")
            self._done.wait(EVERY_S)

    def _draw(self, line: str) -> None:
        """Replace the line by another, without escape codes, which not all terminals know."""
        if line or self._width:
            sys.stderr.write("\r" + line.ljust(self._width) + ("" if line else "\r"))
            sys.stderr.flush()
            self._width = len(line)
