"""The book's plans come out of the search, with pipeline, context and sequence splits switched on.

Sources: applied-training.md of the scaling book (70B on one pod) and its worked problems, which
print no answer (70B on four pods, 405B on eight): their plans are those of a brute force.
"""

import pytest

import autoshard
from autoshard.costmodels.plan import Plan
from autoshard.front import FrontPoint


def fastest(model: str, pods: int, **options: object) -> FrontPoint:
    """The fastest point of a model on v5p pods with the defaults of the command."""
    return autoshard.solve(model, pods=pods, points=1, **options).points[0]  # type: ignore[arg-type]


def degrees(plan: Plan) -> tuple[int, ...]:
    """(dp, batch_split, seq_split, tp, pp, cp, chips)."""
    return (
        plan.dp,
        plan.batch_split,
        plan.seq_split,
        plan.tp,
        plan.pp,
        plan.cp,
        plan.chips_used,
    )


PLANS = [
    ("llama3-70b", 1, (1, 1024, 2, 4, 1, 1, 8192), "compute"),
    ("llama3-70b", 4, (4, 256, 4, 8, 1, 1, 32768), "communication"),
    ("llama3-405b", 8, (8, 128, 4, 16, 1, 1, 65536), "communication"),
]


@pytest.mark.parametrize(("model", "pods", "plan", "binding"), PLANS)
def test_the_fastest_plan_is_the_textbook_plan_and_is_proven(
    model: str, pods: int, plan: tuple[int, ...], binding: str
) -> None:
    point = fastest(model, pods)
    assert degrees(point.plan) == plan
    assert point.binding == binding
    assert point.proven
    assert point.gap <= 1e-3
    assert point.plan.microbatches == 1


def test_the_fastest_plan_is_the_first_point_of_the_whole_front() -> None:
    front = autoshard.solve("llama3-70b", pods=1, points=6)
    assert degrees(front.points[0].plan) == PLANS[0][2]
    times = [p.step_time_s for p in front.points]
    sizes = [p.memory_bytes for p in front.points]
    assert times == sorted(times)
    assert sizes == sorted(sizes, reverse=True)
    assert all(p.proven for p in front.points)


def test_405b_is_communication_bound_by_the_books_ratio_with_the_two_matrix_layer() -> None:
    """1664 / 1336.42: FSDP 4DF/(Y W M_X) over 4BDF/(N C), at 512 x 16 on 8,192 chips a pod."""
    point = fastest("llama3-405b", 8, costs=autoshard.textbook(layer="mlp2"))
    assert degrees(point.plan) == PLANS[2][2]
    assert point.comms_over_compute == pytest.approx(1.2451171875, rel=1e-9)
    gathers_s = 126 * 3 * 4 * 16384 * 53248 / (16 * 1.8e11 * 2)
    assert point.breakdown["comms_s"]["fsdp"] == pytest.approx(gathers_s, rel=1e-9)


def test_a_70b_pod_leaves_768_chips_idle_and_says_which_batch_fills_them() -> None:
    front = autoshard.solve("llama3-70b", pods=1, points=1)
    assert front.notes[0].startswith("768 of 8,960 chips are idle")
    assert "8,960 = 2^8 * 5 * 7" in front.notes[0]
    assert "A batch of 1,120 sequences (4,587,520 tokens) could fill them" in front.notes[1]


def test_the_batch_that_is_said_to_fill_a_pod_fills_it() -> None:
    front = autoshard.solve("llama3-70b", pods=1, points=1, global_batch_seqs=1120)
    assert front.points[0].plan.chips_used == 8960
    assert front.points[0].plan.tp == 4
    assert front.notes == ()


@pytest.mark.parametrize(("millions", "fsdp", "tp"), [(4, 512, 16), (8, 512, 16), (16, 1024, 8)])
def test_the_405b_plan_depends_on_the_batch(millions: int, fsdp: int, tp: int) -> None:
    """TP 16 with 4M and 8M tokens, TP 8 with 16M (the batch of the Llama 3 paper)."""
    plan = fastest("llama3-405b", 8, global_batch_tokens=millions * 2**20).plan
    assert (plan.dp, plan.fsdp, plan.tp) == (8, fsdp, tp)


def test_on_a_slice_that_can_be_scheduled_a_pipeline_takes_the_factor_of_three() -> None:
    """16x16x24 = 2^11 * 3: without pipelining the brute force finds 1024 x 4 on 4,096 chips."""
    flat = autoshard.solve("llama3-70b", topology="16x16x24", points=1, where="pp == 1")
    plan = flat.points[0].plan
    assert (plan.fsdp, plan.tp, plan.pp, plan.chips_used) == (1024, 4, 1, 4096)
    free = autoshard.solve("llama3-70b", topology="16x16x24", points=1)
    assert (free.points[0].plan.pp, free.points[0].plan.chips_used) == (3, 6144)
    assert free.points[0].step_time_s < flat.points[0].step_time_s


def test_weights_gathered_once_a_step_would_leave_the_textbook() -> None:
    """Part of the reason for ZeRO-3: with ZeRO-2 allowed, pipelining divides the gathers."""
    recipe = autoshard.Recipe(reshard=(2, 3))
    point = fastest("llama3-405b", 8, recipe=recipe)
    assert point.plan.reshard == 2
    assert point.plan.pp > 1
    assert point.step_time_s < fastest("llama3-405b", 8).step_time_s
