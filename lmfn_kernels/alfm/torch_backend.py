"""ALFM in PyTorch, for CPUs, MPS and sizes without a kernel; the same functions as `triton_backend.py`.

Pixels are gathered from the maps in chunks that fit into the cache, in float32 (float64 for float64) and in the memory
order of the first map (channels or pixels contiguous). Apart from the results, which have the layout of the first map,
nothing of the size of the maps is allocated.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lmfn_kernels.alfm import attention_matrix
from lmfn_kernels.alfm.windows import Grid, shares, window_sums
from lmfn_kernels.runtime.gradients import PendingMask
from lmfn_kernels.runtime.torch_private import FakeTensor

__all__ = [
    "as_kernel_image",
    "both_sides",
    "fold_into_weight",
    "fold_into_weight_backward",
    "gram",
    "mix",
    "products",
]

CHUNK = 4096  # pixels


class Chunk(NamedTuple):
    """Pixels of one block of one image."""

    image: int
    rows: slice
    columns: slice
    block: int
    """Index of the block, counted over all images."""


def as_kernel_image(x: Tensor) -> Tensor:
    """`x`: the other functions take any layout."""
    return x


def gram(maps: Sequence[Tensor], by_layer: bool, grid: Grid, *, of_windows: bool) -> Tensor:
    """F F^T of every window or block: [B * windows, NC, NC] or, with layers as rows, [B * windows, N, N]."""
    x, n, c = maps[0], len(maps), maps[0].shape[1]
    out = _zeros(x, x.shape[0] * grid.blocks, n if by_layer else n * c, n if by_layer else n * c)
    for chunk, buffer in _chunks(x, n * c, grid):
        f = _gather(buffer, maps, chunk)
        if by_layer:
            f = f.unflatten(1, (n, c)).transpose(0, 1).flatten(1)
            out[chunk.block].addmm_(f, f.T)
        else:
            for j in range(0, n * c, c):  # the upper half, layer by layer
                out[chunk.block, j : j + c, j:].addmm_(f[:, j : j + c].T, f[:, j:])
    # Mirrored even if both halves were computed: a matrix times its transpose is symmetric only up to rounding.
    of_blocks = out.triu() + out.triu(1).mT
    return window_sums(of_blocks, grid) if of_windows else of_blocks


def products(gradient: PendingMask, maps: Sequence[Tensor], grid: Grid) -> tuple[Tensor, Tensor]:
    """G F^T of every window, weighted by its shares, [B * windows, O, NC], and the sum of G over pixels [O].

    G is the gradient before the activation.
    """
    x, o, size = maps[0], gradient[0].shape[1], len(maps) * maps[0].shape[1]
    out, total = _zeros(x, x.shape[0] * grid.windows, o, size), _zeros(x, o)
    for chunk, buffer in _chunks(x, o + size, grid):
        both = _gather(buffer, maps, chunk, gradient)
        for window, share in _windows(chunk, grid, both):
            g = both[:, :o] if share is None else both[:, :o] * share
            out[window].addmm_(g.T, both[:, o:])
        total += both[:, :o].sum(0)
    return out, total


def mix(
    maps: Sequence[Tensor],
    outputs: int,
    grid: Grid,
    *,
    window_matrix: Tensor | None = None,
    block_matrix: Tensor | None = None,
    bias: Tensor | None = None,
    slope: float = 1.0,
    gradient: PendingMask | None = None,
) -> list[Tensor]:
    """LR(products of the gradient or the maps with matrices + bias), see `ALFMBackend`."""
    x = gradient[0] if gradient else maps[0]
    window_matrix, block_matrix = (
        None if m is None else m.transpose(1, 2).flatten(2) for m in (window_matrix, block_matrix)
    )
    if grid.windows == 1 and grid.blocks == 1 and window_matrix is not None and block_matrix is not None:
        window_matrix, block_matrix = torch.cat([window_matrix, block_matrix], dim=1), None  # one product
    matrices = [m for m in (window_matrix, block_matrix) if m is not None]
    of_windows = 0 if window_matrix is None else window_matrix.shape[1]
    size, width = sum(m.shape[1] for m in matrices), matrices[0].shape[2]
    b, c, (h, w) = x.shape[0], width // outputs, x.shape[2:]
    order = torch.contiguous_format if _planar(x) else torch.channels_last
    out = [torch.empty((b, c, h, w), dtype=x.dtype, device=x.device, memory_format=order) for _ in range(outputs)]
    for chunk, buffer in _chunks(x, size + width, grid):
        inputs, outcome = buffer.split((size, width), 1)
        f = _gather(inputs, maps, chunk, gradient)
        y = outcome[: len(f)]
        if block_matrix is not None:
            torch.mm(f[:, of_windows:], block_matrix[chunk.block], out=y)
        if window_matrix is not None:
            if grid.windows == 1 and block_matrix is None:
                torch.mm(f[:, :of_windows], window_matrix[chunk.image], out=y)
            else:
                part = _between_windows(f[:, :of_windows], window_matrix, chunk, grid)
                y.copy_(part) if block_matrix is None else y.add_(part)
        if bias is not None:
            y += bias
        F.leaky_relu_(y, slope)
        for out_j, y_j in zip(out, y.split(c, 1), strict=True):
            place = _pixels(out_j, chunk)
            place.copy_(y_j.view(place.shape))
    return out


def fold_into_weight(
    gram: Tensor,
    theta: Tensor,
    weight: Tensor,
    temperature: Tensor | None,
    by_layer: bool,
    dtype: torch.dtype,  # noqa: ARG001
) -> Tensor:
    """P [B, O, NC], as in `attention_matrix.py`."""
    return attention_matrix.fold_into_weight(gram, theta, weight, temperature, by_layer)


def fold_into_weight_backward(
    dp: Tensor,
    gram: Tensor,
    theta: Tensor,
    weight: Tensor,
    temperature: Tensor | None,
    by_layer: bool,
    maps: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of E, theta, the weight and the temperature, as in `attention_matrix.py`, and P by maps."""
    matrix = None
    if maps:
        p = attention_matrix.fold_into_weight(gram, theta, weight, temperature, by_layer)
        matrix = attention_matrix.by_maps(p, len(maps))
    return *attention_matrix.fold_into_weight_backward(dp, gram, theta, weight, temperature, by_layer), matrix


