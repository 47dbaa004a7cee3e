"""A whole plan out of the values that somebody states: what is not said gets a stated default."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoshard.costmodels.errors import Infeasible, SpecError
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.remat import Rung
from autoshard.launch.stages import stage_layers
from autoshard.search.divisors import divisors
from autoshard.stating import LAYERS, REMAT, REMAT_COUNT, Values, rung_named
from autoshard.values import rules_by_name
from autoshard.where import NAMES as DEGREES


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A plan, not yet held against any rule, and what was taken for granted, as sentences."""

    plan: Plan
    assumed: tuple[str, ...]


def complete(problem: Problem, profile: Profile, values: Values) -> Completed:
    """The plan that has these values (those that ``read_values`` gives).

    Degrees of parallelism that are not said are 1, and FSDP takes the chips that are left.

    Raises:
        SpecError: two values contradict each other, or leave open how many chips there are.
        Infeasible: single values break rules, or shards or microbatches do not divide the batch.
    """
    said, assumed = dict(values), []
    broken = rules_by_name(problem, {name: said[name] for name in DEGREES if name in said})
    if broken:
        raise Infeasible(f"the plan is not legal: {'; '.join(broken)}.")
    degrees = {name: said.get(name, 1) for name in ("tp", "pp", "vpp", "cp", "ep", "seq_split")}
    dp, batch_split, words = data_ranks(problem, said)
    assumed += words
    assumed += ["vpp = 1"] if degrees["pp"] > 1 and "vpp" not in said else []
    counts, words = _microbatches(problem, said, dp * batch_split)
    assumed += words
    reshard = said.get("reshard", max(problem.recipe.reshard))
    if "reshard" not in said and len(problem.recipe.reshard) > 1:
        assumed.append(f"ZeRO-{reshard} (reshard)")
    pp, vpp = degrees["pp"], degrees["vpp"]
    layers = said.get(LAYERS)
    if layers is None:
        layers, words = default_layers(problem, profile, pp, vpp)
        assumed += words
    elif len(layers) != pp:
        raise SpecError(f"plan: layers_per_stage lists {len(layers)} stages, and pp = {pp}.")
    ladder = profile.whole_ladder or profile.ladder
    remat, words = _remat(said, profile, ladder, layers, vpp)
    assumed += words
    numbers: dict[str, Any] = degrees | counts
    plan = Plan(
        **numbers,
        dp=dp,
        batch_split=batch_split,
        reshard=reshard,
        pods=dp if problem.cluster.chip.kind == "tpu" else 1,
        layers_per_stage=tuple(layers),
        remat=remat,
    )
    if said.get("chips_used", plan.chips_used) != plan.chips_used:
        raise SpecError(
            f"plan: chips_used = {said['chips_used']}, and the degrees take {plan.chips_used}."
        )
    return Completed(plan=plan, assumed=tuple(assumed))


