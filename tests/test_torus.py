"""What split dimensions of a torus cost: by hand, against a plain loop, and what may never be."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoshard import solve
from autoshard.catalog import load_chip, load_model
from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.cluster import Cluster, TorusAxis, side_key
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.setting import AXES, Setting
from autoshard.costmodels.textbook_comms import torus_network
from autoshard.costmodels.torus import Split, splits, torus_times
from autoshard.costmodels.workload import Workload
from autoshard.stack_notes import whole_dimensions

W = 1.8e11  # v5p: bytes a second along one dimension, both ways


def torus(*lengths: int, wrap: str = "always") -> Cluster:
    """A slice whose dimensions wrap always, in whole cubes, or at sixteen chips."""
    chip = dataclasses.replace(load_chip("v5p"), wrap=wrap, pod_axes=(16,) * len(lengths))
    return Cluster(name="slice", chip=chip, chips=math.prod(lengths), topology=lengths)


def mesh(**values: int) -> Candidates:
    """One candidate out of the columns that are not one."""
    default = {"layout": 0, "reshard": 3}
    filled = {name: values.get(name, default.get(name, 1)) for name in COLUMNS}
    return Candidates(**{name: np.array([v], dtype=np.int64) for name, v in filled.items()})


def layout_of(cluster: Cluster, tensor_axes: int) -> int:
    """The first layout with so many tensor dimensions."""
    return next(i for i, a in enumerate(cluster.layouts) if len(a.tensor_axes) == tensor_axes)


def book(cluster: Cluster, candidates: Candidates) -> dict[str, np.ndarray]:
    """Seconds for each gathered byte as the textbook has them, whatever the degrees."""
    workload = Workload(global_batch_seqs=64, seq_len=4096)
    problem = Problem(model=load_model("llama3-8b"), cluster=cluster, workload=workload)
    # Context ranks share the state.
    shards = candidates.replace(batch_split=candidates.batch_split * candidates.cp)
    network, one = torus_network(problem, shards), np.ones(len(candidates))
    return {
        "tensor_s": sum(network.gather_tensor(one).values(), 0.0 * one),
        "fsdp_s": sum(network.gather_fsdp(one).values(), 0.0 * one),
        "sequence_s": sum(network.gather_sequence(one).values(), 0.0 * one),
    }


def degrees(candidates: Candidates, row: int = 0) -> list[int]:
    """The degrees of one mesh that are more than one."""
    names = ("batch_split", "seq_split", "tp", "pp", "cp")
    return [n for name in names if (n := int(getattr(candidates, name)[row])) > 1]


def test_part_of_a_dimension_is_a_line() -> None:
    # tp = 4 on 16 chips that wrap: 3/4 of the array over links of W / 2.
    cluster = torus(16, 16)
    times = torus_times(cluster, mesh(tp=4, batch_split=64, layout=layout_of(cluster, 1)))
    assert times.tensor_s[0] == pytest.approx(3 / 4 / (W / 2))
    # 64 shards are a ring of 16 and the four chips that tp has left, gathered first:
    # 3/64 of the array, four groups to a link.
    assert times.fsdp_s[0] == pytest.approx(max(1 / W, 3 / 64 * 4 / W))
    assert times.shared[0]


def test_a_whole_dimension_and_part_of_another() -> None:
    # tp = 16 on two of 8x8x8: 8 x 2 is a ring and a line, 4 x 4 are two lines.
    cluster = torus(8, 8, 8)
    times = torus_times(cluster, mesh(tp=16, batch_split=32, layout=layout_of(cluster, 2)))
    assert times.tensor_s[0] == pytest.approx(1 / (W + W / 2))
    assert 1 / (W + W / 2) < 15 / 16 / (W / 2 + W / 2)
    assert sorted(times.placements[times.placement[0]].taken) == [1, 2, 8]


def test_the_dimension_that_holds_a_degree_is_found() -> None:
    # The layout says the first dimension; the third one is as long as tp.
    cluster = torus(4, 8, 16)
    times = torus_times(cluster, mesh(tp=16, batch_split=32, layout=layout_of(cluster, 1)))
    assert times.tensor_s[0] == pytest.approx(1 / W)
    assert times.placements[times.placement[0]].taken == (1, 1, 16)


def test_idle_chips_keep_the_ring_closed() -> None:
    # Eight of sixteen chips, and nobody wants the others.
    cluster = torus(16, 16)
    layout = layout_of(cluster, 1)
    alone = torus_times(cluster, mesh(tp=8, batch_split=16, layout=layout))
    both = torus_times(cluster, mesh(tp=8, batch_split=32, layout=layout))
    assert alone.tensor_s[0] == pytest.approx(1 / W)
    assert both.tensor_s[0] == pytest.approx(7 / 8 / (W / 2))


def test_stages_that_split_a_dimension_break_the_ring_of_the_shards() -> None:
    cluster = torus(8, 8, 8)
    whole = torus_times(cluster, mesh(batch_split=64, pp=8))
    split = torus_times(cluster, mesh(batch_split=128, pp=4))
    assert whole.fsdp_s[0] == pytest.approx(1 / (3 * W))
    assert split.fsdp_s[0] == pytest.approx(1 / (2.5 * W))
    # Two shards lie between neighbouring stages: two sends share each link.
    assert (whole.stride[0], split.stride[0]) == (1, 2)


def test_one_dimension_for_both_sides() -> None:
    # 16 chips in a row that wraps: lines of four, and four rings that share all links.
    times = torus_times(torus(16), mesh(tp=4, batch_split=4))
    assert times.tensor_s[0] == pytest.approx(3 / 4 / (W / 2))
    assert times.fsdp_s[0] == pytest.approx(3 / 4 * 4 / W)


def test_settings_take_their_seconds_from_the_torus() -> None:
    cluster = torus(16, 16)
    rows = mesh(tp=4, batch_split=4, pp=16, layout=layout_of(cluster, 1))
    workload = Workload(global_batch_seqs=64, seq_len=4096)
    problem = Problem(model=load_model("llama3-8b"), cluster=cluster, workload=workload)
    s, times = Setting.of(problem, rows), torus_times(cluster, rows)
    assert s.inner["tensor"][0] == times.tensor_s[0]
    assert s.inner["fsdp"][0] == times.fsdp_s[0]
    assert s.inner["sequence"][0] == times.sequence_s[0]
    assert s.send_s_per_byte[0] == pytest.approx(times.stride[0] / (W / 2))
    assert not any(s.outer[axis][0] for axis in AXES)


def test_what_is_split_is_said() -> None:
    cluster = torus(8, 8, 8)
    layout = layout_of(cluster, 1)
    assert splits(cluster, mesh(tp=8, batch_split=64, layout=layout)) == [[]]
    (found,) = splits(cluster, mesh(tp=4, batch_split=128, layout=layout))
    assert found == [Split(axis="tp", dimension="x", taken=4, length=8)]
    (found,) = splits(cluster, mesh(batch_split=128, pp=4))
    assert [(s.axis, s.taken, s.length) for s in found] == [("fsdp", 2, 8)]


def test_a_block_of_two_lines_is_no_faster_than_a_ring() -> None:
    # 2 x 4 chips have as many links into a corner as a ring of eight has into each of its chips.
    cluster = torus(8, 8, 8)
    ring, block = (
        torus_times(cluster, mesh(tp=8, batch_split=64, layout=layout_of(cluster, axes)))
        for axes in (1, 2)
    )
    assert ring.tensor_s[0] == pytest.approx(1 / W)
    assert block.tensor_s[0] == pytest.approx(2 / W / 2)
    assert ring.fsdp_s[0] < block.fsdp_s[0]


def test_an_answer_names_the_dimensions_that_its_plan_splits() -> None:
    """The calibrated profile, and only where something is split."""
    for costs, tp, split in (
        ("calibrated/maxtext", 4, True),
        ("calibrated/maxtext", 8, False),
        ("textbook", 4, False),
    ):
        front = solve(
            "llama3-8b",
            chip="v5p",
            topology=(8, 8, 8),
            costs=costs,
            fix={"tp": tp, "pp": 1, "seq_split": 1, "cp": 1},
            points=1,
        )
        said = [note for note in front.notes if "are split" in note]
        assert len(said) == split
        assert not split or "tp has " in said[0]


lengths = st.lists(st.sampled_from([2, 3, 4, 8, 12, 16]), min_size=1, max_size=3).map(tuple)
wraps = st.sampled_from(["always", "cubes", "full"])


@st.composite
def meshes(draw: st.DrawFn) -> tuple[Cluster, Candidates]:
    """A slice, and meshes of whatever degrees divide its chips, on every layout that fits."""
    cluster = torus(*draw(lengths), wrap=draw(wraps))
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        left, made = cluster.chips, {}
        for name in ("tp", "batch_split", "seq_split", "pp", "cp"):
            ways = [d for d in range(1, left + 1) if left % d == 0]
            made[name] = draw(st.sampled_from(ways))
            left //= made[name]
        made["batch_split"] *= draw(st.sampled_from([1, left]))
        data = made["batch_split"] * made["seq_split"] * made["pp"] * made["cp"]
        sides = (made["tp"] > 1, data > 1)
        rows += [
            mesh(**made, layout=number)
            for number, a in enumerate(cluster.layouts)
            if len(cluster.layouts) == 1 or (bool(a.tensor_axes), bool(a.data_axes)) == sides
        ]
    return cluster, Candidates.concatenate(rows or [mesh()])


@settings(max_examples=60, deadline=None)
@given(meshes())
def test_a_split_axis_is_never_faster_than_a_whole_one(given: tuple[Cluster, Candidates]) -> None:
    cluster, rows = given
    times, whole = torus_times(cluster, rows), book(cluster, rows)
    for name, seconds in whole.items():
        assert (getattr(times, name) >= seconds * (1 - 1e-12)).all(), name
    assert (times.stride >= 1).all()


@settings(max_examples=60, deadline=None)
@given(lengths, wraps, st.data())
def test_whole_dimensions_cost_what_the_book_says(
    sizes: tuple[int, ...], wrap: str, data: st.DataObject
) -> None:
    """Each dimension to one of the axes; ``tp`` on the layout of its dimensions."""
    names = ("tp", "batch_split", "seq_split", "pp", "cp")
    owners = data.draw(st.tuples(*[st.sampled_from(names)] * len(sizes)))
    cluster = torus(*sizes, wrap=wrap)
    made = {
        name: math.prod(n for n, owner in zip(sizes, owners, strict=True) if owner == name)
        for name in names
    }
    tensor = tuple(i for i, owner in enumerate(owners) if owner == "tp")
    key = [
        side_key(cluster.torus, side)
        for side in (tuple(i for i in range(len(sizes)) if i not in tensor), tensor)
    ]
    layout = next(
        number
        for number, a in enumerate(cluster.layouts)
        if len(sizes) == 1
        or [side_key(cluster.torus, side) for side in (a.data_axes, a.tensor_axes)] == key
    )
    rows = mesh(**made, layout=layout)
    assert whole_dimensions(degrees(rows), sizes)
    times, old = torus_times(cluster, rows), book(cluster, rows)
    for name, seconds in old.items():
        assert getattr(times, name)[0] == seconds[0], name
    assert times.stride[0] == 1
    assert splits(cluster, rows) == [[]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([4, 8, 16]), min_size=1, max_size=3).map(tuple), st.data())
def test_more_wrap_around_is_never_slower(sizes: tuple[int, ...], data: st.DataObject) -> None:
    tp = data.draw(st.sampled_from([2, 4, 8, 16, 32]).filter(lambda n: math.prod(sizes) % n == 0))
    pp = data.draw(st.sampled_from([1, 2, 4]))
    shards = max(math.prod(sizes) // tp // pp, 1)
    found = []
    for wrap in ("full", "always"):
        cluster = torus(*sizes, wrap=wrap)
        best = []
        for number, a in enumerate(cluster.layouts):
            if len(sizes) == 1 or (a.tensor_axes and (a.data_axes or shards * pp == 1)):
                rows = mesh(tp=tp, batch_split=shards, pp=pp, layout=number)
                times = torus_times(cluster, rows)
                best.append((len(a.tensor_axes), times.tensor_s[0], times.fsdp_s[0]))
        found.append(best)
    some, every = found
    for axes in {axes for axes, _, _ in every}:
        tensor = [min(t for n, t, _ in side if n == axes) for side in (some, every)]
        assert tensor[1] <= tensor[0] * (1 + 1e-12)
    # Only pp and fsdp split dimensions here; all of them are the data side's.
    shards *= tp
    before, after = (
        torus_times(cluster, mesh(batch_split=shards, pp=pp, layout=layout_of(cluster, 0))).fsdp_s[
            0
        ]
        if len(sizes) > 1
        else torus_times(cluster, mesh(batch_split=shards, pp=pp)).fsdp_s[0]
        for cluster in (torus(*sizes, wrap=wrap) for wrap in ("full", "always"))
    )
    assert after <= before * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(meshes())
def test_columns_are_what_a_plain_loop_finds(given: tuple[Cluster, Candidates]) -> None:
    cluster, rows = given
    times = torus_times(cluster, rows)
    for row in range(len(rows)):
        found = one_by_hand(cluster, {n: int(getattr(rows, n)[row]) for n in COLUMNS})
        made = (times.tensor_s[row], times.fsdp_s[row], times.sequence_s[row])
        assert made[:2] == pytest.approx(found[:2], rel=1e-9)
        assert made[2] in [pytest.approx(s, rel=1e-9) for s in found[2]]


def one_by_hand(cluster: Cluster, row: dict[str, int]) -> tuple[float, float, list[float]]:
    """The best of every way to place ``tp``; with equals, each one's sequence."""
    axes, layout = cluster.torus, cluster.layouts[row["layout"]]
    tp, shards = row["tp"], row["batch_split"] * row["seq_split"] * row["cp"]
    data, everything = shards * row["pp"], range(len(axes))
    if tp == 1 or not layout.tensor_axes:
        ways = [((1,) * len(axes), layout.data_axes, False)]
    else:
        ways = list(placements(axes, layout.data_axes, layout.tensor_axes, tp))
    found = []
    for taken, dims, spills in ways:
        room = math.prod(axes[i].length for i in dims)
        rest = [
            (axes[i].length // taken[i], taken[i], rate(axes[i], True))
            for i in everything
            if taken[i] > 1 and axes[i].length // taken[i] > 1
        ]
        left = math.prod(m for m, _, _ in rest)
        if spills:
            tensor = 1 / sum(axes[i].bytes_per_s / 2 for i in layout.tensor_axes)
        else:
            tensor = gathered(axes, taken, closed=data <= room) if tp > 1 else 0.0

        side = functools.partial(
            side_s, [axes[i] for i in dims], rest=rest, twice=2.0 if spills else 1.0
        )
        fsdp = side(shards, row["pp"] > 1)
        sequence = side(row["seq_split"], data > row["seq_split"])
        found.append((data > room * left, tensor, fsdp, sequence))
    tight = min(f[0] for f in found)
    tensor = min(f[1] for f in found if f[0] == tight)
    same = [f for f in found if f[0] == tight and f[1] <= tensor * (1 + 1e-9)]
    fsdp = min(f[2] for f in same)
    return tensor, fsdp, [f[3] for f in same if f[2] <= fsdp * (1 + 1e-9)]


def side_s(
    own: list[TorusAxis],
    group: int,
    others: bool,
    *,
    rest: list[tuple[int, int, float]],
    twice: float,
) -> float:
    """A gather of data axes on their own dimensions, and on what ``tp`` has left."""
    base, room = 0.0, math.prod(a.length for a in own)
    if own and others and 1 < group < room:
        base = partial(own, group)
    elif own and group > 1:
        ring = any(a.wraps for a in own)
        base = (1 if ring else (group - 1) / group) / sum(rate(a, True) for a in own)
    beyond = min(max(group / room, 1.0), math.prod(m for m, _, _ in rest))
    slow = max((f / r for _, f, r in rest), default=0.0)
    return max(twice * base, (beyond - 1) / group * slow)


def rate(axis: TorusAxis, closed: bool) -> float:
    return axis.bytes_per_s if axis.wraps and closed else axis.bytes_per_s / 2


def products(sizes: tuple[int, ...], degree: int) -> list[tuple[int, ...]]:
    """Every way to have ``degree`` chips with at most so many along each dimension."""
    ways = itertools.product(*(range(1, n + 1) for n in sizes))
    return [q for q in ways if math.prod(q) == degree]


def filled(sizes: tuple[int, ...], degree: int) -> Iterator[tuple[int, ...]]:
    for order in itertools.permutations(range(len(sizes))):
        left, taken = degree, [1] * len(sizes)
        for i in order:
            taken[i] = min(sizes[i], left)
            left = math.ceil(left / taken[i])
        yield tuple(taken)


def placements(
    axes: tuple[TorusAxis, ...], data: tuple[int, ...], tensor: tuple[int, ...], tp: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], bool]]:
    everything = range(len(axes))
    key = (side_key(axes, data), side_key(axes, tensor))
    some = False
    for side in itertools.combinations(everything, len(tensor)):
        others = tuple(i for i in everything if i not in side)
        if len(axes) > 1 and (side_key(axes, others), side_key(axes, side)) != key:
            continue
        sizes = tuple(axes[i].length for i in side)
        ways = products(sizes, tp)
        if not ways and tp <= math.prod(sizes):
            ways = list(filled(sizes, tp))
        most = max((sum(n > 1 for n in q) for q in ways), default=0)
        for q in ways:
            if sum(n > 1 for n in q) == most:
                some = True
                taken = [1] * len(axes)
                for i, n in zip(side, q, strict=True):
                    taken[i] = n
                yield tuple(taken), others, False
    if not some:
        taken = [a.length if i in tensor else 1 for i, a in enumerate(axes)]
        yield tuple(taken), tuple(i for i in everything if i not in tensor), True


