"""JPEG: metadata are segments before the scan, of at most 65,533 bytes each."""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

from lmfn.metadata.blocks import PART, Blocks, Piece

SIGNATURE = b"\xff\xd8\xff"
APP1, APP2, SCAN, END = b"\xff\xe1", b"\xff\xe2", b"\xff\xda", b"\xff\xd9"
PROGRESSIVE = b"\xff\xc2"
LONGEST = 65_533  # maximum of the 16-bit segment length, minus its own two bytes
EXIF, XMP, ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
MORE_XMP = b"http://ns.adobe.com/xmp/extension/\0"
ICC_PART = LONGEST - len(ICC) - 2  # followed by the number of the part and the number of parts, one byte each
PICTURES = (SIGNATURE, b"ftyp")  # signatures of further pictures (JPEG) and videos (MP4)


def segments(file: BinaryIO) -> Iterator[tuple[bytes, int, bytes]]:
    """Marker, start and body of each segment before the scan, up to the end of the file or invalid data."""
    start = 2
    while True:
        file.seek(start)
        marker, size = file.read(2), file.read(2)
        if marker == b"\xff\xff":  # a fill byte
            start += 1
            continue
        length = int.from_bytes(size, "big")
        if marker == SCAN or marker[:1] != b"\xff" or length < 2:
            return
        body = file.read(length - 2)
        if len(body) < length - 2:
            return
        yield marker, start, body
        start += 2 + length


def read(file: BinaryIO) -> Blocks:
    """The first EXIF block, the first XMP packet, and the ICC profile if all of its parts are there."""
    exif = xmp = None
    parts: dict[int, bytes] = {}
    count = 0
    for marker, _, body in segments(file):
        if marker == APP1 and body.startswith(EXIF):
            exif = exif or body.removeprefix(EXIF)
        elif marker == APP1 and body.startswith(XMP):
            xmp = xmp or body.removeprefix(XMP)
        elif marker == APP2 and body.startswith(ICC) and len(body) > len(ICC) + 2:
            number, count = body[len(ICC) : len(ICC) + 2]
            parts.setdefault(number, body[len(ICC) + 2 :])
    whole = count > 0 and parts.keys() == set(range(1, count + 1))
    return Blocks(exif, xmp, b"".join(parts[n] for n in sorted(parts)) if whole else None)


def write(file: BinaryIO, blocks: Blocks) -> list[Piece]:
    """The JPEG with these blocks as its first segments; see `lmfn.metadata.insert`."""
    added: list[tuple[bytes, bytes, bytes]] = []
    if blocks.exif is not None and len(EXIF + blocks.exif) <= LONGEST:
        added.append((APP1, EXIF, blocks.exif))
    if blocks.xmp is not None and len(XMP + blocks.xmp) <= LONGEST:
        added.append((APP1, XMP, blocks.xmp))
    if blocks.icc:
        parts = [blocks.icc[at : at + ICC_PART] for at in range(0, len(blocks.icc), ICC_PART)]
        if len(parts) > 255:
            raise ValueError(f"JPEG cannot hold an ICC profile of {len(blocks.icc):,} bytes; write a PNG, TIFF or WebP")
        added += [(APP2, ICC, bytes([n, len(parts)]) + part) for n, part in enumerate(parts, 1)]

    replaced = {(marker, name) for marker, name, _ in added}
    pieces: list[Piece] = [range(2)]
    pieces += [marker + struct.pack(">H", 2 + len(name + body)) + name + body for marker, name, body in added]
    position = 2
    for marker, start, body in segments(file):
        if any(marker == kind and body.startswith(name) for kind, name in replaced):
            pieces.append(range(position, start))
            position = start + 4 + len(body)
    return [*pieces, range(position, file.seek(0, io.SEEK_END))]


def end(file: BinaryIO) -> int | None:
    """The end of the picture; None if it is missing. Within a scan, 0xFF is followed by 0 or a restart's number."""
    position = 2
    for _, start, body in segments(file):
        position = start + 4 + len(body)
    found = _find(file, END, position)
    return None if found is None else found + 2


def has_more(file: BinaryIO) -> bool:
    """Whether another picture (a gain map, a depth map) or a video follows the picture."""
    position = end(file)
    if position is None:
        return False
    return any(_find(file, start, position) is not None for start in PICTURES)


def has_extended_xmp(file: BinaryIO) -> bool:
    """Whether XMP was too long for one segment, and goes on in others."""
    return any(marker == APP1 and body.startswith(MORE_XMP) for marker, _, body in segments(file))


def is_progressive(file: BinaryIO) -> bool:
    """Whether the picture comes in several passes, of which a decoder holds all coefficients."""
    return any(marker == PROGRESSIVE for marker, _, _ in segments(file))


def _find(file: BinaryIO, what: bytes, position: int) -> int | None:
    """The first place of these bytes from a position on, searched for in parts, since the file may be large."""
    file.seek(position)
    before = b""
    while part := file.read(PART):
        if (found := (before + part).find(what)) >= 0:
            return position - len(before) + found
        position += len(part)
        before = (before + part)[1 - len(what) :]
    return None
