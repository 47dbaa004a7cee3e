"""1F1B and interleaved 1F1B: step time from stage times, and microbatches in flight.

Sources: gpus.md describes the bubble without a formula; the idle fraction (p-1)/(m+p-1) and the 1/v
of interleaving are Narayanan et al. 2021 (arXiv 2104.04473, section 2.2). Against a discrete-event
simulation (tests/test_pipeline.py) the step time is exact for equal stages; for uneven ones 1F1B is
never too fast, and interleaving can be, by up to 12 % where stages differ twofold.

Only stages are known here, and not how a stage of whole layers falls into chunks. Where the first
and the last chunk alone are lighter, the price is up to 3 % too slow. Where every stage has one
longer chunk, it is too fast: by up to 15 % for chunks of 2 layers and 1, 4 % for 4 and 3, less than
1 % for 8 and 7. For one round of ``pp`` microbatches, ``sum over chunks of m max(t_chunk)`` and
``pp - 1`` times the longest chunk would be exact there; every further round adds to that.

So the search deals equal chunks to a full stage (autoshard/search/interleaving.py). Stages of a
layer more or less than that are priced at most 8 % too fast and 19 % too slow with chunks of 2
layers, 4 and 12 % with 4, 2 and 9 % with 8, and never too fast with chunks of one.
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
