"""The first half of the chain: parameters, FLOPs, days, and memory."""

from __future__ import annotations

from collections.abc import Iterator

from autoshard.costmodels import book
from autoshard.costmodels.model import Model
from autoshard.costmodels.problem import Problem
from autoshard.explain_rows import Row, chips, days, decimal_bytes, number, percent


def parameter_rows(model: Model) -> Iterator[Row]:
    """Parameters by part; parts that a model does not have are left out."""
    parts = {
        "MLP": model.mlp_params,
        "attention": model.attention_params,
        "vocabulary": model.vocab_params,
        "norms": model.norm_params,
        "biases": model.bias_params,
        "positions": model.position_params,
    }
    total = model.total_params
    for part, count in parts.items():
        if count:
            yield Row(
                section="parameters",
                quantity=part,
                value=count,
                unit="parameters",
                value_text=number(count),
                verdict=f"{percent(count / total)} of all",
                source="transformers.md",
            )
    yield Row(
        section="parameters",
        quantity="total parameters",
        value=total,
        unit="parameters",
        value_text=number(total),
        source="transformers.md",
    )


def run_rows(problem: Problem, tokens: float, mfu: float) -> Iterator[Row]:
    """FLOPs per token and of the run, and its days at an assumed MFU."""
    model, cluster = problem.model, problem.cluster
    batch = problem.workload.global_batch_tokens
    per_token = book.training_flops(model.book_params, 1)
    total = book.training_flops(model.book_params, tokens)
    share = book.dot_flops_share(model, problem.workload.seq_len)
    rows = (
        ("FLOPs per token", per_token, "FLOP", "6 for each parameter of matmuls and embedding"),
        ("FLOPs per step", per_token * batch, "FLOP", ""),
        ("FLOPs in total", total, "FLOP", f"{number(tokens)} tokens"),
    )
    for quantity, value, unit, verdict in rows:
        yield Row(
            section="compute",
            quantity=quantity,
            value=value,
            unit=unit,
            value_text=f"{value:.4g}",
            verdict=verdict,
            source="transformers.md",
        )
    yield Row(
        section="compute",
        quantity="attention dot products",
        value=share,
        unit="fraction of layer FLOPs",
        value_text=percent(share),
        verdict=f"causal, {number(problem.workload.seq_len)} tokens a sequence; not counted above",
        source="transformers.md",
    )
    took = book.training_days(
        total, chips=cluster.chips, flops_per_s=problem.peak_flops_per_s, mfu=mfu
    )
    yield Row(
        section="compute",
        quantity="days at assumed MFU",
        value=took,
        unit="days",
        value_text=days(took),
        verdict=f"{chips(cluster.chips)} at {percent(mfu)} of their dense peak",
        source="applied-training.md",
    )


def memory_rows(problem: Problem, checkpoints: int) -> Iterator[Row]:
    """State and checkpoints, the fewest chips that hold them, and what a chip then holds."""
    model, cluster, recipe = problem.model, problem.cluster, problem.recipe
    workload, capacity = problem.workload, problem.capacity_bytes
    params = model.total_params
    saved = book.checkpoint_bytes(
        model,
        workload.global_batch_tokens,
        checkpoints,
        element_bytes=workload.element_bytes,
    )
    state = book.state_bytes(params, recipe)
    parts = {
        "weights": (recipe.param_bytes, recipe.param_bytes * params),
        "gradients": (recipe.grad_bytes, recipe.grad_bytes * params),
        "optimizer state": (recipe.optimizer_bytes, recipe.optimizer_bytes * params),
    }
    for part, (each, size) in parts.items():
        if size:
            yield _bytes_row(part, size, f"{each:g} bytes a parameter", "training.md")
    batch = number(workload.global_batch_tokens)
    words = f"{checkpoints} a layer, d_model wide, for all {batch} tokens of a step at once"
    yield _bytes_row("checkpoints", saved, words, "applied-training.md")
    yield _bytes_row("total memory", state + saved, "", "applied-training.md")
    fewest = book.minimum_chips(state + saved, capacity)
    for_state = book.minimum_chips(state, capacity)
    enough = cluster.chips >= fewest
    yield Row(
        section="memory",
        quantity="minimum chips",
        value=fewest,
        unit="chips",
        value_text=number(fewest),
        bound=cluster.chips,
        bound_text=number(cluster.chips),
        holds=enough,
        verdict=f"{chips(fewest)} of {decimal_bytes(capacity)} for the whole batch at once, "
        f"{number(for_state)} for the state alone; the cluster has {number(cluster.chips)}",
        source="applied-training.md",
    )
    # Each pod holds a whole copy of the state; the batch is split over all chips.
    per_chip = state / cluster.pod_chips + saved / cluster.chips
    fits = per_chip <= capacity
    room = f"{decimal_bytes(per_chip)} of {decimal_bytes(capacity)}"
    if fits:
        verdict = f"fits: {room}"
    elif state / cluster.pod_chips < capacity:
        verdict = f"fits only in microbatches: the whole batch at once takes {room}"
    else:
        verdict = f"does not fit: the state alone exceeds a pod's memory, {room}"
    yield Row(
        section="memory",
        quantity="memory per chip",
        value=per_chip,
        unit="bytes",
        value_text=decimal_bytes(per_chip),
        bound=capacity,
        bound_text=decimal_bytes(capacity),
        holds=fits,
        verdict=verdict,
        source="applied-training.md",
    )


def _bytes_row(quantity: str, size: float, verdict: str, source: str) -> Row:
    return Row(
        section="memory",
        quantity=quantity,
        value=size,
        unit="bytes",
        value_text=decimal_bytes(size),
        verdict=verdict,
        source=source,
    )
