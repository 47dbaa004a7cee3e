"""Where logical axes lie on the dimensions of a torus, and what a split dimension costs.

A :class:`~autoshard.costmodels.cluster.Layout` says how many dimensions ``tp`` has, and leaves the
others to the data axes. Here ``tp`` is dealt to dimensions, the best way for each candidate:

* a group that holds a *whole* dimension is a ring on it: ``V / W`` (sharding.md, "AllGather");
* a group of ``f`` chips on a *part* of a dimension is a line. The links beyond it are the next
  group's, so nothing comes from behind: the last link carries ``(f - 1) / f`` of the array one way,
  at half of the bandwidth. sharding.md has that for a slice without wrap-around ("we have to do 3
  hops for data from the edges to reach the other edge": 560 us, 680 us measured, for 377 us);
* what is left of that dimension is a group with a *stride* of ``f``: ``f`` such groups, one between
  the other, cross every link, and each has ``1 / f`` of it;
* where chips are idle and nobody else uses the rest of a dimension, they pass messages on, and the
  ring stays one.

Over several dimensions, arrays go in parts that take the dimensions in different orders
(sharding.md, "AllGather over multiple axes"). Whatever the order, at least ``1 / prod(others) - 1 /
prod(all)`` of the array moves over the links of any set of dimensions, which is what moves where
they come first. Mixed orders reach the slowest of these floors and no more: what dimensions move is
a submodular function of the set, and orders are its greedy vertices (Edmonds 1970). With equal
dimensions that is the book's ``V / (n W)``.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.candidates import Candidates, IntColumn
from autoshard.costmodels.cluster import Cluster, Layout, TorusAxis, side_key
from autoshard.costmodels.costs import Column
from autoshard.costmodels.roofline import ring_fraction

#: Seconds that differ by less, relatively, are equal.
EQUAL = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """``tp`` on the dimensions of a torus: ``taken[i]`` of the chips along each, ``data`` the rest.

    ``alone_s`` and ``shared_s`` are seconds for each gathered byte of ``tp``: where the data axes
    stay on their dimensions, and where they need what ``tp`` leaves of its own, too. ``spills``
    says that ``tp`` is more than its dimensions hold: no layout's best, and every ring is broken.
    """

    taken: tuple[int, ...]
    data: tuple[int, ...]
    alone_s: float
    shared_s: float
    spills: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A part of a dimension: ``axis`` has ``taken`` of the ``length`` chips along ``dimension``."""

    axis: str
    dimension: str
    taken: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TorusTimes:
    """Seconds for each gathered byte of the logical axes, ``[n]``.

    ``stride`` is how many pipeline sends share a link. ``placement`` indexes ``placements``, and
    ``shared`` says whether data axes use dimensions of ``tp``.
    """

    tensor_s: Column
    fsdp_s: Column
    sequence_s: Column
    stride: Column
    placements: tuple[Placement, ...]
    placement: IntColumn
    shared: NDArray[np.bool_]


def torus_times(cluster: Cluster, candidates: Candidates) -> TorusTimes:
    """The best placement of each candidate on its layout: fastest for ``tp``, then for ``fsdp``.

    Among equals the one that splits nothing, then the first.
    FSDP ranks are those that share the state: context ranks are among them.
    """
    shards = candidates.batch_split * candidates.seq_split * candidates.cp
    keys, back = _distinct(
        candidates.layout, candidates.tp, shards, candidates.pp, candidates.seq_split
    )
    layout, tp, shards, pp, seq_split = keys
    seconds = np.zeros((3, len(layout)))
    stride, chosen = np.ones(len(layout)), np.zeros(len(layout), dtype=np.int64)
    shared = np.zeros(len(layout), dtype=np.bool_)
    placements: list[Placement] = []
    axes, layouts = cluster.torus, cluster.layouts
    pairs, group = np.unique(layout * (tp.max(initial=0) + 1) + tp, return_inverse=True)
    for pair in range(len(pairs)):
        rows = np.nonzero(group == pair)[0]
        number, degree = int(layout[rows[0]]), int(tp[rows[0]])
        held, stages, ways = shards[rows], pp[rows], seq_split[rows]
        best: tuple[Column, ...] = ()
        for place in _placements(axes, layouts[number], degree):
            side = _Side.of(axes, place)
            shares = (held * stages > side.room) & (degree > 1)
            tensor = np.where(shares, place.shared_s, place.alone_s)
            tight = (held * stages > side.room * side.left).astype(np.float64)
            fsdp = side.gather_s(held, stages > 1)
            ranks = (tight, tensor, fsdp, shares.astype(np.float64))
            better = _before(ranks, best) if best else np.ones(len(rows), dtype=np.bool_)
            best = tuple(
                np.where(better, new, old) for new, old in zip(ranks, best or ranks, strict=True)
            )
            some = rows[better]
            if len(some):
                many = held[better] * stages[better]
                sequence = side.gather_s(ways[better], many > ways[better])
                seconds[:, some] = tensor[better], fsdp[better], sequence
                stride[some] = side.stride(held[better], stages[better])
                shared[some], chosen[some] = shares[better], len(placements)
                placements.append(place)
    return TorusTimes(
        tensor_s=seconds[0][back],
        fsdp_s=seconds[1][back],
        sequence_s=seconds[2][back],
        stride=stride[back],
        placements=tuple(placements),
        placement=chosen[back],
        shared=shared[back],
    )


