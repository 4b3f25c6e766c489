"""Bilinear upsampling (align_corners False): added to another map, or under a convolution that never makes it.

Images are float32, float16, bfloat16 or float64 `[B, C, H, W]` of any strides, all tensors of one dtype on one device.
Sums are in float32 (float64 for float64), and follow PyTorch's own TF32 setting for convolutions; folded weights are
rounded to the images' dtype. The result of `upsample_add` is channels-last, from the kernels with a pixel stride
rounded up to 16 bytes, and nothing is kept for its backward. Under autocast, images and weights are cast to its dtype.
Gradients are of first order.
"""

# ruff: noqa: ARG001  (an op's forward and backward function have the same arguments for every op)

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lmfn_kernels.conv.op import check_conv, outputs_of
from lmfn_kernels.runtime import backend, checks
from lmfn_kernels.runtime.registration_by_offset import Gradients, Op, Tensors, given, pieces
from lmfn_kernels.upsample import reference
from lmfn_kernels.upsample.polyphase import PARTS, fold, unfold
from lmfn_kernels.weights import Conv


def upsample_add(a: Tensor, b: Tensor) -> Tensor:
    """a + b brought up to the size of a: `a` and the result [B, C, H, W], `b` [B, C, h, w]. Errors as in `conv3x3`."""
    checks.image("a", a)
    checks.image("b", b)
    checks.tensor("b", b, (*a.shape[:2], None, None), a)
    body = backend.choose(a, None, "upsample_add")
    return reference.upsample_add(a, b) if body == "reference" else _upsample_add(body, (a, b), ())[0]


def upsampled_conv3x3(x: Tensor, conv: Conv) -> Tensor:
    """conv3x3(up2(x)), up2 the bilinear to twice the size (align_corners False).

    `x` [B, C, H, W], `conv` C to N with padding 1; gives [B, N, 2H, 2W]. The upsampled map is made neither here nor in
    backward: the convolution is one of x, with four times the results. Errors as in `conv3x3`.
    """
    checks.image("x", x)
    check_conv("conv", conv, outputs_of(conv), x.shape[1], 3, x)
    body = backend.choose(x, None, "upsampled_conv3x3")
    if body == "reference":
        return reference.upsampled_conv3x3(x, *conv)
    return _upsampled_conv3x3(body, (x, *conv), ())[0]


def _upsample_add_forward(body: str, tensors: Tensors, options: Sequence[float], keep: bool) -> list[Tensor]:
    p = pieces("upsample", body)
    a, b = map(p.layout, given(tensors))
    # Backward needs the size of b alone, and this has it without a byte.
    return [p.upsample_add(b, a.shape[2:], a), b.new_empty((*b.shape[2:], 0))]


def _upsample_add_backward(
    body: str,
    gradients: Tensors,
    kept: Sequence[Tensor],
    tensors: Tensors,
    options: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    p, (g,), (size,) = pieces("upsample", body), given(gradients), kept
    found = [g.clone()] if needs[0] else []  # its own memory, as an op's result must have
    if needs[1]:
        b = g.new_empty(()).expand(*g.shape[:2], *size.shape[:2])
        found.append(p.upsample_backward(p.layout(g), b))
    return found


def _upsampled_conv3x3_forward(body: str, tensors: Tensors, options: Sequence[float], keep: bool) -> list[Tensor]:
    p, (x, weight, bias) = pieces("upsample", body), given(tensors)
    return [p.upsampled_conv(p.layout(x), fold(weight), bias)]


def _upsampled_conv3x3_backward(
    body: str,
    gradients: Tensors,
    kept: Sequence[Tensor],
    tensors: Tensors,
    options: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    p, found = pieces("conv", body), Gradients(tensors, needs)
    (x, weight, _), (g,) = given(tensors), given(gradients)
    x, e = p.layout(x), p.layout(F.pixel_unshuffle(g, 2))
    folded = fold(weight)
    of_x, of_weights = [], []
    for (rows, columns), weight_there in zip(PARTS, folded, strict=True):
        x_there, e_there = (p.layout(t[:, :, rows, columns]) for t in (x, e))
        if found.wants(0):
            of_x.append(p.input_gradient(e_there, weight_there, x_there, padding=1))
        if found.wants(1, 2):
            of_weights.append(p.weight_gradient(e_there, x_there, weight_there, padding=1))
    if of_x:
        for (rows, columns), part in zip(PARTS[1:], of_x[1:], strict=True):
            of_x[0][:, :, rows, columns] += part
        found.put(0, of_x[0])
    if of_weights:
        dw = torch.empty_like(weight).copy_(unfold(torch.stack([dw for dw, _ in of_weights])))
        found.put(1, dw, of_weights[0][1].reshape(-1, 4).sum(1))
    return found.list()


_upsample_add = Op("upsample_add", 1, _upsample_add_forward, _upsample_add_backward, forgets=(0, 1))
_upsampled_conv3x3 = Op("upsampled_conv3x3", 1, _upsampled_conv3x3_forward, _upsampled_conv3x3_backward)
