"""Constants out of measured runs, and the file that holds them."""

from __future__ import annotations

import csv
import dataclasses
import json
import pickle
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from command import run

from autoshard.bench import Bench
from autoshard.calibrating import (
    Calibrated,
    calibrate,
    calibrate_built_in,
    residuals,
    scored_runs,
    sendable,
)
from autoshard.calibrating_file import calibration_toml
from autoshard.costmodels.calibration import (
    SCHEMA,
    SHIPPED,
    Calibration,
    load_calibration,
    shipped_calibration,
)
from autoshard.costmodels.constants import Fitted, prior
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.uncertainty import ErrorRule
from autoshard.fitting import Fit
from autoshard.intervals import intervals
from autoshard.runs import Run, load_runs

MEASURED = Path(__file__).parents[1] / "autoshard" / "measured"
SCORED = scored_runs()
BY_ID = {r.id: r for r in SCORED}


def of(source: str, count: int = 1000) -> list[Run]:
    return [r for r in SCORED if r.source == source][:count]


def write(path: Path, seconds: dict[str, float], *, name: str = "ours-{}") -> Path:
    """A user's file of built-in GPU rows that took other times, under ids of its own."""
    with (MEASURED / "gpu.csv").open(encoding="utf-8", newline="") as stream:
        rows = {row["id"]: row for row in csv.DictReader(stream)}
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(next(iter(rows.values()))))
        writer.writeheader()
        for id_, step_s in seconds.items():
            cells = {"id": name.format(id_), "notes": "", "tokens_per_s_per_chip": ""}
            cells["tflops_per_chip"] = ""
            writer.writerow({**rows[id_], **cells, "step_time_s": f"{step_s:.6g}"})
    return path


def slower(runs: list[Run], factors: dict[str, float]) -> dict[str, float]:
    """Seconds of each run where constants differ from the shipped ones by factors."""
    values = dict(shipped_calibration().fitted.values)
    for key, factor in factors.items():
        values[key] = factor * values.get(key, prior(key, "gpu").value)
    step_s = Bench.of(runs).step_s(Fitted(values=values)).tolist()
    return dict(zip([r.id for r in runs], step_s, strict=True))


# A user's own runs


def test_ten_runs_recover_a_cluster_whose_constants_differ(tmp_path: Path) -> None:
    runs = [r for r in of("dgxc") if r.problem.cluster.chip.name == "h100"][:40]
    factors = {"matmul.h100": 0.88, "attention.cudnn.h100": 0.85, "shard_link.gpu": 0.75}
    times = slower(runs, factors)
    chosen = runs[::4]
    done = calibrate(write(tmp_path / "ours.csv", {r.id: times[r.id] for r in chosen}))
    fitted = {**shipped_calibration().fitted.values, **done.calibration.fitted.values}
    before, after = (
        np.abs(Bench.of(runs).step_s(Fitted(values=v)) / np.array(list(times.values())) - 1.0)
        for v in (dict(shipped_calibration().fitted.values), fitted)
    )
    assert np.median(before) > 0.05
    assert np.quantile(after, 0.9) < 0.03


