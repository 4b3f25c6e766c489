"""The sampling grids of bilinear upsampling (align_corners False).

Stretched, the smaller map covers the larger one exactly, so the ratio depends on both sizes. On the fixed grid, every
pixel becomes `GRID` by `GRID` pixels, starting at the upper left corner, for any sizes: if the result is too small, the
last row and column are repeated; if it is too large, it is cropped.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 6
"""The product of the strides of ESA's convolution, 2, and pooling, 3."""


def ratio(size: int, low: int, fixed_grid: bool) -> tuple[int, int]:
    """Along one axis: (to, from), such that `from` pixels of the smaller map become `to` pixels of the larger one."""
    return (GRID, 1) if fixed_grid else (size, low)


def upsample(v: Tensor, size: Sequence[int], fixed_grid: bool) -> Tensor:
    """`v` [B, C, h, w] upsampled to the height and width `size`, stretched or on the fixed grid."""
    if not fixed_grid:
        return F.interpolate(v, size=size, mode="bilinear", align_corners=False)
    v = F.interpolate(v, scale_factor=GRID, mode="bilinear", align_corners=False)
    bottom, right = (max(n - low, 0) for n, low in zip(size, v.shape[2:], strict=True))
    return F.pad(v, (0, right, 0, bottom), mode="replicate")[:, :, : size[0], : size[1]]


def upsample_rows(v: Tensor, size: Sequence[int], fixed_grid: bool, first: int, last: int) -> Tensor:
    """Rows `first` to `last` (exclusive) of `upsample`'s result, equal up to rounding."""
    to, source = ratio(size[0], v.shape[2], fixed_grid)
    rows = torch.arange(first, last, device=v.device, dtype=torch.float32)
    place = ((rows + 0.5) * (source / to) - 0.5).clamp(0, v.shape[2] - 1)
    top = place.long()
    part = (place - top)[:, None].to(v.dtype)
    v = torch.lerp(v[:, :, top], v[:, :, (top + 1).clamp(max=v.shape[2] - 1)], part)
    width = GRID * v.shape[3] if fixed_grid else size[1]
    v = F.interpolate(v, size=(last - first, width), mode="bilinear", align_corners=False)
    return F.pad(v, (0, max(size[1] - width, 0), 0, 0), mode="replicate")[:, :, :, : size[1]]
