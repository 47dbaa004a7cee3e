"""Any question gets a front whose plans pass the judge, ``Infeasible`` or ``SpecError``."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import autoshard
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import CostModelError, Infeasible, SpecError
from autoshard.costmodels.model import Model
from autoshard.costmodels.recipe import Recipe
from autoshard.search.check import broken_rules

#: More examples, other ones each time: ``AUTOSHARD_FUZZ=2000 pytest tests/test_fuzz.py``.
EXAMPLES = int(os.environ.get("AUTOSHARD_FUZZ", "60"))

small = st.integers(1, 8)
#: Powers of two, primes, numbers of many divisors, and the ends of what is meant seriously.
counts = st.one_of(
    st.integers(1, 64),
    st.sampled_from([97, 128, 240, 720, 997, 1024, 4096]),
)
any_count = st.one_of(counts, st.sampled_from([0, -1, 2**40, 2**41, 10**7, 2**20 - 1]))
rates = st.sampled_from([1e-6, 1.0, 1e9, 1e11, 1e15, 1e30, 0.0])
wheres = st.sampled_from(
    [
        None,
        "tp <= 8",
        "tp = 7",
        "dp = 3 and pp > 1",
        "pp * vpp <= 32 and cp = 1",
        "chips_used > 4 and microbatches >= 2",
        "tp / (pp - 1) > 1",
        "nope = 1",
        "tp",
        "select 1",
        "",
        "tp = 1 and",
        "not (tp > 1 or fsdp between 2 and 4)",
    ]
)
profiles = st.sampled_from(
    ["textbook", "calibrated", "calibrated/megatron", "calibrated/torchtitan", "calibrated/maxtext"]
)


@st.composite
def models(draw: st.DrawFn) -> Model:
    kv = draw(small)
    return Model(
        name="fuzzed",
        n_layers=draw(st.one_of(st.integers(1, 12), st.sampled_from([31, 61, 126]))),
        d_model=draw(counts),
        d_ff=draw(counts),
        n_heads=kv * draw(small),
        n_kv_heads=kv,
        d_head=draw(counts),
        vocab=draw(counts),
        gated_mlp=draw(st.booleans()),
        tied_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        n_experts=draw(st.sampled_from([1, 1, 1, 1, 1, 1, 1, 4])),
    )


@st.composite
def chips(draw: st.DrawFn) -> Chip:
    common: dict[str, Any] = {
        "name": "fuzzed",
        "flops_per_s": {"bf16": draw(rates), "fp8": 1e15},
        "hbm_bytes": draw(st.sampled_from([1, 2**16, 2**24, 2**36, 2**40])),
        "hbm_bytes_per_s": draw(rates),
    }
    if draw(st.booleans()):
        return Chip(
            kind="gpu",
            domain_chips=draw(st.sampled_from([1, 2, 8, 72])),
            domain_bytes_per_s=draw(rates),
            scale_out_bytes_per_s=draw(rates),
            oversubscription=draw(st.sampled_from([1.0, 7.0])),
            **common,
        )
    axes = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 8, 16]), min_size=1, max_size=3)))
    return Chip(
        kind="tpu",
        pod_axes=axes,
        wrap=draw(st.sampled_from(["cubes", "full", "always"])),
        ici_bytes_per_s=draw(rates),
        dcn_bytes_per_s=draw(rates),
        **common,
    )


@st.composite
def questions(draw: st.DrawFn) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    preset = st.sampled_from(["h100", "a100-80g", "v5p", "v5e", "b200"])
    number, pods = draw(any_count), draw(st.sampled_from([None, None, 1, 2, 3]))
    if draw(st.booleans()):
        asked["chip"] = draw(preset)
        asked["chips"], asked["pods"] = number, pods
    else:
        asked["cluster"] = Cluster.build(draw(chips()), chips=min(number, 4096), pods=pods)
    return asked | {
        "model": draw(models()),
        "global_batch_seqs": draw(any_count),
        "seq_len": draw(any_count),
        "precision": draw(st.sampled_from(["bf16", "bf16", "fp8", "int8"])),
        "memory_limit": draw(st.sampled_from([None, None, 1, "1MiB", "64KiB", "1GiB", "1TiB"])),
        "recipe": draw(
            st.sampled_from([None, Recipe(reshard=(3, 2, 1)), Recipe(optimizer_bytes=0.0)])
        ),
        "costs": draw(profiles),
        "where": draw(wheres),
        "points": draw(st.sampled_from([1, 2, 3])),
        "gap": draw(st.sampled_from([0.0, 1e-3, 0.5])),
        "time_limit_s": draw(st.sampled_from([1e-6, 0.3, 0.6])),
    }


def answer(asked: dict[str, Any]) -> autoshard.ParetoFront | None:
    """The front, or None where there is none for a reason said in one line."""
    try:
        return autoshard.solve(**asked)
    except (SpecError, Infeasible) as error:
        refused: Exception = error
    except CostModelError as error:
        refused = error
    event(type(refused).__name__)
    assert "\n" not in str(refused)
    assert not isinstance(refused, CostModelError) or asked["model"].n_experts > 1, refused
    return None


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 60,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
@given(st.data())
def test_any_question_has_an_answer(data: st.DataObject) -> None:
    try:
        asked = data.draw(questions())
    except SpecError:
        event("refused as a spec")
        return
    front = answer(asked)
    if front is None:
        return
    event("a front")
    problem = autoshard.build_problem(**{k: asked[k] for k in asked if k not in NO_PROBLEM})
    for point in front.points:
        rules = [r for r in broken_rules(problem, point.plan) if not r.startswith("reshard")]
        assert rules == []
        assert point.memory_bytes <= problem.capacity_bytes * (1.0 + 1e-6)
        assert 0.0 < point.lower_bound_s <= point.step_time_s < float("inf")
        assert point.mfu >= 0.0
    assert autoshard.ParetoFront.from_dict(front.to_dict()) == front


NO_PROBLEM = ("costs", "where", "points", "gap", "time_limit_s")
