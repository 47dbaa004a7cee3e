"""Where the time of one plan goes: compute, recompute, communication, bubble."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import PLACES, Column
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.remat import layers_by_rung

#: Communication binds where passes wait for it this share of the step: they take what it takes.
WAITS = 1e-6
#: Every other loss counts from this share of the step; below it, compute binds.
COUNTS = 0.05
#: The kind of flow that is no communication: the update of weights and moments in HBM.
OPTIMIZER = "optimizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Seconds of one step on the slowest stage.

    ``busy_s + once_s + optimizer_s + idle_s`` is the step.

    ``compute_s`` includes ``recompute_s``. ``comms_s`` maps each kind of communication to its
    seconds, hidden or not, ``exposed_s`` to those that nothing hides; these add up to ``busy_s -
    compute_s + once_s``. What a pass takes beyond its compute is dealt to the kinds in proportion
    to their seconds, as the pass's longest overlap form weighs them; so is ``once_s``. Of a form
    that adds communication to all of compute that is each kind's own share; of one where a network
    bounds the pass it is a convention.

    ``busy_s`` is what the passes take after overlap, with the sends between stages; ``once_s`` is
    once-a-step communication that nothing hides, ``optimizer_s`` the update after it; ``idle_s`` is
    the pipeline bubble. ``hbm_s`` is the part of ``compute_s`` in which matmuls wait for memory.
    ``comms_over_compute`` is the communication that holds the busiest network longest, over
    compute, both without recompute. ``binding`` is the largest loss, ``communication``, ``bubble``
    or ``hbm``, or ``compute`` where there is none; ``binding_by`` says of what.
    """

    step_time_s: float
    compute_s: float
    recompute_s: float
    hbm_s: float
    comms_s: dict[str, float]
    exposed_s: dict[str, float]
    busy_s: float
    once_s: float
    optimizer_s: float
    idle_s: float
    comms_over_compute: float
    binding: str
    binding_by: str


