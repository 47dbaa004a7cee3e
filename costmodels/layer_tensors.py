"""One transformer layer as a graph of tensors and operations: what is stored, what runs again.

Reverse-mode differentiation needs some inputs or outputs of every operation. What a remat policy
keeps of them costs memory; what it does not keep is computed again from what it keeps, and only
that: an operation whose outputs nobody reads does not run (XLA's dead-code elimination, and the
early stop of PyTorch's non-reentrant checkpoint, which comes to the same in a layer whose last
matmul is the only one nobody reads).

Sources: Korthikanti et al. 2022 (arXiv 2205.05198), section 4, for the tensors of a layer without
flash attention and for what tensor and sequence parallelism shard; Dao 2023 (arXiv 2307.08691) for
flash attention, whose backward pass reads q, k, v, the output and an fp32 log-sum-exp per head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from autoshard.costmodels.costs import Column
from autoshard.costmodels.model import Model

#: Widths that tensors come in, per token on one tensor-parallel rank: the residual stream (sharded
#: where sequence parallelism is on), what the first matmul of each half reads of it (in some stacks
#: saved whole), queries, keys, the MLP's inner width, one number a head, and a row of every head's
#: score matrix.
WIDTHS = ("residual", "normed", "query", "key", "inner", "heads", "scores")

#: Each tensor's width and bytes per element. Activations stay 16-bit also under FP8 training where
#: operands are cast on the fly, as torchao and MaxText do (torchtitan's peak is the same in BF16
#: and FP8 to 0.3 %: rows tt-009 and tt-010).
TENSORS: dict[str, tuple[str, float]] = {
    "layer_input": ("residual", 2.0),
    "attention_norm": ("normed", 2.0),
    "query_matmul": ("query", 2.0),
    "key_matmul": ("key", 2.0),
    "value_proj": ("key", 2.0),
    "query_proj": ("query", 2.0),
    "key_proj": ("key", 2.0),
    "context": ("query", 2.0),
    "log_sum_exp": ("heads", 4.0),
    "softmax": ("scores", 2.0),
    "attention_mask": ("scores", 1.0),
    "probabilities": ("scores", 2.0),
    "out_proj": ("residual", 2.0),
    "output_mask": ("residual", 1.0),
    "attention_residual": ("residual", 2.0),
    "mlp_norm": ("normed", 2.0),
    "mlpwi_0": ("inner", 2.0),
    "mlpwi_1": ("inner", 2.0),
    "gate": ("inner", 2.0),
    "activation": ("inner", 2.0),
    "mlpwo": ("residual", 2.0),
    "mlp_mask": ("residual", 1.0),
}
EVERY_TENSOR: tuple[str, ...] = tuple(TENSORS)

#: Bytes per element of the inputs of the matmuls where those are saved in FP8. Attention's backward
#: pass reads the context in 16-bit beside it.
FP8_INPUTS = {"attention_norm": 1.0, "context": 3.0, "mlp_norm": 1.0, "activation": 1.0}

#: What fused pointwise kernels give back for nothing but reading their input.
POINTWISE = ("attention_norm", "mlp_norm", "gate", "activation")


#: Bytes of the residuals of JAX's autodiff beside those of :data:`TENSORS`' names, in each width:
#: of each norm its input in fp32 and its result before and after it is gathered, the context once
#: as the kernel and once as the matmul has it, and for a gated activation its three factors.
_RESIDUALS = {"residual": 6.0, "normed": 2.0, "query": 6.0, "key": 4.0, "heads": 4.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of a layer: what it reads and writes, and what its backward pass reads.

    ``name`` is one of :data:`~autoshard.costmodels.remat.OPERATIONS`, but for the last residual
    connection, which no rung repeats; the gate and the up projection of a gated MLP are two
    operations named ``mlp_in``.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    backward_reads: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """What decides which tensors a layer has.

    In a ``parallel_block`` both halves read the one norm, and attention's output joins the residual
    only at the end of the layer. ``unfused`` attention has a score matrix, and dropout there and on
    both residual connections: Megatron of 2022. ``eager`` runs a gated activation as two kernels.
    """

    parallel_block: bool = False
    gated_mlp: bool = True
    unfused: bool = False
    eager: bool = False

    @classmethod
    def of(cls, model: Model, *, unfused: bool = False, eager: bool = False) -> LayerKind:
        """The kind of a model's layers."""
        return cls(
            parallel_block=model.parallel_block,
            gated_mlp=model.gated_mlp,
            unfused=unfused,
            eager=eager,
        )


_QKV = ("query_proj", "key_proj", "value_proj")


def layer_operations(kind: LayerKind | None = None) -> tuple[Operation, ...]:
    """The operations of one layer in their order; by default, of a gated sequential layer."""
    kind = kind or LayerKind()
    return (*_attention_half(kind), *_mlp_half(kind))


