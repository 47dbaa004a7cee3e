"""Predictions against measurements: who has seen what, and what the figures mean."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from command import run
from scipy.stats import kendalltau

from autoshard.baselines import baseline_step_s, ideal_step_s
from autoshard.bench import Bench
from autoshard.costmodels.calibration import Calibration, shipped_calibration
from autoshard.costmodels.constants import Fitted
from autoshard.costmodels.errors import SpecError
from autoshard.run_memory import predicted_memory, usable_bytes
from autoshard.runs import load_runs
from autoshard.validate_page import chart_table, validation_chart
from autoshard.validate_report import sections, validation_dict, validation_report
from autoshard.validate_tables import errors, rankings, reasons, summary
from autoshard.validating import Validation, validate

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "autoshard" / "measured"
RUNS, EXCLUDED = load_runs()
SCORED = [run for run in RUNS if run.used_for == "score"]
BY_ID = {run.id: run for run in RUNS}


@pytest.fixture(scope="module")
def judged() -> Validation:
    return validate()


@pytest.fixture(scope="module")
def answer(judged: Validation) -> dict[str, Any]:
    # As it is printed and read again.
    data: dict[str, Any] = json.loads(json.dumps(validation_dict(judged), allow_nan=False))
    return data


def table(tmp_path: Path, ids: dict[str, str], changed: dict[str, str] | None = None) -> Path:
    """A file of rows of the built-in GPU table, by old and new id."""
    with (MEASURED / "gpu.csv").open(encoding="utf-8", newline="") as stream:
        rows = {row["id"]: row for row in csv.DictReader(stream)}
    picked = [{**rows[old], "id": new, **(changed or {})} for old, new in ids.items()]
    path = tmp_path / "ours.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(next(iter(rows.values()))))
        writer.writeheader()
        writer.writerows(picked)
    return path


# Every row, once


def test_every_row_of_the_measurements_is_in_the_json_once(answer: dict[str, Any]) -> None:
    ids = []
    for name in ("gpu.csv", "tpu.csv"):
        with (MEASURED / name).open(encoding="utf-8", newline="") as stream:
            ids += [row["id"] for row in csv.DictReader(stream)]
    assert Counter(row["id"] for row in answer["rows"]) == Counter(ids)


def test_a_row_has_a_prediction_or_a_reason(answer: dict[str, Any]) -> None:
    for row in answer["rows"]:
        if row["left_out"] is None:
            low, high = row["interval_s"]
            assert 0 < low <= row["predicted_step_s"] <= high
            assert row["measured_step_s"] > 0
            assert row["scored"] == (row["why_not"] is None)
        else:
            assert row["left_out"]["reason"]
            assert row["left_out"]["detail"]
            assert row["predicted_step_s"] is None
            assert not row["scored"]


def test_the_rows_that_count_are_those_that_score(answer: dict[str, Any]) -> None:
    assert {row["id"] for row in answer["rows"] if row["scored"]} == {run.id for run in SCORED}
    assert answer["summary"]["rows"] == len(SCORED)


def test_what_does_not_count_is_named_with_its_reason(answer: dict[str, Any]) -> None:
    named = [id_ for group in answer["not_counted"] for id_ in group["ids"]]
    assert Counter(named) == Counter(r["id"] for r in answer["rows"] if not r["scored"])
    assert {row["reason"] for row in answer["not_counted"]} >= {"experts", "tier B"}


def test_every_key_of_the_json_is_documented(answer: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "json_schema.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z_0-9]+)`", text))
    prefixed = {f"{a}{b}" for a in ("in_sample_", "mfu_", "hfu_") for b in ("median", "p90")}

    def keys(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*(keys(item) for item in value))
        if isinstance(value, dict):
            return set(value).union(*(keys(item) for item in value.values()))
        return set()

    assert keys(answer) <= documented | prefixed


# Who has seen what


def test_a_source_is_predicted_by_the_constants_without_it(tmp_path: Path) -> None:
    some = [r.id for r in SCORED if r.source in ("tt", "vt", "lf")][::5]
    tt, vt = Fitted(values={"matmul.h100-500w": 0.5}), Fitted(values={"matmul.a100": 0.7})
    known = Calibration(fitted=Fitted(values={}), without={"tt": tt, "vt": vt})
    rows = validate(table(tmp_path, dict(zip(some, some, strict=True))), calibration=known).rows
    for source, constants in (("tt", tt), ("vt", vt), ("lf", known.fitted)):
        own = rows.filter(pl.col("source") == source)
        runs = [BY_ID[id_] for id_ in own["id"]]
        assert own["predicted_step_s"].to_list() == pytest.approx(
            Bench.of(runs).step_s(constants).tolist()
        )
        assert runs
    every = Bench.of([BY_ID[id_] for id_ in rows["id"]]).step_s(known.fitted)
    assert rows["in_sample_step_s"].to_list() == pytest.approx(every.tolist())


def test_the_shipped_calibration_leaves_out_every_scored_source() -> None:
    known = shipped_calibration()
    sources = {run.source for run in SCORED}
    assert set(known.without) == set(known.rule_without) == sources
    assert set(known.residuals) == {run.id for run in SCORED}


def test_a_users_copy_of_a_built_in_row_is_not_predicted_by_constants_that_saw_it(
    tmp_path: Path, judged: Validation
) -> None:
    path = table(tmp_path, {"tt-001": "tt-001", "lf-007": "ours-1"})
    rows = {row["id"]: row for row in validate(path).rows.to_dicts()}
    built_in = {row["id"]: row for row in judged.rows.to_dicts()}
    assert rows["tt-001"]["predicted_step_s"] == built_in["tt-001"]["predicted_step_s"]
    assert rows["tt-001"]["mfu_step_s"] == built_in["tt-001"]["mfu_step_s"]
    assert rows["ours-1"]["predicted_step_s"] == built_in["lf-007"]["in_sample_step_s"]


def test_rows_of_a_user_count_without_a_tier(tmp_path: Path) -> None:
    path = table(tmp_path, {"lf-007": "ours-1"}, {"notes": "", "model": "Zebra-8B"})
    (row,) = validate(path).rows.to_dicts()
    assert (row["tier"], row["flags"], row["scored"]) == ("B", "mlp-assumed", True)


def test_what_a_users_calibration_has_seen_does_not_count(tmp_path: Path) -> None:
    path = table(tmp_path, {"lf-007": "ours-1", "lf-008": "ours-2"})
    own = dataclasses.replace(shipped_calibration(), without={}, residuals={"ours-1": 0.0})
    rows = {row["id"]: row for row in validate(path, calibration=own).rows.to_dicts()}
    assert (rows["ours-1"]["scored"], rows["ours-2"]["scored"]) == (False, True)
    assert rows["ours-1"]["why_not"] == "seen by the calibration"


def own_calibration(**factors: float) -> Calibration:
    """Constants as a user's file gives them: shipped ones, some times a factor, and no errors."""
    shipped = shipped_calibration()
    values = {key: factors.get(key, 1.0) * value for key, value in shipped.fitted.values.items()}
    return dataclasses.replace(shipped, fitted=Fitted(values=values), without={}, residuals={})


