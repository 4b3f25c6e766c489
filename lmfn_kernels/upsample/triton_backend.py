"""Upsampling by Triton kernels; the same functions as `torch_backend.py`, on images from `as_kernel_image`."""

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module

import torch
from torch import Tensor

from lmfn_kernels.conv import triton_backend as convolution
from lmfn_kernels.conv.triton_backend import as_kernel_image, weight_gradient
from lmfn_kernels.runtime.launch import (
    PLANS,
    ROWS,
    Plan,
    Tiling,
    accumulator,
    accumulator_dtype,
    as_pitched_image,
    cdiv,
    channel_block,
    empty_image,
    hold_to_int32,
    index_type,
    launch,
    padded_channels,
    padded_image,
    partial_sums,
    tiling,
    with_pitch,
)
from lmfn_kernels.runtime.layout import constant, pitch, pixel_pitch
from lmfn_kernels.runtime.torch_private import FakeTensor
from lmfn_kernels.runtime.trials import in_use
from lmfn_kernels.upsample import kernels
from lmfn_kernels.upsample.grid import ratio
from lmfn_kernels.upsample.polyphase import BY_PAIRS, BY_TAPS, OF_TAPS

__all__ = [
    "as_kernel_image",
    "fold_upsampling",
    "largest_fraction",
    "named_strides",
    "ratios",
    "strides",
    "upsample_add",
    "upsample_backward",
    "upsampled_conv",
    "upsampled_conv_backward",
]


TILE = 64
"""A position beyond a map, in a tile that ends there, is less than this far beyond."""


def strides(x: Tensor) -> tuple[int, int, int]:
    """Strides of images, rows and pixels, in elements."""
    b, _, h, w = x.stride()
    return b, h, w


def named_strides(name: str, found: Sequence[int]) -> dict[str, int]:
    """`strides` of an image by the names of the kernels' arguments: s_b, s_h, s_w, with `name` before the dimension."""
    return {f"s_{name}{dimension}": stride for dimension, stride in zip("bhw", found, strict=True)}


def ratios(size: Sequence[int], low: Sequence[int], fixed_grid: bool) -> dict[str, int]:
    """`ratio` along both axes by the names of the kernels' arguments."""
    (to_h, from_h), (to_w, from_w) = (ratio(*sizes, fixed_grid) for sizes in zip(size, low, strict=True))
    return {"TO_H": to_h, "FROM_H": from_h, "TO_W": to_w, "FROM_W": from_w}


def largest_fraction(size: Sequence[int], low: Sequence[int], fixed_grid: bool) -> int:
    """The largest integer by which kernels compute the position of a pixel in the other map: `bilinear_axis`,
    `readers`."""
    found = 0
    for n, m in zip(size, low, strict=True):
        to, source = ratio(n, m, fixed_grid)
        found = max(found, 2 * (n + TILE) * source, 2 * (m + TILE) * to)
    return found


def upsample_add(low: Tensor, size: Sequence[int], added: Tensor | None = None) -> Tensor:
    out = padded_image(low, low.shape[0], low.shape[1], size[0], size[1])
    key = tiling("upsample_add", out), low.shape[2:], strides(low)
    launch(out, _upsample_add, key, p_v=low, t_added=added, t_out=out)
    return out


