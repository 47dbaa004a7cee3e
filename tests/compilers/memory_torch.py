"""What a PyTorch program allocates and sends, counted as its operators run.

Tensors may be real or fake; a fake one has a storage of its true size and no data. Every
operator's outputs are looked at: a storage counts from the operator that made it until nothing
refers to it, also where autograd alone holds it, and follows resizes, by which FSDP2 frees and
fills its gathered weights. This is ``torch.cuda.memory_allocated()`` of the same program: the order
of allocations is the host's.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._tools import fake_collectives  # noqa: F401  (collectives of fake tensors)
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

#: The caching allocator hands out multiples of this (c10/cuda/CUDACachingAllocator.cpp,
#: kMinBlockSize).
BLOCK_BYTES = 512

_c10d, _functional = torch.ops.c10d, torch.ops._c10d_functional


class Tally(TorchDispatchMode):
    """Bytes allocated, their peak, and collectives, of what runs inside.

    ``sent`` counts ``(kind, group name, array bytes, dtype, phase)``. ``phase`` is ``forward``,
    ``backward`` (whatever autograd runs), or what :meth:`during` says.
    """

    def __init__(self, *, watch: bool = False) -> None:
        super().__init__()
        self.start_bytes = 0
        self.now_bytes = 0
        self.peak_bytes = 0
        self.peak_live: Counter[tuple[str, int]] = Counter()
        self.sent: Counter[tuple[str, str, int, str, str]] = Counter()
        self._watch = watch
        self._started = False
        self._sizes: dict[int, int] = {}
        self._made: dict[int, str] = {}
        self._phase: str | None = None
        self._resize = torch.UntypedStorage.resize_

    def start(self) -> None:
        """Forget the peak and the collectives; what is allocated stays so."""
        self.start_bytes = self.peak_bytes = self.now_bytes
        self.sent.clear()
        self._started = True

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Collectives inside are of this phase."""
        before, self._phase = self._phase, phase
        try:
            yield
        finally:
            self._phase = before

    def __enter__(self) -> Tally:
        tally, resize = self, self._resize

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            answer = resize(storage, size)
            tally._set(storage, "resize")
            return answer

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(
        self,
        func: Any,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # it comes again, as operators of local tensors
        if func in _COLLECTIVES:
            self._send(func, args)
        elif self._started and func.namespace in _NAMESPACES and func not in _SILENT:
            raise NotImplementedError(f"a collective that nobody counts: {func}")
        answer = func(*args, **(kwargs or {}))
        for tensor in tree_iter(answer):
            if isinstance(tensor, torch.Tensor):
                self._set(tensor.untyped_storage(), str(func))
        if func is _FLASH_BACKWARD:
            self._peak(_flash_backward_bytes(*args[1:3]))
        return answer

    def _set(self, storage: torch.UntypedStorage, maker: str) -> None:
        key = storage._cdata
        size = allocated_bytes(storage)
        if key not in self._sizes:
            weakref.finalize(storage, self._gone, key).atexit = False
            self._made[key] = maker
        self.now_bytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self._peak()

    def _gone(self, key: int) -> None:
        self.now_bytes -= self._sizes.pop(key, 0)
        self._made.pop(key, None)

    def _peak(self, workspace_bytes: int = 0) -> None:
        if self.now_bytes + workspace_bytes <= self.peak_bytes:
            return
        self.peak_bytes = self.now_bytes + workspace_bytes
        if self._watch:
            self.peak_live = Counter((self._made[key], size) for key, size in self._sizes.items())
            self.peak_live["workspace", workspace_bytes] += workspace_bytes > 0

    def _send(self, func: Any, args: tuple[Any, ...]) -> None:
        kind, array, times, group = _COLLECTIVES[func](args)
        phase = self._phase
        if phase is None:
            phase = "backward" if torch._C._current_graph_task_id() != -1 else "forward"
        name = group if isinstance(group, str) else dist.ProcessGroup.unbox(group).group_name
        size = times * array.numel() * array.element_size()
        self.sent[kind, name, size, str(array.dtype).removeprefix("torch."), phase] += 1


def allocated_bytes(storage: torch.UntypedStorage) -> int:
    """What the caching allocator hands out for a storage."""
    return -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES


_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward.default


def _flash_backward_bytes(query: torch.Tensor, key: torch.Tensor) -> int:
    """Bytes that flash attention 2 allocates inside its backward pass, beside its outputs.

    ``mha_bwd`` of aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp: gradients of
    the queries and one number a row in fp32, and those of keys and values for every query head
    before they are added up.
    """
    batch, heads, rows, width = query.shape
    whole = -(-rows // 128) * 128
    wide = -(-width // (32 if width <= 128 else 64)) * (32 if width <= 128 else 64)
    grouped = 2 * heads * key.shape[2] * width * query.element_size() * (heads != key.shape[1])
    return batch * (4 * heads * whole * (wide + 1) + grouped)


_Read = Callable[[tuple[Any, ...]], tuple[str, torch.Tensor, int, Any]]

#: How each collective's arguments name its array (gathered, before it is scattered, reduced, sent)
#: as a tensor and how many of it make the array, and its group.
_COLLECTIVES: dict[Any, _Read] = {
    _c10d._allgather_base_.default: lambda args: ("all-gather", args[0], 1, args[2]),
    _c10d._reduce_scatter_base_.default: lambda args: ("reduce-scatter", args[1], 1, args[2]),
    _c10d.allreduce_.default: lambda args: ("all-reduce", args[0][0], 1, args[1]),
    _c10d.send.default: lambda args: ("send", args[0][0], 1, args[1]),
    _functional.all_gather_into_tensor.default: lambda args: (
        "all-gather",
        args[0],
        args[1],
        args[2],
    ),
    _functional.reduce_scatter_tensor.default: lambda args: ("reduce-scatter", args[0], 1, args[3]),
    _functional.all_reduce.default: lambda args: ("all-reduce", args[0], 1, args[2]),
}

_NAMESPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor")

#: The other half of a send, and what only waits.
_SILENT = (_c10d.recv_.default, _functional.wait_tensor.default)
