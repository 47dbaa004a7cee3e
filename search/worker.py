"""A second process that answers calls: work beside the search that does not share its interpreter.

Importing the solver takes Python half a second, and building its models as long again for a deep
pipeline. In a thread all of that would hold up the search. The process is started once, serves
every later search of this one, and ends with it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

#: What the process runs: it imports from where this one does, and from nowhere else.
_SERVE = (
    "import sys; sys.path[:] = sys.argv[1:]; from autoshard.search.worker import serve; serve()"
)


class WorkerLostError(Exception):
    """The process could not be started, or ended before it answered."""


class Worker:
    """One process, which takes one call at a time; calls of other threads wait for theirs."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._calling = threading.Lock()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVE, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except (OSError, ValueError) as error:
            raise WorkerLostError(str(error)) from None
        self.alive = True

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of some module answers there; its exceptions are raised here.

        Raises:
            WorkerLostError: the process ended before it answered.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._calling:  # searches of two threads share the pipes, and must not mix them
            try:
                pickle.dump((function, arguments), self._process.stdin)
                self._process.stdin.flush()
                answer, error = pickle.load(self._process.stdout)
            except (OSError, EOFError, ValueError, pickle.UnpicklingError) as lost:
                self.end()
                raise WorkerLostError(str(lost)) from None
        if error is not None:
            raise error
        return answer

    def end(self) -> None:
        """End the process, whatever it does; a call that waits for it raises."""
        self.alive = False
        if self.pid == os.getpid():
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # a call may be half written
                    assert pipe is not None
                    pipe.close()


_lock = threading.Lock()
_shared: list[Worker] = []


def shared_worker() -> Worker:
    """The process that serves all searches, started where there is none.

    Raises:
        WorkerLostError: it cannot be started.
    """
    with _lock:
        # After a fork, the process belongs to the parent.
        if not _shared or not _shared[-1].alive or _shared[-1].pid != os.getpid():
            _shared[:] = [Worker()]
            atexit.register(_shared[-1].end)
        return _shared[-1]


def serve() -> None:
    """Answer calls from the standard input until it closes."""
    # Ctrl-C at a terminal reaches both processes; only the search knows what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(os.fdopen(os.dup(0), "rb"), calls), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while True:
        function, arguments = calls.get()
        try:
            answer: tuple[Any, Exception | None] = (function(*arguments), None)
        except Exception as error:
            answer = (None, error)
        pickle.dump(answer, answers)
        answers.flush()


def _read(pipe: IO[bytes], calls: queue.SimpleQueue[Any]) -> None:
    """Pass calls on as they come, and end the process with the one that calls, though at work."""
    try:
        while True:
            calls.put(pickle.load(pipe))
    finally:  # the pipe is closed, or what came on it cannot be read
        os._exit(0)
