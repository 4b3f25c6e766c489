"""Named protocols: how the papers on a data set measure, so that no figure is given without its protocol.

The same images differ by up to 5 dB and 0.1 SSIM between protocols in use.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmfn.evaluation.metrics import METRICS, ms_ssim, psnr, ssim_gauss2d, to_8bit

Measure = Callable[[Tensor, Iterable[Tensor], Sequence[str]], dict[str, float]]
"""From an output (or the blurred input), its sharp images, each `[1, 3, H, W]` float64 in [0, 1], and the names of
metrics to their values."""


@dataclass(frozen=True)
class Protocol:
    """How outputs are measured."""

    description: str
    metrics: tuple[str, ...]
    """Metrics measured per image and averaged over the set."""
    measure: Measure
    more: tuple[str, ...] = ()
    """Metrics measured only on request."""
    frames: bool = False
    """Whether an output is compared with the sharp images of all moments of the exposure, as in Koehler's set."""
    needs: str | None = None
    """A package it requires."""


def of_pairs(image: Tensor, sharps: Iterable[Tensor], metrics: Sequence[str]) -> dict[str, float]:
    """Compare the image, rounded to 8 bits, with its sharp image."""
    [sharp] = sharps
    stored = to_8bit(image)
    return {metric: METRICS[metric](stored, sharp).item() for metric in metrics}


def realblur(image: Tensor, sharps: Iterable[Tensor], metrics: Sequence[str]) -> dict[str, float]:
    """RealBlur's (Rim et al., ECCV 2020): the image, rounded to 8 bits, is scaled and aligned to the sharp one, and
    compared where both overlap."""
    [sharp] = sharps
    aligned, mask = align(to_8bit(image), sharp)
    return _masked(aligned, sharp, mask, metrics)


def rsblur(image: Tensor, sharps: Iterable[Tensor], metrics: Sequence[str]) -> dict[str, float]:
    """RSBlur's (Rim et al., ECCV 2022): as `realblur`, with the aligned image clipped to [0, 1]."""
    [sharp] = sharps
    aligned, mask = align(to_8bit(image), sharp)
    return _masked(aligned.clamp(0, 1), sharp, mask, metrics)


def _masked(aligned: Tensor, sharp: Tensor, mask: Tensor, metrics: Sequence[str]) -> dict[str, float]:
    # The windows of SSIM at the mask's edge see zeros in both images, as in the published tables.
    aligned, sharp = aligned * mask, sharp * mask
    masked = {"psnr": psnr, "ssim_gauss2d": ssim_gauss2d}
    return {metric: masked[metric](aligned, sharp, mask).item() for metric in metrics}


def align(image: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
    """The image with the intensity and geometry of the sharp one, and the mask `[1, 1, H, W]` of its valid area.

    Scaled by sum(sharp * image) / sum(image^2); warped bicubically, with reflection beyond the edge, by the homography
    that maximises the enhanced correlation coefficient of the gray images (Evangelidis, Psarakis, PAMI 2008; 100
    iterations, a Gaussian of 5). Raises ArithmeticError if no homography is found.
    """
    import cv2

    image = image * _scale(image, sharp)
    here, there = (x[0].permute(1, 2, 0).float().cpu().numpy() for x in (image, sharp))
    gray_here, gray_there = (cv2.cvtColor(np.ascontiguousarray(x), cv2.COLOR_RGB2GRAY) for x in (here, there))
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 0.0)
    start, everything = np.eye(3, dtype=np.float32), np.ones(gray_here.shape, np.uint8)
    try:
        _, found = cv2.findTransformECC(gray_there, gray_here, start, cv2.MOTION_HOMOGRAPHY, criteria, everything, 5)
    except cv2.error as error:
        raise ArithmeticError("it cannot be aligned to the sharp image (ECC finds no homography)") from error
    height, width = here.shape[:2]
    warped = cv2.warpPerspective(
        here, found, (width, height), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )
    inside = cv2.warpPerspective(
        np.ones((height, width), np.float32), found, (width, height), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    )
    mask = torch.from_numpy(inside).to(image)[None, None]
    return torch.from_numpy(warped).to(image).permute(2, 0, 1)[None], mask


def koehler(image: Tensor, sharps: Iterable[Tensor], metrics: Sequence[str]) -> dict[str, float]:
    """Koehler's (Koehler et al., ECCV 2012): the image, rounded to 8 bits, is scaled and shifted to each sharp image of
    the exposure; the best value over all of them, on luminance, with pixels shifted in from outside zero in both."""
    measured = {"psnr": psnr, "ms_ssim": ms_ssim}
    stored = to_8bit(image)
    spectrum = torch.fft.fft2(stored.mean(1))
    best = dict.fromkeys(metrics, -torch.inf)
    for sharp in sharps:
        correlation = torch.fft.ifft2(torch.fft.fft2(sharp.mean(1)) * spectrum.conj()).real[0]
        place = divmod(int(correlation.argmax()), correlation.shape[1])
        down, right = (k if k <= n // 2 else k - n for k, n in zip(place, correlation.shape, strict=True))
        moved = _moved(stored * _scale(stored, sharp), down, right)
        kept = sharp * _moved(torch.ones_like(sharp[:, :1]), down, right)
        for metric in metrics:
            best[metric] = max(best[metric], measured[metric](_luminance(moved), _luminance(kept)).item())
    return best


def _scale(image: Tensor, sharp: Tensor) -> Tensor:
    """The scale factor of the image with the least squared error from the sharp one."""
    return (sharp * image).sum() / image.square().sum().clamp(min=torch.finfo(image.dtype).tiny)


def _moved(image: Tensor, down: int, right: int) -> Tensor:
    """Shifted by whole pixels, zero where nothing is shifted in."""
    return F.pad(image, (right, -right, down, -down))


def _luminance(image: Tensor) -> Tensor:
    return (image * image.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(1, keepdim=True)


_PAIRS = ("psnr", "ssim_gauss2d", "ssim_matlab3d")
PROTOCOLS: dict[str, Protocol] = {
    "plain": Protocol("as `gopro`, for any set of pairs", _PAIRS, of_pairs, ("lpips",)),
    "gopro": Protocol(
        "as in GoPro's tables: RGB rounded to 8 bits, PSNR and SSIM per image, then their means",
        _PAIRS,
        of_pairs,
        ("lpips",),
    ),
    "hide": Protocol("as in HIDE's tables: `gopro` on HIDE", _PAIRS, of_pairs, ("lpips",)),
    "realblur": Protocol(
        "as in RealBlur's tables: scaled, aligned by an ECC homography, and compared where both overlap",
        ("psnr", "ssim_gauss2d"),
        realblur,
        needs="cv2",
    ),
    "rsblur": Protocol(
        "as in RSBlur's tables: `realblur`, clipped to [0, 1] after the alignment",
        ("psnr", "ssim_gauss2d"),
        rsblur,
        needs="cv2",
    ),
    "koehler": Protocol(
        "as in Koehler's tables: scaled and shifted, luminance, the maximum over the frames of the exposure",
        ("psnr", "ms_ssim"),
        koehler,
        frames=True,
    ),
}