def breakdown(
    problem: Problem, profile: Profile, plan: Plan, row: Candidates, step_time_s: float
) -> Breakdown:
    """The breakdown of a plan; ``row`` is its one candidate.

    Args:
        problem: the question.
        profile: the cost models that answered it.
        plan: the plan.
        row: its degrees and layout as a table of one candidate.
        step_time_s: its predicted step time.
    """
    compute, comms = profile.price_parts(problem, row)
    rungs = layers_by_rung(plan, profile.ladder).astype(np.float64)
    layers = rungs.sum(axis=1)
    ends = np.zeros((plan.pp, 2))
    ends[0, 0] = ends[-1, 1] = 1.0
    counts = dict(zip(PLACES, (layers, ends[:, 0], ends[:, 1]), strict=True))

    def per_stage(kind: str, phase: str) -> Column:
        """Seconds per stage and resource of one kind of flow in one phase."""
        total = np.zeros((plan.pp, len(comms.resources)))
        for flow in comms.flows:
            if flow.kind == kind and flow.phase == phase:
                for resource, seconds in flow.seconds.items():
                    column = rungs @ seconds[0] if phase == "recompute" else counts[flow.place]
                    scale = 1.0 if phase == "recompute" else float(seconds[0])
                    total[:, resource] += column * scale
        return total

    forward = layers * compute.layer_forward_s[0] + ends @ [
        compute.embedding_forward_s[0],
        compute.head_forward_s[0],
    ]
    again = rungs @ compute.recompute_s[0]
    backward = layers * compute.layer_backward_s[0] + ends @ [
        compute.embedding_backward_s[0],
        compute.head_backward_s[0],
    ]
    kinds = list(dict.fromkeys(flow.kind for flow in comms.flows))
    phases = ("forward", "backward", "recompute", "once_forward", "once_backward")
    flows = {(k, p): per_stage(k, p) for k in kinds for p in phases}
    forms = profile.overlap(comms.resources)

    def held(*during: str) -> Column:
        """Seconds per stage and resource of every kind of flow in some phases."""
        none = np.zeros((plan.pp, len(comms.resources)))
        return sum((flows[k, p] for k in kinds for p in during), none)

    def passes(compute_s: Column, comms_s: Column) -> Column:
        """Seconds of a pass under each overlap form, per stage ``[pp, j]``."""
        return compute_s[:, None] * forms[:, 0] + comms_s @ forms[:, 1:].T

    ahead, back = held("forward"), held("backward", "recompute")
    plain, first, last = held("backward"), held("once_forward"), held("once_backward")
    send = float(comms.send_s[0])
    taken = passes(forward, ahead), passes(backward + again, back)
    stage_s: Column = taken[0].max(axis=1) + taken[1].max(axis=1) + send
    # Beside a pass without recompute, as StageCosts has it.
    late = passes(forward, ahead + first), passes(backward, plain + last)
    exposed = late[0].max(axis=1) - taken[0].max(axis=1)
    exposed += late[1].max(axis=1) - passes(backward, plain).max(axis=1)
    once = int(exposed.argmax())
    slowest = int(stage_s.argmax())
    m = plan.microbatches
    seconds = {}
    networks = [kind for kind in kinds if kind != OPTIMIZER]
    for kind in networks:
        each = sum(flows[kind, p][slowest].max(initial=0.0) for p in phases[:3]) * m
        more = sum(flows[kind, p][slowest].max(initial=0.0) for p in phases[3:])
        if each + more:
            seconds[kind] = float(each + more)
    if send:
        seconds["pp"] = send * m
    compute_s = float((forward + backward + again)[slowest]) * m
    busy_s = float(stage_s[slowest]) * m
    exposed_s = max(float(exposed[once]), 0.0)
    update_s = sum(float(flows[k, p][once].sum()) for k in kinds for p in phases if k == OPTIMIZER)
    optimizer_s = min(update_s, exposed_s)
    once_s = exposed_s - optimizer_s
    idle_s = max(step_time_s - busy_s - exposed_s, 0.0)
    dealt = [{"pp": send * m}] if send else []
    for form, compute_pass, during in (
        (taken[0], forward, ("forward",)),
        (taken[1], backward + again, ("backward", "recompute")),
    ):
        j = int(form[slowest].argmax())
        weights = {k: _weighed(forms[j], [flows[k, p][slowest] for p in during]) for k in kinds}
        waited_s = max(float(form[slowest, j] - compute_pass[slowest]), 0.0) * m
        dealt.append(_shared(waited_s, weights))
    late_forms = [forms[int(form[once].argmax())] for form in late]
    weights = {
        kind: sum(
            _weighed(form, [flows[kind, phase][once]])
            for form, phase in zip(late_forms, phases[3:], strict=True)
        )
        for kind in networks
    }
    dealt.append(_shared(once_s, weights))
    exposed_kinds = dict.fromkeys(kind for part in dealt for kind in part)
    layer_s, peak_s = float(compute.layer_forward_s[0]), float(compute.layer_peak_s[0])
    above = max(1.0 - peak_s / layer_s, 0.0) if layer_s else 0.0
    in_layers = compute.layer_forward_s[0] + compute.layer_backward_s[0]
    hbm_s = float(layers[slowest] * in_layers + again[slowest]) * m * above

    # What passes wait for: the network with most weight in their longest form. Where none has any,
    # the busiest: it comes closest to compute in some pass.
    longest = [int(form[slowest].argmax()) for form in taken]
    weighed = sum(
        forms[j, 1:] * held_s[slowest] for j, held_s in zip(longest, (ahead, back), strict=True)
    )
    excess = np.stack([ahead - forward[:, None], back - (backward + again)[:, None]])[:, slowest]
    resource = int(np.argmax(weighed)) if len(weighed) else 0
    if len(weighed) and not weighed[resource]:
        resource = int(np.unravel_index(excess.argmax(), excess.shape)[1])
    kind = max(
        networks,
        key=lambda k: sum(flows[k, p][slowest, resource] for p in phases[:3]),
        default="",
    )
    held_s = sum(float(flows[kind, p][slowest, resource]) for p in phases[:2]) if kind else 0.0
    plain_s = float((forward + backward)[slowest])
    once_kind = max(
        networks,
        key=lambda k: sum(flows[k, p][once].max(initial=0.0) for p in phases[3:]),
        default="",
    )
    network = comms.resources[resource] if comms.resources else ""
    waits = {
        f"{kind} over {network}": busy_s - compute_s - send * m,
        "pp sends between stages": send * m,
        f"{once_kind} once a step": once_s,
    }
    others = {
        ("bubble", _bubble_words(plan)): idle_s,
        ("hbm", "loading weights and activations"): hbm_s,
        ("hbm", "the optimizer's update once a step"): optimizer_s,
    }
    bound = any(not forms[j, 0] for j in longest)
    binding, by = _largest_loss(step_time_s, waits, others, bound_by_network=bound)
    return Breakdown(
        step_time_s=step_time_s,
        compute_s=compute_s,
        recompute_s=float(again[slowest]) * m,
        hbm_s=hbm_s,
        comms_s=seconds,
        exposed_s={k: sum(part.get(k, 0.0) for part in dealt) for k in exposed_kinds},
        busy_s=busy_s,
        once_s=once_s,
        optimizer_s=optimizer_s,
        idle_s=idle_s,
        comms_over_compute=held_s / plain_s if plain_s else float("inf"),
        binding=binding,
        binding_by=by,
    )


