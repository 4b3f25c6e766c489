"""Sharpen image arrays: `Deblurrer`. For files and folders see `lmfn.files`."""

import copy
import warnings
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from lmfn.device import DTYPES, check_precision, choose_device
from lmfn.inference import BORDER, for_inference, with_border
from lmfn.memory import available_memory
from lmfn.network.model import Network
from lmfn.network.pretrained import LMFN
from lmfn.options import Guard, Precision
from lmfn.plausibility import DoubtfulOutput, implausibility, implausible_regions

REMEDY = "make the image smaller, or split it into parts"


class Deblurrer:
    """A trained network that sharpens one image at a time.

    `weights` is an argument for `LMFN.from_pretrained` (`lmfn` and `lmfn-released` are included in the package; a
    folder or file written by train.py; `owner/model` on the Hugging Face Hub), or a network (which is copied). `device`
    is a torch device; by default `cuda` if available, else `mps`, else `cpu`. `precision` is that of the convolutions;
    bf16 and fp16 run under autocast. `guard` is the treatment of implausible outputs or parts of them
    (`lmfn.plausibility`). `strength` scales the change: 0 returns the input, 1 the network's output; more exaggerates
    the change and its errors, and is a UserWarning.

    Raises ValueError for unusable weights, an unavailable device, an unknown precision or guard, fp16 on a CPU, and a
    strength below 0; FileNotFoundError if the weights do not exist.
    """

    def __init__(
        self,
        weights: str | Path | Network = "lmfn",
        *,
        device: str | None = None,
        precision: Precision = "fp32",
        guard: Guard = "warn",
        strength: float = 1.0,
    ) -> None:
        if not 0 <= strength < float("inf"):
            raise ValueError(f"strength is {strength}; it must be 0 or more, and 1 is what the network does")
        if strength > 1:
            warnings.warn(f"a strength of {strength:g} exaggerates the change, and its errors", stacklevel=2)
        self.strength = strength
        if guard not in get_args(Guard):
            raise ValueError(f"guard is {guard!r}; it must be one of {', '.join(get_args(Guard))}")
        self.guard = guard
        self.device = choose_device(device)
        check_precision(self.device, precision)
        self.precision = precision
        model = copy.deepcopy(weights) if isinstance(weights, Network) else LMFN.from_pretrained(weights)
        self.model: Network = model.eval().to(self.device)
        self.run = with_border(for_inference(self.model, self.device, DTYPES[precision]))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Sharpen `[H, W, C]`, float32 or float64 in [0, 1]: gray, gray + alpha, RGB or RGBA for C = 1 to 4; any size.

        The result has the same shape and dtype and is clipped to [0, 1]. Alpha is unchanged. Gray passes through the
        network as three equal channels, of which the mean is returned. The network computes in at most float32. An
        implausible output is a `DoubtfulOutput` warning with the reason and, for parts of the image, their position.

        Raises TypeError for another dtype, ValueError for another shape or values outside [0, 1], MemoryError for an
        image that needs more memory than available (before any work, if this can be known), and FloatingPointError if
        the network's output is not finite (unless `guard` is "input").
        """
        check(image)
        channels = image.shape[2]
        colours = 3 if channels > 2 else 1
        self._check_memory(*image.shape[:2])
        try:
            blurred = torch.from_numpy(image[:, :, :colours].astype(np.float32)).to(self.device)
            output = self._sharpen(blurred.expand(-1, -1, 3))
            reason, regions = None, None
            if self.guard != "off":
                reason = implausibility(blurred, output)
                regions = implausible_regions(blurred, output) if reason is None else None
            strength = torch.full_like(output, self.strength)
            if regions is not None and self.guard == "input":
                strength *= 1 - regions.weight
            sharp = torch.lerp(blurred.expand_as(output), output, strength).cpu().numpy()
        except RuntimeError as error:
            if any(words in str(error) for words in ("out of memory", "allocate memory")):  # of CUDA and MPS; of a CPU
                raise MemoryError(
                    f"out of memory on {self.device} with an {size(*image.shape[:2])}; {REMEDY}"
                ) from error
            raise
        if colours == 1:
            sharp = sharp.mean(axis=2, keepdims=True)
        if reason is not None and self.guard == "input":
            warnings.warn(f"the output {reason}; the input was kept", DoubtfulOutput, stacklevel=2)
            return image.copy()
        if not np.isfinite(sharp).all():
            raise FloatingPointError(
                "the network's output is not finite: its weights are broken, or fp16 is too narrow for it; try fp32"
            )
        if reason is not None:
            warnings.warn(f"the output {reason}; look at it", DoubtfulOutput, stacklevel=2)
        if regions is not None:
            outcome = "the input was kept there" if self.guard == "input" else "look at it"
            warnings.warn(f"the output {regions}; {outcome}", DoubtfulOutput, stacklevel=2)
        result = image.copy()
        result[:, :, :colours] = sharp.clip(0, 1)
        return result

    def _sharpen(self, blurred: Tensor) -> Tensor:
        """`[H, W, 3]` float32 to the same."""
        return self.run(blurred.permute(2, 0, 1)[None])[0].permute(1, 2, 0)

    def _check_memory(self, height: int, width: int) -> None:
        """Raise MemoryError if an image of this size certainly needs more memory than available."""
        available = available_memory(self.device)
        needed = self.estimated_bytes(height, width)
        if available is not None and needed > available:
            raise MemoryError(
                f"an {size(height, width)} needs about {needed / 1e9:.1f} GB on {self.device}, and "
                f"{available / 1e9:.1f} GB are available; {REMEDY}"
            )

    def estimated_bytes(self, height: int, width: int) -> int:
        """Estimated bytes that the network needs in addition to the image.

        The most is held at the image's full size: right after the first convolution (`channels`) or in the head
        (`features`), and half as much again in what goes in or comes out, and some RGB images. Set against the peak of
        both presets and two narrow networks as written on a CPU, at 0.3 to 1.4 megapixels: 1.04 to 2 times what was
        measured; of the default network on oneDNN in float32, 1.7 to 1.9 times.
        """
        config = self.model.config
        height, width = height + 2 * BORDER, width + 2 * BORDER
        return int(4 * (1.5 * max(config.channels, config.features) + 20) * height * width) + 2**26


def size(height: int, width: int) -> str:
    return f"image of {width} x {height} pixels ({height * width / 1e6:.1f} megapixels)"


def check(image: np.ndarray) -> None:
    """Raise TypeError or ValueError unless this is a valid image for `Deblurrer`."""
    if isinstance(image, np.ma.MaskedArray):
        raise TypeError("the image is a masked array; fill it first (image.filled(value))")
    if not isinstance(image, np.ndarray):
        raise TypeError(f"the image is a {type(image).__name__}; it must be a numpy array [H, W, C], float in [0, 1]")
    if image.dtype not in (np.float32, np.float64):
        remedy = f"divide it by {np.iinfo(image.dtype).max}" if image.dtype in (np.uint8, np.uint16) else "convert it"
        raise TypeError(f"the image is {image.dtype}; it must be float32 or float64 in [0, 1]: {remedy}")
    if image.ndim != 3 or not 1 <= image.shape[2] <= 4 or image.size == 0:
        raise ValueError(f"the image has shape {image.shape}; it must be [H, W, C] with H, W >= 1 and C from 1 to 4")
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise ValueError(f"the image's values are from {low:.6g} to {high:.6g}; they must be in [0, 1]")