def test_a_given_calibration_changes_constants_that_have_not_seen_a_source(
    tmp_path: Path, judged: Validation
) -> None:
    some = [r.id for r in SCORED if r.source in ("vt", "tt", "bs")][::6]
    path = table(tmp_path, dict(zip(some, some, strict=True)))
    seen = next(id_ for id_ in some if id_.startswith("bs-"))
    own = dataclasses.replace(own_calibration(**{"matmul.a100": 0.95}), residuals={seen: 0.0})
    rows = {row["id"]: row for row in validate(path, calibration=own).rows.to_dicts()}
    before = {row["id"]: row["predicted_step_s"] for row in judged.rows.to_dicts()}
    unseen = dict(shipped_calibration().without["vt"].values)
    unseen["matmul.a100"] *= 0.95
    runs = [BY_ID[id_] for id_ in some if id_.startswith("vt-")]
    for run_, expected in zip(runs, Bench.of(runs).step_s(Fitted(values=unseen)), strict=True):
        assert rows[run_.id]["predicted_step_s"] == pytest.approx(expected)
        assert rows[run_.id]["predicted_step_s"] > before[run_.id]
    for id_ in some:  # chips whose constants the file leaves alone
        if BY_ID[id_].problem.cluster.chip.name.startswith("h100"):
            assert rows[id_]["predicted_step_s"] == pytest.approx(before[id_])
    why = {id_: row["why_not"] for id_, row in rows.items() if row["source"] == "bs"}
    assert why.pop(seen) == "seen by the calibration"
    assert set(why.values()) == {"source seen by the calibration"}


