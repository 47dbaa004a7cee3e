"""What the shell offers after a press of the tab key: names that are known, and files.

click asks for one word at a time, in a process of its own, so nothing heavy is loaded here: no
numpy, no cost model, no plug-in of others (only its name is read).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

#: Names of modules that would load numpy; a test compares them.
STACKS = (
    *("megatron", "megatron-2021", "torchtitan", "llm-foundry", "nanotron"),
    *("maxtext", "maxtext-gpu"),
)
SCHEDULES = ("1f1b", "gpipe", "zero-bubble")
PRECISIONS = ("bf16", "fp8", "int8")
OBJECTIVES = ("time", "memory", "chips")
#: The entry-point group of other people's cost models.
GROUP = "autoshard.costmodels"

#: What click calls: the context, the parameter, and the word as far as it is typed.
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


class FileName(click.types.StringParamType):
    """Text that names a file: the shell completes it, and the command judges it."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell list its files."""
        return [CompletionItem(incomplete, type="file")]


FILE = FileName()


def complete_files(command: click.Command) -> None:
    """Complete files where a command takes one: options with ``FILE`` in them, and arguments."""
    for param in command.params:
        if not isinstance(param.type, click.types.StringParamType):
            continue
        takes_file = isinstance(param, click.Argument) and param.nargs == 1
        if takes_file or "FILE" in (param.metavar or ""):
            param.type = FILE


def _starting(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def one_of(*words: str) -> Completer:
    """One of these words."""
    return lambda _, __, incomplete: _starting(words, incomplete)


def some_of(*words: str) -> Completer:
    """Some of these words, with commas between them and each once."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        said, comma, begun = incomplete.rpartition(",")
        left = [word for word in words if word not in said.split(",")]
        return [CompletionItem(f"{said}{comma}{item.value}") for item in _starting(left, begun)]

    return complete


def models(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Presets, or a ``config.json`` on disk."""
    from autoshard.catalog import model_names

    return _starting(model_names(), incomplete) or [CompletionItem(incomplete, type="file")]


def chips(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Chips of the catalog."""
    from autoshard.catalog import chip_names

    return _starting(chip_names(), incomplete)


def costs(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Profiles that come with autoshard, and those that other packages publish."""
    from importlib.metadata import entry_points

    known = ["textbook", "calibrated", *(f"calibrated/{name}" for name in STACKS)]
    return _starting([*known, *entry_points(group=GROUP).names], incomplete)
