"""Every wrong input ends in one line that names it and says what would work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from command import run

from autoshard.catalog import load_chip
from autoshard.cluster_file import load_cluster
from autoshard.costmodels.checks import said, shown
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import AutoshardError, Infeasible, SpecError, UnknownName
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.textbook import textbook
from autoshard.explain import explain
from autoshard.front import ParetoFront
from autoshard.solving import build_problem, solve

SOLVE = ("solve", "--points", "1")
MODEL = ("--model", "llama3-8b")
SMALL = (*MODEL, "--chips", "64")


def check(args: tuple[str, ...], status: int, *words: str) -> None:
    """The command ends with the status and one line on stderr that holds the words."""
    result = run(*args)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("autoshard: error: ")
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    assert [word for word in words if word not in result.stderr] == [], result.stderr


# What is asked: model, cluster, workload. The last strings of a row are the telling words.

PROBLEMS: list[tuple[str, tuple[str, ...]]] = [
    # a model
    ("", ("Missing option '--model'",)),
    ("--model llama3-8", ("unknown model 'llama3-8'", "llama3-8b")),
    ("--model lama3-70b", ("unknown model", "llama3-70b")),
    ("--model zzz", ("unknown model 'zzz'", "known: gemma-7b")),
    ("--model meta-llama/Meta-Llama-3-8B", ("not on disk", "nothing is fetched")),
    ("--model /nowhere/config.json", ("/nowhere/config.json", "there is no such file")),
    # a chip and its number
    ("{m} --chip v5q", ("unknown chip 'v5q'", "v5p")),
    ("{m} --chip H10", ("unknown chip 'H10'", "h100")),
    ("{m} --chips 0", ("chips must be at least 1, got 0",)),
    ("{m} --chips -8", ("chips must be at least 1, got -8",)),
    ("{m} --chips 3.5", ("--chips", "'3.5'")),
    ("{m} --chips nan", ("--chips", "'nan'")),
    ("{m} --chips 64chips", ("--chips", "'64chips'")),
    ("{m} --chips 99999999999999999999", ("beyond any real value",)),
    ("{m} --chip=", ("unknown chip ''", "known: a100")),
    ("{m} --cluster=", ("cluster must be a Cluster or the path of a TOML file, got ''",)),
    ("--model=", ("unknown model ''", "known: gemma-7b")),
    ("{m} --chips 8961", ("do not divide into 2 equal pods", "8960 or 8970 would")),
    ("{m} --chips 17921", ("17,921 chips do not divide into 3 equal pods", "17920 or 17940")),
    ("{m} --chips 8933", ("8933 chips make no torus", "would")),
    ("{m} --chips 26880 --pods 2", ("13,440 chips in each of 2 pods make no torus", "17920")),
    ("{m} --pods 0", ("pods must be at least 1",)),
    ("{m} --pods -1", ("pods must be at least 1",)),
    ("{m} --chip v3 --pods 2", ("no DCN bandwidth on record",)),
    (
        "{m} --chip h100 --chips 1000 --pods 3",
        ("1000 chips do not divide into 3 equal pods", "984 or"),
    ),
    # a topology
    ("{m} --topology=", ("topology ''", "16x20x28")),
    ("{m} --topology axb", ("topology 'axb'", "16x20x28")),
    ("{m} --topology 0x4x4", ("topology '0x4x4'",)),
    ("{m} --topology -4x4x4", ("topology '-4x4x4'",)),
    ("{m} --topology 2x2x2x2", ("4 axes",)),
    ("{m} --topology 32x32x32", ("exceeds a v5p pod, 16x20x28; give pods",)),
    ("{m} --chip h100 --topology 4x4x4", ("h100 is not a torus: give chips or pods",)),
    ("{m} --chip v5e --topology 4x4x4", ("v5e has 2 torus axes",)),
    ("{m} --chips 100 --topology 4x4x4", ("not whole slices of 4x4x4", "64 or 128 would be")),
    (
        "{m} --chips 128 --pods 3 --topology 4x4x4",
        ("contradicts 3 slices", "leave one of them out"),
    ),
    # a workload
    ("{s} --global-batch-tokens 5000", ("not a whole number of sequences", "4096 or 8192")),
    ("{s} --global-batch-tokens 16M", ("16,000,000 tokens", "15998976 or 16003072 would be")),
    ("{s} --global-batch-tokens 0", ("--global-batch-tokens", "'0' is not a count")),
    ("{s} --global-batch-tokens -4096", ("--global-batch-tokens", "'-4096'")),
    ("{s} --global-batch-tokens nan", ("--global-batch-tokens", "'nan'")),
    ("{s} --global-batch-tokens 1e400", ("--global-batch-tokens", "'1e400'")),
    ("{s} --global-batch-tokens 1e30", ("'1e30' is beyond any real count", "at most 2**60")),
    ("{s} --global-batch-tokens 16Q", ("'16Q' is not a count", "16M")),
    ("{s} --global-batch-tokens 4Ti", ("beyond any real value",)),
    ("{s} --global-batch-seqs 0", ("global_batch_seqs must be at least 1",)),
    ("{s} --global-batch-seqs 1.5", ("--global-batch-seqs", "'1.5'")),
    ("{s} --global-batch-seqs 4 --global-batch-tokens 4Mi", ("not both",)),
    ("{s} --seq-len 0", ("seq_len must be at least 1",)),
    ("{s} --seq-len -1", ("seq_len must be at least 1",)),
    ("{s} --seq-len 4k", ("--seq-len", "'4k'")),
    ("{s} --precision fp4", ("precision must be one of bf16, fp8, int8",)),
    ("{s} --precision fp8", ("'v5p' has no fp8 peak", "bf16, int8")),
    ("{s} --memory-limit 72G", ("'72G' is not a size", "72GiB")),
    ("{s} --memory-limit -1", ("'-1' is not a size",)),
    ("{s} --memory-limit 0", ("'0' is not a size",)),
    ("{s} --memory-limit lots", ("'lots' is not a size",)),
    ("{s} --memory-limit=", ("'' is not a size",)),
    ("{s} --memory-limit 1e30", ("'1e30' is beyond any real size",)),
    ("{s} --memory-limit 200GiB", ("exceeds", "HBM of v5p")),
]


def arguments(text: str) -> tuple[str, ...]:
    return tuple(text.format(m=" ".join(MODEL), s=" ".join(SMALL)).split())


@pytest.mark.parametrize(("text", "words"), PROBLEMS, ids=[text for text, _ in PROBLEMS])
def test_a_wrong_problem_is_refused(text: str, words: tuple[str, ...]) -> None:
    check((*SOLVE, *arguments(text)), 2, *words)


def test_explain_refuses_a_wrong_problem_in_the_same_words() -> None:
    check(("explain", *MODEL, "--chip", "v5q", "--no-solve"), 2, "unknown chip 'v5q'", "v5p")


# How it is searched, and where the answer goes.

OPTIONS: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("--where", "tpp <= 8"), ("unknown column in --where 'tpp'", "tp")),
    (("--where", "tp =< 8"), ("'tp =< 8' cannot be read", "as in tp <= 8")),
    (("--where", "tp <= 8 and"), ("cannot be read", "as in tp <= 8")),
    (("--where", ""), ("--where '' cannot be read",)),
    (("--where", "tp"), ("not a condition on each plan", "Int64")),
    (("--where", "tp + pp"), ("not a condition on each plan",)),
    (("--where", "1 = 1"), ("names no column", "tp")),
    (("--where", "tp <= 'a'"), ("cannot compare string",)),
    (("--where", "tp > null"), ("neither true nor false (null)", "tp = 1", "coalesce")),
    (("--where", "8 % (pp - 1) = 0"), ("neither true nor false (null)", "pp = 1")),
    (("--where", "tp <= 8 & pp > 1"), ("write and, or, not",)),
    (("--where", "sum(tp) > 3"), ("not a condition on each plan", "one value for all")),
    (("--where", "tp = max(tp)"), ("several plans together",)),
    (("--where", "tp in (select 1)"), ("cannot be read", "query")),
    (("--where", "select 1"), ("cannot be read",)),
    (("--where", "tp < 8; drop table x"), ("cannot be read",)),
    (("--where", "__import__('os').remove('x')"), ("cannot be read",)),
    (("--costs", "nope"), ("unknown cost model 'nope'", "textbook")),
    (("--costs", ""), ("unknown cost model ''",)),
    (("--costs", "textbook,nope"), ("unknown cost model 'nope'",)),
    (("--costs", "theirs", "--layer", "mlp2"), ("--layer belongs to the textbook profile",)),
    (("--costs", "theirs", "--overlap", "sum"), ("--overlap belongs to the textbook profile",)),
    (("--schedule", "gpipes"), ("unknown schedule 'gpipes'", "gpipe")),
    (("--schedule", ""), ("unknown schedule ''", "known: 1f1b, gpipe, zero-bubble")),
    (
        ("--chip", "h100", "--stack", "megatron", "--schedule", "zero-bubble"),
        ("calibrated/megatron does not run schedule 'zero-bubble'", "that stack has 1f1b"),
    ),
    (
        ("--costs", "calibrated", "--schedule", "1f1b"),
        ("calibrated/maxtext does not run schedule '1f1b'", "that stack has gpipe"),
    ),
    (("--layer", "half"), ("--layer", "'full', 'mlp2'")),
    (("--overlap", "min"), ("--overlap", "'max', 'sum'")),
    (("--reshard", "4"), ("--reshard", "1, 2, 3", "'4'")),
    (("--reshard", "0"), ("--reshard",)),
    (("--reshard", "3,"), ("--reshard",)),
    (("--reshard", "all"), ("--reshard",)),
    (("--gap", "-0.1"), ("gap must be at least 0", "-0.1")),
    (("--gap", "1"), ("gap must be at least 0 and below 1",)),
    (("--gap", "nan"), ("gap must be at least 0", "nan")),
    (("--gap", "100%"), ("gap must be at least 0 and below 1",)),
    (("--gap", "small"), ("--gap", "'small'", "0.1%")),
    (("--points", "-1"), ("points must be a whole number",)),
    (("--points", "1.5"), ("--points", "'1.5'")),
    (("--points", "many"), ("--points", "'many'")),
    (("--time-limit", "0"), ("time limit must be greater than zero",)),
    (("--time-limit", "-3"), ("time limit must be greater than zero",)),
    (("--time-limit", "nan"), ("time limit must be greater than zero",)),
    (("--time-limit", "1h"), ("--time-limit", "'1h'")),
    (("--tokens", "0"), ("--tokens", "'0' is not a count")),
    (("--tokens", "inf"), ("--tokens", "'inf'")),
    (("--tokens", "1e30"), ("--tokens", "'1e30' is beyond any real count", "15T")),
    (("--tokens", "2000000T"), ("beyond any real count", "at most 2**60")),
    (("--json", "--csv"), ("--json and --csv both print",)),
    (("--save", "/nowhere/f.json"), ("--save /nowhere/f.json: cannot be written",)),
    (("--save", "."), ("--save .: is a directory",)),
    (("--save", ""), ("--save needs the name of a file",)),
    (("--parquet", "/nowhere/f.parquet"), ("--parquet /nowhere/f.parquet: cannot be written",)),
    (("--chart", "/nowhere/f.html"), ("--chart /nowhere/f.html: cannot be written",)),
    (("--chart", "front.pdf"), ("--chart front.pdf", ".html, .svg, .png")),
    (("--chart", "front"), ("--chart front", "the ending says what to draw")),
    (("--modle", "x"), ("No such option '--modle'", "autoshard solve --help")),
    (("llama3-8b",), ("unexpected extra argument (llama3-8b)",)),
]


@pytest.mark.parametrize(("args", "words"), OPTIONS, ids=[" ".join(args) for args, _ in OPTIONS])
def test_a_wrong_option_is_refused(args: tuple[str, ...], words: tuple[str, ...]) -> None:
    check((*SOLVE, *SMALL, *args), 2, *words)


COMMANDS: list[tuple[str, tuple[str, ...]]] = [
    ("slove", ("No such command 'slove'", "solve")),
    ("--verson", ("No such option '--verson'", "--version")),
    ("explain", ("Missing option '--model'",)),
    ("explain {s} --no-solve --mfu 0", ("mfu must be finite and greater than zero",)),
    ("explain {s} --no-solve --mfu 120%", ("mfu is a fraction of the peak",)),
    ("explain {s} --no-solve --mfu x", ("--mfu", "'x'")),
    ("explain {s} --no-solve --checkpoints 0", ("checkpoints must be at least 1",)),
    ("explain {s} --no-solve --checkpoints -2", ("checkpoints must be at least 1",)),
    ("models llama3-8b", ("unexpected extra argument",)),
    ("clusters --costs", ("No such option '--costs'",)),
]


@pytest.mark.parametrize(("text", "words"), COMMANDS, ids=[text for text, _ in COMMANDS])
def test_a_wrong_command_is_refused(text: str, words: tuple[str, ...]) -> None:
    check(arguments(text), 2, *words)


# Files

CONFIGS: list[tuple[str | bytes, tuple[str, ...]]] = [
    ("{", ("it is not JSON", "config.json")),
    (b"\x80\x81", ("it is not JSON",)),
    ("[]", ("must be a JSON object, got list",)),
    ("{}", ("key model_type is missing", "llama")),
    ('{"model_type": "t5"}', ("'t5' is not covered", "llama")),
    ('{"model_type": "mixtral"}', ("mixture of experts",)),
    ('{"model_type": "llama"}', ("key num_attention_heads is missing",)),
    (
        '{"model_type": "llama", "num_attention_heads": 7, "hidden_size": 100,'
        ' "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 8}',
        ("hidden_size = 100 is not a multiple",),
    ),
    ('{"model_type": "llama", "num_attention_heads": NaN}', ("num_attention_heads", "nan")),
    ('{"model_type": "llama", "num_attention_heads": -4}', ("must be at least 1, got -4",)),
]


@pytest.mark.parametrize(("content", "words"), CONFIGS)
def test_a_wrong_config_is_refused(
    tmp_path: Path, content: str | bytes, words: tuple[str, ...]
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    check((*SOLVE, "--model", str(path), "--chips", "64"), 2, str(path), *words)


CLUSTERS: list[tuple[str | bytes, tuple[str, ...]]] = [
    ("chip = ", ("it is not TOML",)),
    (b"\xff\xfe", ("it is not TOML",)),
    ("chips = 8", ("key chip is missing",)),
    ('chip = "v5p"\ntopology = 5', ("topology must be text such as", "got 5")),
    ('chip = "v5p"\ntopology = []', ("topology [] has 0 axes",)),
    ('chip = ""\nchips = 8', ("chip must be text in quotes, got ''",)),
    ('pods = 2\n[chip]\nbase = "h100"\npod_chips = 0', ("no pod size on record: give chips",)),
    ('chip = "h100"\ntopology = "2x2"', ("h100 is not a torus: give chips or pods",)),
    ('chip = "h100"\nchps = 8', ("unknown key 'chps'", "chips")),
    ('chip = "h100"\nchips = "eight"', ("chips must be a whole number",)),
    ('chip = "h101"\nchips = 8', ("unknown chip 'h101'", "h100")),
    ('chip = "v5p"\nchips = 64\ntopology = "4x4x8"', ("not whole slices of 4x4x8",)),
    ('chips = 8\n[chip]\nbase = "h100"\nhbm_bytes = -1', ("hbm_bytes must be at least 1",)),
    ('chips = 8\n[chip]\nbase = "h100"\nhbm_bytes_per_s = nan', ("hbm_bytes_per_s", "finite")),
]


@pytest.mark.parametrize(("content", "words"), CLUSTERS)
def test_a_wrong_cluster_file_is_refused(
    tmp_path: Path, content: str | bytes, words: tuple[str, ...]
) -> None:
    path = tmp_path / "ours.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    check((*SOLVE, *MODEL, "--cluster", str(path)), 2, str(path), *words)


def test_a_missing_file_a_directory_and_two_sizes_are_refused(tmp_path: Path) -> None:
    check((*SOLVE, *MODEL, "--cluster", "/nowhere/c.toml"), 2, "there is no such file")
    check((*SOLVE, *MODEL, "--cluster", str(tmp_path)), 2, str(tmp_path), "directory")
    check((*SOLVE, "--model", str(tmp_path)), 2, "config.json: there is no such file")
    path = tmp_path / "ours.toml"
    path.write_text('chip = "h100"\nchips = 8\n')
    for option, value in (("--chips", "8"), ("--chip", "h100"), ("--topology", "4x4x4")):
        words = ("a cluster is given", option[2:])
        check((*SOLVE, *MODEL, "--cluster", str(path), option, value), 2, *words)


def test_a_file_that_cannot_be_written_after_all_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(front: ParetoFront, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ParetoFront, "save", full)
    path = str(tmp_path / "f.json")
    check((*SOLVE, *SMALL, "--save", path), 2, f"--save {path}: cannot be written (No space left")


# Sound questions without an answer: status 3.

INFEASIBLE: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    ((*SMALL, "--where", "tp == 7"), ("no plan satisfies --where 'tp == 7'", "tp can be 1, 2, 4")),
    ((*SMALL, "--where", "dp > 1 and tp > 1000"), ("no plan satisfies", "tp can be")),
    ((*SMALL, "--where", "chips_used > 64"), ("no plan satisfies", "chips_used can be")),
    ((*SMALL, "--memory-limit", "1MB"), ("does not fit on 64 v5p", "memory limit")),
    (
        (*SMALL, "--memory-limit", "2GiB", "--where", "chips_used <= 2"),
        ("does not fit", "that satisfies --where"),
    ),
    (
        ("--model", "gpt3-175b", "--chips", "1"),
        ("needs 1.60 TiB per chip", "20 chips would do, and no fewer"),
    ),
    (
        ("--model", "llama3-405b", "--chip", "h100", "--chips", "8"),
        ("does not fit on 8 h100", "56 chips would do"),
    ),
]


@pytest.mark.parametrize(("args", "words"), INFEASIBLE, ids=[" ".join(a) for a, _ in INFEASIBLE])
def test_a_question_without_an_answer_says_what_would_work(
    args: tuple[str, ...], words: tuple[str, ...]
) -> None:
    check((*SOLVE, *args), 3, *words)


def test_a_time_limit_before_the_first_plan_asks_for_more_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A plan with even stages is there at once, unless a constraint on the models forbids it."""
    nothing = SimpleNamespace(points=[], complete=False)
    monkeypatch.setattr("autoshard.solving.solve_front", lambda *args: nothing)
    check((*SOLVE, *SMALL, "--time-limit", "2"), 3, "time limit of 2.0 s", "give it more time")


