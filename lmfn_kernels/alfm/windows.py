"""Attention in windows: the division of an image, and the shares of nearby windows in each pixel.

An image is cut into blocks from its upper left corner; the last row and the last column of them may be partial. A
window is 2 x 2 blocks, so that each block's F F^T is summed once and counts in up to four windows; along an axis with
one block there is one window. Window i is centred at the boundary of its two blocks. A pixel interpolates bilinearly
between the four windows around it, and uses the nearest beyond the outermost centres.
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
        """The blocks of `side` x `side` pixels of [B, C, H, W]; one block for `side` 0, or if one window contains the
        image."""
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
    """F F^T of windows [B * windows, R, R], in row-major order, from those of the blocks [B * blocks, R, R]."""
    if grid.blocks == 1:
        return of_blocks
    found: Tensor = of_blocks.unflatten(0, (-1, grid.rows, grid.columns))
    if grid.rows > 1:
        found = found[:, :-1] + found[:, 1:]
    if grid.columns > 1:
        found = found[:, :, :-1] + found[:, :, 1:]
    return found.flatten(0, 2)


def window_sums_backward(of_windows: Tensor, grid: Grid) -> Tensor:
    """The gradient of blocks from that of windows: each block counts in every window that contains it."""
    if grid.blocks == 1:
        return of_windows
    found: Tensor = of_windows.unflatten(0, (-1, grid.window_rows, grid.window_columns))
    for axis, blocks in ((1, grid.rows), (2, grid.columns)):
        if blocks > 1:
            nothing = torch.zeros_like(found.narrow(axis, 0, 1))
            found = torch.cat([found, nothing], axis) + torch.cat([nothing, found], axis)
    return found.flatten(0, 2)


def windows_from_quarters(quarters: Tensor, grid: Grid) -> Tensor:
    """Sums per window [B * windows, ...] from the sums of blocks for the windows before and after them.

    `quarters` [B * blocks * 4, ...]: for each block the windows up and left, up, left, and the one with its own number.
    """
    parts = quarters.unflatten(0, (-1, grid.rows, grid.columns, 2, 2))
    n, m = grid.window_rows, grid.window_columns
    parts = _joined(parts, 1, 3, n)
    # With one column of blocks nothing is added, and the result would be a view with gaps, which no kernel takes.
    return _joined(parts, 2, 3, m).flatten(0, 2).contiguous()


def _joined(parts: Tensor, blocks: int, which: int, n: int) -> Tensor:
    """Along one axis: window i is the second one of block i, and the first one of block i + 1, if there is one."""
    before, behind = parts.unbind(which)
    own = behind.narrow(blocks, 0, n)
    return own + before.narrow(blocks, 1, n) if before.shape[blocks] > 1 else own


def shares(first: int, size: int, side: int, window: int, count: int, like: Tensor) -> Tensor:
    """The share of one of `count` windows along an axis in each of `size` pixels from `first`, [size], in [0, 1]."""
    centre = torch.arange(first, first + size, dtype=like.dtype, device=like.device) + 0.5
    nearest = (centre / side - 1).clamp(0, count - 1)
    return (1 - (nearest - window).abs()).clamp_min(0)
