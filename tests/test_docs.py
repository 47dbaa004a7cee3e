"""The code in the documents and the notebooks runs, and their figures are what it prints."""

import functools
import json
import re
from pathlib import Path

import pytest

from autoshard.compiler_report import compilers_report
from autoshard.compiler_verdict import SHIPPED, judge, load_records
from autoshard.validate_report import validation_report
from autoshard.validating import Validation, validate

ROOT = Path(__file__).resolve().parent.parent


def blocks(name: str) -> list[str]:
    """The Python code blocks of a document."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), flags=re.S | re.M)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_python_block_of_a_document_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(name)
    assert found
    for code in found:
        exec(compile(code, name, "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip()


def printed(name: str) -> list[tuple[str, str]]:
    """The costs and the text of each block that is marked as printed by ``autoshard validate``."""
    mark = r"^<!-- printed by autoshard validate(?: --costs (\w+))? -->\n```text\n(.*?)^```"
    found = re.findall(mark, (ROOT / name).read_text(), flags=re.S | re.M)
    return [(costs or "calibrated", text) for costs, text in found]


@functools.cache
def judged(costs: str) -> Validation:
    """The built-in runs, judged once for all documents."""
    return validate(costs=costs)


@pytest.mark.parametrize("name", ["README.md", "docs/accuracy.md"])
def test_the_figures_of_a_document_are_those_that_validate_prints(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paste the command's output where this fails; ``...`` stands for lines left out."""
    monkeypatch.setenv("COLUMNS", "120")  # narrower terminals wrap cells
    found = printed(name)
    assert found
    reports = {costs: validation_report(judged(costs)) for costs in dict(found)}
    # Notes wrap at the width of the terminal.
    known = {costs: " ".join(report.split()) for costs, report in reports.items()}
    for costs, text in found:
        lines = [" ".join(line.split()) for line in text.splitlines() if line != "..."]
        assert [line for line in lines if line not in known[costs]] == []


def test_the_verdict_of_compilers_is_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Paste the command's output where this fails; ``...`` stands for lines left out."""
    monkeypatch.setenv("COLUMNS", "120")
    mark = r"^<!-- printed by autoshard validate --compilers -->\n```text\n(.*?)^```"
    found = re.findall(mark, (ROOT / "docs/compilers.md").read_text(), flags=re.S | re.M)
    assert bool(found) == SHIPPED.is_file()
    known = " ".join(compilers_report(judge(load_records())).split()) if found else ""
    lines = [" ".join(line.split()) for text in found for line in text.splitlines()]
    assert [line for line in lines if line != "..." and line not in known] == []


def test_the_decomposition_of_the_error_prints_what_its_document_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "docs/accuracy.md"
    (code,) = blocks(name)
    exec(compile(code, name, "exec"), {"__name__": "example"})
    assert f"```text\n{capsys.readouterr().out}```" in (ROOT / name).read_text()


def test_the_cost_model_of_the_guide_slows_the_textbook_by_its_efficiency() -> None:
    scope: dict[str, object] = {"__name__": "example"}
    exec(compile(blocks("CONTRIBUTING.md")[0], "CONTRIBUTING.md", "exec"), scope)
    point = scope["front"].points[0]  # type: ignore[attr-defined]
    assert 0.5 < point.mfu < 0.6


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_runs_from_top_to_bottom_and_stores_no_output(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    scope: dict[str, object] = {"__name__": "notebook"}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), path.name, "exec"), scope)  # text or its lines
