"""How long the passes of each pipeline stage take, and the step that a simulation makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import Column, Place
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.remat import layers_by_rung
from autoshard.costmodels.schedules import SCHEDULES, ZeroBubble, schedule_name
from autoshard.costmodels.simulation import ORDERS, Simulated, simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePasses:
    """Seconds of one microbatch on each stage, ``[pp]`` each, and of the step.

    ``forward_s`` and ``backward_s`` are the passes after overlap, each with half of the sends
    between stages, which nothing hides. ``weights_s`` is the part of the backward pass that makes
    weight gradients, where the schedule runs it alone (empty elsewhere); ``backward_s`` is then
    without it. ``once_s`` is the once-a-step work of the stage that has most of it.
    ``formula_s + once_s`` is the predicted step.
    """

    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    weights_s: tuple[float, ...]
    once_s: float
    formula_s: float

    @property
    def stage_s(self) -> tuple[float, ...]:
        """Seconds of one microbatch on each stage, all passes."""
        weights = self.weights_s or (0.0,) * len(self.forward_s)
        return tuple(map(sum, zip(self.forward_s, self.backward_s, weights, strict=True)))


def stage_passes(problem: Problem, profile: Profile, plan: Plan, row: Candidates) -> StagePasses:
    """The passes of a plan; ``row`` is its one candidate, with its layout.

    ZB-H1's weight gradients are the share of a stage that its cost model takes them for.
    """
    costs = profile.price(problem, row)
    rungs = layers_by_rung(plan, profile.ladder).astype(np.float64)
    ends = np.zeros((2, plan.pp))
    ends[0, 0] = ends[1, -1] = 1.0
    many: dict[Place, Column] = {
        "layer": rungs.sum(axis=1),
        "embedding": ends[0],
        "head": ends[1],
    }

    def forms(columns: dict[Place, Column]) -> Column:
        """Seconds of each stage under each overlap form, ``[pp, j]``."""
        total: Column = np.add.reduce([np.outer(many[p], columns[p][0]) for p in many])
        return total

    forward = forms(dict(costs.forward_s))
    plain = forms(dict(costs.backward_s))
    backward = plain - np.outer(many["layer"], costs.backward_s["layer"][0])
    backward = backward + rungs @ costs.layer_backward_s[0].T
    late = (forward + forms(dict(costs.once_forward_s))).max(axis=1) - forward.max(axis=1)
    late = late + (plain + forms(dict(costs.once_backward_s))).max(axis=1) - plain.max(axis=1)
    half_send_s = float(costs.send_s[0]) / 2.0
    ahead, back = forward.max(axis=1) + half_send_s, backward.max(axis=1) + half_send_s
    total = ahead + back
    formula_s = costs.max_weight[0] * total.max() + costs.sum_weight[0] * total.sum()
    weights = np.zeros(0)
    if isinstance(profile.pipeline, ZeroBubble):
        # No pass is shorter than nothing, where a stage spends next to all of its time forward.
        weights = np.minimum(profile.pipeline.weight_share * total, back)
        back = back - weights
    return StagePasses(
        forward_s=tuple(ahead.tolist()),
        backward_s=tuple(back.tolist()),
        weights_s=tuple(weights.tolist()),
        once_s=float(late.max()),
        formula_s=float(formula_s),
    )


def simulated_step(
    profile: Profile, plan: Plan, passes: StagePasses, microbatches: int
) -> Simulated:
    """The schedule of a plan for so many microbatches, pass by pass, without once-a-step work.

    Raises:
        SpecError: the schedule is a cost model of someone else's, whose order of passes is unknown.
    """
    name = schedule_name(profile)
    if name not in ORDERS:
        raise SpecError(
            f"the order of passes of the pipeline model {name!r} is not known; a timeline is drawn "
            f"of {', '.join(SCHEDULES)}."
        )
    return simulate(
        passes.forward_s,
        passes.backward_s,
        plan.vpp,
        microbatches,
        order=ORDERS[name],
        weights_s=passes.weights_s,
    )
