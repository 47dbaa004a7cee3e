"""The ``calibrated`` profile: what training runs achieve, for one software stack."""

from __future__ import annotations

from autoshard.costmodels.calibrated_comms import CalibratedComms
from autoshard.costmodels.calibrated_compute import CalibratedCompute
from autoshard.costmodels.calibrated_memory import CalibratedMemory
from autoshard.costmodels.calibrated_overlap import CalibratedOverlap
from autoshard.costmodels.calibration import Calibration, shipped_calibration
from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.constants import in_words, prior
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Evidence, Profile
from autoshard.costmodels.schedules import schedule_by_name
from autoshard.costmodels.setting import Setting
from autoshard.costmodels.stack import Stack, stack_by_name
from autoshard.costmodels.uncertainty import unmeasured


def calibrated(stack: Stack | str, calibration: Calibration | None = None) -> Profile:
    """The calibrated profile of a stack.

    Args:
        stack: a stack or its name.
        calibration: your own; the one that comes with autoshard otherwise.

    Raises:
        UnknownName: there is no such stack.
    """
    stack = stack_by_name(stack) if isinstance(stack, str) else stack
    known = shipped_calibration() if calibration is None else calibration
    fitted = known.fitted

    def evidence(problem: Problem, plans: Candidates) -> Evidence:
        chip, low = problem.cluster.chip, problem.workload.precision != "bf16"
        guessed = fitted.guessed(chip, stack, low_precision=low)
        note = known.note(problem, stack)
        setting = Setting.of(problem, plans)
        return Evidence(
            interval=known.interval(problem, stack),
            guessed=tuple(_guess(key, chip.kind) for key in guessed),
            unmeasured=tuple(unmeasured(setting, stack, known.ranges.get(chip.kind, {}))),
            notes=(note,) if note else (),
        )

    return Profile(
        name=f"calibrated/{stack.name}",
        compute=CalibratedCompute(stack=stack, fitted=fitted),
        comms=CalibratedComms(stack=stack, fitted=fitted),
        overlap=CalibratedOverlap(stack=stack, fitted=fitted),
        memory=CalibratedMemory(stack=stack),
        pipeline=schedule_by_name(stack.schedules[0]),
        ladder=stack.ladder,
        recipe=stack.recipe,
        evidence=evidence,
        schedules=stack.schedules,
        chips=stack.chips,
        origin=known.said,
        description=f"achieved rates, fitted to {known.words}; {stack.description}",
    )


def _guess(key: str, kind: str) -> str:
    """A constant that no run fixes, and where its value is from."""
    what = prior(key, kind)
    return f"{in_words(key, what.value)} ({what.source})"
