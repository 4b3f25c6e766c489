"""MSHF by Triton kernels; the same functions as `torch_backend.py`, on images from `as_kernel_image`.

The stem's input is an exception: it may have any layout and dtype, and is copied to planes with zeros around them,
which its kernels read by pointers.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lmfn_kernels.conv import triton_backend as convolution
from lmfn_kernels.conv.triton_backend import (
    as_kernel_image,
    conv,
    input_gradient,
    launch_conv,
    mask_gradient,
    materialize,
    scaled_conv,
    weight_gradient,
)
from lmfn_kernels.mshf import kernels
from lmfn_kernels.mshf.reference import centred
from lmfn_kernels.runtime.gradients import ConvGradient, PartialSums, PendingMask
from lmfn_kernels.runtime.launch import (
    PLANS,
    Block,
    Plan,
    Tiling,
    accumulator,
    as_pending,
    as_pitched_image,
    cdiv,
    channel_block,
    empty_image,
    launch,
    padded_image,
    partial_sums,
    tiling,
    weight_as_taps,
)
from lmfn_kernels.runtime.layout import pitch, pixel_pitch
from lmfn_kernels.runtime.trials import in_use
from lmfn_kernels.upsample.triton_backend import (
    upsample_add,
    upsample_backward,
    upsampled_conv,
    upsampled_conv_backward,
)
from lmfn_kernels.weights import Conv

__all__ = [
    "as_kernel_image",
    "conv",
    "input_gradient",
    "mask_gradient",
    "materialize",
    "scaled_conv",
    "skip_gradient",
    "stem",
    "stem_backward",
    "upsample_add",
    "upsample_backward",
    "upsampled_conv",
    "upsampled_conv_backward",
    "weight_gradient",
]


def stem(x: Tensor, mean: Tensor | None, conv0: Conv, down: Conv, padding: int, slope: float) -> Tensor:
    height, width = ((size + 2 * padding - 1) // 2 for size in x.shape[2:])
    b, (channels, inputs), n, dtype = len(x), conv0.weight.shape[:2], down.weight.shape[0], down.weight.dtype
    weights = {"p_bias0": conv0.bias, "t_w": weight_as_taps(down.weight), "p_bias": down.bias}
    programs = convolution.ring_programs(x.device) if in_use("quartered_stem") else 0
    if programs and dtype.itemsize == 2 and (inputs, *map(channel_block, (channels, n))) == (3, 64, 64):
        out, packed = padded_image(x, b, n, height, width, dtype), _padded(x, mean, padding, dtype, packed=True)
        of_quarters = tuple(out.shape), tuple(packed.shape), dtype, channels, slope, programs
        weights["p_w0"] = weight_as_taps(conv0.weight)
        launch(x, _quartered_stem, of_quarters, p_x=packed, **weights, t_out=out)
        return out
    out, planes = empty_image(x, b, n, height, width, dtype), _padded(x, mean, padding, dtype)
    key = tiling("stem", out), planes.shape, planes.stride(), channels, slope
    launch(x, _stem, key, p_x=planes, t_w0=_of_nine(conv0.weight), **weights, t_out=out)
    return out


@lru_cache(PLANS)
def _quartered_stem(
    size: Sequence[int], packed: Sequence[int], dtype: torch.dtype, channels: int, slope: float, programs: int
) -> Plan:
    """`quartered_stem_kernel` for a result of that size and dtype; `packed` is the size of the packed image, `channels`
    the number of f0's."""
    quarters = import_module("lmfn_kernels.mshf.gluon_kernels")  # only here, as not every Triton has Gluon
    (b, n, h, w), (height, width), ring = size, packed[2:], quarters.ring
    rows, columns = quarters.ROWS, ring.PITCH - 1
    return Plan(
        quarters.quartered_stem_kernel,
        (min(programs, b * cdiv(h, rows) * cdiv(w, columns)),),
        4,
        {
            "t_w": (1, ring.CHANNELS, ring.CHANNELS),
            "t_out": (1, 1, ring.BOX, ring.CHANNELS),
        },
        ring.descriptor,
        B=b,
        H=height - 2,
        W=width - 2,
        OUT_H=h,
        OUT_W=w,
        SIZE=height * width,
        ROW=width,
        C=channels,
        N=n,
        PITCH_C=pitch(channels, dtype),
        SLOPE=slope,
        BLOCK_H=rows,
        BLOCK_W=columns,
    )


PADDED = 1024
"""Elements of the padded image per program."""


def _padded(x: Tensor, mean: Tensor | None, padding: int, dtype: torch.dtype, packed: bool = False) -> Tensor:
    """`x` [B, K, H, W] minus the mean, in `dtype`, with `padding` zeros on each side: as planes, with rows a pitch
    apart, or as packed pixels of a power of two of values, zeros after the channels."""
    b, k, h, w = x.shape
    h, w = h + 2 * padding, w + 2 * padding
    if packed:
        k = 1 << (k - 1).bit_length()
        size, strides = (b, k, h, w), (k * h * w, 1, k * w, k)
    else:
        s = pitch(w, dtype)
        size, strides = (b, k, h, w), (k * h * s, h * s, s, 1)
    out = torch.empty_strided(size, strides, dtype=dtype, device=x.device)
    launch(x, _pad, (x.shape, x.stride(), x.dtype, size[1], strides, padding), p_x=x, p_mean=mean, p_out=out)
    return out


