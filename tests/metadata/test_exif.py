"""EXIF blocks written by hand, read by Pillow."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from lmfn.metadata import exif

THUMBNAIL = b"\xff\xd8 a small picture \xff\xd9"


def block(order="<", orientation=6):
    """An EXIF block written by hand: sizes, two orientations, a maker note, an exposure time of 1/8001 s, a
    thumbnail."""
    number = f"{order}HHI"

    def directory(*entries, following=0):
        return struct.pack(order + "H", len(entries)) + b"".join(entries) + struct.pack(order + "I", following)

    def short(tag, value):
        return struct.pack(f"{number}HH", tag, 3, 1, value, 0xABCD)  # the remaining bytes may be anything

    def at(tag, kind, count, offset):
        return struct.pack(f"{number}I", tag, kind, count, offset)

    header = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    main = directory(
        at(0x0100, 4, 1, 4000), at(0x010F, 2, 6, 400), short(0x0112, orientation), at(0x8769, 4, 1, 100), following=200
    )
    photo = directory(at(0x829A, 5, 1, 410), at(0x927C, 7, 40, 420), short(0xA002, 4000), short(0xA003, 3000))
    small = directory(
        short(0x0103, 6), short(0x0112, orientation), at(0x0201, 4, 1, 500), at(0x0202, 4, 1, len(THUMBNAIL))
    )
    data = bytearray(b"\x99" * 500) + THUMBNAIL + b"behind the thumbnail"
    for offset, part in (
        (0, header), (8, main), (100, photo), (200, small), (400, b"Canon\0"),
        (410, struct.pack(order + "II", 1, 8001)), (420, b"maker's own " * 3 + b"\0\xff\x12\x01"),
    ):  # fmt: skip
        data[offset : offset + len(part)] = part
    return bytes(data)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_changes_both_orientations_and_nothing_else(order, orientation):
    assert exif.upright(block(order, orientation)) == block(order, 1)
    tags = Image.Exif()
    tags.load(b"Exif\0\0" + exif.upright(block(order, orientation)))
    assert tags[0x0112] == 1
    assert tags.get_ifd(ExifTags.IFD.IFD1)[0x0112] == 1
    assert tags.get_ifd(0x8769)[0x829A] * 8001 == 1


@pytest.mark.parametrize("order", "<>")
def test_upright_with_odd_blocks(order):
    def tiny(kind, count, value, rest=b""):
        head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HIH", 42, 8, 1)
        return head + struct.pack(order + "HHI", 0x0112, kind, count) + value + rest

    for kind, number in ((1, "B"), (3, "H"), (4, "I")):
        eight, one = (struct.pack(order + number, n).ljust(4, b"\x77") for n in (8, 1))
        for rest in (b"", b"\0", bytes(4), struct.pack(order + "I", 8), b"\xff" * 4):  # where the next directory is
            assert exif.upright(tiny(kind, 1, eight, rest)) == tiny(kind, 1, one, rest)
    whole = block(order)
    for broken in (
        b"", whole[:3], whole[:8], whole[:9], whole[:40], b"AB" + whole[2:], whole[:2] + b"++" + whole[4:],
        whole[:4] + bytes(4) + whole[8:], whole[:4] + b"\xff" * 4 + whole[8:], whole[:8] + bytes(2) + whole[10:],
        tiny(3, 2, bytes(4)), tiny(5, 1, bytes(4)), tiny(2, 1, b"8\0\0\0"),
    ):  # fmt: skip
        assert exif.upright(broken) is None
    cut = whole[:220]  # in the thumbnail's directory
    assert exif.upright(cut) == block(order, 1)[:220]
    without = whole.replace(struct.pack(order + "HHI", 0x0112, 3, 1), struct.pack(order + "HHI", 0x0113, 3, 1))
    assert exif.upright(without) == without


def tags_of(data):
    tags = Image.Exif()
    tags.load(b"Exif\0\0" + data)
    return tags


@pytest.mark.parametrize("order", "<>")
def test_a_turned_image_has_no_thumbnail_of_the_unturned_one(order):
    end = b"behind the thumbnail"
    whole = block(order)
    kept = exif.upright(whole, turned=True)
    assert len(kept) == len(whole), "what is behind it may be anything's"
    cut = exif.upright(whole.removesuffix(end) + bytes(9), turned=True)
    assert cut == kept[:500]
    for changed in (kept, cut):
        tags = tags_of(changed)
        assert tags[0x0112] == 1
        assert tags.get_ifd(ExifTags.IFD.IFD1) == {}
        assert tags.get_ifd(0x8769)[0x829A] * 8001 == 1
    assert tags_of(exif.upright(whole)).get_ifd(ExifTags.IFD.IFD1)[0x0202] == len(THUMBNAIL)


@pytest.mark.parametrize("order", "<>")
def test_sizes(order):
    changed = exif.with_size(block(order), 3456, 70_000)
    tags = tags_of(changed)
    photo = tags.get_ifd(0x8769)
    assert tags[0x0100] == photo[0xA002] == 3456
    assert photo[0xA003] == 3000, "16 bits cannot hold it"
    assert sum(a != b for a, b in zip(changed, block(order), strict=True)) <= 4
    assert exif.with_size(changed, 4000, 3000) == block(order)
    for broken in (b"", b"II*\0", b"no block at all", block(order)[:9]):
        assert exif.with_size(broken, 1, 1) == broken


@pytest.mark.parametrize("order", "<>")
def test_orientation(order):
    for value in (0, 1, 6, 8, 99):
        assert exif.orientation(block(order, value)) == value
    without = block(order).replace(struct.pack(order + "HH", 0x0112, 3), struct.pack(order + "HH", 0x0113, 3))
    for nothing in (b"", b"II*\0", block(order)[:40], without):
        assert exif.orientation(nothing) is None


@settings(max_examples=300)
@given(st.sampled_from("<>"), st.lists(st.tuples(st.integers(0, 260), st.binary(max_size=4)), max_size=4))
def test_upright_of_mutated_blocks(order, changes):
    data = block(order)
    for at, new in changes:
        data = data[:at] + new + data[at + len(new) :]
    exif.orientation(data)
    exif.upright(data, turned=True)
    assert len(exif.with_size(data, 7, 5)) == len(data)
    turned = exif.upright(data)
    if turned is not None:  # only the value, at most four bytes, of an entry with the tag has changed
        tag = struct.pack(order + "H", 0x0112)
        for at, (old, new) in enumerate(zip(data, turned, strict=True)):
            assert old == new or tag in (data[at - n : at - n + 2] for n in (8, 9, 10, 11))
