"""What is said of idle chips is true: why they are idle, and which batch could fill them."""

from __future__ import annotations

import time
from typing import Any

import pytest

import autoshard
from autoshard.catalog import load_chip, load_model
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.workload import Workload
from autoshard.idle import Filling, factors, fewest_stages, filling_batch, idle_notes
from autoshard.search.space import meshes
from autoshard.where import compile_where

BOOK = autoshard.textbook()


def plan(**degrees: Any) -> Plan:
    return Plan(**{"layers_per_stage": (32,), "remat": ({"save_all": 32},), **degrees})


def question(
    chips: int, sequences: int, chip: str = "v5p", limit: int = 0, model: str = "llama3-8b"
) -> Problem:
    return Problem(
        model=load_model(model),
        cluster=Cluster.build(load_chip(chip), chips=chips),
        workload=Workload(global_batch_seqs=sequences),
        memory_limit_bytes=limit,
    )


def notes(problem: Problem, idle: Plan, **said: Any) -> list[str]:
    return list(idle_notes(problem, BOOK, idle, **{"proven": True, **said}))


def filled(problem: Problem, idle: Plan, **said: Any) -> tuple[int, int, int] | None:
    """Sequences, batch split and sequence split of the batch that fills the cluster."""
    found = filling_batch(problem, BOOK, idle, **said)
    return None if found is None else (found.sequences, found.batch_split, found.seq_split)


def test_a_plan_on_every_chip_has_no_note() -> None:
    assert notes(question(64, 64), plan(batch_split=16, tp=4)) == []


# Why they are idle


@pytest.mark.parametrize(
    ("chip", "chips", "sequences"),
    [("v5p", 40, 64), ("v5p", 64, 64), ("h100", 97, 64), ("h100", 96, 64), ("h100", 1000, 250)],
)
def test_the_fewest_stages_on_all_chips_are_those_of_the_space(
    chip: str, chips: int, sequences: int
) -> None:
    problem = question(chips, sequences, chip)
    table = meshes(problem)
    stages = table.pp[table.chips_used == chips]
    assert fewest_stages(problem) == (stages.min() if len(stages) else None)


def test_numbers_are_the_reason_where_no_degrees_use_all_chips() -> None:
    (first,) = notes(question(97, 64, "h100"), plan(batch_split=16, tp=4))
    assert first == (
        "33 of 97 chips are idle: apart from at most 32 pipeline stages, degrees divide the 64 "
        "sequences (2^6), the 4,096 tokens of each (2^12) and the 32 heads (2^5), while 97 is "
        "prime; no plan on more chips is faster."
    )


def test_pipeline_stages_that_would_use_all_chips_are_said() -> None:
    first, _ = notes(question(40, 64), plan(batch_split=8, tp=4))
    assert first.startswith(
        "8 of 40 chips are idle: without pipeline stages, degrees divide the 64"
    )
    assert first.endswith(
        "while 40 = 2^3 * 5; with at least 5 stages they can use all; no plan on more chips is "
        "faster."
    )


def test_numbers_are_no_reason_where_degrees_use_all_chips() -> None:
    assert notes(question(64, 64), plan(batch_split=8, tp=4)) == [
        "32 of 64 chips are idle: degrees that use all of them exist; no plan on more chips is "
        "faster."
    ]


def test_a_pod_is_idle_where_pods_do_not_divide_the_batch() -> None:
    front = autoshard.solve("llama3-70b", pods=3, points=1)
    assert front.notes[0].startswith(
        "10,496 of 26,880 chips are idle (768 in each of 2 pods, 1 of 3 pods unused): each pod "
        "holds a replica that trains as many sequences as the others, and 3 pods do not divide "
        "1,024 sequences"
    )


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (0.0, "no plan on more chips is faster."),
        (1e-10, "no plan on more chips is faster."),
        (0.00063197, "no plan on more chips is faster by more than 0.064 %."),
        (0.05, "no plan on more chips is faster by more than 5 %."),
    ],
)
def test_that_no_plan_is_faster_is_said_within_the_gap(gap: float, words: str) -> None:
    assert notes(question(64, 64), plan(batch_split=8, tp=4), gap=gap)[0].endswith(words)


def test_that_no_plan_is_faster_is_said_only_where_proven() -> None:
    (first,) = notes(question(64, 64), plan(batch_split=8, tp=4), proven=False, gap=0.2)
    assert first == "32 of 64 chips are idle: degrees that use all of them exist."


