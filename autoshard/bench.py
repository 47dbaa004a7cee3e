"""Published runs, prepared once and priced many times: what fits and validation evaluate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.calibrated_comms import comms_cost
from autoshard.costmodels.calibrated_compute import compute_cost
from autoshard.costmodels.calibrated_overlap import overlap_forms
from autoshard.costmodels.candidates import Candidates, IntColumn
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.constants import Fitted, family, keys
from autoshard.costmodels.costs import Column, MemoryCost
from autoshard.costmodels.profile import stage_costs
from autoshard.costmodels.setting import Setting
from autoshard.costmodels.stack import Stack
from autoshard.costmodels.textbook_pipeline import OneForwardOneBackward
from autoshard.runs import Run
from autoshard.search.bounds import uniform_plans
from autoshard.search.rows import InFlight, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs of one stack on one chip: ``which`` of all, their settings, and shares of each rung."""

    chip: Chip
    stack: Stack
    which: NDArray[np.intp]
    setting: Setting
    candidates: Candidates
    n_layers: IntColumn
    shares: Column

    @property
    def keys(self) -> frozenset[str]:
        """The keys of the constants that these runs depend on."""
        used = keys(family(self.chip), self.chip.kind, self.stack)
        if not self.setting.low_precision.any():
            used = {name: key for name, key in used.items() if name not in ("low_matmul", "casts")}
        return frozenset(used.values()) - {""}

    def step_s(self, fitted: Fitted) -> Column:
        """Predicted seconds of a step of each run, ``[n]``."""
        constants = fitted.constants(self.chip, self.stack)
        n, ladder = len(self.which), self.stack.ladder
        compute = compute_cost(self.setting, constants, self.stack, ladder)
        comms = comms_cost(self.setting, constants, self.stack, ladder)
        zero = np.zeros(n)
        nothing = MemoryCost(
            layer_state_bytes=zero,
            embedding_state_bytes=zero,
            head_state_bytes=zero,
            saved_bytes=np.zeros((n, len(ladder))),
            fixed_bytes=zero,
        )
        pipeline = OneForwardOneBackward()(self.candidates)
        forms = overlap_forms(*fitted.overlap(self.stack, self.chip.kind))
        costs = stage_costs(compute, comms, nothing, pipeline, forms, comms_s=zero)
        rows = Rows(
            candidates=self.candidates,
            costs=costs,
            n_layers=0,
            in_flight=InFlight(first=zero, second=zero, last=zero, capacity_share=zero),
        )
        seconds, _ = uniform_plans(rows, self.n_layers)
        step_s: Column = (self.shares * np.where(self.shares > 0, seconds, 0.0)).sum(axis=1)
        return step_s


@dataclass(frozen=True, slots=True)
class Bench:
    """All groups of some runs."""

    groups: tuple[Group, ...]
    size: int

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Bench:
        """Prepare runs for pricing."""
        return cls(groups=tuple(_groups(runs)), size=len(runs))

    def step_s(self, fitted: Fitted, key: str | None = None) -> Column:
        """Predicted seconds of a step of each run, in their order, ``[runs]``.

        With ``key``, of the runs that depend on that constant only; NaN for the others.
        """
        seconds = np.full(self.size, np.nan)
        for group in self.groups:
            if key is None or key in group.keys:
                seconds[group.which] = group.step_s(fitted)
        return seconds

    @property
    def kinds(self) -> dict[str, str]:
        """The key of every constant that some run depends on, and the kind of its chips."""
        found = {key: group.chip.kind for group in self.groups for key in group.keys}
        return dict(sorted(found.items()))


def _groups(runs: Sequence[Run]) -> Iterator[Group]:
    order: dict[tuple[str, str, str], list[int]] = {}
    for index, run in enumerate(runs):
        chip = run.problem.cluster.chip
        order.setdefault((family(chip), chip.kind, repr(run.stack)), []).append(index)
    for which in order.values():
        picked = [runs[i] for i in which]
        stack = picked[0].stack
        names = [rung.name for rung in stack.ladder]
        n_layers = np.array([r.problem.model.n_layers for r in picked])
        candidates = Candidates.concatenate([r.candidates for r in picked])
        # Frameworks may deal the embedding and the loss as layers: a chunk then holds no other.
        whole = np.minimum(candidates.vpp, n_layers // candidates.pp)
        yield Group(
            chip=picked[0].problem.cluster.chip,
            stack=stack,
            which=np.array(which),
            setting=Setting.concatenate([Setting.of(r.problem, r.candidates) for r in picked]),
            candidates=candidates.replace(vpp=whole),
            n_layers=n_layers,
            shares=np.array([[r.remat.get(name, 0.0) for name in names] for r in picked]),
        )
