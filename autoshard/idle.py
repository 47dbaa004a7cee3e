"""Why chips are idle, and which batch could fill them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.search.bounds import uniform_plans
from autoshard.search.limits import Limit, Limits
from autoshard.search.rows import price_rows
from autoshard.search.space import Keep, batch_degrees, sequence_degrees
from autoshard.words import percent

#: A gap below this is none.
EXACT = 1e-6
#: Batches that are priced before the search for one gives up.
TRIES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """A batch with a plan on every chip that fits in memory, priced with layers dealt evenly."""

    sequences: int
    batch_split: int
    seq_split: int
    step_time_s: float


def idle_notes(
    problem: Problem,
    profile: Profile,
    plan: Plan,
    *,
    proven: bool,
    gap: float = 0.0,
    step_time_s: float = math.inf,
    keep: Keep | None = None,
    limit: Limit | None = None,
) -> Iterator[str]:
    """Sentences about chips that the plan leaves idle; none where it uses all.

    Args:
        problem: the question.
        profile: the cost models that answered it.
        plan: the fastest plan.
        proven: whether the plan is proven to be the fastest; only then is it said that no plan on
        more chips is faster.
        gap: how much faster than the plan another may be, relatively.
        step_time_s: the plan's step time; a batch that trains fewer tokens a second is not named.
        keep: the user's constraint, which a named plan satisfies.
        limit: the user's constraint on predicted costs, likewise.
    """
    cluster = problem.cluster
    idle = cluster.chips - plan.chips_used
    if idle == 0:
        return
    said = [_reason(problem)]
    if proven:
        legality = profile.legality
        allowed = "" if legality.free else f" that {legality.framework} can state"
        if keep is not None or limit is not None:
            allowed += f"{' and' if allowed else ' that'} the constraint allows"
        most = f" by more than {_percent_above(gap)}" if gap > EXACT else ""
        said.append(f"no plan on more chips{allowed} is faster{most}")
    yield (
        f"{idle:,} of {cluster.chips:,} chips {'is' if idle == 1 else 'are'} idle"
        f"{_where(problem, plan)}: {'; '.join(said)}."
    )
    filled = filling_batch(problem, profile, plan, step_time_s=step_time_s, keep=keep, limit=limit)
    if filled is not None:
        sequences = filled.sequences
        yield (
            f"A batch of {sequences:,} sequences ({sequences * problem.workload.seq_len:,} tokens) "
            f"could fill {'every pod' if cluster.pods > 1 else 'them'}: "
            f"{_degrees(problem, plan, filled)} on all {cluster.chips:,} chips fits in memory."
        )


def _where(problem: Problem, plan: Plan) -> str:
    """How idle chips lie in the pods of a TPU cluster, in brackets; nothing for one pod."""
    cluster = problem.cluster
    if cluster.chip.kind != "tpu" or cluster.pods == 1:
        return ""
    each = cluster.pod_chips - plan.chips_used // plan.pods
    inside = "one pod" if plan.pods == 1 else f"each of {plan.pods} pods"
    words = [f"{each:,} in {inside}"] if each else []
    if plan.pods < cluster.pods:
        words.append(f"{cluster.pods - plan.pods} of {cluster.pods} pods unused")
    return f" ({', '.join(words)})"


def _reason(problem: Problem) -> str:
    """Why degrees cannot make up all chips, or that they can."""
    cluster, workload = problem.cluster, problem.workload
    sequences = workload.global_batch_seqs
    if cluster.chip.kind == "tpu" and sequences % cluster.pods:
        return (
            f"each pod holds a replica that trains as many sequences as the others, and "
            f"{cluster.pods} pods do not divide {sequences:,} sequences"
        )
    stages = fewest_stages(problem)
    if stages == 1:
        return "degrees that use all of them exist"
    offered = cluster.pod_chips if cluster.chip.kind == "tpu" else cluster.chips
    shapes = ((sequences, "sequences"), (workload.seq_len, "tokens of each"))
    divided = ", the ".join(f"{n:,} {name} ({factors(n)})" for n, name in shapes)
    heads = f"{problem.model.n_heads} heads ({factors(problem.model.n_heads)})"
    prime = factors(offered) == str(offered)
    total = f"{offered:,} is prime" if prime else f"{offered:,} = {factors(offered)}"
    why = f"degrees divide the {divided} and the {heads}, while {total}"
    if stages is None:
        most = min(problem.model.n_layers, offered)
        return f"apart from at most {most} pipeline stages, {why}"
    return f"without pipeline stages, {why}; with at least {stages} stages they can use all"


def fewest_stages(problem: Problem) -> int | None:
    """The fewest pipeline stages with which degrees use every chip; None where none do."""
    model, cluster, workload = problem.model, problem.cluster, problem.workload
    batch = batch_degrees(workload.global_batch_seqs)
    if cluster.chip.kind == "tpu":
        batch = batch[batch[:, 0] == cluster.pods]
    shards = np.unique(batch.prod(axis=1))
    ways = np.unique(sequence_degrees(model, workload.seq_len).prod(axis=1))
    shards, ways = shards[shards <= cluster.chips], ways[ways <= cluster.chips]
    flat = np.unique(np.multiply.outer(shards, ways))
    stages = cluster.chips // flat[(flat <= cluster.chips) & (cluster.chips % flat == 0)]
    stages = stages[stages <= model.n_layers]
    return int(stages.min()) if len(stages) else None


def filling_batch(
    problem: Problem,
    profile: Profile,
    plan: Plan,
    *,
    step_time_s: float = math.inf,
    keep: Keep | None = None,
    limit: Limit | None = None,
) -> Filling | None:
    """The batch nearest to the workload's that fills the cluster under the plan's other degrees.

    The sequence split stays as near to the plan's as leaves a whole number of shards. Its plan fits
    in memory, satisfies ``keep`` and ``limit`` and, where ``step_time_s`` says the plan's, trains
    more tokens a second; None where no such batch is found, and where the workload's own would do.
    """
    asked = problem.workload.global_batch_seqs
    for sequences, batch_split, seq_split in itertools.islice(_batches(problem, plan), TRIES):
        if sequences == asked:
            return None
        workload = dataclasses.replace(problem.workload, global_batch_seqs=sequences)
        larger = dataclasses.replace(problem, workload=workload)
        step_s = _even_step_s(larger, profile, plan, batch_split, seq_split, keep, limit)
        if step_s < math.inf and step_s / sequences < step_time_s / asked:
            return Filling(
                sequences=sequences,
                batch_split=batch_split,
                seq_split=seq_split,
                step_time_s=step_s,
            )
    return None


def _batches(problem: Problem, plan: Plan) -> Iterable[tuple[int, int, int]]:
    """Sequences, ``batch_split`` and ``seq_split`` that fill the cluster, the nearest first."""
    cluster, workload = problem.cluster, problem.workload
    asked, replicas = workload.global_batch_seqs, _replicas(problem, plan)
    fixed = replicas * plan.tp * plan.pp * plan.cp
    if cluster.chips % fixed:
        return []
    shards = cluster.chips // fixed
    found = []
    for tp, seq_split, cp in sequence_degrees(problem.model, workload.seq_len).tolist():
        if tp != plan.tp or cp != plan.cp or shards % seq_split:
            continue
        split = shards // seq_split
        change = abs(math.log(seq_split / plan.seq_split))
        if asked % (replicas * split) == 0:
            return []  # what is asked fills the cluster too: the batch is not the reason
        # A shard takes whole rounds of the plan's microbatches, at least one.
        unit = replicas * split * plan.microbatches
        for rounds in sorted({max(asked // unit, 1), asked // unit + 1}):
            distance = round(abs(math.log(rounds * unit / asked)), 9)
            found.append((change, distance, rounds * unit, split, seq_split))
    return [batch for _, _, *batch in sorted(found)]  # type: ignore[misc]


def _even_step_s(
    problem: Problem,
    profile: Profile,
    plan: Plan,
    batch_split: int,
    seq_split: int,
    keep: Keep | None,
    limit: Limit | None,
) -> float:
    """Step time of the fastest even plan that fits, on any layout; infinite where none does."""
    cluster, replicas = problem.cluster, _replicas(problem, plan)
    fsdp = batch_split * seq_split
    layouts = cluster.layouts
    # A side of the torus that no degree uses gets no axis, as in search.space.
    tensor, data = plan.tp > 1, fsdp * plan.cp * plan.pp > 1
    legal = [
        number
        for number, layout in enumerate(layouts)
        if len(layouts) == 1
        or (bool(layout.tensor_axes) == tensor and bool(layout.data_axes) == data)
    ]
    degrees = {name: getattr(plan, name) for name in COLUMNS if name != "layout"} | {
        "dp": replicas,
        "pods": replicas if cluster.chip.kind == "tpu" else plan.pods,
        "batch_split": batch_split,
        "seq_split": seq_split,
        "micro_batch_size": problem.workload.global_batch_seqs
        // (replicas * batch_split * plan.microbatches),
    }
    columns = {name: np.full(len(legal), value) for name, value in degrees.items()}
    candidates = Candidates(**columns, layout=np.array(legal, dtype=np.int64))
    candidates = candidates.take(profile.legality.allows(problem, candidates))
    if keep is not None:
        candidates = candidates.take(keep(candidates))
    if not len(candidates):
        return math.inf
    seconds, memory = uniform_plans(price_rows(problem, profile, candidates))
    seconds = Limits.of(limit, problem, profile, candidates).allowed_s(seconds, memory)
    return float(np.min(seconds, where=memory <= problem.capacity_bytes, initial=np.inf))


def _replicas(problem: Problem, plan: Plan) -> int:
    """``dp`` of a plan on every chip: on TPU one replica a pod."""
    return problem.cluster.pods if problem.cluster.chip.kind == "tpu" else plan.dp


def _degrees(problem: Problem, plan: Plan, filled: Filling) -> str:
    """``8 x 140 batch x 4 sequence x 16-way TP``."""
    replicas = _replicas(problem, plan)
    words = [f"{replicas}"] if replicas > 1 else []
    words += [f"{filled.batch_split:,} batch", f"{filled.seq_split} sequence", f"{plan.tp}-way TP"]
    words += [f"{plan.pp}-stage PP"] if plan.pp > 1 else []
    words += [f"{plan.cp}-way CP"] if plan.cp > 1 else []
    return " x ".join(words)


def _percent_above(share: float) -> str:
    """A share in percent with two digits that matter, rounded upwards: a claim stays true."""
    digit = 10.0 ** (math.floor(math.log10(share)) - 1)
    return percent(math.ceil(share / digit * (1.0 - 1e-12)) * digit)


def factors(number: int) -> str:
    """A number as a product of prime powers: ``2^8 * 5 * 7``."""
    parts, left, prime = [], number, 2
    while left > 1:
        power = 0
        while left % prime == 0:
            left //= prime
            power += 1
        if power:
            parts.append(f"{prime}^{power}" if power > 1 else str(prime))
        prime += 1 if prime == 2 else 2
        if prime * prime > left > 1:
            parts.append(str(left))
            break
    return " * ".join(parts) or "1"
