"""The second method: exact answers to the sub-problem without a solver.

With a cap on the slowest stage, a cap on exposed work and a cap on memory, every stage picks alone,
and the layers are dealt by a small dynamic programme over stages. The caps are walked upwards until
the bound on the rest meets the best answer. ``search.stage_model`` is the same sub-problem as
CP-SAT.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.costs import Column
from autoshard.search.stages import Choices, Leaf, Stage, free_bytes, kind_of, stage_memory

#: Relative noise of floats below which one layer adds as much as the one before it.
RISING = 1e-12


def fastest(
    stage: Stage, budget_bytes: float, below_s: float = np.inf, choices: Choices | None = None
) -> Leaf | None:
    """The fastest plan of a mesh within a budget; None where none is below ``below_s``.

    ``choices`` may be given where they are known to hold all that the two limits allow.
    """
    if choices is None:
        choices = Choices.of(stage, most_layers(stage, budget_bytes, below_s))
    if stage.pp == 1:
        times, memory = _single(stage, choices)
        fits = np.nonzero((memory <= budget_bytes) & (times < below_s))[0]
        order = np.lexsort((memory[fits], times[fits]))
        return _leaf(stage, choices, [int(fits[order[0]])]) if len(fits) else None
    pick = best_choices(stage, choices, budget_bytes)
    there = pick >= 0
    if not there.any(axis=1).all():
        return None
    kinds = [kind_of(stage, s) for s in range(stage.pp)]
    seconds = np.stack([choices.seconds[k][row] for k, row in zip(kinds, pick, strict=True)])
    exposed = np.stack([choices.exposed[k][row] for k, row in zip(kinds, pick, strict=True)])
    seconds = np.where(there, seconds, np.inf)
    caps = np.unique(exposed[there])
    needed = float(np.where(there, exposed, np.inf).min(axis=1).max())
    # With every choice allowed: what dealing costs at least, whatever it exposes.
    free = _deal(stage, choices.numbers, seconds, below_s - needed)
    if free is None:
        return None
    best: tuple[float, list[int]] | None = None
    for cap in caps[caps >= needed].tolist():
        limit = min(best[0] if best else np.inf, below_s)
        if free[0] + cap >= limit:
            break
        dealt = free
        if cap < caps[-1]:
            allowed = np.where(exposed <= cap, seconds, np.inf)
            capped = _deal(stage, choices.numbers, allowed, limit - cap)
            if capped is None:
                continue
            dealt = capped
        if dealt[0] + cap < limit:
            best = (dealt[0] + cap, dealt[1])
    if best is None:
        return None
    return _leaf(stage, choices, [int(pick[s, g]) for s, g in enumerate(best[1])])


def smallest(
    stage: Stage,
    time_s: float,
    enough_bytes: float,
    solve: Callable[[Stage, float, float], Leaf | None] | None = None,
    choices: Choices | None = None,
    least_bytes: float = 0.0,
) -> Leaf | None:
    """The least memory at which a step takes at most ``time_s``; None above ``enough_bytes``.

    Bisection over the memories that choices can have: whether a budget allows the time is monotone.
    It starts at ``least_bytes``, below which no plan is, in steps that double.
    ``solve`` finds the fastest plan of a mesh within a budget and below a time (:func:`fastest`).
    ``choices`` may be given where they are known to hold all that the two limits allow.
    """
    latest = float(np.nextafter(time_s, np.inf))
    if choices is None:
        choices = Choices.of(stage, most_layers(stage, enough_bytes, latest))
    if stage.pp == 1 and solve is None:
        times, memory = _single(stage, choices)
        fits = np.nonzero((memory <= enough_bytes) & (times <= time_s))[0]
        order = np.lexsort((times[fits], memory[fits]))
        return _leaf(stage, choices, [int(fits[order[0]])]) if len(fits) else None
    if solve is None:
        solve = functools.partial(fastest, choices=choices)
    best = solve(stage, enough_bytes, latest)
    if best is None:
        return None
    memories = np.unique(
        np.concatenate([np.unique(stage_memory(stage, choices, s)) for s in range(stage.pp)])
    )
    low = int(np.searchsorted(memories, least_bytes * (1.0 - 1e-9)))
    high = int(np.searchsorted(memories, best.memory_bytes * (1.0 - 1e-12)))
    step = 1
    while low < high:
        middle = min(low + step - 1, (low + high) // 2)
        leaf = solve(stage, float(memories[middle]), latest)
        if leaf is None:
            low, step = middle + 1, 2 * step
        else:
            best = leaf
            high = min(middle, int(np.searchsorted(memories, leaf.memory_bytes * (1.0 - 1e-12))))
    return best


def _single(stage: Stage, choices: Choices) -> tuple[Column, Column]:
    """Step seconds and bytes of every choice of the only stage."""
    kind = kind_of(stage, 0)
    weight = stage.max_weight + stage.sum_weight
    times = weight * choices.seconds[kind] + choices.exposed[kind]
    return times, stage_memory(stage, choices, 0)


def _leaf(stage: Stage, choices: Choices, picked: list[int]) -> Leaf:
    rungs = choices.rungs[picked]
    time_s, memory = stage.evaluate(rungs)
    return Leaf(rungs=rungs, time_s=time_s, memory_bytes=memory)


def most_layers(stage: Stage, budget_bytes: float, below_s: float) -> int:
    """More layers on one stage do not fit a budget, or make a step slower than a time."""
    per_layer = stage.state[0] + stage.in_flight.min() * stage.saved.min()
    most = (budget_bytes - stage.fixed) / per_layer if per_layer > 0 else np.inf
    layer = stage.forward[0].max() + stage.backward[:-2].min(axis=0).max()
    if np.isfinite(below_s) and layer > 0:
        # All layers count once in the sum of stages, those of the slowest stage again.
        again = below_s / layer - stage.sum_weight * stage.n_layers
        if again < 0:
            return 0
        if stage.max_weight > 0:
            most = min(most, again / stage.max_weight)
    return int(min(max(most, 0.0) * (1.0 + 1e-9), stage.n_layers))


def best_choices(stage: Stage, choices: Choices, budget_bytes: float) -> NDArray[np.intp]:
    """The fastest choice that fits, for each stage and number of layers; -1 where none fits.

    Shape ``[pp, numbers]``.
    """
    pick = np.full((stage.pp, len(choices.numbers)), -1, dtype=np.intp)
    if not len(choices.numbers):
        return pick
    kinds = np.array([kind_of(stage, s) for s in range(stage.pp)])
    for kind in choices.seconds:
        order = choices.order(kind)
        stages = np.nonzero((kinds == kind).all(axis=1))[0]
        # To the last bit what ``stage_memory`` says, so that a budget taken from it fits.
        held = np.multiply.outer(stage.in_flight[stages], choices.saved[order])
        held += free_bytes(stage, choices, kind)[order]
        position = np.where(held <= budget_bytes, np.arange(len(order)), len(order))
        first = np.minimum.reduceat(position, choices.starts, axis=1)
        fits = first < len(order)
        fits &= choices.numbers >= stage.fewest[stages, None]
        pick[stages] = np.where(fits, order[np.where(fits, first, 0)], -1)
    return pick


def _deal(
    stage: Stage, numbers: NDArray[np.int64], seconds: Column, below_s: float
) -> tuple[float, list[int]] | None:
    """Deal the layers: least ``max_weight * slowest + sum_weight * sum``, and what each stage is.

    ``seconds`` is ``[pp, numbers]``, infinite where a stage cannot have that number of layers.
    Answers with the index of each stage's number; None where the layers cannot be dealt, or not
    below ``below_s``.
    """
    first = _first_cap(seconds, numbers, stage.n_layers)
    # No sum of stages is below the cheapest layers: most meshes end here, without dealing.
    rate = float((seconds / numbers).min())
    if not np.isfinite(first) or _step_s(stage, first, rate * stage.n_layers) >= below_s:
        return None
    caps = np.unique(seconds[np.isfinite(seconds)])
    caps = caps[np.searchsorted(caps, first) :]
    least, exact = _sum_floor(seconds, numbers, stage.n_layers), False
    best: tuple[float, list[int]] | None = None
    for cap in caps.tolist():
        limit = min(best[0] if best else np.inf, below_s)
        if best is not None and not exact and _step_s(stage, cap, least) < limit:
            dealt = _dealt_sum(seconds, numbers, stage.n_layers)
            least, exact = dealt[0] if dealt else least, True
        if _step_s(stage, cap, least) >= limit:
            break
        capped = np.where(seconds <= cap, seconds, np.inf)
        dealt = _dealt_sum(capped, numbers, stage.n_layers)
        if dealt is None:
            continue
        slowest = float(seconds[np.arange(stage.pp), dealt[1]].max())
        value = _step_s(stage, slowest, dealt[0])
        if best is None or value < best[0]:
            best = (value, dealt[1])
    return best


def _sum_floor(seconds: Column, numbers: NDArray[np.int64], n_layers: int) -> float:
    """A floor on the sum of seconds of stages that take all layers together.

    All stages at the fewest layers, and each further layer at the least mean that any number adds
    to a stage: the stages of the cheapest take as many as they can.
    """
    fewest = seconds[:, 0]
    more = n_layers - len(seconds) * int(numbers[0])
    if more <= 0 or not np.isfinite(fewest).all():
        return float((seconds / numbers).min()) * n_layers
    beyond = numbers[1:] - numbers[0]
    rate = ((seconds[:, 1:] - fewest[:, None]) / beyond).min(axis=1, initial=np.inf)
    room = np.where(np.isfinite(seconds[:, 1:]), beyond, 0).max(axis=1, initial=0)
    rate[room == 0] = 0.0
    cheapest = np.argsort(rate, kind="stable")
    taken = np.minimum(np.cumsum(room[cheapest]), more)
    used = np.diff(taken, prepend=0)
    return float(fewest.sum() + (rate[cheapest] * used).sum())


def _step_s(stage: Stage, slowest: float, total: float) -> float:
    return stage.max_weight * slowest + stage.sum_weight * max(total, slowest)


def _first_cap(seconds: Column, numbers: NDArray[np.int64], n_layers: int) -> float:
    """The least cap on every stage under which the stages together take all layers.

    Infinite where they cannot. ``numbers`` follow each other by one, or are a single one.
    """
    # A stage of more layers is never faster, so the numbers under a cap are the first so many.
    rising = np.minimum.accumulate(seconds[:, ::-1], axis=1)[:, ::-1]
    first = float(rising[:, 0].max())
    # Beyond the fewest, each further layer of a stage has its own least cap.
    more = n_layers - len(rising) * int(numbers[0])
    if more <= 0:
        return first
    further = rising[:, 1:].ravel()
    if more > len(further):
        return float("inf")
    return max(first, float(np.partition(further, more - 1)[more - 1]))


def _dealt_sum(
    seconds: Column, numbers: NDArray[np.int64], n_layers: int
) -> tuple[float, list[int]] | None:
    """Deal exactly all layers with the least sum of seconds: the dynamic programme over stages.

    Answers with the index of each stage's number of layers.
    """
    dealt = _cheapest_layers(seconds, numbers, n_layers)
    if dealt is not None:
        return dealt
    least = np.full(n_layers + 1, np.inf)
    least[0] = 0.0
    taken = np.zeros((len(seconds), n_layers + 1), dtype=np.intp)
    for s, row in enumerate(seconds):
        new = np.full(n_layers + 1, np.inf)
        for index in np.nonzero(np.isfinite(row))[0].tolist():
            count = int(numbers[index])
            value = least[: n_layers + 1 - count] + row[index]
            better = value < new[count:]
            new[count:][better] = value[better]
            taken[s, count:][better] = index
        least = new
    if not np.isfinite(least[n_layers]):
        return None
    picked, left = [], n_layers
    for s in reversed(range(len(seconds))):
        picked.append(int(taken[s, left]))
        left -= int(numbers[picked[-1]])
    return float(least[n_layers]), picked[::-1]


def _cheapest_layers(
    seconds: Column, numbers: NDArray[np.int64], n_layers: int
) -> tuple[float, list[int]] | None:
    """The same where each further layer of a stage adds no less than the one before it.

    Then the cheapest layers of all stages are the least sum. None where that is not so, or the
    layers cannot be dealt.
    """
    more = n_layers - len(seconds) * int(numbers[0])
    there = np.isfinite(seconds)
    if more < 0 or not there[:, 0].all():
        return None
    added = np.full((len(seconds), len(numbers) - 1), np.inf)
    np.subtract(seconds[:, 1:], seconds[:, :-1], out=added, where=there[:, 1:] & there[:, :-1])
    rising = added[:, 1:] >= added[:, :-1] * (1.0 - RISING)
    if not (rising.all() and (there[:, 1:] <= there[:, :-1]).all() and _by_one(numbers)):
        return None
    order = np.argsort(added, axis=None, kind="stable")[:more]
    if len(order) < more or not np.isfinite(added.ravel()[order[-1:]]).all():
        return None
    picked = np.bincount(order // max(added.shape[1], 1), minlength=len(seconds))
    total = seconds[np.arange(len(seconds)), picked].sum()
    return float(total), picked.tolist()


def _by_one(numbers: NDArray[np.int64]) -> bool:
    return bool(numbers[-1] - numbers[0] == len(numbers) - 1)
