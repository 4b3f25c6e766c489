"""The functions that both backends of the ACFM have, beside the ALFM's. `weights` are a gate's, as vectors."""

from collections.abc import Sequence
from functools import cache
from typing import Protocol

from torch import Tensor

from lmfn_kernels.alfm.backend import ALFMBackend
from lmfn_kernels.alfm.windows import Grid
from lmfn_kernels.runtime.gradients import Gradient


class ACFMBackend(ALFMBackend, Protocol):
    def gate(self, x: Tensor, add: Tensor | None, alpha: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """x + alpha sigmoid(q) x + add."""

    def gate_backward(
        self, g: Tensor, x: Tensor, alpha: Tensor, weights: Sequence[Tensor]
    ) -> tuple[Tensor, Gradient, Sequence[Gradient]]:
        """Gradients of x, of alpha, and of the weights."""

    def merge(
        self,
        x: Tensor,
        alpha: Tensor,
        weights: Sequence[Tensor],
        maps: Sequence[Tensor],
        matrix: Tensor,
        grid: Grid,
        bias: Tensor,
        slope: float,
        save: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """x + alpha sigmoid(q) x + f_l, f_l = LR(matrix F + bias) and F the maps; and f_l, if `save`.

        `matrix` [B * windows, C, NC], in the pixels' shares of the windows.
        """


@cache
def implementation(backend: str) -> ACFMBackend:
    """The functions of backend `torch` or `triton`, imported when first needed."""
    if backend == "torch":
        from lmfn_kernels.acfm import torch_backend

        return torch_backend
    from lmfn_kernels.acfm import triton_backend

    return triton_backend
