"""The ops of the encoder: its stem, and residual blocks, which the bilinear head also uses.

Zhang et al., "Image deblurring based on lightweight multi-information fusion network", ICIP 2021, arXiv 2101.05403,
section 2.1.

Images are float32, float16, bfloat16 or float64 `[B, C, H, W]` of any strides, all tensors of one dtype on one device.
Sums are in float32 (float64 for float64), and follow PyTorch's own TF32 setting for convolutions. Results are
channels-last, from the kernels with gaps between pixels (`pixel_pitch`). Under autocast, images and weights are cast
to its dtype. Gradients are of first order.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmfn_kernels.conv.backend import PendingT, check_scaled, choose_for_e4m3
from lmfn_kernels.conv.op import check_conv, outputs_of
from lmfn_kernels.mshf import reference
from lmfn_kernels.mshf.backend import MSHFBackend, implementation
from lmfn_kernels.runtime import autocast, checks
from lmfn_kernels.runtime.backend import choose
from lmfn_kernels.runtime.registration import Gradients, Op, Wanted
from lmfn_kernels.upsample.backend import UpsampleBackend
from lmfn_kernels.weights import E4M3, Conv, ScaledConv

WIDEST = 64  # channels that one program of the stem's kernels supports
MOST_VALUES = 32  # input values of the first convolution per pixel, 9 per channel: they fill one block


def stem(
    x: Tensor, conv0: Conv, down: Conv, slope: float = 0.1, *, padding: int = 1, mean: Tensor | None = None
) -> Tensor:
    """LR(conv3x3 of stride 2 (f0)) with f0 = LR(conv3x3(x - mean)), LR the leaky ReLU: the encoder's first two
    convolutions.

    `x` [B, K, H, W], `conv0` K to C with `padding` 1 or 0, `down` C to N with padding 1, `mean` [K] is 0 by default;
    returns [B, N, h, w] with h = (H + 2 padding - 1) // 2. Under autocast, x - mean is cast rather than x. The
    full-size map f0 is not saved for backward, and the kernels write it to memory only if the gradient of `x` or `mean`
    is requested.

    Raises TypeError or ValueError, naming the argument, before anything runs.
    """
    if padding not in (0, 1):
        raise ValueError(f"padding is {padding}; expected 0 or 1")
    checks.image("x", x, 3 - 2 * padding)
    checks.slope(slope)
    c, n = outputs_of(conv0), outputs_of(down)
    check_conv("conv0", conv0, c, x.shape[1], 3, x)
    check_conv("down", down, n, c, 3, x)
    if mean is not None:
        checks.tensor("mean", mean, (x.shape[1],), x)
    backend = choose(x, _unsupported_reason(x.shape[1], max(c or 0, n or 0)), "stem")
    if backend == "reference":
        return reference.stem(x, mean, *conv0, *down, padding, slope)
    like = x.new_empty((0,), dtype=autocast.compute_dtype(x))
    return STEM(backend, StemInputs(like, x, mean, conv0, down), StemOptions(padding, slope))[0]


def residual_block(x: Tensor, conv1: Conv, conv2: Conv, *, upsample: bool = False, save_middle: bool = True) -> Tensor:
    """x + conv3x3(relu(conv3x3(x))), as one autograd function.

    `x` [B, C, H, W], `conv1` C to M, `conv2` M to C; returns [B, C, H, W]. With `upsample`, x is first upsampled to
    twice its size (bilinear, align_corners False), and the result is [B, C, 2H, 2W].

    Saved for backward, in addition to `x` and the weights: the map between the convolutions, or nothing with
    `save_middle=False`. Backward recomputes what is not saved, and always the upsampled x. Errors as in `stem`.
    """
    checks.image("x", x)
    c, middle = x.shape[1], outputs_of(conv1)
    check_conv("conv1", conv1, middle, c, 3, x)
    check_conv("conv2", conv2, c, middle, 3, x)
    return _residual_blocks((x,), (conv1,), (conv2,), BlockOptions(upsample, save_middle))[0]


def residual_blocks(
    maps: Sequence[Tensor], convs1: Sequence[Conv], convs2: Sequence[Conv], *, save_middle: bool = True
) -> tuple[Tensor, ...]:
    """`residual_block` of each of one to three maps, with a `conv1` and a `conv2` of its own, as one autograd function.

    `maps` [B, C, H, W] may have different B, H and W; `convs1` C to M, `convs2` M to C. Returns as many maps of the
    same sizes: the bits of `residual_block`, in fewer launches. The first map selects the backend. Saved for backward
    as by `residual_block`.

    Raises TypeError or ValueError, naming the argument, before anything runs.
    """
    if not len(maps) == len(convs1) == len(convs2) or len(maps) not in RESIDUAL_BLOCKS:
        raise ValueError(
            f"there are {len(maps)} maps, {len(convs1)} convs1 and {len(convs2)} convs2; expected as many of each, "
            f"at most {max(RESIDUAL_BLOCKS)}"
        )
    checks.image("maps[0]", maps[0])
    c, middle = maps[0].shape[1], outputs_of(convs1[0])
    for i, (x, conv1, conv2) in enumerate(zip(maps, convs1, convs2, strict=True)):
        checks.image(f"maps[{i}]", x)
        checks.tensor(f"maps[{i}]", x, (None, c, None, None), maps[0])
        check_conv(f"convs1[{i}]", conv1, middle, c, 3, maps[0])
        check_conv(f"convs2[{i}]", conv2, c, middle, 3, maps[0])
    return _residual_blocks(
        tuple(maps), tuple(convs1), tuple(convs2), BlockOptions(upsample=False, save_middle=save_middle)
    )


def _residual_blocks(
    maps: tuple[Tensor, ...], convs1: tuple[Conv, ...], convs2: tuple[Conv, ...], options: "BlockOptions"
) -> tuple[Tensor, ...]:
    backend = choose(maps[0], None, "residual_block")
    if backend == "reference":
        blocks = zip(maps, convs1, convs2, strict=True)
        return tuple(reference.residual_block(x, *conv1, *conv2, options.upsample) for x, conv1, conv2 in blocks)
    op = RESIDUAL_BLOCKS[len(maps)]
    return op(backend, op.inputs(maps, convs1, convs2), options)


def residual_block_e4m3(x: Tensor, conv1: ScaledConv, conv2: ScaledConv, *, upsample: bool = False) -> Tensor:
    """`residual_block` with the map between the convolutions stored as e4m3, for inference alone.

    `x` and the result are float16 or bfloat16; `conv1` and `conv2` are from `scaled`, of 33 to 64 channels before and
    after both. On a Hopper GPU the kernels use e4m3; elsewhere PyTorch computes the same numbers in float32.

    Raises TypeError for another dtype, ValueError for other channels and for weights that do not fit, RuntimeError if a
    gradient is wanted.
    """
    checks.image("x", x)
    hidden_channels = len(conv1.bias)
    f = implementation(choose_for_e4m3(x, (x.shape[1], hidden_channels), "residual_block_e4m3"))
    check_scaled("conv1", conv1, 9, hidden_channels, x, stored=False)
    check_scaled("conv2", conv2, 9, x.shape[1], x, stored=True)
    with torch.autocast(x.device.type, enabled=False):
        x = f.as_kernel_image(x)
        if upsample:
            x = _twice_as_large(f, x)
        hidden = f.scaled_conv(x, conv1, None, slope=0.0, dtype=E4M3)
        return f.scaled_conv(hidden, conv2, x, slope=1.0, dtype=x.dtype)


def _unsupported_reason(inputs: int, channels: int) -> str | None:
    """The reason why the stem's kernels cannot take these channels, or None."""
    if 9 * inputs > MOST_VALUES:
        return f"x has {inputs} channels, and the stem's kernels take at most {MOST_VALUES // 9}"
    return f"it has {channels} channels, and the stem's kernels hold at most {WIDEST}" if channels > WIDEST else None