# The library raises what the command prints.

LIBRARY: list[tuple[dict[str, Any], type[AutoshardError], str]] = [
    ({"model": "llama3-8"}, UnknownName, "llama3-8b"),
    ({"chip": "v5q"}, UnknownName, "v5p"),
    ({"chips": True}, SpecError, "whole number"),
    ({"chips": 64.0}, SpecError, "whole number"),
    ({"chips": 10**5000}, SpecError, "beyond any real value"),
    ({"model": ""}, UnknownName, "known: gemma-7b"),
    ({"model": 5}, SpecError, "a preset's name, the path of a config.json or a Model, got 5"),
    ({"chip": ""}, UnknownName, "unknown chip ''"),
    ({"chip": 5}, SpecError, "got 5"),
    ({"cluster": ""}, SpecError, "a Cluster or the path of a TOML file, got ''"),
    ({"cluster": 5}, SpecError, "a Cluster or the path of a TOML file, got 5"),
    ({"cluster": Path("/nowhere/c.toml")}, SpecError, "there is no such file"),
    ({"cluster": "ours.toml", "topology": ()}, SpecError, "a cluster is given, and topology"),
    ({"topology": 5}, SpecError, "topology must be text such as .* got 5"),
    ({"topology": ["a"]}, SpecError, "topology must be text such as .* got .'a'."),
    ({"topology": [True, 4, 4]}, SpecError, "topology must be text"),
    ({"topology": (0, 4, 4)}, SpecError, "topology must be text"),
    ({"topology": {4, 8}}, SpecError, "topology must be text"),
    ({"topology": (), "chips": 64}, SpecError, "has 0 axes"),
    ({"chips": 64, "topology": "8x8x8"}, SpecError, "64 chips are not whole slices"),
    ({"global_batch_tokens": 5000}, SpecError, "4096 or 8192"),
    ({"global_batch_tokens": float("nan")}, SpecError, "whole number"),
    ({"global_batch_seqs": 1, "global_batch_tokens": 4096}, SpecError, "not both"),
    ({"seq_len": -1}, SpecError, "at least 1"),
    ({"precision": "fp8"}, SpecError, "no fp8 peak"),
    ({"memory_limit": float("inf")}, SpecError, "not a size"),
    ({"memory_limit": "a lot"}, SpecError, "not a size"),
    ({"memory_limit": [1]}, SpecError, r"\[1\] is not a size"),
    ({"memory_limit": True}, SpecError, "True is not a size"),
    ({"memory_limit": 10**400}, SpecError, "beyond any real size"),
    ({"memory_limit": ["long"] * 99}, SpecError, r"\.\.\. is not a size"),
    ({"recipe": 5}, SpecError, "recipe must be a Recipe, .* got 5"),
    ({"recipe": {}}, SpecError, "recipe must be a Recipe, .* got {}"),
    ({"precision": []}, SpecError, "precision must be one of"),
]


