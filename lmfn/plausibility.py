"""Plausibility check of an output: broken weights, too narrow a precision, and patterns that deblurring destroys.

`implausibility` looks at a whole image, `implausible_regions` at its parts: a chart within a photograph comes back
wrong while the rest is right.
"""

import math

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
    return _whole(blurred, output).implausibility()


def implausible_regions(blurred: Tensor, output: Tensor) -> "Regions | None":
    """The parts of a network's output that are implausible; None where there are none.

    Arguments as for `implausibility`, with a finite `output`. The image is looked at in windows of 64x64 pixels. What
    has detail above a quarter of a cycle per pixel, of more than noise has, is sharp: deblurring has to leave it as it
    is, and fine regular patterns, charts and text are where networks fail. A window is implausible, too, whose mean
    moves by more than that of blurred motion does, or of which much is outside [0, 1].
    """
    return _whole(blurred, output).implausible_regions()


def _whole(blurred: Tensor, output: Tensor) -> "Check":
    check = Check(*blurred.shape[:2])
    check.add(blurred, output)
    return check


class Check:
    """`implausibility` and `implausible_regions` of an image that comes in strips of rows, from the top."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width, self.rows = height, width, 0
        self.finite, self.outside, self.square, self.values = True, 0.0, 0.0, 0
        self.change: Tensor | float = 0.0
        self.of_change, self.of_blurred = _Repeated(), _Repeated()
        self.windows: list[Tensor] = []
        self.waiting: list[Tensor] = []

    def add(self, blurred: Tensor, output: Tensor) -> None:
        """The next rows, a multiple of `STEP` of them or the last ones."""
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
        if self.rows == self.height:  # its last rows and columns repeated so that whole windows cover the image
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
        # A window covers four blocks of STEP x STEP, and a block has the weight of the windows that it is in.
        blocks = F.max_pool2d(F.pad(windows.float(), (1, 1, 1, 1))[None, None], 2, stride=1)
        found = Regions(blocks, self.height, self.width)
        return found if found.share else None


class _Repeated:
    """What repeats every 16 pixels of `[H, W, C]`."""

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
        """Its root mean square, less twice what chance would give."""
        if self.blocks < 4:
            return 0.0
        mean = torch.as_tensor(self.sums) / self.blocks
        variance = self.squares / (self.blocks * mean.numel()) - mean.square().mean().item()
        chance = math.sqrt(max(variance, 0.0) / self.blocks)
        return (mean - mean.mean((0, 1))).square().mean().sqrt().item() - 2 * chance


class Regions:
    """Where an output is implausible."""

    share: float
    """Of the image's area."""
    box: tuple[int, int, int, int]
    """Left, top, right and bottom in pixels, right and bottom exclusive, of all of them together."""

    def __init__(self, blocks: Tensor, height: int, width: int) -> None:
        """`blocks`: the weight of each block of STEP x STEP pixels, [1, 1, rows, columns]."""
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
        """Of these rows, `[rows, W, 1]` in [0, 1]: one inside, falling to zero over a soft edge of 32 pixels."""
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
