"""RFDB by Triton kernels; the same functions as `torch_backend.py`, on images from `as_kernel_image`."""

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
import triton
from torch import Tensor

from lmfn_kernels.conv import triton_backend as convolution
from lmfn_kernels.conv.triton_backend import (
    as_kernel_image,
    conv,
    input_gradient,
    launch_conv,
    launch_scaled,
    mask_gradient,
    materialize,
    of_taps,
    scaled_conv,
    weight_gradient,
    weight_gradients,
)
from lmfn_kernels.rfdb import kernels
from lmfn_kernels.runtime.gradients import ConvGradient, PartialSums
from lmfn_kernels.runtime.launch import (
    PLANS,
    Plan,
    Tiling,
    accumulator,
    as_pitched_image,
    cdiv,
    channel_block,
    empty_image,
    index_type,
    launch,
    padded_image,
    partial_sums,
    tiling,
    weight_as_taps,
)
from lmfn_kernels.runtime.layout import pitch, pixel_pitch
from lmfn_kernels.runtime.trials import in_use
from lmfn_kernels.upsample.triton_backend import (
    largest_fraction,
    named_strides,
    ratios,
    strides,
    upsample_add,
    upsample_backward,
)
from lmfn_kernels.weights import Conv, ScaledConv

__all__ = [
    "as_kernel_image",
    "conv",
    "conv_pool",
    "fuse",
    "fuse_backward",
    "gate",
    "gate_backward",
    "input_gradient",
    "low_convs",
    "low_convs_backward",
    "mask_gradient",
    "materialize",
    "pool_backward",
    "recomputed",
    "scaled_conv",
    "scaled_stage",
    "stage",
    "upsample_add",
    "upsample_backward",
    "weight_gradient",
    "weight_gradients",
]


def stage(x: Tensor, distil: Conv, refine: Conv, slope: float) -> tuple[Tensor, Tensor]:
    out, d = padded_image(x, *x.shape), padded_image(x, x.shape[0], distil.weight.shape[0], *x.shape[2:])
    launch_conv(
        out,
        x,
        weight_as_taps(refine.weight),
        mode="same",
        padding=1,
        bias=refine.bias,
        residual=x,
        slope=slope,
        distil=(weight_as_taps(distil.weight), distil.bias, d),
    )
    return out, d


def scaled_stage(
    x: Tensor, distil: ScaledConv, refine: ScaledConv, slope: float, dtype: torch.dtype, distilled: torch.dtype
) -> tuple[Tensor, Tensor]:
    (b, c, h, w), n = x.shape, len(distil.bias)
    out, d = padded_image(x, b, c, h, w, dtype=dtype), empty_image(x, b, n, h, w, dtype=distilled)
    first = {"t_w": refine.weight, "p_factor": refine.factor, "p_bias": refine.bias}
    second = {"t_dw": distil.weight, "p_dfactor": distil.factor, "p_dbias": distil.bias, "t_d": d}
    launch_scaled(out, n, slope, t_x=x, **first, **second)
    return out, d