def gathered(axes: tuple[TorusAxis, ...], taken: tuple[int, ...], *, closed: bool) -> float:
    """The slowest floor: what every set of dimensions moves at least, over what it can."""
    used = [i for i in range(len(axes)) if taken[i] > 1]
    rates = {i: rate(axes[i], closed or taken[i] == axes[i].length) for i in used}
    group, slowest = math.prod(taken), 0.0
    ring = any(rates[i] == axes[i].bytes_per_s for i in used)
    block = not closed and len(used) > 1
    block = block and any(taken[i] < axes[i].length for i in used)
    for size in range(1, len(used) + 1):
        for some in itertools.combinations(used, size):
            others = math.prod(taken[i] for i in used if i not in some)
            share = 1 / others - 1 / group
            if size == len(used) and (ring or block):
                share = 1.0  # the book's ring
            slowest = max(slowest, share / sum(rates[i] for i in some))
    return slowest


def partial(dims: list[TorusAxis], group: int) -> float:
    """A group on part of a side: the dimensions that it cuts are lines for all."""
    sizes = tuple(a.length for a in dims)
    exact = [
        q for q in products(sizes, group) if all(n % m == 0 for n, m in zip(sizes, q, strict=True))
    ]
    found = []
    for q in exact or filled(sizes, group):
        cut = [1 < m < n for n, m in zip(sizes, q, strict=True)]
        rates = [rate(a, bool(exact) and not c) for a, c in zip(dims, cut, strict=True)]
        ring = any(r == a.bytes_per_s for r, a in zip(rates, dims, strict=True))
        share = 1.0 if ring else (group - 1) / group
        if any(cut) and not ring:
            share = max(share, len(dims) / (len(dims) + 1))
        found.append(share / sum(rates))
    return min(found)
