"""RFDB on Triton kernels; same functions as `torch_backend.py`, on images that `layout` returned."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from lmfn_kernels.conv.triton_backend import conv, convolve, input_gradient, layout, masked, weight_gradient, written
from lmfn_kernels.rfdb import kernels
from lmfn_kernels.runtime.configs import Config, config
from lmfn_kernels.runtime.launch import (
    arithmetic,
    block,
    empty,
    matrix,
    partial,
    pixels,
    run,
    tiles,
    total,
    unmasked,
    weights,
)
from lmfn_kernels.upsample.triton_backend import strides, upsample_add, upsample_backward, upsampled_conv
from lmfn_kernels.weights import Conv

__all__ = [
    "conv", "fuse", "fuse_backward", "fused", "gate", "gate_backward", "input_gradient", "layout", "masked", "pool",
    "pool_backward", "stage", "upsample_add", "upsample_backward", "upsampled_conv", "weight_gradient", "written",
]  # fmt: skip


def stage(x: Tensor, distil: Conv, refine: Conv, slope: float) -> tuple[Tensor, Tensor]:
    out, d = empty(x, *x.shape), empty(x, x.shape[0], distil.weight.shape[0], *x.shape[2:])
    convolve(
        out,
        [x],
        unmasked(x),
        matrix(refine.weight),
        mode="same",
        padding=1,
        bias=refine.bias,
        residual=unmasked(x),
        slope=slope,
        distil=(matrix(distil.weight), distil.bias, d),
    )
    return out, d


def _size(c: Config, x: Tensor) -> dict[str, Any]:
    return {"BLOCK_H": c.height, "BLOCK_W": c.width, "H": x.shape[2], "W": x.shape[3], **arithmetic(x)}


def fuse(
    x: Tensor, d: Sequence[Tensor], last: Conv, fuse: Conv, squeeze: Conv, slope: float, save: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    b, _, h, w = x.shape
    a = empty(x, b, squeeze.weight.shape[0], h, w)
    d4 = empty(x, b, last.weight.shape[0], h, w) if save else None
    y = _fuse((x, *last), (*d, d4), *fuse, (a, *squeeze), slope)
    return y, a, d4


def fused(d: Sequence[Tensor], fuse: Conv) -> Tensor:
    return _fuse(None, d, *fuse, None, 1.0)


def _fuse(
    first: tuple[Tensor, Tensor, Tensor] | None,
    maps: Sequence[Tensor | None],
    weight: Tensor,
    bias: Tensor,
    after: tuple[Tensor, Tensor, Tensor] | None,
    slope: float,
) -> Tensor:
    """y. `first`: x and the convolution that d4, the last of `maps`, is made by; `after`: a and that which it is."""
    x, last, last_bias = first or (None, None, None)
    a, squeeze, squeeze_bias = after or (None, None, None)
    d1, ch = maps[0], weight.shape[0]
    assert d1 is not None
    n, f = d1.shape[1], 1 if a is None else a.shape[1]
    block_k, block_c, block_d, block_f = block(1 if x is None else x.shape[1]), block(ch), block(n), block(f)
    c = config("fuse", d1)
    y = empty(d1, d1.shape[0], ch, *d1.shape[2:])
    fuse_j = [weights(matrix(part), block_d, block_c) for part in weight.chunk(4, dim=1)]
    run(
        kernels.fuse_kernel,
        d1,
        (tiles(d1, c),),
        c,
        t_x=pixels(x, c, block_k),
        **{f"t_d{j}": pixels(d, c, block_d) for j, d in enumerate(maps, 1)},
        t_last=None if last is None else weights(matrix(last), block_k, block_d),
        p_last_bias=last_bias,
        **{f"t_fuse{j}": part for j, part in enumerate(fuse_j, 1)},
        p_fuse_bias=bias,
        t_squeeze=None if squeeze is None else weights(matrix(squeeze), block_c, block_f),
        p_squeeze_bias=squeeze_bias,
        t_y=pixels(y, c, block_c),
        t_a=pixels(a, c, block_f),
        C=ch,
        D=n,
        F=f,
        SLOPE=slope,
        BLOCK_C=block_c,
        BLOCK_D=block_d,
        BLOCK_F=block_f,
        STAGES=c.stages,
        **_size(c, d1),
    )
    return y


def fuse_backward(
    gy: Tensor,
    ga: Tensor,
    y: Tensor,
    d: Sequence[Tensor],
    weight: Tensor,
    squeeze: Tensor,
    slope: float,
    d_slope: float,
) -> tuple[list[Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    ch, n, f = y.shape[1], d[0].shape[1], ga.shape[1]
    block_c, block_d, block_f = block(ch), block(n), block(f)
    c = config("fuse_backward", y)
    splits = min(c.splits, tiles(y, c))
    z = [empty(d_j, *d_j.shape) for d_j in d]
    dfuse, dfuse_bias = partial(y, splits, (ch, 4 * n)), partial(y, splits, (ch,))
    parts = weight.chunk(4, dim=1)
    for i in (0, 2):
        run(
            kernels.fuse_backward_kernel,
            y,
            (splits,),
            c,
            t_gy=pixels(gy, c, block_c),
            t_ga=pixels(ga, c, block_f),
            t_squeeze=weights(matrix(squeeze, back=True), block_f, block_c),
            t_d1=pixels(d[i], c, block_d),
            t_d2=pixels(d[i + 1], c, block_d),
            t_fuse1=weights(matrix(parts[i], back=True), block_c, block_d),
            t_fuse2=weights(matrix(parts[i + 1], back=True), block_c, block_d),
            t_z1=pixels(z[i], c, block_d),
            t_z2=pixels(z[i + 1], c, block_d),
            p_dfuse=dfuse,
            p_dfuse_bias=dfuse_bias,
            B=y.shape[0],
            C=ch,
            D=n,
            SPLITS=splits,
            FIRST=i,
            SLOPE1=d_slope,
            SLOPE2=d_slope if i == 0 else slope,
            BLOCK_C=block_c,
            BLOCK_D=block_d,
            STAGES=c.stages,
            **_size(c, y),
        )
    return z, (_like(weight, dfuse), total(dfuse_bias)), weight_gradient(ga, y, squeeze)


def _like(weight: Tensor, partials: Tensor) -> Tensor:
    """The sum of the partials in the weight's dtype and strides."""
    return torch.empty_like(weight).copy_(total(partials).reshape(weight.shape))


