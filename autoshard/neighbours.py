"""Plans one change away: what a person would try next on a plan that runs.

A change moves a factor between two degrees, or exchanges the microbatch size, the virtual stages,
ZeRO, remat, or how layers are dealt. What has to follow follows (the number of microbatches, the
layers of other stages); everything else stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from autoshard.completing import counted_remat, default_layers
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.pricing import stage_of
from autoshard.search import dealing
from autoshard.search.interleaving import virtual_stages
from autoshard.search.stages import Choices

#: Degrees between which factors move; their product is the number of chips.
MOVED = ("dp", "batch_split", "seq_split", "tp", "cp", "pp")

#: The remat of all layers: a rung, and of how many layers of each chunk (None: of all).
Policy = tuple[str, int | None]


def neighbours(problem: Problem, profile: Profile, plan: Plan) -> Iterator[Plan]:
    """Every plan that is one change away, legal or not, some of them twice."""
    yield from _moved(problem, profile, plan)
    yield from _batched(problem, plan)
    yield from _chunked(problem, profile, plan)
    yield from (replace(plan, reshard=z) for z in problem.recipe.reshard if z != plan.reshard)
    yield from _recomputed(problem, profile, plan)
    yield from _dealt_again(problem, profile, plan)


def _moved(problem: Problem, profile: Profile, plan: Plan) -> Iterator[Plan]:
    """A prime factor goes from one degree to another, or from idle chips to one."""
    tpu = problem.cluster.chip.kind == "tpu"
    names = [name for name in MOVED if not (tpu and name == "dp")]
    for up in names:
        ways = [
            (down, factor)
            for down in names
            if down != up
            for factor in prime_factors(getattr(plan, down))
        ]
        if plan.chips_used * 2 <= problem.cluster.chips:
            ways.append(("", 2))
        for down, factor in ways:
            degrees = {up: getattr(plan, up) * factor}
            if down:
                degrees[down] = getattr(plan, down) // factor
            moved = _with_degrees(problem, profile, plan, degrees)
            if moved is not None:
                yield moved


def _with_degrees(
    problem: Problem, profile: Profile, plan: Plan, degrees: dict[str, int]
) -> Plan | None:
    """The plan with other degrees, and what follows from them; None where nothing can follow."""
    values = {name: degrees.get(name, getattr(plan, name)) for name in MOVED}
    each, rest = divmod(problem.workload.global_batch_seqs, values["dp"] * values["batch_split"])
    if rest or not each:
        return None
    size = math.gcd(plan.micro_batch_size, each)
    batch = {"micro_batch_size": size, "microbatches": each // size}
    pp = values["pp"]
    if pp == plan.pp:
        return replace(plan, **values, **batch)
    if pp > problem.model.n_layers:
        return None
    rounds = batch["microbatches"] % pp == 0 and pp > 1
    chunks = virtual_stages(problem.model.n_layers, pp) if rounds and plan.vpp > 1 else [1]
    vpp = max((v for v in chunks if v <= plan.vpp), default=1)
    layers, _ = default_layers(problem, profile, pp, vpp)
    remat = _same_remat(profile, plan, layers, vpp)
    return replace(plan, **values, **batch, vpp=vpp, layers_per_stage=layers, remat=remat)


def _batched(problem: Problem, plan: Plan) -> Iterator[Plan]:
    """Microbatches a prime factor larger or smaller."""
    for factor in prime_factors(plan.microbatches):
        yield replace(
            plan,
            microbatches=plan.microbatches // factor,
            micro_batch_size=plan.micro_batch_size * factor,
        )
    for factor in prime_factors(plan.micro_batch_size):
        yield replace(
            plan,
            microbatches=plan.microbatches * factor,
            micro_batch_size=plan.micro_batch_size // factor,
        )


def _chunked(problem: Problem, profile: Profile, plan: Plan) -> Iterator[Plan]:
    """Other virtual stages, with the layers where they are."""
    if plan.pp == 1 or not profile.virtual:
        return
    for vpp in virtual_stages(problem.model.n_layers, plan.pp):
        if vpp != plan.vpp:
            remat = _same_remat(profile, plan, plan.layers_per_stage, vpp)
            yield replace(plan, vpp=vpp, remat=remat)


def _recomputed(problem: Problem, profile: Profile, plan: Plan) -> Iterator[Plan]:
    """Other remat: one rung for all layers, a count of them, or the best of each stage."""
    names = [rung.name for rung in profile.ladder]
    for name in names:
        yield replace(plan, remat=tuple({name: n} for n in plan.layers_per_stage))
    if profile.legality.remat == "one-policy" or len(names) < 2:
        return
    chunk = -(-max(plan.layers_per_stage) // plan.vpp)
    for count in range(1, chunk):
        remat = counted_remat(names[0], names[-1], count, plan.layers_per_stage, plan.vpp)
        yield replace(plan, remat=remat)
    if profile.legality.remat == "by-stage":
        stage = stage_of(problem, profile, plan)
        most = max(plan.layers_per_stage)
        choices = Choices.of(stage, most)
        pick = dealing.best_choices(stage, choices, float(problem.capacity_bytes))
        if not np.isin(plan.layers_per_stage, choices.numbers).all():
            return  # of a plan outside of the space
        at = np.searchsorted(choices.numbers, plan.layers_per_stage)
        picked = pick[np.arange(plan.pp), at]
        if (picked >= 0).all():
            yield replace(plan, remat=_remat_of(names, choices.rungs[picked]))


def _dealt_again(problem: Problem, profile: Profile, plan: Plan) -> Iterator[Plan]:
    """The layers dealt as is best for this mesh and this remat, within the memory of a chip."""
    policy = policy_of(profile, plan)
    if policy is None or plan.pp == 1 or profile.legality.equal_stages:
        return
    stage = stage_of(problem, profile, plan)
    most = dealing.most_layers(stage, float(problem.capacity_bytes), np.inf)
    names = [rung.name for rung in profile.ladder]
    numbers = tuple(stage.numbers(most))
    if not numbers:
        return
    remat = remat_under(profile, policy, numbers, plan.vpp)
    dealt = np.array([[rungs.get(n, 0) for n in names] for rungs in remat], dtype=np.int64)
    choices = Choices.of(stage, dealt=dealt)
    leaf = dealing.fastest(stage, float(problem.capacity_bytes), choices=choices)
    if leaf is not None:
        layers = tuple(int(n) for n in leaf.rungs.sum(axis=1))
        yield replace(plan, layers_per_stage=layers, remat=_remat_of(names, leaf.rungs))


def policy_of(profile: Profile, plan: Plan) -> Policy | None:
    """The one remat setting of all layers; None where stages differ by more than their size."""
    names = list(dict.fromkeys(n for stage in plan.remat for n, k in stage.items() if k))
    first, last = profile.ladder[0].name, profile.ladder[-1].name
    if len(names) == 1:
        return names[0], None
    if set(names) == {first, last}:
        for count in range(1, -(-max(plan.layers_per_stage) // plan.vpp)):
            counted = counted_remat(first, last, count, plan.layers_per_stage, plan.vpp)
            if all(
                a.get(last, 0) == b.get(last, 0) for a, b in zip(plan.remat, counted, strict=True)
            ):
                return last, count
    return None


def remat_under(
    profile: Profile, policy: Policy, layers: tuple[int, ...], vpp: int
) -> tuple[dict[str, int], ...]:
    """The remat of stages of so many layers under one setting."""
    name, count = policy
    if count is None:
        return tuple({name: n} for n in layers)
    return counted_remat(profile.ladder[0].name, name, count, layers, vpp)


def _same_remat(
    profile: Profile, plan: Plan, layers: tuple[int, ...], vpp: int
) -> tuple[dict[str, int], ...]:
    """The remat of a plan for other stages: its setting, or as large a share of every stage."""
    policy = policy_of(profile, plan)
    total = sum(plan.layers_per_stage)
    if policy is not None:
        name, count = policy
        if count is not None:
            share = sum(stage.get(name, 0) for stage in plan.remat) / total
            count = round(share * -(-max(layers) // vpp))
            policy = (name, count) if count else (profile.ladder[0].name, None)
        return remat_under(profile, policy, layers, vpp)
    runs = {rung.name: sum(s.get(rung.name, 0) for s in plan.remat) for rung in profile.ladder}
    first, second = sorted(runs, key=lambda name: -runs[name])[:2]
    share = runs[second] / (runs[first] + runs[second])
    stages = []
    for n in layers:
        few = round(n * share)
        stages.append({k: v for k, v in ((first, n - few), (second, few)) if v})
    return tuple(stages)


def _remat_of(names: list[str], rungs: np.ndarray) -> tuple[dict[str, int], ...]:
    return tuple(
        {name: int(k) for name, k in zip(names, stage, strict=True) if k} for stage in rungs
    )


def prime_factors(number: int) -> list[int]:
    """The distinct primes that divide a number."""
    found, prime = [], 2
    while prime * prime <= number:
        if number % prime == 0:
            found.append(prime)
            while number % prime == 0:
                number //= prime
        prime += 1
    return [*found, number] if number > 1 else found
