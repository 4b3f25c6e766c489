"""Convolution on Triton kernels; same functions as `torch_backend.py`, on images that `layout` returned."""

import torch
import triton
from torch import Tensor

from lmfn_kernels.conv import kernels
from lmfn_kernels.runtime.configs import config
from lmfn_kernels.runtime.launch import (
    PLACES,
    Masked,
    arithmetic,
    block,
    empty,
    layout,
    matrix,
    parities,
    partial,
    pixels,
    run,
    tiles,
    total,
    unmasked,
    weights,
)

__all__ = ["conv", "convolve", "input_gradient", "layout", "masked", "weight_gradient", "written"]


def masked(g: Tensor, y: Tensor, slope: float) -> Tensor | Masked:
    """The gradient before an activation: the mask is applied by whoever loads it."""
    return g if slope == 1 else Masked(g, y, slope)


def written(e: Tensor | Masked) -> Tensor:
    """What `masked` gave, as a tensor of its own."""
    g, by, slope = unmasked(e)
    out = empty(g, *g.shape)
    return out.copy_(g if by is None else torch.where(by > 0, g, g * slope))


def convolve(
    out: Tensor,
    views: list[Tensor],
    e: Masked,
    weight: Tensor,
    *,
    mode: str,
    padding: int,
    bias: Tensor | None = None,
    residual: Masked | None = None,
    extra: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    mask_slope: float = 1.0,
    slope: float = 1.0,
    distil: tuple[Tensor, Tensor, Tensor] | None = None,
    odd: tuple[int, int] = (0, 0),
) -> None:
    """Launch `conv_kernel` into `out`; `views` are the input's descriptors' images, `weight` [taps, inputs, outputs].

    `distil` is (weight, bias, second output).
    """
    taps, k, n = (int(size) for size in weight.shape)
    block_k, block_n = min(64, block(k)), min(64, block(n))
    c = config("conv", out)
    inputs = [pixels(view, c, block_k) for view in views] + [None] * (4 - len(views))
    z, zw = extra if extra is not None else (None, None)
    block_z = 16 if z is None else block(z.shape[1])
    dw, dbias, d = distil if distil is not None else (None, None, None)
    block_d = 16 if d is None else block(d.shape[1])
    run(
        kernels.conv_kernel,
        out,
        (tiles(out, c), triton.cdiv(n, block_n)),
        c,
        **{f"t_x{place}": image for place, image in zip(PLACES, inputs, strict=True)},
        t_by=pixels(e.by, c, block_k),
        t_w=weights(weight, block_k, block_n),
        p_bias=bias,
        t_residual=None if residual is None else pixels(residual.gradient, c, block_n),
        t_residual_by=None if residual is None else pixels(residual.by, c, block_n),
        t_z=pixels(z, c, block_z),
        t_zw=weights(zw, block_z, block_n),
        t_mask=pixels(mask, c, block_n),
        t_out=pixels(out, c, block_n),
        t_dw=weights(dw, block_n, block_d),
        p_dbias=dbias,
        t_d=pixels(d, c, block_d),
        H=out.shape[2],
        W=out.shape[3],
        N=n,
        D=0 if d is None else d.shape[1],
        K=k,
        TAPS=1 if taps == 1 else 3,
        MODE=mode,
        ODD_H=odd[0],
        ODD_W=odd[1],
        PADDING=padding,
        SLOPE=slope,
        BY_SLOPE=e.slope,
        MASK_SLOPE=mask_slope,
        BLOCK_H=c.height,
        BLOCK_W=c.width,
        BLOCK_K=block_k,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        STAGES=c.stages,
        **arithmetic(out),
    )


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    slope: float = 1.0,
) -> Tensor:
    height, width = ((size + 2 * padding - weight.shape[2]) // stride + 1 for size in x.shape[2:])
    out = empty(x, x.shape[0], weight.shape[0], height, width)
    convolve(
        out,
        parities(x) if stride == 2 else [x],
        unmasked(x),
        matrix(weight),
        mode="down" if stride == 2 else "same",
        padding=padding,
        bias=bias,
        residual=None if residual is None else unmasked(residual),
        slope=slope,
    )
    return out


def input_gradient(
    e: Tensor | Masked,
    weight: Tensor,
    x: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    residual: bool = False,
    extra: tuple[Tensor, Tensor] | None = None,
    mask: float = 1.0,
) -> Tensor:
    """The gradient of a convolution's input `x`, as in `torch_backend.py`."""
    e = unmasked(e)
    dx = empty(x, *x.shape)
    back = matrix(weight, back=True)
    if stride == 1:
        convolve(
            dx,
            [e.gradient],
            e,
            back,
            mode="back",
            padding=weight.shape[2] - 1 - padding,
            residual=e if residual else None,
            extra=None if extra is None else (extra[0], matrix(extra[1], back=True)),
            mask=None if mask == 1 else x,
            mask_slope=mask,
        )
        return dx
    assert (residual, extra, mask) == (False, None, 1), "no block hangs these on a convolution of stride 2"
    # An input row of one parity meets only the taps of one: four launches, and no product with a zero between pixels.
    for place, view in enumerate(parities(dx)):
        if view.numel() > 0:
            convolve(view, [e.gradient], e, back, mode="up", padding=padding, odd=(place // 2, place % 2))
    return dx


def weight_gradient(
    e: Tensor | Masked, x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0
) -> tuple[Tensor, Tensor]:
    """The gradients of a convolution's weight, in its strides, and of its bias. 1x1 or 3x3, images from `layout`."""
    g, by, slope = unmasked(e)
    n, k, taps = weight.shape[0], weight.shape[1], weight.shape[2]
    block_k, block_n = min(64, block(k)), min(64, block(n))
    c = config("weight_gradient", g)
    splits = min(c.splits, tiles(g, c))
    dw, db = partial(g, splits, (taps * taps, k, n)), partial(g, splits, (n,))
    views = parities(x) if stride == 2 else [x, None, None, None]
    blocks = triton.cdiv(k, block_k) * triton.cdiv(n, block_n)
    for row in range(taps) if stride == 2 else (0,):
        run(
            kernels.weight_gradient_kernel,
            g,
            (splits, 1 if stride == 2 else taps, blocks),
            c,
            t_g=pixels(g, c, block_n),
            t_by=pixels(by, c, block_n),
            **{f"t_x{place}": pixels(view, c, block_k) for place, view in zip(PLACES, views, strict=True)},
            p_dw=dw,
            p_db=db,
            B=g.shape[0],
            H=g.shape[2],
            W=g.shape[3],
            K=k,
            N=n,
            SPLITS=splits,
            TAPS=taps,
            ROW=row,
            STRIDE=stride,
            PADDING=padding,
            SLOPE=slope,
            BLOCK_H=c.height,
            BLOCK_W=c.width,
            BLOCK_K=block_k,
            BLOCK_N=block_n,
            STAGES=c.stages,
            **arithmetic(g),
        )
    taken = total(dw).permute(2, 1, 0).reshape(weight.shape)
    return torch.empty_like(weight).copy_(taken), total(db)
