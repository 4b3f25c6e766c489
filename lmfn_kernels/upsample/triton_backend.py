"""Upsampling on Triton kernels; same functions as `torch_backend.py`, on images that `layout` returned."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from lmfn_kernels.conv.triton_backend import conv, input_gradient, layout, masked, weight_gradient, written
from lmfn_kernels.runtime.configs import config
from lmfn_kernels.runtime.launch import arithmetic, block, empty, matrix, pixels, run, tiles, weights
from lmfn_kernels.upsample import kernels

__all__ = [
    "conv", "input_gradient", "layout", "masked", "strides", "upsample_add", "upsample_backward", "upsampled_conv",
    "weight_gradient", "written",
]  # fmt: skip


def strides(name: str, x: Tensor) -> dict[str, int]:
    return {f"s_{name}b": x.stride(0), f"s_{name}h": x.stride(2), f"s_{name}w": x.stride(3)}


def upsample_add(low: Tensor, size: Sequence[int], added: Tensor | None = None) -> Tensor:
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


def planes(like: Tensor, b: int, c: int, h: int, w: int) -> Tensor:
    """An uninitialised image of a few channels, each a plane."""
    return torch.empty((b, c, h, w), dtype=like.dtype, device=like.device)


def upsampled_conv(x: Tensor, folded: Tensor, bias: Tensor) -> Tensor:
    n, k = int(folded.shape[1]), int(folded.shape[2])
    out = planes(x, x.shape[0], n // 4, 2 * x.shape[2], 2 * x.shape[3])
    block_k, block_n = min(64, block(k)), min(64, block(n))
    c = config("upsampled_conv", x)
    run(
        kernels.upsampled_conv_kernel,
        x,
        (tiles(x, c), triton.cdiv(n, block_n)),
        c,
        t_x=pixels(x, c, block_k),
        t_w=weights(matrix(folded.permute(1, 2, 0, 3, 4).reshape(n, k, 27, 3)), block_k, block_n),
        p_bias=bias,
        p_out=out,
        H=x.shape[2],
        W=x.shape[3],
        N=n,
        **{f"s_{name}": stride for name, stride in zip("bnhw", out.stride(), strict=True)},
        K=k,
        BLOCK_H=c.height,
        BLOCK_W=c.width,
        BLOCK_K=block_k,
        BLOCK_N=block_n,
        STAGES=c.stages,
        **arithmetic(x),
    )
    return out
