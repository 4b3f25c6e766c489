"""The functions that both backends of the ALFM have. F is the maps, [B, NC, HW] channel by channel."""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

from torch import Tensor

from lmfn_kernels.runtime.gradients import PendingMask


class ALFMBackend(Protocol):
    def layout(self, x: Tensor) -> Tensor:
        """`x` as the other functions take it: itself where they can read it, else a copy."""

    def gram(self, maps: Sequence[Tensor], by_layer: bool) -> Tensor:
        """F F^T: [B, NC, NC] or, of whole layers, [B, N, N]."""

    def products(self, gradient: PendingMask, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """G F^T [B, O, NC] and the sum of G [O], G the gradient [B, O, HW] before the activation."""

    def mix(
        self,
        maps: Sequence[Tensor],
        matrix: Tensor,
        outputs: int,
        *,
        bias: Tensor | None = None,
        slope: float = 1.0,
        gradient: PendingMask | None = None,
    ) -> list[Tensor]:
        """`outputs` images: LR of the gradient and the maps side by side times `matrix`, plus bias.

        `matrix` [B, inputs, outputs * channels]; the gradient is taken before its activation.
        """

    def fold_into_weight(
        self, gram: Tensor, theta: Tensor, weight: Tensor, temperature: Tensor | None, by_layer: bool
    ) -> Tensor:
        """P [B, O, NC], from E [B, NC, NC] or [B, N, N] and the weight [O, NC, 1, 1]."""

    def fold_into_weight_backward(
        self, dp: Tensor, gram: Tensor, theta: Tensor, weight: Tensor, temperature: Tensor | None, by_layer: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Gradients of E, theta, the weight (in its strides) and the temperature."""


@cache
def implementation(backend: str) -> ALFMBackend:
    """The functions of backend `torch` or `triton`, imported when first needed: there are machines without Triton."""
    if backend == "torch":
        from lmfn_kernels.alfm import torch_backend

        return torch_backend
    from lmfn_kernels.alfm import triton_backend

    return triton_backend
