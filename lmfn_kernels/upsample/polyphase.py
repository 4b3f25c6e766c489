"""Upsampling folded into the weights of the convolution after it; the same for all backends.

Along one axis, up = up2(x) has up[2i] = x[i - 1] / 4 + 3 x[i] / 4 and up[2i + 1] = 3 x[i] / 4 + x[i + 1] / 4. A 3-tap
convolution of up therefore has two results for every position i of x (2i and 2i + 1), each a weighted sum of three
values of x. Along both axes this is a 3x3 convolution of x with four times as many outputs, which a pixel shuffle
rearranges.

At the edges, up repeats its last value (up[0] = x[0]) and the convolution pads with zeros (up[-1] = 0). With x padded
by zeros instead, up[0] is too small by x[0] / 4, and up[-1] too large by x[0] / 4. Two more sets of taps, one for the
first position and one for the last, correct this; only their middle tap, that of x[0] or of the last value, is not
zero.

The kernel of the forward pass computes two positions along each axis at once, from four values of x (`BY_PAIRS`): it
reads every pixel of x four times rather than nine.
"""

from itertools import product

import torch
from torch import Tensor

from lmfn_kernels.runtime.layout import constant

PLACES = (slice(None), slice(0, 1), slice(-1, None))
"""Along one axis: all positions, the first, the last."""

PARTS = [(rows, columns) for rows in PLACES for columns in PLACES]
"""Along both axes: the convolution of the whole map, and the corrections of its edges and corners."""

# [place, result, tap of x, tap of the weight], in quarters
AXIS = (
    (((3, 1, 0), (1, 3, 3), (0, 0, 1)), ((1, 0, 0), (3, 3, 1), (0, 1, 3))),
    (((0, 0, 0), (-1, 1, 0), (0, 0, 0)), ((0, 0, 0), (1, 0, 0), (0, 0, 0))),
    (((0, 0, 0), (0, 0, 1), (0, 0, 0)), ((0, 0, 0), (0, 1, -1), (0, 0, 0))),
)


BY_TAPS = tuple(
    tuple(tuple(t / 4 for t in AXIS[place][result][tap]) for result in range(2))
    for place, tap in ((0, 0), (0, 1), (0, 2), (1, 1), (2, 1))
)
"""`AXIS` as [tap of x, result, tap of the weight], without the taps that are zero: taps 0 to 2 exist everywhere, 3 only
at the first position, 4 only at the last."""

OF_TAPS = tuple(
    tuple(t_row * t_column for t_row in of_row for t_column in of_column)
    for row, column in product(BY_TAPS, BY_TAPS)
    for of_row, of_column in product(row, column)
)
"""`BY_TAPS` along both axes, as a matrix [taps of x and results; taps of the weight]."""

BOTH_AXES = tuple(
    tuple(t_row * t_column / 16 for t_row in of_row for t_column in of_column)
    for rows, columns in product(AXIS, AXIS)
    for a, b in product(range(2), range(2))
    for of_row, of_column in product(rows[a], columns[b])
)
"""`AXIS` along both axes, as a matrix [places, results and taps of x; taps of the weight]: exact in every dtype."""


def _of_pairs() -> tuple[tuple[tuple[float, ...], ...], ...]:
    taps = [[[0.0] * 3 for _ in range(4)] for _ in range(7)]
    for result, tap in product(range(4), range(3)):
        u = result + tap - 1  # up[4i + u], from x[2i + u // 2] and the nearer one of its neighbours
        taps[u // 2 + 1][result][tap] = 0.75
        taps[u // 2 + 1 + (1 if u % 2 else -1)][result][tap] = 0.25
        taps[4][result][tap] = {-1: -0.25, 0: 0.25}.get(u, 0.0)
        taps[5][result][tap] = {3: 0.25, 4: -0.25}.get(u, 0.0)
        taps[6][result][tap] = {1: 0.25, 2: -0.25}.get(u, 0.0)
    return tuple(tuple(map(tuple, of_result)) for of_result in taps)


BY_PAIRS = _of_pairs()
"""Taps of x along one axis for two positions 2i and 2i + 1 at once, [tap of x, result, tap of the weight].

Taps 0 to 3 are those of x[2i - 1] to x[2i + 2], the results 4i to 4i + 3 of the convolution of up. Tap 4 corrects the
first position, 5 the last of an even number of them, 6 that of an odd number, which is the first of its pair.
"""


def fold_upsampling(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """From the weight [N, C, 3, 3] of a convolution of up2(x), the nine weights [9, 4N, C, 3, 3] of convolutions of x.

    There is one per element of `PARTS`, each with padding 1; the sum of their results is `pixel_unshuffle` of the
    convolution's result. Summed in float32 or more precise, then rounded to `dtype`, by default the weight's.
    """
    n, c = weight.shape[:2]
    wide = torch.promote_types(weight.dtype, torch.float32)
    folded = constant(BOTH_AXES, wide, weight) @ weight.to(wide).reshape(n * c, 9).T
    by_parts = folded.view(9, 2, 2, 3, 3, n, c).permute(0, 5, 1, 2, 6, 3, 4)
    return by_parts.reshape(9, 4 * n, c, 3, 3).to(dtype or weight.dtype)


def unfold_gradient(gradient: Tensor) -> Tensor:
    """The gradient [N, C, 3, 3] of the weight, from the gradient [9, 4N, C, 3, 3] of `fold_upsampling`'s result."""
    n, c = gradient.shape[1] // 4, gradient.shape[2]
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    by_axes = gradient.reshape(3, 3, n, 2, 2, c, 3, 3).permute(2, 5, 0, 1, 3, 4, 6, 7).to(dtype)
    return (by_axes.reshape(n * c, 324) @ constant(BOTH_AXES, dtype, gradient)).view(n, c, 3, 3)
