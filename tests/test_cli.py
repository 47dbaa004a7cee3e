"""What the commands print, where they print it, and how they end."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command import SMALL, run
from rich.text import Text

import autoshard
from autoshard import listings, options
from autoshard.catalog import chip_names, model_names
from autoshard.columns import Column, narrowed
from autoshard.costmodels.textbook_compute import LAYERS
from autoshard.costmodels.textbook_overlap import RULES
from autoshard.report import narrow_table, render
from autoshard.solving import solve

ROOT = Path(__file__).parents[1]
POINT = {
    "plan": dict,
    "layers_per_stage": list,
    "remat": list,
    "chips_used": int,
    "step_time_s": float,
    "memory_bytes": float,
    "mfu": float,
    "binding": str,
    "binding_by": str,
    "comms_over_compute": float,
    "lower_bound_s": float,
    "gap": float,
    "proven": bool,
    "interval_s": type(None),  # the textbook does not know its error
    "breakdown": dict,
    "expressible_in": dict,
}
TOP = {
    "schema": str,
    "problem": dict,
    "fastest": dict,
    "front": list,
    "notes": list,
    "search": dict,
}


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    result = run("solve", *SMALL, "--points", "4", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    data: dict[str, Any] = json.loads(result.stdout)
    return data


# solve: JSON


def test_json_has_the_documented_keys_and_types(answer: dict[str, Any]) -> None:
    assert {key: type(value) for key, value in answer.items()} == TOP
    assert answer["schema"] == "autoshard.front/1"
    for point in answer["front"]:
        assert {key: type(value) for key, value in point.items()} == POINT


def test_every_key_of_the_json_is_documented(answer: dict[str, Any]) -> None:
    documented = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs/json_schema.md").read_text()))
    #: Keys below these are names of things: rungs, networks, parts of the search, precisions.
    names = {"remat", "layout", "comms_s", "seconds", "model", "chip", "flops_per_s"}
    names |= {"expressible_in"}

    def keys(value: Any, skip: bool = False) -> set[str]:
        if isinstance(value, list):
            return set().union(*(keys(item, skip) for item in value))
        if not isinstance(value, dict):
            return set()
        below = set().union(*(keys(item, key in names) for key, item in value.items()))
        return below if skip else below | set(value)

    assert keys(answer) - documented == set()


def test_fastest_is_the_first_point_of_a_front_that_falls_strictly(answer: dict[str, Any]) -> None:
    front = answer["front"]
    assert answer["fastest"] == front[0]
    assert len(front) == 4
    for fast, small in itertools.pairwise(front):
        assert fast["step_time_s"] < small["step_time_s"]
        assert fast["memory_bytes"] > small["memory_bytes"]


def test_each_point_agrees_with_itself(answer: dict[str, Any]) -> None:
    for point in answer["front"]:
        plan = point["plan"]
        assert plan["fsdp"] == plan["batch_split"] * plan["seq_split"]
        degrees = plan["dp"] * plan["fsdp"] * plan["tp"] * plan["pp"] * plan["cp"]
        assert point["chips_used"] == plan["chips_used"] == degrees <= 64
        assert sum(plan["layers_per_stage"]) == 32
        assert [sum(stage.values()) for stage in plan["remat"]] == plan["layers_per_stage"]
        assert point["proven"]
        assert point["lower_bound_s"] <= point["step_time_s"]
        assert point["step_time_s"] <= point["lower_bound_s"] * (1 + answer["search"]["gap"])
        assert 0 < point["mfu"] <= 1
        assert point["memory_bytes"] <= answer["problem"]["capacity_bytes"]


def test_the_library_gives_the_same_answer(answer: dict[str, Any]) -> None:
    front = json.loads(solve("llama3-8b", chips=64, points=4).to_json())
    assert {**front, "search": 0} == {**answer, "search": 0}


# solve: files, CSV, charts


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("outputs")
    outputs = ("--save", "f.json", "--parquet", "f.parquet", "--chart", "f.html")
    placed = [str(folder / word) if word.startswith("f.") else word for word in outputs]
    return folder, run("solve", *SMALL, "--points", "4", "--csv", *placed)


def test_a_saved_front_reads_back_the_same(files: tuple[Path, Any], answer: dict[str, Any]) -> None:
    folder, result = files
    assert result.exit_code == 0
    front = autoshard.ParetoFront.load(folder / "f.json")
    assert front.to_dict()["front"] == answer["front"]
    front.save(folder / "again.json")
    assert autoshard.ParetoFront.load(folder / "again.json") == front
    assert front.fastest().tp == answer["fastest"]["plan"]["tp"]


def test_csv_and_parquet_hold_the_frame(files: tuple[Path, Any]) -> None:
    folder, result = files
    frame = autoshard.ParetoFront.load(folder / "f.json").frame
    assert pl.read_parquet(folder / "f.parquet").equals(frame)
    read = pl.read_csv(io.StringIO(result.stdout))
    assert read.columns == frame.columns
    assert read["step_time_s"].to_list() == frame["step_time_s"].to_list()
    assert [json.loads(text) for text in read["remat"]] == [json.loads(t) for t in frame["remat"]]


def test_a_chart_is_written_and_files_are_named_on_stderr(files: tuple[Path, Any]) -> None:
    folder, result = files
    assert "memory per chip (GiB)" in (folder / "f.html").read_text()
    wrote = ", ".join(str(folder / name) for name in ("f.json", "f.parquet", "f.html"))
    assert result.stderr == f"wrote {wrote}\n"


@pytest.mark.parametrize(("name", "head"), [("f.svg", b"<svg"), ("f.png", b"\x89PNG")])
def test_pictures_are_drawn(tmp_path: Path, name: str, head: bytes) -> None:
    path = tmp_path / name
    result = run("solve", *SMALL, "--points", "2", "--chart", str(path), "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    assert path.read_bytes().startswith(head)


# solve: the report


def test_the_report_starts_with_the_fastest_plan_in_words() -> None:
    result = run("solve", *SMALL, "--points", "4", "--tokens", "1T")
    lines = result.stdout.splitlines()
    assert result.stderr == ""
    # 1e12 tokens / 2^22 a step * 6.889 s / 86,400 s a day = 19.0 days
    assert lines[0] == (
        "Fastest: 6.89 s a step, 3.67 GiB/chip, MFU 93.3 %, 19.0 days for 1T tokens"
    )
    assert lines[1] == "  FSDP 16 (8 batch x 2 sequence) x TP 4 on all 64 chips"
    assert lines[3] == "  compute-bound; proven within 0.1 %"
    assert "All 4 plans: proven within 0.1 %, 64 chips." in lines
    assert any(line.startswith("Search: ") and "complete" in line for line in lines)
    assert lines[-1].startswith("Costs: textbook, scaling-book roofline")


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_report_fits_the_terminal(width: int) -> None:
    result = run("solve", *SMALL, "--points", "4", env={"COLUMNS": str(width)})
    assert max(map(len, result.stdout.splitlines())) <= width
    head = next(line for line in result.stdout.splitlines() if line.startswith("step s"))
    assert {"GiB/chip", "fsdp", "tp", "remat"} <= set(head.split())
    assert " dp" not in head, "a degree that is 1 everywhere needs no column"
    assert ("log scales" in result.stdout) is (width >= 100)


def test_idle_chips_are_a_note() -> None:
    result = run(
        "solve", "--model", "llama3-8b", "--chips", "40", "--points", "1", "--where", "pp == 1"
    )
    assert result.exit_code == 0
    assert "- 8 of 40 chips are idle" in result.stdout


def test_a_time_limit_is_a_warning_and_says_so_in_the_answer() -> None:
    arguments = ("--model", "llama3-8b", "--chips", "64", "--points", "0", "--time-limit", "1.2")
    result = run("solve", *arguments)
    assert result.exit_code == 0
    if "stopped early" in result.stdout:  # a machine quick enough finds every point
        assert result.stderr.startswith("autoshard: warning: the search was stopped")
        assert result.stderr.count("\n") == 1


# solve: options


def test_options_reach_the_problem() -> None:
    result = run(
        "solve", "--model", "llama3-8b", "--chip", "h100", "--chips", "16", "--precision", "fp8",
        "--global-batch-tokens", "1Mi", "--seq-len", "8192", "--memory-limit", "40GiB",
        "--where", "tp == 2", "--reshard", "2,3", "--gap", "1%", "--points", "1", "--json",
        "--schedule", "gpipe",
    )  # fmt: skip
    data = json.loads(result.stdout)
    problem = data["problem"]
    assert problem["cluster"]["name"] == "16 h100"
    assert problem["workload"] == {
        "global_batch_seqs": 128,
        "seq_len": 8192,
        "precision": "fp8",
        "global_batch_tokens": 2**20,
    }
    assert problem["capacity_bytes"] == 40 * 2**30
    assert problem["recipe"]["reshard"] == [3, 2]
    assert problem["where"] == "tp == 2"
    assert problem["costs"]["schedule"] == "gpipe"
    assert data["fastest"]["plan"]["tp"] == 2
    assert data["search"]["gap"] == 0.01


def test_a_cluster_file_and_a_config_on_disk_are_read(tmp_path: Path) -> None:
    (tmp_path / "ours.toml").write_text('name = "ours"\nchip = "a100"\nchips = 16\n')
    config = {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
        "num_hidden_layers": 16,
        "vocab_size": 32000,
    }
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    result = run(
        "solve", "--model", str(tmp_path / "tiny.json"), "--cluster", str(tmp_path / "ours.toml"),
        "--points", "1", "--json",
    )  # fmt: skip
    data = json.loads(result.stdout)
    assert data["problem"]["cluster"]["name"] == "ours"
    assert data["problem"]["model"]["n_layers"] == 16


def test_the_choices_of_the_textbook_are_the_library_s() -> None:
    assert options.LAYERS == LAYERS
    assert options.OVERLAPS == RULES


def test_the_two_matrix_layer_is_faster_than_the_full_one(answer: dict[str, Any]) -> None:
    result = run("solve", *SMALL, "--points", "1", "--layer", "mlp2", "--overlap", "sum", "--json")
    assert json.loads(result.stdout)["fastest"]["step_time_s"] < answer["fastest"]["step_time_s"]


# explain, models, clusters, help


def test_explain_prints_the_chain_and_then_the_plan() -> None:
    result = run("explain", *SMALL)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "llama3-8b on 64 v5p" in result.stdout.splitlines()[0]
    assert "8,030,261,248" in result.stdout
    assert "Fastest: 6.89 s a step" in result.stdout
    assert "part of the step" in result.stdout


def test_explain_without_a_search_has_no_plan() -> None:
    data = json.loads(run("explain", *SMALL, "--no-solve", "--json").stdout)
    assert data["schema"] == "autoshard.explain/1"
    assert data["fastest"] is None
    assert data["assumptions"]["mfu"] == 0.4
    assert {"section", "quantity", "value_text", "verdict", "source"} <= set(data["rows"][0])


@pytest.mark.parametrize("width", [60, 80, 160])
def test_models_and_clusters_list_every_preset(width: int) -> None:
    wide = {name: run(name, env={"COLUMNS": "160"}).stdout for name in ("models", "clusters")}
    for command, names in (("models", model_names()), ("clusters", chip_names())):
        result = run(command, env={"COLUMNS": str(width)})
        assert (result.exit_code, result.stderr) == (0, "")
        assert [name for name in names if name not in result.stdout] == []
        assert max(map(len, result.stdout.splitlines())) <= width
        # A cell is whole, or its column is named as left out.
        cut = set(result.stdout.split()) - set(wide[command].split())
        assert not cut or "Too narrow for: " in result.stdout
        assert "…" not in result.stdout


@functools.cache
def wide_validation() -> str:
    return run("validate", env={"COLUMNS": "160"}).stdout


@pytest.mark.parametrize("width", [60, 80])
def test_the_report_of_validate_fits_the_terminal(width: int) -> None:
    wide = wide_validation()
    result = run("validate", env={"COLUMNS": str(width)})
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= width
    rows = [line.split() for line in lines if line.startswith(("dgxc ", "mt-v5p "))]
    known = [line.split() for line in wide.splitlines() if line.startswith(("dgxc ", "mt-v5p "))]
    assert rows
    # What is shown of a row is what stands in it: no figure is cut.
    assert [r for r in rows if not any(set(r) <= set(k) for k in known)] == []
    assert "Too narrow for: " in result.stdout
    assert "Too narrow for: " not in wide


def test_no_color_is_respected_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoshard.report._is_terminal", lambda: True)
    table = narrow_table([Column(head="chip", cells=("v5p",))])
    text = Text("fastest", style="green")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[32m" in render(*table, text)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in render(*table, text)


def test_lists_are_also_json() -> None:
    models = json.loads(run("models", "--json").stdout)
    assert [model["name"] for model in models["models"]] == list(model_names())
    chips = json.loads(run("clusters", "--json").stdout)
    assert [chip["name"] for chip in chips["chips"]] == list(chip_names())
    costs = json.loads(run("models", "--costs", "--json").stdout)
    assert costs["costs"][0]["name"] == "textbook"
    assert set(costs["costs"][0]["models"]) == {"compute", "comms", "overlap", "memory", "pipeline"}


def test_published_cost_models_are_listed_without_being_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from importlib.metadata import EntryPoint

    point = EntryPoint("theirs", "no_such_module:thing", "autoshard.costmodels")
    monkeypatch.setattr("autoshard.costmodels.registry.published", lambda: {"theirs": point})
    assert (
        listings.costs()[-1]["about"] == "entry point of autoshard.costmodels: no_such_module:thing"
    )
    assert "theirs" in run("models", "--costs").stdout


def test_help_and_version_go_to_stdout() -> None:
    assert run("--version").stdout == f"autoshard {autoshard.__version__}\n"
    assert "Examples:" in run("--help").stdout
    assert run().stdout == run("--help").stdout
    for command in ("solve", "explain", "models", "clusters"):
        result = run(command, "--help")
        assert (result.exit_code, result.stderr) == (0, "")


def test_ctrl_c_before_the_first_point_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autoshard.solving.solve_front", interrupted)
    result = run("solve", *SMALL)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr == "autoshard: error: interrupted before the first plan was found.\n"


def test_a_bug_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **named: object) -> None:
        raise AssertionError("two answers\ndiffer")

    monkeypatch.setattr("autoshard.solving.solve_front", broken)
    result = run("solve", *SMALL)
    assert result.exit_code == 1
    assert result.stderr.startswith("autoshard: error: this is a bug in autoshard")
    assert "AssertionError: two answers differ" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and pipes")
def test_a_real_process_survives_closed_pipes_full_disks_and_ctrl_c() -> None:
    command = [sys.executable, "-m", "autoshard"]

    def start(*args: str, stdout: Any = subprocess.DEVNULL) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *args], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True
        )

    reader, writer = os.pipe()
    os.close(reader)
    closed = start("clusters", "--json", stdout=writer)
    os.close(writer)
    started = time.monotonic()
    start("--version").communicate(timeout=60)
    interrupted = start("solve", "--model", "llama3-405b", "--pods", "8")
    # Past the import of the package, where Python itself answers Ctrl-C.
    time.sleep(2 * (time.monotonic() - started) + 0.2)
    interrupted.send_signal(signal.SIGINT)
    for process, statuses in ((closed, {0}), (interrupted, {0, 130})):
        _, said = process.communicate(timeout=60)
        assert process.returncode in statuses, said
        assert "Traceback" not in said
        assert len(said.splitlines()) <= 1
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            process = start("models", stdout=full)
            assert "No space left" in process.communicate(timeout=60)[1]
            assert process.returncode == 2


def test_a_time_limit_gives_the_best_plan_so_far_with_an_honest_gap() -> None:
    """Before anything is proven there is an even plan, and a bound to measure it against."""
    front = autoshard.solve("llama3-405b", pods=8, time_limit_s=1e-9)
    assert not front.complete
    (point,) = front.points
    assert len(set(point.plan.layers_per_stage)) <= 2
    assert point.lower_bound_s <= point.step_time_s
    assert point.gap == pytest.approx(point.step_time_s / point.lower_bound_s - 1.0, abs=1e-12)
    assert point.proven == (point.gap <= 1e-3)


def test_a_table_keeps_its_first_column_and_names_what_it_leaves_out() -> None:
    columns = [
        Column(head="source", cells=("dgxc",), left=True),
        Column(head="median", cells=("5.6",)),
        Column(head="p90", cells=("16.0",)),
        Column(head="MFU", cells=("55.8",), spare=1),
        Column(head="p90", cells=("83.6",), spare=2),
    ]
    # 6 + 6 + 4 + 4 + 4 characters, and 4 times 2 between them, is 32.
    heads = {w: narrowed(columns, w)[1] for w in (32, 31, 22, 16, 8)}
    assert heads == {
        32: [],
        31: ["MFU p90"],
        22: ["MFU", "MFU p90"],
        16: ["median p90", "MFU", "MFU p90"],
        8: ["median", "median p90", "MFU", "MFU p90"],
    }
