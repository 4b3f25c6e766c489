"""Upsampling folded into the weights of the convolution after it; the same for all backends.

Along one axis, up = up2(x) has up[2i] = x[i - 1] / 4 + 3 x[i] / 4 and up[2i + 1] = 3 x[i] / 4 + x[i + 1] / 4. So a
3-tap convolution of it has, at every place i of x, two results (2i and 2i + 1), each again of three taps of x: along
both axes a 3x3 convolution of x with four times the results, which a pixel shuffle puts in their places.

At the ends up repeats its last pixel (up[0] = x[0]), and the convolution pads with zeros (up[-1] = 0). With x padded by
zeros, up[0] is x[0] / 4 short, and up[-1] is x[0] / 4 too much: two more sets of taps make that good, of which only
the middle one is not zero, and which are for the first and for the last place alone.
"""

from itertools import product

import torch
from torch import Tensor

from lmfn_kernels.runtime.layout import constant

PLACES = (slice(None), slice(0, 1), slice(-1, None))
"""Along one axis: everywhere, the first place, the last place."""

PARTS = [(rows, columns) for rows in PLACES for columns in PLACES]

# [place, result, tap of x, tap of the weight], in quarters
AXIS = (
    (((3, 1, 0), (1, 3, 3), (0, 0, 1)), ((1, 0, 0), (3, 3, 1), (0, 1, 3))),
    (((0, 0, 0), (-1, 1, 0), (0, 0, 0)), ((0, 0, 0), (1, 0, 0), (0, 0, 0))),
    (((0, 0, 0), (0, 0, 1), (0, 0, 0)), ((0, 0, 0), (0, 1, -1), (0, 0, 0))),
)


BOTH_AXES = tuple(
    tuple(t_row * t_column / 16 for t_row in of_row for t_column in of_column)
    for rows, columns in product(AXIS, AXIS)
    for a, b in product(range(2), range(2))
    for of_row, of_column in product(rows[a], columns[b])
)
"""[place and place, result and result, tap of x and tap of x; taps of the weight]: exact in every dtype."""


def fold_by_axes(weight: Tensor) -> Tensor:
    """`fold_upsampling` as [rows' place, columns' place, result's row, its column, N, C, 3, 3], in float32 at least."""
    n, c = weight.shape[:2]
    dtype = torch.promote_types(weight.dtype, torch.float32)
    folded = constant(BOTH_AXES, dtype, weight) @ weight.to(dtype).reshape(n * c, 9).T
    return folded.view(3, 3, 2, 2, 3, 3, n, c).permute(0, 1, 2, 3, 6, 7, 4, 5)


def fold_upsampling(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A weight [N, C, 3, 3] of the upsampled map as nine of the map itself, [9, 4N, C, 3, 3], one for each of PARTS.

    Summed in float32 at least, and rounded to `dtype`, by default the weight's.
    """
    folded = fold_by_axes(weight).permute(0, 1, 4, 2, 3, 5, 6, 7)
    return folded.reshape(9, 4 * weight.shape[0], *weight.shape[1:]).to(dtype or weight.dtype)


def unfold_gradient(gradient: Tensor) -> Tensor:
    """The gradient [N, C, 3, 3] of the weight, from that of `fold_upsampling`'s result."""
    n, c = gradient.shape[1] // 4, gradient.shape[2]
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    by_axes = gradient.reshape(3, 3, n, 2, 2, c, 3, 3).permute(2, 5, 0, 1, 3, 4, 6, 7).to(dtype)
    return (by_axes.reshape(n * c, 324) @ constant(BOTH_AXES, dtype, gradient)).view(n, c, 3, 3)
