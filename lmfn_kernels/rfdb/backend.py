"""The functions that both backends of the RFDB have, beside those of convolutions and upsampling."""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

from torch import Tensor

from lmfn_kernels.runtime.gradients import ConvGradient
from lmfn_kernels.upsample.backend import UpsampleBackend
from lmfn_kernels.weights import Conv


class RFDBBackend(UpsampleBackend, Protocol):
    def stage(self, x: Tensor, distil: Conv, refine: Conv, slope: float) -> tuple[Tensor, Tensor]:
        """LR(conv3x3(x) + x) and LR(conv1x1(x))."""

    def fuse(
        self,
        x: Tensor,
        d: Sequence[Tensor],
        last: Conv,
        fuse: Conv,
        squeeze: Conv,
        slope: float,
        save: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """y = conv1x1 of d1 to d4, a = conv1x1(y), and d4 = LR(conv3x3(x)), if `save`."""

    def fused(self, d: Sequence[Tensor], fuse: Conv) -> Tensor:
        """y, from d4 as well."""

    def fuse_backward(
        self,
        gy: Tensor,
        ga: Tensor,
        y: Tensor,
        d: Sequence[Tensor],
        weight: Tensor,
        squeeze: Tensor,
        slope: float,
        d_slope: float,
    ) -> tuple[Sequence[Tensor], ConvGradient, ConvGradient]:
        """Gradients before the activations of d1..d4 (of d1..d3 with `d_slope`), and of both weights and biases."""

    def gate(self, y: Tensor, a: Tensor, v: Tensor, skip: Conv, expand: Conv, fixed_grid: bool) -> Tensor:
        """y sigmoid(expand(up(v) + skip(a))), up on the fixed grid or to y's size."""

    def gate_backward(
        self, g: Tensor, y: Tensor, a: Tensor, v: Tensor, skip: Conv, expand: Conv, fixed_grid: bool
    ) -> tuple[Tensor, Tensor, Tensor, ConvGradient, ConvGradient]:
        """Gradients of y, of a, of up(v), and of weight and bias of both convolutions."""

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maximum over 7x7 at stride 3, and which one it was, in a form of the backend's own."""

    def pool_backward(self, g: Tensor, index: Tensor, size: Sequence[int]) -> Tensor:
        """The gradient of what was pooled, of that height and width."""


@cache
def implementation(backend: str) -> RFDBBackend:
    """The functions of backend `torch` or `triton`, imported when first needed."""
    if backend == "torch":
        from lmfn_kernels.rfdb import torch_backend

        return torch_backend
    from lmfn_kernels.rfdb import triton_backend

    return triton_backend
