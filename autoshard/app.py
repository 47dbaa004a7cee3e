"""How the command ends: one line for an error, the exit status, and never a traceback.

0    solved
1    a bug in autoshard (AUTOSHARD_TRACEBACK=1 shows where)
2    bad input, or a file that cannot be read or written
3    infeasible: the question is sound and no plan satisfies it
130  Ctrl-C before the first plan; later, the plans found so far are the answer
143  the same for SIGTERM
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import click

from autoshard.shell_completion import complete_files

BUG, BAD_INPUT, INFEASIBLE, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143


class App(click.Group):
    """A click group that reports every failure in one line on stderr."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run the command line and exit, whatever ``standalone_mode`` (click's) says."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a name that cannot be shown is no failure
                stream.reconfigure(errors="backslashreplace")
        try:
            status = super().main(
                args, prog_name or self.name, complete_var, standalone_mode=False, **extra
            )
        except click.ClickException as error:
            status = error.status if isinstance(error, Failed) else BAD_INPUT
            say("error", _with_help(error))
        # Where Ctrl-C met the exec of a string, as in the making of a dataclass, CPython remembers
        # it and would end by that signal; another exec makes it forget.
        exec("")
        sys.exit(status)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Take in a command, whose files the shell completes."""
        complete_files(cmd)
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which they are defined, the most used first."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, with its failures turned into messages and statuses."""
        with _termination() as terminated, _failures(terminated):
            super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()  # a full disk or a closed pipe must show here, not at exit
        return 0


class Failed(click.ClickException):
    """A message and the exit status that goes with it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def say(kind: str, message: str) -> None:
    """One line on stderr: ``autoshard: <kind>: <message>``."""
    click.echo(f"autoshard: {kind}: {' '.join(message.split())}", err=True)


@contextlib.contextmanager
def _termination() -> Iterator[list[int]]:
    """SIGTERM ends a search as Ctrl-C does; the list says whether it came."""
    came: list[int] = []

    def stop(number: int, frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextlib.contextmanager
def _failures(terminated: list[int]) -> Iterator[None]:
    from autoshard.costmodels.errors import AutoshardError, Infeasible

    try:
        yield
    except (click.ClickException, click.exceptions.Exit):
        raise
    except Infeasible as error:
        raise Failed(str(error), INFEASIBLE) from None
    except AutoshardError as error:
        raise Failed(str(error), BAD_INPUT) from None
    except (KeyboardInterrupt, click.Abort):
        status = TERMINATED if terminated else INTERRUPTED
        raise Failed("interrupted before the first plan was found.", status) from None
    except BrokenPipeError:  # the reader has seen enough, as in `autoshard solve ... | head`
        _drop_stdout()
        raise click.exceptions.Exit(0) from None
    except OSError as error:
        if error.filename is None:
            _drop_stdout()
        where = "the output" if error.filename is None else str(error.filename)
        reason = error.strerror or str(error)
        raise Failed(f"{where}: cannot be read or written ({reason}).", BAD_INPUT) from None
    except Exception as error:
        if os.environ.get("AUTOSHARD_TRACEBACK"):
            raise
        kind = type(error).__name__
        raise Failed(
            f"this is a bug in autoshard, please report it ({kind}: {error}); "
            "AUTOSHARD_TRACEBACK=1 shows where.",
            BUG,
        ) from None


def _drop_stdout() -> None:
    """Point stdout at nothing, so that the interpreter does not complain when it flushes it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


def _with_help(error: click.ClickException) -> str:
    message = error.format_message().replace("?).", "?)").replace("?.", "?")
    if isinstance(error, click.UsageError) and error.ctx is not None:
        stop = "" if message.endswith(("?", "?)")) else "."
        return f"{message.rstrip('.')}{stop} See '{error.ctx.command_path} --help'."
    return message