@pytest.fixture(scope="module")
def agreeing(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    """Five runs whose times are what the shipped constants say."""
    path = tmp_path_factory.mktemp("agreeing") / "ours.csv"
    return calibrate(write(path, slower(of("lf", 5), {})))


def test_only_constants_that_the_runs_depend_on_are_fitted(agreeing: Calibrated) -> None:
    done, kinds = agreeing, Bench.of(of("lf", 5)).kinds
    assert set(done.calibration.fitted.values) <= set(kinds)
    assert {"matmul.h100", "attention.flash1.h100"} <= set(done.calibration.fitted.values)
    assert not any("tpu" in key or "a100" in key for key in done.calibration.fitted.values)
    for change in done.changes:
        assert change.prior.least <= change.after <= change.prior.most


def test_runs_that_agree_with_the_constants_leave_them_as_they_are(agreeing: Calibrated) -> None:
    for change in agreeing.changes:
        assert change.after == pytest.approx(change.before, rel=1e-3)
        assert not change.moved
    assert max(map(abs, agreeing.calibration.residuals.values())) < 1e-3
    assert agreeing.warnings == ()


def test_one_run_is_enough_and_moves_toward_it(tmp_path: Path) -> None:
    (only,) = of("lf", 1)
    times = {id_: 1.1 * step_s for id_, step_s in slower([only], {}).items()}
    done = calibrate(write(tmp_path / "ours.csv", times))
    (before,), (after,) = done.before.values(), done.calibration.residuals.values()
    assert before == pytest.approx(-np.log(1.1), abs=1e-5)
    assert abs(after) < abs(before)
    # One run is one equation, however many constants it moves.
    assert 0.3 < done.fixed < 1.0
    assert len([change for change in done.changes if change.moved]) > 5
    (warning,) = done.warnings
    assert warning.startswith(f"1 run cannot tell {len(done.changes)} constants apart: ")


def test_runs_that_no_constants_explain_are_told(tmp_path: Path) -> None:
    times = {id_: 7.0 * step_s for id_, step_s in slower(of("lf", 5), {}).items()}
    bound, off = calibrate(write(tmp_path / "ours.csv", times)).warnings
    assert "matmul.h100 = 0.5" in bound
    assert "at the bound of what is possible: " in bound
    assert off.startswith("half of the runs are still off by more than ")


def test_a_step_that_no_chip_can_do_is_not_fitted(tmp_path: Path) -> None:
    times = slower(of("lf", 2), {})
    first = next(iter(times))
    done = calibrate(write(tmp_path / "ours.csv", times | {first: 1e-3}))
    assert list(done.calibration.residuals) == [f"ours-{id_}" for id_ in times if id_ != first]
    (left_out,) = done.unused
    assert (left_out.id, left_out.reason) == (f"ours-{first}", "faster than the chip's peak")


def test_built_in_runs_start_from_constants_that_have_not_seen_them(tmp_path: Path) -> None:
    times = {r.id: r.step_time_s or 0.0 for r in of("tao")}
    unseen = shipped_calibration().without["tao"]
    done = calibrate(write(tmp_path / "tao.csv", times, name="{}"))
    assert done.changes
    for change in done.changes:
        assert change.before == unseen.value(change.key, "gpu")


def test_no_usable_row_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "ours.csv", {"mb-001": 1.0, "mb-003": 2.0}, name="{}")
    with pytest.raises(SpecError, match=r"ours\.csv: no row can be used: mb-001: experts \("):
        calibrate(path)
    path = write(tmp_path / "empty.csv", {})
    with pytest.raises(SpecError, match=r"empty\.csv: the table is empty"):
        calibrate(path)


# The built-in runs

#: Two small sources on the same kind of chip, which are fitted quickly.
FEW = [*of("mt-v4", 4), *of("tp", 4)]


def silent(text: str) -> None:
    """Say nothing."""


def quick(runs: Sequence[Run]) -> Fit:
    """Instead of a fit: a constant that depends on each run that was seen."""
    seen = sum(r.step_time_s or 0.0 for r in runs) / sum(r.step_time_s or 0.0 for r in FEW)
    fitted = Fitted(values={"overhead.maxtext": 1.0 + seen / 10, "matmul.v4p": 0.7})
    return Fit(fitted=fitted, residuals=residuals(runs, fitted), offsets={}, from_runs={})


