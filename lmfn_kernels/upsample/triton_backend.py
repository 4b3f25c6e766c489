"""Upsampling by Triton kernels; the same functions as `torch_backend.py`, on images from `as_kernel_image`."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lmfn_kernels.conv.triton_backend import (
    as_kernel_image,
    conv,
    input_gradient,
    mask_gradient,
    materialize,
    scaled_conv,
    weight_gradient,
)
from lmfn_kernels.runtime.launch import (
    PLANS,
    Plan,
    Tiling,
    accumulator,
    accumulator_dtype,
    cdiv,
    channel_block,
    empty_image,
    launch,
    padded_channels,
    padded_image,
    partial_sums,
    tiling,
)
from lmfn_kernels.runtime.layout import constant, pitch
from lmfn_kernels.runtime.torch_private import FakeTensor
from lmfn_kernels.upsample import kernels
from lmfn_kernels.upsample.grid import ratio
from lmfn_kernels.upsample.polyphase import fold_by_axes, of_pairs, unfold_gradient

__all__ = [
    "as_kernel_image",
    "conv",
    "input_gradient",
    "mask_gradient",
    "materialize",
    "named_strides",
    "ratios",
    "scaled_conv",
    "strides",
    "upsample_add",
    "upsample_backward",
    "upsampled_conv",
    "upsampled_conv_backward",
    "weight_gradient",
]


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


def upsample_add(low: Tensor, size: Sequence[int], added: Tensor | None = None) -> Tensor:
    out = padded_image(low, low.shape[0], low.shape[1], size[0], size[1])
    key = tiling("upsample_add", out), low.shape[2:], strides(low)
    launch(out, _upsample_add, key, p_v=low, t_added=added, t_out=out)
    return out


@lru_cache(PLANS)
def _upsample_add(t: Tiling, low: Sequence[int], of_low: Sequence[int]) -> Plan:
    """`t` is the tiling of the result; `low` and `of_low` are height and width, and strides of the smaller map."""
    channels = t.size[1]
    width, unit = min(64, channel_block(channels)), 16 // t.dtype.itemsize
    return Plan(
        kernels.upsample_add_kernel,
        (t.tiles, cdiv(channels, width)),
        t.config.warps,
        {"t_added": t.pixels(width), "t_out": t.pixels(width)},
        H=t.size[2],
        W=t.size[3],
        LOW_H=low[0],
        LOW_W=low[1],
        F=channels,
        **named_strides("", [stride // unit for stride in of_low]),
        DOUBLES=t.size[2] == 2 * low[0] and t.size[3] == 2 * low[1],
        PITCH=pitch(channels, t.dtype),
        UNIT=unit,
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
        ACC=accumulator(t.dtype),
        BLOCK_P=pixels,
        BLOCK_W=columns,
        BLOCK_F=channel_block(channels),
    )


def planes(like: Tensor, b: int, c: int, h: int, w: int) -> Tensor:
    """An uninitialised image [b, c, h, w] with contiguous channels, for images of few channels."""
    return torch.empty((b, c, h, w), dtype=like.dtype, device=like.device)


def upsampled_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    n = weight.shape[0]
    out = planes(x, x.shape[0], n, 2 * x.shape[2], 2 * x.shape[3])
    folded = _folded_by_quads(weight, x)
    key = tiling("upsampled_conv", x), n, padded_channels(x, x.shape, x.stride()), strides(x), out.stride()
    launch(x, _upsampled_conv, key, p_x=x, t_w=folded, p_bias=bias, p_out=out)
    return out


def _folded_by_quads(weight: Tensor, x: Tensor) -> Tensor:
    """The weight folded for `upsampled_conv_kernel` on `x`, [36 taps, inputs, 16N outputs]."""
    n, k = weight.shape[:2]
    out = torch.empty((36, k, 16 * n), dtype=x.dtype, device=x.device)
    if isinstance(x, FakeTensor):  # its size may be a symbol, of which nobody may ask whether it is odd
        return out
    rows, columns = (constant(of_pairs(size % 2 == 1), accumulator_dtype(x), x) for size in x.shape[2:])
    key = weight.shape, weight.stride(), x.dtype
    launch(x, _fold, key, p_w=weight, p_rows=rows, p_columns=columns, p_out=out)
    return out


FOLDED = 1024
"""Elements of a folded weight per program."""


@lru_cache(PLANS)
def _fold(weight: Sequence[int], of_weight: Sequence[int], dtype: torch.dtype) -> Plan:
    n, k = weight[:2]
    size = 36 * k * 16 * n
    return Plan(
        kernels.fold_upsampling_kernel,
        (cdiv(size, FOLDED),),
        4,
        {},
        SIZE=size,
        K=k,
        N=n,
        **{f"s_{dimension}": stride for dimension, stride in zip("nkhw", of_weight, strict=True)},
        TAPS=6,
        RESULTS=4,
        ACC=accumulator(dtype),
        BLOCK=FOLDED,
    )


def _folded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The folded weights of the nine parts as [81 taps, inputs, 4N outputs], rows a pitch apart."""
    n, k = weight.shape[:2]
    s = pitch(4 * n, dtype)
    out = torch.empty_strided((81, k, 4 * n), (k * s, s, 1), dtype=dtype, device=weight.device)
    by_part = out.view(3, 3, 3, 3, k, n, 2, 2)
    by_part.copy_(fold_by_axes(weight).permute(0, 1, 6, 7, 5, 4, 2, 3))
    return out