def test_the_report_says_whose_constants_predicted(judged: Validation) -> None:
    for given, file, said in (
        (False, "built in", "each predicted by constants that have not seen its source"),
        (True, "built in", "by shipped constants that have not seen its source, changed as the "),
        (True, "ours.csv", "each predicted by the given constants, which were not fitted to it"),
    ):
        whose = dataclasses.replace(judged, given=given, measurements=file)
        assert said in sections(whose)[0][0]


def test_a_refit_of_everything_is_judged_by_its_own_constants(tmp_path: Path) -> None:
    path = table(tmp_path, {"tt-001": "tt-001"})
    (row,) = validate(path, calibration=shipped_calibration()).rows.to_dicts()
    assert row["scored"]


def test_priors_and_the_book_have_no_errors_to_make_an_interval_of(tmp_path: Path) -> None:
    some = [run for run in SCORED if run.problem.cluster.chip.kind == "gpu"][::20]
    path = table(tmp_path, {run.id: run.id for run in some})
    priors = validate(path, costs="priors").rows
    assert priors["predicted_step_s"].to_list() == pytest.approx(
        Bench.of([BY_ID[id_] for id_ in priors["id"]]).step_s(Fitted(values={})).tolist()
    )
    book = validate(path, costs="textbook")
    for rows in (priors, book.rows):
        assert rows["low_s"].is_null().all()
    # The book assumes that every chip reaches its peak.
    by_source = errors(book.scored, "source")
    assert (by_source["bias"] < 0).all()
    assert summary(book)["memory"]["ran"] == 0


# Baselines


def test_constant_utilisation_is_exact_where_utilisation_is_constant() -> None:
    runs = [
        dataclasses.replace(r, step_time_s=ideal_step_s(r, recompute=False) / 0.4) for r in SCORED
    ]
    predicted = baseline_step_s(runs, runs, recompute=False)
    assert predicted == pytest.approx([r.step_time_s for r in runs])


def test_the_baseline_of_a_source_does_not_see_it() -> None:
    slow = [
        dataclasses.replace(r, step_time_s=(r.step_time_s or 0) * (3 if r.source == "vt" else 1))
        for r in SCORED
    ]
    which = [r.source == "vt" for r in SCORED]
    before, after = (baseline_step_s(runs, runs, recompute=True) for runs in (SCORED, slow))
    assert before[which].tolist() == after[which].tolist()
    assert (before != after).any()


def test_ideal_time_by_hand() -> None:
    # MPT-13B: MHA, an MLP of two matrices, one table for embedding and logits.
    run = BY_ID["lf-007"]
    model, work = run.problem.model, run.problem.workload
    assert (model.n_layers, model.d_model, model.d_ff) == (40, 5120, 20480)
    layer = 4 * 5120**2 + 2 * 5120 * 20480
    head = 5120 * 50368
    square = 40 * work.seq_len * 5120
    once = 6 * (40 * layer + head + square) * work.global_batch_tokens
    # PyTorch stops once it has what the backward pass needs: before the last matmul.
    again = 2 * (40 * (layer - 5120 * 20480) + square) * work.global_batch_tokens
    rate = run.problem.cluster.chips * run.problem.peak_flops_per_s
    assert ideal_step_s(run, recompute=False) == pytest.approx(once / rate)
    assert run.remat == {"full": 1.0}
    assert ideal_step_s(run, recompute=True) == pytest.approx((once + again) / rate)


# What the figures mean


def frame(measured: list[float], predicted: list[float], **columns: list[Any]) -> pl.DataFrame:
    same = {"source": "s", "model": "m", "group": "g"}
    base: dict[str, Any] = {name: [word] * len(measured) for name, word in same.items()}
    base |= {"alternative": [str(k) for k in range(len(measured))]}
    for name in ("in_sample_step_s", "mfu_step_s", "hfu_step_s"):
        base[name] = measured
    return pl.DataFrame(
        {**base, "measured_step_s": measured, "predicted_step_s": predicted, **columns}
    )


def test_errors_by_hand() -> None:
    ends: dict[str, list[Any]] = {"low_s": [0.9, 0.5, 2.1], "high_s": [1.3, 1.0, 2.3]}
    (row,) = errors(frame([1.0, 1.0, 2.0], [1.1, 0.8, 2.2], **ends), "source").to_dicts()
    assert row["rows"] == 3
    assert row["coverage"] == pytest.approx(2 / 3)
    assert row["median"] == pytest.approx(0.1)
    # Of 0.1, 0.1 and 0.2, nine tenths of the way.
    assert row["p90"] == pytest.approx(0.18)
    assert row["bias"] == pytest.approx(0.1)
    assert row["in_sample_p90"] == 0


