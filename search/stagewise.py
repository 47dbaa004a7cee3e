"""The least memory of a row with whole layers on each stage, exact and vectorised.

With a cap on memory, every stage picks alone: how many layers can it take? A mesh is possible where
the stages together take all of them.
"""

from __future__ import annotations

import numpy as np

from autoshard.costmodels.costs import Column
from autoshard.costmodels.profile import Profile
from autoshard.search.rows import Rows


def smallest_bytes(rows: Rows, profile: Profile) -> Column:
    """The least memory of any plan of each row, whole layers per stage, ``[n]``.

    Every layer on its smallest rung; a stage within ``B`` bytes then holds
    ``(B - ends) // (state + in_flight * saved)`` layers. Exact up to a relative 1e-12.
    """
    least = np.empty(len(rows))
    costs, c = rows.costs, rows.candidates
    state, saved = costs.state_bytes, costs.saved_bytes.min(axis=1)
    for pp in np.unique(c.pp).tolist():
        picked = np.nonzero(c.pp == pp)[0]
        pairs, which = np.unique(
            np.stack([c.vpp[picked], c.microbatches[picked]]), axis=1, return_inverse=True
        )
        held = np.stack([profile.pipeline.in_flight(pp, v, m) for v, m in pairs.T.tolist()])
        per_layer = state["layer"][picked, None] + held[which.reshape(-1)] * saved[picked, None]
        ends = np.zeros((len(picked), pp))
        ends[:, 0] += state["embedding"][picked]
        ends[:, -1] += state["head"][picked]
        even = -(-rows.n_layers // pp)
        high = (even * per_layer + ends).max(axis=1)
        # Each stage has as many layers as chunks, so no budget below these will do.
        least_layers = c.vpp[picked].astype(np.float64)
        low = (least_layers[:, None] * per_layer + ends).max(axis=1)
        high = np.maximum(high, low)
        low = np.maximum(low * (1.0 - 1e-12), 0.0)
        for _ in range(44):
            if not (high > low * (1.0 + 1e-12)).any():
                break
            middle = 0.5 * (low + high)
            # A layer of no bytes at all fits as often as there are layers.
            fits = np.floor((middle[:, None] - ends) / np.maximum(per_layer, 1e-9) * (1.0 + 1e-13))
            enough = (fits >= least_layers[:, None]).all(axis=1)
            enough &= fits.sum(axis=1) >= rows.n_layers
            high = np.where(enough, middle, high)
            low = np.where(enough, low, middle)
        least[picked] = high + costs.fixed_bytes[picked]
    return least
