"""Attention in windows: how an image is cut, and what each of its pixels takes of the windows near it.

An image is cut into blocks from its upper left corner; the last row and the last column of them may be partial. A
window is 2 x 2 blocks, so that each block's F F^T is summed once and counts in up to four windows; along an axis with
one block there is one window. Window i has its centre at the boundary of its two blocks, and a pixel takes the
attention of the four windows around it in bilinear shares, beyond the outermost centres that of the nearest.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """The blocks of an image. One block is the whole image, and attention is that of the paper."""

    height: int
    """Pixels of a block; the last one may have fewer."""
    width: int
    rows: int
    """Blocks down the image."""
    columns: int

    @classmethod
    def of(cls, x: Tensor, side: int) -> "Grid":
        """The blocks of `side` x `side` pixels of [B, C, H, W]; with `side` 0, or where one window holds it, one."""
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
    """F F^T of windows [B * windows, R, R], row by row, from those of the blocks [B * blocks, R, R]."""
    if grid.blocks == 1:
        return of_blocks
    found: Tensor = of_blocks.unflatten(0, (-1, grid.rows, grid.columns))
    if grid.rows > 1:
        found = found[:, :-1] + found[:, 1:]
    if grid.columns > 1:
        found = found[:, :, :-1] + found[:, :, 1:]
    return found.flatten(0, 2)


def window_sums_backward(of_windows: Tensor, grid: Grid) -> Tensor:
    """The gradient of blocks from that of windows: each block counts in every window that it is in."""
    if grid.blocks == 1:
        return of_windows
    found: Tensor = of_windows.unflatten(0, (-1, grid.window_rows, grid.window_columns))
    for axis, blocks in ((1, grid.rows), (2, grid.columns)):
        if blocks > 1:
            nothing = torch.zeros_like(found.narrow(axis, 0, 1))
            found = torch.cat([found, nothing], axis) + torch.cat([nothing, found], axis)
    return found.flatten(0, 2)


def windows_from_quarters(quarters: Tensor, grid: Grid) -> Tensor:
    """Sums of windows [B * windows, ...] from those that the blocks have for the windows before and behind them.

    `quarters` [B * blocks * 4, ...]: for each block its window up and left, up, left, and the one named as itself.
    """
    parts = quarters.unflatten(0, (-1, grid.rows, grid.columns, 2, 2))
    n, m = grid.window_rows, grid.window_columns
    parts = _joined(parts, 1, 3, n)
    return _joined(parts, 2, 3, m).flatten(0, 2)


def _joined(parts: Tensor, blocks: int, which: int, n: int) -> Tensor:
    """Along one axis: window i is the second one of block i, and the first one of block i + 1, if there is one."""
    before, behind = parts.unbind(which)
    own = behind.narrow(blocks, 0, n)
    return own + before.narrow(blocks, 1, n) if before.shape[blocks] > 1 else own


def shares(first: int, size: int, side: int, window: int, count: int, like: Tensor) -> Tensor:
    """What each of `size` pixels from `first` on takes of one of `count` windows along an axis, [size], in [0, 1]."""
    centre = torch.arange(first, first + size, dtype=like.dtype, device=like.device) + 0.5
    nearest = (centre / side - 1).clamp(0, count - 1)
    return (1 - (nearest - window).abs()).clamp_min(0)