@lru_cache(PLANS)
def _upsample_add(t: Tiling, low: Sequence[int], of_low: Sequence[int]) -> Plan:
    """`t` is the tiling of the result; `low` and `of_low` are height and width, and strides of the smaller map."""
    channels, size = t.size[1], t.size[2:]
    width, unit = min(64, channel_block(channels)), 16 // t.dtype.itemsize
    doubles = size == (2 * low[0], 2 * low[1])
    return Plan(
        kernels.upsample_add_kernel,
        (t.tiles, cdiv(channels, width)),
        t.config.warps,
        {"t_added": t.pixels(width), "t_out": t.pixels(width)},
        H=size[0],
        W=size[1],
        LOW_H=low[0],
        LOW_W=low[1],
        F=channels,
        **named_strides("", [stride // unit for stride in of_low]),
        DOUBLES=doubles,
        PITCH=pitch(channels, t.dtype),
        UNIT=unit,
        INDEX=index_type(0 if doubles else largest_fraction(size, low, fixed_grid=False)),
        ACC=accumulator(t.dtype),
        BLOCK_H=t.config.height,
        BLOCK_W=t.config.width,
        BLOCK_F=width,
    )


def upsample_backward(g: Tensor, v: Tensor, fixed_grid: bool = False) -> Tensor:
    dv = empty_image(v, *v.shape)
    key = tiling("upsample_backward", g), v.shape[2:], fixed_grid, strides(g), strides(dv)
    launch(g, _upsample_backward, key, p_g=g, p_dv=dv)
    return dv


@lru_cache(PLANS)
def _upsample_backward(
    t: Tiling, low: Sequence[int], fixed_grid: bool, of_g: Sequence[int], of_dv: Sequence[int]
) -> Plan:
    """`t` is the tiling of the larger map, `low` the height and width of the smaller; then the strides of both."""
    b, channels, h, w = t.size
    scale = ratios((h, w), low, fixed_grid)
    # As many of a row as read one pixel of the smaller map, at most 16 at once.
    columns = min(16, 1 << (cdiv(2 * scale["TO_W"], scale["FROM_W"]) - 1).bit_length())
    pixels = max(1, t.config.height * t.config.width // columns)
    return Plan(
        kernels.upsample_backward_kernel,
        (cdiv(b * low[0] * low[1], pixels),),
        t.config.warps,
        {},
        B=b,
        H=h,
        W=w,
        F=channels,
        LOW_H=low[0],
        LOW_W=low[1],
        **scale,
        **named_strides("g", of_g),
        **named_strides("", of_dv),
        PITCH=pitch(channels, t.dtype),
        INDEX=index_type(b * low[0] * low[1], low[0] * of_dv[1], largest_fraction((h, w), low, fixed_grid)),
        ACC=accumulator(t.dtype),
        BLOCK_P=pixels,
        BLOCK_W=columns,
        BLOCK_F=channel_block(channels),
    )


def with_near_columns(x: Tensor) -> Tensor:
    """`x` itself, of any strides, or a copy if a row, such as that of a transposed large image, is longer than kernels
    count in 32 bits."""
    near = isinstance(x, FakeTensor) or x.shape[3] * x.stride(3) <= ROWS
    return x if near else x.contiguous()


def fold_upsampling(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Folded by taps for `ring_upsampled_conv_kernel`, if that takes these channels, otherwise by pairs of rows and of
    columns for `upsampled_conv_kernel`."""
    n, k = weight.shape[:2]
    wanted = in_use("ring_upsampled_conv") and dtype.itemsize == 2 and channel_block(k) == 64 and n <= 4
    return _folded(weight, dtype, BY_TAPS if wanted and convolution.ring_programs(weight.device) else BY_PAIRS)


def upsampled_conv(x: Tensor, folded: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    b, _, h, w = x.shape
    residual = None if residual is None else with_near_columns(residual)
    n, dtype = len(bias), x.dtype if residual is None else residual.dtype
    out = torch.empty((b, n, 2 * h, 2 * w), dtype=dtype, device=x.device)
    of_residual = (0,) * 4 if residual is None else residual.stride()
    if len(folded) == len(BY_TAPS) ** 2:
        of_ring = tuple(x.shape), n, of_residual, convolution.ring_programs(x.device)
        launch(x, _ring_upsampled_conv, of_ring, t_x=x, t_w=folded, p_bias=bias, p_residual=residual, p_out=out)
        return out
    readable = padded_channels(x, x.shape, x.stride())
    key = tiling("upsampled_conv", x), n, readable, strides(x), of_residual, out.stride()
    launch(x, _upsampled_conv, key, p_x=x, t_w=folded, p_bias=bias, p_residual=residual, p_out=out)
    return out


@lru_cache(PLANS)
def _ring_upsampled_conv(size: Sequence[int], n: int, of_residual: Sequence[int], programs: int) -> Plan:
    """`ring_upsampled_conv_kernel` for x of that size, `n` channels of the result, and the residual's strides."""
    ring = import_module("lmfn_kernels.upsample.gluon_kernels")  # only here, as not every Triton has Gluon
    (b, _, h, w), tiles = size, ring.ring
    s_n, s_h, s_w = of_residual[1:]
    hold_to_int32("ring_upsampled_conv", max(4 * n * h * w, n * s_n + 2 * h * s_h + 2 * w * s_w))
    rows, columns = ring.ROWS, tiles.PITCH - 2
    return Plan(
        ring.ring_upsampled_conv_kernel,
        (max(1, min(programs, b * cdiv(h, rows) * cdiv(w, columns))),),  # 0 if a trial is over: the weight stays folded
        4,
        {"t_x": (1, 2, tiles.PITCH, tiles.CHANNELS), "t_w": (1, tiles.CHANNELS, ring.RESULTS)},
        tiles.descriptor,
        "t_w",
        B=b,
        H=h,
        W=w,
        N=n,
        **{f"s_r{dimension}": stride for dimension, stride in zip("bnhw", of_residual, strict=True)},
        BLOCK_H=rows,
        BLOCK_W=columns,
    )


Taps = tuple[tuple[tuple[float, ...], ...], ...]


def _folded(weight: Tensor, dtype: torch.dtype, by: Taps) -> Tensor:
    """The weight folded for images in `dtype` by [taps, results, 3] along both axes, as [taps, inputs, N results]: rows
    are a pitch apart, with zeros between them."""
    (n, k), taps, results = weight.shape[:2], len(by), len(by[0])
    outputs = n * results**2
    s = pitch(outputs, dtype)
    out = torch.empty((taps**2, k, s), dtype=dtype, device=weight.device)
    key = weight.shape, weight.stride(), dtype, taps, results
    launch(out, _fold, key, p_w=weight, p_taps=constant(by, accumulator_dtype(out), out), p_out=out)
    return out[..., :outputs]


FOLDED = 1024
"""Elements of a folded weight per program."""


@lru_cache(PLANS)
def _fold(weight: Sequence[int], of_weight: Sequence[int], dtype: torch.dtype, taps: int, results: int) -> Plan:
    n, k = weight[:2]
    s = pitch(n * results**2, dtype)
    size = taps**2 * k * s
    return Plan(
        kernels.fold_upsampling_kernel,
        (cdiv(size, FOLDED),),
        4,
        {},
        SIZE=size,
        K=k,
        N=n,
        **{f"s_{dimension}": stride for dimension, stride in zip("nkhw", of_weight, strict=True)},
        PITCH=s,
        TAPS=taps,
        RESULTS=results,
        ACC=accumulator(dtype),
        BLOCK=FOLDED,
    )


@lru_cache(PLANS)
def _upsampled_conv(
    t: Tiling, n: int, readable: int, of_x: Sequence[int], of_residual: Sequence[int], of_out: Sequence[int]
) -> Plan:
    """`t` is the tiling of x, whose tiles are of quads, `n` the channels of the result, `readable` how many values of a
    pixel of x may be read; then the strides of x, of the residual and of the result."""
    b, k, h, w = t.size
    block_k, block_n, unit = min(64, channel_block(k)), 4, 16 // t.dtype.itemsize
    return Plan(
        kernels.upsampled_conv_kernel,
        (b * cdiv(h, 2 * t.config.height) * cdiv(w, 2 * t.config.width), cdiv(n, block_n)),
        t.config.warps,
        {"t_w": (1, block_k, 16 * block_n)},
        N=n,
        **named_strides("x", [stride // unit for stride in of_x]),
        **{f"s_r{dimension}": stride for dimension, stride in zip("bnhw", of_residual, strict=True)},
        **{f"s_{dimension}": stride for dimension, stride in zip("bnh", of_out, strict=False)},
        K=k,
        READABLE=readable,
        UNIT=unit,
        BLOCK_K=block_k,
        BLOCK_N=block_n,
        STAGES=t.config.stages,
        **t.constants(),
    )


def upsampled_conv_backward(
    g: Tensor, x: Tensor, weight: Tensor, of_input: bool, of_weight: bool
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    (n, k), e, dx = weight.shape[:2], _by_pixels(g, x), None
    if of_input:
        dx = empty_image(x, *x.shape)
        key = tiling("upsampled_conv", x), 4 * n, e.shape[1]
        launch(x, _input_gradient, key, p_e=as_pitched_image(e), p_w=_folded(weight, x.dtype, BY_TAPS), t_dx=dx)
    if not of_weight:
        return dx, None
    results = e[:, : 4 * n]
    everywhere, of_bias = weight_gradient(results, x, x.new_empty(()).expand(4 * n, k, 3, 3), padding=1)
    x, of_x = with_pitch(x)
    t = tiling("edge_weight_gradient", x)
    splits = min(t.config.splits, cdiv(x.shape[0] * max(x.shape[2:]), EDGE_PIXELS))
    edges = partial_sums(x, splits, (16, k, 4 * n))
    launch(x, _edge_weight_gradient, (t, 4 * n, splits, of_x, e.shape[1]), p_e=as_pitched_image(e), p_x=x, p_dw=edges)
    dweight, dbias = torch.empty_like(weight), torch.empty((n,), dtype=edges.dtype, device=x.device)
    launch(
        x,
        _unfold,
        (everywhere.values.shape, everywhere.values.stride(), splits, edges.dtype, weight.stride()),
        p_everywhere=everywhere.values,
        p_edges=edges,
        p_of_bias=of_bias.values,
        p_matrix=constant(OF_TAPS, edges.dtype, x),
        p_dweight=dweight,
        p_dbias=dbias,
    )
    return dx, (dweight, dbias)


def _by_pixels(g: Tensor, x: Tensor) -> Tensor:
    """The gradient `g` of the result by pixels of `x`, and in its dtype: `pixel_unshuffle`, then channels of zeros that
    fill the gaps between pixels."""
    g = with_near_columns(g)
    (b, n), (h, w) = g.shape[:2], x.shape[2:]
    e = empty_image(x, b, pixel_pitch(4 * n, x.dtype), h, w)
    launch(x, _unshuffle, (e.shape, 4 * n, g.stride(), strides(e)), p_g=g, p_e=e)
    return e


UNSHUFFLED = 2048
"""Elements of the rearranged gradient per program."""


@lru_cache(PLANS)
def _unshuffle(size: Sequence[int], channels: int, of_g: Sequence[int], of_e: Sequence[int]) -> Plan:
    """`size` is that of the result, whose channels after the first `channels` are zero; then both images' strides."""
    b, row, h, w = size
    block = channel_block(row)
    pixels = max(1, UNSHUFFLED // block)
    return Plan(
        kernels.unshuffle_kernel,
        (cdiv(b * h * w, pixels),),
        4,
        {},
        PIXELS=b * h * w,
        H=h,
        W=w,
        C=channels,
        PITCH=row,
        **{f"s_{dimension}": stride for dimension, stride in zip("bnhw", of_g, strict=True)},
        **named_strides("e", of_e),
        INDEX=index_type(b * h * w, block // 4 * of_g[1]),
        BLOCK_P=pixels,
        BLOCK_C=block,
    )


@lru_cache(PLANS)
def _unfold(
    partials: Sequence[int], of_partials: Sequence[int], splits: int, dtype: torch.dtype, of_weight: Sequence[int]
) -> Plan:
    """`partials` and `of_partials` are size and strides of the partial sums everywhere; there are `splits` of those at
    the edges, all in `dtype`."""
    n, k = partials[1] // 4, partials[2]
    return Plan(
        kernels.unfold_gradient_kernel,
        (k, n),
        8,
        {},
        SPLITS=partials[0],
        EDGE_SPLITS=splits,
        **{f"s_{dimension}": stride for dimension, stride in zip("snkhw", of_partials, strict=True)},
        **{f"s_d{dimension}": stride for dimension, stride in zip("nkhw", of_weight, strict=True)},
        ACC=accumulator(dtype),
        BLOCK_S=min(32, 1 << (max(partials[0], splits) - 1).bit_length()),
    )


@lru_cache(PLANS)
def _input_gradient(t: Tiling, k: int, row: int) -> Plan:
    """`t` is the tiling of x, `k` the number of results per pixel of x, `row` the elements from one of their pixels to
    the next."""
    n = t.size[1]
    block_n = min(64, channel_block(n))
    return Plan(
        kernels.upsampled_conv_input_gradient_kernel,
        (t.tiles, cdiv(n, block_n)),
        t.config.warps,
        {"t_dx": t.pixels(block_n)},
        N=n,
        PITCH=row,
        OF_ROW=pitch(k, t.dtype),
        BLOCK_K=min(64, channel_block(3 * row)),
        BLOCK_N=block_n,
        **t.constants(),
    )


EDGE_PIXELS = 64
"""Pixels at an edge of the image that a program takes at a time."""


@lru_cache(PLANS)
def _edge_weight_gradient(t: Tiling, n: int, splits: int, of_x: int, of_e: int) -> Plan:
    """`t` is the tiling of x, `n` the number of results per pixel of x; then the elements from one pixel of x, and of
    those results, to the next."""
    b, k, h, w = t.size
    block_k, block_n = min(64, channel_block(k)), min(64, channel_block(n))
    return Plan(
        kernels.edge_weight_gradient_kernel,
        (splits, 16, cdiv(k, block_k) * cdiv(n, block_n)),
        4,
        {},
        B=b,
        H=h,
        W=w,
        K=k,
        N=n,
        SPLITS=splits,
        PITCH_E=of_e,
        PITCH_X=of_x,
        ACC=accumulator(t.dtype),
        PRECISION=t.precision,
        BLOCK_P=EDGE_PIXELS,
        BLOCK_K=block_k,
        BLOCK_N=block_n,
    )
