"""WebP: chunks in a RIFF file. Metadata and animations need the extended format, whose first chunk is VP8X."""

import io
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from lmfn.metadata.blocks import Blocks

FLAGS = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}  # flags of VP8X for these chunks
ALPHA, ANIMATION = 0x10, 0x02


def is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and length of the body of each complete chunk."""
    size, start = file.seek(0, io.SEEK_END), 12
    while start + 8 <= size:
        file.seek(start)
        head = file.read(8)
        kind, length = head[:4], int.from_bytes(head[4:], "little")
        if start + 8 + length > size:
            return
        yield kind, start + 8, length
        start += 8 + length + length % 2


def read(file: BinaryIO) -> Blocks:
    """EXIF, XMP and the profile. Chunks not announced in the header are ignored, as by readers."""
    found: dict[bytes, bytes] = {}
    for kind, start, length in chunks(file):
        if kind == b"VP8X" or kind in FLAGS:
            file.seek(start)
            found.setdefault(kind, file.read(length))
    flags = (found.get(b"VP8X") or b"\0")[0]
    icc, exif, xmp = (found.get(kind) if flags & flag else None for kind, flag in FLAGS.items())
    if exif is not None:
        exif = exif.removeprefix(b"Exif\0\0")  # some writers add JPEG's prefix here
    return Blocks(exif, xmp, icc)


def write(data: bytes, blocks: Blocks) -> bytes:
    """The WebP with these blocks around its image; see `lmfn.metadata.insert`."""
    found = _parts(data)
    said = {kind: body for kind, body in found if kind in FLAGS}
    given = {b"ICCP": blocks.icc, b"EXIF": blocks.exif, b"XMP ": blocks.xmp}
    said |= {kind: body for kind, body in given.items() if body is not None}
    image = [(kind, body) for kind, body in found if kind != b"VP8X" and kind not in FLAGS]
    if not image or not image[0][1]:
        raise ValueError("metadata cannot be put into a WebP without an image")
    extended = found[0][0] == b"VP8X"
    if not said and not extended:
        return data
    header = bytearray(found[0][1] if extended else _header(*image[0]))
    header[0] = header[0] & (ALPHA | ANIMATION) | sum(FLAGS[kind] for kind in said)
    before, behind = (
        [(kind, said[kind]) for kind in kinds if kind in said] for kinds in ((b"ICCP",), (b"EXIF", b"XMP "))
    )
    return _riff([(b"VP8X", bytes(header)), *before, *image, *behind])


def animate(stills: Sequence[tuple[bytes, int]], loops: int) -> bytes:
    """An animation of WebP images of one size, each with its duration in milliseconds; 0 loops means endless."""
    parts, header = [], bytearray(10)
    for still, duration in stills:
        found = _parts(still)
        image = [part for part in found if part[0] in (b"ALPH", b"VP8 ", b"VP8L")]
        of_frame = found[0][1] if found[0][0] == b"VP8X" else _header(*image[0])
        header[0] |= of_frame[0] & ALPHA | ANIMATION
        header[4:] = of_frame[4:10]
        # At the corner; full size; replacing the previous frame instead of blending with it.
        head = bytes(6) + bytes(header[4:]) + min(duration, 2**24 - 1).to_bytes(3, "little") + b"\x02"
        parts.append((b"ANMF", head + _joined(image)))
    return _riff([(b"VP8X", bytes(header)), (b"ANIM", struct.pack("<IH", 0, loops)), *parts])


class Frame(NamedTuple):
    """A part of an animation, drawn over the previous frame."""

    still: bytes
    """The part as a separate WebP."""
    left: int
    top: int
    duration: int
    """In milliseconds."""
    blended: bool
    """Whether it is blended with the previous frame instead of replacing it."""
    removed: bool
    """Whether its area becomes transparent before the next frame."""


def frames(file: BinaryIO) -> Iterator[Frame]:
    """The frames of an animation; none for other WebP files."""
    for kind, start, length in chunks(file):
        if kind == b"ANMF" and length > 16:
            file.seek(start)
            body = file.read(length)
            left, top, duration = (int.from_bytes(body[at : at + 3], "little") for at in (0, 3, 12))
            parts = _parts(b"RIFF    WEBP" + body[16:])
            parts = [(kind, part) for kind, part in parts if kind in (b"ALPH", b"VP8 ", b"VP8L")]
            if parts and parts[0][0] == b"ALPH":
                header = bytearray(10)
                header[0], header[4:] = ALPHA, body[6:12]
                parts = [(b"VP8X", bytes(header)), *parts]
            yield Frame(_riff(parts), 2 * left, 2 * top, duration, not body[15] & 2, bool(body[15] & 1))


def count(file: BinaryIO) -> int:
    """The number of frames of an animation; 0 for a still image."""
    return sum(kind == b"ANMF" and length > 16 for kind, _, length in chunks(file))


def loops(file: BinaryIO) -> int:
    """The number of repetitions of an animation; 0 is endless."""
    for kind, start, length in chunks(file):
        if kind == b"ANIM" and length >= 6:
            file.seek(start + 4)
            return int.from_bytes(file.read(2), "little")
    return 0


def _header(kind: bytes, body: bytes) -> bytes:
    """A VP8X chunk for an image without one: flags, and the size minus one."""
    if kind == b"VP8L":  # lossless
        bits = int.from_bytes(body[1:5], "little")
        width, height, alpha = bits & 0x3FFF, bits >> 14 & 0x3FFF, bits >> 28 & 1
    else:
        width, height = (int.from_bytes(body[at : at + 2], "little") - 1 & 0x3FFF for at in (6, 8))
        alpha = 0
    return struct.pack("<I", ALPHA * alpha) + width.to_bytes(3, "little") + height.to_bytes(3, "little")


def _parts(data: bytes) -> list[tuple[bytes, bytes]]:
    """Type and body of the chunks."""
    return [(kind, data[start : start + length]) for kind, start, length in chunks(io.BytesIO(data))]


def _joined(parts: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"".join(kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for kind, body in parts)


def _riff(parts: Sequence[tuple[bytes, bytes]]) -> bytes:
    whole = _joined(parts)
    return b"RIFF" + struct.pack("<I", 4 + len(whole)) + b"WEBP" + whole
