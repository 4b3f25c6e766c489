"""The convolution op.

Images are float32, float16, bfloat16 or float64 `[B, C, H, W]` of any strides, all tensors of one dtype on one device.
Sums are in float32 (float64 for float64), and follow PyTorch's own TF32 setting for convolutions. The result is
channels-last, from the kernels with gaps between pixels (`pixel_pitch`). Under autocast, images and weights are cast
to its dtype. Gradients are of first order.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from lmfn_kernels.conv import reference
from lmfn_kernels.conv.backend import ConvBackend, PendingT, implementation
from lmfn_kernels.runtime import checks
from lmfn_kernels.runtime.backend import choose
from lmfn_kernels.runtime.registration import Gradients, Op, Wanted
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
    H' = (H + 2 padding - 3) // stride + 1; stride 1 or 2, padding 0 or 1. `slope` is the leaky ReLU's, in (0, 1].

    Raises TypeError or ValueError, naming the argument, before anything runs.
    """
    backend, options = _checked(x, weight, bias, residual, stride, padding, activation, slope)
    if backend == "reference":
        return reference.conv3x3(x, weight, bias, residual, *options)
    return CONV3X3(backend, Inputs(x, weight, bias, residual), options)[0]


def conv3x3_and_input(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 1,
    activation: Activation = "none",
    slope: float = 0.05,
) -> tuple[Tensor, Tensor]:
    """`conv3x3`, and `x` for another use: backward adds the gradient of that use to that of the convolution as it
    writes it, where autograd would first write both and then their sum to memory.

    The second result is the memory of `x`, which must not be written to. Shapes and errors as in `conv3x3`.
    """
    backend, options = _checked(x, weight, bias, None, stride, padding, activation, slope)
    if backend == "reference":
        return reference.conv3x3(x, weight, bias, None, *options), x
    return CONV3X3.two_uses(backend, Inputs(x, weight, bias, None), options)


def _checked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: int,
    padding: int,
    activation: Activation,
    slope: float,
) -> tuple[str, "Options"]:
    """The backend and the options of a convolution with these arguments, which are checked."""
    checks.image("x", x, 3 - 2 * padding)
    channels = outputs_of((weight, bias))
    checks.tensor("weight", weight, (channels, x.shape[1], 3, 3), x)
    if bias is not None:
        checks.tensor("bias", bias, (channels,), x)
    if stride not in (1, 2):
        raise ValueError(f"stride is {stride}; expected 1 or 2")
    if padding not in (0, 1):
        raise ValueError(f"padding is {padding}; expected 0 or 1")
    if activation not in ("none", "relu", "leaky_relu"):
        raise ValueError(f"activation is {activation!r}; expected one of none, relu, leaky_relu")
    if activation == "leaky_relu":
        checks.slope(slope)
    if residual is not None:
        height, width = ((size + 2 * padding - 3) // stride + 1 for size in x.shape[2:])
        checks.tensor("residual", residual, (x.shape[0], channels, height, width), x)
    negative = {"none": 1.0, "relu": 0.0, "leaky_relu": slope}[activation]
    return choose(x, None, "conv3x3"), Options(stride, padding, negative)


def outputs_of(conv: tuple[Tensor, Tensor | None]) -> int | None:
    """Output channels of a convolution, weight and bias; None if its weight is not a tensor of four dimensions, or has
    no outputs."""
    weight = conv[0]
    return weight.shape[0] or None if isinstance(weight, Tensor) and weight.ndim == 4 else None


def check_conv(name: str, conv: Conv, outputs: int | None, inputs: int | None, size: int, x: Tensor) -> None:
    """Raise TypeError or ValueError unless `conv` has these channels and kernel size, and the dtype and device of `x`.

    None is any number of channels.
    """
    checks.tensor(f"{name}.weight", conv[0], (outputs, inputs, size, size), x)
    checks.tensor(f"{name}.bias", conv[1], (outputs,), x)


class Inputs(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None


class Options(NamedTuple):
    stride: int
    padding: int
    slope: float
    """Slope of the activation for negative values: 1 is no activation, 0 is ReLU."""


def _forward(
    f: ConvBackend[PendingT], t: Inputs, options: Options, _save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    residual = None if t.residual is None else f.as_kernel_image(t.residual)
    stride, padding, slope = options
    return (
        f.conv(f.as_kernel_image(t.x), t.weight, t.bias, residual, stride=stride, padding=padding, slope=slope),
    ), ()


def _backward(
    f: ConvBackend[PendingT],
    gradients: tuple[Tensor, Tensor | None],
    saved: Sequence[Tensor],
    t: Inputs,
    options: Options,
    wanted: Wanted,
) -> Gradients:
    x, g, found = f.as_kernel_image(t.x), f.as_kernel_image(gradients[0]), Gradients()
    add = None if gradients[1] is None else f.as_kernel_image(gradients[1])
    stride, padding, slope = options
    e = f.mask_gradient(g, f.as_kernel_image(saved[0]), slope) if saved else g
    if wanted("x"):
        found["x"] = f.input_gradient(e, t.weight, x, stride=stride, padding=padding, add=add)
    if wanted("weight", "bias"):
        found["weight"], found["bias"] = f.weight_gradient(e, x, t.weight, stride=stride, padding=padding)
    if wanted("residual"):
        found["residual"] = f.materialize(e)
    return found


CONV3X3 = Op(
    "conv3x3",
    Inputs,
    Options,
    implementation,
    _forward,
    _backward,
    saves_outputs=lambda options: options.slope != 1,  # backward needs the output's signs
    unsaved_inputs=("residual",),
    second_use="input",
)