def splits(cluster: Cluster, candidates: Candidates) -> list[list[Split]]:
    """The dimensions of which a logical axis of each candidate has only a part, for each."""
    times, axes = torus_times(cluster, candidates), cluster.torus
    said: list[list[Split]] = []
    for row in range(len(candidates)):
        place = times.placements[times.placement[row]]
        side = _Side.of(axes, place)
        found = list(_parts("tp", axes, place.taken)) if times.shared[row] else []
        batch, seq, cp, pp = (
            int(getattr(candidates, name)[row]) for name in ("batch_split", "seq_split", "cp", "pp")
        )
        for name, group, others in (
            ("fsdp", batch * seq * cp, pp),
            ("seq_split", seq, batch * cp * pp),
        ):
            if others > 1 and 1 < group < side.room:
                found += list(_parts(name, side.dims, _part(side.dims, group)[1]))
        said.append(found)
    return said


def _parts(name: str, axes: Sequence[TorusAxis], taken: Sequence[int]) -> Iterator[Split]:
    for axis, count in zip(axes, taken, strict=True):
        if 1 < count < axis.length:
            yield Split(axis=name, dimension=axis.name, taken=count, length=axis.length)


def _distinct(*columns: IntColumn) -> tuple[list[IntColumn], NDArray[np.intp]]:
    """The distinct rows of some columns of counts, and which of them each row is."""
    code = np.zeros_like(columns[0])
    most = 1
    for column in columns:
        width = int(column.max(initial=0)) + 1
        if most * width >= 2**62:
            code = np.unique(code, return_inverse=True)[1].astype(np.int64)
            column = np.unique(column, return_inverse=True)[1].astype(np.int64)
            most, width = len(code), len(code)
        code, most = code * width + column, most * width
    _, first, back = np.unique(code, return_index=True, return_inverse=True)
    return [column[first] for column in columns], back


