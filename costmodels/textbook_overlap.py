"""The two overlap rules of the scaling book (training.md, "Combining FSDP and tensor parallelism").

A pass takes the largest of several linear forms of its compute seconds and its seconds on each
network resource. Editions 2 and 3 let every network work beside every other and beside compute
("max"); the first edition adds the networks up ("sum"). Both hide communication behind compute.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoshard.costmodels.costs import Column

RULES = ("max", "sum")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextbookOverlap:
    """``max``: the slowest of compute and each network. ``sum``: compute, or all networks."""

    rule: str = "max"
    name: str = "textbook-overlap"
    role: str = "overlap"
    covers: frozenset[str] = frozenset({"dense"})

    def __call__(self, resources: tuple[str, ...]) -> Column:
        """Forms ``[j, 1 + k]``: weights of compute and of each resource in each form."""
        if self.rule == "max":
            return np.eye(1 + len(resources))
        forms = np.ones((2, 1 + len(resources)))
        forms[0, 1:] = 0.0
        forms[1, 0] = 0.0
        return forms
