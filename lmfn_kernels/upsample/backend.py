"""The functions that both backends of bilinear upsampling (align_corners False) implement."""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor


class UpsampleBackend(Protocol):
    def as_kernel_image(self, x: Tensor) -> Tensor:
        """`x` itself if the other functions can read its memory layout, otherwise a copy that they can."""

    def upsample_add(self, low: Tensor, size: Sequence[int], added: Tensor | None = None) -> Tensor:
        """`low` upsampled to the height and width `size`, plus `added`."""

    def upsample_backward(self, g: Tensor, v: Tensor, fixed_grid: bool = False) -> Tensor:
        """The gradient of `v` from the gradient `g` of the upsampled v. Of v only the shape and dtype are used."""


class UpsampledConvBackend(UpsampleBackend, Protocol):
    def fold_upsampling(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """A 3x3 convolution's weight, in any dtype, folded with the upsampling for `upsampled_conv` of images in
        `dtype`, of any size."""

    def upsampled_conv(self, x: Tensor, folded: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        """The 3x3 convolution of `x` upsampled to twice its size, plus `residual`, in whose dtype the result then is.

        `folded` is from `fold_upsampling`; `residual` may have any strides.
        """

    def upsampled_conv_backward(
        self, g: Tensor, x: Tensor, weight: Tensor, of_input: bool, of_weight: bool
    ) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """Gradients of x, and of weight (in its dtype and strides) and bias, None if not requested.

        `g` is the gradient of the result, of any strides and dtype.
        """


@cache
def implementation(backend: str) -> UpsampledConvBackend:
    """The functions of backend `torch` or `triton`, imported when first needed."""
    if backend == "torch":
        from lmfn_kernels.upsample import torch_backend

        return torch_backend
    from lmfn_kernels.upsample import triton_backend

    return triton_backend
