"""RFDB in PyTorch, for CPUs, MPS and sizes without a kernel; the same functions as `triton_backend.py`.

Images are `[B, C, H, W]` in channels-last memory. `slope` is the slope of an activation for negative values: 1 is no
activation, 0 is ReLU.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lmfn_kernels.conv.torch_backend import (
    add_conv_,
    as_kernel_image,
    conv,
    input_gradient,
    mask_gradient,
    mask_gradient_,
    materialize,
    scaled_conv,
    weight_gradient,
)
from lmfn_kernels.upsample.grid import upsample
from lmfn_kernels.upsample.torch_backend import upsample_add, upsample_backward
from lmfn_kernels.weights import Conv, ScaledConv

__all__ = [
    "as_kernel_image",
    "conv",
    "conv_pool",
    "fuse",
    "fuse_backward",
    "gate",
    "gate_backward",
    "input_gradient",
    "low_convs",
    "low_convs_backward",
    "mask_gradient",
    "materialize",
    "pool_backward",
    "recomputed",
    "scaled_conv",
    "scaled_stage",
    "stage",
    "upsample_add",
    "upsample_backward",
    "weight_gradient",
    "weight_gradients",
]

aten = torch.ops.aten


def stage(x: Tensor, distil: Conv, refine: Conv, slope: float) -> tuple[Tensor, Tensor]:
    return conv(x, *refine, x, padding=1, slope=slope), conv(x, *distil, slope=slope)


def weight_gradients(
    stages: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]],
) -> list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    return [
        (weight_gradient(e, x, refine, padding=1), weight_gradient(z, x, distil)) for e, z, x, refine, distil in stages
    ]


def scaled_stage(
    x: Tensor, distil: ScaledConv, refine: ScaledConv, slope: float, dtype: torch.dtype, distilled: torch.dtype
) -> tuple[Tensor, Tensor]:
    d = scaled_conv(x, distil, None, slope=slope, dtype=distilled)
    return scaled_conv(x, refine, None, slope=slope, dtype=dtype), d


def fuse(
    x: Tensor, d: Sequence[Tensor], last: Conv, fuse: Conv, squeeze: Conv, slope: float, save: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    d4 = conv(x, *last, padding=1, slope=slope)
    y = _fused((*d, d4), fuse)
    return y, conv(y, *squeeze), d4 if save else None


def _fused(d: Sequence[Tensor], fuse: Conv) -> Tensor:
    # Map by map: concatenating them would be a copy.
    parts = fuse.weight.chunk(4, dim=1)
    y = conv(d[0], parts[0], fuse.bias)
    for d_j, part in zip(d[1:], parts[1:], strict=True):
        add_conv_(y, d_j, part)
    return y


def recomputed(
    x: Sequence[Tensor], distil: Sequence[Conv], d4: Tensor, fuse: Conv, slope: float
) -> tuple[Sequence[Tensor], Tensor]:
    d = [conv(x_j, *of_x, slope=slope) for x_j, of_x in zip(x, distil, strict=True)]
    return d, _fused((*d, d4), fuse)


def conv_pool(x: Tensor, of_conv: Conv, save: bool) -> tuple[Tensor, Tensor | None]:
    values, index = aten.max_pool2d_with_indices.default(conv(x, *of_conv, stride=2), [7, 7], [3, 3])
    return as_kernel_image(values), as_kernel_image(index) if save else None


def pool_backward(g: Tensor, index: Tensor, size: Sequence[int]) -> Tensor:
    x = torch.empty((*g.shape[:2], *size), dtype=g.dtype, device=g.device, memory_format=torch.channels_last)
    return as_kernel_image(
        aten.max_pool2d_with_indices_backward.default(g, x, [7, 7], [3, 3], [0, 0], [1, 1], False, index)
    )


def low_convs(x: Tensor, conv1: Conv, conv2: Conv, conv3: Conv, save: bool) -> tuple[Tensor, Sequence[Tensor]]:
    low1 = conv(x, *conv1, padding=1, slope=0.0)
    low2 = conv(low1, *conv2, padding=1, slope=0.0)
    return conv(low2, *conv3, padding=1), (low1, low2) if save else ()


def low_convs_backward(
    g: Tensor, x: Tensor, low: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, Sequence[tuple[Tensor, Tensor]]]:
    (low1, low2), (w1, w2, w3) = low, weights
    g2 = input_gradient(g, w3, low2, padding=1, mask=0.0)
    g1 = input_gradient(g2, w2, low1, padding=1, mask=0.0)
    of_convs = [
        weight_gradient(of_result, of, weight, padding=1)
        for of_result, of, weight in ((g1, x, w1), (g2, low1, w2), (g, low2, w3))
    ]
    return input_gradient(g1, w1, x, padding=1), of_convs


def gate(y: Tensor, a: Tensor, v: Tensor, skip: Conv, expand: Conv, fixed_grid: bool) -> Tensor:
    s = conv(conv(a, *skip, as_kernel_image(upsample(v, y.shape[2:], fixed_grid))), *expand)
    return s.sigmoid_().mul_(y)


def gate_backward(
    g: Sequence[Tensor], y: Tensor, a: Tensor, v: Tensor, skip: Conv, expand: Conv, fixed_grid: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    t = conv(a, *skip, as_kernel_image(upsample(v, y.shape[2:], fixed_grid)))
    s = conv(t, *expand)
    dy = s.sigmoid().mul_(g[0] if len(g) == 1 else g[0] + g[1])
    # Not 1 - sigmoid(s), which loses all digits in 16 bits for large s.
    ds = s.neg_().sigmoid_().mul_(dy).mul_(y)
    dt = input_gradient(ds, expand.weight, t)
    dskip, dexpand = weight_gradient(dt, a, skip.weight), weight_gradient(ds, t, expand.weight)
    return dy, input_gradient(dt, skip.weight, a), dt, dskip, dexpand


def fuse_backward(
    gy: Tensor,
    ga: Tensor,
    y: Tensor,
    d: Sequence[Tensor],
    weight: Tensor,
    squeeze: Tensor,
    transposed: Sequence[Tensor],
    slope: float,
    d_slope: float,
) -> tuple[list[Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    of_y, *of_maps = transposed
    dy = conv(ga, of_y, None, gy)
    of_parts, of_biases = zip(*map(weight_gradient, [dy] * 4, d, weight.chunk(4, dim=1)), strict=True)
    dweight = torch.empty_like(weight).copy_(torch.cat(of_parts, dim=1))
    slopes = (d_slope, d_slope, d_slope, slope)
    z = [
        mask_gradient_(conv(dy, of_map, None), d_j, of_d) for of_map, d_j, of_d in zip(of_maps, d, slopes, strict=True)
    ]
    return z, (dweight, of_biases[0]), weight_gradient(ga, y, squeeze)
