"""EXIF blocks: read the orientation, and update the block when the image is rotated or resized.

The block is a small TIFF file. Changing it in place keeps what rewriting its tags would lose: maker notes, exact
fractions, unknown fields.
"""

import io

from lmfn.metadata.tiff import WHOLE_NUMBERS, Directories, Field

WIDTH, HEIGHT, ORIENTATION, PHOTO = 0x0100, 0x0101, 0x0112, 0x8769
THUMBNAIL, THUMBNAIL_LENGTH = 0x0201, 0x0202
PIXEL_X, PIXEL_Y = 0xA002, 0xA003


def orientation(block: bytes) -> int | None:
    """EXIF's Orientation; None if absent."""
    tiff = Directories(io.BytesIO(block))
    main = tiff.first()
    fields = main.fields if main else ()
    return next((tiff.whole_number(field) for field in fields if field.tag == ORIENTATION), None)


def upright(block: bytes, turned: bool = False) -> bytes | None:
    """The block with Orientation 1 (upright) for the image and the thumbnail, otherwise unchanged.

    If the image was rotated, its unrotated thumbnail is unlinked, and cut off if it comes last.

    None if the image's directory is broken or an orientation is not one whole number, so that readers may disagree.
    """
    tiff = Directories(io.BytesIO(block))
    main = tiff.first()
    if main is None:
        return None
    link = main.link
    thumbnail = tiff.directory(tiff.offset(link))
    fields = main.fields + (thumbnail.fields if thumbnail and not turned else [])
    orientations = [field for field in fields if field.tag == ORIENTATION]
    if any(tiff.whole_number(field) is None for field in orientations):
        return None
    result = _changed(block, tiff, [(field, 1) for field in orientations])
    if turned and thumbnail:
        result = result[:link] + bytes(tiff.wide) + result[link + tiff.wide :]
        place = {field.tag: tiff.whole_number(field) or 0 for field in thumbnail.fields}
        start = place.get(THUMBNAIL, 0)
        if start > link and not result[start + place.get(THUMBNAIL_LENGTH, 0) :].strip(b"\0"):
            result = result[:start]
    return result


def with_size(block: bytes, width: int, height: int) -> bytes:
    """The block with this image size in all its size fields."""
    tiff = Directories(io.BytesIO(block))
    main = tiff.first()
    fields = main.fields if main else []
    for field in fields:
        if field.tag == PHOTO and (photo := tiff.directory(tiff.offset(field.at))):
            fields = fields + photo.fields
    sizes = {WIDTH: width, HEIGHT: height, PIXEL_X: width, PIXEL_Y: height}
    return _changed(block, tiff, [(field, sizes[field.tag]) for field in fields if field.tag in sizes])


def _changed(block: bytes, tiff: Directories, values: list[tuple[Field, int]]) -> bytes:
    """The block with these values in fields of one whole number; other fields, and values too large, are skipped."""
    result = bytearray(block)
    for field, value in values:
        old, size = tiff.whole_number(field), WHOLE_NUMBERS.get(field.kind, 0)
        if old is not None and value < 256**size:
            result[field.at : field.at + size] = value.to_bytes(size, tiff.order or "big")
    return bytes(result)
