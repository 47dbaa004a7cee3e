"""The sub-problem under one mesh: layers per stage, and layers per remat rung of each stage.

A stage runs its layers under at most two rungs of the ladder, so that one cut says which layers run
which (no launch framework states more). Then everything that one stage can be is a short list
(:class:`Choices`), and only the number of layers couples the stages.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.costs import Column
from autoshard.search.interleaving import fewest_layers, most_layers
from autoshard.search.rows import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """An answer to the sub-problem: ``rungs[s, r]`` layers, with time and memory in floats."""

    rungs: NDArray[np.int64]
    time_s: float
    memory_bytes: float


@dataclass(frozen=True, slots=True)
class Stage:
    """One mesh as plain arrays: ``j`` overlap forms, ``r`` rungs, ``pp`` stages.

    ``forward`` is ``[3, j]``: layer, embedding, head; ``backward`` ``[r + 2, j]``: each rung's
    layer, then embedding and head. ``exposed[kind][n]`` is what once-a-step work adds to a stage of
    ``n`` layers, by the ends that the stage has. ``state`` is ``[3]`` bytes, ``saved`` ``[r]``.
    Forms that can never be the longest are dropped, so that meshes which differ in hidden work only
    are the same sub-problem.
    """

    pp: int
    vpp: int
    n_layers: int
    forward: Column
    backward: Column
    exposed: dict[tuple[int, int], Column]
    send_s: float
    max_weight: float
    sum_weight: float
    state: Column
    saved: Column
    fixed: float
    in_flight: Column

    @classmethod
    def of(cls, rows: Rows, row: int, in_flight: Column) -> Stage:
        """The coefficients of one row."""
        costs, c = rows.costs, rows.candidates

        def places(columns: Any) -> Column:
            return np.stack([columns[p][row] for p in ("layer", "embedding", "head")])

        forward, plain = places(costs.forward_s), places(costs.backward_s)
        backward = np.concatenate([costs.layer_backward_s[row].T, plain[1:]])
        pp = int(c.pp[row])
        once = (places(costs.once_forward_s), places(costs.once_backward_s))
        exposed = _exposed(pp, rows.n_layers, ((forward, once[0]), (plain, once[1])))
        state = places(costs.state_bytes)
        share = rows.n_layers if pp == 1 else 0
        return cls(
            pp=pp,
            vpp=int(c.vpp[row]),
            n_layers=rows.n_layers,
            forward=_longest_forms(forward, share),
            backward=_longest_forms(backward, share),
            exposed=exposed,
            send_s=float(costs.send_s[row]),
            max_weight=float(costs.max_weight[row]),
            sum_weight=float(costs.sum_weight[row]),
            state=state,
            saved=costs.saved_bytes[row],
            fixed=float(costs.fixed_bytes[row]),
            in_flight=in_flight,
        )

    @property
    def key(self) -> bytes:
        """All coefficients as bytes: stages with the same key are the same sub-problem."""
        arrays = [
            np.array([self.pp, self.vpp, self.n_layers], dtype=np.float64),
            np.array([self.send_s, self.max_weight, self.sum_weight, self.fixed]),
        ]
        for array in (self.forward, self.backward):
            arrays += [np.array(array.shape, dtype=np.float64), array.ravel()]
        arrays += [self.state, self.saved, self.in_flight, *self.exposed.values()]
        return np.concatenate(arrays).tobytes()

    @property
    def ends(self) -> Column:
        """Which stages have the embedding and the head: 0 or 1, ``[pp, 2]``."""
        ends = np.zeros((self.pp, 2))
        ends[0, 0] = ends[-1, 1] = 1.0
        return ends

    @property
    def fewest(self) -> NDArray[np.int64]:
        """Layers that each stage has at least, ``[pp]``."""
        fewest: NDArray[np.int64] = fewest_layers(self.n_layers, self.pp, np.array([self.vpp]))[0]
        return fewest

    def numbers(self, most: int | None = None) -> range:
        """Layers that some stage may have, with at most ``most`` on each."""
        largest = int(most_layers(self.n_layers, self.pp, np.array([self.vpp]))[0])
        most = largest if most is None else min(most, largest)
        # With at most so many on each other stage, so few are left at least.
        return range(max(int(self.fewest.min()), self.n_layers - (self.pp - 1) * most), most + 1)

    def evaluate(self, rungs: NDArray[np.int64]) -> tuple[float, float]:
        """Step seconds and peak bytes of ``rungs[s, r]`` layers, in floats."""
        layers = rungs.sum(axis=1)
        places = np.concatenate([layers[:, None], self.ends], axis=1)
        dealt = np.concatenate([rungs, self.ends], axis=1)
        stage = (places @ self.forward).max(axis=1) + (dealt @ self.backward).max(axis=1)
        stage = stage + self.send_s
        step = self.max_weight * stage.max() + self.sum_weight * stage.sum()
        step += max(self.exposed[kind_of(self, s)][n] for s, n in enumerate(layers.tolist()))
        memory = places @ self.state + self.in_flight * (rungs @ self.saved) + self.fixed
        return float(step), float(memory.max())


def _exposed(
    pp: int, n_layers: int, passes: tuple[tuple[Column, Column], ...]
) -> dict[tuple[int, int], Column]:
    """Seconds that once-a-step work adds to a stage's passes, by its ends and number of layers.

    ``passes`` are the forms ``[3, j]`` of a pass and of the work beside it. Zero where a single
    stage cannot have that number of layers.
    """
    layers = np.arange(n_layers + 1, dtype=np.float64)
    table = {}
    for kind in {(int(s == 0), int(s == pp - 1)) for s in range(pp)}:
        added = np.zeros(n_layers + 1)
        for forms, once in passes:
            if once.any():
                longest = layers[:, None] * forms[0] + np.array(kind) @ forms[1:]
                beside = layers[:, None] * once[0] + np.array(kind) @ once[1:]
                added += (longest + beside).max(axis=1) - longest.max(axis=1)
        if pp == 1:
            added[:-1] = 0.0
        table[kind] = added
    return dict(sorted(table.items()))


def _longest_forms(forms: Column, share: int) -> Column:
    """The columns of ``forms`` ``[places, j]`` that some dealing of layers can make the longest.

    The last two places are the ends. With all layers on one stage (``share`` layers), the ends are
    spread over the layers, and every form is a mean over rungs.
    """
    if share:
        forms = np.concatenate([forms[:-2] + forms[-2:].sum(axis=0) / share, 0.0 * forms[-2:]])
    kept: list[Column] = []
    for column in sorted(forms.T, key=lambda c: (-c.sum(), *(-c).tolist())):
        if not any((column <= other).all() for other in kept):
            kept.append(column)
    return np.stack(kept, axis=1)


@dataclass(frozen=True, slots=True)
class Choices:
    """Everything that a stage can be, apart from what the schedule keeps in flight.

    Sorted by number of layers; ``starts`` is where each of the ``numbers`` of layers begins.
    ``layers`` and ``rungs[., r]`` count layers, ``saved`` is bytes of one microbatch.
    ``seconds[kind]`` and ``exposed[kind]`` are the stage's time and what once-a-step work adds,
    for the ends that a stage has: ``(embedding, head)``.
    """

    numbers: NDArray[np.int64]
    starts: NDArray[np.intp]
    layers: NDArray[np.int64]
    rungs: NDArray[np.int64]
    saved: Column
    seconds: dict[tuple[int, int], Column]
    exposed: dict[tuple[int, int], Column]
    _orders: dict[tuple[int, int], NDArray[np.intp]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, stage: Stage, most: int | None = None, dealt: NDArray[np.int64] | None = None
    ) -> Choices:
        """All choices of a mesh's stages, with at most ``most`` layers on each.

        Or those of ``dealt``, ``[choices, rungs]`` by number of layers.
        """
        rungs = cls._rungs(stage, most) if dealt is None else dealt
        layers = rungs.sum(axis=1)
        seconds, exposed = {}, {}
        for kind in stage.exposed:
            # Built as [j, choices]: the longest form is a maximum along memory.
            ends = np.array(kind, dtype=np.float64)
            forward = np.multiply.outer(stage.forward[0], layers)
            backward = stage.backward[:-2].T @ rungs.T
            forward = (forward + (ends @ stage.forward[1:])[:, None]).max(axis=0)
            backward = (backward + (ends @ stage.backward[-2:])[:, None]).max(axis=0)
            seconds[kind] = forward + backward + stage.send_s
            exposed[kind] = stage.exposed[kind][layers]
        numbers, starts = np.unique(layers, return_index=True)
        saved = rungs @ stage.saved
        return cls(
            numbers=numbers,
            starts=starts,
            layers=layers,
            rungs=rungs,
            saved=saved,
            seconds=seconds,
            exposed=exposed,
        )

    def order(self, kind: tuple[int, int]) -> NDArray[np.intp]:
        """Sorts each number's choices by time, then by saved bytes, ``[choices]``."""
        if kind not in self._orders:
            self._orders[kind] = np.lexsort((self.saved, self.seconds[kind], self.layers))
        return self._orders[kind]

    @staticmethod
    def _rungs(stage: Stage, most: int | None) -> NDArray[np.int64]:
        """Layers on each rung, of every choice."""
        numbers, keep = stage.numbers(most), useful_rungs(stage)
        dealt = all_dealings(numbers.start, numbers.stop - 1, len(keep))
        rungs = np.zeros((len(dealt), len(stage.saved)), dtype=np.int64)
        rungs[:, keep] = dealt
        return rungs


