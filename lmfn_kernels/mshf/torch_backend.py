"""MSHF in PyTorch, for CPUs, MPS and sizes without a kernel; the same functions as `triton_backend.py`."""

from collections.abc import Sequence

from torch import Tensor

from lmfn_kernels.conv.torch_backend import (
    as_kernel_image,
    conv,
    input_gradient,
    mask_gradient,
    materialize,
    scaled_conv,
    weight_gradient,
)
from lmfn_kernels.mshf.reference import centred
from lmfn_kernels.upsample.torch_backend import upsample_add, upsample_backward
from lmfn_kernels.weights import Conv

__all__ = [
    "as_kernel_image",
    "conv",
    "convs",
    "input_gradient",
    "input_gradients",
    "mask_gradient",
    "materialize",
    "scaled_conv",
    "stem",
    "stem_backward",
    "upsample_add",
    "upsample_backward",
    "weight_gradient",
    "weight_gradients_of_convs",
]


def stem(x: Tensor, mean: Tensor | None, conv0: Conv, down: Conv, padding: int, slope: float) -> Tensor:
    f0 = conv(as_kernel_image(centred(x, mean).to(conv0.weight.dtype)), *conv0, padding=padding, slope=slope)
    return conv(f0, *down, stride=2, padding=1, slope=slope)


def stem_backward(
    e: Tensor,
    x: Tensor,
    mean: Tensor | None,
    conv0: Conv,
    down: Conv,
    padding: int,
    slope: float,
    of_input: bool,
    of_weights: bool,
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]:
    x = as_kernel_image(centred(x, mean).to(conv0.weight.dtype))
    f0 = conv(x, *conv0, padding=padding, slope=slope)
    ddown = weight_gradient(e, f0, down.weight, stride=2, padding=1) if of_weights else None
    e0 = input_gradient(e, down.weight, f0, stride=2, padding=1, mask=slope)
    del f0
    dconv0 = weight_gradient(e0, x, conv0.weight, padding=padding) if of_weights else None
    return input_gradient(e0, conv0.weight, x, padding=padding) if of_input else None, dconv0, ddown


def weight_gradients_of_convs(convs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [weight_gradient(e, x, weight, padding=1) for e, x, weight in convs]


def convs(maps: Sequence[tuple[Tensor, Conv, Tensor | None]], slope: float) -> list[Tensor]:
    return [conv(x, *of_x, residual, padding=1, slope=slope) for x, of_x, residual in maps]


def input_gradients(maps: Sequence[tuple[Tensor, Tensor, Tensor, Tensor | None]], mask: float = 1.0) -> list[Tensor]:
    return [input_gradient(e, weight, x, padding=1, mask=mask, add=add) for e, weight, x, add in maps]