def test_order_of_plans_by_hand() -> None:
    # Pairs apart by 5 %: all but the first two plans. One of these five, the last two, is wrong.
    (row,) = rankings(frame([1.00, 1.03, 1.20, 1.50], [1.1, 1.0, 1.4, 1.3])).to_dicts()
    assert (row["plans"], row["pairs"], row["right"]) == (4, 5, 4)
    assert row["regret"] == pytest.approx(0.03)
    assert row["tau"] == pytest.approx((4 - 2) / 6)


def test_a_plan_that_was_measured_twice_is_one_plan() -> None:
    names = ["a", "a", "b", "c", "d"]
    rows = frame([1.0, 3.0, 1.0, 1.5, 4.0], [2.0, 2.0, 1.0, 1.5, 4.0], alternative=names)
    (row,) = rankings(rows).to_dicts()
    assert (row["plans"], row["right"], row["pairs"], row["tau"]) == (4, 6, 6, 1.0)


def test_fewer_than_four_plans_are_no_ranking_and_equal_predictions_have_no_tau() -> None:
    assert len(rankings(frame([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]))) == 0
    (row,) = rankings(frame([1.0, 2.0, 3.0, 4.0], [1.0] * 4)).to_dicts()
    assert (row["tau"], row["right"], row["pairs"]) == (None, 0, 6)
    assert row["regret"] == pytest.approx(1.5)  # any of the four may be taken


def test_tau_is_that_of_scipy() -> None:
    draw = np.random.default_rng(3)
    for _ in range(20):
        measured, predicted = (draw.integers(1, 6, 12).astype(float) for _ in range(2))
        (row,) = rankings(frame(measured.tolist(), predicted.tolist())).to_dicts()
        assert row["tau"] == pytest.approx(kendalltau(measured, predicted).statistic)


def test_groups_hold_plans_for_the_same_work(judged: Validation) -> None:
    for _, group in judged.scored.group_by("group"):
        runs = [BY_ID[id_] for id_ in group["id"]]
        assert len({r.source for r in runs}) == 1
        assert len({r.problem.workload for r in runs}) == 1
        assert len({r.problem.cluster.chips for r in runs}) == 1


def test_coverage_is_the_share_of_measured_times_inside(judged: Validation) -> None:
    rows = judged.scored.to_dicts()
    inside = [row["low_s"] <= row["measured_step_s"] <= row["high_s"] for row in rows]
    assert summary(judged)["intervals"]["coverage"] == pytest.approx(np.mean(inside))
    assert 0.6 < np.mean(inside) < 0.95


def test_the_calibrated_model_beats_one_utilisation_for_each_chip(judged: Validation) -> None:
    for figures in summary(judged)["step_time"].values():
        for baseline in ("constant_mfu", "constant_hfu"):
            for name, error in figures["honest"].items():
                assert error < 0.75 * figures[baseline][name]


# Memory


def test_memory_is_judged_under_the_metric_of_the_row(judged: Validation) -> None:
    row = judged.rows.filter(pl.col("id") == "tt-001").to_dicts()[0]
    assert row["memory_metric"] == "reserved"
    # What the driver counts holds more than the allocator reserves.
    assert row["comparable_memory_bytes"] < row["predicted_memory_bytes"]
    assert row["fits"] == (row["predicted_memory_bytes"] <= usable_bytes(BY_ID["tt-001"]))


def test_the_runs_that_ran_out_of_memory_are_counted(answer: dict[str, Any]) -> None:
    memory = answer["summary"]["memory"]
    assert (memory["out_of_memory"], memory["out_of_memory_predicted"]) == (6, 5)
    assert memory["out_of_memory_predicted_to_fit_ids"] == ["bs-oom-6"]
    for row in answer["out_of_memory"]:
        assert row["fits"] == (row["predicted_memory_bytes"] <= row["usable_bytes"])


def test_tensors_on_the_host_are_not_predicted() -> None:
    offloaded = [run for run in RUNS if "host-offload" in run.flags]
    assert offloaded
    assert {predicted_memory(run) for run in offloaded} == {None}


