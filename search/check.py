"""A judge of plans that shares no code with the search: plain loops, floats, the rules one by one.

``judge`` recomputes a plan's step time and peak memory from the coefficients of the cost models
(the formulas of :class:`~autoshard.costmodels.profile.StageCosts`), and tests every rule of the
space.
"""

from __future__ import annotations

import math

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import Place
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile


def broken_rules(problem: Problem, plan: Plan) -> list[str]:
    """Every rule of the space that a plan breaks, as sentences."""
    return [*impossible(problem, plan), *uneven_chunks(problem, plan)]


def uneven_chunks(problem: Problem, plan: Plan) -> list[str]:
    """Why the chunks of an interleaved plan are no equal parts of a full stage, as sentences.

    The space has no such plan, which the formula of a step prices too fast; a framework may run it.
    """
    full = math.ceil(problem.model.n_layers / plan.pp)
    layers = plan.layers_per_stage
    rules = [
        (full % plan.vpp == 0, f"vpp = {plan.vpp} does not divide a full stage of {full} layers"),
        (
            plan.vpp < full or max(layers) <= full,
            f"a stage has more layers than its {plan.vpp} chunks, and others one a chunk",
        ),
        (
            plan.vpp == full or min(layers) >= plan.vpp,
            f"an end has a chunk without a layer, and others have {full // plan.vpp}",
        ),
    ]
    return [message for holds, message in rules if not holds and plan.vpp > 1]


def impossible(problem: Problem, plan: Plan) -> list[str]:
    """Every rule of the model, the batch and the network that a plan breaks, as sentences."""
    model, workload, cluster = problem.model, problem.workload, problem.cluster
    shards = plan.dp * plan.batch_split
    batch = shards * plan.microbatches * plan.micro_batch_size
    ways = plan.seq_split * plan.cp
    rules = [
        (model.n_heads % plan.tp == 0, f"tp = {plan.tp} does not divide {model.n_heads} heads"),
        (model.d_ff % plan.tp == 0, f"tp = {plan.tp} does not divide d_ff = {model.d_ff}"),
        (model.d_model % plan.tp == 0, f"tp = {plan.tp} does not divide d_model = {model.d_model}"),
        (
            model.n_kv_heads % plan.tp == 0 or plan.tp % model.n_kv_heads == 0,
            f"tp = {plan.tp} neither divides nor is a multiple of {model.n_kv_heads} KV heads",
        ),
        (
            workload.seq_len % (ways * plan.tp) == 0,
            f"seq_split * cp * tp = {ways * plan.tp} does not divide {workload.seq_len} tokens",
        ),
        (
            plan.cp == 1 or workload.seq_len % (2 * ways) == 0,
            f"cp = {plan.cp} cannot deal {workload.seq_len} tokens in balanced halves",
        ),
        (
            batch == workload.global_batch_seqs,
            f"dp * batch_split * microbatches * micro_batch_size = {batch}, not the batch of "
            f"{workload.global_batch_seqs} sequences",
        ),
        (plan.ep == 1 or model.n_experts > 1, f"ep = {plan.ep} without experts"),
        (plan.chips_used <= cluster.chips, f"{plan.chips_used} chips of {cluster.chips}"),
        (plan.reshard in problem.recipe.reshard, f"reshard = {plan.reshard} is not allowed"),
        (
            sum(plan.layers_per_stage) == model.n_layers,
            f"stages hold {sum(plan.layers_per_stage)} of {model.n_layers} layers",
        ),
        (
            all(n >= plan.vpp for n in plan.layers_per_stage[1:-1])
            # The embedding, or the head, may be all that is in one chunk of several.
            and min(plan.layers_per_stage[0], plan.layers_per_stage[-1]) >= max(plan.vpp - 1, 1),
            f"a stage has fewer layers than its {plan.vpp} chunks",
        ),
        (
            plan.vpp == 1 or plan.pp > 1,
            f"vpp = {plan.vpp} interleaves pipeline stages, and pp = 1",
        ),
        (
            plan.vpp == 1 or plan.microbatches % plan.pp == 0,
            f"interleaving wants microbatches in rounds of pp = {plan.pp}",
        ),
        (
            all(len([n for n in stage.values() if n]) <= 2 for stage in plan.remat),
            "a stage runs more than two rungs of the remat ladder",
        ),
    ]
    if cluster.chip.kind == "tpu":
        rules += [
            (plan.dp == plan.pods <= cluster.pods, f"dp = {plan.dp} on {plan.pods} pods"),
            (
                plan.chips_used <= plan.pods * cluster.pod_chips,
                f"{plan.chips_used} chips on {plan.pods} pods of {cluster.pod_chips}",
            ),
        ]
    return [message for holds, message in rules if not holds]


def judge(problem: Problem, profile: Profile, plan: Plan, layout: int) -> tuple[float, float]:
    """Step seconds and peak bytes of a plan on one of the cluster's layouts.

    A plan with uneven chunks is judged too, by the formula that knows stages only.

    Raises:
        SpecError: the plan breaks a rule; the first is named.
    """
    broken = impossible(problem, plan)
    if broken:
        raise SpecError(f"plan: {broken[0]}.")
    one = Candidates(
        **{
            name: np.array([layout if name == "layout" else getattr(plan, name)], dtype=np.int64)
            for name in Candidates.__slots__
        }
    )
    costs = profile.price(problem, one)
    names = [rung.name for rung in profile.ladder]
    held = profile.pipeline.in_flight(plan.pp, plan.vpp, plan.microbatches)
    stages, exposed, memory = [], [], []
    for s in range(plan.pp):
        rungs = [plan.remat[s].get(name, 0) for name in names]
        count: dict[Place, int] = {"layer": plan.layers_per_stage[s]}
        count["embedding"] = 1 if s == 0 else 0
        count["head"] = 1 if s == plan.pp - 1 else 0
        both: tuple[Place, Place] = ("embedding", "head")
        forward, backward, plain, last_forward, last_backward = [], [], [], [], []
        for j in range(costs.layer_backward_s.shape[1]):
            ahead = sum(n * float(costs.forward_s[p][0, j]) for p, n in count.items())
            base = sum(n * float(costs.backward_s[p][0, j]) for p, n in count.items())
            back = sum(
                n * float(costs.layer_backward_s[0, j, r]) for r, n in enumerate(rungs)
            ) + sum(count[p] * float(costs.backward_s[p][0, j]) for p in both)
            once = sum(n * float(costs.once_forward_s[p][0, j]) for p, n in count.items())
            more = sum(n * float(costs.once_backward_s[p][0, j]) for p, n in count.items())
            forward.append(ahead)
            backward.append(back)
            last_forward.append(ahead + once)
            plain.append(base)
            last_backward.append(base + more)
        longest = max(forward) + max(backward)
        stages.append(longest + float(costs.send_s[0]))
        exposed.append(max(last_forward) - max(forward) + max(last_backward) - max(plain))
        saved = sum(n * float(costs.saved_bytes[0, r]) for r, n in enumerate(rungs))
        state = sum(n * float(costs.state_bytes[p][0]) for p, n in count.items())
        memory.append(state + float(held[s]) * saved + float(costs.fixed_bytes[0]))
    step = float(costs.max_weight[0]) * max(stages)
    step += float(costs.sum_weight[0]) * math.fsum(stages) + max(exposed)
    return step, max(memory)
