"""What stages of their own gain on published pipelines: the solved against the best uniform plan.

Run it as ``python benchmarks/pipelines.py [--all]``: for every published run that is scored, dense
and has a pipeline, or for the first of each source and model. Each mesh is kept as it ran (degrees,
microbatches, virtual stages). Its best *uniform* plan has one remat rung for all layers and stages
that differ by at most one layer, whichever stages those are; it is the fastest of these that fits
the chip. The *solved* plan deals layers and remat stage by stage, by CP-SAT, within the memory of
the uniform plan. Both are priced by the calibrated profile of the run's stack; once for any
framework, once for what that of the run can state.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.calibrated import calibrated
from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.legality import UNRESTRICTED
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.stack import STACKS, Stack
from autoshard.runs import Run, load_runs
from autoshard.search import dealing, families
from autoshard.search.check import judge
from autoshard.search.interleaving import virtual_stages
from autoshard.search.rows import price_rows
from autoshard.search.stage_model import StageModel
from autoshard.search.stages import Leaf, Stage

#: LLaMA-3 405B as trained on 16,384 H100 (arXiv 2407.21783, table 4).
LLAMA3 = "llama3-002"
#: Virtual stages of 126 layers on 16 stages, as many as the authors had and fewer.
LLAMA3_VPP = (8, 4, 2, 1)
#: A gain of a run that counts.
COUNTS = 1e-3
#: A gain that is none.
LEAST = 1e-9
#: Room for the last bits of a memory that another plan was found to have.
LAST_BITS = 1e-12
GIB = 2.0**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """One mesh under one profile: what a stage costs, and the rules on stages."""

    name: str
    problem: Problem
    profile: Profile
    candidates: Candidates
    stage: Stage

    @classmethod
    def of(
        cls, name: str, problem: Problem, stack: Stack, candidates: Candidates, *, free: bool
    ) -> Mesh:
        """A mesh in the calibrated costs of a stack: any plan of it, or what the stack states."""
        profile = calibrated(stack).under(UNRESTRICTED if free else stack.legality)
        pp, vpp, microbatches = (
            int(column[0]) for column in (candidates.pp, candidates.vpp, candidates.microbatches)
        )
        held = profile.in_flight([(pp, vpp, microbatches)])[0]
        stage = Stage.of(price_rows(problem, profile, candidates), 0, held)
        return cls(name=name, problem=problem, profile=profile, candidates=candidates, stage=stage)

    @property
    def rungs(self) -> list[str]:
        """The names of the remat ladder."""
        return [rung.name for rung in self.profile.ladder]

    def refused(self) -> list[str]:
        """Why the framework cannot state the mesh, in sentences."""
        return self.profile.legality.reasons(self.problem, self.candidates)[0]

    def uniform(self) -> Leaf:
        """The fastest uniform plan that fits; the smallest where none does."""
        capacity = self.problem.capacity_bytes
        plans = [self._leaf(rungs) for rungs in self._uniform_plans()]
        fits = [plan for plan in plans if plan.memory_bytes <= capacity]
        if fits:
            return min(fits, key=lambda plan: (plan.time_s, plan.memory_bytes))
        return min(plans, key=lambda plan: plan.memory_bytes)

    def _uniform_plans(self) -> Iterator[NDArray[np.int64]]:
        """All that matter: stages between the ends are alike, but the later hold no more."""
        pp, ladder = self.stage.pp, len(self.profile.ladder)
        floor, odd = divmod(self.stage.n_layers, pp)
        for first, last, rung in itertools.product((0, 1), (0, 1), range(ladder)):
            between = odd - first - last
            if 0 <= between <= pp - 2:
                layers = np.full(pp, floor)
                layers[0] += first
                layers[-1] += last
                layers[pp - 1 - between : pp - 1] += 1
                rungs = np.zeros((pp, ladder), dtype=np.int64)
                rungs[:, rung] = layers
                yield rungs

    def solve(self, budget_bytes: float, below_s: float = np.inf) -> Leaf | None:
        """The fastest plan within a budget, by CP-SAT, and the smallest that is as fast.

        Raises:
            AssertionError: the second method or the judge disagrees, which is a bug.
        """
        legality = self.profile.legality
        model = StageModel(self.stage, budget_bytes, below_s=below_s, legality=legality)
        leaf, finished = model.solve()
        if leaf is None or not finished:
            return None
        if legality.restricts_stages:
            dealt = families.fastest(self.stage, legality, budget_bytes, below_s)
        else:
            dealt = dealing.fastest(self.stage, budget_bytes, below_s)
        if dealt is None or not dealt.time_s <= leaf.time_s <= dealt.time_s + model.error_s:
            raise AssertionError(f"{self.name}: CP-SAT and dealing disagree: {leaf}, {dealt}")
        if legality.restricts_stages:
            small = families.smallest(self.stage, legality, dealt.time_s, budget_bytes)
        else:
            small = dealing.smallest(self.stage, dealt.time_s, budget_bytes)
        self._judge(small or dealt)
        return small or dealt

    def _leaf(self, rungs: NDArray[np.int64]) -> Leaf:
        time_s, memory = self.stage.evaluate(rungs)
        return Leaf(rungs=rungs, time_s=time_s, memory_bytes=memory)

    def _judge(self, leaf: Leaf) -> None:
        degrees: dict[str, Any] = {n: int(getattr(self.candidates, n)[0]) for n in COLUMNS}
        layout = degrees.pop("layout")
        plan = Plan(
            **degrees,
            layers_per_stage=tuple(leaf.rungs.sum(axis=1).tolist()),
            remat=tuple(dict(zip(self.rungs, row, strict=True)) for row in leaf.rungs.tolist()),
        )
        time_s, memory = judge(self.problem, self.profile, plan, layout)
        agree = np.isclose([time_s, memory], [leaf.time_s, leaf.memory_bytes], rtol=1e-9)
        if not agree.all():
            raise AssertionError(f"{self.name}: the judge finds {time_s} s, {memory} bytes: {leaf}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The uniform plan of a mesh, the solved one at its memory, and the one for the whole chip."""

    mesh: Mesh
    uniform: Leaf
    solved: Leaf
    roomy: Leaf

    @property
    def gain(self) -> float:
        """How much longer the uniform plan takes, relatively, at equal memory."""
        return self.uniform.time_s / self.solved.time_s - 1.0

    @property
    def roomy_gain(self) -> float:
        """The same where the solved plan may fill the chip."""
        return self.uniform.time_s / self.roomy.time_s - 1.0

    @property
    def fits(self) -> bool:
        """Whether the uniform plan is predicted to fit the chip."""
        return self.uniform.memory_bytes <= self.mesh.problem.capacity_bytes


