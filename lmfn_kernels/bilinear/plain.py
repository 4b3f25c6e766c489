"""Bilinear resampling (align_corners False) in plain PyTorch, and its gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lmfn_kernels.conv.plain import layout


def upsample(v: Tensor, y: Tensor) -> Tensor:
    return F.interpolate(v, size=y.shape[2:], mode="bilinear", align_corners=False)


def upsample_backward(g: Tensor, v: Tensor) -> Tensor:
    # As matrices: PyTorch's own is not deterministic on a GPU, and fails where sizes are symbols.
    rows, columns = (_bilinear(g.shape[i], v.shape[i], g) for i in (2, 3))
    return layout((rows.mT @ g.to(rows.dtype) @ columns).to(v.dtype))


def _bilinear(size: int, low: int, like: Tensor) -> Tensor:
    """`[size, low]`: what each of `size` places takes from each of `low` (align_corners False)."""
    twice = ((2 * torch.arange(size, device=like.device) + 1) * low - size).clamp(min=0)[:, None]
    first = (twice // (2 * size)).clamp(max=low - 1)
    part = (twice % (2 * size)).to(torch.promote_types(like.dtype, torch.float32)) / (2 * size)
    place = torch.arange(low, device=like.device)
    return (place == first) * (1 - part) + (place == (first + 1).clamp(max=low - 1)) * part
