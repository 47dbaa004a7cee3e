"""Every published row is a run that can be priced, or says why not; what a run must satisfy."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from pathlib import Path

import pytest

from autoshard.costmodels.errors import SpecError
from autoshard.run_checks import AGREE, stated_times
from autoshard.run_memory import predicted_memory, usable_bytes
from autoshard.run_models import flops_per_token
from autoshard.run_table import Row, read_rows
from autoshard.runs import Excluded, Run, load_runs, load_table

MEASURED = Path(__file__).parents[1] / "autoshard" / "measured"
RUNS, EXCLUDED = load_runs()
BY_ID = {run.id: run for run in RUNS}
ROWS: dict[str, Row] = {
    row.id: row for name in ("gpu.csv", "tpu.csv") for row in read_rows(MEASURED / name)[0]
}

SCORED = {
    "bs": 36,
    "dgxc": 130,
    "ibm": 4,
    "iw": 15,
    "kor": 8,
    "lf": 126,
    "mb": 36,
    "mlm": 1,
    "mt-pr": 8,
    "mt-v4": 11,
    "mt-v5e": 19,
    "mt-v5p": 14,
    "nt": 26,
    "tao": 3,
    "tp": 8,
    "tr": 22,
    "tt": 33,
    "vt": 109,
}
REPORTED = {
    "bs": 12,
    "dgxc": 8,
    "llama3": 2,
    "mb": 10,
    "mlm": 12,
    "mt-pr": 14,
    "mt-v5e": 1,
    "tao": 5,
    "tp": 3,
    "tr": 4,
    "tt": 4,
}
REASONS = {
    "experts": 166,
    "micro batch not stated": 25,
    "recompute not stated": 23,
    "precision nvfp4": 13,
    "shape not stated": 9,
    "tier C": 6,
    "local attention": 5,
    "mesh not stated": 4,
    "precision not stated": 3,
    "no throughput": 3,
    "chips not stated": 2,
    "duplicate": 2,
}


def column(run: Run, name: str) -> int:
    """One degree of the run's only candidate."""
    return int(getattr(run.candidates, name)[0])


def test_every_row_is_a_run_or_excluded_and_never_both() -> None:
    ids = [run.id for run in RUNS] + [row.id for row in EXCLUDED]
    assert sorted(ids) == sorted(ROWS)
    assert len(ids) == 766 + 179


def test_runs_by_source_and_use() -> None:
    assert Counter(run.source for run in RUNS if run.used_for == "score") == SCORED
    assert Counter(run.source for run in RUNS if run.used_for == "report") == REPORTED


def test_exclusions_by_reason() -> None:
    assert Counter(row.reason for row in EXCLUDED) == REASONS
    assert all(row.detail.endswith(".") for row in EXCLUDED)


def test_mesh_is_the_cluster() -> None:
    wrong = [r.id for r in RUNS if r.candidates.chips_used[0] != r.problem.cluster.chips]
    assert wrong == []


def test_batch_is_replicas_times_microbatches() -> None:
    for run in RUNS:
        degrees = ("dp", "batch_split", "microbatches", "micro_batch_size")
        batch = math.prod(column(run, name) for name in degrees)
        assert batch == run.problem.workload.global_batch_seqs, run.id


def test_tokens_per_second_agree_with_the_step_time() -> None:
    for run in RUNS:
        row = ROWS[run.id]
        rate, step, chips = (
            row.number("tokens_per_s_per_chip"),
            row.number("step_time_s"),
            row.count("n_chips"),
        )
        assert run.step_time_s is not None
        if rate and step and chips:
            tokens = run.problem.workload.global_batch_tokens
            assert tokens / step == pytest.approx(rate * chips, rel=0.01), run.id
            assert run.step_time_s == step


