"""Certificates prove what they claim: a checker that knows nothing of the search accepts them.

And it refuses those in which something is wrong, so that its word counts.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificate_checker import MESH, RefusedError, check, check_statement, read
from certificate_rules import FRAMEWORKS, Framework
from command import SMALL, run
from oracle import all_plans, columns, legal_meshes, plain, remat_settings, small_instance

import autoshard
from autoshard.certifying import Certificate, certify
from autoshard.costmodels.errors import Infeasible
from autoshard.costmodels.legality import Legality, Rule
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.restoring import problem_of
from autoshard.search.certificate import Claim, exclude
from autoshard.search.front import Options, solve_front
from autoshard.solving import load_profile

Data = dict[str, Any]


def solved(seed: int, **options: Any) -> tuple[autoshard.ParetoFront, Problem, Profile]:
    """The front of a small problem of the oracle, every other one under a limit that binds."""
    instance = small_instance(seed)
    problem = instance.problem
    asked: dict[str, Any] = {"points": 0, "costs": instance.profile, **options}
    if seed % 2:
        sizes = [p.memory_bytes for p in solve_front(problem, instance.profile, Options()).points]
        problem = instance.limited(int(np.mean([sizes[0], sizes[-1]])) + 1)
        asked["memory_limit"] = problem.memory_limit_bytes
    front = autoshard.solve(
        problem.model,
        cluster=problem.cluster,
        global_batch_seqs=problem.workload.global_batch_seqs,
        seq_len=problem.workload.seq_len,
        recipe=problem.recipe,
        **asked,
    )
    return front, problem, instance.profile


@pytest.mark.parametrize("start", range(0, 60, 20))
def test_the_checker_accepts_the_certificates_of_small_problems(start: int) -> None:
    for seed in range(start, start + 20):
        front, problem, profile = solved(seed, gap=(0.0, 1e-3, 0.05)[seed % 3])
        check(certify(front, costs=profile).to_dict(), problem, profile)


@pytest.mark.parametrize("where", ["tp <= 2 and pp * vpp <= 4", "microbatches >= 2", "pp < 2"])
def test_the_checker_accepts_what_a_user_excludes(where: str) -> None:
    excluded = 0
    for seed in range(8):
        try:
            front, problem, profile = solved(seed, where=where, points=4)
        except Infeasible:
            continue
        data = certify(front, costs=profile).to_dict()
        check(data, problem, profile)
        excluded += data["meshes"]["by_0"].count("user")
    assert excluded


@pytest.mark.parametrize(("costs", "points"), [("textbook", 12), ("calibrated", 3)])
def test_the_checker_accepts_the_certificate_of_a_real_problem(
    costs: str, points: int, tmp_path: Path
) -> None:
    front = autoshard.solve("llama3-8b", chips=64, costs=costs, points=points)
    front.save(tmp_path / "front.json")
    certificate = autoshard.ParetoFront.load(tmp_path / "front.json").certificate()
    certificate.save(tmp_path / "proof.parquet")
    problem = problem_of(front.problem)
    data = read(tmp_path / "proof.parquet")
    check(data, problem, load_profile(costs, chip_kind="tpu"))
    assert len(data["meshes"]["dp"]) == front.search["meshes"]
    kinds = {by for k in range(len(front.points)) for by in data["meshes"][f"by_{k}"]}
    assert kinds >= {"peak", "mesh", "row", "chosen"}


def test_both_forms_of_a_file_say_the_same(tmp_path: Path) -> None:
    front, problem, profile = solved(4)
    certificate = certify(front, costs=profile)
    certificate.save(tmp_path / "proof.parquet")
    certificate.save(tmp_path / "proof.json")
    table, text = read(tmp_path / "proof.parquet"), read(tmp_path / "proof.json")
    for name, values in text["meshes"].items():
        numbers = [float("inf") if value == "inf" else value for value in values]
        assert numbers == table["meshes"][name], name
    assert {**text, "meshes": 0} == {**table, "meshes": 0}
    check(text, problem, profile)
    with pytest.raises(autoshard.SpecError, match=r"\.parquet or \.json"):
        certificate.save(tmp_path / "proof.txt")


# What is wrong is refused

SEEDS = (2, 4, 11, 16, 25)


@functools.cache
def certificate_of(seed: int) -> tuple[Certificate, Problem, Profile]:
    front, problem, profile = solved(seed)
    return certify(front, costs=profile), problem, profile


def true_bound_s(problem: Problem, profile: Profile, mesh: tuple[int, ...], budget: float) -> float:
    """The fastest plan of a mesh within a budget, by brute force."""
    rows = [r for r in legal_meshes(problem) if tuple(r[name] for name in MESH) == mesh]
    costs = profile.price(problem, columns(rows))
    fastest = [float("inf")]
    for n, row in enumerate(rows):
        held = profile.pipeline.in_flight(row["pp"], row["vpp"], row["microbatches"]).tolist()
        plans = all_plans(plain(costs, n), held, row, problem.model.n_layers)
        fastest += [seconds for seconds, size, _ in plans if size <= budget]
    return min(fastest)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bound_that_a_plan_beats_is_refused(seed: int) -> None:
    """Whatever kind of bound it is: each is raised to just above the truth."""
    certificate, problem, profile = certificate_of(seed)
    data = certificate.to_dict()
    table = data["meshes"]
    meshes = list(zip(*(table[name] for name in MESH), strict=True))
    k = len(data["points"]) // 2
    raised = 0
    for n in range(0, len(meshes), max(len(meshes) // 12, 1)):
        truth = true_bound_s(problem, profile, meshes[n], data["points"][k]["memory_bytes"])
        if np.isfinite(truth):
            assert float(table[f"bound_s_{k}"][n]) <= truth * (1 + 1e-9)
            wrong = copy.deepcopy(data)
            wrong["meshes"][f"bound_s_{k}"][n] = truth * (1 + 1e-6)
            with pytest.raises(RefusedError, match=r"beats its bound|above the chips' peak"):
                check(wrong, problem, profile)
            raised += 1
    assert raised


def drop_a_mesh(data: Data) -> None:
    data["meshes"] = {name: values[:-1] for name, values in data["meshes"].items()}


def repeat_a_mesh(data: Data) -> None:
    for values in data["meshes"].values():
        values.append(values[0])


def invent_a_mesh(data: Data) -> None:
    data["meshes"]["tp"][-1] *= 7


def lower_a_bound(data: Data) -> None:
    data["meshes"]["bound_s_0"][0] = data["points"][0]["lower_bound_s"] * 0.999


def call_a_mesh_too_large(data: Data) -> None:
    data["meshes"]["bound_s_0"][data["points"][0]["mesh"]] = "inf"


def call_a_memory_too_large(data: Data) -> None:
    n = data["points"][-1]["mesh"]
    data["meshes"]["least_bytes"][n] = data["points"][-1]["memory_bytes"] * 1.01


def call_a_mesh_the_users(data: Data) -> None:
    data["meshes"]["by_0"][0], data["meshes"]["bound_s_0"][0] = "user", None


def choose_another_mesh(data: Data) -> None:
    data["points"][0]["mesh"] ^= 1


def choose_two_meshes(data: Data) -> None:
    data["meshes"]["by_0"][data["points"][0]["mesh"] ^ 1] = "chosen"


def claim_a_better_bound(data: Data) -> None:
    data["points"][0]["lower_bound_s"] *= 1.01


def claim_a_faster_plan(data: Data) -> None:
    data["points"][0]["step_time_s"] *= 0.999


def claim_a_smaller_plan(data: Data) -> None:
    data["points"][0]["memory_bytes"] *= 0.999


def claim_no_proof(data: Data) -> None:
    data["points"][0]["proven"] = False


def change_the_gap(data: Data) -> None:
    data["points"][0]["gap"] += 0.001


def speak_of_another_model(data: Data) -> None:
    data["problem"]["model"] = {**data["problem"]["model"], "d_ff": 2 * 4096}


def speak_of_another_cluster(data: Data) -> None:
    data["problem"]["cluster"] = {**data["problem"]["cluster"], "chips": 4096}


def speak_of_other_memory(data: Data) -> None:
    data["problem"]["capacity_bytes"] += 1


def invent_a_kind(data: Data) -> None:
    data["meshes"]["by_0"][0] = "trust me"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "corrupt",
    [
        drop_a_mesh,
        repeat_a_mesh,
        invent_a_mesh,
        lower_a_bound,
        call_a_mesh_too_large,
        call_a_memory_too_large,
        call_a_mesh_the_users,
        choose_another_mesh,
        choose_two_meshes,
        claim_a_better_bound,
        claim_a_faster_plan,
        claim_a_smaller_plan,
        claim_no_proof,
        change_the_gap,
        speak_of_another_model,
        speak_of_another_cluster,
        speak_of_other_memory,
        invent_a_kind,
    ],
)
def test_a_certificate_that_is_wrong_anywhere_is_refused(
    seed: int, corrupt: Callable[[Data], None]
) -> None:
    certificate, problem, profile = certificate_of(seed)
    data = copy.deepcopy(certificate.to_dict())
    corrupt(data)
    with pytest.raises(RefusedError):
        check(data, problem, profile)


def test_the_certificate_of_another_problem_is_refused() -> None:
    certificate, _, profile = certificate_of(2)
    other = small_instance(4)
    with pytest.raises(RefusedError, match="is another"):
        check(certificate.to_dict(), other.problem, profile)


def test_other_costs_are_refused() -> None:
    certificate, problem, profile = certificate_of(2)
    other = dataclasses.replace(autoshard.textbook(layer="mlp2"), ladder=profile.ladder)
    with pytest.raises(RefusedError, match="does not cost"):
        check(certificate.to_dict(), problem, other)


def test_a_claim_that_a_plan_beats_cannot_be_certified() -> None:
    instance = small_instance(2)
    point = solve_front(instance.problem, instance.profile, Options()).points[0]
    claim = Claim(budget_bytes=point.memory_bytes, time_s=point.step_time_s * 1.001)
    with pytest.raises(AssertionError, match="faster than the bound"):
        exclude(instance.problem, instance.profile, [claim])


# Where there is none, a sentence says so


def test_a_stopped_search_has_no_certificate() -> None:
    front = autoshard.solve("llama3-70b", chip="h100", chips=4096, time_limit_s=1e-6)
    with pytest.raises(autoshard.SpecError, match="was stopped before its end"):
        front.certificate()


def test_a_search_that_functions_constrain_has_none() -> None:
    front, _, profile = solved(2, constrain_stages=lambda model, variables: None)
    with pytest.raises(autoshard.SpecError, match="functions constrained"):
        front.certificate(costs=profile)


def test_costs_that_are_not_those_of_the_front_are_refused() -> None:
    front = autoshard.solve("llama3-8b", chips=16, points=1)
    for other in ("calibrated", autoshard.textbook(overlap="sum")):
        with pytest.raises(autoshard.SpecError, match="other costs"):
            front.certificate(costs=other)
    slower = dataclasses.replace(
        front, points=tuple(dataclasses.replace(p, step_time_s=9.0) for p in front.points)
    )
    with pytest.raises(autoshard.SpecError, match="other times"):
        slower.certificate()
    costs = {**front.problem["costs"], "profile": "ours"}
    named = dataclasses.replace(front, problem={**front.problem, "costs": costs}, profile=None)
    with pytest.raises(autoshard.SpecError, match="give the costs of the front"):
        named.certificate()


def test_a_constraint_that_was_no_text_must_be_given_again() -> None:
    import polars as pl

    few = pl.col("tp") <= 2
    front, problem, profile = solved(2, where=few)
    with pytest.raises(autoshard.SpecError, match="give the constraint"):
        certify(front, costs=profile)
    with pytest.raises(autoshard.SpecError, match="another constraint"):
        certify(front, costs=profile, where="tp <= 4")
    again = certify(front, costs=profile, where=few).to_dict()
    again["problem"]["where"] = "tp <= 2"
    check(again, problem, profile)


# The command


def test_the_command_writes_a_certificate(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    done = run("solve", *SMALL, "--points", "2", "--where", "tp <= 4", "--certificate", str(path))
    assert done.exit_code == 0, done.stderr
    assert f"wrote {path}" in done.stderr
    data = read(path)
    assert data["schema"] == "autoshard.certificate/1"
    check(data, problem_of(data["problem"]), autoshard.textbook())


@pytest.mark.parametrize("name", ["proof.txt", "proof", "proof.csv"])
def test_another_ending_is_refused_before_the_search(name: str, tmp_path: Path) -> None:
    done = run("solve", "--model", "no-such-model", "--certificate", str(tmp_path / name))
    assert done.exit_code == 2
    assert "use .parquet or .json" in done.stderr
    assert not (tmp_path / name).exists()


def test_a_front_without_a_certificate_is_still_shown(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    done = run(
        *("solve", "--model", "llama3-70b", "--chip", "h100", "--chips", "4096"),
        *("--time-limit", "0.000001", "--json", "--certificate", str(path)),
    )
    assert done.exit_code == 0
    assert "no certificate: the search was stopped before its end." in done.stderr
    assert '"front"' in done.stdout
    assert not path.exists()


# Under a framework's rules

STACKED = ("megatron", "megatron-2021", "torchtitan", "llm-foundry", "nanotron", "maxtext")


@functools.cache
def of_stack(stack: str) -> tuple[autoshard.ParetoFront, Data, Problem, Profile]:
    """Few chips, so that the rules leave pipelines on the front."""
    chip = "v5p" if stack == "maxtext" else "h100"
    front = autoshard.solve(
        "llama3-8b", chip=chip, chips=32, global_batch_seqs=32, stack=stack, points=3
    )
    data = front.certificate().to_dict()
    return front, data, problem_of(front.problem), load_profile(stack=stack)


@pytest.mark.parametrize("stack", STACKED)
def test_the_checker_accepts_the_certificates_of_every_framework(stack: str) -> None:
    front, data, problem, profile = of_stack(stack)
    check(data, problem, profile)
    for k in range(len(front.points)):
        said = data["meshes"][f"by_{k}"]
        assert 0 < said.count("rule") < len(said)


@pytest.mark.parametrize("stack", STACKED)
def test_a_mesh_that_the_framework_can_state_is_not_excluded_by_its_rules(stack: str) -> None:
    _, data, problem, profile = of_stack(stack)
    wrong = copy.deepcopy(data)
    k, n = 0, data["meshes"]["by_0"].index("peak")
    wrong["meshes"][f"by_{k}"][n], wrong["meshes"][f"bound_s_{k}"][n] = "rule", None
    with pytest.raises(RefusedError, match="can state a plan"):
        check(wrong, problem, profile)


def test_a_plan_that_the_framework_cannot_state_is_refused() -> None:
    _, data, problem, profile = of_stack("megatron")
    plan = data["points"][0]["plan"]
    check_statement(problem, profile, FRAMEWORKS["Megatron-Core"], plan)
    for change, words in (
        ({"cp": 2, "seq_split": 2}, "cannot state"),
        ({"remat": [_mixed(stage) for stage in plan["remat"]]}, "mixes"),
    ):
        with pytest.raises(RefusedError, match=words):
            check_statement(problem, profile, FRAMEWORKS["Megatron-Core"], plan | change)
    wrong = copy.deepcopy(data)
    wrong["problem"]["costs"] = {**data["problem"]["costs"], "plans_of": "another framework"}
    with pytest.raises(RefusedError, match="no such framework"):
        check(wrong, problem, profile)
    wrong["problem"]["costs"]["plans_of"] = "torchtitan"
    with pytest.raises(RefusedError, match="remat settings"):
        check(wrong, problem, profile)


def _mixed(stage: dict[str, int]) -> dict[str, int]:
    """One layer less on its setting, and one on a middle one."""
    name = next(iter(stage))
    return {**stage, name: stage[name] - 1, "selective": 1}


RESTRICTED = [("one-count", False), ("one-count", True), ("one-policy", False), ("by-stage", True)]


@pytest.mark.parametrize(("remat", "equal"), RESTRICTED)
def test_bounds_under_rules_are_checked_setting_by_setting(
    monkeypatch: pytest.MonkeyPatch, remat: str, equal: bool
) -> None:
    """Small problems under made-up frameworks; each bound raised above the truth is refused."""
    raised = 0
    for seed in (1, 2, 4, 6, 11, 16):
        instance = small_instance(seed)
        layers = instance.problem.model.n_layers
        even = Rule(
            name="even",
            sentence="",
            source="",
            allows=lambda p, c: p.model.n_layers % (c.pp * c.vpp) == 0,
            late=True,
        )
        legality = Legality(
            framework="it", remat=remat, equal_stages=equal, rules=(even,) if equal else ()
        )
        profile = instance.profile.under(legality)
        framework = Framework(
            states=lambda p, r: not equal or p.model.n_layers % (r["pp"] * r["vpp"]) == 0,
            remat=remat,
            settings=tuple(rung.name for rung in profile.ladder),
            equal=equal,
        )
        monkeypatch.setitem(FRAMEWORKS, "it", framework)
        problem = instance.problem
        front = autoshard.solve(
            problem.model,
            cluster=problem.cluster,
            global_batch_seqs=problem.workload.global_batch_seqs,
            seq_len=problem.workload.seq_len,
            recipe=problem.recipe,
            points=0,
            gap=0.0,
            costs=profile,
        )
        data = certify(front, costs=profile).to_dict()
        check(data, problem, profile)
        table = data["meshes"]
        meshes = list(zip(*(table[name] for name in MESH), strict=True))
        k = len(data["points"]) // 2
        for n in range(0, len(meshes), max(len(meshes) // 6, 1)):
            if table[f"by_{k}"][n] == "rule":
                continue
            budget = data["points"][k]["memory_bytes"]
            ways = remat_settings
            truth = min(
                (
                    seconds
                    for row in legal_meshes(problem)
                    if tuple(row[name] for name in MESH) == meshes[n]
                    and framework.states(problem, row)
                    for way in ways(remat, layers, len(profile.ladder), row["vpp"])
                    for seconds, size, counts in all_plans(
                        plain(profile.price(problem, columns([row])), 0),
                        profile.pipeline.in_flight(
                            row["pp"], row["vpp"], row["microbatches"]
                        ).tolist(),
                        row,
                        layers,
                        way,
                    )
                    if size <= budget and (not equal or len(set(counts)) == 1)
                ),
                default=float("inf"),
            )
            if np.isfinite(truth):
                assert float(table[f"bound_s_{k}"][n]) <= truth * (1 + 1e-9)
                wrong = copy.deepcopy(data)
                wrong["meshes"][f"bound_s_{k}"][n] = truth * (1 + 1e-6)
                with pytest.raises(RefusedError, match=r"beats its bound|above the chips' peak"):
                    check(wrong, problem, profile)
                raised += 1
    assert raised >= 6


# Under conditions on what plans cost, and with chips as an objective


@pytest.mark.parametrize(
    ("where", "shuts_out"),
    [
        ("mfu > 0.5", False),
        ("memory_gib < 12 and tp <= 4", False),
        ("mfu > 0.9 and memory_gib < 20", False),
        # Faster plans are shut out that the claims, without the condition, would deny.
        ("tp = 2 or memory_bytes <= 6000000000", True),
        ("step_time_s < 9 and chips_used < 16", True),
    ],
)
def test_the_checker_accepts_conditions_on_what_plans_cost(where: str, shuts_out: bool) -> None:
    front = autoshard.solve("llama3-8b", chips=16, global_batch_seqs=16, points=3, where=where)
    data = front.certificate().to_dict()
    check(data, problem_of(front.problem), autoshard.textbook())
    if not shuts_out:
        return
    free = copy.deepcopy(data)
    free["problem"]["where"] = None
    free["meshes"] |= {
        name: ["row" if kind == "user" else kind for kind in kinds]
        for name, kinds in data["meshes"].items()
        if name.startswith("by_")
    }
    with pytest.raises(RefusedError):
        check(free, problem_of(front.problem), autoshard.textbook())


def test_a_plan_beyond_the_limits_is_refused() -> None:
    front = autoshard.solve("llama3-8b", chips=16, global_batch_seqs=16, points=3)
    data = front.certificate().to_dict()
    data["problem"]["where"] = f"step_time_s < {front.points[0].step_time_s * 0.999}"
    with pytest.raises(RefusedError, match="excludes a plan"):
        check(data, problem_of(front.problem), autoshard.textbook())


@pytest.mark.parametrize("objectives", ["time,memory,chips", "time,chips"])
def test_the_checker_accepts_chips_as_an_objective(objectives: str) -> None:
    front = autoshard.solve(
        "llama3-8b", chips=16, global_batch_seqs=16, points=6, objectives=objectives
    )
    assert len({point.plan.chips_used for point in front.points}) > 1
    data = front.certificate().to_dict()
    problem = problem_of(front.problem)
    check(data, problem, autoshard.textbook())
    assert "chips" in {kind for k in range(6) for kind in data["meshes"].get(f"by_{k}", [])}
    wrong = copy.deepcopy(data)
    # The first front is of all chips, and none is too many there.
    n = next(n for n, kind in enumerate(wrong["meshes"]["by_0"]) if kind != "chosen")
    wrong["meshes"]["by_0"][n], wrong["meshes"]["bound_s_0"][n] = "chips", None
    with pytest.raises(RefusedError, match="too many chips"):
        check(wrong, problem, autoshard.textbook())