def test_a_constraint_is_part_of_what_is_proven() -> None:
    (first,) = notes(
        question(64, 64), plan(batch_split=8, tp=4), keep=compile_where("chips_used < 64")
    )
    assert first.endswith("no plan on more chips that the constraint allows is faster.")


# Which batch could fill them


def test_the_batch_that_could_fill_idle_chips_is_named() -> None:
    _, second = notes(question(40, 64), plan(batch_split=8, tp=4, micro_batch_size=8))
    # Ten shards of tp = 4 fill 40 chips; the multiple of ten next to 64 is 60.
    assert second == (
        "A batch of 60 sequences (245,760 tokens) could fill them: 10 batch x 1 sequence x 4-way "
        "TP on all 40 chips fits in memory."
    )


def test_no_batch_is_named_where_the_one_asked_for_would_do() -> None:
    """The plan leaves chips idle for another reason: 60 sequences are 10 shards of 6."""
    assert filled(question(40, 60), plan(batch_split=5, tp=4)) is None
    assert filled(question(40, 60), plan(batch_split=5, tp=4, microbatches=4)) is None


def test_no_batch_fills_what_the_plan_s_degrees_do_not_divide() -> None:
    assert filled(question(40, 64), plan(batch_split=2, tp=16)) is None


def test_a_batch_that_does_not_fit_in_memory_gives_way_to_the_next() -> None:
    """Of 60 and 70 sequences on ten shards, 60 is nearer; where neither fits, none is named."""
    idle = plan(batch_split=8, tp=4, micro_batch_size=8)
    assert filled(question(40, 64), idle) == (60, 10, 1)
    assert filled(question(40, 66), idle) == (70, 10, 1)
    # Six sequences a shard fit beside the model's state, seven do not.
    six, seven = (least_bytes(n) for n in (60, 70))
    assert six < seven
    assert filled(question(40, 66, limit=(six + seven) // 2), idle) == (60, 10, 1)
    assert filled(question(40, 66, limit=six // 2), idle) is None


def least_bytes(sequences: int) -> int:
    """Least memory of the plan that fills 40 chips with a batch."""
    where = "batch_split = 10 and seq_split = 1 and tp = 4 and microbatches = 1"
    problem = {"chips": 40, "global_batch_seqs": sequences, "where": where}
    return int(autoshard.solve("llama3-8b", points=0, **problem).points[-1].memory_bytes)  # type: ignore[arg-type]


def test_a_batch_that_trains_fewer_tokens_a_second_is_not_named() -> None:
    idle = plan(batch_split=8, tp=4, micro_batch_size=8)
    found = filling_batch(question(40, 64), BOOK, idle)
    assert isinstance(found, Filling)
    as_fast = found.step_time_s * 64 / found.sequences
    assert filled(question(40, 64), idle, step_time_s=as_fast * 1.001) == (60, 10, 1)
    assert filled(question(40, 64), idle, step_time_s=as_fast * 0.999) != (60, 10, 1)


def test_a_named_plan_satisfies_the_constraint() -> None:
    idle = plan(batch_split=8, tp=4, micro_batch_size=8)
    assert filled(question(40, 64), idle, keep=compile_where("chips_used <= 32")) is None
    assert filled(question(40, 64), idle, keep=compile_where("micro_batch_size = 7")) == (70, 10, 1)


@pytest.mark.parametrize(("model", "pods"), [("llama3-70b", 1), ("llama3-405b", 8)])
def test_the_batch_of_a_note_fills_every_pod_when_it_is_asked_for(model: str, pods: int) -> None:
    front = autoshard.solve(model, pods=pods, points=1)
    assert front.points[0].plan.chips_used == 8192 * pods
    assert front.notes[1].startswith("A batch of 1,120 sequences (4,587,520 tokens) could fill")
    full = autoshard.solve(model, pods=pods, points=1, global_batch_seqs=1120)
    assert full.points[0].plan.chips_used == 8960 * pods
    assert full.notes == ()


def test_notes_take_a_moment() -> None:
    """Milliseconds; the limit leaves room for a busy machine."""
    problem = question(71_680, 1024, model="llama3-405b")
    idle = autoshard.solve("llama3-405b", pods=8, points=1).points[0].plan
    started = time.perf_counter()
    assert len(notes(problem, idle)) == 2
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "1"), (2, "2"), (8960, "2^8 * 5 * 7"), (97, "97"), (49, "7^2"), (2 * 97, "2 * 97")],
)
def test_numbers_as_products_of_primes(number: int, words: str) -> None:
    assert factors(number) == words
