"""What is installed is what is in the tree: package list, wheel, links and metadata."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE_DIR: dict[str, str] = PYPROJECT["tool"]["setuptools"]["package-dir"]
VERSION: str = PYPROJECT["project"]["version"]

LINKS = ("autoshard/costmodels", "autoshard/search")
NOT_SOURCE = (".*", "__pycache__", "*.egg-info", "build", "dist", "venv", "notebooks")


def sources() -> dict[str, Path]:
    """Each file that a wheel must hold, by its name there; ``rglob`` does not follow the links."""
    return {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}": path
        for package, folder in PACKAGE_DIR.items()
        for pattern in ("*.py", "*.toml", "*.csv", "*.json", "*.css", "*.html", "*.js", "py.typed")
        for path in (ROOT / folder).rglob(pattern)
        if "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The wheel of a copy of the tree: no old ``build/`` takes part and none is left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(copy)],
        env={key: value for key, value in os.environ.items() if key != "DIST_EXTRA_CONFIG"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, f"pip wheel failed:\n{built.stdout}{built.stderr}"
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_holds_exactly_the_sources(wheel: dict[str, bytes]) -> None:
    files = {name for name in wheel if ".dist-info/" not in name}
    assert files == set(sources())


def test_wheel_holds_the_sources_unchanged(wheel: dict[str, bytes]) -> None:
    different = [name for name, path in sources().items() if wheel.get(name) != path.read_bytes()]
    assert different == []


def test_wheel_installs_one_top_level_name(wheel: dict[str, bytes]) -> None:
    assert {name.split("/")[0] for name in wheel} == {"autoshard", f"autoshard-{VERSION}.dist-info"}
    assert wheel[f"autoshard-{VERSION}.dist-info/top_level.txt"].split() == [b"autoshard"]


def test_wheel_carries_the_license_and_the_command(wheel: dict[str, bytes]) -> None:
    info = f"autoshard-{VERSION}.dist-info"
    assert wheel[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert b"autoshard = autoshard.cli:main" in wheel[f"{info}/entry_points.txt"]
    assert b"[autoshard.costmodels]" not in wheel[f"{info}/entry_points.txt"]


def test_package_list_names_every_folder_with_code() -> None:
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    found = {
        name.rpartition("/")[0].replace("/", ".") for name in sources() if name.endswith(".py")
    }
    assert sorted(listed) == sorted(PACKAGE_DIR) == sorted(found)


@pytest.mark.parametrize("link", LINKS)
def test_link_leads_to_the_folder_of_the_same_name(link: str) -> None:
    path = ROOT / link
    assert path.is_symlink(), (
        f"{link} is not a link: see the section on the layout in CONTRIBUTING.md"
    )
    assert path.readlink() == Path("..") / path.name
    assert (path / "__init__.py").is_file()


@pytest.mark.parametrize("name", ["search", "costmodels"])
def test_folder_refuses_to_be_imported_by_its_own_name(name: str) -> None:
    sys.modules.pop(name, None)
    with pytest.raises(ImportError, match=rf"autoshard\.{name}: import it by that name"):
        __import__(name)  # pytest put the root of the checkout on sys.path
    assert name not in sys.modules


def test_editable_install_is_a_path_and_not_an_import_hook() -> None:
    installed = importlib.metadata.distributions(
        name="autoshard", path=[sysconfig.get_path("purelib")]
    )
    files = [str(file) for distribution in installed for file in distribution.files or ()]
    if "__editable__.autoshard" not in "".join(files):
        pytest.skip("autoshard is not installed in editable mode here")
    assert [name for name in files if name.endswith("_finder.py")] == []


def test_version_is_the_same_everywhere() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^## \[?(\d[^\]\s]*)", changelog, re.MULTILINE)[0] == VERSION
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [VERSION]
