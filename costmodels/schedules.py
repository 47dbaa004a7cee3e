"""The other schedules, GPipe and ZB-H1, and the choice of one for a profile.

Against a discrete-event simulation (tests/test_pipeline.py) both step times are exact for equal
stages (ZB-H1: of ``F = B = W``); each class says how far off it is for others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import Column, PipelineCost
from autoshard.costmodels.errors import CostModelError, SpecError, UnknownName
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Evidence, PipelineModel, Profile
from autoshard.costmodels.textbook_pipeline import OneForwardOneBackward


@dataclass(frozen=True, slots=True, kw_only=True)
class GPipe:
    """All forward passes, then all backward passes: as fast as 1F1B, every microbatch is held.

    Huang et al. 2019 (arXiv 1811.06965), section 2.3. With ``vpp > 1`` all microbatches go through
    one chunk before the next: the breadth-first pipeline of Lamy-Poirier 2022 (arXiv 2211.05953),
    MaxText's circular pipeline, PyTorch's ``LoopedBFS``.

    All microbatches go forward before the first goes back, so that ``m - 1/v`` times a step waits
    for ``max F + max B``, where the formula has ``max(F + B)``. It is exact where one stage is the
    slowest in both passes. Where one is the slowest forward and another backward (a heavy head, a
    stage of much recompute) it is too fast, by at most ``1 - max(F + B) / (max F + max B)``: with
    ``B`` about ``2 F``, 17 % for stages that differ twofold and 3 % for a tenth.
    """

    name: str = "textbook-gpipe"
    role: str = "pipeline"
    covers: frozenset[str] = frozenset({"dense"})

    def __call__(self, candidates: Candidates) -> PipelineCost:
        """Weights of the slowest stage and of the sum of stages, ``[n]``: those of 1F1B."""
        return OneForwardOneBackward()(candidates)

    def in_flight(self, pp: int, vpp: int, microbatches: int) -> Column:
        """Microbatches whose activations stage ``s`` holds at its peak, ``[pp]``.

        All of them; without a pipeline, each goes back before the next goes forward.
        """
        return np.full(pp, float(microbatches) if pp > 1 else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroBubble:
    """ZB-H1: the weight gradients ``W`` of a microbatch wait, and fill what 1F1B leaves idle.

    Qi et al. 2023 (arXiv 2401.10241), section 2.1: of a backward pass only the input gradients
    ``B`` hold up the stage before; stage ``s`` runs each ``W`` ``s`` microbatches later. The bubble
    of equal stages is ``(p - 1) (F + B - W)``; with fewer microbatches than stages there is less
    ``W`` to fill it, and it is ``(p - 1) (F + B) - (m - 1) W``.

    Only the stage's time ``t = F + B + W`` is known here, so ``W`` is taken as its
    ``weight_share``: a third where ``F = B = W``, which leaves a third of 1F1B's bubble. Where
    ``W`` is less (attention, and communication that is not hidden, lengthen ``F`` and ``B`` alone),
    the price is too fast, for equal stages by at most ``(1/3 - w) / (1 - w)`` of the step with
    ``w`` the share of ``W`` (or of a shorter pass): 5 % at 0.3, a ninth at 1/4 (block remat). With
    the right share it is exact while ``W`` is the shortest. Where some stages are longer than
    others, the worst found is 1 % too fast for stages a tenth apart, 5 % for twofold, if all passes
    of a stage are longer alike; 4 % and 20 % if each differs on its own.

    Two things it does not do. There are no virtual stages: ZB-V and the interleaved ZB1P are other
    schedules. And remat saves nothing, so that no plan of several stages has it: between ``B`` and
    ``W`` a stage holds the inputs of all its matmuls, whatever it kept before, and the last stage
    has ``p - 1`` microbatches there. (PyTorch would recompute twice: torchtitan issue 773.)
    """

    virtual: ClassVar[bool] = False
    remat: ClassVar[bool] = False

    name: str = "textbook-zero-bubble"
    role: str = "pipeline"
    covers: frozenset[str] = frozenset({"dense"})
    weight_share: float = 1.0 / 3.0

    def __call__(self, candidates: Candidates) -> PipelineCost:
        """Weights of the slowest stage and of the sum of stages, ``[n]``.

        Raises:
            CostModelError: a candidate has virtual stages.
        """
        if (candidates.vpp > 1).any():
            raise CostModelError(f"cost model {self.name!r}: ZB-H1 has no virtual stages.")
        others = np.maximum(candidates.pp - 1, 1)
        filled = np.minimum(candidates.microbatches - 1, others) / others
        share = 1.0 - self.weight_share * (1.0 + filled)
        return PipelineCost(max_weight=candidates.microbatches - share, sum_weight=share)

    def in_flight(self, pp: int, vpp: int, microbatches: int) -> Column:
        """Microbatches that stage ``s`` holds at its peak, ``[pp]``: as many on every stage.

        The first stage holds what it does under 1F1B; later ones fill up with microbatches that
        wait for ``W``. Each counts in full until then, though ``W`` needs a little less than ``B``.
        """
        return np.full(pp, float(min(pp, microbatches)))


#: The schedules that ``--schedule`` names.
SCHEDULES: dict[str, Callable[[], PipelineModel]] = {
    "1f1b": OneForwardOneBackward,
    "gpipe": GPipe,
    "zero-bubble": ZeroBubble,
}


def schedule_by_name(name: str) -> PipelineModel:
    """A schedule from its name.

    Raises:
        UnknownName: there is no such schedule.
    """
    if not isinstance(name, str) or name not in SCHEDULES:
        raise UnknownName("schedule", str(name), SCHEDULES)
    return SCHEDULES[name]()


def schedule_name(profile: Profile) -> str:
    """The name of a profile's schedule; that of the cost model where it is someone else's."""
    known = {made: name for name, made in SCHEDULES.items()}
    return known.get(type(profile.pipeline), profile.pipeline.name)


def scheduled(profile: Profile, name: str) -> Profile:
    """The profile under another schedule.

    Its answers carry no interval: the runs that a profile is measured by have its own schedule.

    Raises:
        UnknownName: there is no such schedule.
        SpecError: the profile has a pipeline model of its own, or its stack does not run it.
    """
    model = schedule_by_name(name)
    if schedule_name(profile) not in SCHEDULES:
        raise SpecError(
            f"schedule = {name!r} would replace {profile.pipeline.name!r}, the pipeline model of "
            f"{profile.name}; leave out one."
        )
    if profile.schedules and name not in profile.schedules:
        raise SpecError(
            f"{profile.name} does not run schedule {name!r}: that stack has "
            f"{' and '.join(profile.schedules)}; the textbook costs have every schedule."
        )
    if schedule_name(profile) == name:
        return profile

    def evidence(problem: Problem, plans: Candidates) -> Evidence:
        return dataclasses.replace(profile.evidence(problem, plans), interval=None)

    return dataclasses.replace(profile, pipeline=model, evidence=evidence)
