"""Sub-problems under a framework's rules on stages: the best of a few families of plans.

Under one remat setting for the whole model, a number of layers leaves a stage nothing to choose: a
family is one setting, and inside it only layers are dealt. One rung for all layers is a family for
each rung; one recompute count is a family for each count. :mod:`autoshard.search.dealing` answers
each family exactly, so the best of them is exact.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.legality import Legality
from autoshard.search import dealing
from autoshard.search.stages import Choices, Leaf, Stage, all_dealings, useful_rungs

#: Layers on each rung, one row a choice of a stage: ``[choices, rungs]``.
Dealings = NDArray[np.int64]


def families(
    stage: Stage, legality: Legality, most: int, budget_bytes: float = np.inf
) -> Iterator[Dealings]:
    """The choices of each family with at most ``most`` layers on a stage, fewest layers first.

    Families of which no plan fits the budget may be left out.
    """
    numbers = _numbers(stage, legality, most)
    rungs = len(stage.saved)
    if not len(numbers):
        return
    if legality.remat == "by-stage":
        keep = useful_rungs(stage)
        dealt = all_dealings(int(numbers[0]), int(numbers[-1]), len(keep))
        spread = np.zeros((len(dealt), rungs), dtype=np.int64)
        spread[:, keep] = dealt
        yield spread
        return
    counted = legality.remat == "one-count" and rungs > 1
    for rung in useful_rungs(stage):
        if not counted or 0 < rung < rungs - 1:
            yield numbers[:, None] * np.eye(rungs, dtype=np.int64)[rung]
    if counted:
        last = -(-int(numbers[-1]) // stage.vpp)
        for count in range(_least_count(stage, budget_bytes, last), last + 1):
            dealt = np.zeros((len(numbers), rungs), dtype=np.int64)
            dealt[:, -1] = np.minimum(count * stage.vpp, numbers)
            dealt[:, 0] = numbers - dealt[:, -1]
            yield dealt


def _numbers(stage: Stage, legality: Legality, most: int) -> NDArray[np.int64]:
    """Layers that a stage may have."""
    numbers = np.array(stage.numbers(most), dtype=np.int64)
    dealt = legality.dealt(stage.n_layers, stage.pp)
    return numbers if dealt is None else numbers[np.isin(numbers, dealt)]


def _least_count(stage: Stage, budget_bytes: float, last: int) -> int:
    """No smaller count of recomputed layers a chunk has a plan within the budget."""
    high = stage.state[0] + stage.in_flight * stage.saved[-1]
    low = stage.state[0] + stage.in_flight * stage.saved[0]
    if not np.isfinite(budget_bytes) or not (high <= low).all() or not (high > 0).all():
        return 0
    room = budget_bytes * (1.0 + 1e-12) - stage.fixed - stage.ends @ stage.state[1:]
    for count in range(last):
        forced = count * stage.vpp
        over = room - forced * high
        most = np.floor(np.where(over < 0, room / high, forced + over / low))
        if (most >= stage.fewest).all() and most.sum() >= stage.n_layers:
            return count
    return last


def choices_of(
    stage: Stage, legality: Legality, most: int, budget_bytes: float = np.inf
) -> Choices:
    """All choices of all families, together."""
    dealt = [
        *families(stage, legality, most, budget_bytes),
        np.zeros((0, len(stage.saved)), dtype=np.int64),
    ]
    return Choices.of(stage, dealt=_in_order(np.concatenate(dealt)))


def memberships(
    stage: Stage, legality: Legality, most: int, budget_bytes: float, choices: Choices
) -> list[NDArray[np.bool_]]:
    """For each family, which of ``choices`` are in it."""
    place = {row.tobytes(): index for index, row in enumerate(choices.rungs)}
    members = []
    for dealt in families(stage, legality, most, budget_bytes):
        inside = np.zeros(len(choices.rungs), dtype=np.bool_)
        inside[[place[row.tobytes()] for row in dealt]] = True
        members.append(inside)
    return members


def _in_order(dealt: Dealings) -> Dealings:
    """Each choice once, by number of layers."""
    once = np.unique(dealt, axis=0)
    return once[np.argsort(once.sum(axis=1), kind="stable")]


def _tables(
    stage: Stage, legality: Legality, budget_bytes: float, below_s: float
) -> Iterator[Choices]:
    """Choices of each family, of all together where there is but one stage."""
    most = dealing.most_layers(stage, budget_bytes, below_s)
    if stage.pp == 1:
        yield choices_of(stage, legality, most, budget_bytes)
        return
    for dealt in families(stage, legality, most, budget_bytes):
        yield Choices.of(stage, dealt=dealt)


def _is_dealt(stage: Stage, legality: Legality) -> bool:
    """Whether a setting leaves a mesh one plan: the framework deals the layers."""
    return stage.pp > 1 and legality.equal_stages and legality.remat != "by-stage"


def _dealt(stage: Stage, legality: Legality, most: int, budget_bytes: float) -> Iterator[Leaf]:
    """The plan of each setting, where the framework deals the layers."""
    layers = legality.dealt(stage.n_layers, stage.pp)
    for dealt in families(stage, legality, most, budget_bytes):
        place = {int(row.sum()): row for row in dealt}
        if layers is not None and all(n in place for n in layers.tolist()):
            rungs = np.stack([place[n] for n in layers.tolist()])
            time_s, memory = stage.evaluate(rungs)
            yield Leaf(rungs=rungs, time_s=time_s, memory_bytes=memory)


def fastest(
    stage: Stage, legality: Legality, budget_bytes: float, below_s: float = np.inf
) -> Leaf | None:
    """The fastest statable plan of a mesh within a budget; None where none is below ``below_s``."""
    best: Leaf | None = None
    if _is_dealt(stage, legality):
        most = dealing.most_layers(stage, budget_bytes, below_s)
        for plan in _dealt(stage, legality, most, budget_bytes):
            limit = below_s if best is None else min(below_s, best.time_s)
            if plan.memory_bytes <= budget_bytes and plan.time_s < limit:
                best = plan
        return best
    for choices in _tables(stage, legality, budget_bytes, below_s):
        limit = below_s if best is None else min(below_s, best.time_s)
        leaf = dealing.fastest(stage, budget_bytes, limit, choices)
        if leaf is not None and leaf.time_s < limit:
            best = leaf
    return best


def smallest(stage: Stage, legality: Legality, time_s: float, enough_bytes: float) -> Leaf | None:
    """The least memory at which a step takes at most ``time_s``; None above ``enough_bytes``."""
    best: Leaf | None = None
    latest = float(np.nextafter(time_s, np.inf))
    if _is_dealt(stage, legality):
        most = dealing.most_layers(stage, enough_bytes, latest)
        for plan in _dealt(stage, legality, most, enough_bytes):
            enough = enough_bytes if best is None else best.memory_bytes * (1.0 - 1e-12)
            if plan.memory_bytes <= enough and plan.time_s <= time_s:
                best = plan
        return best
    for choices in _tables(stage, legality, enough_bytes, latest):
        enough = enough_bytes if best is None else best.memory_bytes * (1.0 - 1e-12)
        leaf = dealing.smallest(stage, time_s, enough, choices=choices)
        best = leaf or best
    return best