def kind_of(stage: Stage, s: int) -> tuple[int, int]:
    """Which ends stage ``s`` has: (embedding, head)."""
    return int(s == 0), int(s == stage.pp - 1)


def free_bytes(stage: Stage, choices: Choices, kind: tuple[int, int]) -> Column:
    """Bytes of every choice beside its saved activations, with the ends of a stage."""
    free: Column = choices.layers * stage.state[0]
    free += np.array(kind) @ stage.state[1:] + stage.fixed
    return free


def stage_memory(stage: Stage, choices: Choices, s: int) -> Column:
    """Bytes of every choice on stage ``s``."""
    memory: Column = stage.in_flight[s] * choices.saved
    return memory + free_bytes(stage, choices, kind_of(stage, s))


def useful_rungs(stage: Stage) -> list[int]:
    """Rungs that no other beats or equals in both saved bytes and time."""
    cost = np.concatenate([stage.saved[:, None], stage.backward[:-2]], axis=1)
    kept: list[int] = []
    for r in np.lexsort(cost.T[::-1]).tolist():
        if not any((cost[k] <= cost[r]).all() for k in kept):
            kept.append(r)
    return sorted(kept)


@functools.lru_cache(maxsize=256)
def all_dealings(fewest: int, most: int, rungs: int) -> NDArray[np.int64]:
    """Every way to run ``fewest`` to ``most`` layers under one or two of ``rungs`` rungs."""
    parts = [np.zeros((0, rungs), dtype=np.int64)]
    parts += [_dealings(layers, rungs) for layers in range(fewest, most + 1)]
    return np.concatenate(parts)


def _dealings(layers: int, rungs: int) -> NDArray[np.int64]:
    """Every way to run layers under one or two of some rungs, ``[choices, rungs]``."""
    single = layers * np.eye(rungs, dtype=np.int64)
    parts = [single]
    count = np.arange(1, layers)
    for low in range(rungs):
        for high in range(low + 1, rungs):
            pair = np.zeros((len(count), rungs), dtype=np.int64)
            pair[:, low], pair[:, high] = count, layers - count
            parts.append(pair)
    return np.concatenate(parts)
