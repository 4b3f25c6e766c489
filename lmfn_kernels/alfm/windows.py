"""Attention in windows: how an image is divided, and the weights of nearby windows at each pixel.

An image is divided into blocks, starting at its upper left corner; blocks of the last row and column may be smaller. A
window is 2 x 2 blocks, so that F F^T is summed once per block and added to up to four windows; along an axis with one
block there is one window. Along an axis, window i is centred at the boundary between blocks i and i + 1. Results are
interpolated bilinearly between the four windows around a pixel; beyond the outermost centres, the nearest one is used.
The weight of a window at a pixel is its share.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """The blocks of an image. A single block is the whole image, with the attention of the paper."""

    height: int
    """Side of a block in pixels; the last one may be smaller."""
    width: int
    rows: int
    """The number of blocks vertically."""
    columns: int

    @classmethod
    def of(cls, x: Tensor, side: int) -> "Grid":
        """The blocks of `side` x `side` pixels of an image [B, C, H, W]; a single block if `side` is 0 or the image
        fits into one window."""
        height, width = x.shape[2:]
        if side == 0 or max(height, width) <= 2 * side:
            return cls(height, width, 1, 1)
        return cls(side, side, -(-height // side), -(-width // side))

    @property
    def blocks(self) -> int:
        return self.rows * self.columns

    @property
    def window_rows(self) -> int:
        return max(1, self.rows - 1)

    @property
    def window_columns(self) -> int:
        return max(1, self.columns - 1)

    @property
    def windows(self) -> int:
        return self.window_rows * self.window_columns


def window_sums(of_blocks: Tensor, grid: Grid) -> Tensor:
    """F F^T of windows [B * windows, R, R], in row-major order, from F F^T of blocks [B * blocks, R, R]."""
    if grid.blocks == 1:
        return of_blocks
    found: Tensor = of_blocks.unflatten(0, (-1, grid.rows, grid.columns))
    if grid.rows > 1:
        found = found[:, :-1] + found[:, 1:]
    if grid.columns > 1:
        found = found[:, :, :-1] + found[:, :, 1:]
    return found.flatten(0, 2)


def window_sums_backward(of_windows: Tensor, grid: Grid) -> Tensor:
    """The gradient of F F^T of blocks from that of windows: each block sums those of the windows that contain it."""
    if grid.blocks == 1:
        return of_windows
    found: Tensor = of_windows.unflatten(0, (-1, grid.window_rows, grid.window_columns))
    for axis, blocks in ((1, grid.rows), (2, grid.columns)):
        if blocks > 1:
            nothing = torch.zeros_like(found.narrow(axis, 0, 1))
            found = torch.cat([found, nothing], axis) + torch.cat([nothing, found], axis)
    return found.flatten(0, 2)


def windows_from_quarters(quarters: Tensor, grid: Grid) -> Tensor:
    """Sums per window [B * windows, ...] from the sums over each block for the four windows that may contain it.

    `quarters` [B * blocks * 4, ...]: for block (i, j), windows (i - 1, j - 1), (i - 1, j), (i, j - 1) and (i, j).
    """
    parts = quarters.unflatten(0, (-1, grid.rows, grid.columns, 2, 2))
    n, m = grid.window_rows, grid.window_columns
    parts = _joined(parts, 1, 3, n)
    # With one column of blocks nothing is added, and the result is a view with gaps, which the kernels do not take.
    return _joined(parts, 2, 3, m).flatten(0, 2).contiguous()


def _joined(parts: Tensor, blocks: int, which: int, n: int) -> Tensor:
    """Along one axis: window i is the second of block i, and the first of block i + 1 if there is such a block."""
    before, behind = parts.unbind(which)
    own = behind.narrow(blocks, 0, n)
    return own + before.narrow(blocks, 1, n) if before.shape[blocks] > 1 else own


def shares(first: int, size: int, side: int, window: int, count: int, like: Tensor) -> Tensor:
    """The share of window number `window` of `count` along an axis at pixels `first` to `first + size`, [size], in
    [0, 1]; `side` is the side of a block in pixels, `like` gives dtype and device."""
    centre = torch.arange(first, first + size, dtype=like.dtype, device=like.device) + 0.5
    nearest = (centre / side - 1).clamp(0, count - 1)
    return (1 - (nearest - window).abs()).clamp_min(0)
