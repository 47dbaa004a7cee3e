"""Rows whose costs are dice: any shape of ladder, overlap and schedule, far from the textbook."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.costs import (
    PLACES,
    Column,
    CommsCost,
    ComputeCost,
    Flow,
    MemoryCost,
    Phase,
)
from autoshard.costmodels.model import Model
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.remat import TEXTBOOK_LADDER, Rung
from autoshard.costmodels.textbook_overlap import TextbookOverlap
from autoshard.costmodels.textbook_pipeline import OneForwardOneBackward
from autoshard.search import bounds
from autoshard.search.floors import MeshFloors, Unpriced
from autoshard.search.rows import Rows, price_rows
from autoshard.search.stages import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Dice:
    """Random numbers in ``[n]`` columns: whole ones (so that ties happen) or any."""

    seed: int
    role: str
    whole: bool
    name: str = "dice"
    covers: frozenset[str] = frozenset({"dense"})

    def roller(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, len(self.role)])

    def roll(self, rng: np.random.Generator, *shape: int, least: float = 0.0) -> Column:
        if self.whole:
            return rng.integers(0, 6, shape).astype(np.float64) + least
        return rng.uniform(0.0, 6.0, shape) * rng.integers(0, 2, shape) + least


@dataclass(frozen=True, slots=True, kw_only=True)
class DiceCompute(Dice):
    def flops_per_step(self, problem: Problem) -> float:
        return problem.flops_per_step

    def __call__(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> ComputeCost:
        rng, n = self.roller(), len(candidates)
        return ComputeCost(
            layer_forward_s=self.roll(rng, n, least=1.0),
            layer_backward_s=self.roll(rng, n, least=1.0),
            recompute_s=self.roll(rng, n, len(ladder)),
            embedding_forward_s=self.roll(rng, n),
            embedding_backward_s=self.roll(rng, n),
            head_forward_s=self.roll(rng, n),
            head_backward_s=self.roll(rng, n),
            layer_peak_s=np.zeros(n),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiceComms(Dice):
    resources: tuple[str, ...]
    phases: tuple[Phase, ...]

    def __call__(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> CommsCost:
        rng, n = self.roller(), len(candidates)
        flows = [
            Flow(
                kind="dice",
                phase=phase,
                place=place,
                seconds={
                    k: self.roll(rng, *((n, len(ladder)) if phase == "recompute" else (n,)))
                    * (8.0 if phase.startswith("once") else 1.0)
                    for k in range(len(self.resources))
                },
            )
            for phase in self.phases
            for place in (PLACES if phase != "recompute" else PLACES[:1])
        ]
        return CommsCost(resources=self.resources, flows=tuple(flows), send_s=self.roll(rng, n))


@dataclass(frozen=True, slots=True, kw_only=True)
class DiceMemory(Dice):
    def __call__(
        self, problem: Problem, candidates: Candidates, ladder: tuple[Rung, ...]
    ) -> MemoryCost:
        rng, n = self.roller(), len(candidates)
        return MemoryCost(
            layer_state_bytes=self.roll(rng, n, least=1.0),
            embedding_state_bytes=self.roll(rng, n),
            head_state_bytes=self.roll(rng, n),
            saved_bytes=self.roll(rng, n, len(ladder), least=0.5),
            fixed_bytes=self.roll(rng, n),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiceTable:
    """Rows with dice for costs, and the pieces they were made of."""

    problem: Problem
    profile: Profile
    rows: Rows

    def held(self, row: int) -> Column:
        """Microbatches in flight on each stage of a row."""
        c = self.rows.candidates
        pp, vpp, microbatches = int(c.pp[row]), int(c.vpp[row]), int(c.microbatches[row])
        return self.profile.pipeline.in_flight(pp, vpp, microbatches)

    def stage(self, row: int) -> Stage:
        """The sub-problem of one row."""
        return Stage.of(self.rows, row, self.held(row))

    def mesh(self, row: int) -> dict[str, int]:
        """The degrees of one row."""
        return {name: int(getattr(self.rows.candidates, name)[row]) for name in COLUMNS}


CHIP = Chip(
    name="dice",
    kind="tpu",
    flops_per_s={"bf16": 1e12},
    hbm_bytes=2**30,
    hbm_bytes_per_s=1e12,
    pod_axes=(64,),
    ici_bytes_per_s=1e12,
)

ONCE: tuple[Phase, ...] = ("once_forward", "once_backward")
EACH: tuple[Phase, ...] = ("forward", "backward", "recompute")


def dice_problem(n_layers: int) -> Problem:
    """Only the number of layers matters: dice do not read the rest."""
    model = Model(
        name="dice",
        n_layers=n_layers,
        d_model=8,
        d_ff=8,
        n_heads=1,
        n_kv_heads=1,
        d_head=8,
        vocab=8,
    )
    return Problem(model=model, cluster=Cluster.build(CHIP, chips=64))


@st.composite
def dice_tables(draw: st.DrawFn, *, rows: int = 4, once: bool | None = None) -> DiceTable:
    """Tables of a few rows, each with its own schedule, small enough to try every plan."""
    seed = draw(st.integers(0, 2**32 - 1))
    n_layers = draw(st.integers(1, 6))
    rungs = draw(st.integers(1, 3 if n_layers <= 4 else 2))
    whole = draw(st.booleans())
    phases = EACH + (ONCE if (draw(st.booleans()) if once is None else once) else ())
    resources = tuple(f"network {k}" for k in range(draw(st.integers(1, 3))))
    profile = Profile(
        name="dice",
        compute=DiceCompute(seed=seed, role="compute", whole=whole),
        comms=DiceComms(seed=seed, role="comms", whole=whole, resources=resources, phases=phases),
        overlap=TextbookOverlap(rule=draw(st.sampled_from(["max", "sum"]))),
        memory=DiceMemory(seed=seed, role="memory", whole=whole),
        pipeline=OneForwardOneBackward(),
        ladder=TEXTBOOK_LADDER[:rungs],
    )
    schedules = []
    for _ in range(rows):
        pp = draw(st.integers(1, min(n_layers, 4)))
        # Any number of chunks of a layer or more; or of one, of which two may be missing.
        full = -(-n_layers // pp)
        lone = (full,) if pp * full <= n_layers + 2 else ()
        vpp = draw(st.sampled_from([*range(1, n_layers // pp + 1), *lone])) if pp > 1 else 1
        rounds = draw(st.integers(1, 3))
        schedules.append((pp, vpp, rounds * pp if vpp > 1 else rounds))
    columns = {name: np.ones(rows, dtype=np.int64) for name in COLUMNS}
    for index, name in enumerate(("pp", "vpp", "microbatches")):
        columns[name] = np.array([schedule[index] for schedule in schedules], dtype=np.int64)
    problem = dice_problem(n_layers)
    return DiceTable(
        problem=problem, profile=profile, rows=price_rows(problem, profile, Candidates(**columns))
    )


def check_unpriced(
    problem: Problem,
    profile: Profile,
    candidates: Candidates,
    mesh: NDArray[np.intp],
    floors: MeshFloors,
) -> None:
    """No candidate is faster or smaller than its floors, however much they have learnt."""
    left = Unpriced.of(profile, problem.model.n_layers, candidates, mesh, floors)
    while len(left.mesh):
        rows = price_rows(problem, profile, left.candidates)
        assert (left.step_s() <= bounds.time_floor_s(rows) * (1.0 + 1e-9)).all()
        assert (left.held_bytes() <= bounds.memory_floor_bytes(rows) * (1.0 + 1e-9)).all()
        middle = left.middle()
        left.learn(middle, rows.take(middle))
        others = np.ones(len(left.mesh), dtype=np.bool_)
        others[middle] = False
        left = left.take(others)
