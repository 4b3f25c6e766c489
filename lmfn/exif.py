"""EXIF as one block of bytes, out of an encoded JPEG, PNG or WebP and into another.

The block is a small TIFF file of its own. Carried whole, it keeps what rewriting its tags would lose: maker notes, the
thumbnail, exact fractions, offsets. Where each format has it: Exif 2.32 (JPEG, tags), PNG 3rd edition, RFC 9649 (WebP).
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Literal

JPEG, PNG, RIFF = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF"  # what such files begin with
APP1, PREFIX = b"\xff\xe1", b"Exif\0\0"  # the marker may also begin other things, such as XMP
WEBP_HAS_EXIF, WEBP_HAS_ALPHA = 0x08, 0x10
JPEG_LIMIT = 65_527  # what 16 bits of length leave beside themselves and the prefix
BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
ORIENTATION, WHOLE_NUMBERS = 0x0112, {1: 1, 3: 2, 4: 4}  # TIFF's BYTE, SHORT and LONG, and their bytes


def extract(data: bytes) -> bytes | None:
    """The first EXIF block of an encoded image, from its TIFF header on; None where there is none, or no such image.

    As for most readers, an EXIF chunk that the header of a WebP does not announce is none.
    """
    if data.startswith(RIFF) and not (data[12:16] == b"VP8X" and data[20] & WEBP_HAS_EXIF):
        return None
    for kind, start, end in _parts(data):
        if _is_exif(kind, data[start:end]):
            return data[start:end].removeprefix(PREFIX)
    return None


def insert(data: bytes, block: bytes) -> bytes:
    """The encoded image with this EXIF block, in place of any that is there; its samples stay as they are.

    A JPEG holds a block of at most 65,527 bytes: with a longer one it comes back as it was.
    Raises ValueError for data that is no JPEG, PNG or WebP.
    """
    parts = list(_parts(data))
    if not parts:
        raise ValueError("EXIF can only be put into a JPEG, PNG or WebP image")
    if data.startswith(RIFF):
        return _riff([(kind, data[start:end]) for kind, start, end in parts if kind != b"EXIF"], block)
    if data.startswith(PNG):
        added, at, head, tail = _png_chunk(b"eXIf" + block), 33, 8, 4  # right behind IHDR
    elif len(block) <= JPEG_LIMIT:
        added, at, head, tail = APP1 + struct.pack(">H", len(block) + 8) + PREFIX + block, 2, 4, 0
    else:
        return data
    for kind, start, end in reversed(parts):
        if _is_exif(kind, data[start:end]):
            data = data[: start - head] + data[end + tail :]
    return data[:at] + added + data[at:]


def upright(block: bytes) -> bytes | None:
    """The block with Orientation 1 (top left) wherever it has that tag, all other bytes as they are.

    None where its main directory is broken or the orientation is not one whole number: not all readers see the same in
    such a block.
    """
    order = BYTE_ORDERS.get(block[:4])
    if order is None:
        return None

    def number(at: int, size: int) -> int:
        return int.from_bytes(block[at : at + size], order)

    result = bytearray(block)
    directory = number(4, 4)
    for is_main in (True, False):  # the image's, then the thumbnail's, which may be missing or broken
        entries = number(directory, 2)
        end = directory + 2 + 12 * entries
        if directory < 8 or not entries or end > len(block):
            return None if is_main else bytes(result)
        for entry in range(directory + 2, end, 12):
            if number(entry, 2) == ORIENTATION:
                size = WHOLE_NUMBERS.get(number(entry + 2, 2))
                if size is None or number(entry + 4, 4) != 1:
                    return None
                result[entry + 8 : entry + 8 + size] = (1).to_bytes(size, order)
        directory = number(end, 4)
    return bytes(result)


def _parts(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the contents of each JPEG segment before the scan, or of each PNG or WebP chunk.

    Ends where the file is cut short or is none of these.
    """
    if data.startswith(JPEG):
        position = 2
        while data[position : position + 1] == b"\xff":
            kind = data[position : position + 2]
            if kind == b"\xff\xff":  # a byte to fill up with
                position += 1
                continue
            end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
            if kind == b"\xff\xda" or not position + 4 <= end <= len(data):
                return
            yield kind, position + 4, end
            position = end
        return
    if data.startswith(PNG):
        position, header = 8, struct.Struct(">I4s")
    elif data.startswith(RIFF) and data[8:12] == b"WEBP":
        position, header = 12, struct.Struct("<4sI")
    else:
        return
    ...
