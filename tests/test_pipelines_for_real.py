"""Stages of their own on published pipelines: LLaMA-3's lighter ends, gains over uniform plans."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest

import autoshard
from autoshard.costmodels.simulation import simulate
from autoshard.runs import Run, load_runs
from autoshard.search import dealing
from autoshard.search.interleaving import virtual_stages
from autoshard.search.stage_model import StageModel
from autoshard.search.stages import Leaf
from benchmarks.pipelines import (
    COUNTS,
    GIB,
    LLAMA3,
    LLAMA3_VPP,
    Compared,
    Mesh,
    compare,
    first_of_each,
    layers_words,
    llama3_mesh,
    published,
    remat_words,
    run_mesh,
    runs_of,
)

#: 126 layers on 16 stages as LLaMA-3's authors dealt them (arXiv 2407.21783, section 3.3.2).
LIGHTER_ENDS = (7, *[8] * 14, 7)

#: Runs of every source with pipelines, and those of them that Megatron-Core can state.
ANY_FRAMEWORK = ("dgxc-159", "mb-042", "mlm-032", "kor-003", "bs-107", "nt-014", "vt-042")
MEGATRON = ("dgxc-159", "dgxc-168", "mb-042", "mb-044", "mb-047", "mb-049")


@functools.cache
def run(name: str) -> Run:
    return next(each for each in load_runs()[0] if each.id == name)


@functools.cache
def compared(name: str, free: bool) -> Compared:
    found = compare(run_mesh(run(name), free=free))
    assert isinstance(found, Compared), found
    return found


@functools.cache
def llama3(vpp: int, free: bool) -> Compared:
    found = compare(llama3_mesh(vpp, free=free))
    assert isinstance(found, Compared), found
    return found


def layers(leaf: Leaf | None) -> tuple[int, ...]:
    assert leaf is not None
    return tuple(leaf.rungs.sum(axis=1).tolist())


# LLaMA-3 405B on 16,384 H100


@pytest.mark.parametrize("costs", [{"stack": "megatron"}, {"costs": "calibrated/megatron"}])
def test_solve_takes_a_layer_from_the_first_and_the_last_stage_of_llama3(
    costs: dict[str, Any],
) -> None:
    front = autoshard.solve(
        "llama3-405b",
        chip="h100",
        chips=16_384,
        global_batch_tokens=2**24,
        seq_len=8_192,
        fix={"tp": 8, "cp": 1, "seq_split": 1, "pp": 16, "vpp": 8, "microbatches": 16},
        objectives="time",
        gap=0.0,
        **costs,
    )
    point = front.points[0]
    assert point.proven
    assert point.plan.chips_used == 16_384
    assert point.plan.layers_per_stage == LIGHTER_ENDS


@pytest.mark.parametrize("vpp", LLAMA3_VPP)
def test_the_fastest_plan_has_lighter_ends_whatever_the_virtual_stages(vpp: int) -> None:
    assert layers(llama3(vpp, True).roomy) == LIGHTER_ENDS


@pytest.mark.parametrize("vpp", [8, 4])
@pytest.mark.parametrize("gib", [74, 60, 45, 30])
def test_with_eight_or_four_chunks_the_ends_are_lighter_within_any_budget(
    vpp: int, gib: int
) -> None:
    """Each stage then holds about as many microbatches and recomputes about as much."""
    assert layers(llama3_mesh(vpp, free=True).solve(gib * GIB)) == LIGHTER_ENDS


def test_the_run_itself_has_lighter_ends_and_nothing_to_gain() -> None:
    """In its own stack nothing is recomputed: the even plan with lighter ends is the best one."""
    found = compared(LLAMA3, True)
    assert layers(found.uniform) == layers(found.solved) == layers(found.roomy) == LIGHTER_ENDS
    assert found.gain == 0.0


@pytest.mark.parametrize("stage", [0, -1])
def test_an_eighth_layer_on_either_end_is_slower(stage: int) -> None:
    """The embedding or the head then comes on top of eight layers, and every stage waits for it."""
    mesh = llama3_mesh(4, free=False)
    best = llama3(4, False).roomy
    assert layers(best) == LIGHTER_ENDS

    def heavy(model: Any, names: dict[str, Any]) -> None:
        model.add(names["layers_per_stage"][stage] >= 8)

    capacity = float(mesh.problem.capacity_bytes)
    model = StageModel(mesh.stage, capacity, constrain=heavy, legality=mesh.profile.legality)
    heavier, finished = model.solve()
    assert finished
    assert heavier is not None
    assert layers(heavier)[stage] >= 8
    assert heavier.time_s > best.time_s * 1.001


def test_where_early_stages_hold_far_more_microbatches_they_get_fewer_layers() -> None:
    """Without virtual stages the first holds 16 microbatches and the last one.

    Megatron-Core states no remat for the second stage alone, whose 15 microbatches of eight layers
    do not fit: it is the lighter one. Any framework recomputes one layer there.
    """
    assert layers(llama3(1, False).roomy) == (7, 7, *[8] * 14)
    free = llama3(1, True)
    assert layers(free.roomy) == LIGHTER_ENDS
    assert remat_words(free.roomy, free.mesh.rungs) == "full 0, 1, 14 x 0, others none"
    tight = layers(dealing.fastest(free.mesh.stage, 45 * GIB))
    assert tight[0] == 7
    assert max(tight) == 9
    assert sum(tight[:8]) < sum(tight[8:])


def test_eight_chunks_of_which_two_hold_no_layer_are_in_the_space() -> None:
    """LLaMA-3's first and last chunk hold the embedding and the head alone: 8 chunks, 7 layers."""
    assert virtual_stages(126, 16) == [1, 2, 4, 8]
    assert virtual_stages(125, 16) == [1, 2, 4]
    as_published = run("mb-021")
    assert int(as_published.candidates.vpp[0]) == 8
    assert int(run_mesh(as_published, free=True).candidates.vpp[0]) == 8


