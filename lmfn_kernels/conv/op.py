"""The convolution op, and how ops take convolutions.

Images are float32, float16, bfloat16 or float64 `[B, C, H, W]` of any strides, all tensors of one dtype on one device.
Sums are in float32 (float64 for float64), and follow PyTorch's own TF32 setting for convolutions. The result is
channels-last, from the kernels with a pixel stride rounded up to 16 bytes. Under autocast, images and weights are cast
to its dtype. Gradients are of first order.
"""

# ruff: noqa: ARG001  (an op's forward and backward function have the same arguments for every op)

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from lmfn_kernels.conv import reference
from lmfn_kernels.runtime import backend, checks
from lmfn_kernels.runtime.registration_by_offset import Gradients, Op, Tensors, given, pieces
from lmfn_kernels.weights import Conv

Activation = Literal["none", "relu", "leaky_relu"]


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 1,
    activation: Activation = "none",
    slope: float = 0.05,
) -> Tensor:
    """activation(conv3x3(x) + bias + residual).

    `x` [B, C, H, W], `weight` [N, C, 3, 3], `bias` [N], `residual` and the result [B, N, H', W'], with
    H' = (H + 2 padding - 3) // stride + 1; stride 1 or 2, padding 0 or 1. `slope` is the leaky ReLU's.

    Raises TypeError or ValueError, naming the argument, before anything runs.
    """
    checks.image("x", x, 3 - 2 * padding)
    channels = weight.shape[0] if isinstance(weight, Tensor) and weight.ndim == 4 else None
    checks.tensor("weight", weight, (channels, x.shape[1], 3, 3), x)
    if bias is not None:
        checks.tensor("bias", bias, (channels,), x)
    for name, value, allowed in (("stride", stride, (1, 2)), ("padding", padding, (0, 1))):
        if value not in allowed:
            raise ValueError(f"{name} is {value}; expected is {allowed[0]} or {allowed[1]}")
    if activation not in ("none", "relu", "leaky_relu"):
        raise ValueError(f"activation is {activation!r}; expected is one of none, relu, leaky_relu")
    if activation == "leaky_relu":
        checks.slope(slope)
    if residual is not None:
        height, width = ((size + 2 * padding - 3) // stride + 1 for size in x.shape[2:])
        checks.tensor("residual", residual, (x.shape[0], channels, height, width), x)
    negative = {"none": 1.0, "relu": 0.0, "leaky_relu": slope}[activation]
    body = backend.choose(x, None, "conv3x3")
    if body == "reference":
        return reference.conv3x3(x, weight, bias, residual, stride, padding, negative)
    return _conv3x3(body, (x, weight, bias, residual), (stride, padding, negative))[0]


def outputs_of(conv: Conv) -> int | None:
    weight = conv[0]
    return weight.shape[0] if isinstance(weight, Tensor) and weight.ndim == 4 else None


def check_conv(name: str, conv: Conv, outputs: int | None, inputs: int | None, size: int, x: Tensor) -> None:
    checks.tensor(f"{name}.weight", conv[0], (outputs, inputs, size, size), x)
    checks.tensor(f"{name}.bias", conv[1], (outputs,), x)


def _conv3x3_forward(body: str, tensors: Tensors, options: Sequence[float], keep: bool) -> list[Tensor]:
    p = pieces("conv", body)
    x, weight = given(tensors[:2])
    bias, residual = tensors[2:]
    stride, padding, slope = int(options[0]), int(options[1]), options[2]
    residual = None if residual is None else p.layout(residual)
    return [p.conv(p.layout(x), weight, bias, residual, stride=stride, padding=padding, slope=slope)]


def _conv3x3_backward(
    body: str,
    gradients: Tensors,
    kept: Sequence[Tensor],
    tensors: Tensors,
    options: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    p, found = pieces("conv", body), Gradients(tensors, needs)
    x, weight = given(tensors[:2])
    (g,) = given(gradients)
    stride, padding, slope = int(options[0]), int(options[1]), options[2]
    x, g = p.layout(x), p.layout(g)
    e = p.masked(g, p.layout(kept[0]), slope) if kept else g
    if found.wants(0):
        found.put(0, p.input_gradient(e, weight, x, stride=stride, padding=padding))
    if found.wants(1, 2):
        found.put(1, *p.weight_gradient(e, x, weight, stride=stride, padding=padding))
    if found.wants(3):
        found.put(3, p.written(e))
    return found.list()


def activated(options: Sequence[float]) -> bool:
    """Whether backward needs the results' signs: the last option is the slope."""
    return options[-1] != 1


_conv3x3 = Op("conv3x3", 1, _conv3x3_forward, _conv3x3_backward, keeps_results=activated)