def fuse(
    x: Tensor, d: Sequence[Tensor], last: Conv, fuse: Conv, squeeze: Conv, slope: float, save: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    b, _, h, w = x.shape
    a = empty_image(x, b, squeeze.weight.shape[0], h, w)
    d4 = empty_image(x, b, last.weight.shape[0], h, w) if save else None
    programs = convolution.ring_programs(x.device) if in_use("ring_fuse") else 0
    widths = x.shape[1], fuse.weight.shape[0], d[0].shape[1], a.shape[1]
    y = padded_image(x, b, fuse.weight.shape[0], h, w)
    of_fuse, of_squeeze = weight_as_taps(fuse.weight), weight_as_taps(squeeze.weight)
    both = {
        "t_x": x,
        "t_last": weight_as_taps(last.weight),
        "p_last_bias": last.bias,
        "p_fuse_bias": fuse.bias,
        "p_squeeze_bias": squeeze.bias,
        "t_d4": d4,
        "t_y": y,
    }
    if programs and x.dtype.itemsize == 2 and tuple(map(channel_block, widths)) == (64, 64, 32, 16):
        maps = {f"t_d{j}": d_j for j, d_j in enumerate(d, 1)}
        key: tuple[Any, ...] = tuple(x.shape), x.dtype, widths[1:], slope, programs
        launch(x, _ring_fuse, key, **both, **maps, t_fuse=of_fuse, t_squeeze=of_squeeze, p_a=a)
    else:
        maps = {f"p_d{j}": as_pitched_image(d_j) for j, d_j in enumerate(d, 1)}
        d1 = maps["p_d1"]
        key = tiling("fuse", d1), d1.stride(3), x.shape[1], y.shape[1], a.shape[1], slope
        launch(x, _fuse_plan, key, **both, **maps, p_fuse=of_fuse, p_squeeze=of_squeeze, t_a=a)
    return y, a, d4


@lru_cache(PLANS)
def _ring_fuse(size: Sequence[int], dtype: torch.dtype, widths: Sequence[int], slope: float, programs: int) -> Plan:
    """`ring_fuse_kernel` for x of that size; `widths` are the channels of y, of a distilled map, and of a."""
    ring = import_module("lmfn_kernels.rfdb.gluon_kernels")  # only here, as not every Triton has Gluon
    (b, _, h, w), (c, d, f), tiles = size, widths, ring.ring
    rows, columns = tiles.ROWS, tiles.PITCH - 2
    return Plan(
        ring.ring_fuse_kernel,
        (min(programs, b * cdiv(h, rows) * cdiv(w, columns)),),
        4,
        {
            "t_x": (1, 2, tiles.PITCH, tiles.CHANNELS),
            **dict.fromkeys(("t_d1", "t_d2", "t_d3"), (1, rows, tiles.PITCH, ring.DISTILLED)),
            "t_last": (1, tiles.CHANNELS, ring.DISTILLED),
            "t_fuse": (1, ring.DISTILLED, tiles.CHANNELS),
            "t_squeeze": (1, tiles.CHANNELS, ring.SQUEEZED),
            "t_y": (1, 1, tiles.BOX, tiles.CHANNELS),
            "t_d4": (1, 1, tiles.BOX, ring.DISTILLED),
        },
        tiles.descriptor,
        *("t_last", "t_fuse", "t_squeeze"),
        B=b,
        H=h,
        W=w,
        C=c,
        D=d,
        F=f,
        PITCH_F=pitch(f, dtype),
        SLOPE=slope,
        BLOCK_H=rows,
        BLOCK_W=columns,
    )


def recomputed(
    x: Sequence[Tensor], distil: Sequence[Conv], d4: Tensor, fuse: Conv, slope: float
) -> tuple[Sequence[Tensor], Tensor]:
    (b, c, h, w), n, d4 = x[0].shape, d4.shape[1], as_pitched_image(d4)
    d, y = [padded_image(d4, b, n, h, w) for _ in x], padded_image(d4, b, fuse.weight.shape[0], h, w)
    launch(
        d4,
        _recompute,
        (tiling("recompute", d4), d4.stride(3), c, y.shape[1], slope),
        **{f"t_x{j}": x_j for j, x_j in enumerate(x, 1)},
        p_d4=d4,
        **{f"t_w{j}": weight_as_taps(conv.weight) for j, conv in enumerate(distil, 1)},
        **{f"p_bias{j}": conv.bias for j, conv in enumerate(distil, 1)},
        p_fuse=weight_as_taps(fuse.weight),
        p_fuse_bias=fuse.bias,
        **{f"t_d{j}": d_j for j, d_j in enumerate(d, 1)},
        t_y=y,
    )
    return d, y


@lru_cache(PLANS)
def _recompute(t: Tiling, pitch_d: int, k: int, c: int, slope: float) -> Plan:
    """`t` is the tiling of d4, whose pixels are `pitch_d` elements apart; `k` and `c` are the channels of x and y."""
    d = t.size[1]
    block_k, block_c, block_d = channel_block(k), channel_block(c), channel_block(d)
    return Plan(
        kernels.recompute_kernel,
        (t.tiles,),
        t.config.warps,
        {
            **{f"t_x{j}": t.pixels(block_k) for j in (1, 2, 3)},
            **{f"t_w{j}": (1, block_k, block_d) for j in (1, 2, 3)},
            **{f"t_d{j}": t.pixels(block_d) for j in (1, 2, 3)},
            "t_y": t.pixels(block_c),
        },
        C=c,
        D=d,
        PITCH_C=pitch(c, t.dtype),
        PITCH_D=pitch_d,
        SLOPE=slope,
        BLOCK_C=block_c,
        BLOCK_D=block_d,
        **t.constants(),
    )


@lru_cache(PLANS)
def _fuse_plan(t: Tiling, pitch_d: int, k: int, c: int, f: int, slope: float) -> Plan:
    """`t` is the tiling of the distilled maps, whose pixels are `pitch_d` elements apart; `k`, `c` and `f` are the
    channels of x, y and a."""
    d = t.size[1]
    block_k, block_c, block_d, block_f = channel_block(k), channel_block(c), channel_block(d), channel_block(f)
    return Plan(
        kernels.fuse_kernel,
        (t.tiles,),
        t.config.warps,
        {
            "t_x": t.pixels(block_k),
            "t_last": (1, block_k, block_d),
            "t_d4": t.pixels(block_d),
            "t_y": t.pixels(block_c),
            "t_a": t.pixels(block_f),
        },
        C=c,
        D=d,
        F=f,
        PITCH_C=pitch(c, t.dtype),
        PITCH_D=pitch_d,
        PITCH_F=pitch(f, t.dtype),
        SLOPE=slope,
        BLOCK_C=block_c,
        BLOCK_D=block_d,
        BLOCK_F=block_f,
        STAGES=t.config.stages,
        **t.constants(),
    )


def fuse_backward(
    gy: Tensor,
    ga: Tensor,
    y: Tensor,
    d: Sequence[Tensor],
    weight: Tensor,
    squeeze: Tensor,
    transposed: Sequence[Tensor],
    slope: float,
    d_slope: float,
) -> tuple[list[Tensor], ConvGradient, ConvGradient]:
    ch, n, f, t = len(weight), d[0].shape[1], len(squeeze), tiling("fuse_backward", y)
    gy, ga, y, *d = map(as_pitched_image, (gy, ga, y, *d))
    z = [padded_image(d_j, *d_j.shape) for d_j in d]
    dfuse, dfuse_bias = partial_sums(y, t.splits, (4 * n, ch)), partial_sums(y, t.splits, (ch,))
    dsqueeze, dsqueeze_bias = partial_sums(y, t.splits, (ch, f)), partial_sums(y, t.splits, (f,))
    # Transposed beforehand, since ptxas 12.8 miscompiles this kernel on sm_90 if it uses `tl.trans` on its weights.
    squeeze_taps, *parts = map(weight_as_taps, transposed)
    launch(
        y,
        _fuse_backward,
        (t, n, f, d_slope, slope, z[0].stride(0)),
        p_gy=gy,
        p_ga=ga,
        p_y=y,
        **{f"p_d{j}": d_j for j, d_j in enumerate(d, 1)},
        p_squeeze=squeeze_taps,
        **{f"p_fuse{j}": part for j, part in enumerate(parts, 1)},
        **{f"p_z{j}": z_j for j, z_j in enumerate(z, 1)},
        p_dfuse=dfuse,
        p_dfuse_bias=dfuse_bias,
        p_dsqueeze=dsqueeze,
        p_dsqueeze_bias=dsqueeze_bias,
    )
    return z, (_of_1x1(dfuse.mT), PartialSums(dfuse_bias)), (_of_1x1(dsqueeze.mT), PartialSums(dsqueeze_bias))


@lru_cache(PLANS)
def _fuse_backward(t: Tiling, d: int, f: int, d_slope: float, slope: float, s_z: int) -> Plan:
    """`t` is the tiling of y; `d` and `f` are the channels of a distilled map and of a, `s_z` the elements from one
    image of z to the next."""
    b, c = t.size[:2]
    pitch_d = pixel_pitch(d, t.dtype)
    maps = 4 if t.config.height > 2 else 2  # four spill where there is so little memory that tiles have two rows
    return Plan(
        kernels.fuse_backward_kernel,
        (t.splits, 4 // maps),
        t.config.warps,
        {},
        B=b,
        C=c,
        D=d,
        F=f,
        SPLITS=t.splits,
        s_z=s_z,
        PITCH_C=pixel_pitch(c, t.dtype),
        PITCH_D=pitch_d,
        PITCH_F=pixel_pitch(f, t.dtype),
        WRITTEN=d if pitch_d % 32 else pitch_d,
        PITCH_SQUEEZE=pitch(c, t.dtype),
        PITCH_FUSE=pitch(d, t.dtype),
        SLOPE=slope,
        D_SLOPE=d_slope,
        MAPS=maps,
        BLOCK_C=channel_block(c),
        BLOCK_D=channel_block(d),
        BLOCK_F=channel_block(f),
        STAGES=t.config.stages,
        **t.constants(),
    )


def _of_1x1(partials: Tensor) -> PartialSums:
    """Partial sums [splits, N, K] of the gradient of a weight [N, K, 1, 1]."""
    return PartialSums(partials[..., None, None])


def gate(y: Tensor, a: Tensor, v: Tensor, skip: Conv, expand: Conv, fixed_grid: bool) -> Tensor:
    out = padded_image(y, *y.shape)
    key = tiling("gate", y), a.shape[1], v.shape[2:], fixed_grid, strides(v)
    launch(
        y,
        _gate,
        key,
        t_y=y,
        t_a=a,
        p_v=v,
        t_skip=weight_as_taps(skip.weight),
        p_skip_bias=skip.bias,
        t_expand=weight_as_taps(expand.weight),
        p_expand_bias=expand.bias,
        t_out=out,
    )
    return out


def gate_backward(
    g: Sequence[Tensor], y: Tensor, a: Tensor, v: Tensor, skip: Conv, expand: Conv, fixed_grid: bool
) -> tuple[Tensor, Tensor, Tensor, ConvGradient, ConvGradient]:
    ch, f, t = y.shape[1], a.shape[1], tiling("gate_backward", y)
    y, a, *g = map(as_pitched_image, (y, a, *g))
    dy, da, dt = padded_image(y, *y.shape), empty_image(a, *a.shape), empty_image(a, *a.shape)
    dskip, dskip_bias = partial_sums(y, t.splits, (f, f)), partial_sums(y, t.splits, (f,))
    dexpand, dexpand_bias = partial_sums(y, t.splits, (ch, f)), partial_sums(y, t.splits, (ch,))
    launch(
        y,
        _gate_backward,
        (t, f, v.shape[2:], fixed_grid, strides(v), dy.stride(0), da.stride(0)),
        **dict(zip(("p_g", "p_more_g"), g, strict=False)),
        p_y=y,
        p_a=a,
        p_v=v,
        p_skip=weight_as_taps(skip.weight),
        p_skip_bias=skip.bias,
        p_expand=weight_as_taps(expand.weight),
        p_expand_bias=expand.bias,
        p_dy=dy,
        p_da=da,
        p_dt=dt,
        p_dskip=dskip,
        p_dskip_bias=dskip_bias,
        p_dexpand=dexpand,
        p_dexpand_bias=dexpand_bias,
    )
    of_skip, of_expand = (_of_1x1(dskip), PartialSums(dskip_bias)), (_of_1x1(dexpand), PartialSums(dexpand_bias))
    return dy, da, dt, of_skip, of_expand


@lru_cache(PLANS)
def _gate(t: Tiling, f: int, low: Sequence[int], fixed_grid: bool, strides: Sequence[int]) -> Plan:
    """`t` is the tiling of y; `f` is the channels of a and v, `low` and `strides` are v's size and strides."""
    c = t.size[1]
    block_c, block_f = channel_block(c), channel_block(f)
    return Plan(
        kernels.gate_kernel,
        (t.tiles,),
        t.config.warps,
        {
            **dict.fromkeys(("t_y", "t_out"), t.pixels(block_c)),
            "t_a": t.pixels(block_f),
            "t_skip": (1, block_f, block_f),
            "t_expand": (1, block_f, block_c),
        },
        **_of_gate(t, f, low, fixed_grid, strides),
    )


@lru_cache(PLANS)
def _gate_backward(
    t: Tiling, f: int, low: Sequence[int], fixed_grid: bool, strides: Sequence[int], s_dy: int, s_da: int
) -> Plan:
    """As `_gate`; `s_dy` and `s_da` are the elements from one image of dy, of da and dt, to the next."""
    b, c = t.size[:2]
    pitch_c = pixel_pitch(c, t.dtype)
    return Plan(
        kernels.gate_backward_kernel,
        (t.splits,),
        t.config.warps,
        {},
        B=b,
        s_dy=s_dy,
        s_da=s_da,
        SPLITS=t.splits,
        PITCH_C=pitch_c,
        PITCH_F=pixel_pitch(f, t.dtype),
        WRITTEN=c if pitch_c % 32 else pitch_c,
        PITCH_SKIP=pitch(f, t.dtype),
        PITCH_EXPAND=pitch(c, t.dtype),
        STAGES=t.config.stages,
        **_of_gate(t, f, low, fixed_grid, strides) | {"BLOCK_F": channel_block(f + 1)},
    )


def _of_gate(t: Tiling, f: int, low: Sequence[int], fixed_grid: bool, strides: Sequence[int]) -> dict[str, Any]:
    """Constants that both kernels of the gate take."""
    c = t.size[1]
    constants = {"C": c, "F": f, "LOW_H": low[0], "LOW_W": low[1]}
    constants |= {"BLOCK_C": channel_block(c), "BLOCK_F": channel_block(f)}
    constants["INDEX"] = index_type(largest_fraction(t.size[2:], low, fixed_grid))
    return constants | ratios(t.size[2:], low, fixed_grid) | named_strides("", strides) | t.constants()


def conv_pool(x: Tensor, of_conv: Conv, save: bool) -> tuple[Tensor, Tensor | None]:
    b, f, h, w = x.shape
    height, width = ((size - 3) // 2 + 1 for size in (h, w))
    low = (height - 7) // 3 + 1, (width - 7) // 3 + 1
    out, weight = empty_image(x, b, f, *low), weight_as_taps(of_conv.weight)
    index = empty_image(x, b, f, *low, dtype=torch.int8) if save else None
    of_index = (0, 0, 0) if index is None else strides(index)
    key = tiling("conv_pool", x), low, width, weight.stride(), strides(x), strides(out), of_index
    launch(x, _conv_pool, key, p_x=x, p_w=weight, p_bias=of_conv.bias, p_out=out, p_index=index)
    return out, index


@lru_cache(PLANS)
def _conv_pool(
    t: Tiling,
    low: Sequence[int],
    width: int,
    weight: Sequence[int],
    of_x: Sequence[int],
    of_out: Sequence[int],
    of_index: Sequence[int],
) -> Plan:
    """`t` is the tiling of the input, whose tiles are rows of maxima; `low` is the height and width of the result,
    `width` the convolution's number of columns; then the strides of the weight and of the three images."""
    b, f = t.size[:2]
    block_w = triton.next_power_of_2(3 * t.config.width + 4)
    columns = (block_w - 4) // 3
    return Plan(
        kernels.conv_pool_kernel,
        (b * low[0] * cdiv(low[1], columns),),
        t.config.warps,
        {},
        WIDTH=width,
        LOW_H=low[0],
        LOW_W=low[1],
        s_xb=of_x[0],
        s_xh=of_x[1],
        **named_strides("", of_out),
        **named_strides("i", of_index),
        s_tap=weight[0],
        F=f,
        PITCH=of_x[2],
        PITCH_W=weight[1],
        ACC=accumulator(t.dtype),
        PRECISION=t.precision,
        BLOCK_W=block_w,
        BLOCK_P=channel_block(columns),
        BLOCK_F=channel_block(f),
        STAGES=t.config.stages,
    )


def pool_backward(g: Tensor, index: Tensor, size: Sequence[int]) -> Tensor:
    dx = empty_image(g, g.shape[0], g.shape[1], size[0], size[1])
    key = tiling("pool_backward", dx), g.shape[2:], strides(g), strides(index), strides(dx)
    launch(g, _pool_backward, key, p_g=g, p_index=index, p_dx=dx)
    return dx


@lru_cache(PLANS)
def _pool_backward(
    t: Tiling, low: Sequence[int], of_g: Sequence[int], of_index: Sequence[int], of_dx: Sequence[int]
) -> Plan:
    """`t` is the tiling of the pooled map, `low` the result's height and width; then the strides of all three."""
    b, f, h, w = t.size
    return Plan(
        kernels.pool_backward_kernel,
        (b * h * cdiv(w, t.config.width),),
        t.config.warps,
        {},
        H=h,
        W=w,
        LOW_H=low[0],
        LOW_W=low[1],
        F=f,
        **named_strides("g", of_g),
        **named_strides("i", of_index),
        **named_strides("", of_dx),
        ACC=accumulator(t.dtype),
        BLOCK_W=t.config.width,
        BLOCK_F=channel_block(f),
    )


def low_convs(x: Tensor, conv1: Conv, conv2: Conv, conv3: Conv, save: bool) -> tuple[Tensor, Sequence[Tensor]]:
    out, *low = (empty_image(x, *x.shape) for _ in range(3 if save else 1))
    weights = [weight_as_taps(conv.weight) for conv in (conv1, conv2, conv3)]
    key = tiling("low_convs", x), tuple(weight.stride() for weight in weights), strides(x), strides(out)
    launch(
        x,
        _low_convs,
        key,
        p_x=x,
        **{f"p_w{i}": weight for i, weight in enumerate(weights, 1)},
        **{f"p_bias{i}": conv.bias for i, conv in enumerate((conv1, conv2, conv3), 1)},
        **{f"p_low{i}": image for i, image in enumerate(low, 1)},
        p_out=out,
    )
    return out, low


@lru_cache(PLANS)
def _low_convs(t: Tiling, weights: Sequence[Sequence[int]], of_x: Sequence[int], of_out: Sequence[int]) -> Plan:
    """`t` is the tiling of the input; then the strides of the three weights, of the input and of the results."""
    f = t.size[1]
    programs, blocks = _low_tiles(t)
    return Plan(
        kernels.low_convs_kernel,
        (programs,),
        t.config.warps,
        {},
        s_xb=of_x[0],
        s_xh=of_x[1],
        **named_strides("", of_out),
        **{f"s_tap{i}": weight[0] for i, weight in enumerate(weights, 1)},
        F=f,
        PITCH=of_x[2],
        PITCH_W=weights[0][1],
        BLOCK_F=channel_block(f),
        STAGES=t.config.stages,
        **t.constants() | blocks,
    )


def low_convs_backward(
    g: Tensor, x: Tensor, low: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, list[ConvGradient]]:
    t, f, dx = tiling("low_convs_backward", x), x.shape[1], empty_image(x, *x.shape)
    g, x, low1, low2 = map(as_pitched_image, (g, x, *low))
    taps = [weight_as_taps(weight) for weight in weights]
    dw, db = ([partial_sums(x, _low_tiles(t)[0], size) for _ in taps] for size in ((9 * f, f), (f,)))
    launch(
        x,
        _low_convs_backward,
        (t, tuple(tap.stride() for tap in taps), dx.stride(0)),
        p_g=g,
        p_x=x,
        p_low1=low1,
        p_low2=low2,
        **{f"p_w{i}": tap for i, tap in enumerate(taps, 1)},
        p_dx=dx,
        **{f"p_dw{i}": partials for i, partials in enumerate(dw, 1)},
        **{f"p_db{i}": partials for i, partials in enumerate(db, 1)},
    )
    return dx, [(of_taps(dw_i.unflatten(1, (9, f))), PartialSums(db_i)) for dw_i, db_i in zip(dw, db, strict=True)]


@lru_cache(PLANS)
def _low_convs_backward(t: Tiling, weights: Sequence[Sequence[int]], s_b: int) -> Plan:
    """`t` is the tiling of the input; then the strides of the three weights, and from one image of dx to the next."""
    f = t.size[1]
    programs, blocks = _low_tiles(t)
    return Plan(
        kernels.low_convs_backward_kernel,
        (programs,),
        t.config.warps,
        {},
        s_b=s_b,
        **{f"s_tap{i}": weight[0] for i, weight in enumerate(weights, 1)},
        F=f,
        PITCH=pixel_pitch(f, t.dtype),
        PITCH_W=weights[0][1],
        BLOCK_F=channel_block(f),
        STAGES=t.config.stages,
        **t.constants() | blocks,
    )


def _low_tiles(t: Tiling) -> tuple[int, dict[str, int]]:
    """Programs, and rows and columns of their tiles, which reach two pixels beyond their results on each side."""
    (b, _, h, w), c = t.size, t.config
    rows, columns = triton.next_power_of_2(c.height + 4), triton.next_power_of_2(c.width + 4)
    return b * cdiv(h, rows - 4) * cdiv(w, columns - 4), {"BLOCK_H": rows, "BLOCK_W": columns}
