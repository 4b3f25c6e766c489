"""Many small tensors in one launch: an op's weights cast and laid out, and its gradients summed.

A table on the device, created once per set of shapes and strides, tells each program what to do. The tensors
themselves are passed as `SLOTS` arguments, since their addresses change from call to call.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lmfn_kernels.runtime import kernels
from lmfn_kernels.runtime.gradients import PartialSums
from lmfn_kernels.runtime.launch import PLANS, Plan, accumulator, cdiv, launch, lies_as_taps
from lmfn_kernels.runtime.layout import pitch
from lmfn_kernels.runtime.torch_private import FakeTensor

SLOTS = 16
"""Tensors per launch: Triton has no lists of pointers. This also bounds the partial sums in memory at any time."""
WARPS = 4
LAID_OUT = 1024
"""Elements that one program copies."""
LOADED, STEPS = 2048, 4
"""Partial sums that one program loads at once, and the most steps in which it should add up all of its sums."""
FEWEST, MOST = 32, 256
"""Sums that one program computes, neighbours in memory: fewer than 32 would not fill a line of 128 bytes."""

Geometry = tuple[tuple[tuple[int, ...], ...], ...]
"""Shapes and strides of each tensor."""


def lay_out(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Convolution weights [N, K, k, k] in `dtype` and in the layout that `weight_as_taps` takes without a copy.

    Weights that already have both are returned as they are; the others are copied into one allocation.
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
    """The places in groups of one kind and at most SLOTS."""
    of_kinds: dict[Hashable, list[int]] = {}
    for i in places:
        of_kinds.setdefault(kind(i), []).append(i)
    for some in of_kinds.values():
        yield from (some[first : first + SLOTS] for first in range(0, len(some), SLOTS))


def _filled(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """All `SLOTS` arguments; unused ones repeat the first tensor."""
    return {f"{name}{i}": tensors[i] if i < len(tensors) else tensors[0] for i in range(SLOTS)}


@lru_cache(PLANS)
def _lay_out(programs: int) -> Plan:
    return Plan(kernels.lay_out_kernel, (programs,), WARPS, {}, FIELDS=16, BLOCK=LAID_OUT)


@lru_cache(PLANS)
def _sum(programs: int, summed: int, dtype: torch.dtype) -> Plan:
    constants = {"FIELDS": 16, "ACC": accumulator(dtype), "BLOCK_S": LOADED // summed, "BLOCK": summed}
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


def _sums_per_program(values: int) -> int:
    """How many sums of that many values one program computes: a power of two."""
    at_once = 1 << (cdiv(values, STEPS) - 1).bit_length()
    return min(MOST, max(FEWEST, LOADED // at_once))


@lru_cache(PLANS)
def _sum_table(geometry: Geometry, summed: int, device: torch.device) -> Tensor:
    rows = []
    for i, (shape, strides, of_sum) in enumerate(geometry):
        # Dimensions by decreasing stride of the values, so that neighbouring threads read neighbouring addresses.
        dimensions = sorted(zip(strides[1:], shape[1:], of_sum, strict=True), reverse=True)
        dimensions = [(0, 1, 0)] * (4 - len(dimensions)) + dimensions
        of_values, sizes, of_sums = zip(*dimensions, strict=True)
        count = math.prod(sizes)
        fields = count, shape[0], strides[0], *sizes[1:], *of_values, *of_sums
        rows += [(i, first, *fields) for first in range(0, count, summed)]
    return _on_device(rows, device)


def _on_device(rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # tensors created in inference mode cannot be used outside it
        return torch.tensor(rows, dtype=torch.int32, device=device)
