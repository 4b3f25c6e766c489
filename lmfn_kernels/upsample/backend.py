"""The functions that both backends of bilinear upsampling (align_corners False) implement, in addition to `conv`'s."""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

from torch import Tensor

from lmfn_kernels.conv.backend import ConvBackend


class UpsampleBackend(ConvBackend, Protocol):
    def upsample_add(self, low: Tensor, size: Sequence[int], added: Tensor | None = None) -> Tensor:
        """`low` upsampled to the height and width `size`, plus `added`."""

    def upsample_backward(self, g: Tensor, v: Tensor, fixed_grid: bool = False) -> Tensor:
        """The gradient of `v` from the gradient `g` of the upsampled v. Of v only the shape and dtype are used."""

    def upsampled_conv(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The 3x3 convolution of `x` upsampled to twice its size. `weight` may have any dtype."""

    def upsampled_conv_backward(
        self, e: Tensor, x: Tensor, weight: Tensor, of_input: bool, of_weight: bool
    ) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """Gradients of x, and of weight and bias, None if not requested.

        `e` [B, 4N, H, W] is the gradient of the result, rearranged by `pixel_unshuffle`.
        """


@cache
def implementation(backend: str) -> UpsampleBackend:
    """The functions of backend `torch` or `triton`, imported when first needed."""
    if backend == "torch":
        from lmfn_kernels.upsample import torch_backend

        return torch_backend
    from lmfn_kernels.upsample import triton_backend

    return triton_backend
