"""Bilinear resampling on Triton kernels. The same pieces as in `plain.py`, with images as `layout` gives them."""

from collections.abc import Sequence

import triton
from torch import Tensor

from lmfn_kernels.bilinear import kernels
from lmfn_kernels.runtime.configs import config
from lmfn_kernels.runtime.launch import arithmetic, block, empty, layout, pixels, run, tiles

__all__ = ["layout", "strides", "upsample_add", "upsample_backward"]


def strides(name: str, x: Tensor) -> dict[str, int]:
    return {f"s_{name}b": x.stride(0), f"s_{name}h": x.stride(2), f"s_{name}w": x.stride(3)}


def upsample_add(low: Tensor, size: Sequence[int], added: Tensor | None = None) -> Tensor:
    """`low` at height and width `size`, and `added` on top."""
    channels = low.shape[1]
    out = empty(low, low.shape[0], channels, size[0], size[1])
    width = min(64, block(channels))
    c = config("upsample_add", out)
    run(
        kernels.upsample_add_kernel,
        out,
        (tiles(out, c), triton.cdiv(channels, width)),
        c,
        p_v=low,
        t_added=pixels(added, c, width),
        t_out=pixels(out, c, width),
        H=out.shape[2],
        W=out.shape[3],
        LOW_H=low.shape[2],
        LOW_W=low.shape[3],
        F=channels,
        **strides("", low),
        ACC=arithmetic(low)["ACC"],
        BLOCK_H=c.height,
        BLOCK_W=c.width,
        BLOCK_F=width,
    )
    return out


def upsample_backward(g: Tensor, v: Tensor) -> Tensor:
    dv = empty(v, *v.shape)
    c = config("upsample_backward", g)
    run(
        kernels.upsample_backward_kernel,
        g,
        (v.shape[0] * v.shape[2] * v.shape[3],),
        c,
        p_g=g,
        p_dv=dv,
        H=g.shape[2],
        W=g.shape[3],
        F=g.shape[1],
        LOW_H=v.shape[2],
        LOW_W=v.shape[3],
        **strides("g", g),
        **strides("", dv),
        ACC=arithmetic(g)["ACC"],
        BLOCK_W=c.width,
        BLOCK_F=block(g.shape[1]),
    )
    return dv
