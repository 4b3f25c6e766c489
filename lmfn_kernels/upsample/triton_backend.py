"""Upsampling on Triton kernels; same functions as `torch_backend.py`, on images that `as_kernel_image` returned."""

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
    weight_gradient,
)
from lmfn_kernels.runtime.launch import (
    PLANS,
    Plan,
    Tiling,
    accumulator,
    cdiv,
    channel_block,
    empty_image,
    launch,
    tiling,
    weight_as_taps,
)
from lmfn_kernels.upsample import kernels
from lmfn_kernels.upsample.grid import ratio

__all__ = [
    "as_kernel_image",
    "conv",
    "input_gradient",
    "mask_gradient",
    "materialize",
    "named_strides",
    "ratios",
    "strides",
    "upsample_add",
    "upsample_backward",
    "upsampled_conv",
    "weight_gradient",
]


def strides(x: Tensor) -> tuple[int, int, int]:
    """Elements from one image, row and pixel to the next."""
    b, _, h, w = x.stride()
    return b, h, w


def named_strides(name: str, found: Sequence[int]) -> dict[str, int]:
    """As kernels call them."""
    return {f"s_{name}{dimension}": stride for dimension, stride in zip("bhw", found, strict=True)}


def ratios(size: Sequence[int], low: Sequence[int], fixed_grid: bool) -> dict[str, int]:
    """How many rows and columns of the smaller map become how many of the larger, as kernels call them."""
    (to_h, from_h), (to_w, from_w) = (ratio(*sizes, fixed_grid) for sizes in zip(size, low, strict=True))
    return {"TO_H": to_h, "FROM_H": from_h, "TO_W": to_w, "FROM_W": from_w}


def upsample_add(low: Tensor, size: Sequence[int], added: Tensor | None = None) -> Tensor:
    out = empty_image(low, low.shape[0], low.shape[1], size[0], size[1])
    key = tiling("upsample_add", out), low.shape[2:], strides(low)
    launch(out, _upsample_add, key, p_v=low, t_added=added, t_out=out)
    return out


@lru_cache(PLANS)
def _upsample_add(t: Tiling, low: Sequence[int], of_low: Sequence[int]) -> Plan:
    """`t` is of the result; of what is upsampled, height and width, and strides."""
    channels = t.size[1]
    width = min(64, channel_block(channels))
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
        **named_strides("", of_low),
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
    """`t` is of the larger map, `low` the size of the smaller; and the strides of both."""
    b, channels, h, w = t.size
    return Plan(
        kernels.upsample_backward_kernel,
        (b * low[0] * low[1],),
        t.config.warps,
        {},
        H=h,
        W=w,
        F=channels,
        LOW_H=low[0],
        LOW_W=low[1],
        **ratios((h, w), low, fixed_grid),
        **named_strides("g", of_g),
        **named_strides("", of_dv),
        ACC=accumulator(t.dtype),
        BLOCK_W=t.config.width,
        BLOCK_F=channel_block(channels),
    )


def planes(like: Tensor, b: int, c: int, h: int, w: int) -> Tensor:
    """An uninitialised image of a few channels, each a plane."""
    return torch.empty((b, c, h, w), dtype=like.dtype, device=like.device)


def upsampled_conv(x: Tensor, folded: Tensor, bias: Tensor) -> Tensor:
    n, k = int(folded.shape[1]), int(folded.shape[2])
    out = planes(x, x.shape[0], n // 4, 2 * x.shape[2], 2 * x.shape[3])
    weight = weight_as_taps(folded.permute(1, 2, 0, 3, 4).reshape(n, k, 27, 3))
    key = tiling("upsampled_conv", x), n, out.stride()
    launch(x, _upsampled_conv, key, t_x=x, t_w=weight, p_bias=bias, p_out=out)
    return out


@lru_cache(PLANS)
def _upsampled_conv(t: Tiling, n: int, of_out: Sequence[int]) -> Plan:
    """`t` is of what is upsampled, `n` the channels of the folded weight, four times the result's; its strides."""
    k = t.size[1]
    block_k, block_n = min(64, channel_block(k)), min(64, channel_block(n))
    return Plan(
        kernels.upsampled_conv_kernel,
        (t.tiles, cdiv(n, block_n)),
        t.config.warps,
        {"t_x": t.pixels(block_k), "t_w": (1, block_k, block_n)},
        N=n,
        **{f"s_{dimension}": stride for dimension, stride in zip("bnhw", of_out, strict=True)},
        K=k,
        BLOCK_K=block_k,
        BLOCK_N=block_n,
        STAGES=t.config.stages,
        **t.constants(),
    )
