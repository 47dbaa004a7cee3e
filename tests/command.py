"""The command line, in process: one start of Python for all tests."""

from __future__ import annotations

from click.testing import CliRunner, Result

from autoshard.cli import main

#: Half a second to solve.
SMALL = ("--model", "llama3-8b", "--chips", "64")


def run(*args: str, env: dict[str, str] | None = None) -> Result:
    """Run ``autoshard`` with these arguments; an exception that is not an exit fails the test."""
    result = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1", **(env or {})}).invoke(main, args)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
