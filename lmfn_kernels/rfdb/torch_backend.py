"""RFDB in PyTorch operations, for CPUs, MPS and sizes without a kernel; same functions as `triton_backend.py`.

Images are `[B, C, H, W]` in channels-last memory. `slope` is that of an activation's negative side: 1 none, 0 ReLU.
"""

import torch
from torch import Tensor

from lmfn_kernels.conv.torch_backend import conv, input_gradient, layout, masked, masked_, weight_gradient, written
from lmfn_kernels.upsample.torch_backend import upsample, upsample_backward

__all__ = [
    "conv", "fuse", "fuse_backward", "fused", "gate", "gate_backward", "input_gradient", "layout", "masked", "pool",
    "pool_backward", "stage", "upsample_backward", "weight_gradient", "written",
]  # fmt: skip

aten = torch.ops.aten


def stage(
    x: Tensor, distil: Tensor, distil_bias: Tensor, refine: Tensor, refine_bias: Tensor, slope: float
) -> tuple[Tensor, Tensor]:
    return conv(x, refine, refine_bias, x, padding=1, slope=slope), conv(x, distil, distil_bias, slope=slope)


def fuse(
    x: Tensor,
    d1: Tensor,
    d2: Tensor,
    d3: Tensor,
    last: Tensor,
    last_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    squeeze: Tensor,
    squeeze_bias: Tensor,
    slope: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, a, and d4 where `keep` is set."""
    d4 = conv(x, last, last_bias, padding=1, slope=slope)
    y = fused(d1, d2, d3, d4, weight, bias)
    return y, conv(y, squeeze, squeeze_bias), d4 if keep else None


def fused(d1: Tensor, d2: Tensor, d3: Tensor, d4: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y, map by map: to lie side by side in memory they would have to be copied."""
    parts = weight.chunk(4, dim=1)
    y = conv(d1, parts[0], bias)
    for d, part in zip((d2, d3, d4), parts[1:], strict=True):
        y += conv(d, part, None)
    return y


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over 7x7 at stride 3, and which one it was."""
    values, index = aten.max_pool2d_with_indices.default(x, [7, 7], [3, 3])
    return layout(values), layout(index)


def pool_backward(g: Tensor, index: Tensor, x: Tensor) -> Tensor:
    return layout(aten.max_pool2d_with_indices_backward.default(g, x, [7, 7], [3, 3], [0, 0], [1, 1], False, index))


def gate(
    y: Tensor, a: Tensor, v: Tensor, skip: Tensor, skip_bias: Tensor, expand: Tensor, expand_bias: Tensor
) -> Tensor:
    s = conv(conv(a, skip, skip_bias, upsample(v, y)), expand, expand_bias)
    return s.sigmoid_().mul_(y)


def gate_backward(
    g: Tensor, y: Tensor, a: Tensor, v: Tensor, skip: Tensor, skip_bias: Tensor, expand: Tensor, expand_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Gradients of y, of a, of v brought up to y's size, and of the four weights."""
    t = conv(a, skip, skip_bias, upsample(v, y))
    s = conv(t, expand, expand_bias)
    dy = s.sigmoid().mul_(g)
    # Not 1 - sigmoid(s), which has no digits left in 16 bits where s is large.
    ds = s.neg_().sigmoid_().mul_(dy).mul_(y)
    dt = input_gradient(ds, expand, t)
    weights = *weight_gradient(dt, a, skip), *weight_gradient(ds, t, expand)
    return dy, input_gradient(dt, skip, a), dt, weights


def fuse_backward(
    gy: Tensor,
    ga: Tensor,
    y: Tensor,
    d1: Tensor,
    d2: Tensor,
    d3: Tensor,
    d4: Tensor,
    weight: Tensor,
    squeeze: Tensor,
    slope: float,
    d_slope: float,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Gradients before the activations of d1..d4 (of d1..d3 with `d_slope`), and of both weights and biases."""
    dy = input_gradient(ga, squeeze, y).add_(gy)
    maps, parts = (d1, d2, d3, d4), weight.chunk(4, dim=1)
    of_parts, of_biases = zip(*map(weight_gradient, [dy] * 4, maps, parts), strict=True)
    of_weight = torch.empty_like(weight).copy_(torch.cat(of_parts, dim=1))
    slopes = (d_slope, d_slope, d_slope, slope)
    z = tuple(masked_(input_gradient(dy, part, d), d, of_d) for part, d, of_d in zip(parts, maps, slopes, strict=True))
    return z, (of_weight, of_biases[0], *weight_gradient(ga, y, squeeze))
