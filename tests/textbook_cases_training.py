"""Cases of transformers.md and training.md: counts, remat, and the bounds on parallelism."""

from __future__ import annotations

import dataclasses

from textbook_registry import (
    ALPHA,
    DATA_ALPHA,
    LARGE,
    LLAMA2,
    MIDDLE,
    NOMINAL,
    POD,
    SMALL,
    TENSOR_ALPHA,
    V5P,
    C,
    Figures,
    case,
    leave,
    problem,
    row,
)

from autoshard.catalog import load_model
from autoshard.costmodels import book, book_bounds
from autoshard.costmodels.book_bounds import LayerTimes
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.model import Model
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.remat import TEXTBOOK_LADDER
from autoshard.costmodels.textbook import textbook
from autoshard.costmodels.textbook_compute import TextbookCompute
from autoshard.costmodels.workload import Workload

SAVED = {rung.name: rung.saved_tensors for rung in TEXTBOOK_LADDER}
#: LLaMA-2 13B in training.md: 16x16x16 chips of v5p.
CUBE = Cluster.build(V5P, topology=(16, 16, 16))
F13 = LLAMA2.d_ff


def dense(d_model: int, d_head: int, *, layers: int = 64, vocab: int = 32000) -> Model:
    """A model of transformers.md: gated MLP of 4 D, attention as wide as D, one KV head a head."""
    heads = d_model // d_head
    return Model(
        name="book",
        n_layers=layers,
        d_model=d_model,
        d_ff=4 * d_model,
        n_heads=heads,
        n_kv_heads=heads,
        d_head=d_head,
        vocab=vocab,
    )


def mixed(d_ff: float, overlap: str = "max") -> float:
    return book_bounds.mixed_bound_tokens(DATA_ALPHA, TENSOR_ALPHA, d_ff, overlap=overlap)


def x_opt(tokens: float, chips: float, d_ff: float) -> float:
    return book_bounds.best_data_ways(tokens, chips, DATA_ALPHA, TENSOR_ALPHA, d_ff)


def layer(tokens: float, d_ff: float, x: float, y: float, d_model: float = 8192) -> LayerTimes:
    return book_bounds.layer_times(
        tokens=tokens,
        d_model=d_model,
        d_ff=d_ff,
        data_ways=x,
        tensor_ways=y,
        flops_per_s=C,
        data_intensity=DATA_ALPHA,
        tensor_intensity=TENSOR_ALPHA,
    )


def at_best(tokens: float, chips: float, d_ff: float) -> LayerTimes:
    best = x_opt(tokens, chips, d_ff)
    return layer(tokens, d_ff, best, chips / best)


def data_bound(axes: int) -> float:
    return book_bounds.data_bound_tokens(book_bounds.intensity(C, V5P.ici_bytes_per_s, axes=axes))


def tensor_ways(d_ff: float) -> float:
    return book_bounds.tensor_bound_ways(TENSOR_ALPHA, d_ff)


@case("TR-01")
def backward() -> Figures:
    cost = TextbookCompute(layer="mlp2")(problem(MIDDLE, POD), row(), TEXTBOOK_LADDER)
    return {"bwd/fwd": float(cost.layer_backward_s[0] / cost.layer_forward_s[0])}


