"""The ops' pieces in plain PyTorch, for CPUs, for MPS, and where there is no kernel. The same pieces as `launch.py`.

Images are `[B, C, H, W]` in channels-last memory. `slope` is that of an activation's negative side: 1 none, 0 ReLU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


def layout(x: Tensor) -> Tensor:
    """`x` as the pieces take it: itself where it fits, else a copy."""
    return x.contiguous(memory_format=torch.channels_last)


def masked(g: Tensor, y: Tensor, slope: float) -> Tensor:
    """The gradient before an activation, from that after it and the activation's output."""
    return g if slope == 1 else aten.leaky_relu_backward.default(g, y, slope, True)


def written(e: Tensor) -> Tensor:
    """What `masked` gave, as a tensor of its own."""
    return e.clone()


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    slope: float = 1.0,
) -> Tensor:
    y = layout(F.conv2d(x, weight, None if bias is None else bias.to(x.dtype), stride, padding))
    if residual is not None:
        y += residual
    return y if slope == 1 else F.leaky_relu_(y, slope)


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
    y = conv(torch.cat([d1, d2, d3, d4], dim=1), weight, bias)
    return y, conv(y, squeeze, squeeze_bias), d4 if keep else None


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over 7x7 at stride 3, and which one it was."""
    values, index = aten.max_pool2d_with_indices.default(x, [7, 7], [3, 3])
    return layout(values), layout(index)


def pool_backward(g: Tensor, index: Tensor, x: Tensor) -> Tensor:
    return layout(aten.max_pool2d_with_indices_backward.default(g, x, [7, 7], [3, 3], [0, 0], [1, 1], False, index))


def gate(
    y: Tensor, a: Tensor, v: Tensor, skip: Tensor, skip_bias: Tensor, expand: Tensor, expand_bias: Tensor
) -> Tensor:
    s = conv(conv(a, skip, skip_bias, _up(v, y)), expand, expand_bias)
    return s.sigmoid_().mul_(y)


def gate_backward(
    g: Tensor, y: Tensor, a: Tensor, v: Tensor, skip: Tensor, skip_bias: Tensor, expand: Tensor, expand_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Gradients of y, of a, of v brought up to y's size, and of the four weights."""
    t = conv(a, skip, skip_bias, _up(v, y))
    s = conv(t, expand, expand_bias)
    dy = g * s.sigmoid()
    ds = (dy * y).mul_(s.neg_().sigmoid_())  # not 1 - sigmoid(s), which has no digits left in 16 bits where s is large
    dt = input_gradient(ds, expand, t)
    weights = *weight_gradient(dt, a, skip), *weight_gradient(ds, t, expand)
    return dy, input_gradient(dt, skip, a), dt, weights


def upsample_backward(g: Tensor, v: Tensor) -> Tensor:
    # As matrices: PyTorch's own is not deterministic on a GPU, and fails where sizes are symbols.
    rows, columns = (_bilinear(g.shape[i], v.shape[i], g) for i in (2, 3))
    return layout((rows.mT @ g.to(rows.dtype) @ columns).to(v.dtype))


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
    d = torch.cat([d1, d2, d3, d4], dim=1)
    weights = *weight_gradient(dy, d, weight), *weight_gradient(ga, y, squeeze)
    if d_slope == slope:
        z = masked(input_gradient(dy, weight, d), d, slope).chunk(4, dim=1)
    else:
        *others, last = input_gradient(dy, weight, d).chunk(4, dim=1)
        z = (*others, masked(last, d4, slope))
    return tuple(z_j.clone(memory_format=torch.channels_last) for z_j in z), weights


def input_gradient(
    e: Tensor,
    weight: Tensor,
    x: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    residual: bool = False,
    extra: tuple[Tensor, Tensor] | None = None,
    mask: float = 1.0,
) -> Tensor:
    """The gradient of a convolution's input `x`; with `residual` x was also added to its output.

    `extra` is (z, weight) of a 1x1 of the same input, whose part is added. `mask` is the slope of the activation that x
    came out of: the result is then the gradient before that.
    """
    dx = layout(_convolution_backward(e, x, weight, stride, padding, (True, False, False))[0])
    if residual:
        dx += e
    if extra is not None:
        dx += _convolution_backward(extra[0], x, extra[1], 1, 0, (True, False, False))[0]
    return masked(dx, x, mask)


def weight_gradient(
    e: Tensor, x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0
) -> tuple[Tensor, Tensor]:
    """The gradients of a convolution's weight, in its strides, and of its bias."""
    _, dw, db = _convolution_backward(e, x, weight, stride, padding, (False, True, True))
    return torch.empty_like(weight).copy_(dw), db


def _convolution_backward(
    e: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias; those not wanted are None."""
    s, p = [stride, stride], [padding, padding]
    found: tuple[Tensor, Tensor, Tensor] = aten.convolution_backward.default(
        e, x, weight, [weight.shape[0]], s, p, [1, 1], False, [0, 0], 1, list(wanted)
    )
    return found


def _bilinear(size: int, low: int, like: Tensor) -> Tensor:
    """`[size, low]`: what each of `size` places takes from each of `low` (align_corners False)."""
    twice = ((2 * torch.arange(size, device=like.device) + 1) * low - size).clamp(min=0)[:, None]
    first = (twice // (2 * size)).clamp(max=low - 1)
    part = (twice % (2 * size)).to(torch.promote_types(like.dtype, torch.float32)) / (2 * size)
    place = torch.arange(low, device=like.device)
    return (place == first) * (1 - part) + (place == (first + 1).clamp(max=low - 1)) * part


def _up(v: Tensor, y: Tensor) -> Tensor:
    return F.interpolate(v, size=y.shape[2:], mode="bilinear", align_corners=False)
