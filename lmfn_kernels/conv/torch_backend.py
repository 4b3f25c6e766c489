"""Convolution in PyTorch, for CPUs, MPS and sizes without a kernel; the same functions as `triton_backend.py`.

Images are `[B, C, H, W]` in channels-last memory. `slope` is the slope of an activation for negative values: 1 is no
activation, 0 is ReLU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lmfn_kernels.runtime.torch_private import missing_onednn_ops
from lmfn_kernels.weights import E4M3, ScaledConv

aten = torch.ops.aten


def as_kernel_image(x: Tensor) -> Tensor:
    """`x` itself if it is channels-last, otherwise a channels-last copy."""
    return x.contiguous(memory_format=torch.channels_last)


def activate_(y: Tensor, slope: float) -> Tensor:
    """The activation in place. A ReLU must not multiply an infinity by its slope, 0."""
    if slope == 0:
        return F.relu_(y)
    return y if slope == 1 else F.leaky_relu_(y, slope)


def mask_gradient(g: Tensor, y: Tensor, slope: float) -> Tensor:
    """The gradient of an activation's input, from the gradient `g` of its output `y`."""
    if slope == 1:
        return g
    found: Tensor
    if slope == 0:
        found = aten.threshold_backward.default(g, y, 0)
    else:
        found = aten.leaky_relu_backward.default(g, y, slope, True)
    return found


def mask_gradient_(g: Tensor, y: Tensor, slope: float) -> Tensor:
    """`mask_gradient` in place; `g` must be the caller's own."""
    if slope == 0:
        aten.threshold_backward.grad_input(g, y, 0, grad_input=g)
    elif slope != 1:
        aten.leaky_relu_backward.grad_input(g, y, slope, True, grad_input=g)
    return g


def materialize(e: Tensor) -> Tensor:
    return e


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
    bias = None if bias is None else bias.to(x.dtype)
    if not _has_onednn(x):
        y = as_kernel_image(F.conv2d(x, weight, bias, stride, padding))
        if residual is not None:
            y += residual
        return activate_(y, slope)
    # In oneDNN's convolution itself: another pass over the result takes longer than a 1x1 convolution's products.
    onednn, weight = torch.ops.mkldnn._convolution_pointwise, weight.contiguous()
    geometry = [padding] * 2, [stride] * 2, [1, 1], 1
    if residual is None and slope != 0:
        return as_kernel_image(onednn.default(x, weight, bias, *geometry, "leaky_relu", [slope], ""))
    if residual is None:
        y = onednn.default(x, weight, bias, *geometry, "none", [], "")
    else:
        y = onednn.binary(x, residual, weight, bias, *geometry, "add", 1.0, None, [], None)
    # After oneDNN, whose ReLU makes a NaN 0, and which has no leaky ReLU that follows a sum.
    return activate_(as_kernel_image(y), slope)


def add_conv_(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """y += conv1x1(x), without a tensor for the summand where oneDNN is used."""
    if not _has_onednn(x):
        return y.add_(conv(x, weight, None))
    onednn, geometry = torch.ops.mkldnn._convolution_pointwise_, ([0, 0], [1, 1], [1, 1], 1)
    found: Tensor = onednn.binary(y, x, weight.contiguous(), None, *geometry, "add", 1.0, None, [], None)
    return found


def _has_onednn(x: Tensor) -> bool:
    """Whether oneDNN's convolutions with sums and activations are used: on CPUs, not on fake tensors."""
    usable = type(x) is Tensor and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
    return usable and torch.backends.mkldnn.is_available() and not missing_onednn_ops()


def scaled_conv(x: Tensor, conv: ScaledConv, residual: Tensor | None, *, slope: float, dtype: torch.dtype) -> Tensor:
    """Computed in float32: e4m3 is only how the result is rounded."""
    taps = conv.weight.float()
    taps = taps[..., : x.shape[1]] if conv.weight.dtype == E4M3 else taps.transpose(1, 2)
    values, size = x.float(), 1 if len(taps) == 1 else 3
    y = F.conv2d(values, taps[: size * size].permute(1, 2, 0).unflatten(2, (size, size)), padding=size // 2)
    if len(taps) == 10:
        y += F.conv2d(values, taps[9, ..., None, None])
    if conv.factor is not None:
        y *= conv.factor[:, None, None]
    y += conv.bias[:, None, None]
    if residual is not None:
        y += residual
    y = activate_(y, slope)
    largest = torch.finfo(dtype).max
    return as_kernel_image(y.clamp_(-largest, largest).to(dtype))


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
    add: Tensor | None = None,
) -> Tensor:
    """The gradient of a convolution's input `x`; the arguments are described in `ConvBackend`."""
    if weight.shape[2] == 1:
        # As a convolution: a matrix product takes three times as long.
        dx = conv(e, weight.transpose(0, 1), None)
    else:
        dx = as_kernel_image(_convolution_backward(e, x, weight, stride, padding, (True, False, False))[0])
    if residual:
        dx += e
    if extra is not None:
        add_conv_(dx, extra[0], extra[1].transpose(0, 1))
    mask_gradient_(dx, x, mask)
    return dx if add is None else dx.add_(add)


def weight_gradient(
    e: Tensor, x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0
) -> tuple[Tensor, Tensor]:
    """The gradients of a convolution's weight, with the weight's strides, and of its bias."""
    _, dw, db = _convolution_backward(e, x, weight, stride, padding, (False, True, True))
    return torch.empty_like(weight).copy_(dw), db


def _convolution_backward(
    e: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias, None for those that are not wanted."""
    s, p = [stride, stride], [padding, padding]
    found: tuple[Tensor, Tensor, Tensor] = aten.convolution_backward.default(
        e, x, weight, [weight.shape[0]], s, p, [1, 1], False, [0, 0], 1, list(wanted)
    )
    return found
