"""A press of the tab key offers the names that are known, and files where a file is meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from autoshard import asking, shell_completion
from autoshard.catalog import chip_names, model_names
from autoshard.cli import main
from autoshard.costmodels.registry import BUILT_IN, GROUP
from autoshard.costmodels.schedules import SCHEDULES
from autoshard.costmodels.stack import STACKS

ROOT = Path(__file__).parents[1]


def offered(*words: str) -> list[str]:
    """What is offered for the last word; ``<file>`` where the shell lists its files."""
    shell = ShellComplete(main, {}, "autoshard", "_AUTOSHARD_COMPLETE")
    items = shell.get_completions(list(words[:-1]), words[-1])
    return ["<file>" if item.type == "file" else item.value for item in items]


def test_names_that_are_written_twice_are_the_same() -> None:
    assert tuple(STACKS) == shell_completion.STACKS
    assert tuple(SCHEDULES) == shell_completion.SCHEDULES
    assert asking.OBJECTIVES == shell_completion.OBJECTIVES
    assert GROUP == shell_completion.GROUP


def test_commands_and_options_are_offered() -> None:
    assert {"solve", "explain", "validate", "models"} <= set(offered(""))
    assert offered("solve", "--glo") == ["--global-batch-tokens", "--global-batch-seqs"]


@pytest.mark.parametrize("command", ["solve", "explain"])
def test_names_are_offered(command: str) -> None:
    assert offered(command, "--model", "") == list(model_names())
    assert offered(command, "--model", "llama3-7") == ["llama3-70b"]
    assert offered(command, "--chip", "") == list(chip_names())
    assert offered(command, "--stack", "megatron") == ["megatron", "megatron-2021"]
    assert offered(command, "--schedule", "g") == ["gpipe"]
    assert offered(command, "--precision", "f") == ["fp8"]
    assert offered(command, "--layer", "m") == ["mlp2"]
    assert set(offered(command, "--costs", "")) >= {"calibrated", *BUILT_IN}


def test_names_of_published_costs_are_offered_without_loading_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from importlib.metadata import EntryPoint, EntryPoints

    point = EntryPoint("theirs", "no_such_module:thing", GROUP)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: EntryPoints([point]))
    assert offered("solve", "--costs", "th") == ["theirs"]


def test_a_list_goes_on_after_each_comma() -> None:
    assert offered("solve", "--front", "time,") == ["time,memory", "time,chips"]
    assert offered("solve", "--front", "time,memory,c") == ["time,memory,chips"]
    assert offered("solve", "--reshard", "3,") == ["3,2", "3,1"]


def test_a_model_that_is_no_preset_is_a_file() -> None:
    assert offered("solve", "--model", "./conf") == ["<file>"]


def string_parameters() -> list[tuple[str, click.Parameter]]:
    return [
        (name, param)
        for name, command in main.commands.items()
        for param in command.params
        if isinstance(param.type, click.types.StringParamType)
    ]


def test_every_option_with_a_file_completes_files() -> None:
    files = [(n, p.opts[0]) for n, p in string_parameters() if "FILE" in (p.metavar or "")]
    assert ("solve", "--cluster") in files
    assert ("calibrate", "--output") in files
    assert [each for each in files if offered(each[0], each[1], "x") != ["<file>"]] == []
    assert offered("calibrate", "ours") == ["<file>"]


def started(**environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which says on stderr what heavy things it loaded."""
    script = (
        "import json, sys\n"
        "from autoshard.cli import main\n"
        "try: main(prog_name='autoshard')\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'scipy', 'polars', 'altair', 'rich', 'ortools', 'pandas'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))), file=sys.stderr)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_a_press_of_the_tab_key_loads_nothing_heavy() -> None:
    """Each press starts a process: 0.15 s on one core, most of them Python's own and click's."""
    said = started(
        _AUTOSHARD_COMPLETE="bash_complete",
        COMP_WORDS="autoshard solve --costs calibrated/m",
        COMP_CWORD="3",
    )
    assert json.loads(said.stderr) == []
    assert "plain,calibrated/megatron\n" in said.stdout


def test_the_script_for_a_shell_is_printed() -> None:
    said = started(_AUTOSHARD_COMPLETE="zsh_source")
    assert "_AUTOSHARD_COMPLETE=zsh_complete autoshard" in said.stdout
