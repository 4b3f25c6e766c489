"""MSHF in PyTorch operations, for CPUs, MPS and sizes without a kernel; same functions as `triton_backend.py`."""

from torch import Tensor

from lmfn_kernels.conv.torch_backend import conv, input_gradient, layout, masked, weight_gradient
from lmfn_kernels.upsample.torch_backend import upsample_add, upsample_backward

__all__ = [
    "conv", "input_gradient", "layout", "masked", "skip_gradient", "stem", "stem_backward", "upsample",
    "upsample_backward", "weight_gradient",
]  # fmt: skip


def stem(x: Tensor, conv0: Tensor, bias0: Tensor, down: Tensor, bias: Tensor, padding: int, slope: float) -> Tensor:
    f0 = conv(layout(x), conv0, bias0, padding=padding, slope=slope)
    return conv(f0, down, bias, stride=2, padding=1, slope=slope)


def stem_backward(
    e: Tensor,
    x: Tensor,
    conv0: Tensor,
    bias0: Tensor,
    down: Tensor,
    _bias: Tensor,
    padding: int,
    slope: float,
    of_input: bool,
    of_weights: bool,
) -> tuple[Tensor | None, ...]:
    """From the gradient before the last activation, those of the input and of both weights and biases."""
    x = layout(x)
    f0 = conv(x, conv0, bias0, padding=padding, slope=slope)
    of_down = weight_gradient(e, f0, down, stride=2, padding=1) if of_weights else (None, None)
    e0 = input_gradient(e, down, f0, stride=2, padding=1, mask=slope)
    del f0
    of_conv0 = weight_gradient(e0, x, conv0, padding=padding) if of_weights else (None, None)
    return input_gradient(e0, conv0, x, padding=padding) if of_input else None, *of_conv0, *of_down


def skip_gradient(e: Tensor, weight: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """The gradient of a 3x3 convolution's input, plus `g`, which came past the convolution."""
    return input_gradient(e, weight, x, padding=1).add_(g)


def upsample(x: Tensor) -> Tensor:
    """To twice the height and width."""
    return upsample_add(x, [2 * size for size in x.shape[2:]])
