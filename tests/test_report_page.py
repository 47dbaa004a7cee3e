"""The page of ``solve --html``: what it holds, and what a person with a browser can do with it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, chromium, opened
from command import SMALL, run

import autoshard
from autoshard.catalog import load_chip, load_model
from autoshard.costmodels.cluster import Cluster
from autoshard.launch_texts import launch_texts
from autoshard.report_facts import assumptions, published_error
from autoshard.report_page import report_page

ROOT = Path(__file__).parents[1]
SOLVE = ("--model", "llama3-8b", "--chip", "h100", "--chips", "64", "--stack", "megatron")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, autoshard.ParetoFront, Any]:
    """The page, the front that it shows, and what the command said."""
    folder = tmp_path_factory.mktemp("page")
    files = ("--html", str(folder / "report.html"), "--save", str(folder / "front.json"))
    result = run("solve", *SOLVE, "--points", "4", *files)
    front = autoshard.ParetoFront.load(folder / "front.json")
    return folder / "report.html", front, result


@pytest.fixture(scope="module")
def page(made: tuple[Path, autoshard.ParetoFront, Any]) -> str:
    return made[0].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(page: str) -> Any:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_command_writes_the_page_and_says_so(
    made: tuple[Path, autoshard.ParetoFront, Any],
) -> None:
    path, _, result = made
    assert result.exit_code == 0
    assert str(path) in result.stderr
    assert result.stdout.startswith("Fastest: ")


def test_the_page_needs_nothing_from_elsewhere_and_is_no_larger_than_3_mb(page: str) -> None:
    assert len(page.encode()) < 3e6
    assert page.count("<script") == page.count("</script>") == 3
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert re.findall(r"(?:src|href)=\"(?!data:,)|@import|url\(", markup) == []
    assert "<!-- " not in markup


def test_every_point_has_its_words_charts_and_launch_texts(
    data: Any, made: tuple[Path, autoshard.ParetoFront, Any]
) -> None:
    _, front, _ = made
    assert len(data["points"]) == len(front.points)
    for shown, point in zip(data["points"], front.points, strict=True):
        piped = {"pipeline"} if point.plan.pp > 1 else set()
        assert set(shown["charts"]) == {"time", "memory", "mesh"} | piped
        assert shown["launch"] == launch_texts(front.solved(point))
        figures = dict(shown["figures"])
        assert {"step time", "memory on a chip", "MFU", "layers", "layout", "proof"} <= set(figures)
    assert any("pipeline" in shown["charts"] for shown in data["points"])


def test_names_cannot_end_a_script_or_open_a_tag() -> None:
    model = dataclasses.replace(load_model("llama3-8b"), name="x</script><b>")
    front = autoshard.solve(model, chip="h100", chips=8, points=1, global_batch_seqs=64)
    page = report_page(front, front.fastest().profile, tokens=1e12)
    assert page.count("</script>") == 3
    assert "<b>" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_a_page_needs_a_place_of_its_own() -> None:
    result = run("solve", *SMALL, "--html", "/nowhere/page.html")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--html /nowhere/page.html: cannot be written" in result.stderr
    result = run("solve", *SMALL, "--html", "page", "--chart", "page")
    assert result.exit_code == 2


def test_a_solve_without_pictures_loads_no_drawing_library() -> None:
    script = (
        "import sys\nfrom autoshard.cli import main\n"
        f"main(['solve', *{SMALL!r}, '--points', '1', '-q'], standalone_mode=False)\n"
        "assert not {'altair', 'vl_convert'} & set(sys.modules)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr


# What stands beside the pictures


@pytest.mark.parametrize("asked", [(), ("--stack", "megatron", "--chip", "h100")], ids=str)
def test_the_command_on_the_page_finds_the_same_plan(asked: tuple[str, ...]) -> None:
    solved = run("solve", *SMALL, *asked, "--points", "3", "--json").stdout
    front = autoshard.ParetoFront.from_dict(json.loads(solved))
    for point in front.points:
        program, *command = shlex.split(launch_texts(front.solved(point))["solve it again"])
        assert program == "autoshard"
        again = json.loads(run(*command, "--json").stdout)["fastest"]
        assert again["step_time_s"] == pytest.approx(point.step_time_s, rel=1e-3)
        assert again["memory_bytes"] <= point.memory_bytes + 2**20
        assert again["plan"]["tp"] == point.plan.tp


def test_the_command_names_pods_a_torus_and_a_schedule() -> None:
    front = autoshard.solve(
        "llama3-8b", chip="v5p", topology=(4, 4, 4), points=1, schedule="gpipe", fix={"pp": 2}
    )
    said = launch_texts(front.fastest())["solve it again"]
    assert "--chips 64 --topology 4x4x4" in said
    assert "--schedule gpipe" in said
    assert "pp=2" in said


def test_figures_of_a_chip_have_a_source_unless_they_are_the_users_own() -> None:
    def sources(chip: Any) -> dict[str, str]:
        problem = autoshard.build_problem("llama3-8b", cluster=Cluster.build(chip, chips=8))
        _, columns = assumptions(problem, autoshard.textbook()).tables[0]
        return dict(zip(columns[0].cells, columns[2].cells, strict=True))

    known = sources(load_chip("h100"))
    assert all(known.values())
    assert "given with the problem" not in known.values()
    faster = sources(dataclasses.replace(load_chip("h100"), hbm_bytes_per_s=4e12))
    assert faster["HBM bandwidth"] == "given with the problem"
    assert faster["HBM"] == known["HBM"]


def test_the_error_is_that_of_validate_on_the_chip() -> None:
    front = autoshard.solve("llama3-8b", chip="h100", chips=8, stack="megatron", points=1)
    plan = front.fastest()
    facts = published_error(plan.problem, plan.profile)
    (_, columns) = facts.tables[0]
    assert set(columns[0].cells) == {"h100"}
    assert "megatron" in columns[2].cells
    assert "by constants that have not seen its source" in facts.said[0]


def test_a_chip_that_nobody_measured_and_costs_of_ones_own_are_said_to_be_so() -> None:
    chip = dataclasses.replace(load_chip("h100"), name="h100-ours")
    problem = autoshard.build_problem("llama3-8b", cluster=Cluster.build(chip, chips=8))
    facts = published_error(problem, autoshard.textbook())
    assert facts.tables == ()
    assert any("No published run is on h100-ours" in said for said in facts.said)
    own = dataclasses.replace(autoshard.textbook(), name="ours")
    assert published_error(problem, own).said == (
        "The costs ours were not held against published runs.",
    )


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium is installed (Debian's package is called chromium)")
    with opened(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


def shown(page: Page) -> dict[str, Any]:
    """What the page shows of the chosen plan."""
    script = """({
        heading: document.getElementById('plan-heading').textContent,
        row: document.querySelector('tr.chosen').dataset.point,
        checked: document.querySelector('input:checked').value,
        figures: document.getElementById('figures').textContent,
        launch: document.getElementById('launch').textContent,
        charts: [...document.querySelectorAll('#charts figure')].map((f) => f.id),
        focus: document.activeElement.value,
    })"""
    found: dict[str, Any] = page.evaluate(script)
    return found


def wait_for(page: Page, point: int) -> None:
    page.wait(f"document.getElementById('plan').dataset.drawn === '{point}'")


@pytest.fixture
def fresh(browser: Page, made: tuple[Path, autoshard.ParetoFront, Any]) -> Page:
    browser.requests.clear()
    browser.errors.clear()
    browser.view(1280)
    browser.open(made[0])
    wait_for(browser, 0)
    return browser


def test_clicking_a_point_of_the_front_shows_its_plan(
    fresh: Page, data: Any, made: tuple[Path, autoshard.ParetoFront, Any]
) -> None:
    before = shown(fresh)
    assert (before["heading"], before["row"]) == (data["points"][0]["name"], "0")
    for point in (2, 1):
        # The filled marks of the front are its points, in their order.
        place = fresh.evaluate(
            "(() => { const b = [...document.querySelectorAll('#front .mark-symbol.role-mark')]"
            ".map((g) => [...g.children]).find((m) => m.length === "
            f"{len(data['points'])})[{point}].getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        fresh.click(*place)
        wait_for(fresh, point)
        after, told = shown(fresh), data["points"][point]
        assert after["heading"] == told["name"]
        assert after["row"] == after["checked"] == str(point)
        assert set(after["charts"]) == {f"chart-{name}" for name in told["charts"]}
        for _, figure in told["figures"]:
            assert figure in after["figures"]
        for text in told["launch"].values():
            assert text in after["launch"]


def test_the_arrow_keys_go_through_the_plans(fresh: Page, data: Any) -> None:
    fresh.evaluate("document.querySelector('input:checked').focus()")
    fresh.press("ArrowDown")
    wait_for(fresh, 1)
    assert shown(fresh)["heading"] == data["points"][1]["name"]
    assert shown(fresh)["focus"] == "1"
    fresh.press("ArrowUp")
    wait_for(fresh, 0)
    assert shown(fresh)["checked"] == "0"


def test_the_page_asks_for_nothing_and_complains_of_nothing(fresh: Page, data: Any) -> None:
    for point in range(len(data["points"])):
        fresh.evaluate(f"document.querySelectorAll('[data-point]')[{point}].click()")
        wait_for(fresh, point)
    asked = [url for url in fresh.requests if not url.startswith(("file:", "data:"))]
    assert (asked, fresh.errors) == ([], [])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_its_window_in_light_and_in_dark(
    fresh: Page, width: int, dark: bool, tmp_path: Path
) -> None:
    fresh.view(width, dark=dark)
    fresh.evaluate("choose(1)")
    wait_for(fresh, 1)
    assert fresh.evaluate("document.documentElement.scrollWidth") == width
    ground = fresh.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is not dark
    # Nothing that is drawn reaches beyond its picture, and text is readable on the ground.
    beyond = fresh.evaluate(
        "[...document.querySelectorAll('.chart svg, .chart canvas')]"
        ".filter((c) => c.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert beyond == 0
    ink = fresh.evaluate(
        "[...document.querySelectorAll('#chart-time svg .role-axis-label text')]"
        ".map((t) => t.getAttribute('fill'))"
    )
    assert set(ink) == {"#eeeeee" if dark else "#222222"}
    (tmp_path / "page.png").write_bytes(fresh.picture())
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_every_control_and_picture_has_a_name(fresh: Page) -> None:
    nameless = fresh.evaluate(
        "[...document.querySelectorAll('input, button, figure[id], #front')]"
        ".filter((e) => !e.getAttribute('aria-label') && !e.textContent.trim())"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    tree = fresh.call("Accessibility.getFullAXTree")["nodes"]
    radios = [node["name"]["value"] for node in tree if node["role"]["value"] == "radio"]
    assert len(radios) == fresh.evaluate("document.querySelectorAll('[data-point]').length")
    assert all(" GiB" in name or " MiB" in name for name in radios)