def both_sides(de: Tensor, maps: Sequence[Tensor]) -> Tensor:
    size = len(maps) * maps[0].shape[1]
    return attention_matrix.by_maps(attention_matrix.both_sides(de, size), len(maps))


def _zeros(like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def _planar(x: Tensor) -> bool:
    """Whether pixels of a row, instead of channels of a pixel, are contiguous."""
    return x.stride(3) == 1 and x.stride(1) != 1


def _windows(chunk: Chunk, grid: Grid, like: Tensor) -> Iterator[tuple[int, Tensor | None]]:
    """The windows of a chunk, numbered over all images, with their shares at its pixels, [pixels, 1].

    None in place of the shares means that all are 1.
    """
    if grid.windows == 1:
        yield chunk.image, None
        return
    rows, columns = _window_shares(chunk, grid, like)
    for i, down in rows.items():
        for j, across in columns.items():
            yield _number(chunk, grid, i, j), (down[:, None] * across).view(-1, 1)


def _window_shares(chunk: Chunk, grid: Grid, like: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """The rows and columns of windows of a chunk, with their shares at its rows and columns of pixels."""
    found = []
    of_block = divmod(chunk.block % grid.blocks, grid.columns)
    counts = grid.window_rows, grid.window_columns
    for block, count, pixels, side in zip(of_block, counts, (chunk.rows, chunk.columns), grid[:2], strict=True):
        size = pixels.stop - pixels.start
        windows = range(max(block - 1, 0), min(block, count - 1) + 1)
        found.append({i: shares(pixels.start, size, side, i, count, like) for i in windows})
    return found[0], found[1]


def _number(chunk: Chunk, grid: Grid, row: int, column: int) -> int:
    """The index of a window, counted over all images."""
    return (chunk.image * grid.window_rows + row) * grid.window_columns + column


def _between_windows(f: Tensor, matrices: Tensor, chunk: Chunk, grid: Grid) -> Tensor:
    """The bilinear mean of the windows' products, [pixels, K] times [B * windows, K, O]."""
    if grid.windows == 1:
        return f @ matrices[chunk.image]
    rows, columns = _window_shares(chunk, grid, f)
    # One product with up to four matrices side by side is faster than four.
    matrix = torch.cat([matrices[_number(chunk, grid, i, j)] for i in rows for j in columns], dim=1)
    height = chunk.rows.stop - chunk.rows.start
    y = (f @ matrix).view(height, -1, len(rows), len(columns), matrices.shape[2])
    if len(rows) > 1:
        y = torch.lerp(y[:, :, :1], y[:, :, 1:], rows[max(rows)].view(-1, 1, 1, 1, 1))
    if len(columns) > 1:
        y = torch.lerp(y[:, :, :, :1], y[:, :, :, 1:], columns[max(columns)].view(1, -1, 1, 1, 1))
    return y.reshape(-1, matrices.shape[2])


def _chunks(x: Tensor, width: int, grid: Grid) -> Iterator[tuple[Chunk, Tensor]]:
    """Chunks of at most CHUNK pixels of a block, either whole rows or part of one, and a buffer [CHUNK, width] for
    them.

    The chunks, and therefore the bits of an image's sums, do not depend on the batch. There are none for fake tensors.
    """
    if isinstance(x, FakeTensor):
        return
    b, _, h, w = x.shape
    columns = min(grid.width, CHUNK)
    rows = CHUNK // columns
    n, dtype = min(CHUNK, grid.height * grid.width), torch.promote_types(x.dtype, torch.float32)
    strides = (1, n) if _planar(x) else (width, 1)
    buffer = torch.empty_strided((n, width), strides, dtype=dtype, device=x.device)
    for block in range(b * grid.blocks):
        i, j = divmod(block % grid.blocks, grid.columns)
        bottom, right = min(h, (i + 1) * grid.height), min(w, (j + 1) * grid.width)
        for row in range(i * grid.height, bottom, rows):
            for column in range(j * grid.width, right, columns):
                pixels = slice(row, min(row + rows, bottom)), slice(column, min(column + columns, right))
                yield Chunk(block // grid.blocks, *pixels, block), buffer


def _pixels(x: Tensor, chunk: Chunk) -> Tensor:
    """The chunk's pixels of an image, [rows, columns, C]."""
    return x[chunk.image, :, chunk.rows, chunk.columns].permute(1, 2, 0)


def _gather(buffer: Tensor, maps: Sequence[Tensor], chunk: Chunk, gradient: PendingMask | None = None) -> Tensor:
    """Copy the gradient before the activation, if any, and the maps into `buffer`, side by side, one row per pixel."""
    g, by, slope = gradient or (None, None, 1.0)
    pixels = [_pixels(x, chunk) for x in ([*maps] if g is None else [g, *maps])]
    height, width = pixels[0].shape[:2]
    rows = buffer[: height * width]
    first = 0
    for p in pixels:
        rows[:, first : first + p.shape[2]].view(p.shape).copy_(p)
        first += p.shape[2]
    if g is not None and by is not None:
        e = rows[:, : g.shape[1]].view(height, width, -1)
        e.copy_(torch.ops.aten.leaky_relu_backward(e, _pixels(by, chunk).to(e.dtype), slope, True))
    return rows
