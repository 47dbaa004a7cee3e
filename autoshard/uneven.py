"""What a plan with uneven chunks takes beyond its price: the schedule, simulated chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.schedules import schedule_name
from autoshard.costmodels.simulation import ORDERS, simulate
from autoshard.launch.stages import chunk_layers
from autoshard.search.check import uneven_chunks
from autoshard.stage_passes import stage_passes
from autoshard.words import percent

#: Rounds of ``pp`` microbatches that are simulated; of more, the share lost is about the same.
ROUNDS = 8


def uneven_notes(problem: Problem, profile: Profile, plan: Plan, row: Candidates) -> Iterator[str]:
    """How much longer than priced a plan takes whose chunks are no equal parts of its stages.

    Nothing for a plan of the space. ``row`` is the plan's one candidate, with its layout.
    """
    reasons = uneven_chunks(problem, plan)
    if not reasons:
        return
    said = f"Priced as if the chunks of a stage were equal, but {'; '.join(reasons)}: "
    if schedule_name(profile) not in ORDERS:
        yield said + "it may take up to 15 % longer."
        return
    longer = simulated_longer(problem, profile, plan, row)
    if longer < 5e-4:
        yield said + "simulated chunk by chunk, its schedule takes no longer."
    else:
        yield said + f"simulated chunk by chunk, its schedule takes {percent(longer)} longer."


def simulated_longer(problem: Problem, profile: Profile, plan: Plan, row: Candidates) -> float:
    """Seconds of a plan's schedule with its own chunks over those of the formula, less one.

    Without once-a-step work, and of ``ROUNDS`` rounds of microbatches at most.
    """
    microbatches = min(plan.microbatches, ROUNDS * plan.pp)
    passes = stage_passes(problem, profile, plan, row)
    weights = profile.pipeline(row.replace(microbatches=np.array([microbatches])))
    stage_s = np.array(passes.stage_s)
    formula_s = weights.max_weight[0] * stage_s.max() + weights.sum_weight[0] * stage_s.sum()
    simulated = simulate(
        passes.forward_s,
        passes.backward_s,
        plan.vpp,
        microbatches,
        order=ORDERS[schedule_name(profile)],
        shares=_shares(problem, profile, plan, row),
    )
    return float(simulated.step_s / formula_s - 1.0)


def _shares(problem: Problem, profile: Profile, plan: Plan, row: Candidates) -> list[list[float]]:
    """What part of its stage each chunk takes: by its layers, the embedding and the head."""
    costs = profile.price(problem, row)
    layer_s, embedding_s, head_s = (
        float(costs.forward_s[place][0].max() + costs.backward_s[place][0].max())
        for place in ("layer", "embedding", "head")
    )
    seconds = np.array(chunk_layers(plan)).reshape(plan.vpp, plan.pp).T * layer_s
    seconds[0, 0] += embedding_s
    seconds[-1, -1] += head_s
    shares: list[list[float]] = (seconds / seconds.sum(axis=1, keepdims=True)).tolist()
    return shares