@pytest.fixture(autouse=True)
def no_slow_fit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the built-in runs is who has seen what, not how well a fit ends."""
    if "made" in request.fixturenames:
        monkeypatch.setattr("autoshard.calibrating.fit", quick)


@pytest.fixture
def made(no_slow_fit: None) -> Calibration:
    return calibrate_built_in(FEW, tell=silent, workers=1)


def test_a_source_does_not_bend_the_constants_that_predict_it(made: Calibration) -> None:
    odd = [
        dataclasses.replace(r, step_time_s=1.3 * (r.step_time_s or 0)) if r.source == "tp" else r
        for r in FEW
    ]
    bent = calibrate_built_in(odd, tell=silent, workers=1)
    assert made.without["tp"] == bent.without["tp"]
    assert made.fitted != bent.fitted
    assert made.without["mt-v4"] != bent.without["mt-v4"]


def test_the_errors_are_those_of_predictions_that_have_not_seen_the_source(
    made: Calibration,
) -> None:
    honest = {
        r.id: error
        for s in ("mt-v4", "tp")
        for r, error in zip(of(s, 4), residuals(of(s, 4), made.without[s]).tolist(), strict=True)
    }
    expected = intervals(FEW, honest, made.without)
    assert made.rule == expected["rule"]
    assert made.rule_without == expected["rule_without"]
    assert set(made.rule_without) == set(made.sizes["tpu"]) == {"mt-v4", "tp"}
    own = residuals(FEW, made.fitted)
    assert list(made.residuals.values()) == pytest.approx(own.tolist())


# The file


def made_up() -> Calibration:
    fitted = Fitted(values={"matmul.h100": 0.712345678, "shard_latency_s.gpu": 1.23456789e-05})
    return Calibration(
        fitted=fitted,
        without={"tt": Fitted(values={"matmul.h100": 0.7})},
        rule=ErrorRule(base=0.1, low_precision=1.5, guessed=1.25, doubling=1.125),
        rule_without={"tt": ErrorRule(base=0.2)},
        sizes={"gpu": {"tt": np.array([[8.0, 8.03e9, 8192.0, 16384.0]])}},
        ranges={"gpu": {"narrowest_matmul": (128.0, 8192.0), "tp": (1e6, 2.5e9)}},
        residuals={'odd "id"': 0.25, "tt-001": 0.0},
        five_runs={"rows": 100.0, "median": 0.04, "p90": 0.12},
        date="2026-11-21",
    )


def test_what_is_written_is_read_again_to_six_digits(tmp_path: Path) -> None:
    made = made_up()
    path = tmp_path / "ours.toml"
    kinds = {"matmul.h100": "gpu"}
    path.write_text(calibration_toml(made, kinds, about="Made up."), encoding="utf-8")
    read = load_calibration(path)
    assert read.fitted.values["matmul.h100"] == 0.712346
    assert read.fitted.values["shard_latency_s.gpu"] == 1.23457e-05
    assert (read.without, read.residuals, read.date) == (made.without, made.residuals, made.date)
    assert (read.rule, read.rule_without) == (made.rule, made.rule_without)
    assert read.five_runs == made.five_runs
    assert read.sizes["gpu"]["tt"].tolist() == made.sizes["gpu"]["tt"].tolist()
    assert read.ranges == made.ranges
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    what = prior("matmul.h100", "gpu")
    assert data["constants"]["matmul.h100"] == {
        "value": 0.712346,
        "prior": what.value,
        "least": what.least,
        "most": what.most,
        "source": what.source,
    }


def test_the_users_constants_stand_before_the_shipped_ones(tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(f'schema = "{SCHEMA}"\n[constants]\n"matmul.h100" = 0.6\n', encoding="utf-8")
    read, shipped = load_calibration(path), shipped_calibration()
    assert read.fitted.values == {**shipped.fitted.values, "matmul.h100": 0.6}
    assert (read.rule, read.ranges) == (shipped.rule, shipped.ranges)
    assert read.without == {}
    assert read.own is not None
    assert read.own.keys == {"matmul.h100"}
    assert read.origin == shipped.origin


def test_the_shipped_constants_are_within_their_bounds() -> None:
    known = shipped_calibration()
    kinds = Bench.of(SCORED).kinds
    for fitted in (known.fitted, *known.without.values()):
        for key, value in fitted.values.items():
            what = prior(key, kinds[key])
            assert what.least * 0.9999 <= value <= what.most * 1.0001, key


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schema = ", "ours.toml: is not TOML: "),
        ("", "ours.toml: schema must be 'autoshard.calibration/1', got None; write the file with"),
        ("constants = 3", "ours.toml: constants must be a table, got 3."),
        ("[constants]\nspeed = 1.0", "ours.toml: constants: there is no constant 'speed'; known: "),
        ('[constants]\n"hbm.gpu" = "a lot"', "constants: hbm.gpu must be a number, got 'a lot'."),
        (
            '[constants]\n"hbm.gpu" = -1.0',
            "constants: hbm.gpu must be finite and greater",
        ),
        ('[constants]\n"hbm.gpu" = {least = 1.0}', "hbm.gpu must be a number, got None."),
        ("[without]\ntt = 3", "ours.toml: tt must be a table, got 3."),
        (
            '[constants]\n"matmul.h100" = 0.99',
            "ours.toml: constants: matmul.h100 must be from 0.5 to 0.9, got 0.99.",
        ),
        (
            '[constants]\n"matmul.mine" = 0.1',
            "ours.toml: constants: matmul.mine must be from 0.4 to 0.97, got 0.1.",
        ),
        ("[constants]\nmatmul = 0.7", "constants: there is no constant 'matmul'; matmul stands in"),
        ('[constants]\n"attention.flash9.h100" = 0.5', "no constant 'attention.flash9.h100'; "),
        ('[constants]\n"hbm.h100" = 0.8', "there is no constant 'hbm.h100'; hbm stands in"),
        ("[constant]\nx = 1.0", "ours.toml: a calibration has no 'constant'; known: schema, "),
        ("[residuals]", "ours.toml: has no constants; write the file with `autoshard calibrate"),
        ("chips = 3", "ours.toml: chips must be a list of names, got 3."),
        ("[interval]\nbase = 0.1", "interval must have base, low_precision, guessed, doubling; it"),
        (
            "[interval]\nbase = -0.1\nlow_precision = 1.0\nguessed = 1.0\ndoubling = 1.0",
            "interval: base must be finite and greater",
        ),
        ("[sizes.gpu]\ntt = [[1, 2]]", "sizes.gpu must be lists of four sizes, got [1, 2]."),
        ("[ranges.gpu]\ntp = 3", "ranges.gpu: tp must be least and most, got 3."),
        ('[residuals]\n"a-1" = true', "residuals: a-1 must be a number, got True."),
    ],
)
def test_a_broken_file_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "ours.toml"
    schema = f'schema = "{SCHEMA}"\n' if text and not text.startswith("schema") else ""
    path.write_text(schema + text, encoding="utf-8")
    with pytest.raises(SpecError) as error:
        load_calibration(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_what_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "none.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=r"none\.toml: cannot be read as a calibration \("):
        load_calibration(path)


# The command


def test_calibrate_prints_what_moved_and_writes_it(tmp_path: Path) -> None:
    times = slower(of("lf", 5), {"matmul.h100": 0.9})
    path, to = write(tmp_path / "ours.csv", times), tmp_path / "ours.toml"
    result = run("calibrate", str(path), "--output", str(to))
    assert (result.exit_code, result.stderr) == (0, f"wrote {to}\n")
    assert "5 runs on h100 with llm-foundry: median error " in result.stdout
    assert "matmul.h100" in result.stdout
    assert f"ours-{of('lf', 1)[0].id}" in result.stdout
    read = load_calibration(to)
    assert set(read.residuals) == {f"ours-{id_}" for id_ in times}
    assert "matmul.h100" in read.fitted.values
    again = run("validate", "--measurements", str(path), "--calibration", str(to))
    assert "seen by the calibration" in again.stdout


def test_calibrate_without_output_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "ours.csv", slower(of("lf", 1), {}))
    monkeypatch.chdir(tmp_path)
    result = run("calibrate", str(path))
    assert result.exit_code == 0
    assert result.stderr.startswith("autoshard: warning: 1 run cannot tell ")
    assert result.stderr.endswith("\nnothing written; --output FILE writes it\n")
    assert [file.name for file in tmp_path.iterdir()] == ["ours.csv"]


def test_calibrate_prints_json_of_constants_rows_and_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agreeing: Calibrated
) -> None:
    monkeypatch.setattr("autoshard.calibrating.calibrate", lambda file: agreeing)
    result = run("calibrate", "ours.csv", "--json", "--quiet")
    data = json.loads(result.stdout)
    assert (result.exit_code, result.stderr, data["output"]) == (0, "", None)
    assert [row["id"] for row in data["rows"]] == [f"ours-{r.id}" for r in of("lf", 5)]
    assert {row["constant"] for row in data["constants"]} == {c.key for c in agreeing.changes}
    assert not any(row["at_bound"] for row in data["constants"])
    assert data["constants_fixed"] == pytest.approx(sum(c["from_runs"] for c in data["constants"]))
    text = (MEASURED.parents[1] / "docs" / "json_schema.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z_0-9]+)`", text))
    inner = {key for name in ("constants", "rows") for row in data[name] for key in row}
    assert set(data) | inner <= documented


def test_calibrate_without_a_file_fits_what_comes_with_autoshard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Calibration
) -> None:
    monkeypatch.setattr("autoshard.calibrating.calibrate_built_in", lambda tell: made)
    shipped = SHIPPED.read_bytes()
    result = run("calibrate")
    assert result.stderr == "nothing written; --output FILE writes it\n"
    assert SHIPPED.read_bytes() == shipped
    data = json.loads(run("calibrate", "--json").stdout)
    assert len(data["rows"]) == len(FEW)
    to = tmp_path / "all.toml"
    result = run("calibrate", "--output", str(to), "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{len(FEW)} runs, " in result.stdout
    assert set(load_calibration(to).without) == {"mt-v4", "tp"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("none.csv",), "none.csv: cannot be read as a table of runs"),
        (("none.csv", "--output", "nowhere/a.toml"), "--output nowhere/a.toml: cannot be written"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], said: str) -> None:
    result = run("calibrate", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_every_scored_run_has_a_time() -> None:
    assert all(r.step_time_s for r in load_runs()[0] if r.used_for == "score")


def test_every_built_in_run_can_be_sent_to_another_process() -> None:
    for known in SCORED:
        again = pickle.loads(pickle.dumps(sendable(known)))
        assert again.id == known.id
        assert again.problem == known.problem
