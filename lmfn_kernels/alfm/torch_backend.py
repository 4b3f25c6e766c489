"""ALFM in PyTorch operations, for CPUs, MPS and sizes without a kernel; same functions as `triton_backend.py`.

A chunk of pixels at a time is gathered from the maps in float32 (float64 for float64), in the order in which the first
map lies, channels or pixels side by side, and multiplied while it is in the cache. So nothing of the maps' size is made
beside what is returned, which lies as the first map does.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lmfn_kernels.alfm.attention_matrix import fold_into_weight, fold_into_weight_backward
from lmfn_kernels.runtime.gradients import PendingMask

__all__ = ["fold_into_weight", "fold_into_weight_backward", "gram", "layout", "mix", "products"]

CHUNK = 4096  # pixels

Chunk = tuple[int, slice, slice]


def layout(x: Tensor) -> Tensor:
    """`x` as the pieces take it: as it is."""
    return x


def gram(maps: Sequence[Tensor], by_layer: bool) -> Tensor:
    """F F^T: [B, NC, NC] or, of whole layers, [B, N, N]."""
    x, n, c = maps[0], len(maps), maps[0].shape[1]
    out = _zeros(x, x.shape[0], n if by_layer else n * c, n if by_layer else n * c)
    for chunk, buffer in _chunks(x, n * c):
        f = _gather(buffer, maps, chunk)
        if by_layer:
            f = f.unflatten(1, (n, c)).transpose(0, 1).flatten(1)
            out[chunk[0]].addmm_(f, f.T)
        else:
            for j in range(0, n * c, c):  # the upper half, a layer at a time
                out[chunk[0], j : j + c, j:].addmm_(f[:, j : j + c].T, f[:, j:])
    # Mirrored also where a product made both halves: a matrix times its transpose is symmetric to rounding only.
    return out.triu() + out.triu(1).mT


def products(gradient: PendingMask, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """G F^T [B, O, NC] and the sum of G [O], with G the gradient before the activation."""
    x, o, size = maps[0], gradient[0].shape[1], len(maps) * maps[0].shape[1]
    out, total = _zeros(x, x.shape[0], o, size), _zeros(x, o)
    for chunk, buffer in _chunks(x, o + size):
        both = _gather(buffer, maps, chunk, gradient)
        out[chunk[0]].addmm_(both[:, :o].T, both[:, o:])
        total += both[:, :o].sum(0)
    return out, total


def mix(
    maps: Sequence[Tensor],
    matrix: Tensor,
    outputs: int,
    *,
    bias: Tensor | None = None,
    slope: float = 1.0,
    gradient: PendingMask | None = None,
) -> list[Tensor]:
    """The gradient (before the activation) and the maps side by side times `matrix` [B, inputs, outputs * channels].

    Plus bias, through a leaky ReLU, as so many images.
    """
    x = gradient[0] if gradient else maps[0]
    b, c, (h, w) = x.shape[0], matrix.shape[2] // outputs, x.shape[2:]
    order = torch.contiguous_format if _planar(x) else torch.channels_last
    out = [torch.empty((b, c, h, w), dtype=x.dtype, device=x.device, memory_format=order) for _ in range(outputs)]
    for chunk, buffer in _chunks(x, sum(matrix.shape[1:])):
        inputs, outcome = buffer.split(matrix.shape[1:], 1)
        f = _gather(inputs, maps, chunk, gradient)
        y = torch.mm(f, matrix[chunk[0]], out=outcome[: len(f)])
        if bias is not None:
            y += bias
        F.leaky_relu_(y, slope)
        for out_j, y_j in zip(out, y.split(c, 1), strict=True):
            place = _pixels(out_j, chunk)
            place.copy_(y_j.view(place.shape))
    return out


def _zeros(like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def _planar(x: Tensor) -> bool:
    """Whether a row's pixels lie side by side, and not a pixel's channels."""
    return x.stride(3) == 1 and x.stride(1) != 1


def _chunks(x: Tensor, width: int) -> Iterator[tuple[Chunk, Tensor]]:
    """Every image's pixels, at most CHUNK at a time, whole rows or part of one, and a matrix [pixels, width] for them.

    The chunks do not depend on the batch, so neither does an image's sum. Fake tensors have shapes only.
    """
    if isinstance(x, FakeTensor):
        return
    b, _, h, w = x.shape
    columns = min(w, CHUNK)
    rows = CHUNK // columns
    n, dtype = min(CHUNK, h * w), torch.promote_types(x.dtype, torch.float32)
    strides = (1, n) if _planar(x) else (width, 1)
    buffer = torch.empty_strided((n, width), strides, dtype=dtype, device=x.device)
    for i in range(b):
        for row in range(0, h, rows):
            for column in range(0, w, columns):
                yield (i, slice(row, row + rows), slice(column, column + columns)), buffer


def _pixels(x: Tensor, chunk: Chunk) -> Tensor:
    """[rows, columns, C]."""
    i, rows, columns = chunk
    return x[i, :, rows, columns].permute(1, 2, 0)


def _gather(buffer: Tensor, maps: Sequence[Tensor], chunk: Chunk, gradient: PendingMask | None = None) -> Tensor:
    """The channels of the gradient before the activation, and of the maps, side by side, a pixel a row, in `buffer`."""
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
