"""What lies where: constants on their device, and weights as ops read them without a copy. Needs no Triton."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from lmfn_kernels.runtime import backend, checks


def constant(values: tuple[Any, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Nested tuples of numbers on the device of `like`, not to be written to.

    Made once: a copy from the host cannot be captured in a CUDA graph, and holds the host up in every call.
    """
    make = _constant if type(like) in (Tensor, Parameter) else _constant.__wrapped__  # a compiler's tensor is its own
    return make(values, dtype, like.device)


@cache
def _constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is made in that mode cannot be used outside it
        return torch.tensor(values, dtype=dtype, device=device)


def pitch(channels: int, dtype: torch.dtype) -> int:
    """Elements from one pixel to the next: `channels` rounded up to 16 bytes, which descriptors need."""
    step = 16 // dtype.itemsize
    return -(-channels // step) * step


def weight_layout(weight: Tensor) -> Tensor:
    """A convolution's `weight` [N, K, k, k], the same values in the same shape, as the ops read it without a copy.

    float32, float16, bfloat16 or float64, in the dtype that the images will have; the result is on the same device.
    Where the kernels carry out the ops, that is tap by tap [k, k, K, N], rows rounded up to 16 bytes; of a weight that
    lies otherwise, every call makes such a copy. Elsewhere it is channels-last. For weights that no longer change:
    PyTorch's optimizers take tensors with gaps one by one.

    Raises TypeError or ValueError where `weight` is no such tensor.
    """
    checks.tensor("weight", weight, (None,) * 4, weight)
    if backend.choose(weight, None, "weight_layout") != "triton":
        return weight.contiguous(memory_format=torch.channels_last)
    n, k, _, width = weight.shape
    s = pitch(n, weight.dtype)
    strides = (1, s, width * k * s, k * s)
    return torch.empty_strided(weight.shape, strides, dtype=weight.dtype, device=weight.device).copy_(weight)
