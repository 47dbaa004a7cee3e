"""The front as an object, as tables and as pictures; sizes and constraints."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import autoshard
from autoshard.charts.front import front_chart, front_table
from autoshard.columns import Column, fit, front_columns, said_once
from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.errors import Infeasible, SpecError
from autoshard.costmodels.plan import Plan
from autoshard.front import FrontPoint, ParetoFront
from autoshard.scatter import scatter
from autoshard.sizes import format_bytes, format_seconds, parse_bytes, parse_count
from autoshard.where import NAMES, column, compile_where
from autoshard.words import (
    binding_short,
    binding_words,
    chips_words,
    count_words,
    plan_words,
    proof_words,
    remat_short,
    remat_words,
    training_days,
)

GIB = 2**30


def plan(**degrees: Any) -> Plan:
    return Plan(**{"layers_per_stage": (4,), "remat": ({"save_all": 4},), **degrees})


def point(step_time_s: float, gib: float, **changes: Any) -> FrontPoint:
    values: dict[str, Any] = {
        "plan": plan(batch_split=4, tp=2),
        "step_time_s": step_time_s,
        "memory_bytes": gib * GIB,
        "mfu": 0.5 / step_time_s,
        "binding": "compute",
        "binding_by": "matmuls and attention",
        "comms_over_compute": 0.5,
        "lower_bound_s": step_time_s,
        "gap": 0.0,
        "proven": True,
        "breakdown": {"compute_s": step_time_s, "comms_s": {"tp": 0.1}},
    }
    return FrontPoint(**{**values, **changes})


BOUND = {
    "binding": "communication",
    "binding_by": "fsdp over ici data axes",
    "comms_over_compute": 1.25,
}


@pytest.fixture
def front() -> ParetoFront:
    uneven = plan(
        pp=2, tp=4, layers_per_stage=(2, 2), remat=({"checkpoints_1": 2}, {"save_all": 2})
    )
    return ParetoFront(
        problem={
            "model": {"name": "tiny"},
            "cluster": {"name": "8 v5p", "chips": 8},
            "workload": {"global_batch_tokens": 2**20, "seq_len": 4096, "precision": "bf16"},
            "capacity_bytes": 96 * GIB,
            "costs": {"profile": "textbook"},
        },
        points=(
            point(0.5, 12.0),
            point(0.6, 3.0, plan=plan(batch_split=2, seq_split=2, tp=2)),
            point(0.9, 0.75, plan=uneven, lower_bound_s=0.75, gap=0.2, proven=False, **BOUND),
        ),
        search={"complete": True, "gap": 0.001, "points": 3},
        notes=("Nothing is idle.",),
    )


# The front


def test_fastest_is_the_first_point_that_fits(front: ParetoFront) -> None:
    assert front.fastest() == front.points[0].plan == front.fastest()
    assert front.fastest().point is front.points[0]
    assert front.point("12GiB") is front.points[0]
    assert front.point("11.9GiB") is front.points[1]
    assert front.point(GIB) is front.points[2]


def test_a_budget_below_the_smallest_point_names_it(front: ParetoFront) -> None:
    with pytest.raises(Infeasible, match=r"512.00 MiB per chip; the smallest needs 768.00 MiB"):
        front.fastest(within="512MiB")


def test_a_front_survives_a_file(front: ParetoFront, tmp_path: Path) -> None:
    front.save(tmp_path / "f.json")
    assert ParetoFront.load(tmp_path / "f.json") == front


def test_keys_that_a_reader_does_not_know_are_ignored(front: ParetoFront) -> None:
    data = front.to_dict()
    data["later"] = data["front"][0]["later"] = 1
    assert ParetoFront.from_dict(data) == front


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step_time_s", "fast"),
        ("step_time_s", math.nan),
        ("proven", 1),
        ("binding", None),
        ("mfu", [0.5]),
        ("breakdown", 7),
    ],
)
def test_a_point_of_the_wrong_kind_is_refused(front: ParetoFront, key: str, value: object) -> None:
    data = front.to_dict()
    data["front"][0][key] = value
    with pytest.raises(SpecError, match=f"not a front: .*{key}"):
        ParetoFront.from_dict(data)


@pytest.mark.parametrize("part", ["model", "cluster", "workload", "costs"])
def test_a_front_without_a_part_of_its_problem_is_refused(front: ParetoFront, part: str) -> None:
    data = json.loads(front.to_json())
    del data["problem"][part]
    with pytest.raises(SpecError, match=f"not a front: its problem does not say the {part}"):
        ParetoFront.from_dict(data)


def test_a_plan_that_contradicts_itself_is_refused(front: ParetoFront) -> None:
    data = json.loads(front.to_json())
    data["front"][0]["plan"]["chips_used"] = 9
    with pytest.raises(SpecError, match="not a front: plan: chips_used = 9 contradicts"):
        ParetoFront.from_dict(data)


def test_complete_is_what_the_search_says(front: ParetoFront) -> None:
    assert front.complete
    assert not dataclasses.replace(front, search={"complete": False}).complete


def test_the_frame_has_a_row_a_point_and_json_for_what_is_nested(front: ParetoFront) -> None:
    frame = front.frame
    assert frame["step_time_s"].to_list() == [0.5, 0.6, 0.9]
    assert frame["fsdp"].to_list() == [4, 4, 1]
    assert frame["chips_used"].to_list() == [8, 8, 8]
    assert json.loads(frame["layers_per_stage"][2]) == [2, 2]
    assert json.loads(frame["remat"][2]) == [{"checkpoints_1": 2}, {"save_all": 2}]
    assert frame.schema["memory_bytes"] == pl.Float64


# Words


def test_a_plan_in_words() -> None:
    assert plan_words(plan()) == "no parallelism"
    assert plan_words(plan(batch_split=1024, seq_split=2, tp=4)) == (
        "FSDP 2,048 (1,024 batch x 2 sequence) x TP 4"
    )
    staged = plan(dp=2, cp=2, pp=2, vpp=2, layers_per_stage=(2, 2), remat=({"a": 2}, {"a": 2}))
    assert plan_words(staged) == "DP 2 x CP 2 x PP 2 (2 virtual each)"


def test_remat_in_words_adds_up_stages_in_the_ladder_s_order(front: ParetoFront) -> None:
    assert remat_words(front.points[2].plan) == "2 save_all + 2 checkpoints_1, by stage"
    assert remat_short(front.points[2].plan) == "2 save_all + 2 ckpt_1"
    three = plan(remat=({"checkpoints_1": 2, "save_matmuls": 1, "save_all": 1},))
    assert remat_words(three) == "1 save_all + 1 save_matmuls + 2 checkpoints_1"
    assert remat_short(three) == "1 save_all + 2 ckpt_1 + 1 other"


def test_bottleneck_and_proof_in_words(front: ParetoFront) -> None:
    fast, _, small = front.points
    assert binding_words(fast) == "compute-bound"
    assert binding_words(small) == "communication-bound by 1.25x (fsdp over ici data axes)"
    assert (binding_short(fast), binding_short(small)) == ("compute", "fsdp 1.25x")
    once = point(1.0, 1.0, **{**BOUND, "binding_by": "dp once a step", "comms_over_compute": 0.5})
    assert binding_words(once) == "communication-bound (dp once a step)"
    assert binding_short(once) == "dp"
    assert binding_words(point(1.0, 1.0, binding="hbm", binding_by="x")) == "HBM-bound (x)"
    assert proof_words(fast, 0.001) == "proven within 0.1 %"
    assert proof_words(fast, 0.0) == "proven optimal"
    assert proof_words(fast, 0.0, complete=False) == "proven optimal for its memory"
    assert proof_words(small, 0.001) == "not proven: at most 20 % slower than the best"


def test_chips_counts_and_days_in_words(front: ParetoFront) -> None:
    assert chips_words(plan(tp=8), 8) == "all 8 chips"
    assert chips_words(plan(tp=4), 8) == "4 of 8 chips"
    assert chips_words(plan(), 1) == "one chip"
    assert [count_words(n) for n in (15e12, 4.2e6, 2**22, 999)] == [
        "15T", "4.2M", "4,194,304", "999",
    ]  # fmt: skip
    # 2^20 tokens in half a second: 2^20 * 172,800 tokens a day
    assert training_days(front, front.points[0], 2**20 * 172_800) == pytest.approx(1.0)


# The table of the report


def test_columns_that_say_nothing_are_hidden(front: ParetoFront) -> None:
    heads = [c.head for c in front_columns(front, 15e12)]
    assert heads == [
        "step ms", "GiB/chip", "MFU %", "days/15T", "fsdp", "tp", "pp", "remat", "bound by",
        "proof", "chips",
    ]  # fmt: skip
    cells = {c.head: c.cells for c in front_columns(front, 15e12)}
    assert cells["step ms"] == ("500.0", "600.0", "900.0")
    assert cells["fsdp"] == ("4", "4 (2x2)", "1")
    assert cells["proof"] == ("within 0.1 %", "within 0.1 %", "only within 20 %")


def test_what_is_the_same_in_each_row_is_said_once(front: ParetoFront) -> None:
    kept, words = said_once(front_columns(front, 15e12))
    assert words == ["8 chips"]
    assert "proof" in [c.head for c in kept]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_a_narrow_terminal_loses_spare_columns_and_never_degrees(
    front: ParetoFront, width: int
) -> None:
    columns = front_columns(front, 15e12)
    shown, hidden = fit(columns, width)
    assert sum(c.width for c in shown) + 2 * (len(shown) - 1) <= width
    assert {"step ms", "GiB/chip", "fsdp", "tp", "pp", "remat"} <= {c.head for c in shown}
    assert {c.head for c in shown} | set(hidden) == {c.head for c in columns}
    assert hidden == [] or width < 160


def test_long_words_are_cut_when_nothing_else_can_go() -> None:
    remat = Column(head="remat", cells=("21 save_matmuls + 59 checkpoints_2",), left=True)
    shown, _ = fit([Column(head="step ms", cells=("483.1",)), remat], 30)
    assert shown[1].cells == ("21 save_matmuls + ...",)


# Pictures


def test_the_chart_draws_the_table(front: ParetoFront) -> None:
    table = front_table(front)
    assert table["step"].to_list() == [500.0, 600.0, 900.0]
    assert table["memory_gib"].to_list() == [12.0, 3.0, 0.75]
    assert table["binding"].to_list() == ["compute", "compute", "communication"]
    assert table["layers"].to_list() == ["4", "4", "2 on each stage"]
    assert table["proof"][2] == "not proven: at most 20 % slower than the best"
    drawn = front_chart(front).to_dict()
    assert [layer["mark"]["type"] for layer in drawn["layer"]] == ["line", "point", "rule", "text"]
    assert drawn["title"]["text"] == "tiny on 8 v5p"
    values = list(itertools.chain(*drawn["datasets"].values()))
    assert {"memory_gib": 96.0, "label": "memory limit 96.0 GiB"} in values
    titles = {tip.get("title", tip["field"]) for tip in drawn["layer"][1]["encoding"]["tooltip"]}
    assert {"step time (ms)", "MFU", "plan", "remat", "layers per stage", "proof"} <= titles


def test_memory_is_linear_where_the_front_is_near_its_limit(front: ParetoFront) -> None:
    def scale(capacity: int) -> Any:
        problem = {**front.problem, "capacity_bytes": capacity}
        drawn = front_chart(dataclasses.replace(front, problem=problem)).to_dict()
        return drawn["layer"][0]["encoding"]["x"]["scale"]

    assert scale(96 * GIB)["type"] == "log"
    assert scale(5 * GIB)["domain"][0] == 0


def test_one_point_can_be_drawn(front: ParetoFront) -> None:
    alone = dataclasses.replace(front, points=front.points[:1])
    assert front_chart(alone).to_dict()["layer"]
    assert scatter(alone) == []


def test_the_scatter_has_the_fastest_low_on_the_right(front: ParetoFront) -> None:
    lines = scatter(front, width=40, height=5)
    assert lines[0] == "900.0 ms |x"
    assert lines[4] == "500.0 ms |" + " " * 39 + "o"
    assert lines[-1].split() == ["o", "compute-bound", "x", "communication-bound"]
    assert sum(line.count("o") for line in lines[:5]) == 2


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("72GiB", 72 * GIB),
        ("80GB", 80 * 10**9),
        ("1.5 gib", 3 * GIB // 2),
        ("512", 512),
        (2.0, 2),
        ("1e3", 1000),
        ("2TiB", 2 * 2**40),
    ],
)
def test_bytes_are_read_as_written(text: str | float, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "count"), [("16M", 16 * 10**6), ("4Mi", 2**22), ("15T", 15 * 10**12), ("7", 7)]
)
def test_counts_are_read_as_written(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("text", "size"),
    [(5e9 + 0.25, 5 * 10**9 + 1), (78522634565.07936, 78522634566), ("80.1GB", 80_100_000_000)],
)
def test_part_of_a_byte_counts_as_a_whole_one_and_the_noise_of_a_product_does_not(
    text: str | float, size: int
) -> None:
    assert parse_bytes(text) == size


def test_a_plan_fits_the_memory_that_is_said_of_it() -> None:
    front = autoshard.solve("llama3-8b", chip="h100", chips=16, costs="calibrated", points=3)
    for point in front.points:
        assert point.memory_bytes % 1
        assert front.point(within=point.memory_bytes) is point
        again = autoshard.solve(
            "llama3-8b",
            chip="h100",
            chips=16,
            costs="calibrated",
            points=1,
            memory_limit=point.memory_bytes,
        )
        assert again.points[0].step_time_s <= point.step_time_s * (1 + 1e-3)


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "0", "0.5", "nan", "inf", "1 2", "5X", "1e999"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is not a"):
        parse_bytes(text)
    with pytest.raises(SpecError, match="is not a"):
        parse_count(text)


def test_sizes_and_times_for_people() -> None:
    sizes = [format_bytes(n) for n in (12, 2048, 3 * 2**20, 72.5 * GIB, 3.0 * 2**40)]
    assert sizes == ["12 B", "2.00 KiB", "3.00 MiB", "72.50 GiB", "3.00 TiB"]
    assert [format_seconds(t) for t in (0.0005, 0.4831, 1.0, 12.345)] == [
        "0.5 ms", "483.1 ms", "1.00 s", "12.35 s",
    ]  # fmt: skip


# Constraints


def table(**columns: list[int]) -> Candidates:
    n = len(next(iter(columns.values())))
    ones = {name: np.ones(n, dtype=np.int64) for name in COLUMNS}
    return Candidates(**ones | {k: np.array(v, dtype=np.int64) for k, v in columns.items()})


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("tp <= 8", [True, True, False]),
        ("TP <= 8", None),
        ("tp <= 8 and pp * vpp <= 32", [True, True, False]),
        ("tp in (1, 16)", [True, False, True]),
        ("not tp = 8 or pp > 1", [True, False, True]),
        ("fsdp == 6", [True, False, False]),
        ("chips_used >= 16", [False, True, True]),
        ("ep > 1", [False, False, False]),
        ("tp % 3 = 1", [True, False, True]),
        ("tp between 2 and 8", [False, True, False]),
        (pl.col("tp").is_in([8]), [False, True, False]),
        ((pl.col("tp") > 1) & (pl.col("dp") == 1), [False, True, True]),
    ],
)
def test_a_constraint_keeps_what_satisfies_it(
    where: str | pl.Expr, kept: list[bool] | None
) -> None:
    rows = table(tp=[1, 8, 16], batch_split=[2, 2, 1], seq_split=[3, 1, 1])
    if kept is None:
        with pytest.raises(SpecError, match="did you mean"):
            compile_where(where)
    else:
        assert compile_where(where)(rows).tolist() == kept


def test_every_name_of_a_constraint_is_a_column() -> None:
    rows = table(tp=[1, 2])
    for name in NAMES:
        assert len(column(rows, name)) == 2
        assert compile_where(f"{name} >= 1")(rows).all()
