"""ACFM in PyTorch, for CPUs, MPS and sizes without a kernel; the same functions as `triton_backend.py`.

In both forms, u is a depthwise 3x3 convolution with one result per channel (pseudo-3D, with bias and ReLU) or three
(3x3x3), and q = u T + bias (with ReLU in pseudo-3D). T is zero except between neighbouring channels. Images are
processed in strips of rows that fit into the cache, in float32 (float64 for float64).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lmfn_kernels.alfm.torch_backend import (
    as_kernel_image,
    both_sides,
    fold_into_weight,
    fold_into_weight_backward,
    gram,
    mix,
    products,
)
from lmfn_kernels.alfm.windows import Grid
from lmfn_kernels.runtime.torch_private import FakeTensor

__all__ = [
    "as_kernel_image",
    "both_sides",
    "fold_into_weight",
    "fold_into_weight_backward",
    "gate",
    "gate_backward",
    "gram",
    "merge",
    "mix",
    "products",
]

VALUES = 1 << 19  # elements per strip, unless a single row has more


class _Weights(NamedTuple):
    """Weight [k C, 1, 3, 3] and bias (None in 3x3x3) of the convolution, T [k C, C] and bias of the product."""

    spatial: Tensor
    spatial_bias: Tensor | None
    mixing: Tensor
    bias: Tensor
    alpha: Tensor


def gate(x: Tensor, add: Tensor | None, alpha: Tensor, weights: Sequence[Tensor]) -> Tensor:
    out = _like(x)
    p = _prepared(x, alpha, weights)
    for i, first, last in _strips(x):
        _, q = _gate(_rows(x, i, first - 1, last + 1), p)
        here = _rows(x, i, first, last)
        y = q.sigmoid_().mul_(p.alpha).add_(1).mul_(here)
        if add is not None:
            y += add[i : i + 1, :, first:last]
        out[i : i + 1, :, first:last] = y
    return out


def merge(
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
    (added,) = mix(maps, 1, grid, window_matrix=matrix.mT[:, None], bias=bias, slope=slope)
    return gate(x, added, alpha, weights), added if save else None


def gate_backward(
    g: Tensor, x: Tensor, alpha: Tensor, weights: Sequence[Tensor], add: Tensor | None = None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of x (plus `add`), alpha and the weights. Each strip recomputes u and q, with one row above and one
    below."""
    dx = _like(x)
    p = _prepared(x, alpha, weights)
    c = x.shape[1]
    dalpha, dbias = torch.zeros_like(p.alpha), torch.zeros_like(p.bias)
    dspatial, dspatial_bias, dmixing = torch.zeros_like(p.spatial), torch.zeros_like(p.bias), torch.zeros_like(p.mixing)
    for i, first, last in _strips(x):
        wide = _rows(x, i, first - 2, last + 2)
        g_x, x_x = _rows(g, i, first - 1, last + 1), wide[:, :, 1:-1]
        u, q = _gate(wide, p)
        w = q.sigmoid()
        gx = g_x * x_x
        own = slice(1, last - first + 1)
        dalpha += (gx[:, :, own] * w[:, :, own]).sum()
        # sigmoid(-q) is 1 - w without cancellation.
        dq = gx.mul_(w).mul_(q.neg().sigmoid_()).mul_(p.alpha)
        if p.spatial_bias is not None:
            dq.mul_(q > 0)
        dbias += dq[:, :, own].sum()
        dmixing += _matrix(u[:, :, own]).T @ _matrix(dq[:, :, own])
        du = _image(_matrix(dq) @ p.mixing.T, dq)
        if p.spatial_bias is not None:
            du.mul_(u > 0)
            dspatial_bias += du[:, :, own].sum()
        dspatial += _convolution_backward(du[:, :, own], x_x, p.spatial, 1)
        through = _convolution_backward(du, wide, p.spatial, 0)[:, :, 2:-2]
        dx_own = w[:, :, own].mul_(p.alpha).add_(1).mul_(g_x[:, :, own]).add_(through)
        dx[i : i + 1, :, first:last] = dx_own if add is None else dx_own.add_(add[i : i + 1, :, first:last])
    per_value = dspatial.view(c, -1, 9).sum(0)
    if p.spatial_bias is None:
        return dx, dalpha, [per_value.flatten(), dbias]
    dchannel = torch.stack([dmixing.diagonal(1 - d).sum() for d in range(3)])
    return dx, dalpha, [per_value.flatten(), dspatial_bias, dchannel, dbias]


def _prepared(x: Tensor, alpha: Tensor, weights: Sequence[Tensor]) -> _Weights:
    c, dtype = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    alpha, *taken = (weight.to(dtype) for weight in (alpha, *weights))
    # Matrix d has ones at (c + d - 1, c): through tap d, channel c of q reads channel c + d - 1 of u.
    one = torch.ones(c, dtype=dtype, device=x.device)
    shifts = torch.stack([torch.diag(one[abs(d) :], d) for d in (1, 0, -1)])
    if len(taken) == 2:
        spatial = taken[0].view(1, 3, 1, 3, 3).expand(c, -1, -1, -1, -1).flatten(0, 1)
        return _Weights(spatial, None, shifts.transpose(0, 1).flatten(0, 1), taken[1], alpha)
    mixing = (taken[2].view(3, 1, 1) * shifts).sum(0)
    return _Weights(taken[0].view(1, 1, 3, 3).repeat(c, 1, 1, 1), taken[1].expand(c), mixing, taken[3], alpha)


def _gate(strip: Tensor, p: _Weights) -> tuple[Tensor, Tensor]:
    """u and q, which have one row less than `strip` at the top and at the bottom."""
    u = F.conv2d(strip, p.spatial, p.spatial_bias, padding=(0, 1), groups=strip.shape[1])
    if p.spatial_bias is not None:
        u.relu_()
    q = _image(_matrix(u) @ p.mixing, u).add_(p.bias)
    return u, q if p.spatial_bias is None else q.relu_()


def _matrix(x: Tensor) -> Tensor:
    """[1, C, rows, W] as [pixels, C]."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _image(matrix: Tensor, like: Tensor) -> Tensor:
    """[pixels, C] as [1, C, rows, W]; the inverse of `_matrix`."""
    return matrix.view(1, *like.shape[2:], -1).permute(0, 3, 1, 2)


def _convolution_backward(e: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
    """The gradient of the depthwise convolution's input (`which` 0) or weight (1)."""
    which_of = [which == i for i in range(3)]
    gradients = torch.ops.aten.convolution_backward(
        e, x, weight, None, [1, 1], [0, 1], [1, 1], False, [0, 0], x.shape[1], which_of
    )
    gradient: Tensor = gradients[which]
    return gradient


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _strips(x: Tensor) -> Iterator[tuple[int, int, int]]:
    """Image, first row and end row of each strip; they do not depend on the batch. There are none for fake tensors."""
    if isinstance(x, FakeTensor):
        return
    b, c, h, w = x.shape
    rows = max(1, VALUES // (c * w))
    for i in range(b):
        for first in range(0, h, rows):
            yield i, first, min(first + rows, h)


def _rows(x: Tensor, i: int, first: int, last: int) -> Tensor:
    """Rows `first` to `last` (exclusive) of image `i`, zero outside it, as channels-last float32 (or float64)
    [1, C, rows, W]."""
    found = x[i : i + 1, :, max(first, 0) : last].to(torch.promote_types(x.dtype, torch.float32))
    found = F.pad(found, (0, 0, max(-first, 0), max(last - x.shape[2], 0)))
    return found.contiguous(memory_format=torch.channels_last)
