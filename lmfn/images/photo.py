"""An image and what must be kept of its file; what goes wrong with it."""

from dataclasses import dataclass, field

import numpy as np
import OpenImageIO as oiio  # noqa: N813 (the name it goes by in its own documentation)

from lmfn.metadata import Blocks


class ImageError(ValueError):
    """An image file cannot be read or written. The message names the file and the reason."""


class ImageWarning(UserWarning):
    """Something of an image cannot be kept. The message names the file and what it is."""


@dataclass
class Photo:
    """An image and what must be kept of its file."""

    pixels: np.ndarray
    """`[H, W, C]`, upright: gray, gray + alpha, RGB or RGBA for C = 1 to 4; float32 in [0, 1], or uint8 and uint16 as
    what they are: samples of 8 and 16 bits. `write` also takes other floats."""
    bits: int = 8
    """Bits of a sample: 8 or 16 (whole numbers), or 32 (float)."""
    metadata: oiio.ImageSpec = field(default_factory=oiio.ImageSpec)
    """An `OpenImageIO.ImageSpec` whose attributes (EXIF, GPS, resolution, text) `write` puts back."""
    blocks: Blocks = field(default_factory=Blocks)
    """ICC profile, EXIF and XMP as the file has them. JPEG, PNG and WebP get these instead of what `metadata` says."""
    duration: int = 0
    """Milliseconds for which this frame of an animation is shown."""
    loops: int = 0
    """How often the animation is played; 0 is for ever."""

    @property
    def alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.pixels.shape[2] in (2, 4)
