"""Metadata blocks of an image file."""

from dataclasses import dataclass

PART = 1 << 20
"""Bytes of a file that are read at a time."""


@dataclass(frozen=True)
class Blocks:
    """The blocks that are copied unchanged from file to file."""

    exif: bytes | None = None
    """EXIF, starting at its TIFF header."""
    xmp: bytes | None = None
    """XMP: one XML packet."""
    icc: bytes | None = None
    """The ICC profile of the colours."""
    colour: tuple[tuple[bytes, bytes], ...] = ()
    """Colour chunks of a PNG other than a profile (cICP, sRGB, gAMA ...): type and body."""


Piece = bytes | range
"""A part of an encoded image: its bytes, or their positions in the file from which it is made."""
