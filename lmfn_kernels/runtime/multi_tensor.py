"""Many small tensors in one launch: an op's weights cast and laid out, and its gradients summed.

A table on the device, created once per set of shapes and strides, tells each program what to do. It is never freed, as
a CUDA graph may still read it. The tensors themselves are passed as arguments, since their addresses change from call
to call.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lmfn_kernels.runtime import kernels
from lmfn_kernels.runtime.gradients import PartialSums
from lmfn_kernels.runtime.launch import PLANS, Plan, accumulator, cdiv, launch, lies_as_taps
from lmfn_kernels.runtime.layout import pitch
from lmfn_kernels.runtime.torch_private import FakeTensor

SLOTS = (4, 8, 16, 32)
"""Tensors per launch, at most 32: Triton has no lists of pointers. A launch takes the host longer the more there
are."""
WARPS = 4
LAID_OUT = 1024
"""Elements that one program copies."""
LOADED, STEPS = 2048, 5
"""Partial sums that one program loads at once, and the most steps in which it should add up all of its sums."""
FEWEST, MOST = 32, 256
"""Sums that one program computes, neighbours in memory: fewer than 32 would not fill a line of 128 bytes."""

Geometry = tuple[tuple[Any, ...], ...]
"""Of each tensor, what the table depends on: shapes, strides, offset."""


def lay_out(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Convolution weights [N, K, k, k] in `dtype` and in the layout that `weight_as_taps` takes without a copy.

    Weights that already have both are returned as they are; the others are copied into one allocation.
    """
    found = list(weights)
    todo = [i for i, weight in enumerate(weights) if weight.dtype != dtype or not lies_as_taps(weight)]
    if todo:
        these = [weights[i] for i in todo]
        for i, laid_out in zip(todo, laid_out_in(laid_out_copy(these, dtype), these), strict=True):
            found[i] = laid_out
    return found


def laid_out_copy(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The values of all weights in `dtype` and in that layout, one weight after the other, as a vector."""
    sizes = [_laid_out_size(weight.shape, dtype) for weight in weights]
    memory = torch.empty((sum(sizes),), dtype=dtype, device=weights[0].device)
    if not isinstance(memory, FakeTensor):
        begins = list(accumulate(sizes, initial=0))
        for some in _groups(range(len(weights)), lambda i: weights[i].dtype):
            these = [weights[i] for i in some]
            geometry = tuple((begins[i], weights[i].shape, weights[i].stride()) for i in some)
            table = _lay_out_table(geometry, dtype, memory.device)
            launch(memory, _lay_out, (table.shape[0],), **_filled("p_x", these), p_table=table, p_out=memory)
    return memory


def laid_out_in(memory: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """The laid-out weights in the `laid_out_copy` of `weights`, of which only the shapes are used."""
    found, begin = [], memory.storage_offset()
    for weight in weights:
        n, k, _, width = weight.shape
        s = pitch(n, memory.dtype)
        found.append(memory.as_strided(weight.shape, (1, s, width * k * s, k * s), begin))
        begin += _laid_out_size(weight.shape, memory.dtype)
    return found


def sum_gradients(gradients: Sequence[PartialSums], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of each tensor, in its dtype and strides. Summed in a fixed order, so that the bits never vary."""
    found = [torch.empty_like(tensor) for tensor in tensors]
    for some in _groups(range(len(found)), lambda i: (gradients[i].values.dtype, found[i].dtype)):
        values, results = [gradients[i].values for i in some], [found[i] for i in some]
        if not isinstance(values[0], FakeTensor):
            geometry = tuple((x.shape, x.stride(), y.stride()) for x, y in zip(values, results, strict=True))
            summed = _sums_per_program(max(len(x) for x in values))
            table = _sum_table(geometry, summed, values[0].device)
            key = table.shape[0], summed, values[0].dtype
            launch(values[0], _sum, key, **_filled("p_x", values), **_filled("p_y", results), p_table=table)
    return found


def _groups(places: Sequence[int], kind: Callable[[int], Hashable]) -> Iterator[list[int]]:
    """The places in groups of one kind, of as many as a launch takes."""
    of_kinds: dict[Hashable, list[int]] = {}
    for i in places:
        of_kinds.setdefault(kind(i), []).append(i)
    for some in of_kinds.values():
        yield from (some[first : first + SLOTS[-1]] for first in range(0, len(some), SLOTS[-1]))


def _filled(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """The arguments of a launch that takes as few as possible; unused ones repeat the first tensor."""
    slots = next(slots for slots in SLOTS if len(tensors) <= slots)
    return {f"{name}{i}": tensors[i] if i < len(tensors) else tensors[0] for i in range(slots)}


@lru_cache(PLANS)
def _lay_out(programs: int) -> Plan:
    return Plan(kernels.lay_out_kernel, (programs,), WARPS, {}, FIELDS=16, BLOCK=LAID_OUT)


@lru_cache(PLANS)
def _sum(programs: int, summed: int, dtype: torch.dtype) -> Plan:
    constants = {"FIELDS": 16, "ACC": accumulator(dtype), "BLOCK_S": LOADED // summed, "BLOCK": summed}
    return Plan(kernels.sum_kernel, (programs,), WARPS, {}, **constants)


@cache
def _lay_out_table(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Tensor:
    rows = []
    for i, (begin, shape, strides) in enumerate(geometry):
        n, k, _, width = shape
        size = _laid_out_size(shape, dtype)
        fields = begin, size, k, n, pitch(n, dtype), width, *strides
        rows += [(i, first, *fields, 0, 0, 0, 0) for first in range(0, size, LAID_OUT)]
    return _on_device(rows, device)


def _laid_out_size(shape: Sequence[int], dtype: torch.dtype) -> int:
    n, k, height, width = shape
    return height * width * k * pitch(n, dtype)


def _sums_per_program(values: int) -> int:
    """How many sums of that many values one program computes: a power of two."""
    at_once = 1 << (cdiv(values, STEPS) - 1).bit_length()
    return min(MOST, max(FEWEST, LOADED // at_once))


@cache
def _sum_table(geometry: Geometry, summed: int, device: torch.device) -> Tensor:
    rows = []
    for i, (shape, strides, of_sum) in enumerate(geometry):
        # Dimensions by decreasing stride of the values, so that neighbouring threads read neighbouring addresses.
        dimensions = sorted(zip(strides[1:], shape[1:], of_sum, strict=True), reverse=True)
        dimensions = [(0, 1, 0)] * (4 - len(dimensions)) + dimensions
        of_values, sizes, of_sums = zip(*dimensions, strict=True)
        count = math.prod(sizes)
        dense = all(of_values[j] == math.prod(sizes[j + 1 :]) for j in range(4) if sizes[j] > 1)
        in_order = dense and count % 4 == 0 and strides[0] % 4 == 0
        fields = count, shape[0], strides[0], *sizes[1:], *of_values, *of_sums
        rows += [(i + (SLOTS[-1] if in_order else 0), first, *fields) for first in range(0, count, summed)]
    return _on_device(rows, device)


def _on_device(rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # tensors created in inference mode cannot be used outside it
        return torch.tensor(rows, dtype=torch.int32, device=device)
