"""TIFF files, including EXIF blocks: a linked list of directories of fields."""

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple

from lmfn.metadata.blocks import Blocks, Piece

BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {
    b"II*\0": "little", b"MM\0*": "big", b"II+\0": "little", b"MM\0+": "big",
}  # fmt: skip
BIG = (b"II+\0", b"MM\0+")
"""BigTIFF, for files above 4 GB: as TIFF, with offsets and counts of 8 bytes."""
WHOLE_NUMBERS = {1: 1, 3: 2, 4: 4}  # the types BYTE, SHORT and LONG, and their sizes
BYTE, UNDEFINED = 1, 7
XMP = 0x02BC
NOT_KEPT = {
    "the georeference": (33550, 33920, 33922, 34264, 34735),
    "the layers": (37724,),
    "the value for no data": (42113,),
}
"""What rewriting a TIFF loses beside the picture, by the tags that say it."""


@dataclass(frozen=True)
class Field:
    tag: int
    kind: int
    count: int
    at: int
    """Position of the value or, where it is longer than an offset, of its offset."""


class Directory(NamedTuple):
    fields: list[Field]
    link: int
    """Position of the offset of the next directory."""


class Directories:
    """The directories of a TIFF file; none for other files."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        file.seek(0)
        head = file.read(4)
        self.order = BYTE_ORDERS.get(head)
        self.wide = 8 if head in BIG else 4
        """Bytes of an offset."""

    def number(self, at: int, size: int) -> int:
        self.file.seek(at)
        return int.from_bytes(self.file.read(size), self.order or "big")

    def offset(self, at: int) -> int:
        return self.number(at, self.wide)

    def directory(self, at: int) -> Directory | None:
        """The directory at this offset; None if incomplete."""
        before, each = (8, 20) if self.wide == 8 else (2, 12)
        count = self.number(at, before)
        end = at + before + each * count
        if self.order is None or at < 2 * self.wide or count == 0 or self.file.seek(0, io.SEEK_END) < end:
            return None
        fields = [
            Field(self.number(field, 2), self.number(field + 2, 2), self.offset(field + 4), field + 4 + self.wide)
            for field in range(at + before, end, each)
        ]
        return Directory(fields, end)

    def first(self) -> Directory | None:
        """The directory of the first image."""
        return self.directory(self.offset(self.wide))

    def whole_number(self, field: Field) -> int | None:
        """The value of a field of one whole number; None for other fields."""
        if field.kind not in WHOLE_NUMBERS or field.count != 1:
            return None
        return self.number(field.at, WHOLE_NUMBERS[field.kind])


def is_tiff(data: bytes) -> bool:
    return data[:4] in BYTE_ORDERS


def read(file: BinaryIO) -> Blocks:
    """The XMP of the first image; other metadata of a TIFF is in separate fields."""
    tiff = Directories(file)
    first = tiff.first()
    for field in first.fields if first else ():
        if field.tag == XMP and field.kind in (BYTE, UNDEFINED) and field.count > tiff.wide:
            start = tiff.offset(field.at)
            whole = start + field.count <= file.seek(0, io.SEEK_END)
            return Blocks(xmp=_bytes(file, start, field.count) if whole else None)
    return Blocks()


def not_kept(file: BinaryIO) -> list[str]:
    """What the first image's fields say that is not kept: `NOT_KEPT`."""
    first = Directories(file).first()
    tags = {field.tag for field in first.fields} if first else set()
    return [name for name, those in NOT_KEPT.items() if tags.intersection(those)]


def write(file: BinaryIO, blocks: Blocks) -> list[Piece]:
    """The TIFF with this XMP; see `lmfn.metadata.insert`. The first directory is rewritten at the end."""
    tiff, size = Directories(file), file.seek(0, io.SEEK_END)
    first, wide, xmp = tiff.first(), tiff.wide, blocks.xmp or b""
    if first is None or len(xmp) <= wide or size + len(xmp) + 2**20 > 256**wide:
        return [range(size)]
    order = "<" if tiff.order == "little" else ">"
    offset, count = ("Q", "Q") if wide == 8 else ("I", "H")
    start = size + -size % wide
    end = start + len(xmp)
    place = end + -end % wide
    head = 4 + wide
    entries = {field.tag: _bytes(file, field.at - head, head + wide) for field in first.fields}
    entries[XMP] = struct.pack(f"{order}HH{offset}{offset}", XMP, BYTE, len(xmp), start)
    directory = struct.pack(order + count, len(entries)) + b"".join(entries[tag] for tag in sorted(entries))
    packet = bytes(start - size) + xmp + bytes(place - end)
    link = range(first.link, first.link + wide)
    return [range(wide), struct.pack(order + offset, place), range(2 * wide, size), packet, directory, link]


def _bytes(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)
