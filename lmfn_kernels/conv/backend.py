"""The functions that both backends of convolutions have. Images are `[B, C, H, W]`, as `layout` gives them.

`slope` is that of an activation's negative side: 1 none, 0 ReLU.
"""

from functools import cache
from typing import Any, Protocol

from torch import Tensor

Masked = Any
"""A gradient before an activation, as the backend's `masked` gives it: a tensor, or one with a mask to be applied."""


class ConvBackend(Protocol):
    def layout(self, x: Tensor) -> Tensor:
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

    def masked(self, g: Tensor, y: Tensor, slope: float) -> Masked:
        """The gradient before an activation, from that after it and the activation's output."""

    def written(self, e: Masked) -> Tensor:
        """What `masked` gave, as a tensor of its own."""

    def input_gradient(
        self,
        e: Masked,
        weight: Tensor,
        x: Tensor,
        *,
        stride: int = 1,
        padding: int = 0,
        residual: bool = False,
        extra: tuple[Tensor, Tensor] | None = None,
        mask: float = 1.0,
    ) -> Tensor:
        """The gradient of a convolution's input `x`; with `residual` x was also added to its output.

        `extra` is (z, weight) of a 1x1 of the same input, whose part is added. `mask` is the slope of the activation
        that x came out of: the result is then the gradient before that.
        """

    def weight_gradient(
        self, e: Masked, x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The gradients of a convolution's weight, in its strides, and of its bias."""


@cache
def implementation(backend: str) -> ConvBackend:
    """The functions of backend `torch` or `triton`, imported when first needed: there are machines without Triton."""
    if backend == "torch":
        from lmfn_kernels.conv import torch_backend

        return torch_backend
    from lmfn_kernels.conv import triton_backend

    return triton_backend
