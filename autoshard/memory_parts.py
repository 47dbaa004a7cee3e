"""Where the memory of one plan goes: bytes by kind on a chip of each pipeline stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.costs import MemoryCost
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.remat import Rung, layers_by_rung

ByKind = Callable[[Problem, Candidates, tuple[Rung, ...]], Mapping[str, MemoryCost]]

#: The kinds of a memory model that does not say what its bytes are for.
UNNAMED = ("state", "activations in flight", "everything else")


def memory_parts(
    problem: Problem, profile: Profile, plan: Plan, row: Candidates
) -> dict[str, tuple[float, ...]]:
    """Bytes of each kind on a chip of each stage, ``[pp]`` each; over kinds they are the peak.

    Args:
        problem: the question.
        profile: the cost models that answered it.
        plan: the plan.
        row: its degrees and layout as a table of one candidate.

    Kinds are those of :data:`autoshard.costmodels.costs.MEMORY_KINDS`; of a memory model without
    ``by_kind``, :data:`UNNAMED`.
    """
    whole = profile.price_memory(problem, row)
    by_kind: ByKind | None = getattr(profile.memory, "by_kind", None)
    kinds = _unnamed(whole) if by_kind is None else by_kind(problem, row, profile.ladder)
    # Where the schedule undoes remat, a kind keeps what it does on the rung that keeps most.
    kept, largest = profile.kept_bytes(row, whole), int(whole.saved_bytes[0].argmax())
    undone = bool((kept != whole.saved_bytes).any())

    rungs = layers_by_rung(plan, profile.ladder).astype(np.float64)
    layers = rungs.sum(axis=1)
    held = profile.in_flight([(plan.pp, plan.vpp, plan.microbatches)])[0]
    parts = {}
    for name, cost in kinds.items():
        saved = cost.saved_bytes[0]
        each = layers * saved[largest] if undone else rungs @ saved
        stages = layers * cost.layer_state_bytes[0] + held * each + cost.fixed_bytes[0]
        stages[0] += cost.embedding_state_bytes[0]
        stages[-1] += cost.head_state_bytes[0]
        if stages.any():
            parts[name] = tuple(stages.tolist())
    return parts


def _unnamed(whole: MemoryCost) -> dict[str, MemoryCost]:
    """State, activations and the rest, as every memory model has them."""
    none, unsaved = np.zeros_like(whole.fixed_bytes), np.zeros_like(whole.saved_bytes)
    ends = {
        "embedding_state_bytes": whole.embedding_state_bytes,
        "head_state_bytes": whole.head_state_bytes,
    }
    nothing = dict.fromkeys(ends, none)
    state, activations, rest = UNNAMED
    return {
        state: MemoryCost(
            layer_state_bytes=whole.layer_state_bytes,
            **ends,
            saved_bytes=unsaved,
            fixed_bytes=none,
        ),
        activations: MemoryCost(
            layer_state_bytes=none, **nothing, saved_bytes=whole.saved_bytes, fixed_bytes=none
        ),
        rest: MemoryCost(
            layer_state_bytes=none, **nothing, saved_bytes=unsaved, fixed_bytes=whole.fixed_bytes
        ),
    }