@pytest.mark.parametrize(("change", "kind", "words"), LIBRARY)
def test_the_library_raises_a_spec_error(
    change: dict[str, Any], kind: type[AutoshardError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        build_problem(**{"model": "llama3-8b", **change})


def _fail(value: int) -> bool:
    raise ValueError("what went wrong")


CALLS: list[tuple[Callable[[], object], type[AutoshardError], str]] = [
    (lambda: solve("llama3-8b", chips=64, where=pl.col("nope") > 1), UnknownName, "nope"),
    (lambda: solve("llama3-8b", chips=64, where=pl.col("tp").sum() > 1), SpecError, "one value"),
    (lambda: solve("llama3-8b", chips=64, where=7), SpecError, "polars expression"),  # type: ignore[arg-type]
    (lambda: solve("llama3-8b", chips=64, where=pl.col("tp") == 7), Infeasible, "no plan"),
    (lambda: Cluster.build("v5p", chips=64), SpecError, "chip must be a Chip"),  # type: ignore[arg-type]
    (lambda: Cluster.build(load_chip("v5p"), topology=5), SpecError, "lengths of a torus"),  # type: ignore[arg-type]
    (lambda: Cluster.build(load_chip("v5p"), topology="4x4x4"), SpecError, "lengths of a torus"),  # type: ignore[arg-type]
    (lambda: Cluster.build(load_chip("v5p"), chips=64, topology=()), SpecError, "has 0"),
    (lambda: Cluster.build(load_chip("v5p"), chips=64, name=5), SpecError, "name must be text"),  # type: ignore[arg-type]
    (lambda: Recipe(reshard=5), SpecError, "must list ZeRO stages .* got 5"),  # type: ignore[arg-type]
    (lambda: Recipe(reshard=(True,)), SpecError, "must list ZeRO stages"),
    (lambda: Recipe(param_bytes=10**400), SpecError, "finite"),
    (lambda: load_cluster(5), SpecError, "got 5"),  # type: ignore[arg-type]
    (lambda: explain(build_problem("llama3-8b"), tokens=1e30), SpecError, r"at most 2\*\*60"),
]


@pytest.mark.parametrize(("call", "kind", "words"), CALLS)
def test_solve_raises_what_the_command_prints(
    call: Callable[[], object], kind: type[AutoshardError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        call()


SEARCHES: list[tuple[dict[str, Any], str]] = [
    ({"points": True}, "points must be a whole number"),
    ({"points": "3"}, "points must be a whole number"),
    ({"gap": 1.0}, "gap must be at least 0 and below 1"),
    ({"gap": "x"}, "gap must be at least 0 and below 1, .* got 'x'"),
    ({"gap": None}, "gap must be .* got None"),
    ({"gap": True}, "gap must be .* got True"),
    ({"time_limit_s": "3"}, "time limit must be greater than zero seconds, .* got '3'"),
    ({"time_limit_s": True}, "time limit must be .* got True"),
    ({"time_limit_s": 0}, "time limit must be .* got 0"),
    ({"progress": 5}, "progress must be a function or None, got 5"),
    ({"constrain_master": 5}, "constrain_master must be a function or None, got 5"),
    ({"constrain_stages": 5}, "constrain_stages must be a function or None, got 5"),
    ({"costs": 5}, "costs must be the name of a cost profile or a Profile, got 5"),
    ({"costs": textbook().compute}, r"textbook\(\).replace\(model\) makes one"),
    ({"where": 5}, "wants text or a polars expression, got 5"),
    ({"where": pl.col("tp") > pl.lit(None)}, "neither true nor false"),
    ({"where": pl.when(pl.col("tp") > 4).then(True)}, "neither true nor false .*tp = 1"),
    # known to the probe of the constraint, and not to the search
    ({"where": pl.when(pl.col("tp") < 8).then(True)}, "neither true nor false .*tp = 8"),
    ({"where": pl.col("tp").map_elements(_fail, return_dtype=pl.Boolean)}, "what went wrong"),
]


@pytest.mark.parametrize(("change", "words"), SEARCHES)
def test_a_search_that_cannot_be_asked_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        solve("llama3-8b", chips=64, **change)


def test_a_profile_and_an_endless_time_limit_are_taken_and_a_wrong_size_is_not() -> None:
    front = solve("llama3-8b", chips=64, points=1, costs=textbook(), time_limit_s=float("inf"))
    assert front.complete
    wrong: list[Any] = [[], True, "", "lots"]
    for within in wrong:
        with pytest.raises(SpecError, match="is not a size"):
            front.fastest(within=within)


@pytest.mark.parametrize("path", [None, 5, "", b"front.json", True])
def test_what_is_no_path_of_a_front_is_refused(path: Any) -> None:
    with pytest.raises(SpecError, match="a front is loaded from the path of its JSON file"):
        ParetoFront.load(path)


def test_large_numbers_are_written_for_people() -> None:
    assert [said(n) for n in (9999, 10_000, -10_000)] == ["9999", "10,000", "-10,000"]
    assert said(10**5000) == "2**16609 or so"
    assert shown([10**5000]) == "a list"


SAVED: list[tuple[Any, str]] = [
    ([], "schema is None"),
    ({"schema": "autoshard.front/99"}, "autoshard.front/99"),
    ({"schema": "autoshard.front/1"}, "key 'problem' is missing"),
    ({"schema": "autoshard.front/1", "problem": {}, "front": []}, "it has no point"),
    ({"schema": "autoshard.front/1", "problem": {}, "front": 5}, "wrong kind"),
    ({"schema": "autoshard.front/1", "problem": {}, "front": [1]}, "wrong kind"),
    ({"schema": "autoshard.front/1", "problem": 3, "front": []}, "wrong kind"),
    ({"schema": "autoshard.front/1", "problem": {}, "front": [{}]}, "'step_time_s' is missing"),
]


@pytest.mark.parametrize(("data", "words"), SAVED)
def test_a_file_that_is_no_front_is_refused(tmp_path: Path, data: Any, words: str) -> None:
    path = tmp_path / "front.json"
    path.write_text(json.dumps(data))
    with pytest.raises(SpecError, match=words):
        ParetoFront.load(path)


def test_a_front_that_cannot_be_read_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    for name, words in (("nowhere.json", "cannot be read"), ("broken.json", "is not JSON")):
        with pytest.raises(SpecError, match=f"{name}: {words}"):
            ParetoFront.load(tmp_path / name)
    with pytest.raises(SpecError, match="cannot be read"):
        ParetoFront.load(tmp_path)
