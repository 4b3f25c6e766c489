"""The functions that both backends of the ACFM implement, in addition to the ALFM's.

`weights` are those of a gate, flattened; q is the gate's argument, as in `channel_gate`.
"""

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
        self, g: Tensor, x: Tensor, alpha: Tensor, weights: Sequence[Tensor], add: Tensor | None = None
    ) -> tuple[Tensor, Gradient, Sequence[Gradient]]:
        """Gradients of x (plus `add`), alpha and the weights."""

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
        """x + alpha sigmoid(q) x + f_l, and f_l, or None unless `save`; f_l = LR(matrix F + bias), where F is the maps.

        `matrix` [B * windows, C, NC]; the products of the windows are weighted by their shares.
        """


@cache
def implementation(backend: str) -> ACFMBackend:
    """The functions of backend `torch` or `triton`, imported when first needed."""
    if backend == "torch":
        from lmfn_kernels.acfm import torch_backend

        return torch_backend
    from lmfn_kernels.acfm import triton_backend

    return triton_backend