def _gate(y: Tensor, a: Tensor, v: Tensor, skip: Conv, expand: Conv, c: Config) -> dict[str, Any]:
    """What the gate's kernels have in common."""
    block_c, block_f = block(y.shape[1]), block(a.shape[1])
    return {
        "t_y": pixels(y, c, block_c),
        "t_a": pixels(a, c, block_f),
        "p_v": v,
        "t_skip": weights(matrix(skip.weight), block_f, block_f),
        "p_skip_bias": skip.bias,
        "t_expand": weights(matrix(expand.weight), block_f, block_c),
        "p_expand_bias": expand.bias,
        "C": y.shape[1],
        "F": a.shape[1],
        "LOW_H": v.shape[2],
        "LOW_W": v.shape[3],
        "s_b": v.stride(0),
        "s_h": v.stride(2),
        "s_w": v.stride(3),
        "BLOCK_C": block_c,
        "BLOCK_F": block_f,
        **_size(c, y),
    }


def gate(y: Tensor, a: Tensor, v: Tensor, skip: Conv, expand: Conv) -> Tensor:
    c = config("gate", y)
    out = empty(y, *y.shape)
    common = _gate(y, a, v, skip, expand, c)
    run(kernels.gate_kernel, y, (tiles(y, c),), c, t_out=pixels(out, c, common["BLOCK_C"]), **common)
    return out


def gate_backward(
    g: Tensor, y: Tensor, a: Tensor, v: Tensor, skip: Conv, expand: Conv
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    ch, f = y.shape[1], a.shape[1]
    block_c, block_f = block(ch), block(f)
    c = config("gate_backward", y)
    splits = min(c.splits, tiles(y, c))
    dy, da, dt = empty(y, *y.shape), empty(a, *a.shape), empty(a, *a.shape)
    dskip, dskip_bias = partial(y, splits, (f, f)), partial(y, splits, (f,))
    dexpand, dexpand_bias = partial(y, splits, (ch, f)), partial(y, splits, (ch,))
    run(
        kernels.gate_backward_kernel,
        y,
        (splits,),
        c,
        t_g=pixels(g, c, block_c),
        t_dy=pixels(dy, c, block_c),
        t_da=pixels(da, c, block_f),
        t_dt=pixels(dt, c, block_f),
        p_dskip=dskip,
        p_dskip_bias=dskip_bias,
        p_dexpand=dexpand,
        p_dexpand_bias=dexpand_bias,
        B=y.shape[0],
        SPLITS=splits,
        STAGES=c.stages,
        **_gate(y, a, v, skip, expand, c),
    )
    of_skip, of_expand = _like(skip.weight, dskip), _like(expand.weight, dexpand)
    return dy, da, dt, (of_skip, total(dskip_bias)), (of_expand, total(dexpand_bias))


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    b, f, h, w = x.shape
    low = (h - 7) // 3 + 1, (w - 7) // 3 + 1
    out, index = empty(x, b, f, *low), empty(x, b, f, *low, dtype=torch.int8)
    c = config("pool", x)
    run(
        kernels.pool_kernel,
        x,
        (b * low[0] * triton.cdiv(low[1], c.width),),
        c,
        p_x=x,
        p_out=out,
        p_index=index,
        LOW_H=low[0],
        LOW_W=low[1],
        F=f,
        **strides("x", x),
        **strides("", out),
        **strides("i", index),
        BLOCK_W=c.width,
        BLOCK_F=block(f),
    )
    return out, index


def pool_backward(g: Tensor, index: Tensor, x: Tensor) -> Tensor:
    dx = empty(x, *x.shape)
    c = config("pool_backward", x)
    run(
        kernels.pool_backward_kernel,
        x,
        (x.shape[0] * x.shape[2] * triton.cdiv(x.shape[3], c.width),),
        c,
        p_g=g,
        p_index=index,
        p_dx=dx,
        H=x.shape[2],
        W=x.shape[3],
        LOW_H=g.shape[2],
        LOW_W=g.shape[3],
        F=x.shape[1],
        **strides("g", g),
        **strides("i", index),
        **strides("", dx),
        ACC=arithmetic(x)["ACC"],
        BLOCK_W=c.width,
        BLOCK_F=block(x.shape[1]),
    )
    return dx
