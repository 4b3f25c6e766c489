"""The functions that both backends of the ALFM have. F is the maps, [B, NC, HW] channel by channel."""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

from torch import Tensor

from lmfn_kernels.alfm.windows import Grid
from lmfn_kernels.runtime.gradients import Gradient, PendingMask


class ALFMBackend(Protocol):
    def as_kernel_image(self, x: Tensor) -> Tensor:
        """`x` as the other functions take it: itself where they can read it, else a copy."""

    def gram(self, maps: Sequence[Tensor], by_layer: bool, grid: Grid) -> Tensor:
        """F F^T of every block: [B * blocks, NC, NC] or, of whole layers, [B * blocks, N, N]."""

    def products(self, gradient: PendingMask, maps: Sequence[Tensor], grid: Grid) -> tuple[Tensor, Gradient]:
        """G F^T of every window [B * windows, O, NC], with the pixels' shares of it, and the sum of G [O].

        G is the gradient [B, O, HW] before the activation.
        """

    def mix(
        self,
        maps: Sequence[Tensor],
        outputs: int,
        grid: Grid,
        *,
        window_matrix: Tensor | None = None,
        block_matrix: Tensor | None = None,
        bias: Tensor | None = None,
        slope: float = 1.0,
        gradient: PendingMask | None = None,
    ) -> list[Tensor]:
        """`outputs` images: LR of products of the gradient and the maps, side by side, and bias.

        `window_matrix` [B * windows, inputs, outputs * channels] multiplies the gradient, before its activation, or
        without one the maps, in the pixels' shares of the windows; `block_matrix` [B * blocks, inputs, outputs *
        channels] multiplies the maps, block by block.
        """

    def fold_into_weight(
        self, gram: Tensor, theta: Tensor, weight: Tensor, temperature: Tensor | None, by_layer: bool
    ) -> Tensor:
        """P [B, O, NC], from E [B, NC, NC] or [B, N, N] and the weight [O, NC, 1, 1]."""

    def fold_into_weight_backward(
        self, dp: Tensor, gram: Tensor, theta: Tensor, weight: Tensor, temperature: Tensor | None, by_layer: bool
    ) -> tuple[Tensor, Gradient, Gradient, Gradient | None]:
        """Gradients of E, theta, the weight and the temperature."""


@cache
def implementation(backend: str) -> ALFMBackend:
    """The functions of backend `torch` or `triton`, imported when first needed: there are machines without Triton."""
    if backend == "torch":
        from lmfn_kernels.alfm import torch_backend

        return torch_backend
    from lmfn_kernels.alfm import triton_backend

    return triton_backend
