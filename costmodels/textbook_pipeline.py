"""1F1B and interleaved 1F1B: step time from stage times, and microbatches in flight.

Sources: gpus.md describes the bubble without a formula; the idle fraction (p-1)/(m+p-1) and the 1/v
of interleaving are Narayanan et al. 2021 (arXiv 2104.04473, section 2.2). Against a discrete-event
simulation (tests/test_pipeline.py) the step time is exact for equal stages; for uneven ones 1F1B is
never too fast, and interleaving can be, by up to 12 % where stages differ twofold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import Column, PipelineCost


@dataclass(frozen=True, slots=True, kw_only=True)
class OneForwardOneBackward:
    """``step = m max(t) + (sum(t) - max(t)) / v``; interleaved where ``vpp > 1``."""

    name: str = "textbook-1f1b"
    role: str = "pipeline"
    covers: frozenset[str] = frozenset({"dense"})

    def __call__(self, candidates: Candidates) -> PipelineCost:
        """Weights of the slowest stage and of the sum of stages, ``[n]``."""
        share = 1.0 / candidates.vpp
        return PipelineCost(max_weight=candidates.microbatches - share, sum_weight=share)

    def in_flight(self, pp: int, vpp: int, microbatches: int) -> Column:
        """Microbatches whose activations stage ``s`` holds at its peak, ``[pp]``.

        1F1B warms up with ``pp - s`` forward passes. Interleaved, stage ``s`` runs
        ``2 (pp - s - 1) + (v - 1) pp + 1`` chunks ahead, each a ``1/v`` of the stage (Megatron-LM's
        schedule).
        """
        stage = np.arange(pp, dtype=np.float64)
        if vpp == 1:
            ahead = pp - stage
        else:
            ahead = (2.0 * (pp - stage - 1.0) + (vpp - 1.0) * pp + 1.0) / vpp
        return np.minimum(ahead, float(microbatches))