class StemInputs(NamedTuple):
    like: Tensor
    """[0], in the dtype in which everything but x - mean is computed."""
    x: Tensor
    mean: Tensor | None
    conv0: Conv
    down: Conv


class StemOptions(NamedTuple):
    padding: int
    slope: float


def _stem_forward(
    f: MSHFBackend[PendingT], t: StemInputs, options: StemOptions, _save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return (f.stem(t.x, t.mean, t.conv0, t.down, options.padding, options.slope),), ()


def _stem_backward(
    f: MSHFBackend[PendingT],
    gradients: Sequence[Tensor],
    saved: Sequence[Tensor],
    t: StemInputs,
    options: StemOptions,
    wanted: Wanted,
) -> Gradients:
    e = f.mask_gradient(f.as_kernel_image(gradients[0]), f.as_kernel_image(saved[0]), options.slope)
    of_input, of_weights = wanted("x", "mean"), wanted("conv0", "down")
    dx, dconv0, ddown = f.stem_backward(
        e, t.x, t.mean, t.conv0, t.down, options.padding, options.slope, of_input, of_weights
    )
    dmean = None if dx is None or not wanted("mean") else -dx.sum((0, 2, 3), dtype=t.x.dtype)
    return {"like": torch.empty_like(t.like), "x": dx, "mean": dmean, "conv0": dconv0, "down": ddown}


class OneBlock(NamedTuple):
    maps: tuple[Tensor]
    convs1: tuple[Conv]
    convs2: tuple[Conv]


class TwoBlocks(NamedTuple):
    maps: tuple[Tensor, Tensor]
    convs1: tuple[Conv, Conv]
    convs2: tuple[Conv, Conv]


class ThreeBlocks(NamedTuple):
    maps: tuple[Tensor, Tensor, Tensor]
    convs1: tuple[Conv, Conv, Conv]
    convs2: tuple[Conv, Conv, Conv]


class BlockOptions(NamedTuple):
    upsample: bool
    save_middle: bool


def _residual_blocks_forward(
    f: MSHFBackend[PendingT], t: OneBlock | TwoBlocks | ThreeBlocks, options: BlockOptions, save: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    maps = [f.as_kernel_image(x) for x in t.maps]
    if options.upsample:
        maps = [_twice_as_large(f, x) for x in maps]
    middles = _middles(f, maps, t)
    results = f.convs(list(zip(middles, t.convs2, maps, strict=True)), slope=1.0)
    return results, middles if save and options.save_middle else ()


def _residual_blocks_backward(
    f: MSHFBackend[PendingT],
    gradients: Sequence[Tensor],
    saved: Sequence[Tensor],
    t: OneBlock | TwoBlocks | ThreeBlocks,
    options: BlockOptions,
    wanted: Wanted,
) -> Gradients:
    given, g = ([f.as_kernel_image(x) for x in images] for images in (t.maps, gradients))
    maps = [_twice_as_large(f, x) for x in given] if options.upsample else given
    middles = [f.as_kernel_image(x) for x in saved] if saved else _middles(f, maps, t)
    weights1, weights2 = ([conv.weight for conv in convs] for convs in (t.convs1, t.convs2))
    nothing = [None] * len(maps)
    e = f.input_gradients(list(zip(g, weights2, middles, nothing, strict=True)), mask=0.0)
    convs = {"convs1": zip(e, maps, weights1, strict=True), "convs2": zip(g, middles, weights2, strict=True)}
    names = [name for name in convs if wanted(name)]
    of_blocks = map(f.weight_gradients_of_convs, zip(*(convs[name] for name in names), strict=True))
    found: Gradients = dict(zip(names, zip(*of_blocks, strict=True), strict=True))
    if wanted("maps"):
        dx = f.input_gradients(list(zip(e, weights1, maps, g, strict=True)))
        found["maps"] = tuple(map(f.upsample_backward, dx, given) if options.upsample else dx)
    return found


def _middles(
    f: MSHFBackend[PendingT], maps: Sequence[Tensor], t: OneBlock | TwoBlocks | ThreeBlocks
) -> Sequence[Tensor]:
    """The maps between the convolutions."""
    return f.convs([(x, conv1, None) for x, conv1 in zip(maps, t.convs1, strict=True)], slope=0.0)


def _twice_as_large(f: UpsampleBackend, x: Tensor) -> Tensor:
    return f.upsample_add(x, [2 * size for size in x.shape[2:]])


STEM = Op(
    "stem",
    StemInputs,
    StemOptions,
    implementation,
    _stem_forward,
    _stem_backward,
    saves_outputs=lambda _options: True,  # backward needs the output's signs
    uncast_inputs=("x",),
)
RESIDUAL_BLOCKS: dict[int, Op[Any, BlockOptions, MSHFBackend[Any]]] = {
    number: Op(
        name,
        inputs,
        BlockOptions,
        implementation,
        _residual_blocks_forward,
        _residual_blocks_backward,
        outputs=[f"y{i}" for i in range(number)],
    )
    for number, (name, inputs) in enumerate(
        [
            ("residual_block", OneBlock),
            ("two_residual_blocks", TwoBlocks),
            ("three_residual_blocks", ThreeBlocks),
        ],
        1,
    )
}
"""By the number of maps, as a registered op has a fixed number of results."""
