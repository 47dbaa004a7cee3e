"""What each software stack spends beside the weights and tensors of the model.

The facts say what the code allocates, and none belongs to a run. No least squares is needed to be
guided by data: where the code of a year was not clear, the peaks of a whole source decided. So it
was with the allocator and overhead of 2022, with nanotron's 16-bit gradients, gathered inputs and
logits, and with the two ages of torchtitan. MaxText's are those of XLA:TPU, and torchtitan's those
of PyTorch, as the compilers showed them (docs/compilers.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from autoshard.costmodels.stack import Stack


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFacts:
    """What a stack spends beside the weights and tensors of the model.

    Per logit, at the peak of the loss and its gradient: ``logit_bytes``, and
    ``sharded_logit_bytes`` where ranks share the vocabulary. Per parameter: ``spare_grad_bytes`` of
    16-bit gradients that stay beside fp32 ones, ``copy_bytes`` of another copy of the sharded
    weights. Per entry of the embedding table: ``lookup_bytes``, its dense gradient before it is
    added up; ``flat_lookup`` says that it is flattened for its reduction as well.

    ``gathered_layers`` have their weights unsharded at a time; ``keeps_tables``: the embedding and
    the head as well, for the whole pass. ``casts_gradients``: an unsharded gradient exists in
    16-bit and again in the precision of its reduction. ``gathered_inputs``: what sequence
    parallelism gathers for a matmul is saved whole. ``keeps_outputs``: a stage holds what it sent
    for each microbatch in flight; ``receives_ahead``: it has buffers for what all microbatches will
    bring. ``unsharded_in_pipeline``: under a pipeline, weights stay gathered between microbatches
    and gradients whole until the last one, whatever the ZeRO stage. ``yields_gradients``: those of
    a single microbatch come as saved tensors go, though a caching allocator has kept their blocks.
    ``regathers_head``: the head is gathered for its backward pass, and its gradient reduced beside
    that of the layer before. ``whole_lookup``: each TP rank has the gradient of the whole
    embedding. ``adds_up_apart``: gradients of several microbatches are added up beside those of the
    current one. ``whole_head_gradient``: that of the head is there before it is scattered, beside
    the logits. ``stores_residuals``: without remat a layer keeps all that autodiff reads, as it is
    (:func:`~autoshard.costmodels.layer_tensors.residual_bytes`). ``whole_norms``: the weights of
    norms are sharded over TP and not over FSDP. ``fp8_inputs``: in FP8 training, matmuls save their
    inputs in FP8. ``bucket_bytes``: communication buckets. ``overhead_bytes``: outside the
    framework's allocator. ``allocator``: what it reserves for a byte that comes and goes.
    """

    logit_bytes: float
    sharded_logit_bytes: float
    spare_grad_bytes: float = 0.0
    copy_bytes: float = 0.0
    lookup_bytes: float = 0.0
    flat_lookup: bool = False
    gathered_layers: float = 2.0
    keeps_tables: bool = False
    casts_gradients: bool = True
    gathered_inputs: bool = False
    keeps_outputs: bool = False
    receives_ahead: bool = False
    unsharded_in_pipeline: bool = False
    yields_gradients: bool = False
    regathers_head: bool = False
    whole_lookup: bool = False
    adds_up_apart: bool = False
    whole_head_gradient: bool = False
    stores_residuals: bool = False
    whole_norms: bool = False
    fp8_inputs: bool = False
    bucket_bytes: float = 0.0
    overhead_bytes: float = 1.5e9
    allocator: float = 1.05


# Overhead: a CUDA context with its kernels takes 0.5 GB, NCCL 0.3 GB for each of a few
# communicators; before CUDA 11.7 every kernel is loaded, and DeepSpeed's pipeline opens a group
# for each pair of stages.
# Allocator: reserved over allocated, PyTorch without expandable segments.

_TORCHTITAN = MemoryFacts(
    # The compiled loss keeps logits and their gradient in 16-bit, and nothing in fp32.
    logit_bytes=4.0,
    sharded_logit_bytes=4.0,
    # DTensor gathers before the linear layer, which saves what it is given.
    gathered_inputs=True,
    # FSDP2 under a pipeline accumulates unsharded, in the reduction's precision, and keeps weights
    # after a backward pass (torch/distributed/pipelining/stage.py, backward_maybe_with_nosync).
    unsharded_in_pipeline=True,
    yields_gradients=True,
    regathers_head=True,
    # embedding_dense_backward of torch/distributed/tensor/_ops/_embedding_ops.py knows no split of
    # the vocabulary.
    whole_lookup=True,
    # PipelineStage makes them with its first microbatch.
    receives_ahead=True,
)

FACTS = {
    "megatron": MemoryFacts(
        # vocab_parallel_cross_entropy: 16-bit logits, fp32 probabilities, which become the
        # gradient, and that in 16-bit.
        logit_bytes=8.0,
        sharded_logit_bytes=8.0,
        # Fused accumulation covers linear layers, not the lookup.
        lookup_bytes=2.0,
        # Transformer Engine, module/linear.py. Weights take two bytes either way: 16-bit, or FP8
        # and its transpose (--fp8-param-gather).
        fp8_inputs=True,
    ),
    "megatron-2021": MemoryFacts(
        logit_bytes=8.0,
        sharded_logit_bytes=8.0,
        # DeepSpeed's BF16_Optimizer keeps param.grad beside its fp32 accumulators.
        spare_grad_bytes=2.0,
        lookup_bytes=2.0,
        # buffered_allreduce_fallback flattens up to 5e8 elements; a table is one piece.
        flat_lookup=True,
        bucket_bytes=2e9,
        keeps_outputs=True,
        overhead_bytes=3.5e9,
        allocator=1.15,
    ),
    "torchtitan": _TORCHTITAN,
    "torchtitan-2024": replace(
        _TORCHTITAN,
        # Eager loss: 16-bit logits, fp32 copy, log-softmax, its gradient. Loss parallel has two
        # more fp32 temporaries (torch/distributed/tensor/parallel/loss.py).
        logit_bytes=14.0,
        sharded_logit_bytes=20.0,
        # Embedding, last norm and head were one FSDP unit, the root, which stays gathered.
        keeps_tables=True,
        regathers_head=False,
    ),
    # Its own pipeline (arXiv 2407.21783): neither PyTorch's schedules nor its embedding.
    "meta-internal": replace(_TORCHTITAN, whole_lookup=False, receives_ahead=False),
    "llm-foundry": MemoryFacts(
        # fused_crossentropy of flash-attn: logits and gradient in 16-bit.
        logit_bytes=4.0,
        sharded_logit_bytes=4.0,
        keeps_tables=True,
    ),
    "nanotron": MemoryFacts(
        # 16-bit logits, fp32 copy, shifted and exponentiated copies that are reused.
        logit_bytes=12.0,
        sharded_logit_bytes=12.0,
        # 16-bit gradients beside FP32GradientAccumulator's buffers.
        spare_grad_bytes=2.0,
        lookup_bytes=2.0,
        # Rows nt-007, nt-010 and nt-011: their peaks hold the gathered inputs.
        gathered_inputs=True,
        keeps_outputs=True,
    ),
    "maxtext": MemoryFacts(
        # As XLA:TPU lays it out (docs/compilers.md): 16-bit logits, whose gradient is made where it
        # is read; the head gathered, and its gradient whole. Sharded weights are cast ahead of the
        # scan, gathered and their gradients scattered one matmul at a time. Memory is planned
        # ahead; 0.3 GiB of HBM are reserved.
        logit_bytes=2.0,
        sharded_logit_bytes=2.0,
        copy_bytes=2.0,
        gathered_layers=1.0,
        casts_gradients=False,
        gathered_inputs=True,
        adds_up_apart=True,
        whole_head_gradient=True,
        stores_residuals=True,
        # base.yml, logical_axis_rules: norm is sharded over tensor.
        whole_norms=True,
        overhead_bytes=0.3e9,
        allocator=1.0,
    ),
}


#: Stacks that keep what another keeps.
SAME_FACTS = {
    "torchprime": "maxtext",
    "maxtext-gpu": "maxtext",
    "fms-fsdp": "torchtitan",
}


def memory_facts(stack: Stack) -> MemoryFacts:
    """What a stack spends beside weights and tensors; a stack of another name is like Megatron."""
    return FACTS.get(SAME_FACTS.get(stack.name, stack.name), FACTS["megatron"])
