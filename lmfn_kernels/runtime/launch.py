"""Tensors to kernels: memory layout, descriptors, and the launch itself."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lmfn_kernels.runtime.assembler import compiler_options
from lmfn_kernels.runtime.configs import Config
from lmfn_kernels.runtime.layout import pitch


class Masked(NamedTuple):
    """A gradient whose activation's mask is still to be applied, where it is loaded: that of a slope and its output."""

    gradient: Tensor
    by: Tensor | None
    slope: float


def unmasked(e: Tensor | Masked) -> Masked:
    return e if isinstance(e, Masked) else Masked(e, None, 1.0)


def empty(like: Tensor, b: int, c: int, h: int, w: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised image `[b, c, h, w]` as kernels write it: channels last, pixels a `pitch` apart."""
    s = pitch(c, dtype or like.dtype)
    return torch.empty_strided((b, c, h, w), (h * w * s, 1, w * s, s), dtype=dtype or like.dtype, device=like.device)


def layout(x: Tensor) -> Tensor:
    """`x` as kernels read it, itself where its memory allows, else a copy."""
    step = 16 // x.dtype.itemsize
    aligned = all(stride % step == 0 for stride in (x.stride(0), *x.stride()[2:]))
    inside = x.stride(3) >= x.shape[1] and x.stride(2) > 0 and x.stride(0) > 0
    if x.stride(1) == 1 and aligned and inside and (isinstance(x, FakeTensor) or x.data_ptr() % 16 == 0):
        return x
    return empty(x, *x.shape).copy_(x)


def block(size: int) -> int:
    """Channels a kernel's block holds: a power of two, and at least 16, which a matrix instruction needs."""
    return max(16, 1 << (int(size) - 1).bit_length())


def pixels(x: Tensor | None, c: Config, channels: int) -> TensorDescriptor | None:
    """An image as tiles of `channels`. One without pixels, the odd rows of a single row, becomes a pixel of zeros."""
    if x is None or isinstance(x, FakeTensor):
        return None
    if x.numel() == 0:
        x = empty(x, 1, x.shape[1], 1, 1).zero_()
    x = x.permute(0, 2, 3, 1)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, c.height, c.width, channels])


PLACES = ("", "01", "10", "11")


def parities(x: Tensor) -> list[Tensor]:
    """Even rows' even and odd columns, odd rows' even and odd columns."""
    return [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]


def matrix(weight: Tensor, *, back: bool = False) -> Tensor:
    """A weight `[N, K, k, k]` as `[taps, K, N]`, or with `back` as `[taps, N, K]`, rows a `pitch` apart.

    A view of it where it lies so already (`weight_layout`), else a copy.
    """
    taps = weight.flatten(2).permute((2, 0, 1) if back else (2, 1, 0))
    rows, columns = taps.shape[1:]
    s = pitch(columns, weight.dtype)
    from_tap, from_row, from_column = taps.stride()
    lies_so = from_column == 1 and from_row == s and from_tap >= rows * s and from_tap % s == 0
    if lies_so and (isinstance(weight, FakeTensor) or taps.data_ptr() % 16 == 0):
        return taps
    out = torch.empty_strided(taps.shape, (rows * s, s, 1), dtype=weight.dtype, device=weight.device)
    return out.copy_(taps)


def weights(w: Tensor | None, rows: int, columns: int) -> TensorDescriptor | None:
    if w is None or isinstance(w, FakeTensor):
        return None
    return TensorDescriptor(w, list(w.shape), list(w.stride()), [1, rows, columns])


def sums(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def arithmetic(x: Tensor) -> dict[str, Any]:
    """The type of the sums, and what a float32 product is: PyTorch's own setting for convolutions decides."""
    tf32 = x.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return {"ACC": tl.float64 if x.dtype == torch.float64 else tl.float32, "PRECISION": "tf32" if tf32 else "ieee"}


def tiles(x: Tensor, c: Config) -> int:
    return x.shape[0] * -(-x.shape[2] // c.height) * -(-x.shape[3] // c.width)


def _launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    kernel[grid](**arguments)


launcher: Callable[[Any, tuple[int, ...], dict[str, Any]], None] = _launch
"""What a launch does. The resource table puts a compiler without a device in its place."""


def run(kernel: Any, on: Tensor, grid: tuple[int, ...], c: Config, **arguments: Any) -> None:
    """Launch on the device of `on`, whatever the current one is. Fake tensors have shapes only, so nothing is done."""
    if isinstance(on, FakeTensor):
        return
    guard = nullcontext() if on.device.type == "cpu" else torch.get_device_module(on.device).device(on.device)
    with guard:
        launcher(kernel, grid, {**arguments, "num_warps": c.warps, **compiler_options()})


def partial(like: Tensor, splits: int, shape: Sequence[int]) -> Tensor:
    """Room for one partial sum a program. `total` adds them in a fixed order: the same call gives the same bits."""
    return torch.empty((splits, *shape), dtype=sums(like), device=like.device)


def total(partials: Tensor) -> Tensor:
    return partials.sum(0)
