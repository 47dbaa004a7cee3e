"""The remat ladders of real software stacks: what each setting keeps, and what it runs again.

Each ladder goes from most kept to least, and names its rungs as the framework does. The tensors are
those of :mod:`autoshard.costmodels.layer_tensors`, which derives what has to run again.

Sources.
Megatron-Core ``--recompute-granularity``: ``selective`` redoes the attention core between the
projections (arXiv 2205.05198, section 5), ``full`` runs the whole layer again, its last matmul and
its collectives included (megatron/core/transformer/transformer_block.py).
torchtitan ``activation_checkpoint.mode = "selective"``, option ``op`` (parallelisms/
parallelize_llama.py, ``_save_list``): the output of flash attention, of every second matmul (wq,
wv, w1 and w2 out of wq, wk, wv, wo, w1, w3, w2) and of reduce-scatters. The last holds under tensor
parallelism only and is left out: it would save ``wo`` from running again. PyTorch's non-reentrant
checkpoint stops once the last tensor that the backward pass wants is back, so ``w2`` never runs.
llm-foundry: ``fsdp_config.activation_checkpointing``, the same PyTorch checkpoint.
MaxText ``remat_policy`` (src/maxtext/layers/decoders.py): the names kept. The scanned layer's input
is the scan's carry and always kept; splash attention saves its log-sum-exp under the name of the
context. XLA drops what nobody reads: ``mlpwo`` is named by two policies and stored by none.
"""

from __future__ import annotations

from autoshard.costmodels.layer_tensors import EVERY_TENSOR, repeated_operations
from autoshard.costmodels.remat import OPERATIONS, Rung

_QKV = ("query_proj", "key_proj", "value_proj")
_CONTEXT = ("context", "log_sum_exp")
_MLP_IN = ("mlpwi_0", "mlpwi_1")


def _rung(name: str, *kept: str, saves_reductions: bool = False) -> Rung:
    """A rung that keeps the layer's input and ``kept``, and redoes only what it must."""
    tensors = ("layer_input", *kept)
    recompute = repeated_operations(tensors)
    # Both blocks' inputs are gathered again, as no rung keeps what was gathered. Attention's output
    # is reduced again where it is computed again; the MLP's, one reduction of two, never is. So do
    # XLA:TPU and PyTorch (docs/compilers.md).
    scatters = 0.5 if "output" in recompute and not saves_reductions else 0.0
    return Rung(
        name=name,
        kept=tensors,
        recompute=recompute,
        repeat_gathers=1.0,
        repeat_scatters=scatters,
    )


NONE = Rung(name="none", kept=EVERY_TENSOR)

MEGATRON_LADDER = (
    NONE,
    Rung(
        name="selective",
        kept=tuple(
            name
            for name in EVERY_TENSOR
            if name not in ("log_sum_exp", "softmax", "attention_mask", "probabilities")
        ),
        recompute=("attention",),
    ),
    Rung(
        name="full",
        kept=("layer_input",),
        recompute=OPERATIONS,
        repeat_gathers=1.0,
        repeat_scatters=1.0,
    ),
)

TORCHTITAN_LADDER = (
    NONE,
    _rung(
        "selective_op",
        *("query_matmul", "value_proj", *_CONTEXT, "mlpwi_0", "mlpwo"),
        saves_reductions=True,
    ),
    _rung("full"),
)

LLM_FOUNDRY_LADDER = (NONE, _rung("full"))

MAXTEXT_LADDER = (
    NONE,
    _rung("minimal_with_context", *_QKV, *_CONTEXT, "out_proj", *_MLP_IN, "mlpwo"),
    _rung("minimal", *_QKV, "out_proj", *_MLP_IN, "mlpwo"),
    _rung("save_dot_with_context_except_mlp", *_QKV, *_CONTEXT, "out_proj"),
    _rung("save_dot_except_mlpwi", *_QKV, "out_proj", "mlpwo"),
    _rung("save_dot_except_mlp", *_QKV, "out_proj"),
    _rung("save_qkv_context", *_QKV, *_CONTEXT),
    _rung("save_qkv_proj", *_QKV),
    _rung("save_out_proj", "out_proj"),
    _rung("full"),
)
