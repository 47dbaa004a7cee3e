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
from autoshard.search.stages import Choices, Leaf, Stage, kind_of, stage_memory


def fastest(
    stage: Stage, budget_bytes: float, below_s: float = np.inf, choices: Choices | None = None
) -> Leaf | None:
    """The fastest plan of a mesh within a budget; None where none is below ``below_s``.

    ``choices`` may be given where they are known to hold all that the two limits allow.
    """
    if choices is None:
        choices = Choices.of(stage, most_layers(stage, budget_bytes, below_s))
    menus = [menu_of(stage, choices, s, budget_bytes) for s in range(stage.pp)]
    if any(not len(menu) for menu in menus):
        return None
    exposed = [choices.exposed[kind_of(stage, s)] for s in range(stage.pp)]
    caps = np.unique(np.concatenate([exposed[s][menu] for s, menu in enumerate(menus)]))
    needed = max(float(exposed[s][menu].min()) for s, menu in enumerate(menus))
    # With every choice allowed: what dealing costs at least, whatever it exposes.
    free = _deal(stage, choices, menus, below_s - needed)
    if free is None:
        return None
    best: tuple[float, list[int]] | None = None
    for cap in caps[caps >= needed].tolist():
        limit = min(best[0] if best else np.inf, below_s)
        if free[0] + cap >= limit:
            break
        allowed = [menu[exposed[s][menu] <= cap] for s, menu in enumerate(menus)]
        whole = all(len(a) == len(m) for a, m in zip(allowed, menus, strict=True))
        dealt = free if whole else _deal(stage, choices, allowed, limit - cap)
        if dealt is not None and dealt[0] + cap < limit:
            best = (dealt[0] + cap, dealt[1])
    if best is None:
        return None
    rungs = choices.rungs[best[1]]
    time_s, memory = stage.evaluate(rungs)
    return Leaf(rungs=rungs, time_s=time_s, memory_bytes=memory) if time_s < below_s else None


def smallest(
    stage: Stage,
    time_s: float,
    enough_bytes: float,
    solve: Callable[[Stage, float, float], Leaf | None] | None = None,
) -> Leaf | None:
    """The least memory at which a step takes at most ``time_s``; None above ``enough_bytes``.

    Bisection over the memories that choices can have: whether a budget allows the time is monotone.
    ``solve`` finds the fastest plan of a mesh within a budget and below a time (:func:`fastest`).
    """
    latest = float(np.nextafter(time_s, np.inf))
    choices = Choices.of(stage, most_layers(stage, enough_bytes, latest))
    if solve is None:
        solve = functools.partial(fastest, choices=choices)
    best = solve(stage, enough_bytes, latest)
    if best is None:
        return None
    memories = np.unique(
        np.concatenate([np.unique(stage_memory(stage, choices, s)) for s in range(stage.pp)])
    )
    low = 0
    high = int(np.searchsorted(memories, best.memory_bytes * (1.0 - 1e-12)))
    while low < high:
        middle = (low + high) // 2
        leaf = solve(stage, float(memories[middle]), latest)
        if leaf is None:
            low = middle + 1
        else:
            best = leaf
            high = min(middle, int(np.searchsorted(memories, leaf.memory_bytes * (1.0 - 1e-12))))
    return best


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


def menu_of(stage: Stage, choices: Choices, s: int, budget_bytes: float) -> NDArray[np.intp]:
    """The fastest choice that fits on stage ``s``, for each number of layers."""
    fits = np.nonzero(stage_memory(stage, choices, s) <= budget_bytes)[0]
    seconds, layers = choices.seconds[kind_of(stage, s)][fits], choices.layers[fits]
    order = np.lexsort((choices.saved[fits], seconds, layers))
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = layers[order][1:] != layers[order][:-1]
    picked: NDArray[np.intp] = fits[order[first]]
    return picked


def _deal(
    stage: Stage,
    choices: Choices,
    menus: list[NDArray[np.intp]],
    below_s: float,
) -> tuple[float, list[int]] | None:
    """Deal the layers: least ``max_weight * slowest + sum_weight * sum``, and what each stage is.

    None where the layers cannot be dealt, or not below ``below_s``.
    """
    n, pp = stage.n_layers, stage.pp
    table = np.full((pp, n + 1), np.inf)
    pick = np.zeros((pp, n + 1), dtype=np.intp)
    for s, menu in enumerate(menus):
        seconds = choices.seconds[kind_of(stage, s)]
        table[s, choices.layers[menu]] = seconds[menu]
        pick[s, choices.layers[menu]] = menu
    caps = np.unique(table[np.isfinite(table)])
    most = _most_taken(table, caps)
    feasible = np.nonzero(most >= n)[0]
    if not len(feasible):
        return None
    least_sum = _dealt_sum(table)
    if least_sum is None:
        return None
    best: tuple[float, list[int]] | None = None
    for cap in caps[feasible[0] :].tolist():
        limit = min(best[0] if best else np.inf, below_s)
        if stage.max_weight * cap + stage.sum_weight * max(least_sum[0], cap) >= limit:
            break
        dealt = _dealt_sum(np.where(table <= cap, table, np.inf))
        if dealt is None:
            continue
        slowest = max(table[s, count] for s, count in enumerate(dealt[1]))
        value = stage.max_weight * slowest + stage.sum_weight * dealt[0]
        if best is None or value < best[0]:
            best = (value, [int(pick[s, count]) for s, count in enumerate(dealt[1])])
    return best


def _most_taken(table: Column, caps: Column) -> NDArray[np.int64]:
    """Under each cap, the layers that all stages take together, ``[caps]``."""
    total = np.zeros(len(caps), dtype=np.int64)
    for row in table:
        counts = np.nonzero(np.isfinite(row))[0]
        order = np.argsort(row[counts], kind="stable")
        best = np.maximum.accumulate(counts[order])
        index = np.searchsorted(row[counts][order], caps, side="right")
        total += np.where(index > 0, best[np.maximum(index - 1, 0)], -(2**40))
    return total


def _dealt_sum(table: Column) -> tuple[float, list[int]] | None:
    """Deal exactly all layers with the least sum of ``table[s, layers]``: the dynamic programme."""
    pp, n = table.shape[0], table.shape[1] - 1
    least = np.full(n + 1, np.inf)
    least[0] = 0.0
    taken = np.zeros((pp, n + 1), dtype=np.int64)
    for s in range(pp):
        new = np.full(n + 1, np.inf)
        for count in np.nonzero(np.isfinite(table[s]))[0].tolist():
            value = least[: n + 1 - count] + table[s, count]
            better = value < new[count:]
            new[count:][better] = value[better]
            taken[s, count:][better] = count
        least = new
    if not np.isfinite(least[n]):
        return None
    counts, left = [], n
    for s in reversed(range(pp)):
        counts.append(int(taken[s, left]))
        left -= counts[-1]
    return float(least[n]), counts[::-1]
