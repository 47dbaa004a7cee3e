"""Intervals: what widens them, what they may not have seen, and what an answer says of evidence."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from hypothesis import given
from hypothesis import strategies as st

import autoshard
from autoshard.calibrating import residuals, scored_runs
from autoshard.catalog import load_chip, load_model
from autoshard.costmodels.calibrated import calibrated
from autoshard.costmodels.calibration import (
    SCHEMA,
    Calibration,
    load_calibration,
    shipped_calibration,
)
from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.constants import PRIORS, Fitted, bounds, in_words, prior
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.setting import Setting
from autoshard.costmodels.stack import stack_by_name
from autoshard.costmodels.uncertainty import (
    NARROWEST,
    ErrorRule,
    doublings,
    messages,
    narrowest,
    size_of,
    unmeasured,
)
from autoshard.costmodels.workload import Workload
from autoshard.intervals import Judged, intervals, quantile_regression, sizes_of
from autoshard.validating import Validation, validate

MEGATRON = stack_by_name("megatron")
RULE = ErrorRule(base=0.1, low_precision=1.5, guessed=1.25, doubling=1.125)


def problem(
    chip: str = "h100", chips: int = 64, model: str = "llama3-8b", precision: str = "bf16"
) -> Problem:
    return Problem(
        model=load_model(model),
        cluster=Cluster.build(load_chip(chip), chips=chips),
        workload=Workload(global_batch_seqs=512, seq_len=8192, precision=precision),
        recipe=MEGATRON.recipe,
    )


def known(**changed: Any) -> Calibration:
    """A calibration of one measured size, that of :func:`problem`, by two sources."""
    shipped = shipped_calibration()
    at = np.array([size_of(problem())])
    made = Calibration(
        fitted=shipped.fitted, rule=RULE, sizes={"gpu": {"a": at, "b": 2.0 * at, "c": at[:0]}}
    )
    return dataclasses.replace(made, **changed)


def half(calibration: Calibration, asked: Problem, source: str = "") -> float:
    found = calibration.interval(asked, MEGATRON, source)
    assert found is not None
    assert found[0] == pytest.approx(1.0 / found[1])
    return math.log(found[1])


# The width of one


def test_a_question_like_the_measured_runs_has_the_base() -> None:
    assert half(known(), problem()) == pytest.approx(0.1)


def test_what_is_not_like_them_is_wider_by_its_factor() -> None:
    assert half(known(), problem(precision="fp8")) == pytest.approx(0.15)
    # cuDNN attention was never measured on A100.
    assert half(known(), problem("a100")) == pytest.approx(0.125)
    # Four times the chips at the same batch: two doublings of chips, two of a chip's tokens.
    far = half(known(), problem(chips=256))
    assert far == pytest.approx(0.1 * 1.125 ** math.sqrt(8.0))


def test_a_chip_of_a_kind_that_nobody_measured_has_none() -> None:
    assert known().interval(problem("v5p"), stack_by_name("maxtext")) is None
    assert known(sizes={}).interval(problem(), MEGATRON) is None
    assert known(rule=None).interval(problem(), MEGATRON) is None


def test_an_interval_for_a_source_has_not_seen_it() -> None:
    left = {k: v for k, v in shipped_calibration().fitted.values.items() if k != "matmul.h100"}
    calibration = known(
        without={"a": Fitted(values=left)},
        rule_without={"a": ErrorRule(base=0.2, guessed=2.0, doubling=1.5)},
    )
    # The nearest run of another source is two times as large in all four sizes.
    assert half(calibration, problem(), "a") == pytest.approx(0.2 * 2.0 * 1.5**2.0)
    assert half(calibration, problem(), "nobody") == pytest.approx(0.1)


@given(
    low=st.booleans(),
    guessed=st.integers(0, 10),
    apart=st.floats(0.0, 40.0),
    more=st.integers(0, 5),
    further=st.floats(0.0, 20.0),
)
def test_less_evidence_never_narrows(
    low: bool, guessed: int, apart: float, more: int, further: float
) -> None:
    rule = shipped_calibration().rule
    assert rule is not None
    near = rule.half_width(low_precision=low, guessed=guessed, doublings=apart)
    far = rule.half_width(low_precision=True, guessed=guessed + more, doublings=apart + further)
    assert 0.0 < near <= far


def test_an_interval_takes_less_than_20_ms() -> None:
    calibration, asked = shipped_calibration(), problem()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        calibration.interval(asked, MEGATRON)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.02


def test_the_shipped_intervals_widen_where_evidence_is_thin() -> None:
    calibration = shipped_calibration()

    def width(asked: Problem, stack: str) -> float:
        found = calibration.interval(asked, stack_by_name(stack))
        assert found is not None
        return found[1]

    assert width(problem("v3"), "maxtext") > width(problem("v5p"), "maxtext")
    assert width(problem("a100"), "megatron") > width(problem("a100"), "megatron-2021")
    assert width(problem("h100", precision="fp8"), "megatron") > width(problem(), "megatron")


# Where the widths come from


def test_a_quantile_regression_finds_the_law_that_made_the_errors() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 3, (4000, 2)).astype(np.float64)
    # The 80 % quantile of an exponential error of scale s is s ln 5.
    y = np.log(rng.exponential(np.exp(-3.0 + 0.5 * x[:, 0])))
    found = quantile_regression(x, y, np.ones(len(y)), 0.8)
    assert found[0] == pytest.approx(-3.0 + math.log(math.log(5.0)), abs=0.08)
    assert found[1] == pytest.approx(0.5, abs=0.06)
    assert found[2] == pytest.approx(0.0, abs=0.06)
    assert (np.mean(y <= found[0] + x @ found[1:]) - 0.8) == pytest.approx(0.0, abs=0.01)
    # What would narrow has no effect.
    assert quantile_regression(x, -y, np.ones(len(y)), 0.8)[1] == 0.0


def test_the_rule_without_a_source_does_not_depend_on_it() -> None:
    rng = np.random.default_rng(2)
    sources = [name for name in "abc" for _ in range(20)]
    errors, features = rng.normal(0.0, 0.1, 60), rng.integers(0, 3, (60, 3)).astype(np.float64)
    table = Judged(sources=sources, errors=errors, features=features)
    other = dataclasses.replace(table, errors=np.where(np.arange(60) < 20, 9.0, errors))
    assert table.rule("a") == other.rule("a")
    assert table.rule("b") != other.rule("b")
    assert Judged(sources=["a"], errors=errors[:1], features=features[:1]).rule("a") is None


def test_the_shipped_rules_are_those_of_the_shipped_constants() -> None:
    """Where this fails, constants, physics or runs have changed: run ``autoshard calibrate``."""
    shipped, runs = shipped_calibration(), scored_runs()
    honest: dict[str, float] = {}
    for source, unseen in shipped.without.items():
        own = [r for r in runs if r.source == source]
        honest |= dict(zip([r.id for r in own], residuals(own, unseen).tolist(), strict=True))
    expected = intervals(runs, honest, shipped.without)
    assert shipped.rule is not None
    assert dataclasses.astuple(shipped.rule) == pytest.approx(
        dataclasses.astuple(expected["rule"]), rel=1e-3
    )
    for source, rule in shipped.rule_without.items():
        assert dataclasses.astuple(rule) == pytest.approx(
            dataclasses.astuple(expected["rule_without"][source]), rel=1e-3
        )
    assert {k: {s: t.tolist() for s, t in v.items()} for k, v in shipped.sizes.items()} == {
        k: {s: t.tolist() for s, t in v.items()} for k, v in sizes_of(runs).items()
    }
    assert shipped.ranges == expected["ranges"]


@pytest.fixture(scope="module")
def judged() -> Validation:
    return validate()


def test_four_of_five_measured_times_lie_in_intervals_that_have_not_seen_them(
    judged: Validation,
) -> None:
    from autoshard.validate_tables import errors, summary

    assert 0.75 <= summary(judged)["intervals"]["coverage"] <= 0.87
    for by in (("kind",), ("chip", "precision")):
        for row in errors(judged.scored, *by).to_dicts():
            assert row["rows"] < 10 or row["coverage"] >= 0.6, row


# Words


def test_every_constant_has_words_and_bounds() -> None:
    for key in shipped_calibration().fitted.values:
        least, most = bounds(key)
        assert least < most
        text = in_words(key, least)
        assert "{" not in text
        assert "." not in key or key.split(".")[-1].lower() in text.lower()
    assert {key.split(".")[0] for key in PRIORS} <= {
        key.split(".")[0] for key in shipped_calibration().fitted.values
    } | {"layer_floor_s"}
    for key in ("matmul", "matmul.a.b", "hbm.h100", "attention.flash9.h100"):
        with pytest.raises(KeyError):
            bounds(key)


def front(**changed: Any) -> autoshard.ParetoFront:
    asked: dict[str, Any] = {"chip": "h100", "chips": 16, "stack": "megatron", **changed}
    return autoshard.solve("llama3-8b", points=2, **{"global_batch_seqs": 64, **asked})


def test_a_guess_is_said_in_words_with_its_own_source() -> None:
    (note,) = [n for n in front(chip="a100").notes if n.startswith("Guessed")]
    what = prior("attention.cudnn.a100", "gpu")
    assert note == (
        "Guessed, because no published run fixes them: cudnn attention on a100 at "
        f"{100 * what.value:g} % of its peak ({what.source})."
    )
    assert not [n for n in front().notes if n.startswith("Guessed")]


def one(**columns: int) -> Candidates:
    names = {"batch_split": 8, **columns}
    return Candidates(
        **{
            field.name: np.array([names.get(field.name, 0 if field.name == "layout" else 1)])
            for field in dataclasses.fields(Candidates)
        }
    )


def test_matmuls_and_messages_outside_of_the_measured_ones_are_named() -> None:
    setting = Setting.of(problem(), one(tp=8, pp=2))
    # The projection after attention: 4096 / 8 wide on one rank.
    assert narrowest(setting)[0].tolist() == [8192.0, 512.0, 4096.0]
    sizes = {axis: float(size[0]) for axis, size in messages(setting, MEGATRON).items()}
    assert sizes["tp"] == 2 * 8192 * 4096
    assert sizes["pp"] == 2 * 8192 * 4096 / 8
    assert sizes["seq"] == sizes["cp"] == sizes["dp"] == 0.0
    params = 4096 * (2 * 512 + 2 * 128 + 3 * 1792)
    assert sizes["fsdp"] == 2 * params
    inside = {NARROWEST: (64.0, 8192.0), **{axis: (size, size) for axis, size in sizes.items()}}
    assert list(unmeasured(setting, MEGATRON, inside)) == []
    outside = {NARROWEST: (1024.0, 8192.0), "tp": (1.0, 2**20), "pp": inside["pp"]}
    matmul, tensor, shards = unmeasured(setting, MEGATRON, outside)
    assert "narrower than any measured (shortest side 1,024)" in matmul
    assert tensor == "TP collectives of 64 MiB (measured: 1 bytes to 1 MiB)"
    assert shards == "FSDP gathers, of which no run was measured"


def test_an_answer_names_what_its_fastest_plan_has_that_no_run_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shipped = shipped_calibration()
    narrow = {"gpu": {**shipped.ranges["gpu"], NARROWEST: (65536.0, 65536.0)}}
    profile = calibrated("megatron", dataclasses.replace(shipped, ranges=narrow))
    found = front(stack=None, costs=profile).notes
    (note,) = [n for n in found if n.startswith("Outside of what was measured")]
    assert note.startswith("Outside of what was measured, in the fastest plan: the matmul [")
    assert "narrower than any measured (shortest side 65,536)" in note


def test_a_distance_is_the_root_of_squared_doublings() -> None:
    at = np.array([[8.0, 1e9, 4096.0, 1024.0], [64.0, 1e9, 4096.0, 1024.0]])
    assert doublings((16.0, 1e9, 8192.0, 1024.0), {"a": at}) == pytest.approx(math.sqrt(2.0))
    assert doublings((64.0, 1e9, 4096.0, 1024.0), {"a": at}) == 0.0
    assert doublings((64.0, 1e9, 4096.0, 1024.0), {"a": at}, without="a") is None


# Provenance


def own_file(folder: Path, text: str) -> Path:
    path = folder / "ours.toml"
    path.write_text(f'schema = "{SCHEMA}"\n{text}', encoding="utf-8")
    return path


OURS = """date = 2026-11-20
chips = ["h100"]
stacks = ["megatron"]
[constants]
"matmul.h100" = 0.7
"hbm.gpu" = 0.75
[residuals]
"ours-1" = 0.01
"ours-2" = -0.01
"""


def test_an_answer_says_which_file_its_constants_are_from(tmp_path: Path) -> None:
    import hashlib

    path = own_file(tmp_path, OURS)
    found = front(calibration=path)
    said = found.problem["costs"]["calibration"]
    assert said["own"] == {
        "file": "ours.toml",
        "date": "2026-11-20",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "rows": 2,
        "chips": ["h100"],
        "stacks": ["megatron"],
    }
    assert said["shipped"]["file"] == "calibration.toml"
    assert said["shipped"]["rows"] == len(shipped_calibration().residuals)
    note = "Constants are fitted to published runs and to ours.toml (2 runs on h100 with megatron)."
    assert note in found.notes
    assert front().problem["costs"]["calibration"] == {"shipped": said["shipped"], "own": None}
    profile = calibrated("megatron", load_calibration(path))
    assert "fitted to published runs and 2 of your own in ours.toml" in profile.description
    assert json.dumps(found.problem)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"chip": "v5p", "stack": "maxtext"},
            "ours.toml (2 runs on h100 with megatron) changes nothing here: it has no constant "
            "of maxtext on v5p.",
        ),
        (
            {"chip": "a100"},
            "ours.toml (2 runs on h100 with megatron) has no run of megatron on a100: it changes "
            "only what they share (75 % of the HBM bandwidth of GPUs).",
        ),
    ],
)
def test_a_file_of_another_chip_says_what_it_changes(
    tmp_path: Path, asked: dict[str, Any], said: str
) -> None:
    found = front(
        calibration=own_file(tmp_path, OURS),
        costs="calibrated/" + asked.get("stack", "megatron"),
        **{**asked, "stack": None},
    )
    assert said in found.notes


def test_textbook_costs_have_no_calibration() -> None:
    assert "calibration" not in front(stack=None, costs="textbook").problem["costs"]


def test_the_command_refuses_a_value_out_of_bounds(tmp_path: Path) -> None:
    path = own_file(tmp_path, '[constants]\n"matmul.h100" = 0.95\n')
    options = ("--model", "llama3-8b", "--chip", "h100", "--chips", "8", "--calibration", str(path))
    result = run("solve", *options, "--costs", "calibrated")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "constants: matmul.h100 must be from 0.5 to 0.9, got 0.95." in result.stderr
