"""Upsampling in PyTorch operations, for CPUs, MPS and sizes without a kernel; same functions as `triton_backend.py`.

Bilinear resampling is meant with align_corners False throughout.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lmfn_kernels.conv.torch_backend import as_kernel_image, conv, input_gradient, weight_gradient
from lmfn_kernels.runtime.layout import constant
from lmfn_kernels.upsample.grid import ratio
from lmfn_kernels.upsample.polyphase import PARTS, fold_upsampling, unfold_gradient

__all__ = [
    "as_kernel_image",
    "fold_upsampling",
    "upsample_add",
    "upsample_backward",
    "upsampled_conv",
    "upsampled_conv_backward",
]


def upsample_add(low: Tensor, size: Sequence[int], added: Tensor | None = None) -> Tensor:
    y = as_kernel_image(F.interpolate(low, size=size, mode="bilinear", align_corners=False))
    return y if added is None else y.add_(added)


def upsample_backward(g: Tensor, v: Tensor, fixed_grid: bool = False) -> Tensor:
    # PyTorch's own backward is not deterministic on a GPU, and fails on symbolic sizes.
    if not fixed_grid and g.shape[2] == 2 * v.shape[2] and g.shape[3] == 2 * v.shape[3]:
        # A fixed stencil of stride 2; contributions beyond the edge belong to the last pixel.
        taps = constant((0.25, 0.75, 0.75, 0.25), g.dtype, g)
        stencil = (taps[:, None] * taps).expand(g.shape[1], 1, 4, 4)
        return as_kernel_image(F.conv2d(F.pad(g, (1, 1, 1, 1), mode="replicate"), stencil, stride=2, groups=g.shape[1]))
    rows, columns = (_bilinear(g.shape[i], v.shape[i], fixed_grid, g) for i in (2, 3))
    return as_kernel_image((rows.mT @ g.to(rows.dtype) @ columns).to(v.dtype))


def _bilinear(size: int, low: int, fixed_grid: bool, like: Tensor) -> Tensor:
    """The matrix `[size, low]` of bilinear upsampling along one axis, from `low` values to `size`."""
    to, source = ratio(size, low, fixed_grid)
    twice = ((2 * torch.arange(size, device=like.device) + 1) * source - to).clamp(min=0)[:, None]
    first = (twice // (2 * to)).clamp(max=low - 1)
    part = (twice % (2 * to)).to(torch.promote_types(like.dtype, torch.float32)) / (2 * to)
    place = torch.arange(low, device=like.device)
    return (place == first) * (1 - part) + (place == (first + 1).clamp(max=low - 1)) * part


def upsampled_conv(x: Tensor, folded: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    y = conv(x, folded[0], bias.repeat_interleave(4), padding=1)
    for (rows, columns), of_part in zip(PARTS[1:], folded[1:], strict=True):
        y[:, :, rows, columns] += conv(as_kernel_image(x[:, :, rows, columns]), of_part, None, padding=1)
    y = F.pixel_shuffle(y, 2)
    return y if residual is None else (y + residual).to(residual.dtype)


def upsampled_conv_backward(
    g: Tensor, x: Tensor, weight: Tensor, of_input: bool, of_weight: bool
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    dx, of_parts, e = None, [], F.pixel_unshuffle(g.to(x.dtype), 2)
    for (rows, columns), of_part in zip(PARTS, fold_upsampling(weight, x.dtype), strict=True):
        x_there, e_there = (as_kernel_image(image[:, :, rows, columns]) for image in (x, e))
        if of_input:
            part = input_gradient(e_there, of_part, x_there, padding=1)
            if dx is None:
                dx = part
            else:
                dx[:, :, rows, columns] += part
        if of_weight:
            of_parts.append(weight_gradient(e_there, x_there, of_part, padding=1))
    if not of_weight:
        return dx, None
    dweight = torch.empty_like(weight).copy_(unfold_gradient(torch.stack([dw for dw, _ in of_parts])))
    return dx, (dweight, of_parts[0][1].reshape(-1, 4).sum(1))
