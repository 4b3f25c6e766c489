"""Plausibility check of an output: broken weights, too narrow a precision, and patterns that deblurring destroys.

`implausibility` looks at a whole image, `implausible_regions` at its parts: a chart within a photograph comes back
wrong while the rest is right.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PERIOD = 16  # the encoder halves four times; a pattern at its strides 4 and 8 repeats after 16 pixels, too
# The most that sound weights gave on 34 photographs, blurred frames and test charts: nothing outside, a shift of 0.035,
# 0.067 far, no pattern (2.3 / 255 on a checkerboard, which has its own).
MARGIN, OUTSIDE = 0.1, 0.02
SHIFT = 0.06
FAR = 0.15
PATTERN = 2 / 255

WINDOW, STEP = 64, 32
"""Pixels of a window that is looked at by itself, and from one to the next."""
# On 57 photographs and blurred frames (15,360 windows, experiments/plausibility) the bounds below hold for all windows
# but those of one drawing; on checks, stripes and a zone plate of 2 to 8 pixels a period they are passed in nearly all.
WINDOW_OUTSIDE = 0.05
WINDOW_SHIFT = 0.12
FINE = 0.25
"""Cycles per pixel above which detail is fine: blur of a pixel or two removes it."""
FINE_DETAIL = 0.08
FINE_CHANGE, FINE_SHARE = 0.025, 0.15


class DoubtfulOutput(UserWarning):
    """An output that looks broken: the message says why, and what became of it."""


def implausibility(blurred: Tensor, output: Tensor) -> str | None:
    """Why a network's output is implausible, to be read after "the output"; None where it is not.

    `blurred`, in [0, 1], and `output`, not clipped, are `[H, W, C]` on one device. Deblurring moves what is at edges
    and keeps what is between them. So an output is implausible that is not finite, that has much outside [0, 1], whose
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


@dataclass(frozen=True)
class Regions:
    """Where an output is implausible."""

    weight: Tensor
    """`[H, W, 1]` in [0, 1]: one inside, falling to zero over a soft edge of 32 pixels."""
    share: float
    """Of the image's area."""
    box: tuple[int, int, int, int]
    """Left, top, right and bottom in pixels, right and bottom exclusive, of all of them together."""

    def __str__(self) -> str:
        left, top, right, bottom = self.box
        return (
            f"changes fine detail that is sharp already, or shifts or clips colours, in {self.share:.1%} of the image, "
            f"within ({left}, {top}) to ({right}, {bottom})"
        )


def implausible_regions(blurred: Tensor, output: Tensor) -> Regions | None:
    """The parts of a network's output that are implausible; None where there are none.

    Arguments as for `implausibility`, with a finite `output`. The image is looked at in windows of 64x64 pixels. What
    has detail above a quarter of a cycle per pixel, of more than noise has, is sharp: deblurring has to leave it as it
    is, and fine regular patterns, charts and text are where networks fail. A window is implausible, too, whose mean
    moves by more than that of blurred motion does, or of which much is outside [0, 1].
    """
    height, width = blurred.shape[:2]
    x, y = (_covered(image.mean(2)) for image in (blurred, output))
    rows = [_implausible(x[top : top + WINDOW], y[top : top + WINDOW]) for top in range(0, len(x) - STEP, STEP)]
    windows = torch.stack(rows)
    if not windows.any():
        return None
    # A window covers four blocks of STEP x STEP, and a block has the weight of the windows that it is in.
    blocks = F.max_pool2d(F.pad(windows.float(), (1, 1, 1, 1))[None, None], 2, stride=1)
    weight = F.interpolate(blocks, scale_factor=STEP, mode="bilinear", align_corners=False)[0, 0, :height, :width]
    inside = weight > 0.5
    across, down = inside.any(0).nonzero().flatten().tolist(), inside.any(1).nonzero().flatten().tolist()
    if not across:
        return None
    box = across[0], down[0], across[-1] + 1, down[-1] + 1
    return Regions(weight[:, :, None], inside.float().mean().item(), box)


def _covered(image: Tensor) -> Tensor:
    """`[H, W]`, its last rows and columns repeated so that whole windows cover it."""
    size = [max(WINDOW, -(-n // STEP) * STEP) for n in image.shape]
    pad = (0, size[1] - image.shape[1], 0, size[0] - image.shape[0])
    return F.pad(image[None], pad, mode="replicate")[0]


def _implausible(x: Tensor, y: Tensor) -> Tensor:
    """For each window of a row of them, `[WINDOW, W]`, whether it is implausible."""
    x, y = x.unfold(1, WINDOW, STEP).transpose(0, 1), y.unfold(1, WINDOW, STEP).transpose(0, 1)
    taper = torch.hann_window(WINDOW, periodic=False, device=x.device)
    taper = taper[:, None] * taper
    change = y - x
    shift = (change * taper).sum((1, 2)).abs() / taper.sum()
    outside = ((y < -MARGIN) | (y > 1 + MARGIN)).float().mean((1, 2))
    mean = (x * taper).sum((1, 2), keepdim=True) / taper.sum()
    fine = _amplitude((x - mean) * taper, FINE) / taper.square().mean().sqrt()
    changed = _amplitude(change * taper, 0) / taper.square().mean().sqrt()
    destroyed = (fine > FINE_DETAIL) & (changed > FINE_CHANGE) & (changed > FINE_SHARE * fine)
    return destroyed | (shift > WINDOW_SHIFT) | (outside > WINDOW_OUTSIDE)


def _amplitude(windows: Tensor, above: float) -> Tensor:
    """The root mean square of what windows `[N, 64, 64]` hold above a frequency in cycles per pixel."""
    rows, columns = (f(WINDOW, device=windows.device) for f in (torch.fft.fftfreq, torch.fft.rfftfreq))
    weight = (torch.hypot(rows[:, None], columns) >= above).to(windows.dtype)
    weight[:, 1:-1] *= 2  # the half of the spectrum that is not computed
    power: Tensor = torch.fft.rfft2(windows).abs().square() * weight
    return power.sum((1, 2)).sqrt() / WINDOW**2
