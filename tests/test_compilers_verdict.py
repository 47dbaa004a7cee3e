"""The arithmetic of the verdict on records made by hand, and what the command prints of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import run

from autoshard import compiled, compiler_verdict
from autoshard.compiled import Case, Collective, Compiled
from autoshard.compiler_cases import predict
from autoshard.compiler_exceptions import NamedException
from autoshard.compiler_report import compilers_dict, compilers_report
from autoshard.compiler_verdict import SHIPPED, Verdict, judge, load_records
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.plan import Plan

# LLaMA-3 8B in one layer: queries and output, keys and values, three matrices of the MLP.
LAYER = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
NORMS = 3 * 4096
TABLE = 128256 * 4096
#: Tokens of a microbatch of one rank.
TOKENS = 4096


def plan(layers: Sequence[int] = (1,), rung: str = "full", **degrees: Any) -> Plan:
    return Plan(layers_per_stage=tuple(layers), remat=tuple({rung: n} for n in layers), **degrees)


def case(given: Plan | None = None, **values: Any) -> Case:
    """One layer of LLaMA-3 8B by PyTorch on eight H100, in eight shards."""
    told: dict[str, Any] = {
        "name": "8b-fsdp8",
        "compiler": "torch",
        "model": "llama3-8b",
        "chip": "h100",
        "topology": "8",
        "seq_len": TOKENS,
        "stack": "torchtitan",
        "plan": given or plan(batch_split=8),
    }
    told["n_layers"] = sum(told["plan"].layers_per_stage)
    return Case(**{**told, **values})


def gather(bytes_: int, what: str, **values: Any) -> Collective:
    told = {"kind": "all-gather", "axes": ("fsdp",), "group_size": 8, "times": 2, "dtype": "bf16"}
    return Collective(**{**told, "array_bytes": bytes_, "what": what, **values})


#: bf16 weights are gathered for both passes, fp32 gradients are scattered.
COLLECTIVES = tuple(
    collective
    for what, count in (("layer", LAYER), ("embedding", TABLE), ("head", TABLE))
    for collective in (
        gather(2 * count, f"{what} weights"),
        gather(4 * count, f"{what} gradients", kind="reduce-scatter", times=1, dtype="f32"),
    )
)


def record(given: Case | None = None, **values: Any) -> Compiled:
    """What a perfect compiler says of the case: state by hand, the peak as predicted."""
    given = given or case()
    told: dict[str, Any] = {
        "case": given,
        # fp32 weights and two moments of each parameter in eight shards; int64 tokens and targets.
        "argument_bytes": 12 * (LAYER + NORMS + 2 * TABLE) // 8 + 16 * TOKENS,
        "temporary_bytes": 10**9,
        "peak_bytes": round(predict(given).peak_bytes),
        "limit_bytes": 80 * 10**9,
        "fits": True,
        "collectives": COLLECTIVES,
        "versions": {"torch": "2.9.0"},
        "date": "2026-11-21",
    }
    return Compiled(**{**told, **values})


def met(verdict: Verdict) -> dict[str, bool | None]:
    return {term.key: term.met for term in verdict.terms}


def both(**values: Any) -> list[Compiled]:
    """The perfect record, and another one held back."""
    return [record(), record(case(name="held", held_back=True), **values)]


def report(verdict: Verdict) -> str:
    """What is printed, however lines wrap."""
    return " ".join(compilers_report(verdict).split())


EVERYTHING_MET = dict.fromkeys(
    (
        *("state", "moved", "one_sided", "peak_median", "peak_p90"),
        *("fits", "refused_with_spare"),
    ),
    True,
)


def test_a_perfect_compiler_meets_every_term_without_error() -> None:
    verdict = judge(both())
    assert met(verdict) == EVERYTHING_MET
    assert verdict.all.state == 0
    assert verdict.all.moved == pytest.approx(0, abs=1e-12)
    assert verdict.all.peak_p90 == pytest.approx(0, abs=1e-9)
    (first, second) = verdict.judged
    assert first.moved_bytes == 7 / 8 * (2 * 2 + 4) * (LAYER + 2 * TABLE)
    assert [(cell.kind, cell.axes, cell.side) for cell in second.cells] == [
        ("all-gather", ("fsdp",), "both"),
        ("reduce-scatter", ("fsdp",), "both"),
    ]


ARGUMENTS = record().argument_bytes
PEAK = record().peak_bytes
BROKEN: dict[str, tuple[dict[str, Any], set[str]]] = {
    "state by 0.2 %": ({"argument_bytes": round(1.002 * ARGUMENTS)}, {"state"}),
    "bytes by 2.1 %": (
        {"collectives": (*COLLECTIVES, gather(int(0.021 * 2 * (LAYER + 2 * TABLE)), "again"))},
        {"moved"},
    ),
    "omitted": (
        {"collectives": (*COLLECTIVES, gather(4 * LAYER, "gradients", kind="all-reduce"))},
        {"one_sided"},
    ),
    "priced and not emitted": ({"collectives": COLLECTIVES[::2]}, {"one_sided"}),
    "peak by 10 %": ({"peak_bytes": round(PEAK / 1.1)}, {"peak_median"}),
    "peak by 25 %": ({"peak_bytes": round(PEAK / 1.25)}, {"peak_median", "peak_p90"}),
    "refused just above the prediction": (
        {"limit_bytes": round(1.05 * PEAK), "fits": False},
        {"fits"},
    ),
    "refused with room to spare": (
        {"limit_bytes": round(1.2 * PEAK), "fits": False},
        {"fits", "refused_with_spare"},
    ),
    "accepted against the prediction": ({"limit_bytes": round(0.95 * PEAK)}, {"fits"}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_term_is_missed_where_the_compiler_says_otherwise(what: str) -> None:
    values, missed = BROKEN[what]
    verdict = judge(both(**values))
    assert {key for key, said in met(verdict).items() if not said} == missed


def test_peak_memory_is_judged_by_plans_held_back_alone() -> None:
    verdict = judge([record(peak_bytes=2 * PEAK), *both()[1:]])
    assert met(verdict) == EVERYTHING_MET
    assert verdict.all.peak_p90 == pytest.approx(0.45)  # the 90th percentile of 0 and 50 %
    alone = judge([record()])
    assert met(alone) == EVERYTHING_MET | {"peak_median": None, "peak_p90": None}
    assert "no case" in report(alone)


def test_the_error_is_the_worst_over_cases_kinds_and_axes() -> None:
    less = gather(int(2 * (LAYER + 2 * TABLE) / 1.5), "weights")
    scattered = [c for c in COLLECTIVES if c.kind == "reduce-scatter"]
    verdict = judge(both(collectives=(less, *scattered)))
    assert verdict.all.moved == pytest.approx(0.5)
    (row,) = compilers_dict(verdict)["collectives"][:1]
    assert (row["kind"], row["cases"], row["worst_case"]) == ("all-gather", 2, "held")
    assert row["worst_error"] == pytest.approx(0.5)
    assert row["median_error"] == pytest.approx(0.25)
    said = "all-gather along fsdp in held: predicted 0.919 backward embedding weights, "
    assert said in report(verdict)


# Small ones, and exceptions by name.


def test_sums_of_scalars_are_counted_apart_with_their_bytes() -> None:
    loss = gather(4, "loss", kind="all-reduce", times=3, dtype="f32")
    verdict = judge(both(collectives=(*COLLECTIVES, loss)))
    assert met(verdict) == EVERYTHING_MET
    told = compilers_dict(verdict)["small"]
    assert (told["kinds"], told["cases"]) == (1, 1)
    assert told["moved_bytes"] == 3 * 2 * 7 / 8 * 4
    assert "1 kind of collectives in 1 case, 21 bytes in all" in report(verdict)


def test_many_small_ones_of_a_kind_are_no_longer_small() -> None:
    moved = judge([record()]).judged[0].moved_bytes
    assert moved is not None
    part = int(0.9e-4 * moved)
    parts = [gather(part, f"part {n}", kind="permute", times=1) for n in range(2)]
    assert judge([record(collectives=(*COLLECTIVES, *parts[:1]))]).all.one_sided == 0
    assert judge([record(collectives=(*COLLECTIVES, *parts))]).all.one_sided == 1


def exception(**values: Any) -> NamedException:
    told: dict[str, Any] = {
        "name": "padding",
        "compiler": "torch",
        "side": "compiled",
        "kind": "permute",
        "axes": ("fsdp",),
        "what": "padding*",
        "reason": "Shards are padded.",
    }
    return NamedException(**{**told, **values})


def test_a_named_exception_excuses_a_collective_and_is_shown_with_its_reason() -> None:
    passed = gather(LAYER, "padding of shards", kind="permute", times=1)
    records = [record(collectives=(*COLLECTIVES, passed))]
    assert judge(records).all.one_sided == 1
    verdict = judge(records, [exception()])
    assert verdict.all.one_sided == 0
    (row,) = compilers_dict(verdict)["one_sided"]
    assert (row["moved_bytes"], row["cases"]) == (LAYER, 1)
    assert "padding: Shards are padded." in report(verdict)


@pytest.mark.parametrize(
    "other", [{"compiler": "xla-tpu"}, {"axes": ("data",)}, {"what": "loss"}, {"side": "priced"}]
)
def test_an_exception_excuses_nothing_else_and_is_then_named_as_unused(other: Any) -> None:
    passed = gather(LAYER, "padding", kind="permute", times=1)
    verdict = judge([record(collectives=(*COLLECTIVES, passed))], [exception(**other)])
    assert verdict.all.one_sided == 1
    assert [e.name for e in verdict.unused] == ["padding"]
    assert "Exception padding covers nothing." in report(verdict)


def test_what_is_priced_and_not_emitted_may_be_excused_too() -> None:
    records = [record(collectives=COLLECTIVES[::2])]
    none = exception(side="priced", kind="reduce-scatter", axes=("*",), what="* gradients")
    assert judge(records, [none]).all.one_sided == 0


def test_an_all_reduce_stands_for_both_halves_only_by_name() -> None:
    # Backward, the weights are gathered and the gradients scattered: say both at once.
    reduced = [
        replace(c, kind="all-reduce", times=1) for c in COLLECTIVES if c.kind == "reduce-scatter"
    ]
    once = [replace(c, times=1) for c in COLLECTIVES if c.kind == "all-gather"]
    # Half of the bytes of the all-reduce of fp32 gradients are too many for bf16 weights.
    halves = exception(
        name="halves", kind="all-reduce", what="*", stands_for=("all-gather", "reduce-scatter")
    )
    records = [record(collectives=(*reduced, *once))]
    assert judge(records).all.one_sided == 2  # all-reduces emitted, reduce-scatters not
    verdict = judge(records, [halves])
    assert verdict.all.one_sided == 0
    assert {cell.kind: cell.error for cell in verdict.judged[0].cells} == pytest.approx(
        {"all-gather": 4 / 6 - 1, "reduce-scatter": 0.0}
    )
    double = replace(halves, stands_for=("reduce-scatter",), excess=0.5)
    (_, scattered) = judge(records, [double]).judged[0].cells
    assert scattered.error == pytest.approx(0.0)


def test_every_exception_covers_something_that_a_compiler_does() -> None:
    records = load_records() if SHIPPED.is_file() else ()
    assert [e.name for e in judge(records).unused] == []


def test_a_program_that_was_refused_unread_is_judged_by_what_is_known() -> None:
    refused = record(
        argument_bytes=0, temporary_bytes=None, peak_bytes=0, limit_bytes=10**9, fits=False
    )
    verdict = judge([replace(refused, collectives=())])
    assert (verdict.all.state, verdict.all.moved, verdict.all.peak_median) == (None, None, None)
    assert (verdict.all.fits, verdict.all.one_sided) == (1.0, 0)
    assert "nor its collectives are judged: 8b-fsdp8." in report(verdict)


# What is predicted of a case.


def moved(given: Case, kind: str, axes: tuple[str, ...]) -> float:
    return sum(m.moved_bytes for m in predict(given).moves if (m.kind, m.axes) == (kind, axes))


def stages(stage: int, **degrees: Any) -> Case:
    given = plan((2,) * 4, batch_split=2, pp=4, microbatches=8, **degrees)
    return case(given, topology=str(given.chips_used), stage=stage)


def test_the_embedding_is_on_the_first_stage_and_the_head_on_the_last() -> None:
    weights = [moved(stages(stage), "all-gather", ("fsdp",)) for stage in range(4)]
    # Half of the ranks have it. In a pipeline, FSDP2 gathers bf16 once for each of 8 microbatches,
    # as a pass finds what the one before left, and once more.
    assert weights == [n * (8 + 1) * 2 / 2 for n in (*_sizes(TABLE), *_sizes(TABLE)[::-1])]
    state = [predict(stages(stage)).state_bytes for stage in range(4)]
    assert state[0] - state[1] == state[3] - state[2] == 12 * TABLE / 2


def _sizes(table: int) -> tuple[int, int]:
    return 2 * LAYER + table, 2 * LAYER


@pytest.mark.parametrize("vpp", [1, 2])
def test_each_chunk_passes_activations_on_and_gradients_back(vpp: int) -> None:
    sends = [moved(stages(stage, vpp=vpp), "send", ("stage",)) for stage in range(4)]
    one = 8 * 2 * TOKENS * 4096  # microbatches, bf16, a sequence each
    assert sends == [one * chunks for chunks in (2 * vpp - 1, 2 * vpp, 2 * vpp, 2 * vpp - 1)]


def test_tensor_parallelism_gathers_and_scatters_around_each_block() -> None:
    def tensor(rung: str, kind: str) -> float:
        given = case(plan((4,), rung, batch_split=2, tp=4, microbatches=3))
        return moved(given, kind, ("tensor",)) / (3 * 3 / 4 * 2 * TOKENS * 4096)

    # Two blocks and two passes a layer, and the ends; full remat gathers the input of both blocks
    # again, and reduces attention's output.
    assert tensor("none", "all-gather") == 4 * 4 + 2
    assert tensor("none", "reduce-scatter") == 4 * 4 + 2
    assert tensor("full", "all-gather") - tensor("none", "all-gather") == 4 * 2
    assert tensor("full", "reduce-scatter") - tensor("none", "reduce-scatter") == 4


def test_gradients_are_reduced_between_replicas_by_fsdp2_with_each_microbatch() -> None:
    given = case(plan(batch_split=4, dp=2, microbatches=5))
    assert moved(given, "all-reduce", ("data",)) == 5 * 2 / 2 * 4 * (LAYER + 2 * TABLE) / 4
    in_pipeline = moved(stages(1, dp=2), "all-reduce", ("data",))
    assert in_pipeline == 2 / 2 * 4 * 2 * LAYER / 2


def test_on_a_slice_keys_and_values_are_gathered_or_passed_round() -> None:
    tpu = {"compiler": "xla-tpu", "chip": "tpu-v5p", "topology": "2x2x4", "stack": "maxtext"}
    kv = 2 * 2 * 1024 * TOKENS // 4
    split = case(plan((2,), batch_split=4, seq_split=4), **tpu)
    assert moved(split, "all-gather", ("sequence",)) == 2 * 2 * 3 * kv
    assert moved(split, "reduce-scatter", ("sequence",)) == 2 * 3 * kv
    assert moved(split, "all-gather", ("fsdp", "sequence")) > 0
    ring = case(plan((2,), batch_split=4, cp=4), **tpu)
    # Forward, again with remat, backward; and gradients go home.
    assert moved(ring, "permute", ("context",)) == 2 * (3 + 3 + 3 + 4) * kv
    assert predict(ring).batch_bytes == 4 * TOKENS / 4


def test_the_facts_of_a_case_stand_for_those_of_its_stack() -> None:
    narrow = predict(
        case(facts={"gradient_bytes": 2, "optimizer_bytes": 4, "gathered_layers": 1.0})
    )
    usual = predict(case())
    assert narrow.state_bytes == pytest.approx(usual.state_bytes * 8 / 12)
    assert narrow.memory["optimizer state"] == pytest.approx(usual.memory["optimizer state"] / 2)
    assert narrow.memory["gathered weights"] == usual.memory["gathered weights"] / 2
    scattered = [
        sum(m.moved_bytes for m in found.moves if m.kind == "reduce-scatter")
        for found in (narrow, usual)
    ]
    assert scattered[0] == scattered[1] / 2


def test_a_peak_is_that_of_tensors_without_the_driver_and_the_allocator() -> None:
    given = predict(case())
    assert "framework overhead" not in given.memory
    assert given.peak_bytes == sum(given.memory.values()) + 16 * TOKENS


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"facts": {"gathered_layer": 1}}, "'gathered_layer' is no fact"),
        ({"facts": {"name": "other"}}, "'name' is no fact"),
        ({"stage": 1}, "stage 1 is none of the plan's 1"),
        ({"n_layers": 2}, "deals 1 layers, and n_layers = 2"),
        ({"given": plan(rung="minimal", batch_split=8)}, "has no remat 'minimal'"),
        ({"given": plan(batch_split=16)}, "16 chips, and there are 8"),
        ({"topology": "2x2"}, "topology '2x2'"),
        ({"compiler": "gcc"}, "compiler 'gcc' is not one of xla-tpu, torch"),
        ({"model": "llama9"}, "llama9"),
    ],
)
def test_a_case_that_cannot_be_is_an_error_that_names_it(values: Any, said: str) -> None:
    with pytest.raises(SpecError, match="case '8b-fsdp8'") as error:
        predict(case(**values))
    assert said in str(error.value)


def test_a_collective_along_an_axis_that_no_mesh_has_is_an_error() -> None:
    odd = gather(8, "weights", axes=("pod",))
    with pytest.raises(SpecError, match=r"case '8b-fsdp8'.*'pod'"):
        judge([record(collectives=(odd,))])


# The command.


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "compilers.json"
    compiled.write(path, both())
    monkeypatch.setattr(compiler_verdict, "SHIPPED", path)
    return path


@pytest.mark.usefixtures("shipped")
def test_the_command_prints_every_term_and_every_plan() -> None:
    result = run("validate", "--compilers")
    assert result.exit_code == 0
    assert "2 plans compiled (2 by torch), 1 held back" in result.stdout
    assert result.stdout.count(" met") == len(EVERYTHING_MET)
    assert "8b-fsdp8" in result.stdout
    assert "1 plan held back" in result.stdout


@pytest.mark.usefixtures("shipped")
def test_the_json_has_every_plan_once() -> None:
    told = json.loads(run("validate", "--compilers", "--json").stdout)
    assert told["schema"] == "autoshard.validate-compilers/1"
    assert [row["name"] for row in told["plans"]] == ["8b-fsdp8", "held"]
    assert told["plans"][0]["plan"]["fsdp"] == 8
    assert {term["key"]: term["met"] for term in told["terms"]} == EVERYTHING_MET
    assert json.loads(json.dumps(told, allow_nan=False)) == told


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize(
    "option", [("--costs", "textbook"), ("--measurements", "x.csv"), ("--html", "x.html")]
)
def test_options_about_measured_runs_do_not_go_with_compiled_plans(option: tuple[str, str]) -> None:
    result = run("validate", "--compilers", *option)
    assert result.exit_code == 2
    assert f"{option[0]} is about measured runs" in result.stderr


@pytest.mark.parametrize("text", ["", "{}", '{"compiled": []}', '{"compiled": [{"case": 1}]}'])
def test_a_file_without_records_is_a_sentence(shipped: Path, text: str) -> None:
    shipped.write_text(text, encoding="utf-8")
    result = run("validate", "--compilers")
    assert result.exit_code == 2
    assert "compilers.json: " in result.stderr
    assert "docs/compilers.md" in result.stderr


def test_no_file_is_a_sentence(shipped: Path) -> None:
    shipped.unlink()
    result = run("validate", "--compilers")
    assert result.exit_code == 2
    assert "cannot be read (No such file or directory)" in result.stderr
