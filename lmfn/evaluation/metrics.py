"""PSNR, the two SSIMs that papers report under one name, MS-SSIM, and LPIPS if its package is installed.

Every metric takes an output and the sharp image, both `[B, C, H, W]`, floating point, in [0, 1], and returns one
float64 number per image, `[B]`; sums are computed in float64 on the images' device. Each raises TypeError for images
that are not floating point, and ValueError for shapes that differ or are not `[B, C, H, W]`.
`lmfn.evaluation.protocols` defines which metrics are measured, and how images are prepared.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RADIUS = 5
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2  # (0.01 L)^2 and (0.03 L)^2 of images whose peak L is 1
_taps = [math.exp(-(k**2) / (2 * SIGMA**2)) for k in range(-RADIUS, RADIUS + 1)]
WINDOW = tuple(tap / sum(_taps) for tap in _taps)
"""The 11 weights of SSIM's Gaussian along one axis (Wang et al., "Image quality assessment: from error visibility to
structural similarity", IEEE TIP 2004, section III.C)."""
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SMALLEST = {"ssim_gauss2d": 11, "ms_ssim": 161, "lpips": 32}
"""The minimum side of an image, for metrics that have one."""


def to_8bit(x: Tensor) -> Tensor:
    """The image as stored in 8 bits: clamped to [0, 1] and rounded to the nearest of 256 levels. Any shape; the dtype
    is kept."""
    return (x.clamp(0, 1) * 255).round() / 255


def psnr(output: Tensor, sharp: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE) over all channels and pixels of an image, `[B]`; with a mask
    `[B, 1, H, W]` of ones and zeros, over those where it is one.

    Identical images have an infinite PSNR, and so does the mean of a set that contains such a pair.
    """
    output, sharp = _checked(output, sharp)
    return -10 * _mean((output - sharp).square(), mask).log10()


def ssim_gauss2d(output: Tensor, sharp: Tensor, mask: Tensor | None = None) -> Tensor:
    """SSIM channel by channel: an 11x11 Gaussian window, sigma 1.5, at all positions inside the image, `[B]`;
    with a mask `[B, 1, H, W]` of ones and zeros, the mean over the windows whose centre it keeps.

    It is scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1, channel_axis=...)`. Raises ValueError for an image with a side below 11.
    """
    luminance, structure = _ssim(output, sharp, axes=(2, 3), replicate=False)
    if mask is not None:
        mask = mask[..., RADIUS:-RADIUS, RADIUS:-RADIUS]
    return _mean(luminance * structure, mask)


def ssim_matlab3d(output: Tensor, sharp: Tensor) -> Tensor:
    """SSIM with an 11x11x11 Gaussian window over channel, height and width, sigma 1.5, with replicated borders
    (including the channels), `[B]`. Any size.

    Most tables in deblurring papers use this one; it is not comparable with `ssim_gauss2d`.
    """
    luminance, structure = _ssim(output, sharp, axes=(1, 2, 3), replicate=True)
    return (luminance * structure).mean((1, 2, 3))


def ms_ssim(output: Tensor, sharp: Tensor) -> Tensor:
    """Multi-scale SSIM, `[B]`: the contrast and structure of five scales, each half the one before (means of 2x2
    pixels, the last row or column repeated where the side is odd), and the luminance of the last, each to the power of
    its weight (Wang, Simoncelli, Bovik, "Multi-scale structural similarity for image quality assessment", 2003).

    The windows are those of `ssim_gauss2d`. A negative mean of a scale counts as zero. Raises ValueError for an image
    with a side below 161, whose last scale has less than 11.
    """
    output, sharp = _checked(output, sharp)
    if min(output.shape[2:]) < SMALLEST["ms_ssim"]:
        raise ValueError(f"ms_ssim needs images of at least 161 x 161, got shape {tuple(output.shape)}")
    result = torch.ones(len(output), dtype=torch.float64, device=output.device)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            output, sharp = _halved(output), _halved(sharp)
        luminance, structure = _ssim(output, sharp, axes=(2, 3), replicate=False)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        result *= (luminance * structure if last else structure).mean((1, 2, 3)).clamp(min=0) ** weight
    return result


def lpips(output: Tensor, sharp: Tensor) -> Tensor:
    """Learned perceptual distance (Zhang et al., "The unreasonable effectiveness of deep features as a perceptual
    metric", CVPR 2018; AlexNet, version 0.1), `[B]`; lower is better.

    Needs `pip install ".[lpips]"`; torchvision downloads AlexNet's weights on first use. Computed in
    float32 on the images' device.
    """
    output, sharp = _checked(output, sharp)
    with torch.inference_mode():
        distance: Tensor = _alexnet(output.device)(output.float() * 2 - 1, sharp.float() * 2 - 1)
    return distance.double().flatten()


@functools.cache
def _alexnet(device: torch.device) -> nn.Module:
    import lpips

    network: nn.Module = lpips.LPIPS(net="alex", verbose=False)
    return network.eval().to(device)


def _checked(output: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
    if output.shape != sharp.shape or output.ndim != 4:
        raise ValueError(f"two images [B, C, H, W] are compared, got {tuple(output.shape)} and {tuple(sharp.shape)}")
    if not (output.is_floating_point() and sharp.is_floating_point()):
        raise TypeError(f"floating point images in [0, 1] are compared, got {output.dtype} and {sharp.dtype}")
    return output.double(), sharp.double()


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return x.mean((1, 2, 3))
    return (x * mask).sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * x.shape[1])


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate"), 2)


def _ssim(output: Tensor, sharp: Tensor, axes: Sequence[int], replicate: bool) -> tuple[Tensor, Tensor]:
    """The two factors of SSIM at every position of the window: luminance, and contrast with structure."""

    def mean(x: Tensor) -> Tensor:
        return _gaussian(x, axes, replicate)

    x, y = _checked(output, sharp)
    if not replicate and min(x.shape[2:]) < len(WINDOW):
        raise ValueError(f"ssim_gauss2d needs images of at least 11 x 11, got shape {tuple(x.shape)}")
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    return (2 * mx * my + C1) / (mx * mx + my * my + C1), (2 * vxy + C2) / (vx + vy + C2)


def _gaussian(x: Tensor, axes: Sequence[int], replicate: bool) -> Tensor:
    """The Gaussian-weighted mean at every position, one axis after the other; `replicate` keeps the size."""
    for axis in axes:
        size = x.shape[axis]
        if replicate:
            places = torch.arange(-RADIUS, size + RADIUS, device=x.device).clamp(0, size - 1)
            x = x.index_select(axis, places)
        # Sums of shifted views: ten times as fast in float64 as a convolution, without a copy of the eleven neighbours.
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
    "lpips": lpips,
}
"""The metrics for any pair of images."""
