"""What no measurement can say: a step faster than its chips, or columns that contradict it."""

from __future__ import annotations

from autoshard.baselines import ideal_step_s
from autoshard.run_models import flops_per_token
from autoshard.run_table import Row
from autoshard.run_words import Unpriced
from autoshard.runs import Run

#: Times out of columns of one row agree within this; those of the built-in tables within 3 %.
AGREE = 0.10
#: The slowest built-in run reaches 5 % of its peak: below this it is the unit that is wrong.
SLOWEST = 0.001


def check(run: Run, row: Row) -> None:
    """Refuse a row whose measurement cannot be.

    Raises:
        Unpriced: its columns disagree, or its chips cannot have done this.
    """
    if run.step_time_s is None:
        return
    times = stated_times(run, row)
    if times and max(times.values()) > (1 + AGREE) * min(times.values()):
        said = ", ".join(f"{name} {_seconds(time)}" for name, time in times.items())
        raise Unpriced("columns disagree", f"the time of a step is, by column: {said}.")
    share = ideal_step_s(run, recompute=False) / run.step_time_s
    if SLOWEST <= share <= 1:
        return
    chip = run.problem.cluster.chip.name
    said = f"a step of {_seconds(run.step_time_s)} is {share * 100:.3g} % of the peak of {chip}"
    if share > 1:
        raise Unpriced("faster than the chip's peak", f"{said}.")
    raise Unpriced("slower than 0.1 % of the peak", f"{said}; its unit may be wrong.")


def stated_times(run: Run, row: Row) -> dict[str, float]:
    """Seconds of a step by each column of a row that says them."""
    tokens = run.problem.workload.global_batch_tokens
    chips = row.count("n_chips") or run.problem.cluster.chips
    times = {}
    if step_s := row.number("step_time_s"):
        times["step_time_s"] = step_s
    if rate := row.number("tokens_per_s_per_chip"):
        times["tokens_per_s_per_chip"] = tokens / (rate * chips)
    convention = row.text("tflops_convention")
    flops = flops_per_token(run.problem.model, run.problem.workload.seq_len, convention)
    if flops and (tflops := row.number("tflops_per_chip")):
        times["tflops_per_chip"] = tokens * flops / (tflops * 1e12 * chips)
    return times


def _seconds(time: float) -> str:
    return f"{time:.4g} s"
