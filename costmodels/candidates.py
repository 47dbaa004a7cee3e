"""Candidate plans as columns: what a cost model is vectorised over."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

IntColumn = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """``n`` candidate meshes, each column an int64 array of shape ``[n]``.

    Names are those of :class:`~autoshard.costmodels.plan.Plan`; ``layout`` indexes
    ``problem.cluster.layouts``. Layers per stage and remat are not here: they are what the search
    decides under each candidate.
    """

    dp: IntColumn
    batch_split: IntColumn
    seq_split: IntColumn
    tp: IntColumn
    pp: IntColumn
    vpp: IntColumn
    cp: IntColumn
    microbatches: IntColumn
    micro_batch_size: IntColumn
    reshard: IntColumn
    pods: IntColumn
    layout: IntColumn

    def __len__(self) -> int:
        return len(self.dp)

    @property
    def fsdp(self) -> IntColumn:
        """Shards of the training state."""
        return self.batch_split * self.seq_split

    @property
    def chips_used(self) -> IntColumn:
        """Chips of each candidate."""
        return self.dp * self.batch_split * self.seq_split * self.tp * self.pp * self.cp

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Candidates:
        """The candidates at those rows."""
        return Candidates(**{name: getattr(self, name)[rows] for name in COLUMNS})

    def replace(self, **columns: IntColumn) -> Candidates:
        """The same candidates with some columns exchanged."""
        return Candidates(**{name: columns.get(name, getattr(self, name)) for name in COLUMNS})

    @classmethod
    def concatenate(cls, parts: list[Candidates]) -> Candidates:
        """One table out of several."""
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in COLUMNS})


COLUMNS: tuple[str, ...] = tuple(f.name for f in fields(Candidates))
