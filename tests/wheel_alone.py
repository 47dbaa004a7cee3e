"""What `.ci/run` runs where nothing is installed but the wheel, in a folder of its own.

Every command does its work without the checkout: the code, the presets, the measured runs and the
constants are in the wheel, and what it needs is among its dependencies. No test of pytest, which is
not installed there.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import autoshard
from autoshard.cli import main

SMALL = ["--model", "llama3-8b", "--chips", "64"]
GPUS = ["--model", "llama3-8b", "--chip", "h100", "--chips", "64", "--stack", "megatron"]

#: A run of each command, and what the words of its answer must be or hold.
RUNS: list[tuple[list[str], str]] = [
    (["--version"], f"autoshard {autoshard.__version__}\n"),
    (["models"], "llama3-405b"),
    (["models", "--costs"], "calibrated/megatron"),
    (["clusters"], "gb200"),
    (["solve", *SMALL, "--points", "3", "--chart", "front.html", "--save", "front.json"], "proven"),
    (["solve", *SMALL, "--points", "2", "--csv", "--parquet", "front.parquet"], "step_time_s"),
    (["solve", *SMALL, "--points", "2", "--certificate", "proof.json"], "proven"),
    (["solve", *GPUS, "--points", "2"], "calibrated/megatron"),
    (["solve", *GPUS, "--points", "2", "--html", "page.html"], "calibrated/megatron"),
    (["explain", *SMALL], "part of the step"),
    (["validate"], "609 measured runs"),
    (["calibrate", "runs.csv", "--output", "ours.toml"], "Predicted / measured"),
    (["solve", *GPUS, "--points", "1", "--calibration", "ours.toml"], "calibrated/megatron"),
    (["solve", *GPUS, "--points", "2", "--save", "gpus.json"], "calibrated/megatron"),
    (["export", "gpus.json", "--stack", "megatron"], "--tensor-model-parallel-size"),
    (["export", "gpus.json", "--stack", "jax"], "mesh"),
    (["evaluate", *GPUS, "--plan", "tp=2,micro_batch_size=1"], "one change"),
    (["diff", "gpus.json", "gpus.json:2"], "B - A"),
    (["sensitivity", *GPUS], "replanned"),
]
FILES = ("front.html", "page.html", "front.json", "front.parquet", "proof.json", "ours.toml")


def runs_of_five() -> str:
    """Five rows of the built-in table, as a user's own."""
    table = Path(autoshard.__file__).parent / "measured" / "gpu.csv"
    head, *rows = table.read_text(encoding="utf-8").splitlines()
    return "\n".join([head, *(row for row in rows if row.startswith("lf-"))][:6]) + "\n"


def check() -> None:
    """Run every command; an error or a wrong answer ends with a traceback."""
    home = Path(autoshard.__file__).resolve()
    checkout = Path(__file__).resolve().parents[1]
    assert checkout not in home.parents, f"{home} is the checkout, not the wheel"
    assert importlib.metadata.version("autoshard") == autoshard.__version__
    script = Path(sys.executable).parent / "autoshard"
    Path("runs.csv").write_text(runs_of_five(), encoding="utf-8")
    for arguments, answer in RUNS:
        done = subprocess.run(
            [str(script), *arguments], capture_output=True, text=True, check=False
        )
        said = f"autoshard {' '.join(arguments)}"
        assert done.returncode == 0, f"{said}: status {done.returncode}\n{done.stderr}"
        assert answer in done.stdout, f"{said}: {answer!r} is not in\n{done.stdout}"
        print(f"works: {said}")
    assert [name for name in FILES if not Path(name).stat().st_size] == []
    assert json.loads(Path("front.json").read_text())["schema"] == "autoshard.front/1"
    assert set(main.commands) == {arguments[0] for arguments, _ in RUNS} - {"--version"}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        check()
