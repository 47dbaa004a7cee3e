"""The command ``autoshard export``."""

from __future__ import annotations

import json
from pathlib import Path

import launch_plans
import pytest
import yaml
from command import run


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("fronts") / "front.json"
    launch_plans.megatron("uneven stages").front.save(path)
    return str(path)


def test_the_config_goes_to_stdout_and_notes_to_stderr(front: str) -> None:
    result = run("export", front, "--stack", "megatron")
    assert result.exit_code == 0
    plan = launch_plans.megatron("uneven stages")
    assert result.stdout == plan.launch("megatron").text
    assert result.stderr.startswith("- The prediction overlaps")
    assert run("export", front, "--stack", "megatron", "--quiet").stderr == ""


def test_a_file_is_written(front: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.sh"
    result = run("export", front, "--stack", "nemo", "--output", str(path))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.endswith(f"wrote {path}\n")
    assert path.read_text(encoding="utf-8").startswith("# autoshard ")


def test_json_has_values_header_and_notes(front: str) -> None:
    result = run("export", front, "--stack", "jax", "--json")
    data = json.loads(result.stdout)
    assert data["schema"] == "autoshard.launch/1"
    assert set(data) == {
        *("schema", "target", "framework", "chips", "environment"),
        *("values", "header", "notes"),
    }
    assert data["values"]["mesh_shape"] == [16, 1, 4, 1, 1, 8]


def test_a_point_and_a_memory_choose_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    saved = run(
        *("solve", "--model", "llama3-8b", "--chip", "v5p", "--chips", "64"),
        *("--stack", "maxtext", "--points", "3", "--save", str(path)),
    )
    assert saved.exit_code == 0
    policies = [
        yaml.safe_load(run("export", str(path), "--stack", "maxtext", "--point", str(n)).stdout)[
            "remat_policy"
        ]
        for n in (1, 2, 3)
    ]
    assert len(set(policies)) > 1
    smallest = json.loads(path.read_text(encoding="utf-8"))["front"][-1]["memory_bytes"]
    within = run("export", str(path), "--stack", "maxtext", "--within", str(int(smallest) + 1))
    last = run("export", str(path), "--stack", "maxtext", "--point", "3")
    assert within.stdout == last.stdout
    assert run("export", str(path), "--stack", "maxtext", "--within", "1MiB").exit_code == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--stack", "deepspeed"), "DeepSpeed 0.19.8 cannot state pp = 16"),
        (("--stack", "megatron", "--point", "7"), "--point 7: the front has points 1"),
        (("--stack", "megatron", "--point", "1", "--within", "80GiB"), "give one of them"),
        (("--stack", "megatron", "--output", "/no/such/folder/x"), "is not a directory"),
        (("--stack", "megatrn"), "'megatrn' is not one of 'megatron', 'maxtext'"),
        ((), "Missing option '--stack'"),
    ],
)
def test_bad_input_is_one_sentence(front: str, words: tuple[str, ...], message: str) -> None:
    result = run("export", front, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_missing_front_is_named() -> None:
    result = run("export", "missing.json", "--stack", "megatron")
    assert result.exit_code == 2
    assert "missing.json: cannot be read" in result.stderr
