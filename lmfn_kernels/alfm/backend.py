"""The functions that both backends of the ALFM implement. F is all maps as a matrix [B, NC, HW], E is F F^T."""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from lmfn_kernels.alfm.windows import Grid
from lmfn_kernels.runtime.gradients import Gradient, PendingMask


class ALFMBackend(Protocol):
    def as_kernel_image(self, x: Tensor) -> Tensor:
        """`x` itself if the other functions can read its memory layout, otherwise a copy that they can."""

    def gram(self, maps: Sequence[Tensor], by_layer: bool, grid: Grid, *, of_windows: bool) -> Tensor:
        """F F^T of every window or block: [B * windows, NC, NC] or, with layers as rows, [B * windows, N, N]."""

    def products(self, gradient: PendingMask, maps: Sequence[Tensor], grid: Grid) -> tuple[Tensor, Gradient]:
        """G F^T of every window, weighted by its shares, [B * windows, O, NC], and the sum of G over pixels [O].

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
        """`outputs` images: LR(products of the gradient or the maps with matrices, summed, plus bias).

        `window_matrix` [B * windows, outputs, inputs, channels] multiplies the gradient before its activation, or the
        maps if there is no gradient; the products of the windows are weighted by their shares. `block_matrix`
        [B * blocks, outputs, inputs, channels] multiplies the maps, block by block.
        """

    def fold_into_weight(
        self,
        gram: Tensor,
        theta: Tensor,
        weight: Tensor,
        temperature: Tensor | None,
        by_layer: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        """P [B, O, NC], from E [B, NC, NC] or [B, N, N] and the weight [O, NC, 1, 1].

        It is for `mix` of one image of maps in `dtype`, and may be rounded to it.
        """

    def fold_into_weight_backward(
        self,
        dp: Tensor,
        gram: Tensor,
        theta: Tensor,
        weight: Tensor,
        temperature: Tensor | None,
        by_layer: bool,
        maps: Sequence[Tensor],
    ) -> tuple[Tensor, Gradient, Gradient, Gradient | None, Tensor | None]:
        """Gradients of E, theta, the weight and the temperature, from the gradient `dp` of P; and P itself.

        P is for `mix`, whose outputs are like the maps, and may be rounded to their dtype; None without maps.
        """

    def both_sides(self, de: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """dE + dE^T from the gradient of E, for `mix` of these maps, whose outputs are like them."""


@cache
def implementation(backend: str) -> ALFMBackend:
    """The functions of backend `torch` or `triton`, imported when first needed."""
    if backend == "torch":
        from lmfn_kernels.alfm import torch_backend

        return torch_backend
    from lmfn_kernels.alfm import triton_backend

    return triton_backend
