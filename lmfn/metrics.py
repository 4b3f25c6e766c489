"""PSNR, the two SSIMs that papers report under one name, and the named protocols that say which is measured of what.

Every metric takes an output and the sharp image, both `[B, C, H, W]`, floating point, in [0, 1], and gives one float64
number an image, `[B]`; the sums are made in float64 on the device where the images are. Each raises TypeError for
images that are not floating point and ValueError for shapes that differ or are not `[B, C, H, W]`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RADIUS = 5
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2  # (0.01 L)^2 and (0.03 L)^2 of images whose peak L is 1
_taps = [math.exp(-(k**2) / (2 * SIGMA**2)) for k in range(-RADIUS, RADIUS + 1)]
WINDOW = tuple(tap / sum(_taps) for tap in _taps)
"""The 11 weights of SSIM's Gaussian along one axis (Wang et al., "Image quality assessment: from error visibility to
structural similarity", IEEE TIP 2004, section III.C)."""


def to_8bit(x: Tensor) -> Tensor:
    """What is left of an image after it was stored in 8 bits: clamped to [0, 1] and rounded to the nearest of 256
    levels. Any shape, the same type."""
    return (x.clamp(0, 1) * 255).round() / 255


def psnr(output: Tensor, sharp: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE) over all channels and pixels of an image, `[B]`.

    Identical images have an infinite PSNR, and so has the mean of a set that holds one.
    """
    output, sharp = _checked(output, sharp)
    return -10 * (output - sharp).square().mean((1, 2, 3)).log10()


def ssim_gauss2d(output: Tensor, sharp: Tensor) -> Tensor:
    """SSIM channel by channel: an 11x11 Gaussian window, sigma 1.5, wherever it lies whole inside the image, `[B]`.

    It is scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1, channel_axis=...)`. Raises ValueError for an image with a side below 11.
    """
    return _ssim(output, sharp, axes=(2, 3), replicate=False)


def ssim_matlab3d(output: Tensor, sharp: Tensor) -> Tensor:
    """SSIM with an 11x11x11 Gaussian window over channel, height and width, sigma 1.5, the image continued by its edge
    values (the edge channels too), `[B]`. Any size.

    Most tables of deblurring papers hold this one; it is not comparable with `ssim_gauss2d`.
    """
    return _ssim(output, sharp, axes=(1, 2, 3), replicate=True)


def _checked(output: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
    if output.shape != sharp.shape or output.ndim != 4:
        raise ValueError(f"two images [B, C, H, W] are compared, got {tuple(output.shape)} and {tuple(sharp.shape)}")
    if not (output.is_floating_point() and sharp.is_floating_point()):
        raise TypeError(f"floating point images in [0, 1] are compared, got {output.dtype} and {sharp.dtype}")
    return output.double(), sharp.double()


def _ssim(output: Tensor, sharp: Tensor, axes: Sequence[int], replicate: bool) -> Tensor:
    def mean(x: Tensor) -> Tensor:
        return _gaussian(x, axes, replicate)

    x, y = _checked(output, sharp)
    if not replicate and min(x.shape[2:]) < len(WINDOW):
        raise ValueError(f"ssim_gauss2d needs images of at least 11 x 11, got shape {tuple(x.shape)}")
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    ssim = (2 * mx * my + C1) * (2 * vxy + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return ssim.mean((1, 2, 3))


def _gaussian(x: Tensor, axes: Sequence[int], replicate: bool) -> Tensor:
    """The Gaussian window's mean at every place, one axis after the other; `replicate` keeps the size."""
    for axis in axes:
        size = x.shape[axis]
        if replicate:
            places = torch.arange(-RADIUS, size + RADIUS, device=x.device).clamp(0, size - 1)
            x = x.index_select(axis, places)
        # Sums of shifted views: ten times faster in float64 than a convolution, and no copy of the eleven neighbours.
        inside = x.shape[axis] - 2 * RADIUS
        total = WINDOW[0] * x.narrow(axis, 0, inside)
        for k in range(1, len(WINDOW)):
            total.add_(x.narrow(axis, k, inside), alpha=WINDOW[k])
        x = total
    return x


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "psnr": psnr,
    "ssim_gauss2d": ssim_gauss2d,
    "ssim_matlab3d": ssim_matlab3d,
}


@dataclass(frozen=True)
class Protocol:
    """How outputs are measured. The same images differ by up to 5 dB and 0.1 SSIM between protocols in use, so a
    number is never reported without the name of its own."""

    description: str
    prepare: Callable[[Tensor], Tensor]
    """What is done to an output `[B, 3, H, W]`, and to the blurred input, before it is measured."""
    metrics: tuple[str, ...]
    """Names in `METRICS`, each measured image by image and then averaged over the set."""


# A data set whose tables are made in another way (aligned, masked, against many frames) gets an entry here.
PROTOCOLS: dict[str, Protocol] = {
    "gopro": Protocol(
        "as GoPro's tables: RGB rounded to 8 bits, PSNR and SSIM an image, then their means", to_8bit, tuple(METRICS)
    ),
    "plain": Protocol("as `gopro`, for any set of pairs", to_8bit, tuple(METRICS)),
}
