"""An image with the data of its file that must be preserved, and the errors of image files."""

from dataclasses import dataclass, field
from typing import Any

import OpenImageIO as oiio  # noqa: N813 (the name it goes by in its own documentation)

from lmfn.metadata import Blocks


class ImageError(ValueError):
    """An image file cannot be read or written. The message names the file and the reason."""


class ImageWarning(UserWarning):
    """Part of an image file cannot be preserved. The message names the file and the part."""


def first_line(message: str) -> str:
    """The first line of a library's message, as the reason in an `ImageError`."""
    return message.strip().split("\n")[0] or "no reason given"


@dataclass
class Photo:
    """An image with the data of its file that must be preserved."""

    pixels: Any
    """`[H, W, C]`, upright: gray, gray + alpha, RGB or RGBA for C = 1 to 4; float32 in [0, 1], or uint8 or uint16 with
    the full range of their type. `write` also takes other floats. An array, or `StoredPixels` if
    `read` was asked for them."""
    bits: int = 8
    """Bits per sample in the file: 8 or 16 (integer), or 32 (float)."""
    metadata: oiio.ImageSpec = field(default_factory=oiio.ImageSpec)
    """An `OpenImageIO.ImageSpec` whose attributes (EXIF, GPS, resolution, text) `write` writes to the file."""
    blocks: Blocks = field(default_factory=Blocks)
    """ICC profile, EXIF and XMP as in the file. JPEG, PNG and WebP get these instead of the values in `metadata`."""
    duration: int = 0
    """Milliseconds for which this frame of an animation is shown."""
    loops: int = 0
    """Number of times the animation is played; 0: endlessly."""

    @property
    def alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.pixels.shape[2] in (2, 4)
