"""The functions that both backends of convolutions have. Images are `[B, C, H, W]`, as `as_kernel_image` gives them.

`slope` is that of an activation's negative side: 1 none, 0 ReLU.
"""

from functools import cache
from typing import Any, Protocol

from torch import Tensor

from lmfn_kernels.runtime.gradients import ConvGradient

MaskedGradient = Any
"""A gradient before an activation, as `mask_gradient` gives it: a tensor, or one with a mask still to be applied."""


class ConvBackend(Protocol):
    def as_kernel_image(self, x: Tensor) -> Tensor:
        """`x` as the other functions take it: itself where they can read it, else a copy."""

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
        """LR(convolution of x + bias + residual), 1x1 or 3x3."""

    def mask_gradient(self, g: Tensor, y: Tensor, slope: float) -> MaskedGradient:
        """The gradient before an activation, from that after it and the activation's output."""

    def materialize(self, e: MaskedGradient) -> Tensor:
        """What `mask_gradient` gave, as a tensor of its own."""

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
        """The gradient of a convolution's input `x`; with `residual` x was also added to its output.

        `extra` is (z, weight) of a 1x1 of the same input, whose part is added. `mask` is the slope of the activation
        that x came out of: the result is then the gradient before that. With stride 2, `add_to` is a tensor that the
        gradient is added to in place.
        """

    def weight_gradient(
        self, e: MaskedGradient, x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0
    ) -> ConvGradient:
        """The gradients of a convolution's weight and of its bias."""


@cache
def implementation(backend: str) -> ConvBackend:
    """The functions of backend `torch` or `triton`, imported when first needed: there are machines without Triton."""
    if backend == "torch":
        from lmfn_kernels.conv import torch_backend

        return torch_backend
    from lmfn_kernels.conv import triton_backend

    return triton_backend
