"""Where the time of one plan goes: compute, recompute, communication, bubble."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import PLACES
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile

#: Compute slower than this times its arithmetic is bound by HBM.
HBM_BOUND = 1.05
#: Communication binds where passes wait for it this share of their time.
WAITS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Seconds of one step on the slowest stage.

    ``compute_s`` includes ``recompute_s``; ``comms_s`` maps each kind of communication to its
    seconds, hidden or not. ``busy_s`` is what the passes take after overlap, ``idle_s`` the
    pipeline bubble. ``comms_over_compute`` is the communication that holds the busiest network
    longest, over compute, both without recompute. ``binding`` is ``compute``, ``hbm`` or
    ``communication``, and ``binding_by`` says of what.
    """

    step_time_s: float
    compute_s: float
    recompute_s: float
    comms_s: dict[str, float]
    busy_s: float
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
    names = [rung.name for rung in profile.ladder]
    rungs = np.array([[stage.get(n, 0) for n in names] for stage in plan.remat], dtype=np.float64)
    layers = rungs.sum(axis=1)
    ends = np.zeros((plan.pp, 2))
    ends[0, 0] = ends[-1, 1] = 1.0
    counts = dict(zip(PLACES, (layers, ends[:, 0], ends[:, 1]), strict=True))

    def per_stage(kind: str, phase: str) -> np.ndarray:
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
    ahead = sum((flows[k, "forward"] for k in kinds), np.zeros((plan.pp, len(comms.resources))))
    back = sum(
        (flows[k, p] for k in kinds for p in ("backward", "recompute")), np.zeros_like(ahead)
    )
    f_forms = forward[:, None] * forms[:, 0] + ahead @ forms[:, 1:].T
    b_forms = (backward + again)[:, None] * forms[:, 0] + back @ forms[:, 1:].T
    send = float(comms.send_s[0])
    stage_s = f_forms.max(axis=1) + b_forms.max(axis=1) + send
    slowest = int(stage_s.argmax())
    m = plan.microbatches
    seconds = {}
    for kind in kinds:
        each = sum(flows[kind, p][slowest].max(initial=0.0) for p in phases[:3]) * m
        once = sum(flows[kind, p][slowest].max(initial=0.0) for p in phases[3:])
        if each + once:
            seconds[kind] = float(each + once)
    if send:
        seconds["pp"] = send * m
    compute_s = float((forward + backward + again)[slowest]) * m
    busy = float(stage_s[slowest]) * m
    excess = np.stack([ahead - forward[:, None], back - (backward + again)[:, None]])[:, slowest]
    once_s = sum(flows[k, p][slowest].max(initial=0.0) for k in kinds for p in phases[3:])
    waits = busy - compute_s - send * m > WAITS * busy
    # The busiest network: where it exceeds compute most in some pass, or comes closest to it.
    resource = int(np.unravel_index(excess.argmax(), excess.shape)[1]) if excess.size else 0
    kind = max(
        kinds,
        key=lambda k: sum(flows[k, p][slowest, resource] for p in phases[:3]),
        default="",
    )
    held_s = sum(float(flows[kind, p][slowest, resource]) for p in phases[:2]) if kind else 0.0
    plain_s = float((forward + backward)[slowest])
    if waits:
        binding, by = "communication", f"{kind} over {comms.resources[resource]}"
    elif once_s > compute_s:
        binding, by = "communication", "gradient reduction once a step"
    elif compute.layer_forward_s[0] > HBM_BOUND * compute.layer_peak_s[0]:
        binding, by = "hbm", "loading weights and activations"
    else:
        binding, by = "compute", "matmuls and attention at the chip's peak"
    return Breakdown(
        step_time_s=step_time_s,
        compute_s=compute_s,
        recompute_s=float(again[slowest]) * m,
        comms_s=seconds,
        busy_s=busy,
        idle_s=max(step_time_s - busy, 0.0),
        comms_over_compute=held_s / plain_s if plain_s else float("inf"),
        binding=binding,
        binding_by=by,
    )