def test_stated_flops_follow_from_the_shapes() -> None:
    """Where a source states TFLOP/s under a clear convention, ours are the same: shapes are right.

    Megatron-Bridge rounds tokens/s in three rows; llm-foundry counts a little more for models below
    two billion parameters.
    """
    apart = []
    for run in RUNS:
        row, problem = ROWS[run.id], run.problem
        stated, chips = row.number("tflops_per_chip"), row.count("n_chips")
        flops = flops_per_token(
            problem.model, problem.workload.seq_len, row.text("tflops_convention")
        )
        if stated and flops and chips and run.step_time_s:
            ours = problem.workload.global_batch_tokens * flops / run.step_time_s / chips / 1e12
            if ours != pytest.approx(stated, rel=0.01):
                apart.append(run.id)
                assert ours == pytest.approx(stated, rel=0.031), run.id
    assert Counter(run_id.split("-")[0] for run_id in apart) == {"lf": 18, "mb": 3}


def test_columns_of_built_in_rows_agree_far_better_than_asked_of_others() -> None:
    for run in RUNS:
        times = stated_times(run, ROWS[run.id]).values()
        assert not times or max(times) < (1 + AGREE / 3) * min(times), run.id


def test_mpt_parameters_are_the_published_ones() -> None:
    counts = {
        run.id: int(found[1])
        for run in RUNS
        if (found := re.search(r"(\d{8,}) params", ROWS[run.id].text("notes")))
    }
    assert len(counts) == 126
    assert {run_id: BY_ID[run_id].problem.model.total_params for run_id in counts} == counts


def test_remat_shares_are_rungs_of_the_ladder_and_sum_to_one() -> None:
    for run in RUNS:
        assert set(run.remat) <= {rung.name for rung in run.stack.ladder}, run.id
        assert sum(run.remat.values()) == pytest.approx(1.0)


def test_recipe_of_the_problem_is_that_of_the_stack_and_allows_the_plan() -> None:
    for run in RUNS:
        assert run.problem.recipe == run.stack.recipe
        assert column(run, "reshard") in run.problem.recipe.reshard, run.id


def test_stack_runs_on_the_chip() -> None:
    assert [r.id for r in RUNS if r.problem.cluster.chip.kind not in r.stack.chips] == []


def test_memory_has_a_metric_and_fits_the_chip() -> None:
    for run in RUNS:
        assert (run.memory_bytes is None) == (run.memory_metric == "")
        if run.memory_bytes is not None:
            # nvidia-smi's 80 GB are 80 GiB, 7 % more than the data sheet's.
            assert run.memory_bytes < 1.074 * run.problem.cluster.chip.hbm_bytes, run.id


def test_memory_metrics_by_source() -> None:
    found = {(run.source, run.memory_metric) for run in RUNS if run.memory_metric}
    assert found == {
        *(("bs", "nvidia-smi"), ("tt", "reserved"), ("tao", "reserved")),
        *(("nt", "unnamed"), ("dgxc", "unnamed")),
    }


@pytest.mark.parametrize(
    ("run_id", "degrees"),
    [
        # ZeRO-1 over 8 data ranks, TP 4, PP 12: 2048 / (8 * 2) microbatches.
        ("bs-107", {"batch_split": 8, "tp": 4, "pp": 12, "microbatches": 128, "reshard": 1}),
        ("kor-003", {"tp": 8, "pp": 8, "vpp": 3, "microbatches": 64, "batch_split": 1}),
        ("ibm-001", {"dp": 16, "batch_split": 8, "reshard": 3}),  # hybrid FSDP, inside the node
        ("dgxc-283", {"dp": 16, "batch_split": 128}),
        ("vt-001", {"dp": 64, "batch_split": 1}),  # no distributed optimizer
        ("tt-005", {"batch_split": 4, "seq_split": 2, "cp": 1}),  # FSDP over context ranks too
        ("tr-v6e-405b-oct24", {"batch_split": 128, "tp": 4, "pods": 2, "dp": 1}),
        ("mt-v5e-16b-32x256", {"dp": 32, "batch_split": 256, "pods": 32}),
        ("iw-70b-128k-256-bf16", {"batch_split": 64, "seq_split": 8, "micro_batch_size": 1}),
        ("mt-v5p-llama3-8b-cp64-64k-allgather", {"batch_split": 1, "seq_split": 64}),
    ],
)
def test_plans_read_by_hand(run_id: str, degrees: dict[str, int]) -> None:
    assert {name: column(BY_ID[run_id], name) for name in degrees} == degrees


