"""Memory layout: constants on their device, and weights that ops read without a copy. Does not need Triton."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from lmfn_kernels.runtime import backend, checks


def constant(values: tuple[Any, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Nested tuples of numbers as a tensor on the device of `like`; must not be written to.

    Created once: a copy from the host cannot be captured in a CUDA graph, and would delay every call.
    """
    make = _constant if type(like) in (Tensor, Parameter) else _constant.__wrapped__  # never cache a compiler's fake
    return make(values, dtype, like.device)


@cache
def _constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # tensors created in inference mode cannot be used outside it
        return torch.tensor(values, dtype=dtype, device=device)


def pitch(channels: int, dtype: torch.dtype) -> int:
    """Elements from one row of a weight to the next: `channels` rounded up to 16 bytes, as descriptors require."""
    step = 16 // dtype.itemsize
    return -(-channels // step) * step


class _Pixels(threading.local):
    compact = False


_pixels = _Pixels()


@contextmanager
def compact_pixels() -> Iterator[None]:
    """Within the context, images that this thread's kernels write take less memory, but longer to read."""
    before, _pixels.compact = _pixels.compact, True
    try:
        yield
    finally:
        _pixels.compact = before


def pixel_pitch(channels: int, dtype: torch.dtype) -> int:
    """Elements from one pixel to the next in an image that kernels write.

    Above 32 channels, multiples of the 64 that kernels read at once: pixels of 50 channels then begin at lines of 128
    bytes in 16 bits. `compact_pixels` makes it multiples of 16 bytes, which descriptors require.
    """
    return pitch(channels, dtype) if _pixels.compact or channels <= 32 else -(-channels // 64) * 64


def weight_layout(weight: Tensor) -> Tensor:
    """A convolution's `weight` [N, K, k, k], with the same shape and values, in the layout that the ops read without a
    copy.

    float32, float16, bfloat16 or float64, in the dtype of the images; the result is on the same device. On devices that
    run the kernels the layout is tap by tap [k, k, K, N], with rows rounded up to 16 bytes; a weight in any other
    layout is copied on every call. Elsewhere it is channels-last. Use it for weights that no longer change: PyTorch's
    optimizers process tensors with gaps one by one.

    Raises TypeError or ValueError if `weight` is not such a tensor.
    """
    checks.tensor("weight", weight, (None,) * 4, weight)
    if backend.choose(weight, None, "weight_layout") != "triton":
        return weight.contiguous(memory_format=torch.channels_last)
    n, k, _, width = weight.shape
    s = pitch(n, weight.dtype)
    strides = (1, s, width * k * s, k * s)
    return torch.empty_strided(weight.shape, strides, dtype=weight.dtype, device=weight.device).copy_(weight)
