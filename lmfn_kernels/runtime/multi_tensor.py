"""Many small tensors in one launch: an op's weights cast and laid out, and its gradients summed.

A table on the device, made once for tensors of these shapes and strides, says what each program does. The tensors
themselves come as `SLOTS` arguments, since their addresses change from call to call.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lmfn_kernels.runtime import kernels
from lmfn_kernels.runtime.gradients import PartialSums
from lmfn_kernels.runtime.launch import PLANS, Plan, accumulator, launch, lies_as_taps
from lmfn_kernels.runtime.layout import pitch
from lmfn_kernels.runtime.torch_private import FakeTensor

SLOTS = 16
"""Tensors that one launch takes: Triton has no lists of pointers. It also bounds the partial sums held at a time."""
WARPS = 4
LAID_OUT = 1024
"""Elements that a program lays out."""
SUMMED, AT_ONCE = 256, 8
"""Elements that a program sums, and partial sums that it loads at once."""

Geometry = tuple[tuple[tuple[int, ...], ...], ...]
"""Shapes and strides of each tensor."""


def lay_out(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Weights of convolutions [N, K, k, k] in that dtype, as `weight_as_taps` takes them without a copy.

    Those that are so already are given back; all others are views of one piece of memory.
    """
    found = list(weights)
    todo = [i for i, weight in enumerate(weights) if weight.dtype != dtype or not lies_as_taps(weight)]
    for some in _groups(todo, lambda i: weights[i].dtype):
        these = [weights[i] for i in some]
        sizes = [_laid_out_size(weight.shape, dtype) for weight in these]
        memory = torch.empty((sum(sizes),), dtype=dtype, device=these[0].device)
        if not isinstance(memory, FakeTensor):
            geometry = tuple((weight.shape, weight.stride()) for weight in these)
            table = _lay_out_table(geometry, dtype, memory.device)
            launch(memory, _lay_out, (table.shape[0],), **_filled("p_x", these), p_table=table, p_out=memory)
        first = 0
        for i, weight, size in zip(some, these, sizes, strict=True):
            n, k, _, width = weight.shape
            s = pitch(n, dtype)
            found[i] = memory[first:].as_strided(weight.shape, (1, s, width * k * s, k * s))
            first += size
    return found


def sum_gradients(gradients: Sequence[PartialSums], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of each of the tensors, in its dtype and strides. The order is fixed: bits are always the same."""
    found = [torch.empty_like(tensor) for tensor in tensors]
    for some in _groups(range(len(found)), lambda i: (gradients[i].values.dtype, found[i].dtype)):
        values, results = [gradients[i].values for i in some], [found[i] for i in some]
        if not isinstance(values[0], FakeTensor):
            geometry = tuple((x.shape, x.stride(), y.stride()) for x, y in zip(values, results, strict=True))
            table = _sum_table(geometry, values[0].device)
            key = table.shape[0], values[0].dtype
            launch(values[0], _sum, key, **_filled("p_x", values), **_filled("p_y", results), p_table=table)
    return found


def _groups(places: Sequence[int], kind: Callable[[int], Hashable]) -> Iterator[list[int]]:
    """Of one kind, and at most SLOTS at a time."""
    of_kinds: dict[Hashable, list[int]] = {}
    for i in places:
        of_kinds.setdefault(kind(i), []).append(i)
    for some in of_kinds.values():
        yield from (some[first : first + SLOTS] for first in range(0, len(some), SLOTS))


def _filled(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """All arguments: those left over are the first again."""
    return {f"{name}{i}": tensors[i] if i < len(tensors) else tensors[0] for i in range(SLOTS)}


@lru_cache(PLANS)
def _lay_out(programs: int) -> Plan:
    return Plan(kernels.lay_out_kernel, (programs,), WARPS, {}, FIELDS=16, BLOCK=LAID_OUT)


@lru_cache(PLANS)
def _sum(programs: int, dtype: torch.dtype) -> Plan:
    constants = {"FIELDS": 16, "ACC": accumulator(dtype), "BLOCK_S": AT_ONCE, "BLOCK": SUMMED}
    return Plan(kernels.sum_kernel, (programs,), WARPS, {}, **constants)


@lru_cache(PLANS)
def _lay_out_table(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Tensor:
    rows, begin = [], 0
    for i, (shape, strides) in enumerate(geometry):
        n, k, _, width = shape
        size = _laid_out_size(shape, dtype)
        fields = begin, size, k, n, pitch(n, dtype), width, *strides
        rows += [(i, first, *fields, 0, 0, 0, 0) for first in range(0, size, LAID_OUT)]
        begin += size
    return _on_device(rows, device)


def _laid_out_size(shape: Sequence[int], dtype: torch.dtype) -> int:
    n, k, height, width = shape
    return height * width * k * pitch(n, dtype)


@lru_cache(PLANS)
def _sum_table(geometry: Geometry, device: torch.device) -> Tensor:
    rows = []
    for i, (shape, strides, of_sum) in enumerate(geometry):
        # In the order in which the values lie.
        dimensions = sorted(zip(strides[1:], shape[1:], of_sum, strict=True), reverse=True)
        dimensions = [(0, 1, 0)] * (4 - len(dimensions)) + dimensions
        of_values, sizes, of_sums = zip(*dimensions, strict=True)
        count = math.prod(sizes)
        fields = count, shape[0], strides[0], *sizes[1:], *of_values, *of_sums
        rows += [(i, first, *fields) for first in range(0, count, SUMMED)]
    return _on_device(rows, device)


def _on_device(rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is made in that mode cannot be used outside it
        return torch.tensor(rows, dtype=torch.int32, device=device)
