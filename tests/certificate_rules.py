"""What frameworks can state, for ``certificate_checker``: their rules written down a second time.

From the files named in ``costmodels/stack_rules.py``, as plain conditions on one row of integers;
nothing from there is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autoshard.costmodels.problem import Problem

Row = dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """Which rows it can state, with which stages and remat settings.

    ``remat`` is ``by-stage``, ``one-count`` or ``one-policy``, as in ``oracle.remat_settings``.
    ``equal`` stages are dealt by the framework; with ``counted``, embedding and head as a layer
    each where that makes up the numbers.
    """

    states: Callable[[Problem, Row], bool]
    remat: str
    settings: tuple[str, ...]
    equal: bool = False
    counted: bool = False

    def dealt(self, layers: int, pp: int) -> list[int] | None:
        """Layers of each stage, where the framework deals them; None where it does not."""
        if not self.equal:
            return None
        if layers % pp and self.counted and (layers + 2) % pp == 0:
            most = (layers + 2) // pp
            return [most - 1, *[most] * (pp - 2), most - 1]
        return [layers // pp] * pp


def _whole(p: Problem, r: Row) -> bool:
    """Layers in equal stages and chunks."""
    return p.model.n_layers % (r["pp"] * r["vpp"]) == 0


def _rounds(r: Row) -> bool:
    """Interleaving wants stages, and microbatches in rounds of as many."""
    return r["vpp"] == 1 or (r["pp"] > 1 and r["microbatches"] % r["pp"] == 0)


def _halves(p: Problem, ranks: int, pieces: int) -> bool:
    """A causal sequence in two pieces for each of several ranks."""
    return ranks == 1 or p.workload.seq_len % (2 * pieces) == 0


def _shards(r: Row) -> int:
    return r["batch_split"] * r["seq_split"]


def _megatron(p: Problem, r: Row) -> bool:
    heads, groups, tp = p.model.n_heads, p.model.n_kv_heads, r["tp"]
    ranks = r["seq_split"] * r["cp"]
    copied = groups % tp == 0 or tp % groups == 0
    one_way = r["seq_split"] == 1 or r["cp"] == 1
    return heads % tp == 0 and copied and one_way and _halves(p, ranks, ranks) and _rounds(r)


def _megatron_2021(p: Problem, r: Row) -> bool:
    sharded = r["reshard"] == 1 or _shards(r) == 1
    counted = r["vpp"] == 1 and (p.model.n_layers + 2) % r["pp"] == 0
    dealt = _whole(p, r) or counted
    return _megatron(p, r) and r["seq_split"] == r["cp"] == 1 and sharded and dealt


def _torchtitan(p: Problem, r: Row) -> bool:
    tp, split = r["tp"], r["seq_split"]
    heads = p.model.n_heads % tp == 0 and p.model.n_kv_heads % tp == 0
    sharded = r["reshard"] != 1 or _shards(r) == 1
    fed = r["microbatches"] >= r["pp"]
    return (
        heads and r["cp"] == 1 and _halves(p, split, tp * split) and sharded and fed and _rounds(r)
    )


def _llm_foundry(p: Problem, r: Row) -> bool:
    alone = all(r[name] == 1 for name in ("tp", "pp", "vpp", "cp", "seq_split"))
    return alone and (r["reshard"] != 1 or _shards(r) == 1)


def _nanotron(p: Problem, r: Row) -> bool:
    heads = p.model.n_heads % r["tp"] == 0 and p.model.n_kv_heads % r["tp"] == 0
    ranks = r["seq_split"] * r["cp"]
    one_way = r["seq_split"] == 1 or r["cp"] == 1
    sharded = r["reshard"] == 1 or _shards(r) == 1
    return (
        heads
        and one_way
        and sharded
        and _halves(p, ranks, ranks)
        and r["vpp"] == 1
        and _whole(p, r)
    )


def _maxtext(p: Problem, r: Row) -> bool:
    heads = p.model.n_heads % r["tp"] == 0 and p.model.n_kv_heads % r["tp"] == 0
    halves = _halves(p, r["seq_split"], r["seq_split"])
    sharded = r["reshard"] != 2 or _shards(r) == 1
    rounds = r["microbatches"] % r["pp"] == 0
    return heads and r["cp"] == 1 and halves and sharded and rounds and _whole(p, r)


_MEGATRON = ("none", "selective", "full")

#: By the name that a front gives its framework; None is none, under which every row can be stated.
FRAMEWORKS: dict[str | None, Framework] = {
    None: Framework(states=lambda p, r: True, remat="by-stage", settings=()),
    "Megatron-Core": Framework(states=_megatron, remat="one-count", settings=_MEGATRON),
    "Megatron-LM of 2021": Framework(
        states=_megatron_2021, remat="one-count", settings=_MEGATRON, equal=True, counted=True
    ),
    "torchtitan": Framework(
        states=_torchtitan, remat="one-policy", settings=("none", "selective_op", "full")
    ),
    "llm-foundry": Framework(states=_llm_foundry, remat="by-stage", settings=("none", "full")),
    "nanotron": Framework(
        states=_nanotron, remat="one-policy", settings=("none", "full"), equal=True
    ),
    "MaxText": Framework(
        states=_maxtext,
        remat="one-policy",
        settings=(
            *("minimal_with_context", "minimal", "save_dot_with_context_except_mlp"),
            *("save_dot_except_mlpwi", "save_dot_except_mlp", "save_qkv_context"),
            *("save_qkv_proj", "save_out_proj", "full"),
        ),
        equal=True,
    ),
}


def one_setting(remat: str, rungs: int, dealt: list[list[int]], vpp: int) -> bool:
    """Whether stages that run so many layers on each rung have one remat setting."""
    if remat == "by-stage":
        return True
    used = [{r for r, n in enumerate(stage) if n} for stage in dealt]
    if len(set().union(*used)) == 1:
        return True
    if remat == "one-policy" or not set().union(*used) <= {0, rungs - 1}:
        return False
    counts = range(max(sum(stage) for stage in dealt) // vpp + 2)
    return any(all(s[-1] == min(k * vpp, sum(s)) for s in dealt) for k in counts)