@lru_cache(PLANS)
def _upsampled_conv(t: Tiling, n: int, readable: int, of_x: Sequence[int], of_out: Sequence[int]) -> Plan:
    """`t` is the tiling of x, whose tiles are of quads, `n` the channels of the result, `readable` how many values of a
    pixel of x may be read; then the strides of both images."""
    b, k, h, w = t.size
    block_k, block_n, unit = min(64, channel_block(k)), 4, 16 // t.dtype.itemsize
    return Plan(
        kernels.upsampled_conv_kernel,
        (b * cdiv(h, 2 * t.config.height) * cdiv(w, 2 * t.config.width), cdiv(n, block_n)),
        t.config.warps,
        {"t_w": (1, block_k, 16 * block_n)},
        N=n,
        **named_strides("x", [stride // unit for stride in of_x]),
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
    e: Tensor, x: Tensor, weight: Tensor, of_input: bool, of_weight: bool
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    dx = None
    if of_input:
        dx = empty_image(x, *x.shape)
        key = tiling("upsampled_conv", x), e.shape[1]
        launch(x, _input_gradient, key, t_e=e, t_w=_folded(weight, x.dtype), t_dx=dx)
    if not of_weight:
        return dx, None
    (n, k), t = weight.shape[:2], tiling("weight_gradient", e)
    everywhere, of_bias = weight_gradient(e, x, x.new_empty(()).expand(4 * n, k, 3, 3), padding=1)
    edges = partial_sums(e, t.splits, (72, k, 4 * n))
    launch(e, _edge_weight_gradient, (t, k), t_e=e, t_x=x, p_dw=edges)
    # [8 parts, 4N outputs, inputs, 3, 3]
    of_edges = edges.sum(0).view(8, 3, 3, k, 4 * n).permute(0, 4, 3, 1, 2)
    folded = torch.cat([everywhere.values.sum(0)[None], of_edges])
    return dx, (unfold_gradient(folded), of_bias.values.view(-1, n, 4).sum((0, 2)))


@lru_cache(PLANS)
def _input_gradient(t: Tiling, k: int) -> Plan:
    """`t` is the tiling of x, `k` the number of results per pixel of x."""
    n = t.size[1]
    block_k, block_n = min(64, channel_block(k)), min(64, channel_block(n))
    return Plan(
        kernels.upsampled_conv_input_gradient_kernel,
        (t.tiles, cdiv(n, block_n)),
        t.config.warps,
        {"t_e": t.pixels(block_k), "t_w": (1, block_n, block_k), "t_dx": t.pixels(block_n)},
        K=k,
        BLOCK_K=block_k,
        BLOCK_N=block_n,
        STAGES=t.config.stages,
        **t.constants(),
    )


@lru_cache(PLANS)
def _edge_weight_gradient(t: Tiling, k: int) -> Plan:
    """`t` is the tiling of the results' gradient, `k` the number of input channels."""
    b, n = t.size[:2]
    block_k, block_n = min(64, channel_block(k)), min(64, channel_block(n))
    return Plan(
        kernels.edge_weight_gradient_kernel,
        (t.splits, 24, cdiv(k, block_k) * cdiv(n, block_n)),
        t.config.warps,
        {"t_e": t.pixels(block_n), "t_x": t.pixels(block_k)},
        B=b,
        K=k,
        N=n,
        SPLITS=t.splits,
        BLOCK_K=block_k,
        BLOCK_N=block_n,
        **t.constants(),
    )