@pytest.mark.parametrize(
    ("run_id", "remat"),
    [
        ("kor-004", {"selective": 1.0}),
        ("mb-200", {"none": 27 / 32, "full": 5 / 32}),
        ("tt-036", {"none": 0.5, "full": 0.5}),
        ("tt-041", {"selective_op": 1.0}),
        ("dgxc-278", {"save_dot_except_mlpwi": 1.0}),
        ("dgxc-284", {"save_dot_except_mlp": 1.0}),
        ("dgxc-305", {"minimal": 1.0}),
        ("tr-v6e-8b-8-jul25", {"save_dot_except_mlp": 1.0}),
        ("tr-v6e-70b-256-jul25", {"save_qkv_proj": 1.0}),
        ("iw-70b-64-bf16", {"save_qkv_context": 1.0}),
        ("iw-405b-256-bf16-dec25", {"full": 1.0}),
    ],
)
def test_recomputation_read_by_hand(run_id: str, remat: dict[str, float]) -> None:
    assert BY_ID[run_id].remat == pytest.approx(remat)


def nic(run_id: str) -> float:
    return BY_ID[run_id].problem.cluster.chip.scale_out_bytes_per_s


def test_networks_are_those_of_the_sources() -> None:
    assert nic("bs-107") == nic("bs-038") == 4 * 100e9 / 8 / 8
    assert nic("lf-216") == 1600e9 / 8 / 8
    assert nic("vt-001") == 800e9 / 8 / 8
    assert (nic("ibm-001"), nic("ibm-002")) == (400e9 / 8 / 8, 800e9 / 8 / 8)
    assert nic("tt-008") == 400e9 / 8
    assert nic("kor-003") == 2.5e10  # not stated: the DGX A100


def test_only_llama3_has_pods() -> None:
    pods = {r.id: r.problem.cluster.pods for r in RUNS if r.problem.cluster.chip.kind == "gpu"}
    assert {k: v for k, v in pods.items() if v > 1} == {"llama3-001": 4, "llama3-002": 8}


def test_an_nvl72_rack_is_one_domain() -> None:
    domains = {
        run.problem.cluster.chip.domain_chips
        for run in RUNS
        if run.problem.cluster.chip.name in ("gb200", "gb300")
    }
    assert domains == {72}


def test_ironwood_is_priced_by_half_chips() -> None:
    cluster = BY_ID["iw-70b-64-bf16"].problem.cluster
    assert (cluster.chips, cluster.topology) == (128, (8, 4, 4))
    assert 2 * cluster.chip.hbm_bytes == 192_000_000_000
    assert all(axis.wraps for axis in cluster.torus)


def test_stacks_are_adjusted_where_the_row_says_so() -> None:
    stacks = {run_id: run.stack for run_id, run in BY_ID.items()}
    assert stacks["bs-038"].blocking
    assert not stacks["bs-107"].blocking
    assert stacks["bs-107"].recipe.grad_bytes == 4.0
    assert stacks["bs-038"].recipe.grad_bytes == 2.0
    assert (stacks["tt-001"].operators, stacks["tt-002"].operators) == ("eager", "compiled")
    assert (stacks["tt-011"].tp_overlap, stacks["tt-012"].tp_overlap) == (False, True)
    assert stacks["tt-023"].fp8_recipe == "rowwise"
    assert stacks["tao-006"].fp8_recipe == "block"
    assert stacks["dgxc-056"].fp8_recipe == "delayed"
    assert stacks["mb-200"].fp8_recipe == "current"
    assert stacks["lf-216"].recipe.state_bytes == 8.0
    assert stacks["lf-030"].recipe.state_bytes == 16.0
    assert stacks["tp-e2e-8b"].recipe.optimizer_bytes == 0.1
    assert stacks["iw-70b-64-bf16"].recipe.optimizer_bytes == 6.0
    assert stacks["mt-v4-22b-1x128"].attention == "unfused"
    assert stacks["dgxc-278"].attention == "cudnn"


