"""The second half of the chain: which splits keep communication behind arithmetic.

Bounds count tokens in the workload's precision: halving the bytes of an element halves what
travels, so an intensity is scaled by its bytes over bf16's two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from autoshard.costmodels import book
from autoshard.costmodels import book_bounds as bounds
from autoshard.costmodels.book_bounds import Sides
from autoshard.costmodels.problem import Problem
from autoshard.explain_rows import Row, chips, compare_tokens, decimal_bytes, number, times

PER_CHIP = "tokens per chip"


def bound_rows(problem: Problem, overlap: str) -> Iterator[Row]:
    """The bounds of a torus, of one NVLink domain, or of nodes in a switched network."""
    cluster = problem.cluster
    if cluster.chips == 1:
        yield Row(
            section="parallelism",
            quantity=PER_CHIP,
            value=problem.workload.global_batch_tokens,
            unit=PER_CHIP,
            value_text=number(problem.workload.global_batch_tokens),
            verdict="one chip has nothing to communicate",
            source="training.md",
        )
        return
    yield _sequences(problem)
    spans_nodes = cluster.chip.kind == "gpu" and cluster.pod_chips > cluster.chip.domain_chips
    if cluster.pod_chips > 1:
        yield _data_bound(problem, spans_nodes)
        if spans_nodes:
            yield from _node_rows(problem)
        else:
            yield from _mixed_rows(problem, overlap)
    if cluster.pods > 1:
        yield _pod_bound(problem)


def bound_rate(problem: Problem) -> float:
    """The peak over which bounds in tokens are taken: FLOP/s for each two bytes of an element."""
    return problem.peak_flops_per_s * problem.workload.element_bytes / 2.0


def overlap_rule(sides: Sides, overlap: str) -> str:
    """Two sides on the same links take turns whatever the rule."""
    return "sum" if sides.shared else overlap


def pod_sides(problem: Problem) -> Sides | None:
    """Intensities of data and tensor parallelism inside one pod, where one network carries both."""
    chip = problem.cluster.chip
    if chip.kind == "tpu":
        return bounds.torus_sides(problem.cluster, bound_rate(problem))
    alpha = bounds.intensity(bound_rate(problem), chip.domain_bytes_per_s)
    return Sides(data_intensity=alpha, tensor_intensity=alpha, shared=True)


def _sequences(problem: Problem) -> Row:
    seqs, there = problem.workload.global_batch_seqs, problem.cluster.chips
    return Row(
        section="parallelism",
        quantity="sequences",
        value=seqs,
        unit="sequences",
        value_text=number(seqs),
        bound=there,
        bound_text=number(there),
        holds=seqs >= there,
        verdict=_sequences_verdict(problem),
        source="applied-training.md",
    )


def _sequences_verdict(problem: Problem) -> str:
    """What data parallelism alone can use, where whole sequences are shared out evenly."""
    seqs, cluster = problem.workload.global_batch_seqs, problem.cluster
    there, capacity = number(cluster.chips), problem.capacity_bytes
    shares = _even_shares(problem)
    if any(replicas * shards == cluster.chips for replicas, shards in shares):
        return f"every chip can have a sequence of its own: {number(seqs)} for {there} chips"
    state = book.state_bytes(problem.model.total_params, problem.recipe)
    used = [replicas * shards for replicas, shards in shares if state / shards <= capacity]
    if not used:
        most = max(shards for _, shards in shares)
        return (
            f"data parallelism alone does not fit: the state over {chips(most)} takes "
            f"{decimal_bytes(state / most)} of {decimal_bytes(capacity)} each"
        )
    idle = (
        f"data parallelism alone leaves {number(cluster.chips - max(used))} of {there} chips idle"
    )
    if max(used) == seqs:
        return f"{idle} unless sequences are split"
    if max(used) < max(replicas * shards for replicas, shards in shares):
        return f"{idle}: with more replicas, the state does not fit"
    return f"{idle}: {number(seqs)} sequences do not divide evenly over more"


def _even_shares(problem: Problem) -> list[tuple[int, int]]:
    """Replicas and shards of each that share the sequences evenly; on TPU a replica is in a pod."""
    seqs, cluster = problem.workload.global_batch_seqs, problem.cluster
    small = [d for d in range(1, math.isqrt(seqs) + 1) if seqs % d == 0]
    divisors = {*small, *(seqs // d for d in small)}
    tpu = cluster.chip.kind == "tpu"
    pods, pod_chips = (cluster.pods, cluster.pod_chips) if tpu else (1, cluster.chips)
    replicas = [d for d in divisors if d <= pods]
    shards = [d for d in divisors if d <= pod_chips]
    return [(r, s) for r in replicas for s in shards if seqs % (r * s) == 0]


def _data_bound(problem: Problem, spans_nodes: bool) -> Row:
    cluster = problem.cluster
    each = problem.workload.global_batch_tokens / cluster.chips
    if cluster.chip.kind == "tpu":
        alpha, source = bounds.torus_intensity(cluster, bound_rate(problem)), "training.md"
    elif spans_nodes:
        alpha, source = bounds.node_intensity(cluster.chip, bound_rate(problem)), "gpus.md"
    else:
        rate = cluster.chip.domain_bytes_per_s
        alpha, source = bounds.intensity(bound_rate(problem), rate), "gpus.md"
    bound = bounds.data_bound_tokens(alpha)
    verdict = compare_tokens(each, bound, PER_CHIP)
    return tokens_row("parallelism", "FSDP alone", each, bound, verdict, source)


def _mixed_rows(problem: Problem, overlap: str) -> Iterator[Row]:
    """FSDP with tensor parallelism inside one pod: bound, best split, and the tensor limit."""
    sides = pod_sides(problem)
    if sides is None:
        return
    cluster, d_ff = problem.cluster, problem.model.d_ff
    pod_chips, pods = cluster.pod_chips, cluster.pods
    tokens = problem.workload.global_batch_tokens / pods
    each = tokens / pod_chips
    data, tensor = sides.data_intensity, sides.tensor_intensity
    bound = bounds.mixed_bound_tokens(data, tensor, d_ff, overlap=overlap_rule(sides, overlap))
    exceeds = (bound / each) ** 0.5
    verdict = compare_tokens(each, bound, PER_CHIP, exceeds=exceeds)
    yield tokens_row("parallelism", "FSDP with TP", each, bound, verdict, "training.md")

    within = " of one pod" if pods > 1 else ""
    best = min(max(bounds.best_data_ways(tokens, pod_chips, data, tensor, d_ff), 1.0), pod_chips)
    yield _ways_row("X_opt", best, f"FSDP ways{within} that communicate least")
    limit = bounds.tensor_bound_ways(tensor, d_ff)
    ways = pod_chips / best
    holds = ways <= limit
    relation = "compute-bound" if holds else f"communication-bound by {times(ways / limit)}"
    sign = "<=" if holds else ">"
    yield _ways_row("Y_opt", ways, f"TP ways{within} that go with X_opt")
    yield Row(
        section="parallelism",
        quantity="TP alone",
        value=ways,
        unit="ways",
        value_text=number(ways),
        bound=limit,
        bound_text=number(limit),
        holds=holds,
        verdict=f"{relation}: {number(ways)} {sign} {number(limit)} ways, at any batch",
        source="training.md",
    )
    yield _weight_bound(problem, tokens / best)


def _node_rows(problem: Problem) -> Iterator[Row]:
    """TP inside the node, and how far a replica must spread for its gradients to be hidden."""
    cluster, chip = problem.cluster, problem.cluster.chip
    rate, d_ff = bound_rate(problem), problem.model.d_ff
    domain = chip.domain_chips
    each = problem.workload.global_batch_tokens / cluster.chips
    limit = bounds.tensor_bound_ways(bounds.intensity(rate, chip.domain_bytes_per_s), d_ff)
    holds = domain <= limit
    yield Row(
        section="parallelism",
        quantity="TP in a node",
        value=domain,
        unit="ways",
        value_text=number(domain),
        bound=limit,
        bound_text=number(limit),
        holds=holds,
        verdict=(
            f"compute-bound: TP{domain} fills the node and {number(domain)} <= {number(limit)} ways"
            if holds
            else f"communication-bound by {times(domain / limit)} at TP{domain}: use at most "
            f"{number(limit)} ways"
        ),
        source="gpus.md",
    )
    spanning = bounds.spanning_tensor_bound_ways(chip, rate, d_ff)
    yield Row(
        section="parallelism",
        quantity="TP over nodes",
        value=spanning,
        unit="ways",
        value_text=number(spanning),
        verdict=f"compute-bound between nodes up to {number(spanning)} ways",
        source="gpus.md",
    )
    alone = bounds.node_intensity(chip, rate)
    shards = domain * alone / each
    yield Row(
        section="parallelism",
        quantity="model shards",
        value=shards,
        unit="TP x PP ways",
        value_text=number(shards),
        bound=float(domain),
        bound_text=number(domain),
        holds=shards <= domain,
        verdict=(
            f"compute-bound between nodes with a replica in one node: {number(shards)} <= {domain}"
            if shards <= domain
            else "compute-bound between nodes, gathering once a step, from "
            f"TP x PP = {number(shards)} on, such as TP{domain} x PP{-int(-shards // domain)}"
        ),
        source="gpus.md",
    )
    yield _weight_bound(problem, each * domain)


def _pod_bound(problem: Problem) -> Row:
    cluster = problem.cluster
    per_pod = problem.workload.global_batch_tokens / cluster.pods
    bound = bounds.pod_bound_tokens(bound_rate(problem), cluster.levels[-1].bytes_per_s)
    unit = "tokens per pod"
    return Row(
        section="parallelism",
        quantity="data parallel between pods",
        value=per_pod,
        unit=unit,
        value_text=number(per_pod),
        bound=bound,
        bound_text=number(bound),
        holds=per_pod >= bound,
        verdict=compare_tokens(per_pod, bound, unit),
        source="training.md",
    )


def _weight_bound(problem: Problem, tokens: float) -> Row:
    """Whether one data shard has enough tokens that loading weights from HBM does not bind."""
    hbm = problem.cluster.chip.hbm_bytes_per_s
    bound = bounds.weight_bound_tokens(bound_rate(problem), hbm)
    holds = tokens >= bound
    words = "HBM keeps up" if holds else f"HBM-bound by {times(bound / tokens)}"
    sign = ">=" if holds else "<"
    unit = "tokens per data shard"
    verdict = f"{words}: {number(tokens)} {sign} {number(bound)} {unit} in one microbatch"
    return Row(
        section="parallelism",
        quantity=unit,
        value=tokens,
        unit=unit,
        value_text=number(tokens),
        bound=bound,
        bound_text=number(bound),
        holds=holds,
        verdict=verdict,
        source="roofline.md",
    )


def tokens_row(
    section: str, quantity: str, value: float, bound: float, verdict: str, source: str
) -> Row:
    """A row that compares tokens per chip with the bound they should reach."""
    return Row(
        section=section,
        quantity=quantity,
        value=value,
        unit=PER_CHIP,
        value_text=number(value),
        bound=bound,
        bound_text=number(bound),
        holds=value >= bound,
        verdict=verdict,
        source=source,
    )


def _ways_row(quantity: str, value: float, verdict: str) -> Row:
    return Row(
        section="parallelism",
        quantity=quantity,
        value=value,
        unit="ways",
        value_text=number(value),
        verdict=verdict,
        source="training.md",
    )
