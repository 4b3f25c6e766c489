"""PNG: chunks of type, body and checksum, most of them before the pixels."""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from lmfn.metadata import exif
from lmfn.metadata.blocks import PART, Blocks, Piece

SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP = b"XML:com.adobe.xmp\0"
COLOUR = (b"cICP", b"mDCV", b"cLLI", b"sRGB", b"gAMA", b"cHRM")
SRGB = {  # values equal to the defaults
    b"cICP": bytes([1, 13, 0, 1]),
    b"gAMA": struct.pack(">I", 45_455),
    b"cHRM": struct.pack(">8I", 31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000),
}
LARGEST_PROFILE = 2**26  # bytes, inflated
LARGEST_TEXT = (
    2**23
)  # bytes of all compressed texts together, inflated: 7 kB may inflate to 7 MB, and a file may have thousands of them


def chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and length of the body of each chunk up to IEND; stops before an incomplete one."""
    size, start, kind = file.seek(0, io.SEEK_END), 8, b""
    while kind != b"IEND" and start + 12 <= size:
        file.seek(start)
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        start += length + 12
        if start <= size:
            yield kind, start - length - 4, length


def read(file: BinaryIO) -> Blocks:
    """EXIF, XMP, the profile, and the colour chunks; with a profile only the chunks that may accompany one."""
    exif_block = xmp = icc = None
    colour: list[tuple[bytes, bytes]] = []
    for kind, start, length in chunks(file):
        if kind not in (b"eXIf", b"iTXt", b"iCCP", *COLOUR):
            continue
        file.seek(start)
        body = file.read(length)
        if kind == b"eXIf":
            exif_block = exif_block or body.removeprefix(b"Exif\0\0")  # some writers add JPEG's prefix here
        elif kind == b"iTXt":
            xmp = xmp or _packet(body)
        elif kind == b"iCCP":
            icc = icc or inflate(body[body.find(b"\0") + 2 :], LARGEST_PROFILE)
        else:
            colour.append((kind, body))
    if icc:  # it has precedence over these, which may contradict it
        colour = [(kind, body) for kind, body in colour if kind not in (b"sRGB", b"gAMA", b"cHRM")]
    return Blocks(exif_block, xmp, icc, tuple(colour))


def write(file: BinaryIO, blocks: Blocks) -> list[Piece]:
    """The PNG with these blocks after its header; see `lmfn.metadata.insert`."""
    added = b"".join(chunk(kind, body) for kind, body in blocks.colour)
    if blocks.icc:
        added += chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(blocks.icc))
    if blocks.exif is not None:
        added += chunk(b"eXIf", blocks.exif)
    if blocks.xmp is not None:
        added += chunk(b"iTXt", XMP + bytes(4) + blocks.xmp)  # not compressed; no language

    pieces: list[Piece] = [SIGNATURE]
    header = b""
    for kind, start, length in chunks(file):
        body = b""
        if kind in (b"eXIf", b"iTXt"):
            file.seek(start)
            body = file.read(length)
        replaced = (
            kind in (b"iCCP", b"oFFs", *COLOUR)
            or (kind == b"eXIf" and (blocks.exif is not None or exif.upright(body) is None))
            or (kind == b"iTXt" and blocks.xmp is not None and body.startswith(XMP))
        )
        if not replaced:
            pieces.append(range(start - 8, start + length + 4))
        if not header:
            header = kind
            pieces.append(added)
    if header != b"IHDR":
        raise ValueError("metadata can be put into a PNG with a header, and this has none")
    return pieces


def chunk(kind: bytes, body: bytes) -> bytes:
    """The encoded chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def inflate(data: bytes, limit: int) -> bytes | None:
    """The inflated data; None if it is broken or longer than `limit` bytes."""
    decompressor = zlib.decompressobj()
    try:
        result = decompressor.decompress(data, limit)
    except zlib.error:
        return None
    return result if decompressor.eof else None


def is_srgb(colour: tuple[tuple[bytes, bytes], ...]) -> bool:
    """Whether these chunks equal the defaults."""
    said = dict(colour)
    if b"sRGB" in said and b"cICP" not in said:
        return True
    return all(SRGB.get(kind) == body for kind, body in said.items())


def is_interlaced(file: BinaryIO) -> bool:
    """Whether the pixels come in several passes, for which a decoder holds the whole image."""
    file.seek(28)
    return file.read(1) == b"\1"


def frames(file: BinaryIO) -> int:
    """The number of pictures: 1, or the frames of an animation plus a still image that may precede them."""
    count, still = 0, 0
    for kind, _, _ in chunks(file):
        count += kind == b"fcTL"
        if kind == b"IDAT" and not count:
            still = 1
    return count + still


def check(file: BinaryIO, pixels: bool) -> None:
    """Raise ValueError unless all chunks up to the end are present and intact, and the texts are not excessively large.

    Checks the chunks of the `pixels` only if requested. libpng does not notice if only the end of the file is missing,
    and prints other errors to stderr.
    """
    last, room = b"", LARGEST_TEXT
    for kind, start, length in chunks(file):
        if not last and (kind, length) != (b"IHDR", 13):
            raise ValueError("the file is broken (no header)")
        last = kind
        if kind == b"IDAT" and not pixels:
            continue
        file.seek(start)
        body, found = bytearray(), zlib.crc32(kind)
        for at in range(0, length, PART):  # all pixels may be in one chunk
            part = file.read(min(PART, length - at))
            found = zlib.crc32(part, found)
            body += b"" if kind == b"IDAT" else part
        if int.from_bytes(file.read(4), "big") != found:
            raise ValueError("the file is broken (wrong checksum)")
        with contextlib.suppress(zlib.error):  # OpenImageIO ignores a broken one
            room -= len(zlib.decompressobj().decompress(_compressed(kind, body), room + 1))
        if room < 0:
            raise ValueError(f"compressed texts of more than {LARGEST_TEXT / 1e6:.0f} MB")
    if last != b"IEND":
        raise ValueError("the file is cut short")


def _compressed(kind: bytes, body: bytearray) -> bytes | bytearray:
    """The compressed part of a text chunk: after the keyword, in iTXt also after the translation."""
    keyword = body.find(b"\0")
    if kind == b"zTXt":
        return body[keyword + 2 :]
    if kind == b"iTXt" and body[keyword + 1 : keyword + 2] == b"\1":
        return body[keyword + 3 :].split(b"\0", 2)[-1]
    return b""


def _packet(body: bytes) -> bytes | None:
    """The XMP packet in the body of an iTXt chunk, if it is one."""
    if not body.startswith(XMP) or len(body) < len(XMP) + 2:
        return None
    compressed = body[len(XMP)]
    text = body[len(XMP) + 2 :].split(b"\0", 2)[-1]  # after language and translation
    return inflate(text, LARGEST_TEXT) if compressed else text
