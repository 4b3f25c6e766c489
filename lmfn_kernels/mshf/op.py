"""The ops of the encoder: its stem, and the residual block that the bilinear head is made of, too.

Zhang et al., "Image deblurring based on lightweight multi-information fusion network", ICIP 2021, arXiv 2101.05403,
section 2.1.

Images are float32, float16, bfloat16 or float64 `[B, C, H, W]` of any strides, all tensors of one dtype on one device.
Sums are in float32 (float64 for float64), and follow PyTorch's own TF32 setting for convolutions. Results are
channels-last, from the kernels with a pixel stride rounded up to 16 bytes. Under autocast, images and weights are cast
to its dtype. Gradients are of first order.
"""

# ruff: noqa: ARG001  (an op's forward and backward function have the same arguments for every op)

from collections.abc import Sequence

from torch import Tensor

from lmfn_kernels.conv.op import check_conv, outputs_of
from lmfn_kernels.mshf import reference
from lmfn_kernels.runtime import backend, checks
from lmfn_kernels.runtime.registration_by_offset import Gradients, Op, Tensors, given, pieces
from lmfn_kernels.weights import Conv

WIDEST = 64  # channels that one program of the stem's kernels holds
MOST_VALUES = 32  # of the image under nine taps, which are one block


def stem(x: Tensor, conv0: Conv, down: Conv, slope: float = 0.1, *, padding: int = 1) -> Tensor:
    """LR(conv3x3 of stride 2 (f0)) with f0 = LR(conv3x3(x)), LR the leaky ReLU: the encoder's first two convolutions.

    `x` [B, K, H, W], `conv0` K to C with `padding` 1 or 0, `down` C to N with padding 1; gives [B, N, h, w] with
    h = (H + 2 padding - 1) // 2. f0, a map of full size, is not kept, and the kernels never write it, except where the
    gradient of `x` is asked for.

    Raises TypeError or ValueError, naming the argument, before anything runs.
    """
    if padding not in (0, 1):
        raise ValueError(f"padding is {padding}; expected is 0 or 1")
    checks.image("x", x, 3 - 2 * padding)
    checks.slope(slope)
    c, n = outputs_of(conv0), outputs_of(down)
    check_conv("conv0", conv0, c, x.shape[1], 3, x)
    check_conv("down", down, n, c, 3, x)
    body = backend.choose(x, _refusal(x.shape[1], max(c or 0, n or 0)), "stem")
    if body == "reference":
        return reference.stem(x, *conv0, *down, padding, slope)
    return _stem(body, (x, *conv0, *down), (padding, slope))[0]


def residual_block(x: Tensor, conv1: Conv, conv2: Conv, *, upsample: bool = False, keep_middle: bool = True) -> Tensor:
    """x + conv3x3(relu(conv3x3(x))), as one autograd function.

    `x` [B, C, H, W], `conv1` C to M, `conv2` M to C; gives [B, C, H, W]. With `upsample`, the block of x at twice its
    size (bilinear, align_corners False), [B, C, 2H, 2W]. Kept for backward, beside `x` and the weights: the map between
    the convolutions, or with `keep_middle=False` nothing. It is then computed again, as the upsampled x always is.
    Errors as in `stem`.
    """
    checks.image("x", x)
    c, middle = x.shape[1], outputs_of(conv1)
    check_conv("conv1", conv1, middle, c, 3, x)
    check_conv("conv2", conv2, c, middle, 3, x)
    body = backend.choose(x, None, "residual_block")
    if body == "reference":
        return reference.residual_block(x, *conv1, *conv2, upsample)
    return _residual_block(body, (x, *conv1, *conv2), (upsample, keep_middle))[0]


def _refusal(inputs: int, channels: int) -> str | None:
    """Why the stem's kernels cannot take so many channels, if so."""
    if 9 * inputs > MOST_VALUES:
        return f"x has {inputs} channels, and the stem's kernels take at most {MOST_VALUES // 9}"
    return f"it has {channels} channels, and the stem's kernels hold at most {WIDEST}" if channels > WIDEST else None


def _stem_forward(body: str, tensors: Tensors, options: Sequence[float], keep: bool) -> list[Tensor]:
    p, (x, *weights) = pieces("mshf", body), given(tensors)
    return [p.stem(x, *weights, int(options[0]), options[1])]


def _stem_backward(
    body: str,
    gradients: Tensors,
    kept: Sequence[Tensor],
    tensors: Tensors,
    options: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    p, found = pieces("mshf", body), Gradients(tensors, needs)
    (x, *weights), (g,), (d1,) = given(tensors), given(gradients), kept
    e = p.masked(p.layout(g), p.layout(d1), options[1])
    found.put(0, *p.stem_backward(e, x, *weights, int(options[0]), options[1], needs[0], any(needs[1:])))
    return found.list()


def _residual_block_forward(body: str, tensors: Tensors, options: Sequence[float], keep: bool) -> list[Tensor]:
    p, (x, conv1, bias1, conv2, bias2) = pieces("mshf", body), given(tensors)
    x = p.upsample(p.layout(x)) if options[0] else p.layout(x)
    middle = p.conv(x, conv1, bias1, padding=1, slope=0.0)
    y = p.conv(middle, conv2, bias2, x, padding=1)
    return [y, middle] if keep and options[1] else [y]


def _residual_block_backward(
    body: str,
    gradients: Tensors,
    kept: Sequence[Tensor],
    tensors: Tensors,
    options: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    p, found = pieces("mshf", body), Gradients(tensors, needs)
    (x, conv1, bias1, conv2, _), (g,) = given(tensors), given(gradients)
    low, g = p.layout(x), p.layout(g)
    x = p.upsample(low) if options[0] else low
    middle = p.layout(kept[0]) if kept else p.conv(x, conv1, bias1, padding=1, slope=0.0)
    if found.wants(3, 4):
        found.put(3, *p.weight_gradient(g, middle, conv2, padding=1))
    e = p.input_gradient(g, conv2, middle, padding=1, mask=0.0)
    if found.wants(1, 2):
        found.put(1, *p.weight_gradient(e, x, conv1, padding=1))
    if found.wants(0):
        dx = p.skip_gradient(e, conv1, x, g)
        found.put(0, p.upsample_backward(dx, low) if options[0] else dx)
    return found.list()


_stem = Op("stem", 1, _stem_forward, _stem_backward, keeps_results=lambda _options: True)
_residual_block = Op("residual_block", 1, _residual_block_forward, _residual_block_backward)
