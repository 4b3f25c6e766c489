"""Upsampling folded into the weights of the convolution after it; the same for all backends.

Along one axis, up = up2(x) has up[2i] = x[i - 1] / 4 + 3 x[i] / 4 and up[2i + 1] = 3 x[i] / 4 + x[i + 1] / 4. So a
3-tap convolution of it has, at every place i of x, two results (2i and 2i + 1), each again of three taps of x: along
both axes a 3x3 convolution of x with four times the results, which a pixel shuffle puts in their places.

At the ends up repeats its last pixel (up[0] = x[0]), and the convolution pads with zeros (up[-1] = 0). With x padded by
zeros, up[0] is x[0] / 4 short, and up[-1] is x[0] / 4 too much: two more sets of taps make that good, of which only
the middle one is not zero, and which are for the first and for the last place alone.
"""

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


def axis(like: Tensor) -> Tensor:
    """The taps along one axis, in the type of the sums."""
    return constant(AXIS, torch.promote_types(like.dtype, torch.float32), like) / 4


def fold_upsampling(weight: Tensor) -> Tensor:
    """A weight [N, C, 3, 3] of the upsampled map as nine of the map itself, [9, 4N, C, 3, 3], one for each of PARTS."""
    t = axis(weight)
    folded = torch.einsum("raip,sbjq,ncpq->rsnabcij", t, t, weight.to(t.dtype))
    return folded.reshape(9, 4 * weight.shape[0], *weight.shape[1:]).to(weight.dtype)


def unfold_gradient(gradient: Tensor) -> Tensor:
    """The gradient [N, C, 3, 3] of the weight, from that of `fold_upsampling`'s result."""
    t = axis(gradient)
    n, c = gradient.shape[1] // 4, gradient.shape[2]
    return torch.einsum("raip,sbjq,rsnabcij->ncpq", t, t, gradient.reshape(3, 3, n, 2, 2, c, 3, 3).to(t.dtype))