def test_known_outliers_are_flagged_and_still_scored() -> None:
    flagged = {run.id for run in RUNS if "known-outlier" in run.flags}
    assert flagged == {
        *("vt-016", "nt-020", "mt-v5p-128b-2x512", "mt-v5p-1024b-1x2048", "mt-v4-52b-2x384"),
    }
    assert {BY_ID[run_id].used_for for run_id in flagged} == {"score"}


# What ran out of memory


def test_runs_that_ran_out_of_memory_have_a_plan_and_no_time() -> None:
    refused = load_table().out_of_memory
    assert [run.id for run in refused] == [f"bs-oom-{k}" for k in range(1, 7)]
    assert {run.step_time_s for run in refused} == {None}
    assert {run.source for run in refused} == {"bs"}
    wrong = [r.id for r in refused if r.candidates.chips_used[0] != r.problem.cluster.chips]
    assert wrong == []
    assert not {run.id for run in refused} & {run.id for run in RUNS}


def test_most_runs_that_ran_out_of_memory_are_predicted_not_to_fit() -> None:
    fit = [
        run.id
        for run in load_table().out_of_memory
        if (predicted_memory(run) or 0.0) <= usable_bytes(run)
    ]
    # 206B with heads of 112; the source measured 67 GB for 203B under the same plan (bs-101).
    assert fit == ["bs-oom-6"]


def test_readme_names_every_source_and_flag() -> None:
    readme = (MEASURED / "README.md").read_text(encoding="utf-8")
    words = {run.source for run in RUNS} | {row.source for row in EXCLUDED}
    words |= {flag for run in RUNS for flag in run.flags}
    assert sorted(word for word in words if f"`{word}`" not in readme) == []


# Tables that nobody has seen.

GPU_CELLS = {
    "id": "new-1",
    "year": "2026",
    "chip": "H100 SXM5 80GB",
    "n_chips": "64",
    "framework": "NeMo 2.7",
    "model": "Llama-3-8B",
    "n_layers": "32",
    "d_model": "4096",
    "d_ff": "14336",
    "n_heads": "32",
    "n_kv_heads": "8",
    "d_head": "128",
    "vocab": "128256",
    "seq_len": "8192",
    "global_batch_seqs": "512",
    "micro_batch_seqs": "2",
    "tp": "2",
    "pp": "1",
    "recompute": "None",
    "precision": "BF16-mixed",
    "step_time_s": "12.5",
    "notes": "tier:A",
}
TPU_CELLS = {
    "id": "new-1",
    "chip": "TPU v5p",
    "n_chips": "64",
    "topology": "4x4x4",
    "framework": "MaxText",
    "model": "Llama3-8B",
    "n_layers": "32",
    "d_model": "4096",
    "d_ff": "14336",
    "n_heads": "32",
    "n_kv_heads": "8",
    "d_head": "128",
    "vocab": "128256",
    "seq_len": "8192",
    "global_batch_seqs": "256",
    "ici_fsdp": "64",
    "remat_policy": "full",
    "precision": "bf16",
    "step_time_s": "6.5",
    "notes": "",
}


def load(folder: Path, cells: dict[str, str]) -> tuple[list[Run], list[Excluded]]:
    path = folder / "new.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(cells))
        writer.writeheader()
        writer.writerow(cells)
    return load_runs(path)