def _before(one: tuple[Column, ...], other: tuple[Column, ...]) -> NDArray[np.bool_]:
    """Whether the first is less, by the first column in which they differ."""
    before = np.zeros(len(one[0]), dtype=np.bool_)
    open_ = np.ones(len(one[0]), dtype=np.bool_)
    for a, b in zip(one, other, strict=True):
        before |= open_ & (a < b * (1.0 - EQUAL))
        open_ &= np.abs(a - b) <= EQUAL * b
    return before


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """The data side of a placement: its own dimensions, and what ``tp`` leaves of the others.

    ``left`` chips are left, of which ``apart`` at most lie between neighbours, and ``left_s`` are
    seconds a byte on the slowest of the links that they share. ``broken`` says that ``tp`` is
    in the way of all.
    """

    dims: tuple[TorusAxis, ...]
    room: int
    left: int
    apart: int
    left_s: float
    broken: bool

    @classmethod
    def of(cls, axes: tuple[TorusAxis, ...], place: Placement) -> _Side:
        dims = tuple(axes[i] for i in place.data)
        rest = [
            (axis.length // taken, taken, taken / _rate(axis))
            for axis, taken in zip(axes, place.taken, strict=True)
            if 1 < taken <= axis.length // 2
        ]
        return cls(
            dims=dims,
            room=math.prod(axis.length for axis in dims),
            left=math.prod(chips for chips, _, _ in rest),
            apart=max((taken for _, taken, _ in rest), default=1),
            left_s=max((slowest for _, _, slowest in rest), default=0.0),
            broken=place.spills,
        )

    def gather_s(self, group: IntColumn, others: NDArray[np.bool_]) -> Column:
        """Seconds for each gathered byte of a group; ``others`` says if data axes are beyond it.

        As in the book, the axes of a side have all of its dimensions together; a dimension that is
        split between them is a line. What ``tp`` has left of its dimensions is gathered first, when
        the pieces are small, and beside the rest.
        """
        seconds = np.zeros(len(group))
        if self.dims:
            rate, wraps = side_key(self.dims, tuple(range(len(self.dims))))
            seconds = ring_fraction(group, wraps) / rate
            part = others & (group < self.room) & (group > 1)
            for degree in np.unique(group[part]).tolist():
                seconds[part & (group == degree)] = _part(self.dims, degree)[0]
            if self.broken:
                seconds *= 2.0
        beyond = np.clip(group / self.room, 1.0, self.left)
        return np.maximum(seconds, (beyond - 1.0) / group * self.left_s)

    def stride(self, shards: IntColumn, stages: IntColumn) -> Column:
        """How many sends of the pipeline share a link: the shards between neighbouring stages."""
        stride = np.ones(len(shards))
        part = (shards < self.room) & (shards > 1) & (stages > 1)
        for degree in np.unique(shards[part]).tolist():
            split = _parts("", self.dims, _part(self.dims, degree)[1])
            stride[part & (shards == degree)] = max((s.taken for s in split), default=1)
        beyond = self.apart * np.clip(shards / self.room, 1.0, self.left)
        return np.where(shards * stages > self.room, np.maximum(stride, beyond), stride)


@functools.lru_cache(maxsize=4096)
def _placements(axes: tuple[TorusAxis, ...], layout: Layout, degree: int) -> tuple[Placement, ...]:
    """The ways to place ``tp`` on a layout, or on another of the same bandwidths.

    On as many of the tensor dimensions as it can span, and one of those that are alike.
    """
    nothing = Placement(taken=(1,) * len(axes), data=layout.data_axes, alone_s=0.0, shared_s=0.0)
    if degree == 1 or not layout.tensor_axes:
        return (nothing,)
    found: dict[tuple[object, ...], Placement] = {}
    for tensor in _alike(axes, layout):
        data = tuple(i for i in range(len(axes)) if i not in tensor)
        dims = tuple(axes[i] for i in tensor)
        for part in _spread(tuple(axis.length for axis in dims), degree):
            cut = [1 < n < axis.length for axis, n in zip(dims, part, strict=True)]
            lines = [_half(axis, c) for axis, c in zip(dims, cut, strict=True)]
            taken = dict(zip(tensor, part, strict=True))
            place = Placement(
                taken=tuple(taken.get(i, 1) for i in range(len(axes))),
                data=data,
                alone_s=_gather_s(dims, part),
                shared_s=_gather_s(lines, part, block=any(cut)),
            )
            same = sorted((axis.length, axis.wraps, n) for axis, n in zip(dims, part, strict=True))
            found.setdefault(tuple(same), place)
    if found:
        return tuple(found.values())
    slow = 2.0 / sum(axes[i].bytes_per_s for i in layout.tensor_axes)
    return (
        Placement(
            taken=tuple(a.length if i in layout.tensor_axes else 1 for i, a in enumerate(axes)),
            data=tuple(i for i in range(len(axes)) if i not in layout.tensor_axes),
            alone_s=slow,
            shared_s=slow,
            spills=True,
        ),
    )


def _alike(axes: tuple[TorusAxis, ...], layout: Layout) -> Iterator[tuple[int, ...]]:
    """The choices of tensor dimensions that a layout stands for."""
    yield layout.tensor_axes
    both = layout.data_axes, layout.tensor_axes
    if set(both[0]) & set(both[1]):  # the one dimension of a line of chips
        return
    key = [side_key(axes, side) for side in both]
    for tensor in itertools.combinations(range(len(axes)), len(layout.tensor_axes)):
        data = tuple(i for i in range(len(axes)) if i not in tensor)
        if tensor != layout.tensor_axes and [side_key(axes, s) for s in (data, tensor)] == key:
            yield tensor


def _spread(lengths: tuple[int, ...], degree: int) -> list[tuple[int, ...]]:
    """The ways to make a degree out of parts of dimensions, on as many of them as possible."""
    ways = [q for q in _factors(lengths, degree) if math.prod(q) == degree]
    if not ways and degree <= math.prod(lengths):
        ways = [_filled(lengths, order, degree) for order in _orders(lengths)]
    spans = [sum(n > 1 for n in q) for q in ways]
    return [q for q, span in zip(ways, spans, strict=True) if span == max(spans)]


def _factors(lengths: tuple[int, ...], degree: int) -> Iterator[tuple[int, ...]]:
    """Every way to write a degree as a product of at most so much along each dimension."""
    if not lengths:
        if degree == 1:
            yield ()
        return
    for n in range(1, min(lengths[0], degree) + 1):
        if degree % n == 0:
            yield from ((n, *rest) for rest in _factors(lengths[1:], degree // n))


def _orders(lengths: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.permutations(range(len(lengths)))


def _filled(lengths: tuple[int, ...], order: tuple[int, ...], degree: int) -> tuple[int, ...]:
    """Dimensions filled one after the other, the last one rounded up."""
    taken = [1] * len(lengths)
    for i in order:
        taken[i] = min(lengths[i], degree)
        degree = -(-degree // taken[i])
    return tuple(taken)


@functools.lru_cache(maxsize=2**14)
def _part(dims: tuple[TorusAxis, ...], group: int) -> tuple[float, tuple[int, ...]]:
    """Seconds a byte of a group on part of a side, and what it has of each dimension.

    Whole dimensions as far as that goes, and of the others those that lose least. Where a degree
    is no product of divisors of the dimensions, all of them are lines.
    """
    lengths = tuple(axis.length for axis in dims)
    exact = [
        q
        for q in _factors(lengths, group)
        if not any(n % m for n, m in zip(lengths, q, strict=True))
    ]
    best: tuple[tuple[float, int, tuple[int, ...]], float] | None = None
    for taken in exact or [_filled(lengths, order, group) for order in _orders(lengths)]:
        cut = [1 < n < axis.length for axis, n in zip(dims, taken, strict=True)]
        left = [_half(axis, c or not exact) for axis, c in zip(dims, cut, strict=True)]
        rate, wraps = side_key(tuple(left), tuple(range(len(left))))
        fraction = 1.0 if wraps else (group - 1) / group
        if any(cut) and not wraps:
            # Not less than with one ring among these dimensions: few chips do not span them all.
            fraction = max(fraction, len(dims) / (len(dims) + 1))
        longest = max((n for n, c in zip(taken, cut, strict=True) if c), default=1)
        key = (fraction / rate, longest, taken)
        if best is None or key < best[0]:
            best = (key, fraction / rate)
    assert best is not None  # there is always a way to fill dimensions
    return best[1], best[0][2]


def _gather_s(dims: Sequence[TorusAxis], taken: Sequence[int], *, block: bool = False) -> float:
    """Seconds for each byte of an all-gather over so many chips along each dimension.

    ``block`` says that some of the dimensions are cut.
    """
    spanned = [(axis, n) for axis, n in zip(dims, taken, strict=True) if n > 1]
    group = math.prod(n for _, n in spanned)
    # The book counts a ring's (n - 1) / n as one: a block of two lines is not to gain by that.
    ring = any(axis.wraps for axis, _ in spanned) or (block and len(spanned) > 1)
    slowest = (1.0 if ring else (group - 1) / group) / sum(_rate(axis) for axis, _ in spanned)
    for size in range(1, len(spanned)):
        for last in itertools.combinations(spanned, size):
            others = group // math.prod(n for _, n in last)
            floor = (1.0 / others - 1.0 / group) / sum(_rate(axis) for axis, _ in last)
            slowest = max(slowest, floor)
    return slowest


def _rate(axis: TorusAxis) -> float:
    """Bytes a second of a ring or a line."""
    return axis.bytes_per_s if axis.wraps else axis.bytes_per_s / 2.0


def _half(axis: TorusAxis, cut: bool) -> TorusAxis:
    """A dimension as those see it who have a part of it: a line."""
    return replace(axis, wraps=False) if cut else axis