# Published runs


def passes(mesh: Mesh, leaf: Leaf) -> tuple[list[float], list[float]]:
    """Seconds of each stage forward and backward, the transfer with the former."""
    stage = mesh.stage
    places = np.concatenate([leaf.rungs.sum(axis=1)[:, None], stage.ends], axis=1)
    dealt = np.concatenate([leaf.rungs, stage.ends], axis=1)
    forward = (places @ stage.forward).max(axis=1) + stage.send_s
    return forward.tolist(), (dealt @ stage.backward).max(axis=1).tolist()


def simulated_s(mesh: Mesh, leaf: Leaf) -> float:
    """The passes of a step, run operation by operation."""
    vpp, many = int(mesh.candidates.vpp[0]), int(mesh.candidates.microbatches[0])
    return simulate(*passes(mesh, leaf), vpp, many).step_s


@pytest.mark.parametrize(
    ("name", "free"), [*[(n, True) for n in ANY_FRAMEWORK], *[(n, False) for n in MEGATRON]]
)
def test_the_solved_plan_is_faster_than_the_best_uniform_one_at_its_memory(
    name: str, free: bool
) -> None:
    found = compared(name, free)
    assert run(name).used_for == "score"
    assert found.fits
    assert found.gain > COUNTS
    assert found.solved.memory_bytes <= found.uniform.memory_bytes * (1.0 + 1e-9)
    assert found.roomy.time_s <= found.solved.time_s
    # Nor is the gain one of the formula: the schedule itself, run, is faster by as much.
    before, after = simulated_s(found.mesh, found.uniform), simulated_s(found.mesh, found.solved)
    assert before / after - 1.0 > found.gain * 0.9


def test_where_no_stage_can_be_relieved_nothing_is_gained() -> None:
    """Megatron-LM of 2021: equal stages, one count, and no memory for a lower one."""
    found = compared("kor-007", False)
    assert found.solved.time_s == pytest.approx(found.uniform.time_s, rel=1e-12)


def test_a_framework_that_cannot_state_the_mesh_says_so() -> None:
    found = compare(run_mesh(run("nt-012"), free=False))
    assert found == "pp = 32 does not divide 80 layers"


def test_bloom_is_dealt_as_its_framework_dealt_it() -> None:
    """Embedding and head count as a layer each: 72 on 12 stages."""
    found = compare(run_mesh(run("bs-107"), free=False))
    assert not isinstance(found, str)
    assert found.solved.rungs.sum(axis=1).tolist() == [5, *[6] * 10, 5]


@pytest.mark.parametrize("name", ["dgxc-195", "bs-088", "nt-014", "dgxc-159"])
def test_the_uniform_plan_is_the_best_of_all(name: str) -> None:
    """By brute force: any stages take the odd layers, each rung for all."""
    mesh = run_mesh(run(name), free=True)
    stage, capacity = mesh.stage, mesh.problem.capacity_bytes
    floor, odd = divmod(stage.n_layers, stage.pp)
    found = []
    for heavy in itertools.combinations(range(stage.pp), odd):
        dealt = [floor + (s in heavy) for s in range(stage.pp)]
        for rung in range(len(mesh.rungs)):
            rungs = np.zeros((stage.pp, len(mesh.rungs)), dtype=np.int64)
            rungs[:, rung] = dealt
            time_s, memory = stage.evaluate(rungs)
            if memory <= capacity:
                found.append((time_s, memory))
    best = mesh.uniform()
    assert (best.time_s, best.memory_bytes) == pytest.approx(min(found), rel=1e-12)


def test_published_runs_are_scored_dense_and_piped() -> None:
    runs = published()
    assert len(runs) >= 200
    assert all(each.candidates.pp[0] > 1 and each.used_for == "score" for each in runs)
    first = first_of_each(runs)
    assert {each.source for each in first} == {each.source for each in runs}


def test_words() -> None:
    assert runs_of([7, 8, 8, 7]) == "7, 2 x 8, 7"
    leaf = Leaf(rungs=np.array([[7, 0], [5, 3], [5, 3]]), time_s=1.0, memory_bytes=1.0)
    assert layers_words(leaf) == "7, 2 x 8"
    assert remat_words(leaf, ["none", "full"]) == "full 0, 2 x 3, others none"
    same = Leaf(rungs=np.array([[8, 0], [8, 0]]), time_s=1.0, memory_bytes=1.0)
    assert remat_words(same, ["none", "full"]) == "all none"
