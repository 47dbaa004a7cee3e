"""The code in the documents and the notebooks runs."""

import json
import re
from pathlib import Path

import pytest

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
            exec(compile(cell["source"], path.name, "exec"), scope)
