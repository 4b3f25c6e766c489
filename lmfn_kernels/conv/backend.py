"""The functions that both backends of convolutions implement. Images are `[B, C, H, W]`, from `as_kernel_image`.

`slope` is the slope of an activation for negative values: 1 is no activation, 0 is ReLU.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Never, Protocol, TypeVar

import torch
from torch import Tensor

from lmfn_kernels.runtime.backend import HAS_TRITON, choose
from lmfn_kernels.runtime.gradients import ConvGradient, PendingMask
from lmfn_kernels.weights import E4M3, ScaledConv

PendingT = TypeVar("PendingT")
"""A backend's own type of a gradient before an activation whose mask is still to be applied: `PendingMask` for the
kernels. PyTorch has none, as it applies the mask at once. An op's functions take a backend with any such type."""


class ConvBackend(Protocol[PendingT]):
    """A module with these functions; mypy compares the signatures in `implementation`."""

    def as_kernel_image(self, x: Tensor) -> Tensor:
        """`x` itself if the other functions can read its memory layout, otherwise a copy that they can."""

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
        """LR(conv(x) + bias + residual), 1x1 or 3x3, LR the leaky ReLU."""

    def scaled_conv(
        self, x: Tensor, conv: ScaledConv, residual: Tensor | None, *, slope: float, dtype: torch.dtype
    ) -> Tensor:
        """LR(conv3x3(x) + residual) in `dtype`; `x` or the result, which has the size of `x`, is in e4m3."""

    def mask_gradient(self, g: Tensor, y: Tensor, slope: float) -> Tensor | PendingT:
        """The gradient of an activation's input, from the gradient `g` of its output `y`."""

    def materialize(self, e: Tensor | PendingT) -> Tensor:
        """The result of `mask_gradient` as a tensor, `g` itself if nothing is masked."""

    def input_gradient(
        self,
        e: Tensor | PendingT,
        weight: Tensor,
        x: Tensor,
        *,
        stride: int = 1,
        padding: int = 0,
        residual: bool = False,
        extra: tuple[Tensor, Tensor] | None = None,
        mask: float = 1.0,
        add: Tensor | None = None,
    ) -> Tensor:
        """The gradient of a convolution's input `x`, from the gradient `e` of its output.

        With `residual`, x was also added to the output. `extra` is (gradient of the output, weight) of a 1x1
        convolution of the same input, whose gradient is added. If `mask` is not 1, x is the output of an activation of
        that slope, and the result is the gradient of the activation's input. `add`, if given, is another gradient of x,
        which is added.
        """

    def weight_gradient(
        self, e: Tensor | PendingT, x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0
    ) -> ConvGradient:
        """The gradients of a convolution's weight and bias."""


@cache
def implementation(backend: str) -> ConvBackend[Any]:
    """The functions of backend `torch` or `triton`, imported when first needed, since Triton may not be installed."""
    if backend == "torch":
        from lmfn_kernels.conv import torch_backend

        in_torch: ConvBackend[Never] = torch_backend
        return in_torch
    from lmfn_kernels.conv import triton_backend

    in_triton: ConvBackend[PendingMask] = triton_backend
    return in_triton


def missing_for_e4m3(device: torch.device) -> str | None:
    """The reason why no kernel computes with e4m3 on that device, or None."""
    if HAS_TRITON and device.type == "cuda":
        from lmfn_kernels.conv.triton_backend import ring_programs

        if ring_programs(device):
            return None
    return f"FP8 needs a GPU of compute capability 9.0 (Hopper) and Triton 3.6, and the images are on {device}"


def check_scaled(name: str, conv: ScaledConv, taps: int, outputs: int, x: Tensor, *, stored: bool) -> None:
    """Raise ValueError unless `conv` has these taps and outputs, and is for `x`, or for a map in e4m3 if `stored`, on
    the device of `x`."""
    of_weight = ((taps, outputs, 64), E4M3) if stored else ((taps, x.shape[1], outputs), x.dtype)
    of_vector = (outputs,), torch.float32
    for field, (shape, dtype) in {"weight": of_weight, "factor": of_vector, "bias": of_vector}.items():
        found = getattr(conv, field)
        if found is not None and (tuple(found.shape), found.dtype, found.device) != (shape, dtype, x.device):
            raise ValueError(
                f"{name} has a {field} {tuple(found.shape)} of {found.dtype} on {found.device}; expected {shape} of "
                f"{dtype} on {x.device}, as `scaled` makes it for this input"
            )


def choose_for_e4m3(x: Tensor, channels: Sequence[int], op: str) -> str:
    """As `choose`, for an op that stores maps of `x` as e4m3; `torch` computes the same numbers in float32.

    Raises TypeError unless `x` has 16 bits, ValueError for channels that the kernels do not take, RuntimeError if a
    gradient of `x` is wanted.
    """
    if x.dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"x is {x.dtype}; with e4m3, the other maps are float16 or bfloat16")
    if not all(32 < c <= 64 for c in channels):
        raise ValueError(f"there are {', '.join(map(str, channels))} channels; e4m3 needs 33 to 64")
    if torch.is_grad_enabled() and x.requires_grad:
        raise RuntimeError(f"{op} has no gradient; call it under torch.no_grad()")
    return "triton" if choose(x, missing_for_e4m3(x.device), op) == "triton" else "torch"
