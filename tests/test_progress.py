"""What is said on stderr while a command runs: how far it is, and what it has so far."""

from __future__ import annotations

import io
import re
import time

import pytest
from command import SMALL, run

from autoshard import progress
from autoshard.progress import Progress


class Terminal(io.StringIO):
    """A stderr that somebody looks at."""

    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 60 columns, and no second of waiting.

    No fixture: pytest puts its own stderr back between the two.
    """
    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    monkeypatch.setattr(progress, "EVERY_S", 0.005)
    monkeypatch.setenv("COLUMNS", "60")
    return shown


def until(shown: Terminal, text: str) -> None:
    """Wait until a text is drawn."""
    end = time.monotonic() + 10.0
    while text not in shown.getvalue() and time.monotonic() < end:
        time.sleep(0.005)


def test_a_terminal_shows_the_newest_state_with_the_seconds_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = terminal_of(monkeypatch)
    with Progress(quiet=False) as shown:
        until(terminal, "pricing candidate plans")
        shown.tell("fastest 6.9 s")
        until(terminal, "fastest 6.9 s")
    drawn = terminal.getvalue().split("\r")
    assert re.fullmatch(r" *\d+\.\d s  pricing candidate plans", drawn[1])
    assert re.match(r" *\d+\.\d s  fastest 6\.9 s", drawn[-3])


def test_the_line_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with Progress(quiet=False):
        until(terminal, "pricing")
    *_, cleared, empty = terminal.getvalue().split("\r")
    assert (cleared.strip(), empty) == ("", "")
    assert "\n" not in terminal.getvalue()


def test_a_line_is_never_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with Progress(quiet=False) as shown:
        shown.tell("x" * 200)
        until(terminal, "xxx")
    assert max(map(len, terminal.getvalue().split("\r"))) == 59


def test_a_quick_command_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    monkeypatch.setattr(progress, "QUIET_S", 60.0)
    with Progress(quiet=False) as shown:
        shown.tell("fastest 6.9 s")
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("verbose", [False, True])
def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch, verbose: bool) -> None:
    terminal = terminal_of(monkeypatch)
    with Progress(quiet=True, verbose=verbose) as shown:
        shown.tell("fastest 6.9 s")
        shown.steps({"space": 0.1})
        time.sleep(0.02)
    assert terminal.getvalue() == ""


def test_what_is_no_terminal_gets_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    with Progress(quiet=False) as shown:
        shown.tell("fastest 6.9 s")
        time.sleep(0.02)
    assert said.getvalue() == ""


def test_verbose_prints_every_step_of_the_search_with_its_seconds() -> None:
    result = run("solve", *SMALL, "--points", "3", "--verbose")
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    priced, left, *points = [line for line in lines if re.match(r" *\d+\.\d s  ", line)][-5:]
    assert re.search(r"[\d,]+ candidates priced, incumbent [\d.]+ s$", priced)
    assert re.search(r"within the bounds; incumbent [\d.]+ s, gap \d+\.\d\d %$", left)
    for count, line in enumerate(points, 1):
        assert f"fastest 6.889 s, gap 0.00 %; {count} of 3 points, last " in line
    steps = dict(re.findall(r"^  (\S.*?) +(\d+\.\d\d) s$", result.stderr, flags=re.M))
    assert {"space", "bounds", "front", "judge"} <= set(steps)


def test_verbose_changes_nothing_on_stdout() -> None:
    loud, still = (run("solve", *SMALL, "--csv", "--points", "2", *v) for v in (["-v"], []))
    assert loud.stdout == still.stdout
    assert still.stderr == ""


def test_verbose_and_quiet_contradict_each_other() -> None:
    result = run("solve", *SMALL, "-v", "-q")
    assert result.exit_code == 2
    assert "give one of them" in result.stderr
