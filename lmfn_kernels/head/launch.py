"""The op's piece on a Triton kernel. The same piece as `plain.py`, with images as `layout` gives them."""

import torch
import triton
from torch import Tensor

from lmfn_kernels.head import kernels
from lmfn_kernels.runtime.configs import config
from lmfn_kernels.runtime.launch import arithmetic, block, layout, matrix, pixels, run, tiles, weights

__all__ = ["layout", "upsampled_conv"]


def planes(like: Tensor, b: int, c: int, h: int, w: int) -> Tensor:
    """An uninitialised image of a few channels, each a plane."""
    return torch.empty((b, c, h, w), dtype=like.dtype, device=like.device)


def upsampled_conv(x: Tensor, folded: Tensor, bias: Tensor) -> Tensor:
    """The convolution of the upsampled `x`, from the weights that `fold` gives."""
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
