"""Extract EXIF, XMP, ICC profiles and PNG colour chunks from encoded images, and insert them into others byte for byte.

OpenImageIO rewrites tags, which loses maker notes and unknown fields, breaks ICC profiles above 65,519 bytes in JPEG,
and adds colour chunks to PNG that the source did not have. Blocks are therefore copied unchanged. Their positions are
defined by Exif 3.0, ICC.1 (Annex B) and XMP part 3 for JPEG, by PNG's 3rd edition, and by RFC 9649 for WebP.
"""

from collections.abc import Iterable, Iterator
from typing import BinaryIO

from lmfn.metadata import jpeg, png, tiff, webp
from lmfn.metadata.blocks import PART, Blocks, Piece

__all__ = ["Blocks", "extract", "insert"]


def extract(file: BinaryIO) -> Blocks:
    """The blocks of an encoded JPEG, PNG or WebP, and the XMP of a TIFF; none for any other file.

    The first of several EXIF blocks is used. Broken blocks are skipped.
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


def insert(file: BinaryIO, blocks: Blocks) -> Iterator[bytes]:
    """The encoded JPEG, PNG, WebP or TIFF with these blocks in place of its own, in parts; the bytes of the pixels are
    unchanged. Only a WebP is in memory as a whole.

    Blocks that are absent from `blocks` are kept from the file, except for PNG colours: a PNG gets the profile, or else
    the colour chunks, and no others. A JPEG can hold 65,527 bytes of EXIF and 65,504 of XMP; longer blocks are dropped.
    A TIFF gets only the XMP.

    Raises ValueError for data in another format, and for a profile too long for JPEG (above 16,707,345 bytes).
    """
    file.seek(0)
    head = file.read(12)
    if head.startswith(jpeg.SIGNATURE):
        return _resolved(file, jpeg.write(file, blocks))
    if head.startswith(png.SIGNATURE):
        return _resolved(file, png.write(file, blocks))
    if webp.is_webp(head):
        return iter([webp.write(head + file.read(), blocks)])
    if tiff.is_tiff(head):
        return _resolved(file, tiff.write(file, blocks))
    raise ValueError("metadata can be put into a JPEG, PNG, WebP or TIFF image, and this is none")


def _resolved(file: BinaryIO, pieces: Iterable[Piece]) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        file.seek(piece.start)
        for at in range(piece.start, piece.stop, PART):
            yield file.read(min(PART, piece.stop - at))