@pytest.mark.parametrize("cells", [GPU_CELLS, TPU_CELLS])
def test_a_table_with_few_columns_is_enough(tmp_path: Path, cells: dict[str, str]) -> None:
    (run,), excluded = load(tmp_path, cells)
    assert (run.id, run.source, run.used_for, excluded) == ("new-1", "new", "score", [])
    assert run.candidates.chips_used[0] == 64


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"framework": "DreamTrainer 9"}, "framework not known"),
        ({"framework": ""}, "framework not known"),
        ({"chip": "MI300X"}, "chip not known"),
        ({"chip": "B200 or GB200"}, "chip not named"),
        ({"recompute": "every third Tuesday"}, "recompute not known"),
        ({"recompute": ""}, "recompute not stated"),
        ({"precision": "MXFP4"}, "precision mxfp4"),
        ({"precision": "fp4"}, "precision fp4"),
        ({"precision": "fp32"}, "precision not known"),
        ({"precision": ""}, "precision not stated"),
        ({"chip": "A100-80GB", "precision": "fp8"}, "not consistent"),
        ({"n_kv_heads": "7"}, "not consistent"),
        ({"n_chips": "63"}, "mesh contradictory"),
        ({"tp": ""}, "mesh not stated"),
        ({"tp": "0"}, "mesh not stated"),
        ({"global_batch_seqs": "511"}, "batch does not divide"),
        ({"micro_batch_seqs": ""}, "micro batch not stated"),
        ({"step_time_s": ""}, "no throughput"),
        ({"d_ff": ""}, "shape not stated"),
        ({"notes": "tier:C; who knows"}, "tier C"),
        ({"step_time_s": "", "tokens_per_s_per_chip": "1e9"}, "faster than the chip's peak"),
        ({"step_time_s": "125000"}, "slower than 0.1 % of the peak"),
        ({"tokens_per_s_per_chip": "4000"}, "columns disagree"),
        (
            {"tflops_per_chip": "999", "tflops_convention": "6N + 12*L*h*s, full"},
            "columns disagree",
        ),
    ],
)
def test_odd_words_exclude_a_row_with_a_sentence(
    tmp_path: Path, changed: dict[str, str], reason: str
) -> None:
    runs, (row,) = load(tmp_path, GPU_CELLS | changed)
    assert runs == []
    assert row.reason == reason
    assert row.detail.endswith(".")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"framework": "DreamTrainer 9"}, r"near the framework 'DreamTrainer 9'; .*torchtitan"),
        ({"chip": "MI300X"}, r"no chip is known by the name 'MI300X'; known: .*h100"),
        ({"precision": "fp32"}, r"no cost model covers 'fp32'; known: bf16"),
        ({"recompute": "every third Tuesday"}, r"has no rung for 'every third .*'; known: none"),
        ({"tokens_per_s_per_chip": "4000"}, r"step_time_s 12.5 s, tokens_per_s_per_chip 16.38 s"),
        ({"step_time_s": "0.125"}, r"a step of 0.125 s is 2.73e\+03 % of the peak of h100"),
    ],
)
def test_a_row_that_is_left_out_says_what_would_fit(
    tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    _, (row,) = load(tmp_path, GPU_CELLS | changed)
    assert re.search(said, row.detail)


def test_the_source_is_the_column_or_the_file_and_never_the_id(tmp_path: Path) -> None:
    for cells, source in (
        ({"id": "tt-x1", "source": "our cluster"}, "our cluster"),
        ({"id": "tt-x1"}, "new"),
        ({"id": "10", "source": ""}, "new"),
        # A copy of a built-in row is that row.
        ({"id": "tt-001", "source": "our cluster"}, "tt"),
    ):
        (run,), _ = load(tmp_path, GPU_CELLS | cells)
        assert run.source == source
    _, (row,) = load(tmp_path, GPU_CELLS | {"source": "our cluster", "chip": "MI300X"})
    assert row.source == "our cluster"


def test_a_users_run_out_of_memory_needs_no_time(tmp_path: Path) -> None:
    path = tmp_path / "ours.csv"
    cells = GPU_CELLS | {"outcome": "OOM", "step_time_s": ""}
    path.write_text(f"{','.join(cells)}\n{','.join(cells.values())}\n", encoding="utf-8")
    table = load_table(path)
    assert (table.runs, table.excluded) == ((), ())
    assert [run.id for run in table.out_of_memory] == ["new-1"]


@pytest.mark.parametrize(
    ("changed", "remat"),
    [
        ({"recompute": "no recompute"}, {"none": 1.0}),
        ({"recompute": "Full (uniform, 1)"}, {"full": 1.0}),
        ({"recompute": "SELECTIVE"}, {"selective": 1.0}),
        ({"recompute": "core attention only"}, {"selective": 1.0}),
        ({"recompute": "full, 8 layers"}, {"none": 0.75, "full": 0.25}),
        ({"framework": "TorchTitan", "recompute": "SAC per op"}, {"selective_op": 1.0}),
        ({"framework": "LLM Foundry", "recompute": "True"}, {"full": 1.0}),
        (
            {"framework": "MaxText on GPU", "recompute": "minimal_flash"},
            {"minimal_with_context": 1},
        ),
    ],
)
def test_synonyms_of_recomputation(
    tmp_path: Path, changed: dict[str, str], remat: dict[str, float]
) -> None:
    (run,), _ = load(tmp_path, GPU_CELLS | changed)
    assert run.remat == pytest.approx(remat)


def test_an_unknown_model_is_reported_and_not_scored(tmp_path: Path) -> None:
    (run,), _ = load(tmp_path, GPU_CELLS | {"model": "Zebra-8B"})
    assert "mlp-assumed" in run.flags
    assert run.used_for == "report"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"ici_fsdp": "32"}, "mesh contradictory"),
        ({"topology": "8x8x8"}, "chips contradictory"),
        ({"remat_policy": "invented"}, "recompute not known"),
        ({"chip": "v9x"}, "chip not known"),
        ({"global_batch_seqs": "100"}, "batch does not divide"),
        ({"n_chips": "7", "topology": "", "ici_fsdp": "7"}, "batch does not divide"),
        ({"model": "Gemma3-12B"}, "local attention"),
        ({"notes": "duplicate of another run"}, "duplicate"),
    ],
)
def test_odd_tpu_rows_are_excluded(tmp_path: Path, changed: dict[str, str], reason: str) -> None:
    runs, (row,) = load(tmp_path, TPU_CELLS | changed)
    assert (runs, row.reason) == ([], reason)


