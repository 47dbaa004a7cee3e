"""Answers when there is none: what binds, and nearest questions that a solve confirms."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import polars as pl
import pytest

import autoshard
from autoshard.conjuncts import conjuncts
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import Infeasible
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.textbook import textbook
from autoshard.diagnosis import Diagnosis, diagnose
from autoshard.search.nearest import fewest_chips, fits, nearest_batches, rebatched, resized
from autoshard.search.prune import has_plan, least_memory
from autoshard.where import compile_where

TEXTBOOK = textbook()


def question(**asked: Any) -> Problem:
    given: dict[str, Any] = {"model": "llama3-8b", "chips": 64}
    return autoshard.build_problem(**(given | asked))


def said(where: str | None = None, **asked: Any) -> str:
    given: dict[str, Any] = {"model": "llama3-8b", "chips": 64}
    with pytest.raises(Infeasible) as raised:
        autoshard.solve(**(given | asked), where=where)
    return str(raised.value)


BINDING: list[tuple[dict[str, Any], str | None, tuple[str, ...]]] = [
    ({"model": "llama3-405b", "chip": "h100", "chips": 8}, None, ("memory", "chips")),
    ({}, "tp == 7", ("tp == 7",)),
    ({}, "pp < 3 and tp > 1000 and cp = 1", ("tp > 1000",)),
    ({}, "chips_used > 64", ("chips", "chips_used > 64")),
    ({"memory_limit": "1MB"}, None, ("memory",)),
    ({"memory_limit": "2GiB"}, "chips_used <= 2", ("memory", "chips_used <= 2")),
    ({"chip": "h100"}, "tp <= 8 and dp = 3", ("batch", "dp = 3")),
    ({"chip": "h100"}, "tp = 8 and pp = 16", ("chips", "tp = 8", "pp = 16")),
]


@pytest.mark.parametrize(("asked", "where", "binding"), BINDING)
def test_a_smallest_set_of_constraints_binds(
    asked: dict[str, Any], where: str | None, binding: tuple[str, ...]
) -> None:
    assert diagnose(question(**asked), TEXTBOOK, where).binding == binding


def test_every_condition_that_binds_is_needed() -> None:
    """Without it the others have a plan, as the solver finds."""
    where = "tp = 8 and pp = 16"
    assert "together: without any one of them there is a plan" in said(where, chip="h100")
    for rest in ("tp = 8", "pp = 16"):
        autoshard.solve("llama3-8b", chip="h100", chips=64, where=rest, points=1)
    autoshard.solve("llama3-8b", chip="h100", chips=128, where=where, points=1)


def test_the_fewest_chips_have_a_plan_and_one_less_has_none() -> None:
    words = said(model="llama3-405b", chip="h100", chips=8)
    assert "56 chips would do, and no fewer" in words
    autoshard.solve("llama3-405b", chip="h100", chips=56, points=1, gap=0.1)
    less = question(model="llama3-405b", chip="h100", chips=55)
    assert least_memory(less, TEXTBOOK, None) > less.capacity_bytes


@pytest.mark.parametrize("pods", [1, 3])
def test_the_fewest_chips_are_those_of_trying_every_size(pods: int) -> None:
    """On GPUs, whole domains in each pod where there are several."""
    base = question(model="gpt3-175b", chip="h100", chips=8 * pods, memory_limit="60GB")
    cluster = Cluster.build(base.cluster.chip, chips=8 * pods, pods=pods)
    base = dataclasses.replace(base, cluster=cluster)
    found = fewest_chips(base, TEXTBOOK, None)
    assert found is not None
    sizes = [s for n in range(8 * pods, found[0] + 1) if (s := resized(base, n)) is not None]
    feasible = [s.cluster.chips for s in sizes if has_plan(s, TEXTBOOK, None)]
    assert feasible == [found[0]]
    assert found[1]


def test_the_least_memory_is_a_limit_that_works() -> None:
    words = said(memory_limit="1MB")
    limit = words.rpartition("A memory limit of ")[2].split(" ")[0]
    front = autoshard.solve("llama3-8b", chips=64, memory_limit=limit)
    with pytest.raises(Infeasible):
        autoshard.solve(
            "llama3-8b", chips=64, memory_limit=int(front.points[-1].memory_bytes * 0.999)
        )


def test_the_nearest_batches_are_those_of_trying_every_one() -> None:
    keep = compile_where("batch_split = 12 and pp = 1")
    base = question(chip="h100", chips=24, global_batch_seqs=29)
    found = nearest_batches(base, TEXTBOOK, keep, memory=False)
    works = [n for n in range(1, 60) if fits(rebatched(base, n), TEXTBOOK, keep)]
    assert found == (24, 36) == (max(n for n in works if n < 29), min(n for n in works if n > 29))
    assert "A batch of 24 or 36 sequences would do" in said(
        "batch_split = 12 and pp = 1", chip="h100", chips=24, global_batch_seqs=29
    )


def test_a_batch_that_divides_better_fits_in_less_memory() -> None:
    """A prime batch is one shard or all of them: state that ten shards divide does not fit."""
    base = question(chip="h100", chips=10, global_batch_seqs=11, seq_len=7)
    least = least_memory(rebatched(base, 10), TEXTBOOK, None)
    base = dataclasses.replace(base, memory_limit_bytes=int(least * 1.01))
    found = diagnose(base, TEXTBOOK)
    assert "batch" in found.binding
    works = [n for n in range(1, 31) if has_plan(rebatched(base, n), TEXTBOOK, None)]
    below, above = [n for n in works if n < 11], [n for n in works if n > 11]
    assert (found.smaller_batch, found.larger_batch) == (max(below), min(above))


def test_one_line_and_quickly_for_405b_on_eight_h100() -> None:
    started = time.monotonic()
    words = said(model="llama3-405b", chip="h100", chips=8)
    assert time.monotonic() - started < 10
    assert "\n" not in words
    assert "needs 474.44 GiB per chip, and 74.51 GiB are there" in words


def test_has_plan_is_least_memory_within_capacity() -> None:
    for limit in ("1MB", "1.18GiB", "1.19GiB", "20GiB"):
        for where in (None, "tp = 1", "microbatches > 4", "tp = 5"):
            keep = None if where is None else compile_where(where)
            problem = question(memory_limit=limit)
            least = least_memory(problem, TEXTBOOK, keep)
            assert has_plan(problem, TEXTBOOK, keep) is (least <= problem.capacity_bytes)


CONJUNCTS: list[tuple[str | pl.Expr, list[str]]] = [
    ("tp <= 8 and pp * vpp <= 32", ["tp <= 8", "pp * vpp <= 32"]),
    ("tp <= 8 AND (pp = 1 or cp = 1)", ["tp <= 8", "(pp = 1 or cp = 1)"]),
    ("tp between 2 and 8 and pp = 1", ["tp between 2 and 8 and pp = 1"]),
    ("tp <= 8 or pp = 1 and cp = 1", ["tp <= 8 or pp = 1 and cp = 1"]),
    ("not (tp > 1 and pp > 1)", ["not (tp > 1 and pp > 1)"]),
]


@pytest.mark.parametrize(("where", "words"), CONJUNCTS)
def test_conditions_are_cut_only_where_they_are_joined(where: str, words: list[str]) -> None:
    parts = conjuncts(where)
    if "between" not in where:
        assert [said for said, _ in parts] == words
    whole = pl.sql_expr(where)
    frame = pl.DataFrame(
        {"tp": [1, 4, 16, 4], "pp": [1, 2, 1, 1], "cp": [1, 1, 2, 2], "vpp": [1] * 4}
    )
    together = frame.select(pl.all_horizontal([part for _, part in parts]).alias("x"))["x"]
    assert together.to_list() == frame.select(whole.alias("x"))["x"].to_list()


def test_an_expression_is_cut_as_well() -> None:
    parts = conjuncts((pl.col("tp") <= 8) & (pl.col("pp") == 1) & (pl.col("cp") == 1))
    assert len(parts) == 3
    assert isinstance(diagnose(question(), TEXTBOOK, pl.col("tp") == 7), Diagnosis)
