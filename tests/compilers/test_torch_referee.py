"""The PyTorch referee counts right: allocations by hand, and collectives that are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cases import read_cases

from autoshard.compiled import Case, Compiled
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.plan import Plan

pytestmark = pytest.mark.compilers

pytest.importorskip("torch", minversion="2.13")

import fused_torch as fused  # noqa: E402
import torch  # noqa: E402
import trace_torch  # noqa: E402
from memory_torch import Tally  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

HERE = Path(__file__).parent
MEBI = 2**20


@pytest.fixture(params=["real", "fake"])
def tally(request: pytest.FixtureRequest) -> Any:
    """A tally of real tensors, and of fake ones, which have no data."""
    if request.param == "real":
        with Tally() as counted:
            yield counted
    else:
        with FakeTensorMode(), Tally() as counted:
            yield counted


def mebi(count: int = 1) -> torch.Tensor:
    return torch.ones(count * MEBI // 4)


def test_a_tensor_counts_while_it_lives_and_a_view_does_not(tally: Tally) -> None:
    x = mebi(2)
    view, doubled = x[::2].view(-1), x * 2
    x.add_(1)
    assert tally.now_bytes == 4 * MEBI
    del doubled
    assert tally.now_bytes == 2 * MEBI
    del x
    assert tally.now_bytes == 2 * MEBI, "the view keeps it"
    del view
    assert tally.now_bytes == 0
    assert tally.peak_bytes == 4 * MEBI


def test_what_autograd_alone_holds_counts_until_the_backward_pass(tally: Tally) -> None:
    x = mebi().requires_grad_()
    total = (x * x).exp().sum()  # the square dies; exp keeps its output, sum keeps nothing
    assert tally.now_bytes == 2 * MEBI + 512, "a number takes a block of 512 bytes"
    tally.start()
    total.backward()
    assert x.grad is not None
    assert tally.now_bytes == 2 * MEBI + 512, "x, its gradient and the total"
    # x, the gradient of the square, and its two products with x, of which one is added to the
    # other (exp's output is gone); and two numbers, the total and its gradient.
    assert tally.peak_bytes == 4 * MEBI + 2 * 512


def test_a_checkpoint_keeps_its_input_alone(tally: Tally) -> None:
    x = mebi().requires_grad_()

    def chain(y: torch.Tensor) -> torch.Tensor:
        for _ in range(5):
            y = y.exp()
        return y

    kept = chain(x)
    assert tally.now_bytes == (1 + 5) * MEBI
    del kept
    again = checkpoint(chain, x, use_reentrant=False, preserve_rng_state=False)
    assert tally.now_bytes == (1 + 1) * MEBI
    tally.start()
    again.sum().backward()
    assert tally.peak_bytes >= (1 + 1 + 5) * MEBI


def test_a_storage_that_is_resized_counts_what_it_has(tally: Tally) -> None:
    x = mebi()
    x.untyped_storage().resize_(0)
    assert tally.now_bytes == 0
    x.untyped_storage().resize_(MEBI // 2)
    assert tally.now_bytes == MEBI // 2


def test_the_fused_norm_is_the_norm() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    mine = fused.rms_norm(x, weight)
    book = functional.rms_norm(x, (8,), weight, fused.EPSILON)
    torch.testing.assert_close(mine, book)
    grad = torch.randn_like(mine)
    torch.testing.assert_close(
        torch.autograd.grad(mine, (x, weight), grad), torch.autograd.grad(book, (x, weight), grad)
    )


def test_the_fused_loss_is_the_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 11, requires_grad=True), torch.randint(11, (2, 3))
    mine = fused.cross_entropy(logits, targets)
    book = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(mine, book)
    torch.testing.assert_close(torch.autograd.grad(mine, logits), torch.autograd.grad(book, logits))


# A LLaMA that is small and full of odd sizes, so that no two arrays are as long.
D, FF, HEADS, KV, HEAD, VOCAB, SEQ = 128, 448, 4, 2, 32, 1920, 256
LAYER = 2 * D * D + 2 * D * KV * HEAD + 3 * D * FF
TABLE = VOCAB * D


def tiny(layers: int = 2, *, rung: str = "none", stage: int = 0, **degrees: Any) -> Compiled:
    from autoshard.costmodels.model import Model

    model = Model(
        name="tiny",
        n_layers=layers,
        d_model=D,
        d_ff=FF,
        n_heads=HEADS,
        n_kv_heads=KV,
        d_head=HEAD,
        vocab=VOCAB,
    )
    pp = degrees.get("pp", 1)
    plan = Plan(
        **degrees, layers_per_stage=(layers // pp,) * pp, remat=({rung: layers // pp},) * pp
    )
    case = Case(
        name="tiny",
        compiler="torch",
        model="tiny",
        n_layers=layers,
        chip="h100",
        topology=str(plan.chips_used),
        seq_len=SEQ,
        stack="torchtitan",
        plan=plan,
        stage=stage,
    )
    return trace_torch.trace(case, model)


def sent(compiled: Compiled) -> Mapping[tuple[str, str, int], int]:
    """How often each kind of collective runs on an axis, by the bytes of its array."""
    counts: Counter[tuple[str, str, int]] = Counter()
    for each in compiled.collectives:
        counts[each.kind, each.axes[0], each.array_bytes] += each.times
    return counts


def test_fsdp_and_tensor_parallelism_send_what_is_known() -> None:
    layers, shards, tp = 2, 2, 2
    made = tiny(layers, batch_split=shards, tp=tp)
    layer, table = LAYER // tp + 2 * D, TABLE // tp
    activations = 2 * SEQ * D
    assert sent(made) == {
        # Weights go round in bf16 for each pass, gradients in fp32; a norm lies with the head.
        ("all-gather", "fsdp", 2 * layer): 2 * layers,
        ("all-gather", "fsdp", 2 * table): 2,
        ("all-gather", "fsdp", 2 * (table + D)): 2,
        ("reduce-scatter", "fsdp", 4 * layer): layers,
        ("reduce-scatter", "fsdp", 4 * table): 1,
        ("reduce-scatter", "fsdp", 4 * (table + D)): 1,
        # Two halves of a layer, each gathered and scattered, and the same backwards; the embedding
        # is scattered and the head gathered.
        ("all-gather", "tensor", activations): 2 * (2 * layers) + 2,
        ("reduce-scatter", "tensor", activations): 2 * (2 * layers) + 2,
        ("all-reduce", "tensor", 2 * D): 2 * layers + 1,  # gradients of norms
        ("all-reduce", "tensor", 4 * SEQ): 3,  # of the loss: maximum, sum, and the right token
    }
    assert {each.group_size for each in made.collectives} == {2}


def test_weights_optimizer_and_batch_are_what_stays() -> None:
    made = tiny(batch_split=2, tp=2)
    # fp32 weights and two moments of each, of half of what a rank of tensor parallelism has.
    matrices = 3 * 4 * (2 * LAYER // 2 + TABLE) // 2
    norms = 5 * 3 * 512  # half of 128 entries is less than a block
    steps = (2 * 9 + 3) * 512  # a counter for each of the weights
    batch = 2 * 8 * SEQ
    assert made.argument_bytes == matrices + norms + steps + batch


@pytest.mark.parametrize(
    ("rung", "per_token"),
    [
        # The layer's input; log-sum-exp in fp32. Inputs of column-parallel matmuls whole.
        ("full", 2 * D // 2),
        (
            "none",
            # residuals and whole norms, with a number each; q, k, v and context; the MLP
            2 * (2 * D // 2 + 2 * D)
            + 2 * 4
            + 2 * (2 * D // 2 + 2 * KV * HEAD // 2)
            + 4 * HEADS // 2
            + 4 * 2 * FF // 2,
        ),
        (
            "selective_op",
            # input, query, value, context, gate; both reductions; and the last matmul before its
            # own, which nobody reads
            2 * (D + D + KV * HEAD + D + FF) // 2 + 4 * HEADS // 2 + 2 * 2 * D // 2 + 2 * D,
        ),
    ],
)
def test_a_layer_keeps_what_its_rung_says(rung: str, per_token: float) -> None:
    rows = 8  # activations outweigh weights
    few, more = (tiny(n, rung=rung, batch_split=2, tp=2, micro_batch_size=rows) for n in (2, 3))
    kept = (more.peak_bytes - more.argument_bytes) - (few.peak_bytes - few.argument_bytes)
    assert kept == pytest.approx(per_token * rows * SEQ, rel=0.03)


def test_fsdp_gathers_and_reduces_for_each_microbatch() -> None:
    once, thrice = (sent(tiny(batch_split=2, reshard=2, microbatches=m)) for m in (1, 3))
    assert thrice == {key: 3 * times for key, times in once.items()}
    assert once["all-gather", "fsdp", 2 * (LAYER + 2 * D)] == 2, "forward alone"


def test_a_pipeline_reduces_gradients_once_a_step() -> None:
    layer, microbatches = LAYER + 2 * D, 4
    made = sent(tiny(6, pp=3, stage=1, batch_split=2, reshard=2, microbatches=microbatches))
    assert made == {
        ("all-gather", "fsdp", 2 * layer): 2,
        ("reduce-scatter", "fsdp", 4 * layer): 2,
        ("send", "stage", 2 * SEQ * D): 2 * microbatches,
    }


def test_copies_of_shards_reduce_over_the_data_axis() -> None:
    made = sent(tiny(dp=2, batch_split=2, microbatches=2))
    assert made["all-reduce", "data", 4 * (LAYER + 2 * D) // 2] == 2 * 2


def test_a_degree_that_the_program_lacks_is_refused() -> None:
    with pytest.raises(SpecError, match="no seq_split, cp or ep"):
        tiny(batch_split=2, seq_split=2)


def test_every_case_of_the_list_is_a_plan_that_the_program_has() -> None:
    cases = [case for case in read_cases(HERE / "cases_torch.toml") if case.compiler == "torch"]
    assert len(cases) >= 20
    for case in cases:
        trace_torch.check(case)


@pytest.mark.parametrize(
    ("change", "message"),
    [("sequences = 2", "unknown key 'sequences'"), ("pp = 3", "not 4")],
)
def test_a_list_with_a_slip_is_refused(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "cases.toml"
    path.write_text(
        '[[case]]\nname = "a"\ncompiler = "torch"\nmodel = "llama3-8b"\nn_layers = 4\n'
        f'seq_len = 1024\nchip = "h100"\nstack = "torchtitan"\n{change}\n'
    )
    with pytest.raises(SpecError, match=message):
        read_cases(path)


def test_a_compiler_that_nobody_knows_is_refused() -> None:
    from referee import ask

    case = read_cases(HERE / "cases_torch.toml")[0]
    with pytest.raises(SpecError, match="there is torch"):
        ask(replace(case, compiler="gcc"))
