"""EXIF as one block of bytes, taken out of an encoded JPEG, PNG or WebP and put into another.

The block is a small TIFF file of its own. Carried whole, it keeps what writing its tags anew would lose: maker notes,
the thumbnail, exact fractions. Where an image has it: Exif 2.32 (JPEG), PNG 3rd edition, RFC 9649 (WebP).
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Literal

JPEG, PNG, RIFF = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF"  # what the files begin with
APP1, SCAN = b"\xff\xe1", b"\xff\xda"  # JPEG's markers
PREFIX = b"Exif\0\0"  # in a JPEG, tells EXIF from the other contents of APP1, such as XMP
JPEG_LIMIT = 65_527  # what the 16 bits of a segment's length leave beside themselves and the prefix
WEBP_EXIF, WEBP_ALPHA = 0x08, 0x10  # flags in the first byte of VP8X
BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
ORIENTATION = 0x0112
WHOLE_NUMBERS = {1: 1, 3: 2, 4: 4}  # TIFF's types BYTE, SHORT and LONG, and their sizes


def extract(data: bytes) -> bytes | None:
    """The first EXIF block of an encoded image, from its TIFF header on; None where there is none, or no such image.

    A WebP's chunk that its header does not announce is passed over, as readers do.
    """
    announced = data[12:16] == b"VP8X" and len(data) > 20 and data[20] & WEBP_EXIF
    if data.startswith(RIFF) and not announced:
        return None
    blocks = (_block(kind, body) for kind, body, _, _ in _parts(data))
    return next((block for block in blocks if block is not None), None)


def insert(data: bytes, block: bytes) -> bytes:
    """The encoded image with this EXIF block in place of any that is there; all else stays as it is.

    A JPEG holds at most 65,527 bytes: with a longer block it comes back as it was. Raises ValueError for data that is
    no JPEG, PNG or WebP image.
    """
    parts = list(_parts(data))
    if not parts:
        raise ValueError("EXIF can be put into a JPEG, PNG or WebP image, and this is none")
    if data.startswith(RIFF):
        return _webp([(kind, body) for kind, body, _, _ in parts if kind != b"EXIF"], block)
    if data.startswith(PNG):
        added = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
        position = parts[0][3]  # after IHDR
    elif len(block) <= JPEG_LIMIT:
        added = APP1 + struct.pack(">H", 2 + len(PREFIX) + len(block)) + PREFIX + block
        position = 2  # after the marker that starts the image
    else:
        return data
    for kind, body, start, end in reversed(parts):
        if _block(kind, body) is not None:
            data = data[:start] + data[end:]
    return data[:position] + added + data[position:]


def upright(block: bytes) -> bytes | None:
    """The block with 1 (upright) for each Orientation, the image's and the thumbnail's, and all else as it is.

    None where the image's directory is broken or an orientation is not one whole number, so that nobody can say what
    readers make of it.
    """
    order = BYTE_ORDERS.get(block[:4])
    if order is None:
        return None

    def number(at: int, size: int) -> int:
        return int.from_bytes(block[at : at + size], order)

    result = bytearray(block)
    directory = number(4, 4)
    for of_image in (True, False):
        entries = number(directory, 2)
        end = directory + 2 + 12 * entries
        if directory < 8 or entries == 0 or end > len(block):
            return None if of_image else bytes(result)  # a block without a thumbnail is whole
        for entry in range(directory + 2, end, 12):
            if number(entry, 2) == ORIENTATION:
                size = WHOLE_NUMBERS.get(number(entry + 2, 2))
                if size is None or number(entry + 4, 4) != 1:
                    return None
                result[entry + 8 : entry + 8 + size] = (1).to_bytes(size, order)
        directory = number(end, 4)
    return bytes(result)


def _block(kind: bytes, body: bytes) -> bytes | None:
    """The EXIF block in a segment or chunk, if it is one of EXIF. Some writers put the prefix into chunks too."""
    if kind in (b"eXIf", b"EXIF") or (kind == APP1 and body.startswith(PREFIX)):
        return body.removeprefix(PREFIX)
    return None


def _parts(data: bytes) -> Iterator[tuple[bytes, bytes, int, int]]:
    """Kind, body, start and end of each segment before the scan of a JPEG, or of each chunk of a PNG or WebP.

    Ends where the data does, or is no longer what it should be.
    """
    is_jpeg, is_png = data.startswith(JPEG), data.startswith(PNG)
    if not (is_jpeg or is_png or (data.startswith(RIFF) and data[8:12] == b"WEBP")):
        return
    start = 2 if is_jpeg else 8 if is_png else 12
    while True:
        if is_jpeg:
            marker = start
            while data[marker : marker + 2] == b"\xff\xff":  # bytes that fill up
                marker += 1
            kind, first = data[marker : marker + 2], marker + 4
            last = end = marker + 2 + int.from_bytes(data[marker + 2 : first], "big")
            if kind == SCAN or kind[:1] != b"\xff":
                return
        elif is_png:
            kind, first = data[start + 4 : start + 8], start + 8
            last = first + int.from_bytes(data[start : start + 4], "big")
            end = last + 4  # its checksum
            if end > len(data):
                return
        else:
            kind, first = data[start : start + 4], start + 8
            last = first + int.from_bytes(data[start + 4 : first], "little")
            end = last + last % 2
        if not first <= last <= len(data):
            return
        yield kind, data[first:last], start, end
        start = end


def _webp(chunks: list[tuple[bytes, bytes]], block: bytes) -> bytes:
    """A WebP file of these chunks and EXIF, which only the extended format may hold."""
    if not chunks or not chunks[0][1]:
        raise ValueError("EXIF cannot be put into a WebP without an image")
    kind, body = chunks[0]
    if kind == b"VP8X":
        header = bytes([body[0] | WEBP_EXIF]) + body[1:]
        chunks = chunks[1:]
    else:
        if kind == b"VP8L":  # lossless: the size minus one, and whether there is alpha
            bits = int.from_bytes(body[1:5], "little")
            width, height, alpha = bits & 0x3FFF, bits >> 14 & 0x3FFF, bits >> 28 & 1
        else:
            width, height = (int.from_bytes(body[at : at + 2], "little") - 1 & 0x3FFF for at in (6, 8))
            alpha = 0
        flags = WEBP_EXIF | WEBP_ALPHA * alpha
        header = struct.pack("<I", flags) + width.to_bytes(3, "little") + height.to_bytes(3, "little")
    chunks = [(b"VP8X", header), *chunks, (b"EXIF", block)]
    whole = b"".join(k + struct.pack("<I", len(b)) + b + b"\0" * (len(b) % 2) for k, b in chunks)
    return RIFF + struct.pack("<I", 4 + len(whole)) + b"WEBP" + whole