def compare(mesh: Mesh) -> Compared | str:
    """A mesh both ways; or why its framework states no uniform plan of it."""
    refused = mesh.refused()
    if refused:
        return refused[0]
    uniform = mesh.uniform()
    # No slower than the uniform plan, which is one of those that are searched.
    below_s = uniform.time_s * (1.0 + LEAST)
    budget = uniform.memory_bytes * (1.0 + LAST_BITS)
    solved = mesh.solve(budget, below_s)
    roomy = mesh.solve(max(budget, mesh.problem.capacity_bytes), below_s)
    if solved is None or roomy is None:
        raise AssertionError(f"{mesh.name}: the search does not find the uniform plan {uniform}")
    return Compared(mesh=mesh, uniform=uniform, solved=solved, roomy=roomy)


def published() -> list[Run]:
    """Every run that is scored, of a dense model, with a pipeline."""
    return [
        run
        for run in load_runs()[0]
        if run.used_for == "score" and run.problem.model.n_experts <= 1 and run.candidates.pp[0] > 1
    ]


def first_of_each(runs: Sequence[Run]) -> list[Run]:
    """The first run of each source, model (of so many layers) and chip."""
    kept: dict[tuple[str, str, int, str], Run] = {}
    for run in runs:
        model, chip = run.problem.model, run.problem.cluster.chip
        kept.setdefault((run.source, model.name, model.n_layers, chip.name), run)
    return list(kept.values())


