"""Plausibility check of an output: detects broken weights, too narrow a precision, and patterns that the network
breaks.

`implausibility` checks the image as a whole; `implausible_regions` checks its parts, since the network can fail on a
chart within a photograph that is otherwise fine.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PERIOD = 16  # the encoder halves four times; patterns at its strides 4 and 8 also repeat every 16 pixels
# Maxima of sound weights on 34 photographs, blurred frames and test charts: nothing outside [0, 1], a shift of 0.035,
# an RMS change of 0.067, no pattern (2.3 / 255 on a checkerboard, whose input has that pattern).
MARGIN, OUTSIDE = 0.1, 0.02
SHIFT = 0.06
FAR = 0.15
PATTERN = 2 / 255

WINDOW, STEP = 64, 32
"""Side of a window that is checked separately, and distance between neighbouring windows, in pixels."""
# On 57 photographs and blurred frames (15,360 windows, experiments/plausibility) all windows stay below these bounds
# except those of one drawing; on checks, stripes and a zone plate with periods of 2 to 8 pixels nearly all exceed them.
WINDOW_OUTSIDE = 0.05
WINDOW_SHIFT = 0.12
FINE = 0.25
"""Detail above this frequency, in cycles per pixel, is fine: blur of one or two pixels removes it."""
FINE_DETAIL = 0.08
FINE_CHANGE, FINE_SHARE = 0.025, 0.15


class DoubtfulOutput(UserWarning):
    """An output looks broken; the message says why and what was done with it."""


def implausibility(blurred: Tensor, output: Tensor) -> str | None:
    """Why a network's output is implausible, as a predicate for the subject "the output"; None if it is plausible.

    `blurred`, in [0, 1], and `output`, not clipped, are `[H, W, C]` on the same device. Deblurring changes edges and
    keeps the areas between them. An output is therefore implausible if it is not finite, if many values are outside
    [0, 1], if its mean colour or its pixels (by root mean square) are far from the input's, or if it has a pattern with
    the period of the network's stride that the input does not have.
    """
    return _whole(blurred, output).implausibility()


def implausible_regions(blurred: Tensor, output: Tensor) -> "Regions | None":
    """The parts of a network's output that are implausible; None if there are none.

    Arguments as for `implausibility`, with a finite `output`. The image is checked in windows of 64x64 pixels. A window
    with detail above a quarter of a cycle per pixel, stronger than noise, is sharp already and must not be changed:
    networks fail on fine regular patterns, charts and text. A window is also implausible if its mean shifts by more
    than deblurring explains, or if many of its values are outside [0, 1].
    """
    return _whole(blurred, output).implausible_regions()


def _whole(blurred: Tensor, output: Tensor) -> "Check":
    check = Check(*blurred.shape[:2])
    check.add(blurred, output)
    return check


class Check:
    """`implausibility` and `implausible_regions` of an image given in strips of rows, from top to bottom."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width, self.rows = height, width, 0
        self.finite, self.outside, self.square, self.values = True, 0.0, 0.0, 0
        self.change: Tensor | float = 0.0
        self.of_change, self.of_blurred = _Repeated(), _Repeated()
        self.windows: list[Tensor] = []
        self.waiting: list[Tensor] = []

    def add(self, blurred: Tensor, output: Tensor) -> None:
        """Add the next rows: a multiple of `STEP`, or the last rows."""
        self.rows += len(blurred)
        self.finite = self.finite and bool(output.isfinite().all())
        if not self.finite:
            return
        self.outside += ((output < -MARGIN) | (output > 1 + MARGIN)).sum().item()
        change = output.clamp(0, 1) - blurred
        self.change = self.change + change.sum(1).cpu().double().sum(0)
        self.square += change.square().sum((1, 2)).cpu().double().sum().item()
        self.values += change.numel()
        self.of_change.add(change)
        self.of_blurred.add(blurred)
        gray = torch.stack([image.mean(2) for image in (blurred, output)])
        if self.waiting:
            gray = torch.cat([self.waiting.pop(), gray], 1)
        if self.rows == self.height:  # repeat the last rows and columns, so that whole windows cover the image
            more = max(WINDOW, -(-self.height // STEP) * STEP) - self.height
            gray = F.pad(gray, (0, 0, 0, more), mode="replicate")
        right = max(WINDOW, -(-self.width // STEP) * STEP) - self.width
        top = 0
        while top + WINDOW <= gray.shape[1]:
            x, y = F.pad(gray[:, top : top + WINDOW], (0, right, 0, 0), mode="replicate")
            self.windows.append(_implausible(x, y))
            top += STEP
        self.waiting = [gray[:, top:].clone()]

    def implausibility(self) -> str | None:
        if not self.finite:
            return "is not finite"
        outside = self.outside / self.values
        if outside > OUTSIDE:
            return f"has {outside:.0%} of its values outside [0, 1]"
        shift = (torch.as_tensor(self.change) / (self.height * self.width)).abs().max().item()
        if shift > SHIFT:
            return f"has another brightness or colour than the input, by {shift:.2f} of the range"
        far = math.sqrt(self.square / self.values)
        if far > FAR:
            return f"is far from the input, by {far:.2f} of the range (root mean square)"
        pattern = self.of_change.value()
        if pattern > max(PATTERN, self.of_blurred.value()):
            return f"has a pattern that repeats every {PERIOD} pixels, of {255 * pattern:.1f} levels of 255"
        return None

    def implausible_regions(self) -> "Regions | None":
        windows = torch.stack(self.windows)
        if not windows.any():
            return None
        # A window covers four blocks of STEP x STEP; a block is implausible if a window that contains it is.
        blocks = F.max_pool2d(F.pad(windows.float(), (1, 1, 1, 1))[None, None], 2, stride=1)
        found = Regions(blocks, self.height, self.width)
        return found if found.share else None


class _Repeated:
    """The strength of patterns with a period of 16 pixels in images `[H, W, C]`."""

    def __init__(self) -> None:
        self.blocks, self.squares = 0, 0.0
        self.sums: Tensor | float = 0.0

    def add(self, image: Tensor) -> None:
        rows, columns = image.shape[0] // PERIOD, image.shape[1] // PERIOD
        if rows * columns:
            blocks = image[: rows * PERIOD, : columns * PERIOD].reshape(rows, PERIOD, columns, PERIOD, -1)
            self.blocks += rows * columns
            self.sums = self.sums + blocks.sum((0, 2)).cpu().double()
            self.squares += blocks.square().sum((1, 2, 3)).cpu().double().sum().item()

    def value(self) -> float:
        """Root mean square of the pattern, minus twice the value expected by chance."""
        if self.blocks < 4:
            return 0.0
        mean = torch.as_tensor(self.sums) / self.blocks
        variance = self.squares / (self.blocks * mean.numel()) - mean.square().mean().item()
        chance = math.sqrt(max(variance, 0.0) / self.blocks)
        return (mean - mean.mean((0, 1))).square().mean().sqrt().item() - 2 * chance


class Regions:
    """The implausible regions of an output."""

    share: float
    """Fraction of the image's area."""
    box: tuple[int, int, int, int]
    """Left, top, right and bottom of their common bounding box, in pixels; right and bottom are exclusive."""

    def __init__(self, blocks: Tensor, height: int, width: int) -> None:
        """`blocks`: weight of each block of STEP x STEP pixels, `[1, 1, rows, columns]`."""
        self.blocks, self.width = blocks, width
        count, columns, down = 0, torch.zeros(width, dtype=torch.bool, device=blocks.device), []
        for first in range(0, height, 8 * STEP):
            inside = self.weight(first, min(first + 8 * STEP, height))[:, :, 0] > 0.5
            count += int(inside.sum())
            columns |= inside.any(0)
            down += [first + row for row in inside.any(1).nonzero().flatten().tolist()]
        across = columns.nonzero().flatten().tolist()
        self.share = count / (height * width)
        self.box = (across[0], down[0], across[-1] + 1, down[-1] + 1) if across else (0, 0, 0, 0)

    def weight(self, first: int, last: int) -> Tensor:
        """The weight of each pixel of these rows, `[rows, W, 1]`: 1 inside the regions, falling to 0 over 32 pixels."""
        top = max(first // STEP - 1, 0)
        near = self.blocks[:, :, top : -(-last // STEP) + 1]
        weight = F.interpolate(near, scale_factor=STEP, mode="bilinear", align_corners=False)[0, 0]
        return weight[first - top * STEP : last - top * STEP, : self.width, None]

    def __str__(self) -> str:
        left, top, right, bottom = self.box
        return (
            f"changes fine detail that is sharp already, or shifts or clips colours, in {self.share:.1%} of the image, "
            f"within ({left}, {top}) to ({right}, {bottom})"
        )


def _implausible(x: Tensor, y: Tensor) -> Tensor:
    """Whether each window of a row of windows, `[WINDOW, W]`, is implausible."""
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
    """Root mean square of windows `[N, 64, 64]` above a frequency, in cycles per pixel."""
    rows, columns = (f(WINDOW, device=windows.device) for f in (torch.fft.fftfreq, torch.fft.rfftfreq))
    weight = (torch.hypot(rows[:, None], columns) >= above).to(windows.dtype)
    weight[:, 1:-1] *= 2  # accounts for the half of the spectrum that is not computed
    power: Tensor = torch.fft.rfft2(windows).abs().square() * weight
    return power.sum((1, 2)).sqrt() / WINDOW**2
