"""TIFF files, including EXIF blocks: a linked list of directories of fields."""

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple

from lmfn.metadata.blocks import Blocks, Piece

BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
WHOLE_NUMBERS = {1: 1, 3: 2, 4: 4}  # the types BYTE, SHORT and LONG, and their sizes
BYTE, UNDEFINED = 1, 7
XMP = 0x02BC


@dataclass(frozen=True)
class Field:
    tag: int
    kind: int
    count: int
    at: int
    """Position of the value or, above four bytes, of its offset."""


class Directory(NamedTuple):
    fields: list[Field]
    link: int
    """Position of the offset of the next directory."""


class Directories:
    """The directories of a TIFF file; none for BigTIFF (above 4 GB) and other files."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        file.seek(0)
        self.order = BYTE_ORDERS.get(file.read(4))

    def number(self, at: int, size: int) -> int:
        self.file.seek(at)
        return int.from_bytes(self.file.read(size), self.order or "big")

    def directory(self, at: int) -> Directory | None:
        """The directory at this offset; None if incomplete."""
        count = self.number(at, 2)
        end = at + 2 + 12 * count
        if self.order is None or at < 8 or count == 0 or self.file.seek(0, io.SEEK_END) < end:
            return None
        fields = [
            Field(self.number(field, 2), self.number(field + 2, 2), self.number(field + 4, 4), field + 8)
            for field in range(at + 2, end, 12)
        ]
        return Directory(fields, end)

    def first(self) -> Directory | None:
        """The directory of the first image."""
        return self.directory(self.number(4, 4))

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
        if field.tag == XMP and field.kind in (BYTE, UNDEFINED) and field.count > 4:
            file.seek(tiff.number(field.at, 4))
            packet = file.read(field.count)
            return Blocks(xmp=packet if len(packet) == field.count else None)
    return Blocks()


def write(file: BinaryIO, blocks: Blocks) -> list[Piece]:
    """The TIFF with this XMP; see `lmfn.metadata.insert`. The first directory is rewritten at the end."""
    tiff, size = Directories(file), file.seek(0, io.SEEK_END)
    first = tiff.first()
    if first is None or blocks.xmp is None or size + len(blocks.xmp) + 2**20 > 2**32:
        return [range(size)]
    order = {"little": "<", "big": ">"}[tiff.order or "big"]
    start = size + size % 2
    end = start + len(blocks.xmp)
    entries = {field.tag: _bytes(file, field.at - 8, 12) for field in first.fields}
    entries[XMP] = struct.pack(order + "HHII", XMP, BYTE, len(blocks.xmp), start)
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries))
    place = struct.pack(order + "I", end + end % 2)
    packet = bytes(start - size) + blocks.xmp + bytes(end % 2)
    return [range(4), place, range(8, size), packet, directory, range(first.link, first.link + 4)]


def _bytes(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)
