"""Cases of applied-training.md: LLaMA 3 on v5p, by the same functions and rows as ``explain``."""

from __future__ import annotations

from textbook_cases_training import layer, x_opt
from textbook_registry import (
    ALPHA,
    BATCH,
    LARGE,
    MIDDLE,
    NOMINAL,
    POD,
    SMALL,
    V5P,
    C,
    Figures,
    case,
    leave,
    problem,
)

from autoshard.costmodels import book, book_bounds
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.model import Model
from autoshard.costmodels.recipe import Recipe
from autoshard.explain import Explanation, explain

TOKENS = 15e12
RECIPE = Recipe()


def told(model: Model, pods: int, overlap: str = "max") -> Explanation:
    return explain(problem(model, Cluster.build(V5P, pods=pods)), overlap=overlap)


def value(explanation: Explanation, quantity: str) -> float:
    return explanation.row(quantity).value


def bound(explanation: Explanation, quantity: str) -> float:
    found = explanation.row(quantity).bound
    assert found is not None
    return found


def days(params: float, pods: int) -> float:
    chips = Cluster.build(V5P, pods=pods).chips
    return book.training_days(
        book.training_flops(params, TOKENS), chips=chips, flops_per_s=C, mfu=0.4
    )


def saved(n: int, tokens: float = 4e6) -> float:
    return book.checkpoint_bytes(MIDDLE, tokens, n)


def total(n: int, tokens: float = 4e6) -> float:
    return saved(n, tokens) + book.state_bytes(NOMINAL["70b"], RECIPE)


def fewest(n: int, tokens: float = 4e6) -> int:
    return book.minimum_chips(total(n, tokens), V5P.hbm_bytes)


def counts(model: Model) -> Figures:
    return {
        "ffw": model.mlp_params,
        "vocab": model.vocab_params,
        "attn": model.attention_params,
        "total": model.book_params,
    }


@case("AT-01")
def params_70b() -> Figures:
    return counts(MIDDLE) | {"with norms (2L+1)D": MIDDLE.total_params}


@case("AT-02")
def params_8b() -> Figures:
    return counts(SMALL) | {"with norms": SMALL.total_params}


@case("AT-03")
def params_405b() -> Figures:
    return counts(LARGE) | {"with norms": LARGE.total_params}


@case("AT-04")
def flops_per_token() -> Figures:
    nominal = book.training_flops(NOMINAL["70b"], 1)
    return {
        "nominal": nominal,
        "exact P": value(told(MIDDLE, 1), "FLOPs per token"),
        "ms": book.compute_s(nominal, chips=1, flops_per_s=C) * 1e3,
        "8B": value(told(SMALL, 1), "FLOPs per token"),
        "405B": value(told(LARGE, 1), "FLOPs per token"),
    }


@case("AT-05")
def flops_in_total() -> Figures:
    flops = {name: book.training_flops(params, TOKENS) for name, params in NOMINAL.items()}
    seconds = book.compute_s(flops["70b"], chips=1, flops_per_s=C)
    return {
        "FLOPs": flops["70b"],
        "years": seconds / book.DAY_S / 365.25,
        "8B": flops["8b"],
        "405B": flops["405b"],
        "405B exact": value(told(LARGE, 1), "FLOPs in total"),
    }


@case("AT-06")
def days_70b() -> Figures:
    one = days(NOMINAL["70b"], 1)
    return {
        "s": one * book.DAY_S,
        "days 70B 1 pod": one,
        "4 pods": days(NOMINAL["70b"], 4),
        "8 pods": days(NOMINAL["70b"], 8),
    }


@case("AT-07")
def days_other_models() -> Figures:
    figures: Figures = {}
    for label, name in (("8B", "8b"), ("405B", "405b")):
        for pods in (1, 4, 8):
            unit = "pod" if pods == 1 else "pods"
            figures[f"{label} {pods} {unit}"] = days(NOMINAL[name], pods)
    return figures | {"405B 8 pods, exact P": value(told(LARGE, 8), "days at assumed MFU")}


@case("AT-08")
def state() -> Figures:
    return {
        "params GB": RECIPE.param_bytes * NOMINAL["70b"] / 1e9,
        "optimizer GB": RECIPE.optimizer_bytes * NOMINAL["70b"] / 1e9,
        "both, exact P, GB": book.state_bytes(MIDDLE.book_params, RECIPE) / 1e9,
    }


@case("AT-09")
def checkpoints() -> Figures:
    return {f"n={n}": saved(n) / 1e12 for n in (3, 4, 2)} | {
        "n=4, 4*2^20 tokens": saved(4, BATCH) / 1e12
    }


@case("AT-10")
def minimum_chips() -> Figures:
    return {
        "n=4 TB": total(4) / 1e12,
        "chips": total(4) / V5P.hbm_bytes,
        "ceil": fewest(4),
        "n=2 TB": total(2) / 1e12,
        "n=2 ceil": fewest(2),
        "n=3 ceil": fewest(3),
        "n=4, 2^22 tokens ceil": fewest(4, BATCH),
    }


def fewer_chips(chips: int) -> float:
    """Days on fewer chips of what the book rounds to 44 days on a pod."""
    work = 44 * book.DAY_S * POD.chips * C
    return book.training_days(work, chips=chips, flops_per_s=C, mfu=1.0)


@case("AT-11")
def too_long() -> Figures:
    return {
        "/225": fewer_chips(225),
        "years (/225)": fewer_chips(225) / 365,
        "/171": fewer_chips(171),
        "/117": fewer_chips(117),
        "years (/117)": fewer_chips(117) / 365,
    }


@case("AT-12")
def memory_per_chip() -> Figures:
    return {f"n={n} GB": total(n) / POD.chips / 1e9 for n in (4, 2, 3)}


