"""The functions that both backends of convolutions implement. Images are `[B, C, H, W]`, from `as_kernel_image`.

`slope` is the slope of an activation for negative values: 1 is no activation, 0 is ReLU.
"""

from functools import cache
from typing import Any, Protocol

from torch import Tensor

from lmfn_kernels.runtime.gradients import ConvGradient

MaskedGradient = Any
"""A gradient before an activation, from `mask_gradient`: a tensor, or one whose mask is still to be applied."""


class ConvBackend(Protocol):
    """A module with these functions; mypy compares the signatures in `implementation`."""

    def as_kernel_image(self, x: Tensor) -> Tensor:
        """`x` itself if the other functions can read its memory layout, otherwise a copy that they can."""

    def conv(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        slope: float = 1.0,
    ) -> Tensor:
        """LR(conv(x) + bias + residual), 1x1 or 3x3, LR the leaky ReLU."""

    def mask_gradient(self, g: Tensor, y: Tensor, slope: float) -> MaskedGradient:
        """The gradient of an activation's input, from the gradient `g` of its output `y`."""

    def materialize(self, e: MaskedGradient) -> Tensor:
        """The result of `mask_gradient` as a new tensor."""

    def input_gradient(
        self,
        e: MaskedGradient,
        weight: Tensor,
        x: Tensor,
        *,
        stride: int = 1,
        padding: int = 0,
        residual: bool = False,
        extra: tuple[Tensor, Tensor] | None = None,
        mask: float = 1.0,
        add_to: Tensor | None = None,
    ) -> Tensor:
        """The gradient of a convolution's input `x`, from the gradient `e` of its output.

        With `residual`, x was also added to the output. `extra` is (gradient of the output, weight) of a 1x1
        convolution of the same input, whose gradient is added. If `mask` is not 1, x is the output of an activation of
        that slope, and the result is the gradient of the activation's input. With stride 2, the gradient is added to
        `add_to` in place, if given.
        """

    def weight_gradient(
        self, e: MaskedGradient, x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0
    ) -> ConvGradient:
        """The gradients of a convolution's weight and bias."""


@cache
def implementation(backend: str) -> ConvBackend:
    """The functions of backend `torch` or `triton`, imported when first needed, since Triton may not be installed."""
    if backend == "torch":
        from lmfn_kernels.conv import torch_backend

        return torch_backend
    from lmfn_kernels.conv import triton_backend

    return triton_backend
