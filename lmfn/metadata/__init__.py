"""EXIF, XMP, ICC profiles and PNG's colour chunks: taken out of encoded images and put into others, byte for byte.

OpenImageIO writes tags anew. That loses maker notes and fields it does not know, breaks ICC profiles above 65,519 bytes
in JPEG, and adds statements about colour to PNG that the source never made. So the blocks are carried whole. Where they
stand is defined by Exif 3.0, ICC.1 (Annex B) and XMP part 3 for JPEG, by PNG's 3rd edition, and by RFC 9649 for WebP.
"""

from typing import BinaryIO

from lmfn.metadata import jpeg, png, tiff, webp
from lmfn.metadata.blocks import Blocks

__all__ = ["Blocks", "extract", "insert"]


def extract(file: BinaryIO) -> Blocks:
    """The blocks of an encoded JPEG, PNG or WebP, and the XMP of a TIFF; none of any other file.

    Of several EXIF blocks the first counts. What is broken is left out.
    """
    file.seek(0)
    head = file.read(12)
    if head.startswith(jpeg.SIGNATURE):
        return jpeg.read(file)
    if head.startswith(png.SIGNATURE):
        return png.read(file)
    if webp.is_webp(head):
        return webp.read(file)
    return tiff.read(file)


def insert(data: bytes, blocks: Blocks) -> bytes:
    """The encoded JPEG, PNG, WebP or TIFF with these blocks in place of its own; the pixels' bytes stay as they are.

    What is not in `blocks` stays as it is in `data`, but for PNG's colours: a PNG says what the profile or else the
    colour chunks say, and no more. A JPEG holds 65,527 bytes of EXIF and 65,504 of XMP, and a longer block is left out.
    Into a TIFF goes the XMP alone.

    Raises ValueError for data that is no such image, and for a profile that JPEG cannot hold (16,707,345 bytes).
    """
    if data.startswith(jpeg.SIGNATURE):
        return jpeg.write(data, blocks)
    if data.startswith(png.SIGNATURE):
        return png.write(data, blocks)
    if webp.is_webp(data):
        return webp.write(data, blocks)
    if tiff.is_tiff(data):
        return tiff.write(data, blocks)
    raise ValueError("metadata can be put into a JPEG, PNG, WebP or TIFF image, and this is none")