def run_mesh(run: Run, *, free: bool) -> Mesh:
    """The mesh of a run.

    Of more chunks than the space deals layers to, it has as many as that.
    """
    c = run.candidates
    most = virtual_stages(run.problem.model.n_layers, int(c.pp[0]))[-1]
    chunks = np.minimum(c.vpp, max(most, run.problem.model.n_layers // int(c.pp[0])))
    return Mesh.of(run.id, run.problem, run.stack, c.replace(vpp=chunks), free=free)


def llama3_mesh(vpp: int, *, free: bool) -> Mesh:
    """LLaMA-3 405B on 16,384 H100 as Megatron would train it, with so many virtual stages."""
    run = next(run for run in load_runs()[0] if run.id == LLAMA3)
    stack = STACKS["megatron"]
    c = run.candidates
    return Mesh.of(
        f"megatron, vpp {vpp}",
        dataclasses.replace(run.problem, recipe=stack.recipe),
        stack,
        c.replace(vpp=np.full_like(c.vpp, vpp), reshard=np.ones_like(c.reshard)),
        free=free,
    )


def runs_of(numbers: Sequence[int]) -> str:
    """``7, 14 x 8, 7``."""
    groups = ((number, len(list(group))) for number, group in itertools.groupby(numbers))
    return ", ".join(f"{many} x {n}" if many > 1 else str(n) for n, many in groups)


def layers_words(leaf: Leaf) -> str:
    """Layers per stage."""
    return runs_of(leaf.rungs.sum(axis=1).tolist())


def plan_words(leaf: Leaf, names: Sequence[str]) -> str:
    """Layers per stage and remat: ``7, 14 x 8, 7 layers; full 0, 2 x 1, 13 x 0, others none``."""
    return f"{layers_words(leaf)} layers; {remat_words(leaf, names)}"


def remat_words(leaf: Leaf, names: Sequence[str]) -> str:
    """Layers of each stage on each rung but the one that most stages are filled up with."""
    used = [r for r in range(len(names)) if leaf.rungs[:, r].any()]
    if len(used) == 1:
        return f"all {names[used[0]]}"
    rest = max(used, key=lambda r: int(leaf.rungs[:, r].sum()))
    parts = [f"{names[r]} {runs_of(leaf.rungs[:, r].tolist())}" for r in used if r != rest]
    return ", ".join([*parts, f"others {names[rest]}"])


def report(title: str, meshes: tuple[Mesh, Mesh]) -> None:
    """Print one mesh in both worlds."""
    c = meshes[0].candidates
    degrees = {"TP": c.tp, "CP": c.cp, "PP": c.pp, "vpp": c.vpp}
    said = " ".join(f"{name} {int(d[0])}" for name, d in degrees.items() if d[0] > 1)
    print(f"{title}: {said}, {int(c.microbatches[0])} x {int(c.micro_batch_size[0])} sequences")
    for mesh in meshes:
        found = compare(mesh)
        world = mesh.profile.legality.framework
        if isinstance(found, str):
            print(f"  {world:21} cannot state it: {found}")
            continue
        over = "" if found.fits else " (more than the chip has)"
        print(
            f"  {world:21} {'uniform':17} {found.uniform.time_s:9.4f} s "
            f"{found.uniform.memory_bytes / GIB:6.1f} GiB{over}: "
            f"{plan_words(found.uniform, mesh.rungs)}"
        )
        for what, leaf, gain in (
            ("at its memory", found.solved, found.gain),
            ("on the whole chip", found.roomy, found.roomy_gain),
        ):
            same = gain < LEAST and leaf.memory_bytes >= found.uniform.memory_bytes
            plan = "nothing faster" if same else plan_words(leaf, mesh.rungs)
            print(
                f"{'':24}{what:17} {leaf.time_s:9.4f} s {leaf.memory_bytes / GIB:6.1f} GiB, "
                f"gains {gain:7.3%}: {plan}"
            )


def shapes() -> None:
    """Print the layers per stage of LLaMA-3 405B under each budget and number of virtual stages."""
    print("\nLLaMA-3 405B, any framework: layers per stage within a budget")
    for vpp in LLAMA3_VPP:
        mesh = llama3_mesh(vpp, free=True)
        for gib in (74, 60, 45, 30):
            leaf = mesh.solve(gib * GIB)
            if leaf is not None:
                print(f"  vpp {vpp}, {gib} GiB: {leaf.time_s:8.4f} s, {layers_words(leaf)}")


def summary(runs: Sequence[Run]) -> None:
    """Print how many of all runs gain, and how much."""
    print(f"\nAll {len(runs)} published runs that are scored, dense and have a pipeline")
    for free in (True, False):
        found = [compare(run_mesh(run, free=free)) for run in runs]
        known = [each for each in found if isinstance(each, Compared)]
        gains = [each.gain for each in known]
        roomy = [each.roomy_gain for each in known]
        print(
            f"  {'any framework' if free else 'what its stack states':21} {len(known)} stated, "
            f"{sum(not each.fits for each in known)} of them not predicted to fit; "
            f"{sum(gain > COUNTS for gain in gains)} gain more than {COUNTS:.1%}, "
            f"median of all {statistics.median(gains):.2%}, most {max(gains):.2%}; "
            f"on the whole chip {sum(gain > COUNTS for gain in roomy)}, "
            f"median {statistics.median(roomy):.2%}"
        )


def main() -> None:
    """Print LLaMA-3 405B, the published runs, and how many of all gain."""
    runs = published()
    shown = runs if "--all" in sys.argv[1:] else first_of_each(runs)
    llama3 = next(run for run in load_runs()[0] if run.id == LLAMA3)
    report(
        f"{LLAMA3} {llama3.problem.model.name}, 16,384 H100, as its authors ran it",
        (run_mesh(llama3, free=True), run_mesh(llama3, free=False)),
    )
    for vpp in LLAMA3_VPP:
        meshes = (llama3_mesh(vpp, free=True), llama3_mesh(vpp, free=False))
        report(f"The same under {meshes[0].profile.name}", meshes)
    shapes()
    print()
    for run in shown:
        model = run.problem.model
        report(
            f"{run.id} {model.name} ({model.n_layers} layers), {run.problem.cluster.name}",
            (run_mesh(run, free=True), run_mesh(run, free=False)),
        )
    summary(runs)


if __name__ == "__main__":
    main()
