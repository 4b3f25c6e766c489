"""The blocks of bytes that say what an image file is, beside its pixels."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Blocks:
    """What is carried whole from file to file."""

    exif: bytes | None = None
    """EXIF, from its TIFF header on."""
    xmp: bytes | None = None
    """XMP: one packet of XML."""
    icc: bytes | None = None
    """The ICC profile of the colours."""
    colour: tuple[tuple[bytes, bytes], ...] = ()
    """What a PNG says of its colours besides a profile: kind and body of its chunks cICP, sRGB, gAMA and so on."""
