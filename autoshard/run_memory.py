"""The memory of published runs as the calibrated model predicts it."""

from __future__ import annotations

import dataclasses

import numpy as np

from autoshard.costmodels.calibrated_memory import CalibratedMemory, metric_bytes
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.textbook_pipeline import OneForwardOneBackward
from autoshard.runs import Run

#: A GPU sold as 80 GB has 80 GiB, of which the driver keeps 0.8 %; from B200 on, GB are 1e9 bytes.
_GIB_PER_GB = 2**30 / 1e9 * 0.992
_IN_GIB = ("a100", "h100", "h200")


def predicted_memory(run: Run) -> float | None:
    """Bytes of the fullest chip, as the driver counts them.

    None where the model does not cover the run: tensors on the host, stages without layers.
    """
    if "host-offload" in run.flags:
        return None
    names = [name for name, share in run.remat.items() if share > 0]
    ladder = tuple(rung for rung in run.stack.ladder if rung.name in names)
    stack = dataclasses.replace(run.stack, ladder=ladder)
    cost = CalibratedMemory(stack=stack)(run.problem, run.candidates, ladder)
    pp, vpp, microbatches = (
        int(column[0])
        for column in (run.candidates.pp, run.candidates.vpp, run.candidates.microbatches)
    )
    n_layers = run.problem.model.n_layers
    if n_layers < pp:
        return None
    held = OneForwardOneBackward().in_flight(pp, vpp, microbatches)
    saved = sum(
        run.remat[rung.name] * float(cost.saved_bytes[0, k]) for k, rung in enumerate(ladder)
    )
    # Layers dealt evenly; those left over go to the stages between the ends.
    layers = np.full(pp, n_layers // pp)
    order = [*range(1, pp - 1), pp - 1, 0][:pp] if pp > 1 else [0]
    layers[order[: n_layers % pp]] += 1
    bytes_ = layers * (cost.layer_state_bytes[0] + held * saved) + cost.fixed_bytes[0]
    bytes_[0] += cost.embedding_state_bytes[0]
    bytes_[-1] += cost.head_state_bytes[0]
    return float(bytes_.max())


def comparable_memory(run: Run, predicted_bytes: float) -> float | None:
    """The prediction under the metric of the run's own figure; None where it has none."""
    if run.memory_bytes is None:
        return None
    return metric_bytes(run.stack, predicted_bytes, run.memory_metric or "unnamed")


def usable_bytes(run: Run) -> float:
    """Bytes of a chip that a process can get."""
    return usable_chip_bytes(run.problem.cluster.chip, run.problem.capacity_bytes)


def usable_chip_bytes(chip: Chip, capacity_bytes: int) -> float:
    """What a process can get of a chip's memory of that size as it is sold."""
    in_gib = chip.kind == "tpu" or chip.name.startswith(_IN_GIB)
    return capacity_bytes * (_GIB_PER_GB if in_gib else 1.0)