@case("TR-02")
def mlp() -> Figures:
    return {"70B layer params": MIDDLE.mlp_params // MIDDLE.n_layers}


@case("TR-03")
def attention() -> Figures:
    return {"70B layer params": MIDDLE.attention_params // MIDDLE.n_layers}


@case("TR-04")
def vocabulary() -> Figures:
    tied = dataclasses.replace(MIDDLE, tied_embeddings=True)
    return {"70B one matrix": tied.vocab_params, "untied pair": MIDDLE.vocab_params}


@case("TR-05")
def attention_dominates() -> Figures:
    models = {"D=8192": dense(8192, 128), "D=4608": dense(4608, 128)}
    return {
        label: 1 / book.dot_flops_share(model, 1, causal=False) for label, model in models.items()
    }


@case("TR-06")
def attention_share() -> Figures:
    return {
        "70B": book.dot_flops_share(MIDDLE, 4096, causal=False),
        "405B": book.dot_flops_share(LARGE, 8192, causal=False),
    }


def saved_tb(rung: str) -> float:
    return book.checkpoint_bytes(dense(8192, 128), 4e6, SAVED[rung]) / 1e12


@case("TR-07")
def save_everything() -> Figures:
    return {"TB": saved_tb("save_all")}


@case("TR-08")
def block_remat() -> Figures:
    cost = TextbookCompute()(problem(MIDDLE, POD), row(), TEXTBOOK_LADDER)
    passes = float(cost.layer_forward_s[0] + cost.layer_backward_s[0])
    again = float(cost.recompute_s[0, list(SAVED).index("checkpoints_1")])
    return {"TB": saved_tb("checkpoints_1"), "FLOPs factor": (passes + again) / passes}


@case("TR-09")
def save_matmuls() -> Figures:
    return {"TB": saved_tb("save_matmuls")}


@case("TR-11")
def quiz_model() -> Figures:
    model = dense(4096, 128)
    return {
        # the book's sum leaves the last norm out
        "params": model.total_params - model.d_model,
        "attn share of layer": model.attention_params / (model.attention_params + model.mlp_params),
    }


leave("TR-11", "a KV cache belongs to inference", "KV bytes")


@case("TR-15")
def attention_equals_projections() -> Figures:
    model = dense(4096, 128)
    dots = book.dot_flops_per_token(model, 1, causal=False)
    return {"T": book.training_flops(model.attention_params, 1) / dots}


@case("TR-16")
def recompute_dots() -> Figures:
    """The planner's dots are causal, half of the book's 4 B T^2 N H."""
    cost = TextbookCompute()(problem(MIDDLE, POD), row(), TEXTBOOK_LADDER)
    dots = float(cost.recompute_s[0, list(SAVED).index("save_matmuls")])
    matmuls = float(cost.layer_forward_s[0]) - dots
    return {"share of 70B 6PT at T=4096": 2 * dots / (3 * matmuls)}


@case("TR-17")
def deepseek_mfu() -> Figures:
    flops, rate, hours = book.training_flops(37e9, 14.8e12), 1.513e15, 2.79e6
    used = book.mfu(flops, seconds=3600 * hours, chips=1, flops_per_s=rate)
    return {"peak": flops / used, "used": flops, "%": 100 * used}


@case("TR-18")
def experts() -> Figures:
    per_weight = book_bounds.weight_bound_tokens(120, 1, weight_bytes=2, experts_ratio=256 / 8)
    return {"B": per_weight}


@case("TN-01")
def largest_replica() -> Figures:
    return {"params": V5P.hbm_bytes / Recipe().state_bytes}


@case("TN-02")
def data_parallel() -> Figures:
    return {"B/X": data_bound(1)}


@case("TN-03")
def data_parallel_pod() -> Figures:
    return {"B/X": data_bound(3), "tokens": data_bound(3) * POD.chips}


@case("TN-04")
def fsdp() -> Figures:
    """Arithmetic equals the gathers of one axis: any layer, any number of chips."""
    times = book_bounds.layer_times(
        tokens=1.0,
        d_model=5120,
        d_ff=F13,
        data_ways=64,
        tensor_ways=1,
        flops_per_s=C,
        data_intensity=ALPHA,
        tensor_intensity=ALPHA,
    )
    return {"B/X": times.comms_over_math() / 64}


@case("TN-05")
def deepseek_batch() -> Figures:
    chips = 40e6 / data_bound(3)
    return {"chips": chips, "pods": chips / POD.chips}


@case("TN-06")
def sixteen_million() -> Figures:
    chips = 16e6 / data_bound(3)
    flops = book.training_flops(NOMINAL["70b"], 15e12)
    return {
        "chips": chips,
        "days": book.training_days(flops, chips=chips, flops_per_s=C, mfu=0.5),
    }


@case("TN-07")
def tensor_parallel() -> Figures:
    return {
        "F=30000": tensor_ways(30000),
        "70B": tensor_ways(MIDDLE.d_ff),
        "405B": tensor_ways(LARGE.d_ff),
        "8B": tensor_ways(SMALL.d_ff),
        "F for 8-way": 8 / tensor_ways(1),
    }


@case("TN-08")
def gemma() -> Figures:
    # the book adds the gate and the up projection up
    return {"50000": tensor_ways(50000), "49152": tensor_ways(2 * load_model("gemma-7b").d_ff)}


@case("TN-09")
def int8() -> Figures:
    rate = V5P.peak_flops_per_s("int8")
    return {"alpha int8": book_bounds.intensity(rate, V5P.ici_bytes_per_s)}


@case("TN-10")
def three_times() -> Figures:
    times = layer(2**22, MIDDLE.d_ff, 2048, 4)
    return {
        "T_math ms": times.math_s * 1e3,
        "T_FSDP ms": times.fsdp_s * 1e3,
        "T_TP ms": times.tensor_s * 1e3,
    }


@case("TN-11")
def two_rules() -> Figures:
    times = at_best(2**22, POD.chips, MIDDLE.d_ff)
    return {"max/sum at X_opt": times.comms_s("max") / times.comms_s("sum")}


@case("TN-12")
def best_split() -> Figures:
    return {"as stated": x_opt(48_000, 64, 32768), "B=49,152": x_opt(49_152, 64, 32768)}


@case("TN-13")
def mixed_example() -> Figures:
    return {"E1": mixed(32768, "sum"), "E2/E3": mixed(32768)}


@case("TN-14")
def mixed_models() -> Figures:
    widths = {"8B": SMALL.d_ff, "70B": MIDDLE.d_ff, "13B": F13, "405B": LARGE.d_ff}
    widths["F=30000"] = 30000
    bounds = {f"{n} {rule}": mixed(f, rule) for n, f in widths.items() for rule in ("max", "sum")}
    return {label: value for label, value in bounds.items() if label != "8B sum"}


@case("TN-15")
def math_over_comms() -> Figures:
    times = at_best(2**22, POD.chips, MIDDLE.d_ff)
    return {f"70B N=8960 {rule}": 1 / times.comms_over_math(rule) for rule in ("max", "sum")}


@case("TN-16")
def cube_tokens() -> Figures:
    return {"E1": CUBE.chips * mixed(32768, "sum"), "E2/E3": CUBE.chips * mixed(32768)}


@case("TN-17")
def cube_split() -> Figures:
    return {"tokens for X_opt=256": (256 / x_opt(1, CUBE.chips, 32768)) ** 2}


@case("TN-18")
def volumes() -> Figures:
    profile = textbook(layer="mlp2")
    _, comms = profile.price_parts(problem(MIDDLE, POD), row(batch_split=1024, tp=8, layout=2))
    moved = {
        phase: sum(
            float(s[0])
            for flow in comms.flows
            if (flow.kind, flow.phase) == ("fsdp", phase)
            for s in flow.seconds.values()
        )
        for phase in ("forward", "backward")
    }
    return {"FSDP bwd/fwd": moved["backward"] / moved["forward"]}


leave(
    "TN-18",
    "the chapter contradicts itself; the planner moves 6BD, which the test below holds",
    "TP-row bwd/fwd",
    "mixed-row TP bwd/fwd",
)


@case("TN-19")
def dcn() -> Figures:
    pod_dcn = POD.chips / 4 * 2.5e10  # the first edition's bandwidth per host of four chips
    return {
        "exact": book_bounds.pod_bound_tokens(C, V5P.dcn_bytes_per_s),
        "E2's typo": book_bounds.pod_bound_tokens(4.46e14, V5P.dcn_bytes_per_s),
        "E1's rounded": book_bounds.pod_bound_tokens(3.8e18, 5e13),
        "E1 exact pod": book_bounds.pod_bound_tokens(POD.chips * C, pod_dcn),
    }


@case("TN-20")
def two_million() -> Figures:
    return {
        "Y": tensor_ways(30000),
        "FSDP chips": 2e6 / data_bound(3),
        "bound": mixed(30000),
        "mixed chips": 2e6 / mixed(30000),
    }


@case("TN-21")
def one_million() -> Figures:
    return {
        "X_opt N=8960": x_opt(1e6, POD.chips, 30000),
        "B/N": 1e6 / POD.chips,
        "T_comm/T_math": layer(1e6, 30000, 1024, 8).comms_over_math(),
    }


@case("TN-22")
def first_recipe() -> Figures:
    return {
        "X_opt": x_opt(3.5e6, POD.chips, 30000),
        "B/N": 3.5e6 / POD.chips,
        "E1 bound": mixed(30000, "sum"),
    }


@case("TN-23")
def ten_pods() -> Figures:
    flops, pods = book.training_flops(NOMINAL["70b"], 15e12), Cluster.build(V5P, pods=10)
    days = {"days at 100%": 1.0, "at 40%": 0.4}
    return {
        label: book.training_days(flops, chips=pods.chips, flops_per_s=C, mfu=mfu)
        for label, mfu in days.items()
    }


@case("TN-24")
def llama2() -> Figures:
    return {
        "ffw": LLAMA2.mlp_params,
        "attn": LLAMA2.attention_params,
        "vocab": LLAMA2.vocab_params,
        "total": LLAMA2.book_params,
    }


def state_gb() -> float:
    return book.state_bytes(LLAMA2.book_params, Recipe()) / 1e9


def saved_13b(tokens: float) -> float:
    """The input of the MLP and the outputs of its two wide matmuls, bytes."""
    return book.checkpoint_bytes(LLAMA2, tokens, 1, d_ff_tensors=2)


@case("TN-25")
def three_checkpoints() -> Figures:
    return {"GB": state_gb(), "TB": saved_13b(16e6) / 1e12}


@case("TN-26")
def long_sequences() -> Figures:
    return {
        "3*2^20/32768": Workload.from_tokens(3 * 2**20, 32768).global_batch_seqs,
        "TB": CUBE.chips * V5P.hbm_bytes / 1e12,
    }


leave("TN-26", "a batch is whole sequences: from_tokens refuses it", "3e6/32768")


@case("TN-27")
def pure_data_parallel() -> Figures:
    return {"GB": state_gb()}


@case("TN-28")
def pure_fsdp() -> Figures:
    total = saved_13b(3e6) + state_gb() * 1e9
    return {
        "act": saved_13b(3e6),
        "total TB": total / 1e12,
        "GB per chip": total / CUBE.chips / 1e9,
        "min tokens": data_bound(3) * CUBE.chips,
    }


def step_13b(params: float, tokens: float, rate: float) -> float:
    flops = book.training_flops(params, tokens)
    return book.compute_s(flops, chips=CUBE.chips, flops_per_s=rate, mfu=0.4)


@case("TN-29")
def mixed_13b() -> Figures:
    return {
        "B/N": 3e6 / CUBE.chips,
        "bound max": mixed(F13),
        "bound sum": mixed(F13, "sum"),
        "X_opt": x_opt(3e6, CUBE.chips, F13),
        "step s (4.6e14)": step_13b(13e9, 3e6, 4.6e14),
        "step s (4.59e14, exact P)": step_13b(LLAMA2.book_params, 3e6, C),
    }


@case("TN-30")
def other_batches() -> Figures:
    total = saved_13b(10e6) + state_gb() * 1e9
    return {
        "1M B/N": 1e6 / CUBE.chips,
        "1M X_opt": x_opt(1e6, CUBE.chips, F13),
        "10M B/N": 10e6 / CUBE.chips,
        "10M act TB": saved_13b(10e6) / 1e12,
        "10M GB per chip": total / CUBE.chips / 1e9,
        "10M step s": step_13b(LLAMA2.book_params, 10e6, C),
    }
