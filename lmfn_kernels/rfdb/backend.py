"""The functions that both backends of the RFDB implement, in addition to `conv`'s and `upsample`'s.

LR is the leaky ReLU; names and shapes as in `op.py`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Never, Protocol

import torch
from torch import Tensor

from lmfn_kernels.conv.backend import ConvBackend, PendingT
from lmfn_kernels.runtime.gradients import ConvGradient, PendingMask
from lmfn_kernels.upsample.backend import UpsampleBackend
from lmfn_kernels.weights import Conv, ScaledConv


class RFDBBackend(ConvBackend[PendingT], UpsampleBackend, Protocol[PendingT]):
    def stage(self, x: Tensor, distil: Conv, refine: Conv, slope: float) -> tuple[Tensor, Tensor]:
        """LR(conv3x3(x) + x) and LR(conv1x1(x))."""

    def weight_gradients(
        self, stages: Sequence[tuple[Tensor | PendingT, Tensor | PendingT, Tensor, Tensor, Tensor]]
    ) -> Sequence[tuple[ConvGradient, ConvGradient]]:
        """Gradients of weight and bias of each stage's 3x3 and of its 1x1 convolution, from e and z, those of their
        outputs, which are all masked with the same slope or all not at all; a stage is e, z, x and both weights."""

    def scaled_stage(
        self,
        x: Tensor,
        distil: ScaledConv,
        refine: ScaledConv,
        slope: float,
        dtype: torch.dtype,
        distilled: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """LR(conv3x3(x)), whose tenth tap adds x, in `dtype`, and LR(conv1x1(x)) in the dtype `distilled`."""

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
        """y = conv1x1(d1, ..., d4), a = conv1x1(y), and d4 = LR(conv3x3(x)), or None unless `save`; `d` is d1 to d3."""

    def recomputed(
        self, x: Sequence[Tensor], distil: Sequence[Conv], d4: Tensor, fuse: Conv, slope: float
    ) -> tuple[Sequence[Tensor], Tensor]:
        """d1 to d3, the LR(conv1x1) of one of the three images `x` each, and y = conv1x1(d1, ..., d4)."""

    def fuse_backward(
        self,
        gy: Tensor,
        ga: Tensor,
        y: Tensor,
        d: Sequence[Tensor],
        weight: Tensor,
        squeeze: Tensor,
        transposed: Sequence[Tensor],
        slope: float,
        d_slope: float,
    ) -> tuple[Sequence[Tensor], ConvGradient, ConvGradient]:
        """Gradients of the inputs of the activations of d1 to d4, then of weight and bias of both convolutions.

        `transposed` are `squeeze`, then the parts of `weight` for d1 to d4, with inputs and outputs exchanged.
        `gy` and `ga` are the gradients of y and a; `slope` is that of d4's activation, `d_slope` that of the others'.
        """

    def gate(self, y: Tensor, a: Tensor, v: Tensor, skip: Conv, expand: Conv, fixed_grid: bool) -> Tensor:
        """y sigmoid(expand(up(v) + skip(a))), where up upsamples to the size of y, stretched or on the fixed grid."""

    def gate_backward(
        self, g: Sequence[Tensor], y: Tensor, a: Tensor, v: Tensor, skip: Conv, expand: Conv, fixed_grid: bool
    ) -> tuple[Tensor, Tensor, Tensor, ConvGradient, ConvGradient]:
        """Gradients of y, a and up(v), then of weight and bias of both convolutions.

        `g` is the gradient of the result, or two images whose sum it is.
        """

    def conv_pool(self, x: Tensor, of_conv: Conv, save: bool) -> tuple[Tensor, Tensor | None]:
        """Maximum over 7x7 at stride 3 of conv3x3(x) at stride 2 without padding, and its index, in the backend's own
        format, or None unless `save`."""

    def pool_backward(self, g: Tensor, index: Tensor, size: Sequence[int]) -> Tensor:
        """The gradient of what `conv_pool` takes the maximum of, with the height and width `size`."""

    def low_convs(
        self, x: Tensor, conv1: Conv, conv2: Conv, conv3: Conv, save: bool
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """conv3(low2) with low2 = relu(conv2(low1)) and low1 = relu(conv1(x)), all 3x3 with padding 1; then low1 and
        low2, or nothing unless `save`."""

    def low_convs_backward(
        self, g: Tensor, x: Tensor, low: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[ConvGradient]]:
        """The gradient of x from that of the result of `low_convs`, then of weight and bias of conv1, conv2 and conv3;
        `low` is low1 and low2, `weights` those of the convolutions."""


@cache
def implementation(backend: str) -> RFDBBackend[Any]:
    """The functions of backend `torch` or `triton`, imported when first needed."""
    if backend == "torch":
        from lmfn_kernels.rfdb import torch_backend

        in_torch: RFDBBackend[Never] = torch_backend
        return in_torch
    from lmfn_kernels.rfdb import triton_backend

    in_triton: RFDBBackend[PendingMask] = triton_backend
    return in_triton
