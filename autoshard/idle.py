"""Why chips are idle, and which batch would fill them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.search.space import sequence_degrees


def idle_notes(problem: Problem, plan: Plan, *, proven: bool) -> Iterator[str]:
    """Sentences about chips that the plan leaves idle; none where it uses all.

    That no plan on more chips is faster is said where the plan is ``proven`` to be the fastest.
    """
    cluster, workload = problem.cluster, problem.workload
    idle = cluster.chips - plan.chips_used
    if idle == 0:
        return
    offered = cluster.pod_chips if cluster.chip.kind == "tpu" else cluster.chips
    per_pod = f" ({idle // plan.pods:,} in each of {plan.pods} pods)" if plan.pods > 1 else ""
    yield (
        f"{idle:,} of {cluster.chips:,} chips are idle{per_pod}: apart from pipeline "
        f"stages, degrees divide the {workload.global_batch_seqs:,} sequences "
        f"({factors(workload.global_batch_seqs)}), the {workload.seq_len:,} tokens of each "
        f"({factors(workload.seq_len)}) and the {problem.model.n_heads} heads "
        f"({factors(problem.model.n_heads)}), while {offered:,} = {factors(offered)}"
        + ("; no plan on more chips is faster." if proven else ".")
    )
    filled = filling_batch(problem, plan)
    if filled is not None:
        sequences, split, seq_split = filled
        pods = f"{plan.dp} x " if plan.dp > 1 else ""
        yield (
            f"A batch of {sequences:,} sequences ({sequences * workload.seq_len:,} tokens) would "
            f"fill {'every pod' if cluster.pods > 1 else 'them'}: {pods}{split:,} batch x "
            f"{seq_split} sequence x {plan.tp}-way TP"
            + (f" x {plan.pp}-stage PP" if plan.pp > 1 else "")
            + (f" x {plan.cp}-way CP" if plan.cp > 1 else "")
            + f" on all {cluster.chips:,} chips."
        )


def filling_batch(problem: Problem, plan: Plan) -> tuple[int, int, int] | None:
    """The batch nearest to the workload's that fills the cluster under the plan's other degrees.

    Returns sequences, ``batch_split`` and ``seq_split``, with the sequence split as near to the
    plan's as leaves a whole number of shards; None where none does.
    """
    cluster, workload = problem.cluster, problem.workload
    replicas = cluster.pods if cluster.chip.kind == "tpu" else plan.dp
    fixed = replicas * plan.tp * plan.pp * plan.cp
    if cluster.chips % fixed:
        return None
    shards = cluster.chips // fixed
    legal = sequence_degrees(problem.model, workload.seq_len)
    best: tuple[float, float, int, int, int] | None = None
    for tp, seq_split, cp in legal.tolist():
        if tp != plan.tp or cp != plan.cp or shards % seq_split:
            continue
        split = shards // seq_split
        # A shard takes whole rounds of the plan's microbatches, at least one.
        unit = replicas * split * plan.microbatches
        sequences = max(round(workload.global_batch_seqs / unit), 1) * unit
        distance = abs(math.log(sequences / workload.global_batch_seqs))
        change = abs(math.log(seq_split / plan.seq_split))
        key = (change, round(distance, 9), sequences, split, seq_split)
        if best is None or key < best:
            best = key
    return None if best is None else best[2:]


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
