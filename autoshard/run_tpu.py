"""Rows of the TPU table as runs."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.stack import Stack
from autoshard.costmodels.workload import Workload
from autoshard.run_models import model_of
from autoshard.run_parts import (
    NOT_SCORED,
    flags_of,
    needed,
    one_candidate,
    per_microbatch,
    step_time,
    tokens_of,
)
from autoshard.run_remat import remat_of
from autoshard.run_table import Row
from autoshard.run_words import Unpriced, chip_of, precision_of, stack_of
from autoshard.runs import Run


def tpu_run(row: Row, source: str) -> Run:
    """A row of the TPU table.

    Raises:
        Unpriced: no cost model covers it, or too little is stated.
        SpecError: its values contradict each other.
    """
    model, assumed = model_of(row)
    notes = row.words("notes")
    if "do not count twice" in notes or "duplicate of" in notes:
        raise Unpriced("duplicate", "another row of the table has the same measurement.")
    chips, seq_len = needed(row, "n_chips", "chips not stated"), tokens_of(row)
    batch = needed(row, "global_batch_seqs", "batch not stated")
    stack = stack_of(row.text("framework"), row.count("year") or 0)
    if "tpu" not in stack.chips:
        raise Unpriced("framework not known", f"{stack.name} is no stack for TPUs.")
    precision, scaling = precision_of(row.text("precision"), stack)
    step_s, step_flags = step_time(row, model, batch * seq_len, chips)
    cluster = _cluster(row, chips)
    candidates, mesh_flags = _plan(row, cluster, batch)
    stack = _stack(row, stack, scaling)
    remat, remat_flags = remat_of(row.text("remat_policy"), stack, model, seq_len)
    flags = [*flags_of(row), *assumed, *mesh_flags, *remat_flags, *step_flags]
    memory = row.number("hbm_gb")
    return Run(
        id=row.id,
        source=source,
        # The table has no tiers: A where time or tokens/s are stated, B where they follow from
        # TFLOP/s under a convention.
        tier="B" if step_flags else "A",
        year=row.count("year") or 0,
        problem=Problem(
            model=model,
            cluster=cluster,
            workload=Workload(global_batch_seqs=batch, seq_len=seq_len, precision=precision),
            recipe=stack.recipe,
        ),
        candidates=candidates,
        remat=remat,
        stack=stack,
        flags=tuple(dict.fromkeys(flags)),
        step_time_s=step_s,
        memory_bytes=None if memory is None else memory * 2**30,
        memory_metric="" if memory is None else "unnamed",
        used_for="report" if NOT_SCORED.keys() & flags else "score",
    )


def _cluster(row: Row, chips: int) -> Cluster:
    """Slices of the stated torus, or of the default one of that size."""
    slices = row.count("n_pods_or_slices") or 1
    chip, torus = chip_of(row.text("chip")), _torus(row.text("topology"))
    if torus and math.prod(torus) * slices != chips:
        raise Unpriced(
            "chips contradictory",
            f"{slices} slices of {'x'.join(map(str, torus))} are not {chips} chips.",
        )
    if not torus:
        whole = Cluster.build(chip, chips=chips, pods=slices)
        torus = tuple(length for length in whole.topology if length > 1) or (1,)
    if chip.name == "ironwood":
        chip, torus, chips = _half(chip), _doubled(torus), 2 * chips
    elif chip.name == "v4p" and len(torus) < 3:
        torus = (*torus, *(1,) * (3 - len(torus)))
    return Cluster.build(chip, chips=chips, pods=slices, topology=torus)


def _torus(said: str) -> tuple[int, ...]:
    """The lengths out of ``v5p-128 (4x4x4 default)`` or ``tpu7x-4x8x8``."""
    found = re.search(r"(?<![\dx])\d+(?:x\d+){1,2}(?![\dx])", said.lower())
    return tuple(int(length) for length in found[0].split("x")) if found else ()


def _half(chip: Chip) -> Chip:
    """One of the two devices of an Ironwood chip, which is what JAX's meshes are made of.

    Each gathers its own weights and has its own memory: half of the chip's peaks, memory and
    network ports. The link between the two devices of a chip is not counted.
    """
    return dataclasses.replace(
        chip,
        name="ironwood-device",
        flops_per_s={name: rate / 2 for name, rate in chip.flops_per_s.items()},
        hbm_bytes=chip.hbm_bytes // 2,
        hbm_bytes_per_s=chip.hbm_bytes_per_s / 2,
        pod_axes=_doubled(tuple(sorted(chip.pod_axes))),
        ici_bytes_per_s=chip.ici_bytes_per_s / 2,
        dcn_bytes_per_s=chip.dcn_bytes_per_s / 2,
    )


def _doubled(torus: tuple[int, ...]) -> tuple[int, ...]:
    """The torus of devices: the first axis holds both of each chip."""
    return (2 * torus[0], *torus[1:])


def _plan(row: Row, cluster: Cluster, batch: int) -> tuple[Candidates, tuple[str, ...]]:
    """The mesh of a row; MaxText names its axes by network (ici, dcn) and by use."""
    fsdp = needed(row, "ici_fsdp", "mesh not stated")
    tp, data = row.count("ici_tensor") or 1, row.count("ici_data") or 1
    sequence, across = row.count("ici_context_or_sequence") or 1, row.count("dcn_fsdp") or 1
    pp = (row.count("ici_pipeline") or 1) * (row.count("dcn_pipeline") or 1)
    mesh = fsdp * tp * data * sequence * (row.count("ici_pipeline") or 1)
    if mesh != cluster.pod_chips:
        raise Unpriced(
            "mesh contradictory", f"a mesh of {mesh} on slices of {cluster.pod_chips} devices."
        )
    dcn = across * (row.count("dcn_data") or 1) * (row.count("dcn_pipeline") or 1)
    if dcn != cluster.pods:
        raise Unpriced("mesh contradictory", f"a DCN mesh of {dcn} over {cluster.pods} slices.")
    replicas, shards = data * (row.count("dcn_data") or 1), fsdp * across
    accumulated = row.count("grad_accum") or 1
    per_rank = per_microbatch(batch, replicas * shards, 1)
    if per_rank % accumulated:
        raise Unpriced(
            "batch does not divide", f"{per_rank} sequences are not {accumulated} microbatches."
        )
    flags = []
    if across > 1:
        flags.append("dcn-fsdp")
    notes = row.words("notes")
    if sequence > 1 and re.search(r"\bring|ulysses", notes):
        flags.append("ring-attention")
    return (
        one_candidate(
            dp=replicas,
            batch_split=shards,
            # The context axis shards weights too, and gathers keys and values: a split sequence.
            seq_split=sequence,
            tp=tp,
            pp=pp,
            microbatches=accumulated,
            micro_batch_size=per_rank // accumulated,
            reshard=3,
            pods=cluster.pods,
            layout=_layout(cluster, tp),
        ),
        tuple(flags),
    )


def _layout(cluster: Cluster, tp: int) -> int:
    """The layout whose tensor axes hold ``tp``: of that very size, else the fewest axes."""
    axes, layouts = cluster.torus, cluster.layouts
    lengths = [axis.length for axis in axes]
    exact = [
        side
        for size in range(1, len(axes))
        for side in itertools.combinations(range(len(axes)), size)
        if math.prod(lengths[i] for i in side) == tp
    ]
    wanted = len(exact[0]) if exact else 0
    if tp > 1 and not exact:
        longest = sorted(lengths, reverse=True)
        wanted = next((k for k in range(1, len(axes)) if math.prod(longest[:k]) >= tp), 1)

    def rank(number: int) -> tuple[bool, bool, int]:
        side = layouts[number].tensor_axes
        return len(side) != wanted, tp > 1 and side not in exact, number

    return min(range(len(layouts)), key=rank)


def _stack(row: Row, stack: Stack, scaling: str) -> Stack:
    """The stack as the row runs it."""
    notes, precision = row.words("notes"), row.words("precision")
    # Before flash attention came to a framework, it wrote the score matrix.
    unfused = re.search(r"no flash attention|attention was not flash|unfused", notes)
    framework = row.words("framework")
    return dataclasses.replace(
        stack,
        name="torchprime" if re.search("torch|xla", framework) else stack.name,
        balanced="no causal load balancing" not in notes,
        recipe=_recipe(stack.recipe, precision),
        attention="unfused" if unfused else stack.attention,
        fp8_recipe=scaling,
    )


def _recipe(recipe: Recipe, precision: str) -> Recipe:
    """Bytes of weights, gradients and optimizer out of words such as ``AdamW, mu bf16``."""
    weights = 2.0 if re.search(r"bf16 weights|weight_dtype bfloat16|grads bf16", precision) else 4.0
    moments = 2 * weights
    if "adafactor" in precision:
        moments = 0.1  # row and column sums instead of second moments (arXiv 1804.04235)
    elif "mu bf16" in precision or "mu and grads bf16" in precision:
        moments = weights + 2.0
    return dataclasses.replace(
        recipe, param_bytes=weights, grad_bytes=weights, optimizer_bytes=moments
    )
