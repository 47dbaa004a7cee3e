"""Textbook communication: bandwidth only, over a torus with DCN or over a switched tree.

Sources: sharding.md (ring collectives), training.md (volumes of FSDP, TP and DCN data parallelism)
and gpus.md (switched trees) of the scaling book. The book has no context-parallel cost: ring
exchange of keys and values follows Liu et al. 2023 (Ring Attention, arXiv 2310.01889).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from autoshard.costmodels.candidates import Candidates, IntColumn
from autoshard.costmodels.cluster import Layout, side_key
from autoshard.costmodels.costs import Column, CommsCost, Flow, Phase, Place
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.remat import Rung
from autoshard.costmodels.roofline import ring_fraction, tree_gather_s, tree_hop_bytes_per_s
from autoshard.costmodels.shapes import layer_params_per_rank, shard_shapes

Seconds = Mapping[int, Column]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How long the collectives of each logical axis hold each resource.

    Every callable takes the bytes of the gathered array of one group, ``[n]``. ``reduce_context``
    takes the gradient bytes left on one chip after the FSDP reduce-scatter, and ``reduce_replicas``
    what each chip then answers for between the replicas.
    """

    resources: tuple[str, ...]
    gather_fsdp: Callable[[Column], Seconds]
    gather_sequence: Callable[[Column], Seconds]
    gather_tensor: Callable[[Column], Seconds]
    rotate_context: Callable[[Column], Seconds]
    reduce_context: Callable[[Column], Seconds]
    reduce_replicas: Callable[[Column], Seconds]
    send_bytes_per_s: Column