def test_recomputing_everything_takes_no_more_memory_than_nothing() -> None:
    run = next(r for r in RUNS if r.stack.name == "megatron" and r.remat == {"none": 1.0})
    least = predicted_memory(dataclasses.replace(run, remat={"full": 1.0}))
    half = predicted_memory(dataclasses.replace(run, remat={"none": 0.5, "full": 0.5}))
    most = predicted_memory(run)
    assert least is not None
    assert half is not None
    assert most is not None
    assert least < half < most


# What is shown


def test_the_report_names_every_source_and_reason(judged: Validation) -> None:
    text = validation_report(judged)
    for word in (*judged.scored["source"].unique(), *reasons(judged)["reason"]):
        assert word in text
    assert f"{len(SCORED)} measured runs (built in)" in text
    said = "6 runs that ran out of memory, 5 are predicted not to fit; predicted to fit: bs-oom-6."
    assert said in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 120


def test_the_chart_draws_the_rows_that_count(judged: Validation) -> None:
    drawn = chart_table(judged)
    assert drawn["id"].to_list() == judged.scored["id"].to_list()
    expected = drawn["predicted"] / drawn["measured"] - 1.0
    assert drawn["error"].to_list() == pytest.approx(expected.to_list())
    assert drawn["beyond"].to_list() == [abs(error) > 0.6 for error in drawn["error"]]


def test_points_at_the_edge_of_the_strip_are_counted(judged: Validation) -> None:
    strip = validation_chart(judged).to_dict()["hconcat"][1]
    title = strip["layer"][1]["encoding"]["x"]["title"]
    beyond = int(chart_table(judged)["beyond"].sum())
    assert beyond
    assert title == f"predicted / measured - 1; {beyond} beyond 60% drawn at the edge, as triangles"


# The command


def test_validate_prints_tables_and_writes_a_page_that_needs_no_network(tmp_path: Path) -> None:
    path = table(tmp_path, {"tt-001": "tt-001", "tt-002": "x</script><b>"})
    file = tmp_path / "page.html"
    result = run("validate", "--measurements", str(path), "--html", str(file))
    assert (result.exit_code, result.stderr) == (0, f"wrote {file}\n")
    assert "Error of step time by source, in percent" in result.stdout
    page = file.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "x\\u003c/script>\\u003cb>" in page
    assert page.count("<script") == page.count("</script>") == 2
    assert re.findall(r"<script[^>]*src=", page) == []
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert re.findall(r"(?:src|href)=|@import|url\(", markup) == []
    assert markup.count("<table>") == 4  # all, by source, by chip, memory


def test_a_table_of_which_no_row_can_be_judged_says_so_and_why(tmp_path: Path) -> None:
    path = table(tmp_path, {"tt-001": "a", "tt-002": "b"}, {"framework": "MyOwnThing"})
    result = run("validate", "--measurements", str(path))
    first, *_, _ = result.stdout.splitlines()
    assert (result.exit_code, first) == (0, f"0 of 2 rows can be judged ({path})")
    assert "a: no stack is near the framework 'MyOwnThing'; words that are known: " in result.stdout
    data = json.loads(run("validate", "--measurements", str(path), "--json").stdout)
    assert data["summary"]["rows"] == 0
    assert [row["left_out"]["reason"] for row in data["rows"]] == ["framework not known"] * 2


def test_one_run_is_one_run_and_a_guess_is_explained(tmp_path: Path) -> None:
    path = table(tmp_path, {"lf-007": "a", "tt-001": "tt-001"}, {"model": "Zebra-8B", "notes": ""})
    text = run("validate", "--measurements", str(path)).stdout
    assert text.startswith("1 measured run (")
    assert "Not counted: 0 rows that cannot be priced, 1 predicted and not scored" in text
    assert "tt-001: its model is not known by name, so whether the MLP is gated is a" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--costs", "guess"), "validate judges the costs calibrated, priors, textbook; got 'gue"),
        (("--measurements", "none.csv"), "none.csv: cannot be read as a table of runs"),
        (("--measurements", "empty.csv"), "empty.csv: the table is empty."),
        (("--calibration", "none.toml"), "none.toml: cannot be read as a calibration (No such fi"),
        (("--html", "nowhere/page.html"), "--html nowhere/page.html: cannot be written, nowhere "),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path, {}).rename("empty.csv")
    result = run("validate", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_unknown_costs_are_refused() -> None:
    with pytest.raises(SpecError, match="validate judges the costs"):
        validate(costs="guess")
