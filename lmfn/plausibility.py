"""Whether an output can be what deblurring makes of its input.

Broken weights, a precision that is too narrow, or an image unlike all that the network has learnt from give mosaics,
wrong colours and noise: better said than found out later.
"""

import math

from torch import Tensor

PERIOD = 16  # the encoder halves four times; a pattern at its strides 4 and 8 repeats after 16 pixels, too
# The most that sound weights gave on 34 photographs, blurred frames and test charts: nothing outside, a shift of 0.035,
# 0.067 far, no pattern (2.3 / 255 on a checkerboard, which has its own).
MARGIN, OUTSIDE = 0.1, 0.02
SHIFT = 0.06
FAR = 0.15
PATTERN = 2 / 255


class DoubtfulOutput(UserWarning):
    """An output that looks broken: the message says why, and what became of it."""


def doubt(blurred: Tensor, output: Tensor) -> str | None:
    """Why a network's output is doubtful, to be read after "the output"; None where it is not.

    `blurred`, in [0, 1], and `output`, not clipped, are `[H, W, C]` on one device. Deblurring moves what is at edges
    and keeps what is between them. So an output is doubtful that is not finite, that has much outside [0, 1], whose
    mean colour or whose pixels (by the root mean square) are far from the input's, or in which something repeats at
    the network's stride that does not in the input.
    """
    if not output.isfinite().all():
        return "is not finite"
    outside = ((output < -MARGIN) | (output > 1 + MARGIN)).float().mean().item()
    if outside > OUTSIDE:
        return f"has {outside:.0%} of its values outside [0, 1]"
    change = output.clamp(0, 1) - blurred
    shift = change.mean((0, 1)).abs().max().item()
    if shift > SHIFT:
        return f"has another brightness or colour than the input, by {shift:.2f} of the range"
    far = change.square().mean().sqrt().item()
    if far > FAR:
        return f"is far from the input, by {far:.2f} of the range (root mean square)"
    pattern = repeated(change)
    if pattern > max(PATTERN, repeated(blurred)):
        return f"has a pattern that repeats every {PERIOD} pixels, of {255 * pattern:.1f} levels of 255"
    return None


def repeated(image: Tensor) -> float:
    """The root mean square of what repeats every 16 pixels of `[H, W, C]`, less twice what chance would."""
    rows, columns = image.shape[0] // PERIOD, image.shape[1] // PERIOD
    if rows * columns < 4:
        return 0.0
    blocks = image[: rows * PERIOD, : columns * PERIOD].reshape(rows, PERIOD, columns, PERIOD, -1)
    mean = blocks.mean((0, 2), keepdim=True)
    chance = (blocks - mean).square().mean().sqrt() / math.sqrt(rows * columns)
    return ((mean - mean.mean((1, 3), keepdim=True)).square().mean().sqrt() - 2 * chance).item()
