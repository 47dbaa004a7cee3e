"""What no plan of a row can beat, for ``certificate_checker``: by fractions, and exactly.

Simple formulas of its own on the coefficients of ``StageCosts``, nothing from the search.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from autoshard.costmodels.profile import StageCosts

#: Float noise of sums in another order.
NOISE = 1e-9
Array = np.ndarray[Any, Any]
Places = Mapping[Any, Array]


class Fractions:
    """What no plan of a row can beat, by layers that may be halved: ``n`` rows at once."""

    def __init__(
        self,
        costs: StageCosts,
        held: list[Array],
        vpp: Array,
        n: int,
        dealt: list[list[int] | None],
    ) -> None:
        self.costs, self.n, self.pp = costs, n, np.array([len(h) for h in held])
        self.held = np.ones((len(held), max(self.pp)))
        self.there = np.arange(max(self.pp)) < self.pp[:, None]
        self.held[self.there] = np.concatenate(held)
        self.fewest = np.repeat(vpp[:, None], max(self.pp), axis=1)  # layers of each stage
        lone = (vpp > 1) & (vpp == -(-n // self.pp))  # chunks of a layer: one may be none
        self.fewest[lone, 0] -= 1
        self.fewest[lone, self.pp[lone] - 1] -= 1
        for row, layers in enumerate(dealt):
            if layers is not None:
                self.fewest[row, : len(layers)] = layers
        self.ends = np.zeros(self.held.shape)  # bytes, of the first stage and of the last
        self.ends[:, 0] = costs.state_bytes["embedding"]
        self.ends[np.arange(len(held)), self.pp - 1] += costs.state_bytes["head"]

    def fits(self, budget: Array) -> Array:
        """Whether stages of whole layers on the smallest rung hold the model."""
        each = self.costs.state_bytes["layer"] + self.held.T * self.costs.saved_bytes.min(axis=1)
        room = (budget - self.costs.fixed_bytes)[:, None] - self.ends
        most = np.where(self.there, np.floor(room / np.maximum(each.T, 1e-9) * (1.0 + 1e-11)), 0.0)
        alone = ((most >= self.fewest) | ~self.there).all(axis=1)
        found: Array = alone & (most.sum(axis=1) >= self.n)
        return found

    def least_s(self, budget: Array) -> Array:
        """A mean stage that saves all the bytes which the budget leaves, as it likes best."""
        costs, saved = self.costs, self.costs.saved_bytes
        room = (budget - costs.fixed_bytes)[:, None] - self.ends
        room = np.where(self.there, room / self.held, 0.0).sum(axis=1) / self.n
        room = room - costs.state_bytes["layer"] / (self.held * self.there).max(axis=1)
        room = np.maximum(room, saved.min(axis=1)) * (1.0 + NOISE)
        cost, least = costs.layer_backward_s, np.full(costs.forward_s["layer"].shape, np.inf)
        for a in range(saved.shape[1]):
            for b in range(saved.shape[1]):
                span = saved[:, b] - saved[:, a]
                part = np.clip((room - saved[:, a]) / np.where(span > 0, span, np.inf), 0.0, 1.0)
                mix = cost[:, :, a] + part[:, None] * (cost[:, :, b] - cost[:, :, a])
                least = np.where((saved[:, a] <= room)[:, None], np.minimum(least, mix), least)
        forward = self.whole(costs.forward_s).max(axis=1)
        total = forward + self.whole(costs.backward_s, least).max(axis=1) + self.pp * costs.send_s
        longest = costs.forward_s["layer"].max(axis=1) + cost.min(axis=2).max(axis=1)
        slowest = np.maximum(total / self.pp, longest * -(-self.n // self.pp) + costs.send_s)
        found: Array = costs.max_weight * slowest + costs.sum_weight * total
        for usual, once in (
            (costs.forward_s, costs.once_forward_s),
            (costs.backward_s, costs.once_backward_s),
        ):
            hidden = self.whole({p: form.max(axis=1, keepdims=True) for p, form in usual.items()})
            hidden = np.where(self.pp > 1, hidden[:, 0], self.whole(usual).max(axis=1))
            more = (self.whole(usual) + self.whole(once)).max(axis=1) - hidden
            found = found + np.maximum(more, 0.0) / self.pp
        return found

    def whole(self, places: Places, layer: Array | None = None) -> Array:
        """A pass through all layers, form by form."""
        layer = places["layer"] if layer is None else layer
        found: Array = self.n * layer + places["embedding"] + places["head"]
        return found


class Dealing:
    """One row exactly: the least seconds of each stage and number of layers, then a programme."""

    def __init__(
        self,
        costs: StageCosts,
        held: Array,
        n: int,
        dealt: Array,
        stages: list[int] | None,
        vpp: int,
    ) -> None:
        self.stages, self.vpp = stages, vpp
        self.costs, self.held, self.pp, self.n, self.dealt = costs, held, len(held), n, dealt
        self.saved = self.dealt @ costs.saved_bytes[0]
        self.layers = self.dealt.sum(axis=1).astype(np.int64)
        self.kinds = [(s == 0, s == self.pp - 1) for s in range(self.pp)]
        self.parts = {kind: self.stage(*kind) for kind in set(self.kinds)}

    def stage(self, first: bool, last: bool) -> tuple[Array, Array, Array]:
        """Seconds, exposed seconds and bytes but for saved ones, of every way to deal."""

        def add(places: Places, layers: Array | None = None) -> Array:
            layers = (
                np.multiply.outer(self.layers, places["layer"][0]) if layers is None else layers
            )
            found: Array = layers + first * places["embedding"][0] + last * places["head"][0]
            return found

        c = self.costs
        ahead, plain = add(c.forward_s), add(c.backward_s)
        back = add(c.backward_s, self.dealt @ c.layer_backward_s[0].T)
        more = (ahead + add(c.once_forward_s)).max(axis=1) - ahead.max(axis=1)
        more = more + (plain + add(c.once_backward_s)).max(axis=1) - plain.max(axis=1)
        took = ahead.max(axis=1) + back.max(axis=1) + c.send_s[0]
        return took, more, add(c.state_bytes) + c.fixed_bytes[0]

    def beats(self, budget: float, limit_s: float) -> bool:
        """Whether a plan within the budget takes less than the limit."""
        took = np.full((self.pp, self.n + 1), np.inf)
        more = np.zeros((self.pp, self.n + 1))
        for s, kind in enumerate(self.kinds):
            seconds, exposed, state = self.parts[kind]
            fits = state + self.held[s] * self.saved <= budget
            np.minimum.at(took[s], self.layers[fits], seconds[fits])
            more[s, self.layers] = exposed
            if not any(kind):
                took[s, : self.vpp] = np.inf
            if self.stages is not None:
                took[s, np.arange(self.n + 1) != self.stages[s]] = np.inf
        free = self.sum(took)
        for cap in np.unique(more[np.isfinite(took)]).tolist():
            if self.step(free / self.pp, free) + cap >= limit_s:
                return False
            allowed = np.where(more <= cap, took, np.inf)
            if self.under(allowed, np.unique(allowed[np.isfinite(allowed)]), limit_s - cap):
                return True
        return False

    def step(self, slowest: float, total: float) -> float:
        if not np.isfinite(slowest + total):
            return np.inf
        return float(self.costs.max_weight[0] * slowest + self.costs.sum_weight[0] * total)

    def under(self, took: Array, caps: Array, limit_s: float) -> bool:
        """Whether the slowest stage can be one of the caps and the step below the limit."""
        if not len(caps):
            return False
        total = self.sum(np.where(took <= caps[-1], took, np.inf))
        if not self.step(caps[0], total) < limit_s:
            return False  # even with the least cap
        if self.step(caps[-1], total) < limit_s:
            return True
        half = len(caps) // 2
        return self.under(took, caps[:half], limit_s) or self.under(took, caps[half:], limit_s)

    def sum(self, took: Array) -> float:
        """The least sum of seconds over stages that have all layers together."""
        least = np.where(np.arange(self.n + 1) == 0, 0.0, np.inf)
        left = np.subtract.outer(np.arange(self.n + 1), np.arange(self.n + 1))
        for row in took:
            least = (np.where(left >= 0, least[left], np.inf) + row).min(axis=1)
        return float(least[-1])


class Dealings:
    """One row exactly, under each remat setting that a framework has."""

    def __init__(
        self,
        costs: StageCosts,
        held: Array,
        vpp: int,
        n: int,
        remat: str,
        stages: list[int] | None,
    ) -> None:
        pp, rungs = len(held), costs.saved_bytes.shape[1]
        lone = vpp > 1 and vpp == -(-n // pp)
        fewest = n if pp == 1 else vpp - lone
        most = vpp if lone else n - fewest * (pp - 1)
        layers = np.arange(fewest, most + 1)
        layers = layers if stages is None else layers[np.isin(layers, stages)]
        self.settings: list[Dealing] = []

        def add(dealt: Array) -> None:
            self.settings.append(Dealing(costs, held, n, dealt, stages, vpp))

        if remat == "by-stage":
            every = dealings(fewest, most, rungs)
            add(every[np.isin(every.sum(axis=1), layers)])
            return
        for rung in range(rungs):
            add(layers[:, None] * (np.arange(rungs) == rung))
        # So many of each chunk on the last rung, or all that it has.
        for count in range(1, -(-n // vpp)) if remat == "one-count" and rungs > 1 else ():
            again = np.minimum(count * vpp, layers)
            dealt = np.zeros((len(layers), rungs))
            dealt[:, 0], dealt[:, -1] = layers - again, again
            add(dealt)

    def beats(self, budget: float, limit_s: float) -> bool:
        """Whether a plan within the budget takes less than the limit."""
        return any(setting.beats(budget, limit_s) for setting in self.settings)


@functools.cache
def dealings(fewest: int, most: int, rungs: int) -> Array:
    """Every way to run so many layers under one rung or two."""
    ways = {
        tuple(count * (r == a) + (layers - count) * (r == b) for r in range(rungs))
        for layers in range(fewest, most + 1)
        for count in range(layers + 1)
        for a in range(rungs)
        for b in range(a, rungs)
    }
    return np.array(sorted(ways), dtype=np.float64).reshape(-1, rungs)
