"""The documents lead where they say, and the documentation site is built from them and the code."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command import run

import autoshard
from autoshard.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "notebooks").glob("*.ipynb"),
        ROOT / "autoshard" / "measured" / "README.md",
    ]
)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\\?\"([^\"\\]+)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def links(path: Path) -> list[str]:
    """Targets of links and pictures, without those to other sites."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    found = [first or second for first, second in LINK.findall(text)]
    return [target for target in found if not re.match(r"[a-z]+:", target)]


@functools.cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors of a document's headings, as GitHub and Python-Markdown make them."""
    heads = re.findall(r"^#+ +(.+)$", path.read_text(encoding="utf-8"), flags=re.M)
    plain = (re.sub(r"[^\w\- ]", "", head.lower()) for head in heads)
    return frozenset(head.strip().replace(" ", "-") for head in plain)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_relative_link_leads_to_a_file_and_to_a_heading_in_it(path: Path) -> None:
    broken = []
    for target in links(path):
        place, _, anchor = target.partition("#")
        file = path.parent / place if place else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_check_of_links_finds_links() -> None:
    found = {name_of(path): len(links(path)) for path in DOCUMENTS}
    assert found["README.md"] >= 5
    assert found["docs/index.md"] >= 15


def printed(name: str) -> list[tuple[str, str]]:
    """Each command of a document that is followed by what it prints."""
    pair = r"^```sh\n(autoshard [^\n]*)\n```\n\n```text\n(.*?)^```"
    return re.findall(pair, (ROOT / name).read_text(encoding="utf-8"), flags=re.S | re.M)


#: Pages whose commands are run.
PAGES = ("docs/tutorial.md", "docs/search.md", "docs/plans.md")


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_print_what_stands_below_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paste the output where this fails; ``...`` stands for lines left out."""
    monkeypatch.chdir(tmp_path)  # commands of a page read what the ones before have written
    for command, text in printed(name):
        _, *arguments = shlex.split(command)
        result = run(*arguments, env={"COLUMNS": "96"})
        said = " ".join((result.stdout + result.stderr).split())
        start = 0
        for piece in re.split(r"^\.\.\.\n", text, flags=re.M):
            words = " ".join(piece.split())
            assert words in said[start:], f"{command} does not print, or not here: {words}"
            start = said.index(words, start) + len(words)


def test_the_tutorial_shows_what_its_commands_print() -> None:
    assert len(printed("docs/tutorial.md")) >= 6
    assert len(printed("docs/plans.md")) >= 5


@pytest.mark.parametrize("name", ["docs/tutorial.md", "docs/api.md"])
def test_the_python_of_a_page_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), flags=re.S | re.M)
    assert found
    for code in found:
        exec(compile(code, name, "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip()


# The site itself: pip install -e '.[docs]'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning is an error (``strict``), and so is a request for something else.

    mkdocs is run with no proxy that answers, so that nothing can be fetched.
    """
    for module in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(module) is None:
            pytest.skip("needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | nowhere | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_page_of_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?((?:https?:)?//[^\" >]+)"
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) >= 17
    assert {page.name: loads.findall(page.read_text()) for page in pages} == {
        page.name: [] for page in pages
    }


def test_every_link_between_pages_of_the_site_leads_somewhere(site: Path) -> None:
    broken = []
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # served for any address, so its links begin at the root
            continue
        targets = re.findall(r"<a\b[^>]*href=\"([^\"#:]+)(?:#[^\"]*)?\"", page.read_text())
        broken += [(page.name, each) for each in targets if not (page.parent / each).exists()]
    assert broken == []


def test_the_site_has_every_command_and_option(site: Path) -> None:
    page = (site / "cli.html").read_text()
    for name, command in main.commands.items():
        assert f'id="{name}"' in page
        options = [option for param in command.params for option in param.opts if "--" in option]
        assert [option for option in options if option not in page] == []
    assert "Sentinel" not in page


def test_the_site_has_the_public_names(site: Path) -> None:
    page = (site / "api.html").read_text()
    for name in autoshard.__all__:
        assert re.search(rf'id="autoshard\.[\w.]*\b{name}"', page), name
    assert ":class:" not in page