def _attention_half(kind: LayerKind) -> list[Operation]:
    if kind.unfused:
        # The gradient of the values reads the probabilities after dropout, that of dropout the
        # mask, that of softmax its output.
        inner = ("softmax", "attention_mask", "probabilities")
        outputs: tuple[str, ...] = ("context", *inner)
        reads: tuple[str, ...] = (*_QKV, *inner)
        mask: tuple[str, ...] = ("output_mask",)
    else:
        outputs, reads, mask = ("context", "log_sum_exp"), (*_QKV, "context", "log_sum_exp"), ()
    return [
        Operation(
            name="attention_norm",
            inputs=("layer_input",),
            outputs=("attention_norm",),
            backward_reads=("layer_input",),
        ),
        _matmul("query", "attention_norm", "query_matmul"),
        _matmul("key", "attention_norm", "key_matmul"),
        _matmul("value", "attention_norm", "value_proj"),
        Operation(name="rotary", inputs=("query_matmul",), outputs=("query_proj",)),
        Operation(name="rotary", inputs=("key_matmul",), outputs=("key_proj",)),
        Operation(name="attention", inputs=_QKV, outputs=outputs, backward_reads=reads),
        _matmul("output", "context", "out_proj"),
        Operation(
            name="attention_residual",
            inputs=("layer_input", "out_proj"),
            outputs=("attention_residual", *mask),
            backward_reads=mask,
        ),
    ]


def _mlp_half(kind: LayerKind) -> list[Operation]:
    source = "attention_norm" if kind.parallel_block else "mlp_norm"
    operations = []
    if not kind.parallel_block:
        operations.append(
            Operation(
                name="mlp_norm",
                inputs=("attention_residual",),
                outputs=("mlp_norm",),
                backward_reads=("attention_residual",),
            )
        )
    inner = ("mlpwi_0", "mlpwi_1") if kind.gated_mlp else ("mlpwi_0",)
    operations += [_matmul("mlp_in", source, name) for name in inner]
    if kind.eager and kind.gated_mlp:
        operations.append(
            Operation(
                name="activation",
                inputs=("mlpwi_0",),
                outputs=("gate",),
                backward_reads=("mlpwi_0",),
            )
        )
        inner = ("gate", "mlpwi_1")
    operations += [
        Operation(name="activation", inputs=inner, outputs=("activation",), backward_reads=inner),
        _matmul("mlp_out", "activation", "mlpwo"),
    ]
    if kind.unfused:
        operations.append(
            Operation(
                name="mlp_residual",
                inputs=("attention_residual", "mlpwo"),
                outputs=("mlp_mask",),
                backward_reads=("mlp_mask",),
            )
        )
    return operations


def _matmul(name: str, source: str, product: str) -> Operation:
    """A weight matmul: the gradient of its weight reads its input."""
    return Operation(name=name, inputs=(source,), outputs=(product,), backward_reads=(source,))


def repeated(
    kept: Collection[str], operations: Iterable[Operation] | None = None
) -> tuple[Operation, ...]:
    """The operations that run again so that the backward pass finds all that it reads."""
    graph = tuple(layer_operations() if operations is None else operations)
    wanted = {name for operation in graph for name in operation.backward_reads}
    again = []
    for operation in reversed(graph):
        if any(name in wanted and name not in kept for name in operation.outputs):
            again.append(operation)
            wanted.update(operation.inputs)
    return tuple(reversed(again))


def repeated_operations(
    kept: Collection[str], operations: Iterable[Operation] | None = None
) -> tuple[str, ...]:
    """Names of the operations that run again, each once."""
    return tuple(dict.fromkeys(operation.name for operation in repeated(kept, operations)))


def repeated_shares(
    kept: Collection[str], operations: Iterable[Operation] | None = None
) -> dict[str, float]:
    """The share of each operation that runs again: half of ``mlp_in`` if one matmul of two does."""
    graph = tuple(layer_operations() if operations is None else operations)
    again = Counter(operation.name for operation in repeated(kept, graph))
    total = Counter(operation.name for operation in graph)
    return {name: count / total[name] for name, count in again.items()}


def stored_tensors(
    kept: Collection[str], operations: Iterable[Operation] | None = None
) -> tuple[str, ...]:
    """Those of the kept tensors that the backward pass or a repeated operation reads."""
    graph = tuple(layer_operations() if operations is None else operations)
    read = {name for operation in graph for name in operation.backward_reads}
    for operation in repeated(kept, graph):
        read.update(operation.inputs)
    return tuple(name for name in EVERY_TENSOR if name in read and name in kept)


def bytes_of(tensors: Iterable[str], sizes: Mapping[str, float] | None = None) -> Column:
    """Bytes per unit of each of :data:`WIDTHS` that these tensors take, ``[w]``.

    ``sizes`` overrides the bytes per element of some tensors.
    """
    total = np.zeros(len(WIDTHS))
    for name in tensors:
        width, size = TENSORS[name]
        total[WIDTHS.index(width)] += (sizes or {}).get(name, size)
    return total


def residual_bytes(model: Model) -> Column:
    """Bytes per unit of each width that a layer stores under JAX without remat, ``[w]``.

    A layer runs in a ``scan``: what its backward pass reads crosses from one loop to the other, and
    nothing of it can be fused away. ``jax.ad_checkpoint.print_saved_residuals`` lists it.
    """
    norms = 1.0 if model.parallel_block else 2.0
    stored = dict(_RESIDUALS)
    for width in ("residual", "normed"):
        stored[width] *= norms
    # The activation's factors, 16-bit, beside the matmuls' results and its own.
    stored["inner"] = 2.0 * (model.mlp_matrices - 1 + 3 + 1)
    return np.array([stored.get(width, 0.0) for width in WIDTHS])
