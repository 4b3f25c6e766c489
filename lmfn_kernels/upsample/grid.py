"""Where bilinear upsampling (align_corners False) puts the pixels of a smaller map.

Stretched, the smaller map covers the larger one exactly, and the ratio depends on both sizes. On the fixed grid every
pixel becomes `GRID` by `GRID` from the upper left corner on, whatever the sizes; where that is too few, the last row
and column are repeated, and what is too much is cut off.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 6
"""ESA's convolution and pooling take steps of 2 and 3."""


def ratio(size: int, low: int, fixed_grid: bool) -> tuple[int, int]:
    """Along one axis: how many pixels of the larger map come from how many of the smaller."""
    return (GRID, 1) if fixed_grid else (size, low)


def upsample(v: Tensor, size: Sequence[int], fixed_grid: bool) -> Tensor:
    """`v` [B, C, h, w] at this height and width, on the fixed grid or stretched."""
    if not fixed_grid:
        return F.interpolate(v, size=size, mode="bilinear", align_corners=False)
    v = F.interpolate(v, scale_factor=GRID, mode="bilinear", align_corners=False)
    bottom, right = (max(n - low, 0) for n, low in zip(size, v.shape[2:], strict=True))
    return F.pad(v, (0, right, 0, bottom), mode="replicate")[:, :, : size[0], : size[1]]


def upsample_rows(v: Tensor, size: Sequence[int], fixed_grid: bool, first: int, last: int) -> Tensor:
    """Rows `first` to `last` (exclusive) of what `upsample` gives, to the rounding."""
    to, source = ratio(size[0], v.shape[2], fixed_grid)
    rows = torch.arange(first, last, device=v.device, dtype=torch.float32)
    place = ((rows + 0.5) * (source / to) - 0.5).clamp(0, v.shape[2] - 1)
    top = place.long()
    part = (place - top)[:, None].to(v.dtype)
    v = torch.lerp(v[:, :, top], v[:, :, (top + 1).clamp(max=v.shape[2] - 1)], part)
    width = GRID * v.shape[3] if fixed_grid else size[1]
    v = F.interpolate(v, size=(last - first, width), mode="bilinear", align_corners=False)
    return F.pad(v, (0, max(size[1] - width, 0), 0, 0), mode="replicate")[:, :, :, : size[1]]
