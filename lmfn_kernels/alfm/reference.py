"""The formulas of the ops in plain PyTorch. Shapes as in `op.py`."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SHORTEST = 1e-12  # lower bound of the squared length of a row, so that a row of zeros has cosine 0 with every other


def _rows(by_layer: bool) -> str:
    return "b n (c h w)" if by_layer else "b (n c) (h w)"


def as_rows(maps: Sequence[Tensor], by_layer: bool) -> Tensor:
    """F [B, NC, HW], whose rows are the channels of all layers, or [B, N, CHW] with layers as rows."""
    f = torch.stack(list(maps), 1)
    return rearrange(f, f"b n c h w -> {_rows(by_layer)}")


def layer_gram(maps: Sequence[Tensor], by_layer: bool, side: int = 0) -> Tensor:
    """F F^T of the maps, [B, R, R], or with `side` that of each block, [B, rows, columns, R, R]."""
    if side:
        strips = zip(*(x.split(side, 2) for x in maps), strict=True)
        blocks = [zip(*(x.split(side, 3) for x in strip), strict=True) for strip in strips]
        return torch.stack([torch.stack([layer_gram(f, by_layer) for f in row], 1) for row in blocks], 1)
    with torch.autocast(maps[0].device.type, enabled=False):
        f = as_rows(maps, by_layer)
        f = f.to(torch.promote_types(f.dtype, torch.float32))
        return f @ f.mT


def attention_matrix(gram: Tensor, temperature: Tensor | None, by_layer: bool) -> Tensor:
    """M, row by row: softmax(E), or by layers softmax(rowmax(E) - E); E is F F^T, or its cosines times
    `temperature`."""
    e = gram
    if temperature is not None:
        length = inverse_lengths(gram)
        e = temperature.to(gram.dtype) * gram * length[:, :, None] * length[:, None, :]
    return torch.softmax(e.amax(dim=-1, keepdim=True) - e if by_layer else e, dim=-1)


def inverse_lengths(gram: Tensor) -> Tensor:
    """One over the length of each row of F, [B, R]: the squared lengths are the diagonal of F F^T."""
    return gram.diagonal(dim1=1, dim2=2).clamp_min(SHORTEST).rsqrt()


def _shares(size: int, side: int, windows: int, like: Tensor) -> Tensor:
    """The share of each window at each pixel along an axis, linear between the centres, [windows, size]."""
    centre = torch.arange(size, dtype=like.dtype, device=like.device) + 0.5
    nearest = (centre / side - 1).clamp(0, windows - 1)
    return (1 - (nearest - torch.arange(windows, device=like.device)[:, None]).abs()).clamp_min(0)


def _reach(i: int, windows: int, side: int, size: int) -> tuple[int, int]:
    """The range of pixels along an axis at which window i has a share; that of the last window extends to the edge."""
    return i * side, size if i == windows - 1 else (i + 2) * side


def layer_apply(
    maps: Sequence[Tensor],
    gram: Tensor,
    theta: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: Tensor | None,
    by_layer: bool,
    slope: float,
    side: int = 0,
) -> Tensor:
    _, c, h, w = maps[0].shape

    def attended(maps: Sequence[Tensor], gram: Tensor) -> Tensor:
        """theta M F, as a map [B, NC, H, W]."""
        f = as_rows(maps, by_layer)
        mixed = theta * (attention_matrix(gram, temperature, by_layer).to(f.dtype) @ f)
        return rearrange(mixed, f"{_rows(by_layer)} -> b (n c) h w", c=c, h=maps[0].shape[2], w=maps[0].shape[3])

    mixed = torch.cat(list(maps), 1)
    if side == 0:
        mixed = mixed + attended(maps, gram)
    else:
        windows = gram
        for axis in (1, 2):  # a window is 2 x 2 blocks
            n = windows.shape[axis]
            windows = windows if n == 1 else windows.narrow(axis, 0, n - 1) + windows.narrow(axis, 1, n - 1)
        _, n, m, _, _ = windows.shape
        down, across = _shares(h, side, n, mixed), _shares(w, side, m, mixed)
        for i, j in itertools.product(range(n), range(m)):
            (top, bottom), (left, right) = _reach(i, n, side, h), _reach(j, m, side, w)
            share = down[i, top:bottom, None] * across[j, left:right]
            part = share * attended([x[:, :, top:bottom, left:right] for x in maps], windows[:, i, j])
            mixed = mixed + F.pad(part, (left, w - right, top, h - bottom))
    return F.leaky_relu(F.conv2d(mixed, weight, bias), slope)