@case("AT-13")
def twelve_checkpoints() -> Figures:
    return {
        "GB": total(12) / POD.chips / 1e9,
        "GB 2^22": total(12, BATCH) / POD.chips / 1e9,
    }


@case("AT-14")
def fsdp_without_sequences() -> Figures:
    one = told(MIDDLE, 1)
    return {
        "sequences": value(one, "sequences"),
        "idle chips": bound(one, "sequences") - value(one, "sequences"),
    }


@case("AT-15")
def fsdp_alone() -> Figures:
    one = told(MIDDLE, 1)
    tokens = value(one, "FSDP alone")
    return {
        "B/N": tokens,
        "with 4e6": 4e6 / POD.chips,
        "T_comm/T_math": bound(one, "FSDP alone") / tokens,
    }


@case("AT-16")
def mixed_bound() -> Figures:
    one = told(MIDDLE, 1)
    return {
        "max": bound(one, "FSDP with TP"),
        "sum": bound(told(MIDDLE, 1, "sum"), "FSDP with TP"),
        "B/N over bound": value(one, "FSDP with TP") / bound(one, "FSDP with TP"),
    }


@case("AT-17")
def best_split() -> Figures:
    one = told(MIDDLE, 1)
    return {
        "4.19e6": x_opt(4.19e6, POD.chips, MIDDLE.d_ff),
        "2^22": value(one, "X_opt"),
        "Y_opt": value(one, "Y_opt"),
        "N=8192": x_opt(BATCH, 8192, MIDDLE.d_ff),
    }


@case("AT-18")
def largest_split() -> Figures:
    return {"X": book_bounds.most_data_ways(4.19e6, POD.chips, ALPHA, MIDDLE.d_ff)}


def units(tokens: float, model: Model, x: int, y: int) -> Figures:
    """The three times in the case's unit, 4 D / W seconds."""
    times = layer(tokens, model.d_ff, x, y, model.d_model)
    unit = 4 * model.d_model / V5P.ici_bytes_per_s
    return {
        "math": times.math_s / unit,
        "FSDP units": times.fsdp_s / unit,
        "TP units": times.tensor_s / unit,
        "T_comm/T_math": times.comms_over_math(),
    }


@case("AT-19")
def final_scheme() -> Figures:
    found = units(BATCH, MIDDLE, 2048, 4)
    return {
        "chips": 2048 * 4,
        "of pod": 2048 * 4 / POD.chips,
        "T_math units BF/(N alpha)": found["math"],
        "FSDP units F/(Y M_X)": found["FSDP units"],
        "TP units B/X": found["TP units"],
    }


@case("AT-20")
def four_pods() -> Figures:
    four = told(MIDDLE, 4)
    between = four.row("data parallel between pods")
    return {
        "B/pod": between.value,
        "DCN margin": between.value / bound(four, "data parallel between pods"),
        "B/N, 2^22": value(four, "FSDP with TP"),
        "B/N, 4e6": 4e6 / four.problem.cluster.chips,
        "bound": bound(four, "FSDP with TP"),
        "X_opt per pod": value(four, "X_opt"),
        "Y_opt": value(four, "Y_opt"),
        "TP bound": bound(four, "TP alone"),
        "days": days(NOMINAL["70b"], 4),
    }


@case("AT-21")
def four_pods_feasible() -> Figures:
    found = units(BATCH / 4, MIDDLE, 1024, 8)
    return {
        "math units": found["math"],
        "FSDP units": found["FSDP units"],
        "TP units": found["TP units"],
        "T_comm/T_math": found["T_comm/T_math"],
        "MFU ceiling of the 8192": 1 / found["T_comm/T_math"],
    }


SEARCHED = "the search finds it: tests/test_textbook_plans.py"
leave("AT-21", SEARCHED, "X", "Y")
leave("AT-24", SEARCHED, "X", "Y")


@case("AT-22")
def flops_405b() -> Figures:
    eight = told(LARGE, 8)
    return {
        "per token": value(eight, "FLOPs per token"),
        "per step 4M": value(eight, "FLOPs per step"),
        "per step 16M": book.training_flops(LARGE.book_params, 2**24),
        "15T": value(eight, "FLOPs in total"),
        "nominal 405e9": book.training_flops(NOMINAL["405b"], TOKENS),
    }


@case("AT-23")
def eight_pods() -> Figures:
    eight = told(LARGE, 8)
    between = eight.row("data parallel between pods")
    best = x_opt(BATCH / 8, POD.chips, LARGE.d_ff)
    return {
        "B/pod": between.value,
        "DCN margin": between.value / bound(eight, "data parallel between pods"),
        "FSDP needs tokens/pod": bound(eight, "FSDP alone") * POD.chips,
        "B/N, 2^22": value(eight, "FSDP with TP"),
        "B/N, 4e6": 4e6 / eight.problem.cluster.chips,
        "bound": bound(eight, "FSDP with TP"),
        "X_opt": value(eight, "X_opt"),
        "Y_opt": value(eight, "Y_opt"),
        "TP bound": bound(eight, "TP alone"),
        "T_comm/T_math at X_opt": layer(
            BATCH / 8, LARGE.d_ff, best, POD.chips / best
        ).comms_over_math(),
    }


@case("AT-24")
def eight_pods_feasible() -> Figures:
    found = units(BATCH / 8, LARGE, 512, 16)
    return {
        "math units": found["math"],
        "FSDP units": found["FSDP units"],
        "TP units": found["TP units"],
        "T_comm/T_math": found["T_comm/T_math"],
        "days 40%, 405e9": days(NOMINAL["405b"], 8),
        "days, exact P": value(told(LARGE, 8), "days at assumed MFU"),
    }