def data_ranks(problem: Problem, said: Values) -> tuple[int, int, list[str]]:
    """``dp`` and ``batch_split``; what is not said of them takes the chips that are left."""
    cluster = problem.cluster
    chips = said.get("chips_used", cluster.chips)
    held = math.prod(said.get(name, 1) for name in ("tp", "pp", "cp"))
    split = said.get("seq_split", 1)
    assumed = []
    fsdp = said.get("fsdp")
    if "batch_split" in said:
        if fsdp not in (None, said["batch_split"] * split):
            raise SpecError(
                f"plan: fsdp = batch_split * seq_split, and {fsdp} is not "
                f"{said['batch_split']} * {split}."
            )
        fsdp = said["batch_split"] * split
    dp = said.get("dp")
    if dp is None and cluster.chip.kind == "tpu":
        # A replica never leaves its pod: the fewest pods that hold the chips.
        dp = -(-chips // cluster.pod_chips) if fsdp is None else cluster.pods
        assumed += [f"dp = {dp}, a replica a pod"] if cluster.pods > 1 else []
    if dp is None:
        dp = 1 if fsdp is None else _left(chips, held * fsdp, "tp * pp * cp * fsdp")
        assumed += [f"dp = {dp}"] if fsdp is not None else []
    if fsdp is None:
        fsdp = _left(chips, held * dp, "tp * pp * cp" + (" * dp" if dp > 1 else ""))
        assumed.append(f"fsdp = {fsdp}, from the {chips:,} chips")
    if fsdp % split:
        raise SpecError(
            f"plan: fsdp = batch_split * seq_split, and seq_split = {split} does not divide {fsdp}."
        )
    return dp, fsdp // split, assumed


def _left(chips: int, held: int, words: str) -> int:
    """The ranks that degrees leave of the chips."""
    if chips % held:
        raise SpecError(
            f"plan: {words} = {held:,} does not divide the {chips:,} chips; say how many chips "
            f"the plan uses, chips_used={chips // held * held or held}."
        )
    return chips // held


def _microbatches(problem: Problem, said: Values, shards: int) -> tuple[dict[str, int], list[str]]:
    """Microbatches and their size; one microbatch where nothing fills a pipeline."""
    batch = problem.workload.global_batch_seqs
    if batch % shards:
        raise Infeasible(
            f"the plan is not legal: dp * batch_split = {shards:,} does not divide the {batch:,} "
            f"sequences of the batch; the largest below that do: {_near(batch, shards)}."
        )
    each = batch // shards
    number, size = said.get("microbatches"), said.get("micro_batch_size")
    if number is not None and size is not None:
        if number * size != each:
            raise SpecError(
                f"plan: {number} microbatches of {size} sequences on {shards:,} shards are "
                f"{number * size * shards:,} sequences, and the batch has {batch:,}; leave out "
                "microbatches or micro_batch_size, or say the batch."
            )
        return {"microbatches": number, "micro_batch_size": size}, []
    name, value = "microbatches", number
    if number is None:
        name, value = "micro_batch_size", size
    assumed = []
    if value is None:
        piped = said.get("pp", 1) > 1
        name, value = ("micro_batch_size", 1) if piped else ("microbatches", 1)
        assumed.append(f"{name} = 1")
    if each % value:
        raise Infeasible(
            f"the plan is not legal: {name} = {value} does not divide the {each} sequences of a "
            f"shard ({batch:,} on {shards:,}); the largest below that do: {_near(each, value)}."
        )
    other = "microbatches" if name == "micro_batch_size" else "micro_batch_size"
    return {name: value, other: each // value}, assumed


def _near(batch: int, shards: int) -> str:
    below = [d for d in divisors(batch) if d < shards][-2:]
    return " and ".join(f"{d:,}" for d in below)


def default_layers(
    problem: Problem, profile: Profile, pp: int, vpp: int
) -> tuple[tuple[int, ...], list[str]]:
    """Layers of each stage as the framework deals them unless it is told otherwise.

    Even, where they divide. torchtitan counts the embedding and the head as a layer each, over
    all virtual stages (torchtitan/distributed/pipeline_parallel.py,
    ``_generate_llm_fqn_per_model_part``); so does Megatron-Core where it is told to account for
    both in the split (megatron/core/transformer/transformer_config.py), which is how Llama 3 405B
    was dealt (arXiv 2407.21783, section 3.3.2). Otherwise stages differ by one layer, and the
    first and last have fewer.
    """
    layers = problem.model.n_layers
    parts = pp * vpp
    # A first part may be the embedding alone, but no stage.
    enough = layers + 2 >= parts * (2 if vpp == 1 else 1)
    if profile.legality.framework == "torchtitan" and pp > 1 and enough:
        each, more = divmod(layers + 2, parts)
        dealt = [each + (part < more) for part in range(parts)]
        dealt[0] -= 1
        dealt[-1] -= 1
        stages = stage_layers(dealt, pp)
        return stages, [] if len(set(stages)) == 1 else [_dealt_words(stages)]
    each, more = divmod(layers, pp)
    if not more:
        return (each,) * pp, []
    inner, left = divmod(layers + 2, pp)
    if not left and pp > 1 and inner >= max(vpp, 2):
        stages = (inner - 1, *[inner] * (pp - 2), inner - 1)
    else:
        order = [*range(1, pp - 1), pp - 1, 0][:more]
        stages = tuple(each + (stage in order) for stage in range(pp))
    return stages, [_dealt_words(stages)]


def _dealt_words(stages: tuple[int, ...]) -> str:
    return f"layers dealt {layers_words(stages)}"


def layers_words(stages: tuple[int, ...]) -> str:
    """``7+14x8+7``, as ``--plan`` reads it."""
    parts: list[list[int]] = []
    for layers in stages:
        if parts and parts[-1][1] == layers:
            parts[-1][0] += 1
        else:
            parts.append([1, layers])
    return "+".join(f"{times}x{layers}" if times > 1 else str(layers) for times, layers in parts)


def _remat(
    said: Values, profile: Profile, ladder: tuple[Rung, ...], layers: tuple[int, ...], vpp: int
) -> tuple[tuple[Mapping[str, int], ...], list[str]]:
    """Layers of each stage on each rung."""
    statable = [rung.name for rung in profile.ladder]
    if REMAT in said:
        name, assumed = rung_named(said[REMAT], ladder), []
    elif REMAT_COUNT in said:
        name, assumed = ladder[-1].name, [f"remat = {ladder[-1].name}"]
    else:
        # MaxText wraps every layer: without a policy it runs all of them again.
        name = ladder[0].name if ladder[0].name in statable else ladder[-1].name
        assumed = [f"remat = {name}"]
    count = said.get(REMAT_COUNT)
    if count is None:
        return tuple({name: n} for n in layers), assumed
    if name == ladder[0].name:
        raise SpecError(
            f"plan: remat = {name} is what layers run that are not counted; count those of "
            f"another rung, such as remat={ladder[-1].name}:{count}."
        )
    return counted_remat(ladder[0].name, name, count, layers, vpp), assumed


def counted_remat(
    first: str, name: str, count: int, layers: tuple[int, ...], vpp: int
) -> tuple[dict[str, int], ...]:
    """``count`` layers of each of ``vpp`` chunks, or all, under ``name``; the others ``first``."""
    stages = []
    for n in layers:
        again = min(count * vpp, n)
        stages.append({k: v for k, v in ((first, n - again), (name, again)) if v})
    return tuple(stages)