def _weighed(form: Column, seconds: list[Column]) -> float:
    """Seconds on every resource as one overlap form weighs them."""
    return float(sum(form[1:] @ each for each in seconds))


def _shared(total_s: float, weights: Mapping[str, float]) -> dict[str, float]:
    """A total dealt out in proportion; nothing where nothing has any weight."""
    whole = sum(weights.values())
    shares = {kind: total_s * weight / whole for kind, weight in weights.items() if weight}
    return {kind: share for kind, share in shares.items() if share}


def _largest_loss(
    step_time_s: float,
    waits: dict[str, float],
    others: dict[tuple[str, str], float],
    *,
    bound_by_network: bool,
) -> tuple[str, str]:
    """What loses most of the step, and of what; ``waits`` are the waits for communication.

    The first of them is that of the passes: where a network bounds them, it counts however short.
    """
    comms_s, longest = sum(waits.values()), max(waits, key=lambda by: waits[by])
    in_passes = next(iter(waits.values()))
    counts = bound_by_network and in_passes > WAITS * step_time_s
    counts |= comms_s > COUNTS * step_time_s
    losses = {("communication", longest): comms_s if counts else 0.0}
    losses |= {loss: lost_s for loss, lost_s in others.items() if lost_s > COUNTS * step_time_s}
    binding, by = max(losses, key=lambda loss: losses[loss])
    return (binding, by) if losses[binding, by] else ("compute", "matmuls and attention")


def _bubble_words(plan: Plan) -> str:
    """``pipeline bubble of 16 stages and 32 microbatches``."""
    virtual = f" x {plan.vpp} virtual" if plan.vpp > 1 else ""
    stages = f"{plan.pp}{virtual} stage{'' if plan.pp == 1 else 's'}"
    many = "" if plan.microbatches == 1 else "es"
    return f"pipeline bubble of {stages} and {plan.microbatches:,} microbatch{many}"


def step_parts(parts: Mapping[str, Any]) -> dict[str, float]:
    """The parts of a step in words, from a breakdown's plain values; they add up to the step."""
    busy_s, compute_s = parts["busy_s"], parts["compute_s"]
    return {
        "compute": compute_s - parts["recompute_s"],
        "recompute (remat)": parts["recompute_s"],
        "communication not hidden": max(busy_s - compute_s, 0.0),
        "communication once a step": parts.get("once_s", 0.0),
        "optimizer once a step": parts.get("optimizer_s", 0.0),
        "pipeline bubble": parts["idle_s"],
    }
