"""The functions that both backends of the encoder implement, in addition to `conv`'s and `upsample`'s."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Never, Protocol

from torch import Tensor

from lmfn_kernels.conv.backend import ConvBackend, PendingT
from lmfn_kernels.runtime.gradients import ConvGradient, PendingMask
from lmfn_kernels.upsample.backend import UpsampleBackend
from lmfn_kernels.weights import Conv


class MSHFBackend(ConvBackend[PendingT], UpsampleBackend, Protocol[PendingT]):
    def stem(self, x: Tensor, mean: Tensor | None, conv0: Conv, down: Conv, padding: int, slope: float) -> Tensor:
        """LR(down(f0)) with f0 = LR(conv0(x - mean)), LR the leaky ReLU, in the weights' dtype.

        `x` may have any strides and any dtype; the difference is rounded once, to the weights' dtype.
        """

    def stem_backward(
        self,
        e: Tensor | PendingT,
        x: Tensor,
        mean: Tensor | None,
        conv0: Conv,
        down: Conv,
        padding: int,
        slope: float,
        of_input: bool,
        of_weights: bool,
    ) -> tuple[Tensor | None, ConvGradient | None, ConvGradient | None]:
        """Gradients of x (in the weights' dtype), and of weight and bias of both convolutions, None if not requested.

        `e` is the gradient before the last activation.
        """

    def weight_gradients_of_convs(self, convs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Sequence[ConvGradient]:
        """The gradients of weight and bias of each 3x3 convolution with padding 1, given by e, x and weight as in
        `weight_gradient`."""

    def convs(self, maps: Sequence[tuple[Tensor, Conv, Tensor | None]], slope: float) -> Sequence[Tensor]:
        """As `conv` with padding 1, of one to three maps, each given by x, the convolution and a residual."""

    def input_gradients(
        self, maps: Sequence[tuple[Tensor, Tensor, Tensor, Tensor | None]], mask: float = 1.0
    ) -> Sequence[Tensor]:
        """As `input_gradient` with padding 1, of one to three maps, each given by e, weight, x and `add`."""


@cache
def implementation(backend: str) -> MSHFBackend[Any]:
    """The functions of backend `torch` or `triton`, imported when first needed."""
    if backend == "torch":
        from lmfn_kernels.mshf import torch_backend

        in_torch: MSHFBackend[Never] = torch_backend
        return in_torch
    from lmfn_kernels.mshf import triton_backend

    in_triton: MSHFBackend[PendingMask] = triton_backend
    return in_triton
