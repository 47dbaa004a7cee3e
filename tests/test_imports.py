"""The three rooms point one way, and starting up loads nothing heavy."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("autoshard", "autoshard/charts", "autoshard/launch", "costmodels", "search")

HEAVY = ("altair", "numpy", "ortools", "pandas", "polars", "rich", "scipy", "yaml")


def files(folder: str) -> list[Path]:
    """The Python files of a folder, each once; links are left out."""
    return sorted((ROOT / folder).glob("*.py"))


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every import, also of one inside a function or for type checkers only.

    ``from autoshard import x`` gives ``autoshard.x``; a relative import keeps its leading dots.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{name.name}") for name in node.names)


def within(name: str, *packages: str) -> bool:
    """Whether a dotted name is one of the packages or lies inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def may_import(folder: str, name: str) -> bool:
    """The product reads search and costmodels, search reads costmodels, and only search solves."""
    if name.startswith(".") or within(name, "costmodels", "search"):
        return False
    if folder == "costmodels":
        return not within(name, "ortools", "polars", "altair", "click", "rich") and (
            not within(name, "autoshard") or within(name, "autoshard.costmodels")
        )
    if folder == "search":
        return not within(name, "altair", "click", "rich") and (
            not within(name, "autoshard")
            or within(name, "autoshard.costmodels", "autoshard.search")
        )
    return not within(name, "ortools")


@pytest.mark.parametrize("folder", FOLDERS)
def test_room_imports_only_what_it_may(folder: str) -> None:
    assert files(folder), f"{folder}/ holds no Python file"
    broken = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files(folder)
        for line, name in imports(path.read_text(encoding="utf-8"))
        if not may_import(folder, name)
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("folder", "statement", "allowed"),
    [
        ("costmodels", "from autoshard.costmodels.plan import Plan", True),
        ("costmodels", "import numpy as np", True),
        ("costmodels", "import autoshard", False),
        ("costmodels", "from autoshard import search", False),
        ("costmodels", "from autoshard.search.space import rows", False),
        ("costmodels", "from autoshard.cli import main", False),
        ("costmodels", "def f():\n    from ortools.sat.python import cp_model", False),
        ("costmodels", "from .plan import Plan", False),
        ("costmodels", "from . import plan", False),
        ("search", "from autoshard import costmodels", True),
        ("search", "from autoshard.search import space", True),
        ("search", "from ortools.sat.python import cp_model", True),
        ("search", "from autoshard import ParetoFront", False),
        ("search", "if TYPE_CHECKING:\n    from autoshard.front import ParetoFront", False),
        ("search", "from costmodels.plan import Plan", False),
        ("autoshard", "from autoshard.search import solve", True),
        ("autoshard", "import polars as pl", True),
        ("autoshard", "import search", False),
        ("autoshard", "import ortools.sat", False),
    ],
)
def test_rule_judges_each_form_of_import(folder: str, statement: str, allowed: bool) -> None:
    judged = [may_import(folder, name) for _, name in imports(statement)]
    assert all(judged) is allowed
    assert judged


START = """
import json, sys

def heavy():
    return sorted({name.partition(".")[0] for name in sys.modules} & set(HEAVY))

before = heavy()
import autoshard
imported = heavy()
from autoshard.cli import main
sys.argv = ["autoshard", "--help"]
status = "main returned"
try:
    main()
except SystemExit as stop:
    status = stop.code or 0
print(json.dumps([before, imported, heavy(), status]), file=sys.stderr)
"""


def test_start_up_loads_nothing_heavy() -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {HEAVY!r}\n{START}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 0, run.stderr
    before, imported, helped, status = json.loads(run.stderr.splitlines()[-1])
    assert before == [], "this interpreter loads these at its own start, so nothing can be measured"
    assert imported == [], "loaded by `import autoshard`"
    assert helped == [], "loaded by `autoshard --help`"
    assert status == 0
    assert "solve" in run.stdout
