"""Image file formats, by suffix and by the first bytes of a file."""

from pathlib import Path

from lmfn.images import heif
from lmfn.images.photo import ImageError
from lmfn.metadata import jpeg, png

WRITABLE = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WebP", ".tif": "TIFF",
    ".tiff": "TIFF",
}  # fmt: skip
"""Writable formats by lower-case suffix."""

SUFFIXES = (*WRITABLE, *(heif.SUFFIXES if heif.AVAILABLE else ()))
"""Suffixes of readable files, in lower case."""

LONGEST_SIDE = {"PNG": 1_000_000, "JPEG": 65_500, "WebP": 16_383}
"""Maximum side in pixels that the libraries can write."""

# Position, bytes and name.
BEGINNINGS = (
    (0, png.SIGNATURE, "PNG"), (0, jpeg.SIGNATURE, "JPEG"), (8, b"WEBP", "WebP"), (8, b"CR\2", "camera raw"),
    (0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"), (0, b"II+\0", "TIFF"), (0, b"MM\0+", "TIFF"),
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"hei", b"hev", b"mif1", b"msf1")), (4, b"ftypavi", "AVIF"),
    (4, b"ftypcrx", "camera raw"), (4, b"ftyp", "video"), (0, b"GIF8", "GIF"), (0, b"BM", "BMP"),
    (0, b"\xff\x0a", "JPEG XL"), (4, b"JXL ", "JPEG XL"), (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"), (0, b"8BPS", "Photoshop"), (0, b"v/1\1", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"), (0, b"DDS ", "DDS"), (0, b"FUJIFILMCCD-RAW", "camera raw"),
    (0, b"IIRO", "camera raw"), (0, b"IIRS", "camera raw"), (0, b"IIU\0", "camera raw"),
    *((0, b"P%d" % n, "PNM") for n in range(1, 8)), (0, b"\0\0\1\0", "icon"), (0, b"%PDF", "PDF"), (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML"), (0, b"<!DOCTYPE", "web page"), (0, b"<html", "web page"), (8, b"AVI ", "video"),
    (0, b"\x1a\x45\xdf\xa3", "video"), (0, b"PK\3\4", "zip archive"),
)  # fmt: skip
REMEDIES = {
    "HEIC": "to read it: pip install pillow-heif",
    "AVIF": "to read it: pip install pillow-heif",
    "camera raw": "develop it into a TIFF or JPEG first",
    **dict.fromkeys(("video", "PDF", "XML", "web page", "zip archive"), "no image"),
}


def identify(head: bytes) -> str | None:
    """The name of the format with these first bytes; None if unknown."""
    return next((name for at, start, name in BEGINNINGS if head[at : at + len(start)] == start), None)


def writable_format(path: Path) -> str:
    """The format of a suffix. Raises ImageError if it is not writable."""
    try:
        return WRITABLE[path.suffix.lower()]
    except KeyError:
        raise ImageError(f"{path}: the suffix must be one of {', '.join(WRITABLE)}") from None