@dataclass(frozen=True, slots=True, kw_only=True)
class TextbookComms:
    """Volumes of training.md, per layer and microbatch, on the cluster's networks.

    Forward: FSDP gathers a layer's weights (4DF bytes for two matrices), each block gathers its
    input and scatters its output over TP (4BD), a split sequence gathers keys and values. Backward:
    FSDP gathers again and scatters gradients (8DF), TP moves 6BD a block (the book's 4BD, and 2BD
    because the memory model keeps inputs in shards), keys and values are gathered and their
    gradients scattered; gradients are reduced over ``cp``, over which weights are replicated.
    Once a step, gradients are all-reduced over ``dp``. ``reshard`` 2 and 1 gather weights once a
    step, and 1 reduces gradients once a step.
    """

    layer: str = "full"
    name: str = "textbook-comms"
    role: str = "comms"
    covers: frozenset[str] = frozenset({"dense"})

    def __call__(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> CommsCost:
        """Flows of each candidate over the resources of the cluster."""
        build = torus_network if problem.cluster.chip.kind == "tpu" else tree_network
        network = build(problem, candidates)
        flows = tuple(self._flows(problem, candidates, ladder, network))
        model = problem.model
        tokens = shard_shapes(problem, candidates).tokens
        boundary = problem.workload.element_bytes * tokens * model.d_model / candidates.tp
        # Activations go one stage on in the forward pass, gradients one back, once for each chunk.
        send = np.where(
            candidates.pp > 1, 2.0 * candidates.vpp * boundary / network.send_bytes_per_s, 0.0
        )
        return CommsCost(resources=network.resources, flows=flows, send_s=send)

    def _flows(
        self,
        problem: Problem,
        candidates: Candidates,
        ladder: tuple[Rung, ...],
        network: Network,
    ) -> Iterator[Flow]:
        model, element = problem.model, problem.workload.element_bytes
        shapes = shard_shapes(problem, candidates)
        full = self.layer == "full"

        weights: dict[Place, Column] = {
            "layer": element * layer_params_per_rank(problem, shapes, self.layer)
        }
        if full:
            table = element * model.d_model * shapes.vocab
            weights |= {"embedding": table, "head": table}
        each, kept, once = (
            (candidates.reshard == 3).astype(np.float64),
            (candidates.reshard < 3).astype(np.float64),
            (candidates.reshard == 1).astype(np.float64),
        )
        for place, volume in weights.items():
            gather = network.gather_fsdp(volume)
            yield from _flow("fsdp", "forward", place, _scaled(gather, each))
            yield from _flow("fsdp", "backward", place, _scaled(gather, each + (1.0 - once)))
            if min(problem.recipe.reshard) < 3:
                yield from _flow("fsdp", "once_forward", place, _scaled(gather, kept))
                yield from _flow("fsdp", "once_backward", place, _scaled(gather, once))
            shard = volume / candidates.fsdp
            reduce = network.reduce_context(shard)
            yield from _flow("cp", "backward", place, _scaled(reduce, 1.0 - once))
            yield from _flow("cp", "once_backward", place, _scaled(reduce, once))
            across = network.reduce_replicas(shard / candidates.cp)
            yield from _flow("dp", "once_backward", place, across)

        activations = network.gather_tensor(element * shapes.tokens * model.d_model)
        blocks = 2.0 if full and not model.parallel_block else 1.0
        # Forward, a block gathers its input and scatters its output; backward, it gathers the
        # output's gradient and, since inputs are saved in shards, its input again, and scatters the
        # input's.
        yield from _flow("tp", "forward", "layer", _scaled(activations, 2.0 * blocks))
        yield from _flow("tp", "backward", "layer", _scaled(activations, 3.0 * blocks))
        if full:
            yield from _flow("tp", "forward", "embedding", activations)
            yield from _flow("tp", "backward", "embedding", activations)
            yield from _flow("tp", "forward", "head", activations)
            yield from _flow("tp", "backward", "head", _scaled(activations, 2.0))
        # A forward pass that is run again shares that gather, and scatters each output again.
        repeats = np.array([blocks * rung.repeat_scatters for rung in ladder])
        again = {k: s[:, None] * repeats for k, s in activations.items()}
        yield from _flow("tp", "recompute", "layer", again)

        # Priced with the reduced layer too: it leaves attention out, not the price of splitting it.
        kv = 2.0 * element * shapes.d_kv * shapes.tokens * candidates.seq_split
        gathered = network.gather_sequence(kv)
        rotated = network.rotate_context(kv * candidates.cp)
        # The gradients of a ring's blocks take one hop more: home.
        home = 2.0 + 1.0 / np.maximum(candidates.cp - 1.0, 1.0)
        for kind, seconds, back in (("seq", gathered, 2.0), ("cp", rotated, home)):
            yield from _flow(kind, "forward", "layer", seconds)
            yield from _flow(kind, "backward", "layer", _scaled(seconds, back))
        passed = np.array([float("attention" in rung.recompute) for rung in ladder])
        again = {k: s[:, None] * passed for k, s in rotated.items()}
        yield from _flow("cp", "recompute", "layer", again)


def _flow(kind: str, phase: Phase, place: Place, seconds: Seconds) -> Iterator[Flow]:
    """The flow, or nothing where no candidate has it."""
    held = {k: s for k, s in seconds.items() if s.any()}
    if held:
        yield Flow(kind=kind, phase=phase, place=place, seconds=held)


def _scaled(seconds: Seconds, factor: Column | float) -> Seconds:
    return {k: s * factor for k, s in seconds.items()}


def torus_network(problem: Problem, candidates: Candidates) -> Network:
    """ICI torus and DCN (tpus.md, sharding.md, training.md).

    The data axes of a layout carry ``fsdp``, sequence, ``cp`` and ``pp``; the
    tensor axes carry ``tp``. Bandwidth is the sum over the axes of a side, halved for an axis that
    does not wrap. ``dp`` runs over DCN, each chip sending its share of a pod's gradients
    (training.md: ``8 D F / (chips per pod * W_dcn)`` in the backward pass).
    """
    cluster = problem.cluster
    axes, layouts = cluster.torus, cluster.layouts
    shared = any(set(a.data_axes) & set(a.tensor_axes) for a in layouts)
    data, tensor, dcn = 0, 0 if shared else 1, 1 if shared else 2
    resources = ("ici",) if shared else ("ici data axes", "ici tensor axes")
    if cluster.pods > 1:
        resources = (*resources, "dcn")

    def side(indices: Callable[[Layout], tuple[int, ...]], group: IntColumn) -> Column:
        """Seconds per gathered byte over a group on its side of each candidate's layout."""
        per_byte = np.zeros(len(candidates))
        for number, layout in enumerate(layouts):
            rate, wraps = side_key(axes, indices(layout))
            rows = candidates.layout == number
            if rate:
                per_byte[rows] = ring_fraction(group[rows], wraps) / rate
        return per_byte

    def data_axes(layout: Layout) -> tuple[int, ...]:
        return layout.data_axes

    fsdp_s = side(data_axes, candidates.fsdp)
    sequence_s = side(data_axes, candidates.seq_split)
    reduce_s = side(data_axes, candidates.cp)
    tensor_s = side(lambda layout: layout.tensor_axes, candidates.tp)
    # A ring of blocks passes them one way: half of the bandwidth of its axes, wrapped or not.
    one_way = np.array([sum(axes[i].bytes_per_s for i in a.data_axes) / 2 for a in layouts])
    context_s = (candidates.cp - 1) / candidates.cp / np.maximum(one_way[candidates.layout], 1.0)

    def reduce_replicas(volume: Column) -> Seconds:
        if cluster.pods == 1:
            return {}
        across = 2.0 * volume / cluster.chip.dcn_bytes_per_s
        return {dcn: np.where(candidates.pods > 1, across, 0.0)}

    link = max((a.bytes_per_s for a in axes), default=np.inf) / 2
    return Network(
        resources=resources,
        gather_fsdp=lambda volume: {data: volume * fsdp_s},
        gather_sequence=lambda volume: {data: volume * sequence_s},
        gather_tensor=lambda volume: {tensor: volume * tensor_s},
        rotate_context=lambda volume: {data: volume * context_s},
        reduce_context=lambda volume: {data: 2.0 * volume * reduce_s},
        reduce_replicas=reduce_replicas,
        send_bytes_per_s=np.full(len(candidates), link),
    )


def tree_network(problem: Problem, candidates: Candidates) -> Network:
    """NVLink domain, scale-out fat tree, and oversubscribed links between pods (gpus.md).

    Ranks nest from the inside out as tp, cp, sequence, batch, dp, pp, the order of Megatron-LM's
    default. Within a level, collectives share its bandwidth; different levels work side by side.
    """
    levels = problem.cluster.levels
    inner = candidates.tp
    context = inner * candidates.cp
    fsdp = context * candidates.fsdp
    stages = fsdp * candidates.dp

    def gather(group: IntColumn, stride: IntColumn) -> Callable[[Column], Seconds]:
        def seconds(volume: Column) -> Seconds:
            return dict(enumerate(tree_gather_s(volume, group, stride, levels)))

        return seconds

    def reduce(group: IntColumn, stride: IntColumn) -> Callable[[Column], Seconds]:
        scatter = gather(group, stride)
        return lambda volume: _scaled(scatter(volume), 2.0)

    def rotate_context(volume: Column) -> Seconds:
        moved = volume * (candidates.cp - 1) / candidates.cp
        hop = tree_hop_bytes_per_s(candidates.cp, inner, levels)
        return {
            k: np.where(hop == level.bytes_per_s, moved / level.bytes_per_s, 0.0)
            for k, level in enumerate(levels)
        }

    return Network(
        resources=tuple(level.name for level in levels),
        gather_fsdp=gather(candidates.fsdp, context),
        gather_sequence=gather(candidates.seq_split, context),
        gather_tensor=gather(candidates.tp, np.ones_like(candidates.tp)),
        rotate_context=rotate_context,
        reduce_context=reduce(candidates.cp, inner),
        reduce_replicas=reduce(candidates.dp, fsdp),
        send_bytes_per_s=tree_hop_bytes_per_s(candidates.pp, stages, levels),
    )
