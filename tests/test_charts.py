"""The charts of a front and of its plans: what they draw adds up, and every stage is there."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import altair as alt
import numpy as np
import polars as pl
import pytest
import vl_convert

import autoshard
from autoshard.charts.memory import memory_table
from autoshard.charts.mesh import levels, mesh_table
from autoshard.charts.pipeline import bars, pipeline_panels, timeline, windows
from autoshard.charts.time import time_chart, time_table
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.stack import STACKS
from autoshard.costmodels.textbook_memory import TextbookMemory
from autoshard.front import ParetoFront
from autoshard.memory_parts import UNNAMED
from autoshard.other_plans import other_plans
from autoshard.priced import PricedPlan

SCHEDULE_CASES = [
    {"fix": {"pp": 4, "vpp": 1, "microbatches": 16}},
    {"fix": {"pp": 4, "vpp": 2, "microbatches": 16}},
    {"fix": {"pp": 4, "vpp": 1, "microbatches": 16}, "schedule": "gpipe"},
    {"fix": {"pp": 4, "vpp": 2, "microbatches": 16}, "schedule": "gpipe"},
    {"fix": {"pp": 4, "microbatches": 16}, "schedule": "zero-bubble", "chip": "h200"},
]


def solved(model: str = "llama3-8b", **asked: Any) -> ParetoFront:
    arguments: dict[str, Any] = {"chip": "h100", "chips": 64, "points": 4, **asked}
    return autoshard.solve(model, **arguments)


def priced(front: ParetoFront, place: int = 0) -> PricedPlan:
    return PricedPlan.of(front.solved(front.points[place]))


def on_every_stack() -> list[tuple[str, str]]:
    """Each stack on a kind of chip that it runs on."""
    return [(name, kind) for name, stack in STACKS.items() for kind in stack.chips]


@pytest.fixture(scope="module")
def textbook() -> ParetoFront:
    return solved(chip="v5p", pods=1, chips=None, points=6)


@pytest.fixture(scope="module")
def piped() -> ParetoFront:
    return solved(stack="megatron", where="pp > 1", points=3)


@pytest.fixture(scope="module", params=on_every_stack(), ids="-".join)
def stacked(request: pytest.FixtureRequest) -> ParetoFront:
    stack, kind = request.param
    chip = {"gpu": "h100", "tpu": "v5p"}[kind]
    return solved(chip=chip, chips=16, stack=stack, points=3, global_batch_tokens=2**19)


# Time


def check_time(front: ParetoFront) -> None:
    for point in front.points:
        table = time_table(point)
        seen = table.filter(~pl.col("hidden"))
        assert seen["seconds"].sum() == pytest.approx(point.step_time_s, rel=1e-9)
        assert seen["start_s"][0] == 0.0
        assert seen["end_s"][:-1].to_list() == pytest.approx(seen["start_s"][1:].to_list())
        assert seen["end_s"][-1] == pytest.approx(point.step_time_s, rel=1e-9)
        assert table["start_s"].min() >= -1e-9 * point.step_time_s  # type: ignore[operator]
        comms = table.filter(pl.col("kind").str.starts_with("communication"))
        whole = comms.group_by("part").agg(pl.col("seconds").sum())
        for name, seconds in point.breakdown["exposed_s"].items():
            assert 0 <= seconds <= point.step_time_s, name
        assert whole["seconds"].sum() >= sum(point.breakdown["exposed_s"].values()) * (1 - 1e-9)


def test_the_bars_of_a_step_add_up_to_it_under_the_textbook(textbook: ParetoFront) -> None:
    check_time(textbook)


def test_the_bars_of_a_step_add_up_to_it_on_every_stack(stacked: ParetoFront) -> None:
    check_time(stacked)


def test_where_a_network_bounds_a_pass_its_kinds_wait_in_proportion() -> None:
    """One network, all traffic in turn: each kind is exposed by the same share of its seconds."""
    front = solved(costs=autoshard.textbook(overlap="sum"), global_batch_tokens=2**18, points=1)
    parts = front.points[0].breakdown
    waited = parts["busy_s"] - parts["compute_s"]
    assert waited > 0
    assert sum(parts["exposed_s"].values()) == pytest.approx(waited + parts["once_s"], rel=1e-9)
    for kind, seconds in parts["exposed_s"].items():
        assert 0 < seconds < parts["comms_s"][kind]


def test_a_front_of_an_earlier_version_has_its_exposed_communication_in_one(
    piped: ParetoFront,
) -> None:
    point = piped.points[0]
    older = {name: value for name, value in point.breakdown.items() if name != "exposed_s"}
    before = dataclasses.replace(point, breakdown=older)
    table = time_table(before)
    assert table["seconds"].sum() == pytest.approx(point.step_time_s, rel=1e-9)
    assert not table["hidden"].any()
    assert time_chart(piped, before).to_dict()["layer"]


# Memory


def check_memory(front: ParetoFront) -> None:
    for place, point in enumerate(front.points):
        table = memory_table(priced(front, place))
        stages = table.group_by("stage").agg(pl.col("bytes").sum()).sort("stage")
        assert stages["stage"].to_list() == list(range(point.plan.pp))
        assert stages["bytes"].max() == pytest.approx(point.memory_bytes, rel=1e-9)
        assert (table["bytes"] >= 0).all()
        assert table.filter(pl.col("kind") == "parameters")["bytes"].sum() > 0


def test_the_kinds_of_the_fullest_stage_add_up_to_its_memory(textbook: ParetoFront) -> None:
    check_memory(textbook)


def test_the_kinds_of_the_fullest_stage_add_up_on_every_stack(stacked: ParetoFront) -> None:
    check_memory(stacked)


def test_the_kinds_of_every_candidate_add_up_to_what_the_model_says(stacked: ParetoFront) -> None:
    """Of all columns, not only those of a plan that was found; with and without pipelines."""
    from autoshard.search.space import expand, meshes

    one = priced(stacked)
    table, _ = expand(one.problem, meshes(one.problem))
    rows = table.take(np.arange(0, len(table), 97))
    whole = one.profile.price_memory(one.problem, rows)
    kinds = one.profile.memory.by_kind(one.problem, rows, one.profile.ladder)  # type: ignore[attr-defined]
    for field in dataclasses.fields(whole):
        parts = sum(getattr(kind, field.name) for kind in kinds.values())
        np.testing.assert_allclose(parts, getattr(whole, field.name), rtol=1e-9)
        assert all((getattr(kind, field.name) >= 0).all() for kind in kinds.values())


def test_a_schedule_that_undoes_remat_holds_everything() -> None:
    front = solved(schedule="zero-bubble", fix={"pp": 4}, points=2, global_batch_tokens=2**20)
    check_memory(front)


def test_a_memory_model_that_does_not_say_has_three_kinds() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Silent:
        name: str = "silent"
        role: str = "memory"
        covers: frozenset[str] = frozenset({"dense"})

        def __call__(self, *asked: Any) -> Any:
            return TextbookMemory()(*asked)

    profile = autoshard.textbook().replace(Silent())
    front = solved(costs=profile, points=2)
    problem = front.fastest().problem
    one = PricedPlan(front=front, point=front.points[0], problem=problem, profile=profile)
    table = memory_table(one)
    assert set(table["kind"]) <= set(UNNAMED)
    fullest = table.group_by("stage").agg(pl.col("bytes").sum())["bytes"].max()
    assert fullest == pytest.approx(front.points[0].memory_bytes, rel=1e-9)


# The schedule


@pytest.mark.parametrize("asked", SCHEDULE_CASES, ids=str)
def test_the_timeline_is_as_long_as_the_step_within_what_its_formula_says(
    asked: dict[str, Any],
) -> None:
    """Exact for equal stages; these have lighter or heavier ends (costmodels/schedules.py)."""
    front = solved(points=1, global_batch_tokens=2**20, **asked)
    one = priced(front)
    found = timeline(one)
    assert found.schedule == asked.get("schedule", "1f1b")
    assert found.microbatches == one.plan.microbatches
    assert found.formula_s + found.once_s == pytest.approx(front.points[0].step_time_s, rel=1e-9)
    off = found.formula_s / found.simulated_s
    if found.schedule == "1f1b" and one.plan.vpp == 1:
        assert 1.0 - 1e-9 <= off <= 1.2
    else:
        assert 0.8 <= off <= 1.2


def test_every_stage_runs_every_microbatch_forward_and_back_one_pass_at_a_time(
    piped: ParetoFront,
) -> None:
    one = priced(piped)
    passes = timeline(one).passes.drop_nulls("microbatch")
    plan = one.plan
    each = passes.group_by("stage", "kind").agg(n=pl.len()).sort("stage", "kind")
    assert each["n"].to_list() == [plan.microbatches * plan.vpp] * (2 * plan.pp)
    for _, stage in passes.sort("start_s").group_by("stage"):
        apart = stage["start_s"][1:].to_numpy() - stage["end_s"][:-1].to_numpy()
        assert (apart >= -1e-12).all()


def test_merged_passes_cover_the_same_time(piped: ParetoFront) -> None:
    found = timeline(priced(piped))
    merged = bars(found, most_bars=10)

    def busy(table: pl.DataFrame) -> list[float]:
        spent = table.group_by("stage", "kind").agg(s=(pl.col("end_s") - pl.col("start_s")).sum())
        return spent.sort("stage", "kind")["s"].to_list()

    assert len(merged) < len(found.passes)
    assert busy(merged) == pytest.approx(busy(found.passes))
    assert bars(found).height == len(found.passes)


def test_a_long_step_shows_its_beginning_and_its_end_to_one_scale(piped: ParetoFront) -> None:
    one = priced(piped)
    found = timeline(one)
    (first, last) = windows(bars(found, 100), found.end_s, 100)
    assert first[0] == 0.0
    assert last[1] == found.end_s
    assert first[1] == pytest.approx(last[1] - last[0])
    titles = [panel.to_dict()["layer"][0]["encoding"]["x"]["title"] for panel in panels(one, 100)]
    assert [title.partition(", ")[2] for title in titles] == ["the beginning", "the end"]


def panels(one: PricedPlan, most_bars: int) -> list[alt.LayerChart]:
    return pipeline_panels(one, timeline(one), most_bars)


def test_of_many_microbatches_some_are_simulated_and_the_title_says_so() -> None:
    front = solved(fix={"pp": 4, "vpp": 1, "microbatches": 64, "tp": 1}, points=1)
    one = priced(front)
    few = timeline(one, most_passes=300)
    assert few.microbatches == 36
    assert few.microbatches % one.plan.pp == 0
    whole = timeline(one)
    # A microbatch more is one more of the slowest stage, whatever their number.
    each = (whole.formula_s - few.formula_s) / (64 - 36)
    assert each == pytest.approx((whole.simulated_s - few.simulated_s) / (64 - 36), rel=0.02)


def test_a_pipeline_model_of_someone_else_has_no_timeline() -> None:
    profile = autoshard.textbook()

    class Theirs(type(profile.pipeline)):  # type: ignore[misc]
        pass

    other = profile.replace(Theirs(name="theirs"))
    front = solved(costs=other, points=1, fix={"pp": 2})
    one = PricedPlan(
        front=front, point=front.points[0], problem=front.fastest().problem, profile=other
    )
    with pytest.raises(SpecError, match="the order of passes of the pipeline model 'theirs'"):
        timeline(one)


# The mesh


def test_on_a_switched_network_the_ways_of_an_axis_multiply_to_its_degree(
    stacked: ParetoFront,
) -> None:
    for place, point in enumerate(stacked.points):
        one = priced(stacked, place)
        table = mesh_table(one)
        degrees = {"tp": point.plan.tp, "cp": point.plan.cp, "fsdp": point.plan.fsdp}
        degrees |= {"dp": point.plan.dp, "pp": point.plan.pp}
        assert set(table["axis"]) == {axis for axis, degree in degrees.items() if degree > 1}
        assert table["bytes_per_s"].null_count() == 0
        if one.problem.cluster.chip.kind == "gpu":
            for (axis,), rows in table.group_by("axis"):
                assert rows["ways"].product() == degrees[str(axis)]


def test_an_axis_that_crosses_a_level_lies_on_both() -> None:
    """TP 4 and FSDP 16 on nodes of 8: two of the FSDP ranks share a node."""
    front = solved(fix={"tp": 4, "batch_split": 16, "seq_split": 1, "pp": 1, "cp": 1}, points=1)
    table = mesh_table(priced(front)).select("axis", "level", "ways")
    assert table.rows() == [("tp", "nvlink", 4), ("fsdp", "nvlink", 2), ("fsdp", "scale-out", 8)]


def test_on_a_torus_tensor_and_data_axes_lie_on_dimensions(textbook: ParetoFront) -> None:
    one = priced(textbook)
    every = levels(one.problem.cluster)
    assert every["level"].to_list() == ["ICI x", "ICI y", "ICI z"]
    assert every["chips"].product() == one.problem.cluster.chips
    table = mesh_table(one)
    assert table.filter(axis="tp")["ways"].product() >= one.plan.tp
    assert table.filter(axis="fsdp")["ways"].null_count() == table.filter(axis="fsdp").height


def test_replicas_on_several_pods_lie_on_dcn() -> None:
    front = solved("llama3-70b", chip="v5p", chips=None, pods=2, points=1)
    row = mesh_table(priced(front)).filter(axis="dp").row(0, named=True)
    assert (row["level"], row["degree"], row["bytes_per_s"]) == ("DCN", 2, 6.25e9)


# What the front beat, and a plan of one's own


@pytest.mark.parametrize(
    "asked",
    [
        {"chip": "v5p"},
        {"stack": "megatron"},
        {"where": "tp <= 2 and memory_gib < 40", "fix": {"pp": 2}},
        {"chip": "v5p", "stack": "maxtext"},
    ],
    ids=str,
)
def test_no_plan_of_the_sample_beats_the_front(asked: dict[str, Any]) -> None:
    """Every one is real and keeps the constraints: the proof of each point holds for it."""
    front = solved(global_batch_tokens=2**20, **asked)
    one = priced(front)
    others = other_plans(front, one.problem, one.profile)
    assert len(others) > 3
    assert others.meshes >= len(others)
    assert others.memory_bytes.max() <= one.problem.capacity_bytes
    for point in front.points:
        small = others.step_time_s[others.memory_bytes <= point.memory_bytes]
        assert small.min(initial=np.inf) >= point.lower_bound_s * (1 - 1e-9)
    assert others.step_time_s.min() >= front.points[0].lower_bound_s
    c = others.candidates
    if "where" in asked:
        assert (c.tp <= 2).all()
        assert (c.pp == 2).all()
        assert others.memory_bytes.max() < 40 * 2**30
    assert one.profile.legality.allows(one.problem, c).all()


def test_the_chart_has_the_others_behind_and_says_what_they_are(textbook: ParetoFront) -> None:
    drawn = textbook.chart().to_dict()
    assert drawn["layer"][0]["mark"]["type"] == "circle"
    assert len(drawn["layer"]) == len(textbook.chart(others=False).to_dict()["layer"]) + 1
    assert any("even stages and one remat rung" in line for line in drawn["title"]["subtitle"])


def test_an_own_plan_is_marked_with_the_price_of_the_fronts_costs(textbook: ParetoFront) -> None:
    point = textbook.points[1]

    def marked(plan: Any) -> dict[str, Any]:
        drawn = textbook.chart(plan, others=False).to_dict()
        values = [row for rows in drawn["datasets"].values() for row in rows]
        return next(row for row in values if set(row) == {"step", "memory_gib", "plan", "remat"})

    bare = marked(point.plan)
    assert bare["memory_gib"] == pytest.approx(point.memory_bytes / 2**30)
    assert bare == marked(point) == marked(textbook.solved(point))
    without = dataclasses.replace(point.plan, layout={})
    assert marked(without)["step"] <= bare["step"] * (1 + 1e-9)


def test_a_plan_that_breaks_a_rule_or_is_none_is_refused(textbook: ParetoFront) -> None:
    plan = textbook.points[0].plan
    with pytest.raises(SpecError, match="not the batch of"):
        textbook.chart(dataclasses.replace(plan, microbatches=3))
    with pytest.raises(SpecError, match="'half' is no rung of the remat ladder"):
        textbook.chart(dataclasses.replace(plan, remat=({"half": 32},)))
    with pytest.raises(SpecError, match=r"no layout of .* is"):
        textbook.chart(dataclasses.replace(plan, layout={"tp": "string"}))
    with pytest.raises(SpecError, match="plan must be a Plan, or have step_time_s"):
        textbook.chart("fast")


def test_a_front_of_unknown_costs_is_drawn_without_what_needs_them(textbook: ParetoFront) -> None:
    problem = {**textbook.problem, "costs": {**textbook.problem["costs"], "profile": "ours"}}
    unknown = dataclasses.replace(textbook, problem=problem, profile=None)
    assert unknown.chart().to_dict()["layer"][0]["mark"]["type"] == "line"
    unknown.fastest().chart_time().to_dict()
    with pytest.raises(SpecError, match="give the costs of the front"):
        unknown.fastest().chart_memory()
    with pytest.raises(SpecError, match="a bare plan has no price"):
        unknown.chart(unknown.points[0].plan)


def test_plans_that_costs_of_ones_own_have_just_found_are_drawn() -> None:
    """In the session that solved: the name in a file says nothing of an object."""
    ours = dataclasses.replace(autoshard.textbook(), name="ours")
    front = autoshard.solve("llama3-8b", chips=16, points=1, costs=ours)
    assert front.fastest().profile is ours
    front.fastest().chart_memory().to_dict()
    copied = pickle.loads(pickle.dumps(front))
    assert copied == front
    with pytest.raises(SpecError, match="give the costs of the front"):
        copied.fastest().chart_memory()


# All of them can be drawn


@pytest.mark.parametrize("kind", ["time", "memory", "pipeline", "mesh"])
def test_every_chart_is_a_specification_that_vega_takes(
    piped: ParetoFront, textbook: ParetoFront, kind: str
) -> None:
    for front in (piped, textbook):
        chart = getattr(front.fastest(), f"chart_{kind}")()
        svg = vl_convert.vegalite_to_svg(chart.to_dict())
        assert svg.startswith("<svg")
        assert "NaN" not in svg


def test_a_plan_of_one_chip_has_every_chart() -> None:
    front = solved("llama3-8b", chip="h200", chips=1, global_batch_seqs=1, points=1)
    plan = front.fastest()
    assert mesh_table(PricedPlan.of(plan)).height == 0
    for kind in ("time", "memory", "pipeline", "mesh"):
        assert getattr(plan, f"chart_{kind}")().to_dict()
