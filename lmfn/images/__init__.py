"""Image files: PNG, JPEG, WebP and TIFF, 8 and 16 bits (and float TIFF), read and written with OpenImageIO; HEIC and
AVIF are read if pillow-heif is installed.

Images are returned upright, as gray, gray + alpha, RGB or RGBA; CMYK and palettes become RGB. Values are never changed
by a colour transform, and colours are never premultiplied with alpha. Every failure is an `ImageError` that
names the file and the reason; metadata that cannot be kept is an `ImageWarning`.
"""

from lmfn.images.formats import SUFFIXES, WRITABLE, writable_format
from lmfn.images.photo import ImageError, ImageWarning, Photo
from lmfn.images.reading import find_images, read, read_frames, read_rgb, read_size, walk
from lmfn.images.writing import check, write, write_frames

__all__ = [
    "SUFFIXES",
    "WRITABLE",
    "ImageError",
    "ImageWarning",
    "Photo",
    "check",
    "find_images",
    "read",
    "read_frames",
    "read_rgb",
    "read_size",
    "walk",
    "writable_format",
    "write",
    "write_frames",
]