@lru_cache(PLANS)
def _pad(
    image: Sequence[int],
    of_image: Sequence[int],
    dtype: torch.dtype,
    channels: int,
    of_out: Sequence[int],
    padding: int,
) -> Plan:
    """`image`, `of_image` and `dtype` are size, strides and dtype of x, `channels` and `of_out` channels and strides of
    the result."""
    b, inputs, height, width = image
    from_b, from_c, from_row, from_pixel = of_out
    row = from_row // from_pixel
    size, block_c = (height + 2 * padding) * row, 1 << (channels - 1).bit_length()
    return Plan(
        kernels.pad_kernel,
        (b * cdiv(size, PADDED // block_c),),
        4,
        {},
        H=height,
        W=width,
        SIZE=size,
        ROW=row,
        C=inputs,
        C_OUT=channels,
        **{f"s_{dimension}": stride for dimension, stride in zip("bchw", of_image, strict=True)},
        s_ob=from_b,
        s_oc=from_c,
        s_op=from_pixel,
        PADDING=padding,
        ACC=accumulator(dtype),
        BLOCK=PADDED // block_c,
        BLOCK_C=block_c,
    )


def _of_nine(weight: Tensor) -> Tensor:
    """The first convolution's weight as one matrix [1, 9 inputs, outputs]."""
    return weight_as_taps(weight).flatten(0, 1)[None]


@lru_cache(PLANS)
def _stem(t: Tiling, image: Sequence[int], strides: Sequence[int], channels: int, slope: float) -> Plan:
    """`t` is the tiling of the result; `image` and `strides` are those of the padded planes, `channels` the number of
    f0's."""
    blocks, constants = _of_stem(t, image, strides, channels, slope)
    return Plan(kernels.stem_kernel, (t.tiles,), t.config.warps, blocks, **constants)


@lru_cache(PLANS)
def _stem_backward(t: Tiling, image: Sequence[int], strides: Sequence[int], channels: int, slope: float) -> Plan:
    """As `_stem`, with one program per row of taps, parity of columns and partial sum."""
    blocks, constants = _of_stem(t, image, strides, channels, slope)
    of_sums = {"B": t.size[0], "SPLITS": t.splits, "PITCH": pixel_pitch(t.size[1], t.dtype)}
    return Plan(kernels.stem_backward_kernel, (t.splits, 3, 2), t.config.warps, blocks, **of_sums, **constants)


def _of_stem(
    t: Tiling, image: Sequence[int], strides: Sequence[int], channels: int, slope: float
) -> tuple[dict[str, Block], dict[str, Any]]:
    """Blocks and constants that both kernels of the stem take."""
    _, inputs, height, width = image
    n = t.size[1]
    block_k, block_c, block_n = channel_block(9 * inputs), channel_block(channels), channel_block(n)
    blocks: dict[str, Block] = {
        "t_w0": (1, block_k, block_c),
        "t_w": (1, block_c, block_n),
        "t_out": t.pixels(block_n),
    }
    constants = {
        **t.constants(),
        "H": height - 2,
        "W": width - 2,
        "OUT_H": t.size[2],
        "OUT_W": t.size[3],
        "C": channels,
        "N": n,
        **{f"s_{dimension}": stride for dimension, stride in zip("bch", strides, strict=False)},
        "INPUTS": inputs,
        "SLOPE": slope,
        "BLOCK_K": block_k,
        "BLOCK_C": block_c,
        "BLOCK_N": block_n,
        "STAGES": t.config.stages,
    }
    return blocks, constants


def stem_backward(
    e: Tensor | PendingMask,
    x: Tensor,
    mean: Tensor | None,
    conv0: Conv,
    down: Conv,
    padding: int,
    slope: float,
    of_input: bool,
    of_weights: bool,
) -> tuple[Tensor | None, ConvGradient | None, ConvGradient | None]:
    dconv0 = ddown = None
    if of_weights:
        (g, act, _), (n, channels), values = as_pending(e), down.weight.shape[:2], 9 * conv0.weight.shape[1]
        t = tiling("stem_backward", g)
        dw0 = partial_sums(g, 6 * t.splits, (values + 1, channels))
        dw, dbias = partial_sums(g, t.splits, (9, channels, n)), partial_sums(g, t.splits, (n,))
        planes = _padded(x, mean, padding, g.dtype)
        launch(
            x,
            _stem_backward,
            (t, planes.shape, planes.stride(), channels, slope),
            p_x=planes,
            t_w0=_of_nine(conv0.weight),
            p_bias0=conv0.bias,
            t_w=weight_as_taps(down.weight),
            p_g=as_pitched_image(g),
            p_act=None if act is None else as_pitched_image(act),
            p_dw0=dw0,
            p_dw=dw,
            p_dbias=dbias,
        )
        dconv0 = _by_tap(dw0[:, :values], conv0.weight), PartialSums(dw0[:, values])
        ddown = _by_tap(dw, down.weight), PartialSums(dbias)
    if not of_input:
        return None, dconv0, ddown
    x = as_kernel_image(centred(x, mean).to(conv0.weight.dtype))
    f0 = conv(x, *conv0, padding=padding, slope=slope)
    e0 = mask_gradient(input_gradient(e, down.weight, f0, stride=2, padding=1), f0, slope)
    return input_gradient(e0, conv0.weight, x, padding=padding), dconv0, ddown


def _by_tap(partials: Tensor, weight: Tensor) -> PartialSums:
    """Partial sums, stored tap by tap, of the gradient of a 3x3 weight."""
    n, k = weight.shape[:2]
    return PartialSums(partials.view(-1, 9 * k, n).unflatten(1, (3, 3, k)).permute(0, 4, 3, 1, 2))


def skip_gradient(e: Tensor, weight: Tensor, x: Tensor, g: Tensor) -> Tensor:
    dx = padded_image(x, *x.shape)
    launch_conv(dx, [e], as_pending(e), weight_as_taps(weight), mode="back", padding=1, residual=as_pending(g))
    return dx
