"""Plans of every shape as a front would give them, without a search."""

from __future__ import annotations

from typing import Any

from autoshard.answering import problem_dict
from autoshard.asking import Constraints
from autoshard.costmodels.model import Model
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.schedules import scheduled
from autoshard.front import FrontPoint, ParetoFront
from autoshard.search.layout import layout_words
from autoshard.solved import SolvedPlan
from autoshard.solving import build_problem, load_profile

DEGREES = ("dp", "batch_split", "seq_split", "tp", "pp", "vpp", "cp")


def solved(
    model: str | Model = "llama3-70b",
    chip: str = "h100",
    *,
    stack: str | None = "megatron",
    schedule: str | None = None,
    layers: tuple[int, ...] = (80,),
    remat: str | tuple[dict[str, int], ...] = "none",
    microbatches: int = 1,
    micro_batch_size: int = 1,
    seq_len: int = 4096,
    precision: str = "bf16",
    chips: int | None = None,
    reshard: int = 1,
    pods: int = 1,
    **degrees: int,
) -> SolvedPlan:
    """A plan with these values; its batch and its cluster are what it needs."""
    values = {name: degrees.get(name, 1) for name in DEGREES}
    shards = values["dp"] * values["batch_split"]
    used = shards * values["seq_split"] * values["tp"] * values["pp"] * values["cp"]
    size: dict[str, Any] = {"chips": chips or used}
    if pods > 1:
        size["pods"] = pods
    profile = load_profile("textbook" if stack is None else None, stack=stack)
    if schedule is not None:
        profile = scheduled(profile, schedule)
    problem = build_problem(
        model,
        chip=chip,
        global_batch_seqs=shards * microbatches * micro_batch_size,
        seq_len=seq_len,
        precision=precision,
        recipe=profile.recipe,
        **size,
    )
    plan = Plan(
        **values,
        microbatches=microbatches,
        micro_batch_size=micro_batch_size,
        reshard=reshard,
        pods=pods,
        layers_per_stage=layers,
        remat=tuple({remat: n} for n in layers) if isinstance(remat, str) else remat,
        layout=layout_words(problem, 0, values),
    )
    point = FrontPoint(
        plan=plan,
        step_time_s=5.0,
        memory_bytes=2.0**36,
        mfu=0.4,
        binding="compute",
        binding_by="compute",
        comms_over_compute=0.5,
        lower_bound_s=5.0,
        gap=0.0,
        proven=True,
    )
    said = problem_dict(problem, profile, Constraints())
    return ParetoFront(problem=said, points=(point,)).fastest()


#: LLaMA-3 405B over 16 stages that are not even, as the front has it.
UNEVEN = (7, *(8,) * 14, 7)

MEGATRON: dict[str, dict[str, Any]] = {
    "one chip": {"model": "llama3-8b", "layers": (32,)},
    "data parallel": {"model": "llama3-8b", "layers": (32,), "dp": 8},
    "zero-1": {"model": "llama3-8b", "layers": (32,), "batch_split": 8, "microbatches": 4},
    "zero-2": {"model": "llama3-8b", "layers": (32,), "batch_split": 8, "reshard": 2},
    "zero-3": {"model": "llama3-8b", "layers": (32,), "batch_split": 8, "reshard": 3},
    "replicas of zero-1": {"batch_split": 4, "dp": 2, "tp": 8, "microbatches": 2},
    "replicas of zero-3": {"batch_split": 4, "dp": 2, "tp": 2, "reshard": 3},
    "tp above kv heads": {"tp": 16, "batch_split": 2},
    "even pipeline": {"tp": 4, "pp": 4, "layers": (20,) * 4, "microbatches": 8},
    "virtual stages": {"tp": 4, "pp": 4, "vpp": 5, "layers": (20,) * 4, "microbatches": 8},
    "uneven stages": {
        "model": "llama3-405b",
        "tp": 8,
        "pp": 16,
        "batch_split": 4,
        "layers": UNEVEN,
        "microbatches": 32,
    },
    "uneven virtual stages": {
        "model": "llama3-405b",
        "tp": 8,
        "pp": 16,
        "vpp": 8,
        "layers": UNEVEN,
        "microbatches": 32,
    },
    "ring attention": {"tp": 8, "cp": 4, "batch_split": 2, "seq_len": 8192},
    "gathered context": {"tp": 8, "seq_split": 4, "batch_split": 2, "seq_len": 8192},
    "selective": {"tp": 8, "remat": "selective", "batch_split": 4},
    "full": {"tp": 8, "remat": "full", "batch_split": 4, "micro_batch_size": 2},
    "some layers of each chunk": {
        "tp": 8,
        "pp": 4,
        "vpp": 2,
        "layers": (20,) * 4,
        "microbatches": 8,
        "remat": ({"none": 14, "full": 6},) * 4,
    },
    "all layers of short chunks": {
        "tp": 8,
        "pp": 2,
        "layers": (45, 35),
        "microbatches": 4,
        "remat": ({"none": 5, "full": 40}, {"full": 35}),
    },
    "fp8": {"tp": 8, "batch_split": 2, "precision": "fp8"},
}

TORCHTITAN: dict[str, dict[str, Any]] = {
    "fsdp": {"model": "llama3-8b", "layers": (32,), "batch_split": 8, "microbatches": 2},
    "zero-2": {"model": "llama3-8b", "layers": (32,), "batch_split": 8, "reshard": 2},
    "hybrid": {"batch_split": 8, "dp": 2, "tp": 8, "remat": "full"},
    "context": {"batch_split": 4, "seq_split": 4, "tp": 8, "remat": "selective_op"},
    "pipeline": {"batch_split": 4, "tp": 4, "pp": 4, "layers": (20,) * 4, "microbatches": 8},
    "virtual stages": {
        "model": "llama3-405b",
        "batch_split": 4,
        "tp": 8,
        "pp": 16,
        "vpp": 2,
        "layers": UNEVEN,
        "microbatches": 32,
        "remat": "full",
    },
}

MAXTEXT: dict[str, dict[str, Any]] = {
    "fsdp": {"batch_split": 64, "remat": "full"},
    "tensor and fsdp": {"batch_split": 64, "tp": 8, "remat": "minimal"},
    "context": {"batch_split": 16, "seq_split": 4, "tp": 8, "remat": "save_out_proj"},
    "accumulation": {"batch_split": 64, "tp": 8, "microbatches": 4, "remat": "full"},
    "pods": {"dp": 2, "pods": 2, "batch_split": 64, "tp": 8, "remat": "save_qkv_proj"},
    "pipeline": {
        "batch_split": 16,
        "tp": 8,
        "pp": 4,
        "vpp": 5,
        "layers": (20,) * 4,
        "microbatches": 8,
        "remat": "full",
    },
    "optimizer alone": {"batch_split": 64, "tp": 8, "reshard": 1, "remat": "full"},
}

SHARED: dict[str, Any] = {"reshard": 3, "chip": "v5p", "stack": "maxtext"}


def megatron(name: str) -> SolvedPlan:
    """A plan that Megatron states."""
    return solved(**MEGATRON[name])


def torchtitan(name: str) -> SolvedPlan:
    """A plan that torchtitan states."""
    return solved(**{"stack": "torchtitan", "reshard": 3, **TORCHTITAN[name]})


def maxtext(name: str) -> SolvedPlan:
    """A plan that MaxText states on TPUs."""
    return solved(**{**SHARED, **MAXTEXT[name]})
