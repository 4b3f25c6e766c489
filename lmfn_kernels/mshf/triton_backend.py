"""MSHF on Triton kernels; same functions as `torch_backend.py`, on images that `layout` returned.

The stem's image is the exception: it is read by pointers, in any layout.
"""

from typing import Any

import torch
from torch import Tensor

from lmfn_kernels.conv.triton_backend import (
    conv,
    convolve,
    input_gradient,
    layout,
    masked,
    weight_gradient,
    written,
)
from lmfn_kernels.mshf import kernels
from lmfn_kernels.runtime.configs import Config, config
from lmfn_kernels.runtime.launch import (
    Masked,
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
from lmfn_kernels.upsample.triton_backend import upsample_add, upsample_backward, upsampled_conv
from lmfn_kernels.weights import Conv

__all__ = [
    "conv", "input_gradient", "layout", "masked", "skip_gradient", "stem", "stem_backward", "upsample_add",
    "upsample_backward", "upsampled_conv", "weight_gradient", "written",
]  # fmt: skip


def _common(x: Tensor, conv0: Conv, padding: int, slope: float, d1: Tensor, c: Config) -> dict[str, Any]:
    """What the stem's kernels have in common."""
    channels, inputs = conv0.weight.shape[:2]
    block_k, block_c, block_n = block(9 * inputs), block(channels), block(d1.shape[1])
    return {
        "p_x": x,
        "t_w0": weights(matrix(conv0.weight).flatten(0, 1)[None], block_k, block_c),
        "p_bias0": conv0.bias,
        "H": x.shape[2],
        "W": x.shape[3],
        "OUT_H": d1.shape[2],
        "OUT_W": d1.shape[3],
        "C": channels,
        "N": d1.shape[1],
        **{f"s_{name}": stride for name, stride in zip("bchw", x.stride(), strict=True)},
        "INPUTS": int(inputs),
        "PADDING": padding,
        "SLOPE": slope,
        "BLOCK_H": c.height,
        "BLOCK_W": c.width,
        "BLOCK_K": block_k,
        "BLOCK_C": block_c,
        "BLOCK_N": block_n,
        "STAGES": c.stages,
        **arithmetic(x),
    }


def stem(x: Tensor, conv0: Conv, down: Conv, padding: int, slope: float) -> Tensor:
    height, width = ((size + 2 * padding - 1) // 2 for size in x.shape[2:])
    out = empty(x, x.shape[0], down.weight.shape[0], height, width)
    c = config("stem", out)
    common = _common(x, conv0, padding, slope, out, c)
    run(
        kernels.stem_kernel,
        x,
        (tiles(out, c),),
        c,
        t_w=weights(matrix(down.weight), common["BLOCK_C"], common["BLOCK_N"]),
        p_bias=down.bias,
        t_out=pixels(out, c, common["BLOCK_N"]),
        **common,
    )
    return out


def stem_backward(
    e: Masked, x: Tensor, conv0: Conv, down: Conv, padding: int, slope: float, of_input: bool, of_weights: bool
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]:
    dconv0 = ddown = None
    if of_weights:
        g, (n, channels), values = e.gradient, down.weight.shape[:2], 9 * conv0.weight.shape[1]
        c = config("stem_backward", g)
        splits = min(c.splits, tiles(g, c))
        common = _common(x, conv0, padding, slope, g, c)
        dw0, dbias0 = partial(g, 9 * splits, (values, channels)), partial(g, 9 * splits, (channels,))
        dw, dbias = partial(g, splits, (9, channels, n)), partial(g, splits, (n,))
        run(
            kernels.stem_backward_kernel,
            x,
            (splits, 9),
            c,
            t_back=weights(matrix(down.weight, back=True), common["BLOCK_N"], common["BLOCK_C"]),
            t_g=pixels(g, c, common["BLOCK_N"]),
            t_by=pixels(e.by, c, common["BLOCK_N"]),
            p_dw0=dw0,
            p_dbias0=dbias0,
            p_dw=dw,
            p_dbias=dbias,
            B=x.shape[0],
            SPLITS=splits,
            **common,
        )
        dconv0 = _like(conv0.weight, total(dw0)), total(dbias0)
        ddown = _like(down.weight, total(dw)), total(dbias)
    if not of_input:
        return None, dconv0, ddown
    x = layout(x)
    f0 = conv(x, *conv0, padding=padding, slope=slope)
    e0 = masked(input_gradient(e, down.weight, f0, stride=2, padding=1), f0, slope)
    return input_gradient(e0, conv0.weight, x, padding=padding), dconv0, ddown


def _like(weight: Tensor, found: Tensor) -> Tensor:
    """A gradient [taps, inputs, outputs] in the weight's shape, dtype and strides."""
    n, k = weight.shape[:2]
    return torch.empty_like(weight).copy_(found.reshape(3, 3, k, n).permute(3, 2, 0, 1))


def skip_gradient(e: Tensor, weight: Tensor, x: Tensor, g: Tensor) -> Tensor:
    dx = empty(x, *x.shape)
    back = matrix(weight, back=True)
    convolve(dx, [e], unmasked(e), back, mode="back", padding=1, residual=unmasked(g))
    return dx
