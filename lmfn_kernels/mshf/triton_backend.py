"""MSHF by Triton kernels; the same functions as `torch_backend.py`, on images from `as_kernel_image`.

The stem's input is an exception: it may have any layout and dtype, and is copied to planes or packed pixels with zeros
around them, which its kernels read by pointers.
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
    convs,
    input_gradient,
    input_gradients,
    mask_gradient,
    materialize,
    of_taps,
    scaled_conv,
    weight_gradient,
    weight_gradients_of_convs,
)
from lmfn_kernels.mshf import kernels
from lmfn_kernels.mshf.reference import centred
from lmfn_kernels.runtime.gradients import ConvGradient, PartialSums, PendingMask
from lmfn_kernels.runtime.launch import (
    PLANS,
    Plan,
    Tiling,
    accumulator,
    as_pending,
    cdiv,
    channel_block,
    empty_image,
    hold_to_int32,
    index_type,
    launch,
    padded_image,
    partial_sums,
    tiling,
    weight_as_taps,
    with_pitch,
)
from lmfn_kernels.runtime.layout import pitch, pixel_pitch
from lmfn_kernels.runtime.trials import in_use
from lmfn_kernels.upsample.triton_backend import upsample_add, upsample_backward
from lmfn_kernels.weights import Conv

__all__ = [
    "as_kernel_image",
    "conv",
    "convs",
    "input_gradient",
    "input_gradients",
    "mask_gradient",
    "materialize",
    "scaled_conv",
    "stem",
    "stem_backward",
    "upsample_add",
    "upsample_backward",
    "weight_gradient",
    "weight_gradients_of_convs",
]


def stem(x: Tensor, mean: Tensor | None, conv0: Conv, down: Conv, padding: int, slope: float) -> Tensor:
    height, width = ((size + 2 * padding - 1) // 2 for size in x.shape[2:])
    b, (channels, inputs), n, dtype = x.shape[0], conv0.weight.shape[:2], down.weight.shape[0], down.weight.dtype
    weights = {"p_bias0": conv0.bias, "t_w": weight_as_taps(down.weight), "p_bias": down.bias}
    programs = convolution.ring_programs(x.device) if in_use("quartered_stem") else 0
    if programs and dtype.itemsize == 2 and (inputs, *map(channel_block, (channels, n))) == (3, 64, 64):
        out, packed = padded_image(x, b, n, height, width, dtype), _padded(x, mean, padding, dtype, packed=True)
        of_quarters = tuple(out.shape), packed.shape, packed.stride(), dtype, channels, slope, programs
        weights["p_w0"] = weight_as_taps(conv0.weight)
        launch(x, _quartered_stem, of_quarters, p_x=packed, **weights, t_out=out)
        return out
    out, planes = empty_image(x, b, n, height, width, dtype), _padded(x, mean, padding, dtype)
    key = tiling("stem", out), planes.shape, planes.stride(), channels, slope
    launch(x, _stem, key, p_x=planes, t_w0=_of_nine(conv0.weight), **weights, t_out=out)
    return out


@lru_cache(PLANS)
def _quartered_stem(
    size: Sequence[int],
    packed: Sequence[int],
    strides: Sequence[int],
    dtype: torch.dtype,
    channels: int,
    slope: float,
    programs: int,
) -> Plan:
    """`quartered_stem_kernel` for a result of that size and dtype; `packed` and `strides` are those of the packed
    image, `channels` the number of f0's."""
    quarters = import_module("lmfn_kernels.mshf.gluon_kernels")  # only here, as not every Triton has Gluon
    (b, n, h, w), (height, width), ring = size, packed[2:], quarters.ring
    from_image, _, from_row, from_pixel = strides
    hold_to_int32("quartered_stem", from_image)
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
        "t_w",
        B=b,
        H=height - 2,
        W=width - 2,
        OUT_H=h,
        OUT_W=w,
        SIZE=from_image // from_pixel,
        ROW=from_row // from_pixel,
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
    apart, or as packed pixels of four values, the last of which is 1, with an even number in a row, gaps included, and
    one row more in memory."""
    b, k, h, w = x.shape
    h, w = h + 2 * padding, w + 2 * padding
    if packed:
        k, rows, row = 4, h + 1, w + w % 2
        strides = k * rows * row, 1, k * row, k
    else:
        rows, row = h, pitch(w, dtype)
        strides = k * rows * row, rows * row, row, 1
    out = torch.empty_strided((b, k, rows, row), strides, dtype=dtype, device=x.device)[:, :, :h, :w]
    launch(x, _pad, (x.shape, x.stride(), x.dtype, k, strides, padding), p_x=x, p_mean=mean, p_out=out)
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
    size, block_c = from_b // channels, 1 << (channels - 1).bit_length()
    blocks = cdiv(size, PADDED // block_c)
    return Plan(
        kernels.pad_kernel,
        (b * blocks,),
        4,
        {},
        H=height,
        W=width,
        SIZE=size,
        ROW=row,
        C=inputs,
        C_OUT=channels,
        ONE=channels - 1 if from_c == 1 else -1,
        **{f"s_{dimension}": stride for dimension, stride in zip("bchw", of_image, strict=True)},
        s_ob=from_b,
        s_oc=from_c,
        s_op=from_pixel,
        BLOCKS=blocks,
        PADDING=padding,
        INDEX=index_type(from_b, block_c * from_c, block_c * of_image[1]),
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
    inputs = image[1]
    block_k, block_c, block_n = map(channel_block, (9 * inputs, channels, t.size[1]))
    return Plan(
        kernels.stem_kernel,
        (t.tiles,),
        t.config.warps,
        {"t_w0": (1, block_k, block_c), "t_w": (1, block_c, block_n), "t_out": t.pixels(block_n)},
        **{f"s_{dimension}": stride for dimension, stride in zip("bch", strides, strict=False)},
        **_of_both(t, image, channels, slope),
        INPUTS=inputs,
        INDEX=index_type(strides[0]),
        BLOCK_K=block_k,
    )


def _of_both(t: Tiling, image: Sequence[int], channels: int, slope: float) -> dict[str, Any]:
    """Constants that both kernels of the stem take."""
    return {
        **t.constants(),
        "H": image[2] - 2,
        "W": image[3] - 2,
        "OUT_H": t.size[2],
        "OUT_W": t.size[3],
        "C": channels,
        "N": t.size[1],
        "SLOPE": slope,
        "BLOCK_C": channel_block(channels),
        "BLOCK_N": channel_block(t.size[1]),
        "STAGES": t.config.stages,
    }


PARTS = 5
"""Of `stem_backward_kernel`, each with partial sums of its own for the first convolution."""
MASKED = 64
"""Pixels per turn of a program of `mask_gradient_kernel`."""


def _masked(e: Tensor | PendingMask) -> tuple[Tensor, PartialSums]:
    """`e` with its mask applied, in an image that has zeros as further channels up to the pitch of its pixels, and the
    gradient of the last bias."""
    g, act, slope = as_pending(e)
    g, of_g = with_pitch(g)
    act, of_act = (None, 0) if act is None else with_pitch(act)
    b, n, h, w = g.shape
    out = empty_image(g, b, pixel_pitch(n, g.dtype), h, w)
    splits = min(1024, cdiv(b * h * w, MASKED))
    dbias = partial_sums(g, splits, (n,))
    key = tuple(g.shape), g.dtype, of_g, of_act, splits, slope
    launch(g, _mask, key, p_g=g, p_act=act, p_e=out, p_dbias=dbias)
    return out, PartialSums(dbias)


@lru_cache(PLANS)
def _mask(size: Sequence[int], dtype: torch.dtype, of_g: int, of_act: int, splits: int, slope: float) -> Plan:
    """`of_g` and `of_act` are the elements from one pixel to the next."""
    b, n, h, w = size
    return Plan(
        kernels.mask_gradient_kernel,
        (splits,),
        4,
        {},
        SIZE=b * h * w,
        N=n,
        SPLITS=splits,
        INDEX=index_type(b * h * w),
        SLOPE=slope,
        ACC=accumulator(dtype),
        G_PITCH=of_g,
        ACT_PITCH=of_act,
        PITCH=pixel_pitch(n, dtype),
        BLOCK=MASKED,
        BLOCK_N=channel_block(n),
    )


@lru_cache(PLANS)
def _stem_backward(
    t: Tiling,
    image: Sequence[int],
    strides: Sequence[int],
    of_first: Sequence[int],
    of_second: Sequence[int],
    channels: int,
    inputs: int,
    slope: float,
) -> Plan:
    """`image` and `strides` are those of the packed image, `of_first` and `of_second` strides of the weights, which are
    stored tap by tap, `channels` the number of f0's."""
    from_image, _, from_row, from_pixel = strides
    return Plan(
        kernels.stem_backward_kernel,
        (t.splits, PARTS),
        t.config.warps,
        {},
        **_of_both(t, image, channels, slope),
        B=t.size[0],
        s_b=from_image // from_pixel // 2,
        s_h=from_row // from_pixel // 2,
        s_w0=of_first[0],
        s_tap=of_second[0],
        s_w=of_second[1],
        SPLITS=t.splits,
        INPUTS=inputs,
        PITCH=pixel_pitch(t.size[1], t.dtype),
    )


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
        (n, channels), inputs = down.weight.shape[:2], conv0.weight.shape[1]
        g, dbias = _masked(e)
        t = tiling("stem_backward", as_pending(e).gradient)
        dw0 = partial_sums(g, PARTS * t.splits, (9 * inputs + 1, channels))
        dw = partial_sums(g, t.splits, (9, channels, n))
        packed = _padded(x, mean, padding, g.dtype, packed=True)
        w0, w = weight_as_taps(conv0.weight).flatten(0, 1), weight_as_taps(down.weight)
        launch(
            x,
            _stem_backward,
            (t, packed.shape, packed.stride(), w0.stride(), w.stride(), channels, inputs, slope),
            p_x=packed,
            p_w0=w0,
            p_bias0=conv0.bias,
            p_w=w,
            p_e=g,
            p_dw0=dw0,
            p_dw=dw,
        )
        dconv0 = of_taps(dw0[:, :-1].unflatten(1, (9, inputs))), PartialSums(dw0[:, -1])
        ddown = of_taps(dw), dbias
    if not of_input:
        return None, dconv0, ddown
    x = as_kernel_image(centred(x, mean).to(conv0.weight.dtype))
    f0 = conv(x, *conv0, padding=padding, slope=slope)
    e0 = mask_gradient(input_gradient(e, down.weight, f0, stride=2, padding=1), f0, slope)
    return input_gradient(e0, conv0.weight, x, padding=padding), dconv0, ddown
