"""The front by brute force, and the small problems that it is tried on.

Nothing here comes from the search: plans are counted off with plain loops from the rules of the
declared space, priced by the cost models, and judged in Python floats by the formulas of
``StageCosts``. No bound, no pruning, no dynamic programme.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.model import Model
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.textbook import textbook
from autoshard.costmodels.workload import Workload

Mesh = dict[str, int]
#: Step seconds and peak bytes of one plan.
Cost = tuple[float, float]


def divides(number: int) -> list[int]:
    """Every divisor, by trial."""
    return [d for d in range(1, number + 1) if number % d == 0]


def legal_meshes(problem: Problem) -> Iterator[Mesh]:
    """Every row of the declared space, rule by rule."""
    model, cluster = problem.model, problem.cluster
    batch, tokens = problem.workload.global_batch_seqs, problem.workload.seq_len
    torus = cluster.chip.kind == "tpu"
    for tp in divides(model.n_heads):
        kv = model.n_kv_heads
        if model.d_ff % tp or model.d_model % tp or tokens % tp or (kv % tp and tp % kv):
            continue
        for seq_split in divides(tokens):
            for cp in divides(tokens):
                if tokens % (seq_split * cp * tp) or (cp > 1 and tokens % (2 * cp * seq_split)):
                    continue
                for dp in divides(batch):
                    for batch_split in divides(batch // dp):
                        for pp in range(1, model.n_layers + 1):
                            chips = dp * batch_split * seq_split * tp * pp * cp
                            offered = cluster.chips
                            if torus:
                                offered = dp * cluster.pod_chips if dp <= cluster.pods else 0
                            if chips > offered:
                                continue
                            mesh = {
                                "dp": dp,
                                "batch_split": batch_split,
                                "seq_split": seq_split,
                                "tp": tp,
                                "pp": pp,
                                "cp": cp,
                                "pods": dp if torus else 1,
                            }
                            yield from _with_the_rest(problem, mesh)


def _with_the_rest(problem: Problem, mesh: Mesh) -> Iterator[Mesh]:
    """One mesh with each layout, ``reshard``, number of microbatches and virtual stages."""
    layers, pp = problem.model.n_layers, mesh["pp"]
    fsdp = mesh["batch_split"] * mesh["seq_split"]
    share = problem.workload.global_batch_seqs // (mesh["dp"] * mesh["batch_split"])
    stages = sorted(set(problem.recipe.reshard))
    if fsdp == 1:
        stages = stages[-1:]
    for layout in _layouts(problem, mesh):
        for reshard in stages:
            for microbatches in divides(share):
                chunks = {1}
                if pp > 1 and microbatches % pp == 0:
                    # Of two layers or more on a full stage; or of one, of which two may be missing.
                    full = -(-layers // pp)
                    missing = pp * full - layers
                    chunks |= {v for v in divides(full) if v < full or missing <= 2}
                for vpp in sorted(chunks):
                    yield mesh | {
                        "layout": layout,
                        "reshard": reshard,
                        "microbatches": microbatches,
                        "micro_batch_size": share // microbatches,
                        "vpp": vpp,
                    }


def _layouts(problem: Problem, mesh: Mesh) -> list[int]:
    """Axes go to the sides that a mesh uses, and to no idle side; one lone axis is shared."""
    layouts = problem.cluster.layouts
    if len(layouts) == 1:
        return [0]
    data = mesh["dp"] * mesh["batch_split"] * mesh["seq_split"] * mesh["pp"] * mesh["cp"]
    sides = (data // mesh["pods"] > 1, mesh["tp"] > 1)
    if sides == (False, False):
        return [0]
    return [
        number
        for number, layout in enumerate(layouts)
        if (bool(layout.data_axes), bool(layout.tensor_axes)) == sides
    ]


def columns(meshes: Sequence[Mesh]) -> Candidates:
    """Meshes as the columns that cost models read."""
    return Candidates(
        **{name: np.array([m[name] for m in meshes], dtype=np.int64) for name in COLUMNS}
    )


def dealings(layers: int, rungs: int) -> list[list[int]]:
    """Every way to run some layers under at most two rungs."""
    ways = []
    for low in range(rungs):
        alone = [0] * rungs
        alone[low] = layers
        ways.append(alone)
        for high in range(low + 1, rungs):
            for count in range(1, layers):
                both = [0] * rungs
                both[low], both[high] = count, layers - count
                ways.append(both)
    return ways


def compositions(layers: int, stages: int, least: int) -> Iterator[list[int]]:
    """Every way to put layers on stages, at least so many on each."""
    if stages == 1:
        if layers >= least:
            yield [layers]
        return
    for first in range(least, layers - least * (stages - 1) + 1):
        for rest in compositions(layers - first, stages - 1, least):
            yield [first, *rest]


def stage_layers(layers: int, pp: int, vpp: int) -> Iterator[list[int]]:
    """Every way to put layers on stages, whatever these hold in their chunks.

    Several chunks hold a layer each at least; where the mean stage, rounded up, has but one in
    each, none holds more, and the first chunk of all and the last may be without.
    """
    for counts in compositions(layers, pp, max(vpp - 1, 1)):
        if holds_chunks(counts, vpp):
            yield counts


def holds_chunks(counts: Sequence[int], vpp: int) -> bool:
    """Whether stages of so many layers may fall into so many chunks each."""
    full = -(-sum(counts) // len(counts))
    fewest = vpp - 1 if vpp == full else vpp
    inner = all(n >= vpp for n in counts[1:-1])
    many = max(counts) > full and vpp == full
    return vpp == 1 or (inner and min(counts) >= fewest and not many)


def plain(costs: Any, row: int) -> dict[str, Any]:
    """One row of ``StageCosts`` as Python floats in lists."""
    made: dict[str, Any] = {}
    for field in dataclasses.fields(costs):
        value = getattr(costs, field.name)
        if isinstance(value, np.ndarray):
            made[field.name] = value[row].tolist()
        else:
            made[field.name] = {place: column[row].tolist() for place, column in value.items()}
    return made


def stage_cost(
    costs: dict[str, Any], dealt: Sequence[int], first: bool, last: bool
) -> tuple[float, float, float, float]:
    """Seconds a microbatch, exposed seconds, state bytes and saved bytes of one stage."""
    n = sum(dealt)
    counts = {"layer": n, "embedding": int(first), "head": int(last)}
    seconds, exposed = costs["send_s"], 0.0
    for phase in ("forward", "backward"):
        usual, taken, final = [], [], []
        for j in range(len(costs["forward_s"]["layer"])):
            form = sum(k * costs[f"{phase}_s"][place][j] for place, k in counts.items())
            once = sum(k * costs[f"once_{phase}_s"][place][j] for place, k in counts.items())
            usual.append(form)
            final.append(form + once)
            if phase == "backward":  # with what remat runs again
                form -= n * costs["backward_s"]["layer"][j]
                form += sum(k * s for k, s in zip(dealt, costs["layer_backward_s"][j], strict=True))
            taken.append(form)
        seconds += max(taken)
        exposed += max(final) - max(usual)
    state = sum(k * costs["state_bytes"][place] for place, k in counts.items())
    saved = sum(k * s for k, s in zip(dealt, costs["saved_bytes"], strict=True))
    return seconds, exposed, state, saved


def judge(problem: Problem, profile: Profile, mesh: Mesh, rungs: Sequence[Sequence[int]]) -> Cost:
    """Step seconds and peak bytes of one plan."""
    costs = plain(profile.price(problem, columns([mesh])), 0)
    held = profile.pipeline.in_flight(mesh["pp"], mesh["vpp"], mesh["microbatches"]).tolist()
    stages = [
        stage_cost(costs, dealt, s == 0, s == mesh["pp"] - 1) for s, dealt in enumerate(rungs)
    ]
    seconds = [stage[0] for stage in stages]
    step = costs["max_weight"] * max(seconds) + costs["sum_weight"] * sum(seconds)
    peak = max(
        state + inflight * saved
        for (_, _, state, saved), inflight in zip(stages, held, strict=True)
    )
    return step + max(stage[1] for stage in stages), peak + costs["fixed_bytes"]


def remat_settings(
    remat: str, layers: int, rungs: int, vpp: int
) -> list[Callable[[int], list[list[int]]]]:
    """What a framework's one remat setting can be: the dealings that it leaves a stage."""

    def alone(rung: int) -> Callable[[int], list[list[int]]]:
        return lambda n: [[n if r == rung else 0 for r in range(rungs)]]

    def counted(k: int) -> Callable[[int], list[list[int]]]:
        # The first k layers of each chunk; chunks of a stage differ by one layer at most.
        def dealt(n: int) -> list[list[int]]:
            chunks = [n // vpp + (c < n % vpp) for c in range(vpp)]
            again = sum(min(k, chunk) for chunk in chunks)
            return [[n - again, *[0] * (rungs - 2), again]]

        return dealt

    settings = {
        "by-stage": [lambda n: dealings(n, rungs)],
        "one-policy": [alone(rung) for rung in range(rungs)],
        "one-count": [alone(rung) for rung in range(rungs)],
    }[remat]
    if remat == "one-count" and rungs > 1:
        settings += [counted(k) for k in range(1, layers)]
    return settings


def all_plans(
    costs: dict[str, Any],
    held: Sequence[float],
    mesh: Mesh,
    layers: int,
    ways: Callable[[int], list[list[int]]] | None = None,
) -> list[tuple[float, float, list[int]]]:
    """Step seconds and peak bytes of every plan of one mesh, with its layers per stage.

    ``ways`` are the dealings of a stage's layers to rungs; all that the space has by default.
    """
    pp = mesh["pp"]
    rungs = len(costs["saved_bytes"])
    deal = ways or (lambda n: dealings(n, rungs))
    menus: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for s in range(pp):
        for n in range(1, layers + 1):
            menu = [stage_cost(costs, dealt, s == 0, s == pp - 1) for dealt in deal(n)]
            menus[s, n] = [(t, e, state + held[s] * saved) for t, e, state, saved in menu]
    slow, each, fixed = costs["max_weight"], costs["sum_weight"], costs["fixed_bytes"]
    found: list[tuple[float, float, list[int]]] = []

    def walk(counts: list[int], s: int, total: float, top: float, more: float, peak: float) -> None:
        if s == pp:
            found.append((slow * top + each * total + more, peak + fixed, counts))
            return
        for seconds, exposed, size in menus[s, counts[s]]:
            walk(
                counts,
                s + 1,
                total + seconds,
                seconds if seconds > top else top,
                exposed if exposed > more else more,
                size if size > peak else peak,
            )

    for counts in stage_layers(layers, pp, mesh["vpp"]):
        walk(counts, 0, 0.0, 0.0, 0.0, 0.0)
    return found


def pareto(costs: Sequence[Cost], tolerance: float = 0.0) -> list[Cost]:
    """The strict front, fastest first; what differs by no more than the tolerance is the same."""
    kept: list[Cost] = []
    for seconds, size in sorted(costs):
        if not kept or size < kept[-1][1] * (1.0 - tolerance):
            if kept and seconds <= kept[-1][0] * (1.0 + tolerance):
                kept.pop()  # as fast, and smaller
            kept.append((seconds, size))
    return kept


def brute_front(
    problem: Problem,
    profile: Profile,
    keep: Callable[[Mesh], bool] = lambda mesh: True,
    keep_layers: Callable[[list[int]], bool] = lambda counts: True,
    keep_cost: Callable[[Mesh, float, float], bool] = lambda mesh, seconds, size: True,
    remat: str = "by-stage",
) -> list[Cost]:
    """Every point of the front of a small problem, fastest first, whatever the memory limit.

    ``remat`` is how a framework sets it (:func:`remat_settings`).
    """
    meshes = [mesh for mesh in legal_meshes(problem) if keep(mesh)]
    if not meshes:
        return []
    priced = profile.price(problem, columns(meshes))
    front: list[Cost] = []
    for row, mesh in enumerate(meshes):
        held = profile.pipeline.in_flight(mesh["pp"], mesh["vpp"], mesh["microbatches"]).tolist()
        costs, layers = plain(priced, row), problem.model.n_layers
        for ways in remat_settings(remat, layers, len(profile.ladder), mesh["vpp"]):
            plans = all_plans(costs, held, mesh, layers, ways)
            kept = (
                (t, b) for t, b, counts in plans if keep_layers(counts) and keep_cost(mesh, t, b)
            )
            front = pareto([*front, *kept])
    return front


def chips_of(mesh: Mesh) -> int:
    """Chips of a mesh."""
    return math.prod(mesh[name] for name in ("dp", "batch_split", "seq_split", "tp", "pp", "cp"))


def brute_fronts_by_chips(problem: Problem, profile: Profile) -> dict[int, list[Cost]]:
    """The front of the plans on each number of chips, the fewest first."""
    fronts = {}
    for chips in sorted({chips_of(mesh) for mesh in legal_meshes(problem)}):

        def uses(mesh: Mesh, chips: int = chips) -> bool:
            return chips_of(mesh) == chips

        costs = brute_front(problem, profile, uses)
        fronts[chips] = pareto([cost for cost in costs if cost[1] <= problem.capacity_bytes], 1e-7)
    return fronts


def unbeaten_by_fewer(
    fronts: dict[int, list[Cost]], *, memory: bool, tolerance: float = 1e-7
) -> list[tuple[float, float, int]]:
    """Every plan that no other beats in time, chips and perhaps memory, fastest first."""
    found: list[tuple[float, float, int]] = []
    for chips, costs in fronts.items():
        for seconds, size in costs if memory else costs[:1]:
            beaten = any(
                t <= seconds * (1.0 + tolerance) and (b <= size * (1.0 + tolerance) or not memory)
                for t, b, _ in found
            )
            if not beaten:
                found.append((seconds, size, chips))
    return sorted(found)


def fastest_within(front: Sequence[Cost], budget_bytes: float) -> float:
    """The least time on a front within a budget, infinite where nothing fits."""
    return min((t for t, b in front if b <= budget_bytes), default=math.inf)


def mesh_of(plan: Plan, layout: int) -> Mesh:
    """A plan's degrees as a mesh."""
    return {name: layout if name == "layout" else getattr(plan, name) for name in COLUMNS}


def rungs_of(plan: Plan, profile: Profile) -> list[list[int]]:
    """A plan's layers per stage and rung."""
    return [[stage.get(rung.name, 0) for rung in profile.ladder] for stage in plan.remat]


# Small problems


@dataclass(frozen=True, slots=True)
class Instance:
    """One small problem and the profile to price it with."""

    seed: int
    problem: Problem
    profile: Profile

    def limited(self, memory_limit_bytes: int) -> Problem:
        """The same problem on chips that may hold less."""
        return dataclasses.replace(self.problem, memory_limit_bytes=memory_limit_bytes)


def small_instance(seed: int) -> Instance:
    """A few layers on a few chips, where compute, networks and memory all matter."""
    rng = np.random.default_rng(seed)

    def pick(*options: Any) -> Any:
        return options[int(rng.integers(len(options)))]

    rungs = pick(1, 2, 2, 3)
    layers = pick(2, 3, 5, 5, 7) if rungs < 3 else pick(2, 3, 4)
    chips = pick(2, 4, 4, 6, 8) if layers < 5 else pick(3, 4, 4, 5)
    heads, groups = pick((4, 4), (4, 2), (4, 1), (6, 2), (2, 1), (3, 3))
    d_head = pick(4, 8)
    d_model = heads * d_head * pick(1, 1, 2)
    model = Model(
        name=f"small-{seed}",
        n_layers=layers,
        d_model=d_model,
        d_ff=d_model * pick(2, 4),
        n_heads=heads,
        n_kv_heads=groups,
        d_head=d_head,
        vocab=pick(16, 64, 256),
        gated_mlp=pick(True, False),
        tied_embeddings=pick(True, False),
        parallel_block=pick(True, False),
        norm=pick("rmsnorm", "layernorm"),
        qkv_bias=pick(True, False),
        n_positions=pick(0, 0, 64),
    )
    workload = Workload(
        global_batch_seqs=pick(1, 3, 4, 4, 6, 8, 8, 9, 12), seq_len=pick(8, 12, 16, 64)
    )
    recipe = Recipe(
        param_bytes=pick(2.0, 4.0),
        grad_bytes=pick(0.0, 4.0),
        optimizer_bytes=pick(8.0, 12.0),
        reshard=pick((3,), (3,), (1, 2, 3)),
    )
    cluster = _small_cluster(pick, chips, float(rng.uniform(0.05, 8.0)) * d_model)
    ladder = tuple(textbook().ladder[index] for index in _LADDERS[rungs, pick(0, 1, 2)])
    profile = dataclasses.replace(textbook(overlap=pick("max", "sum")), ladder=ladder)
    problem = Problem(model=model, cluster=cluster, workload=workload, recipe=recipe)
    return Instance(seed, problem, profile)


#: Which rungs of the textbook's ladder a short ladder has.
_LADDERS = {
    (1, 0): (4,),
    (1, 1): (0,),
    (1, 2): (3,),
    (2, 0): (0, 4),
    (2, 1): (1, 4),
    (2, 2): (0, 2),
    (3, 0): (0, 1, 4),
    (3, 1): (0, 3, 4),
    (3, 2): (1, 2, 3),
}


def _small_cluster(pick: Callable[..., Any], chips: int, intensity: float) -> Cluster:
    """A torus slice, several of them over DCN, or a tree of domains; ``intensity`` FLOP a byte."""
    flops_per_s = 1e12
    link = flops_per_s / intensity
    shared = {
        "flops_per_s": {"bf16": flops_per_s},
        "hbm_bytes": 2**34,
        "hbm_bytes_per_s": flops_per_s / pick(1.0, 10.0, 40.0),
    }
    kind = pick("torus", "torus", "pods", "tree", "tree")
    if kind == "tree":
        domain = pick(2, 4)
        chip = Chip(
            name="tree",
            kind="gpu",
            domain_chips=domain,
            domain_bytes_per_s=link,
            scale_out_bytes_per_s=link / pick(2.0, 8.0),
            pod_chips=4,
            oversubscription=pick(1.0, 3.0),
            **shared,
        )
        pods = pick(1, 2) if chips % (2 * domain) == 0 else 1
        return Cluster(name="tree", chip=chip, chips=chips, pods=pods)
    pods = 2 if kind == "pods" and chips % 2 == 0 else 1
    shapes = {1: (1,), 2: (2,), 3: (3,), 4: (2, 2), 5: (5,), 6: (2, 3), 8: (2, 4)}
    topology = pick(shapes[chips // pods], (chips // pods,), shapes[chips // pods])
    if chips // pods == 8:
        topology = pick(topology, (2, 2, 2))
    wrap = pick("always", "full")
    chip = Chip(
        name="torus",
        kind="tpu",
        pod_axes=(4,) * len(topology),
        wrap=wrap,
        ici_bytes_per_s=link,
        dcn_bytes_per_s=link / pick(2.0, 20.0),
        **shared,
    )
    return Cluster(name="torus", chip=chip, chips=chips, pods=pods, topology=topology)
