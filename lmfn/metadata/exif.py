"""EXIF as one block of bytes: which way up the image is, and what must change in it when that changes.

The block is a small TIFF file of its own. Changed in place, it keeps what writing its tags anew would lose: maker
notes, exact fractions, whatever is not known here.
"""

import io

from lmfn.metadata.tiff import WHOLE_NUMBERS, Directories, Field

WIDTH, HEIGHT, ORIENTATION, PHOTO = 0x0100, 0x0101, 0x0112, 0x8769
THUMBNAIL, THUMBNAIL_LENGTH = 0x0201, 0x0202
PIXEL_X, PIXEL_Y = 0xA002, 0xA003


def orientation(block: bytes) -> int | None:
    """EXIF's Orientation; None where there is none."""
    tiff = Directories(io.BytesIO(block))
    main = tiff.first()
    fields = main.fields if main else ()
    return next((tiff.whole_number(field) for field in fields if field.tag == ORIENTATION), None)


def upright(block: bytes, turned: bool = False) -> bytes | None:
    """The block with 1 (upright) for each Orientation, the image's and the thumbnail's, and all else as it is.

    Where the image was turned, its thumbnail, which was not, is no longer referred to, and cut off if it is last.

    None where the image's directory is broken or an orientation is not one whole number, so that nobody can say what
    readers make of it.
    """
    tiff = Directories(io.BytesIO(block))
    main = tiff.first()
    if main is None:
        return None
    link = main.link
    thumbnail = tiff.directory(tiff.number(link, 4))
    fields = main.fields + (thumbnail.fields if thumbnail and not turned else [])
    orientations = [field for field in fields if field.tag == ORIENTATION]
    if any(tiff.whole_number(field) is None for field in orientations):
        return None
    result = _changed(block, tiff, [(field, 1) for field in orientations])
    if turned and thumbnail:
        result = result[:link] + bytes(4) + result[link + 4 :]
        place = {field.tag: tiff.whole_number(field) or 0 for field in thumbnail.fields}
        start = place.get(THUMBNAIL, 0)
        if start > link and not result[start + place.get(THUMBNAIL_LENGTH, 0) :].strip(b"\0"):
            result = result[:start]
    return result


def with_size(block: bytes, width: int, height: int) -> bytes:
    """The block with this size of the image wherever it names one."""
    tiff = Directories(io.BytesIO(block))
    main = tiff.first()
    fields = main.fields if main else []
    for field in fields:
        if field.tag == PHOTO and (photo := tiff.directory(tiff.number(field.at, 4))):
            fields = fields + photo.fields
    sizes = {WIDTH: width, HEIGHT: height, PIXEL_X: width, PIXEL_Y: height}
    return _changed(block, tiff, [(field, sizes[field.tag]) for field in fields if field.tag in sizes])


def _changed(block: bytes, tiff: Directories, values: list[tuple[Field, int]]) -> bytes:
    """The block with these values in fields of one whole number; others, and values too large, are passed over."""
    result = bytearray(block)
    for field, value in values:
        old, size = tiff.whole_number(field), WHOLE_NUMBERS.get(field.kind, 0)
        if old is not None and value < 256**size:
            result[field.at : field.at + size] = value.to_bytes(size, tiff.order or "big")
    return bytes(result)
