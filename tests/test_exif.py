"""EXIF blocks in encoded images against Pillow (libwebp's own muxer assembles its WebP files) and against raw bytes."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms

from lmfn import exif

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FORMATS = ("jpeg", "png", "webp")


def picture(mode="RGB", size=(33, 20)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(data):
    return Image.open(io.BytesIO(data))


THUMBNAIL = encode(picture(size=(8, 5)), "jpeg")


def block(order="<", orientation=6):
    """An EXIF block, laid out by hand: two orientations, a maker note, an exposure time of 1/8001 s, a thumbnail."""
    number = f"{order}HHI"

    def directory(*entries, following=0):
        return struct.pack(order + "H", len(entries)) + b"".join(entries) + struct.pack(order + "I", following)

    def short(tag, value):
        return struct.pack(f"{number}HH", tag, 3, 1, value, 0xABCD)  # the bytes left over are anybody's

    def at(tag, kind, count, offset):
        return struct.pack(f"{number}I", tag, kind, count, offset)

    header = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    main = directory(at(0x010F, 2, 6, 400), short(0x0112, orientation), at(0x8769, 4, 1, 100), following=200)
    photo = directory(at(0x829A, 5, 1, 410), at(0x927C, 7, 40, 420))
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


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def riff(*chunks):
    whole = b"WEBP" + b"".join(k + struct.pack("<I", len(b)) + b + b"\0" * (len(b) % 2) for k, b in chunks)
    return b"RIFF" + struct.pack("<I", len(whole)) + whole


def segment(body, marker=b"\xff\xe1"):
    return marker + struct.pack(">H", len(body) + 2) + body


VARIANTS = {
    "jpeg": ("jpeg", picture(), {"icc_profile": SRGB}),
    "progressive": ("jpeg", picture(), {"progressive": True}),
    "gray jpeg": ("jpeg", picture("L"), {}),
    "commented": ("jpeg", picture(), {"comment": b"Exif\0\0", "xmp": b"<x/>"}),
    "png": ("png", picture(), {"icc_profile": SRGB, "dpi": (300, 300)}),
    "palette": ("png", picture().quantize(9), {"transparency": 3}),
    "gray + alpha": ("png", picture("LA"), {}),
    "16 bits": ("png", Image.fromarray(np.arange(660, dtype=np.uint16).reshape(20, 33)), {}),
    "webp": ("webp", picture(), {}),
    "alpha": ("webp", picture("RGBA"), {}),
    "profile": ("webp", picture(), {"icc_profile": SRGB}),
    "odd profile": ("webp", picture("RGBA"), {"icc_profile": SRGB + b"x", "xmp": b"<x/>"}),
    "lossless": ("webp", picture(), {"lossless": True}),
    "lossless alpha": ("webp", picture("RGBA"), {"lossless": True}),
    "one pixel": ("webp", picture(size=(1, 1)), {"lossless": True}),
    "wide": ("webp", picture(size=(16383, 1)), {}),
    "high": ("webp", picture(size=(1, 16383)), {"lossless": True}),
    "moving": ("webp", picture(), {"save_all": True, "append_images": [picture("L").convert("RGB")]}),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("order", "<>")
def test_extract_what_pillow_has_written(kind, order):
    assert exif.extract(encode(picture(), kind, exif=b"Exif\0\0" + block(order))) == block(order)
    assert exif.extract(encode(picture(), kind)) is None
    assert exif.extract(encode(picture(), "tiff")) is None


@pytest.mark.parametrize("name", VARIANTS)
def test_insert_and_nothing_else_changes(name):
    kind, image, options = VARIANTS[name]
    data = encode(image, kind, **options)
    for size in (len(block()), len(block()) - 1):  # odd and even
        new = exif.insert(data, block()[:size])
        assert exif.extract(new) == block()[:size]
        before, after = decode(data), decode(new)
        assert after.info["exif"].removeprefix(b"Exif\0\0") == block()[:size]
        assert after.mode == before.mode
        assert np.array_equal(np.asarray(after), np.asarray(before))
        assert dict(after.getexif()) == {0x010F: "Canon", 0x0112: 6, 0x8769: 100}
        for kept in ("icc_profile", "xmp", "comment", "loop", "transparency"):
            assert after.info.get(kept) == before.info.get(kept), kept
        # Whatever was there is replaced; and all other bytes are there still, in their order.
        assert exif.insert(exif.insert(data, b"old" * 999), block()[:size]) == new
        if kind == "webp":
            by_libwebp = encode(image, kind, exif=block()[:size], **options)
            if name != "odd profile":  # whose XMP libwebp puts behind EXIF
                assert new == by_libwebp
            assert new[:30] == by_libwebp[:30]
            assert len(new) == len(by_libwebp)
        elif kind == "png":
            assert new == data[:33] + chunk(b"eXIf", block()[:size]) + data[33:]
        else:
            assert new == data[:2] + segment(b"Exif\0\0" + block()[:size]) + data[2:]


def test_the_longest_block_of_a_jpeg():
    data = encode(picture(), "jpeg")
    whole = exif.insert(data, bytes(65_527))
    assert exif.extract(whole) == bytes(65_527)
    assert np.array_equal(np.asarray(decode(whole)), np.asarray(picture_of(data)))
    assert exif.insert(whole, bytes(65_528)) == whole
    for kind in ("png", "webp"):
        assert exif.extract(exif.insert(encode(picture(), kind), bytes(200_001))) == bytes(200_001)


def picture_of(data):
    return decode(data).convert("RGB")


def test_odd_places():
    jpeg, png, webp = (encode(picture(), kind) for kind in FORMATS)
    inside = segment(b"Exif\0\0" + block())
    table = jpeg.index(b"\xff\xc4")
    for data in (
        jpeg[:table] + inside + jpeg[table:],  # between the tables
        jpeg[:2] + b"\xff\xff\xff" + inside + jpeg[2:],  # behind bytes that fill up
        jpeg[:2] + segment(b"http://ns.adobe.com/xap/1.0/\0<x/>") + inside + jpeg[2:],
        jpeg[:2] + inside + segment(b"Exif\0\0another") + jpeg[2:],
        png[:-12] + chunk(b"eXIf", block()) + png[-12:],  # behind the pixels
        png[:33] + chunk(b"eXIf", b"Exif\0\0" + block()) + png[33:],  # with the prefix of a JPEG
    ):
        assert exif.extract(data) == block()
        plain = {b"\xff": jpeg, b"\x89": png}[data[:1]]
        assert exif.extract(exif.insert(data, b"new")) == b"new"
        assert len(exif.insert(data, b"new")) <= len(exif.insert(plain, b"new")) + 40
        assert np.array_equal(np.asarray(decode(exif.insert(data, b"new"))), np.asarray(decode(plain)))
    image = (b"VP8 ", webp[20 : 20 + int.from_bytes(webp[16:20], "little")])
    size = struct.pack("<HBHB", 32, 0, 19, 0)
    announced, silent = (b"VP8X", b"\x08\0\0\0" + size), (b"VP8X", b"\0\0\0\0" + size)
    assert exif.extract(riff(announced, (b"EXIF", block()), image)) == block()
    assert exif.extract(riff(announced, image, (b"EXIF", b"Exif\0\0" + block()))) == block()
    new = riff(announced, image, (b"EXIF", b"new"))
    for chunks in ((announced, (b"EXIF", block()), image), (silent, image, (b"EXIF", block()))):
        assert exif.insert(riff(*chunks) + b"behind the end", b"new") == new
    for data in (riff(silent, image, (b"EXIF", block())), riff(image, (b"EXIF", block()))):
        assert exif.extract(data) is None  # as Pillow has it:
        assert "exif" not in decode(data).info


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


def test_insert_into_what_is_no_image():
    for data in (
        b"",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF",
        riff(),
        riff((b"EXIF", b"")),
        encode(picture(), "bmp"),
    ):
        with pytest.raises(ValueError, match="EXIF can"):
            exif.insert(data, block())


WHOLE = [encode(picture(size=(3, 2)), kind, exif=block()) for kind in FORMATS]


@settings(max_examples=300)
@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"RIFF\0\0\0\0WEBPVP8X"]),
    st.binary(),
)
def test_any_bytes(start, data):
    check_any(start + data)


@settings(max_examples=300)
@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), max_size=4), st.floats(0, 1))
def test_mutated_images(data, changes, length):
    for place, new in changes:
        at = int(place * len(data))
        data = data[:at] + new + data[at + len(new) :]
    check_any(data[: int(length * len(data))])
    check_any(data)


def check_any(data):
    found = exif.extract(data)
    assert found is None or found in data
    try:
        new = exif.insert(data, b"new")
    except ValueError:
        return
    assert exif.extract(new) == b"new"
    assert exif.insert(new, b"new") == new


@settings(max_examples=300)
@given(st.sampled_from("<>"), st.lists(st.tuples(st.integers(0, 260), st.binary(max_size=4)), max_size=4))
def test_upright_of_mutated_blocks(order, changes):
    data = block(order)
    for at, new in changes:
        data = data[:at] + new + data[at + len(new) :]
    turned = exif.upright(data)
    if turned is not None:  # what has changed is the value, at most four bytes, of an entry with the tag
        tag = struct.pack(order + "H", 0x0112)
        for at, (old, new) in enumerate(zip(data, turned, strict=True)):
            assert old == new or tag in (data[at - n : at - n + 2] for n in (8, 9, 10, 11))