@pytest.mark.parametrize("cell", ["many", "12.5", "inf", "-3", "1e300"])
def test_a_malformed_cell_is_named(tmp_path: Path, cell: str) -> None:
    with pytest.raises(SpecError, match=r"new\.csv: row 'new-1': column 'n_layers': must be "):
        load(tmp_path, GPU_CELLS | {"n_layers": cell})


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    cells = {name: cell for name, cell in GPU_CELLS.items() if name != "n_heads"}
    with pytest.raises(SpecError, match=r"new\.csv: column 'n_heads' is missing"):
        load(tmp_path, cells)


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_another_separator_is_named(tmp_path: Path, mark: str, name: str) -> None:
    path = tmp_path / "semi.csv"
    path.write_text(f"{mark.join(GPU_CELLS)}\n{mark.join(GPU_CELLS.values())}\n")
    with pytest.raises(SpecError, match=rf"'id' is missing; .* separated by {name}, they must"):
        load_runs(path)


def test_a_table_without_a_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    path.write_text(f"{','.join(GPU_CELLS)}\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"empty\.csv: the table is empty\."):
        load_runs(path)


def test_rows_need_an_id_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"new\.csv: line 2: column 'id': is blank"):
        load(tmp_path, GPU_CELLS | {"id": ""})
    path = tmp_path / "twice.csv"
    line = ",".join(GPU_CELLS.values())
    path.write_text(f"{','.join(GPU_CELLS)}\n{line}\n{line}\n", encoding="utf-8")
    with pytest.raises(SpecError, match="row 'new-1': column 'id': occurs more than once"):
        load_runs(path)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00"])
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "none.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=r"none\.csv"):
        load_runs(path)
