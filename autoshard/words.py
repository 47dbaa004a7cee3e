"""A plan, its bottleneck and its proof in the words that reports and charts share."""

from __future__ import annotations

from autoshard.costmodels.plan import Plan
from autoshard.costmodels.remat import TEXTBOOK_LADDER
from autoshard.front import FrontPoint, ParetoFront
from autoshard.sizes import format_seconds

DAY_S = 86_400.0
GIB = float(2**30)


def plan_words(plan: Plan) -> str:
    """``FSDP 2,048 (1,024 batch x 2 sequence) x TP 4``."""
    parts = [f"DP {plan.dp:,}"] if plan.dp > 1 else []
    if plan.fsdp > 1:
        split = f" ({plan.batch_split:,} batch x {plan.seq_split:,} sequence)"
        parts.append(f"FSDP {plan.fsdp:,}" + (split if plan.seq_split > 1 else ""))
    for name, degree in (("TP", plan.tp), ("CP", plan.cp), ("EP", plan.ep)):
        if degree > 1:
            parts.append(f"{name} {degree:,}")
    if plan.pp > 1:
        parts.append(f"PP {plan.pp}" + (f" ({plan.vpp} virtual each)" if plan.vpp > 1 else ""))
    return " x ".join(parts) or "no parallelism"


def microbatch_words(plan: Plan) -> str:
    """``128 microbatches of 1 sequence``."""
    many = "" if plan.microbatches == 1 else "es"
    sequences = "sequence" if plan.micro_batch_size == 1 else "sequences"
    return f"{plan.microbatches:,} microbatch{many} of {plan.micro_batch_size:,} {sequences}"


def schedule_words(front: ParetoFront) -> str:
    """`` Pipeline schedule: 1f1b.`` where a plan of the front has a pipeline."""
    name = front.problem.get("costs", {}).get("schedule")
    piped = any(point.plan.pp > 1 for point in front.points)
    return f" Pipeline schedule: {name}." if piped and name else ""


def remat_words(plan: Plan) -> str:
    """Layers per rung over all stages, ``42 save_matmuls + 84 checkpoints_2``.

    ``by stage`` follows where stages keep different things.
    """
    uneven = len(_rungs(plan)) > 1 and any(stage != plan.remat[0] for stage in plan.remat)
    words = " + ".join(f"{layers} {name}" for name, layers in _rungs(plan).items())
    return words + (", by stage" if uneven else "")


def remat_short(plan: Plan) -> str:
    """The same for a table: ``42 save_matmuls + 84 ckpt_2``, the largest two of more."""
    rungs = _rungs(plan)
    largest = sorted(rungs, key=lambda name: -rungs[name])[:2]
    words = [f"{rungs[name]} {name}" for name in rungs if name in largest]
    rest = sum(layers for name, layers in rungs.items() if name not in largest)
    return " + ".join([*words, *([f"{rest} other"] if rest else [])]).replace("checkpoints", "ckpt")


def _rungs(plan: Plan) -> dict[str, int]:
    """Layers per rung over all stages, in the order of the ladder."""
    order = {rung.name: place for place, rung in enumerate(TEXTBOOK_LADDER)}
    names = {name for stage in plan.remat for name, layers in stage.items() if layers}
    return {
        name: sum(stage.get(name, 0) for stage in plan.remat)
        for name in sorted(names, key=lambda name: (order.get(name, len(order)), name))
    }


def binding_words(point: FrontPoint) -> str:
    """``compute-bound``, or ``communication-bound by 1.19x (fsdp over ici data axes)``.

    A bubble says its share: ``bubble-bound, 23.5 % of the step (pipeline bubble of ...)``.
    """
    if point.binding == "communication":
        ratio = _ratio(point)
        return f"communication-bound{ratio and f' by {ratio}'} ({point.binding_by})"
    if point.binding == "bubble":
        share = _bubble_share(point)
        return f"bubble-bound{share and f', {share} of the step'} ({point.binding_by})"
    if point.binding == "hbm":
        return f"HBM-bound ({point.binding_by})"
    return f"{point.binding}-bound"


def binding_short(point: FrontPoint) -> str:
    """The same for a table: ``compute``, ``fsdp 1.19x``, ``bubble 23.5 %``."""
    if point.binding == "communication":
        return f"{point.binding_by.split(' ', 1)[0]} {_ratio(point)}".rstrip()
    if point.binding == "bubble":
        return f"bubble {_bubble_share(point)}".rstrip()
    return point.binding


def _ratio(point: FrontPoint) -> str:
    """Communication over compute, where it is what binds: on a network, in the passes, above 1."""
    ratio = round(point.comms_over_compute, 2)
    return f"{ratio:.2f}x" if ratio > 1 and " over " in point.binding_by else ""


def _bubble_share(point: FrontPoint) -> str:
    idle_s = float(point.breakdown.get("idle_s", 0.0))
    return percent(idle_s / point.step_time_s) if idle_s else ""


def proof_words(point: FrontPoint, gap: float, *, complete: bool = True) -> str:
    """``proven within 0.1 %``, or how far the proof has come.

    Where the search was not ``complete``, a proof is for the memory that the plan needs.
    """
    if point.proven:
        words = f"proven within {percent(gap)}" if gap else "proven optimal"
        return words if complete else f"{words} for its memory"
    return f"not proven: at most {percent(point.gap)} slower than the best"


def interval_words(point: FrontPoint) -> str:
    """`` (4 of 5 measured: 4.9 to 5.8 s)``; nothing where the error of the costs is not known."""
    if point.interval_s is None:
        return ""
    low, high = (format_seconds(seconds) for seconds in point.interval_s)
    return f" (4 of 5 runs measure {low} to {high})"


def chips_words(plan: Plan, chips: int) -> str:
    """``8,192 of 8,960 chips``."""
    if plan.chips_used == chips:
        return "one chip" if chips == 1 else f"all {chips:,} chips"
    return f"{plan.chips_used:,} of {chips:,} chips"


def percent(share: float) -> str:
    """``0.1 %``, with as many digits as a small share needs."""
    return f"{share * 100:.3g} %"


def count_words(count: float) -> str:
    """``15T`` and ``4.2M`` where that is exact, all digits where not."""
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if count >= factor and round(count / factor, 2) * factor == count:
            return f"{count / factor:g}{unit}"
    return f"{count:,.0f}"


def training_days(front: ParetoFront, point: FrontPoint, tokens: float) -> float:
    """Days that a training run of ``tokens`` takes at this step time, without interruptions."""
    steps = tokens / float(front.problem["workload"]["global_batch_tokens"])
    return steps * point.step_time_s / DAY_S


def days_words(days: float) -> str:
    """Days with the digits that matter."""
    return f"{days:,.0f}" if days >= 100 else f"{days:.1f}" if days >= 1 else f"{days:.2g}"


def time_scale(front: ParetoFront) -> tuple[str, float, int]:
    """Unit, seconds in it and decimals for the step times of a front: ms below one second."""
    fastest = front.points[0].step_time_s
    if fastest >= 1:
        return "s", 1.0, 3 if fastest < 100 else 1
    return "ms", 1e-3, 1 if fastest >= 0.01 else 4
