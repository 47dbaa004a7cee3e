"""A cluster: chips of one kind, the ordered network levels between them, and torus layouts.

Sources: wrap-around and DCN rules from tpus.md, switched levels from gpus.md of the scaling book;
the 3,072-GPU pods at 1:7 oversubscription from the Llama 3 paper (arXiv 2407.21783, section 3.3.1).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoshard.costmodels.checks import LARGEST_COUNT, check_count, said, shown
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.errors import SpecError

AXIS_NAMES = ("x", "y", "z")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorusAxis:
    """One torus axis: ``bytes_per_s`` is both directions, halved without wrap-around."""

    name: str
    length: int
    wraps: bool
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One network level, innermost first: ``chips`` chips reach each other through it.

    ``bytes_per_s`` is per chip and one way for a switched level; a torus level lists its axes.
    """

    name: str
    chips: int
    bytes_per_s: float
    axes: tuple[TorusAxis, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How many hardware axes the data axes (X: fsdp, cp, pp) and the tensor axis (Y) get.

    ``data_axes`` and ``tensor_axes`` are indices into the torus axes; both empty on switched
    networks, where the ranks nest by stride instead.
    """

    data_axes: tuple[int, ...] = ()
    tensor_axes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """``pods`` equal pods of ``chips // pods`` chips; ``topology`` is the torus of one pod (TPU).

    Use :meth:`build` to get one from a chip and a size.

    Raises:
        SpecError: sizes do not agree.
    """

    name: str
    chip: Chip
    chips: int
    pods: int = 1
    topology: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        owner = f"cluster {shown(self.name)}"
        if not isinstance(self.name, str):
            raise SpecError(f"{owner}: name must be text, such as 'ours'.")
        _check_kinds(owner, self.chip, self.topology)
        check_count(owner, "chips", self.chips)
        check_count(owner, "pods", self.pods)
        if self.chips % self.pods:
            whole = 1 if self.chip.kind == "tpu" else self.chip.domain_chips
            raise SpecError(
                f"{owner}: {said(self.chips)} chips do not divide into {said(self.pods)} equal "
                f"pods; {_multiples(self.chips, self.pods * whole)} would."
            )
        if self.chip.kind == "tpu":
            if math.prod(self.topology) != self.pod_chips or not self.topology:
                raise SpecError(
                    f"{owner}: topology {_by(self.topology) or 'none'} does not hold the "
                    f"{said(self.pod_chips)} chips of a pod."
                )
            if self.pods > 1 and self.chip.dcn_bytes_per_s == 0:
                raise SpecError(
                    f"{owner}: {self.chip.name} has no DCN bandwidth on record, so several pods "
                    "cannot be priced; use one pod, or give dcn_bytes_per_s in a cluster file."
                )
        elif self.pods > 1 and self.pod_chips % self.chip.domain_chips:
            whole = max(self.pod_chips // self.chip.domain_chips, 1) * self.chip.domain_chips
            raise SpecError(
                f"{owner}: pods of {said(self.pod_chips)} {self.chip.name} are not whole domains "
                f"of {self.chip.domain_chips}; {self.pods * whole} chips in {self.pods} pods would "
                "be."
            )
        elif self.chips > self.chip.domain_chips and self.chip.scale_out_bytes_per_s == 0:
            raise SpecError(
                f"{owner}: {self.chip.name} has no scale-out bandwidth on record; use at most "
                f"{self.chip.domain_chips} chips, or give scale_out_bytes_per_s in a cluster file."
            )

    @classmethod
    def build(
        cls,
        chip: Chip,
        *,
        chips: int | None = None,
        pods: int | None = None,
        topology: tuple[int, ...] | None = None,
        name: str | None = None,
    ) -> Cluster:
        """A cluster from a size said in any one way.

        Args:
            chip: the accelerator.
            chips: number of chips in all; on TPU split into the fewest pods that hold them, on GPU
                one full-bisection fat tree (gpus.md).
            pods: whole pods of the chip's own size, or of ``topology``. With ``chips``, that many
                equal pods.
            topology: torus of one pod (TPU), for example ``(16, 20, 28)``.
            name: how messages call it.

        Raises:
            SpecError: the sizes contradict each other or the chip cannot be arranged so.
        """
        _check_kinds("cluster", chip, () if topology is None else topology)
        if chips is not None:
            check_count("cluster", "chips", chips)
        if pods is not None:
            check_count("cluster", "pods", pods)
        if chip.kind == "gpu":
            return _build_gpu(cls, chip, chips, pods, topology, name)
        return _build_tpu(cls, chip, chips, pods, topology, name)

    @property
    def pod_chips(self) -> int:
        """Chips of one pod."""
        return self.chips // self.pods

    @property
    def levels(self) -> tuple[Level, ...]:
        """The network levels, innermost first."""
        chip = self.chip
        if chip.kind == "tpu":
            wraps = _wraps(chip, self.topology)
            axes = tuple(
                TorusAxis(name=n, length=length, wraps=wrap, bytes_per_s=chip.ici_bytes_per_s)
                for n, length, wrap in zip(AXIS_NAMES, self.topology, wraps, strict=False)
            )
            rate = sum(a.bytes_per_s for a in axes) / 2
            ici = Level(name="ici", chips=self.pod_chips, bytes_per_s=rate, axes=axes)
            dcn = Level(name="dcn", chips=self.chips, bytes_per_s=chip.dcn_bytes_per_s)
            return (ici, dcn) if self.pods > 1 else (ici,)
        levels = [
            Level(
                name="nvlink",
                chips=min(chip.domain_chips, self.chips),
                bytes_per_s=chip.domain_bytes_per_s,
            )
        ]
        if self.chips > chip.domain_chips:
            rate = chip.scale_out_bytes_per_s
            levels.append(Level(name="scale-out", chips=self.pod_chips, bytes_per_s=rate))
        if self.pods > 1:
            rate = chip.scale_out_bytes_per_s / chip.oversubscription
            levels.append(Level(name="between-pods", chips=self.chips, bytes_per_s=rate))
        return tuple(levels)

    @property
    def torus(self) -> tuple[TorusAxis, ...]:
        """The torus axes of a pod that are longer than one chip; empty on a switched network."""
        return tuple(a for a in self.levels[0].axes if a.length > 1)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Every distinct way to give the torus axes to the data axes and the tensor axis.

        Two layouts with the same bandwidths on both sides are one (tpus.md: only the number of axes
        and their wrap-around matter). On a switched network there is one layout.
        """
        return _layouts(self.torus)


@functools.lru_cache(maxsize=64)
def _layouts(axes: tuple[TorusAxis, ...]) -> tuple[Layout, ...]:
    if not axes:
        return (Layout(),)
    if len(axes) == 1:  # both sides share the one axis, and their traffic adds up
        return (Layout(data_axes=(0,), tensor_axes=(0,)),)
    seen: dict[tuple[tuple[float, bool], ...], Layout] = {}
    indices = range(len(axes))
    for size in range(len(axes) + 1):
        for tensor in itertools.combinations(indices, size):
            data = tuple(i for i in indices if i not in tensor)
            key = (side_key(axes, data), side_key(axes, tensor))
            seen.setdefault(key, Layout(data_axes=data, tensor_axes=tensor))
    return tuple(seen.values())


def side_key(axes: tuple[TorusAxis, ...], side: tuple[int, ...]) -> tuple[float, bool]:
    """What a side of a layout is worth: bandwidth in bytes/s, and whether any of its axes wraps."""
    rate = sum(axes[i].bytes_per_s * (1.0 if axes[i].wraps else 0.5) for i in side)
    return rate, any(axes[i].wraps for i in side)


def _wraps(chip: Chip, topology: tuple[int, ...]) -> tuple[bool, ...]:
    """Which axes of a slice wrap around (tpus.md, footnote to the specification table)."""
    if chip.wrap == "always":
        return tuple(length > 1 for length in topology)
    if chip.wrap == "cubes":
        cubes = len(topology) == 3 and all(length % 4 == 0 for length in topology)
        return (cubes,) * len(topology)
    full = max(chip.pod_axes)
    return tuple(length == full for length in topology)


def _build_gpu(
    cls: type[Cluster],
    chip: Chip,
    chips: int | None,
    pods: int | None,
    topology: tuple[int, ...] | None,
    name: str | None,
) -> Cluster:
    if topology is not None:
        raise SpecError(f"{chip.name} is not a torus: give chips or pods, not a topology.")
    if pods is not None and chips is None:
        if not chip.pod_chips:
            raise SpecError(f"{chip.name} has no pod size on record: give chips instead.")
        chips = pods * chip.pod_chips
    if chips is None:
        chips = chip.domain_chips
    pods = pods or 1
    return cls(name=name or f"{chips} {chip.name}", chip=chip, chips=chips, pods=pods)


def _build_tpu(
    cls: type[Cluster],
    chip: Chip,
    chips: int | None,
    pods: int | None,
    topology: tuple[int, ...] | None,
    name: str | None,
) -> Cluster:
    if topology is not None:
        if not 1 <= len(topology) <= len(chip.pod_axes):
            raise SpecError(
                f"{chip.name} has {len(chip.pod_axes)} torus axes; topology "
                f"{_by(topology) or '()'} has {len(topology)}."
            )
        shape = tuple(topology) + (1,) * (len(chip.pod_axes) - len(topology))
        if any(n > most for n, most in zip(sorted(shape), sorted(chip.pod_axes), strict=True)):
            raise SpecError(
                f"topology {_by(topology)} exceeds a {chip.name} pod, {_by(chip.pod_axes)}; "
                "give pods for more than one pod."
            )
        size = math.prod(shape)
        if chips is not None and chips % size:
            raise SpecError(
                f"{said(chips)} chips are not whole slices of {_by(topology)} ({size} chips); "
                f"{_multiples(chips, size)} would be."
            )
        if chips is not None and pods is not None and chips != pods * size:
            raise SpecError(
                f"chips = {said(chips)} contradicts {said(pods)} slices of {_by(topology)} "
                f"({size} chips each); leave one of them out."
            )
        pods = pods or (chips // size if chips else 1)
    else:
        pod = math.prod(chip.pod_axes)
        if chips is None:
            pods = pods or 1
            size, shape = pod, chip.pod_axes
        else:
            shape = _slice_shape(chip, chips, pods)
            pods = pods or -(-chips // pod)
            size = chips // pods
    label = name or f"{pods * size} {chip.name}"
    return cls(name=label, chip=chip, chips=pods * size, pods=pods, topology=shape)


def _slice_shape(chip: Chip, chips: int, pods: int | None) -> tuple[int, ...]:
    """The most cubic torus of one of the equal pods, axes in whole cubes where possible.

    Raises:
        SpecError: no such torus; the nearest numbers of chips that have one are named.
    """
    pod, most = math.prod(chip.pod_axes), tuple(sorted(chip.pod_axes))

    def shape(count: int) -> tuple[int, ...] | None:
        size, rest = divmod(count, pods or -(-count // pod))
        return None if rest or not size else _best_shape(most, size)

    found = shape(chips)
    if found is not None:
        return found
    step = pods or 1
    down, up = chips // step * step, -(-chips // step) * step
    below = next(
        (n for n in range(min(down, pod * step) if pods else down, 0, -step) if shape(n)), 0
    )
    above = next(
        (n for n in range(up, min(up + pod * step, LARGEST_COUNT + 1), step) if shape(n)), 0
    )
    near = " or ".join(str(n) for n in (below, above) if n)
    size, rest = divmod(chips, pods or -(-chips // pod))
    if rest:
        raise SpecError(
            f"{said(chips)} chips do not divide into {said(pods or -(-chips // pod))} equal pods "
            f"of at most {pod} {chip.name} chips; {near} would."
        )
    each = (
        f"{said(size)} chips in each of {said(chips // size)} pods"
        if chips > size
        else (f"{said(size)} chips")
    )
    raise SpecError(
        f"{each} make no torus inside a {chip.name} pod of {_by(chip.pod_axes)}; {near} "
        f"{'in all ' if chips > size else ''}would."
    )


@functools.lru_cache(maxsize=4096)
def _best_shape(most: tuple[int, ...], size: int) -> tuple[int, ...] | None:
    best: tuple[tuple[bool, int], tuple[int, ...]] | None = None
    divisors = [d for d in range(1, min(size, most[-1]) + 1) if size % d == 0]
    for head in itertools.combinations_with_replacement(divisors, len(most) - 1):
        rest, odd = divmod(size, math.prod(head))
        if odd:
            continue
        shape = tuple(sorted((*head, rest)))
        if any(n > limit for n, limit in zip(shape, most, strict=True)):
            continue
        key = (any(n % 4 for n in shape), shape[-1])
        if best is None or key < best[0]:
            best = (key, shape)
    return best[1] if best else None


def _check_kinds(owner: str, chip: object, topology: object) -> None:
    """Require a chip, and a torus as a list of lengths."""
    if not isinstance(chip, Chip):
        raise SpecError(f"{owner}: chip must be a Chip, as load_chip gives it, got {shown(chip)}.")
    if not isinstance(topology, (tuple, list)):
        raise SpecError(
            f"{owner}: topology must list the lengths of a torus, such as (16, 20, 28), got "
            f"{shown(topology)}."
        )
    for length in topology:
        check_count(owner, "topology axis", length)


def _by(axes: Sequence[int]) -> str:
    return "x".join(map(str, axes))


def _multiples(number: int, unit: int) -> str:
    """The multiples of a unit on both sides of a number, to paste back."""
    below = number // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)
