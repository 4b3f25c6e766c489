"""Blocks in encoded images against Pillow (libwebp's own muxer assembles its WebP files) and against raw bytes."""

import io
import itertools
import struct
import zlib

import numpy as np
import OpenImageIO as oiio  # noqa: N813
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from lmfn import metadata
from lmfn.metadata import Blocks, jpeg, png, tiff, webp

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


# An EXIF block by Pillow, with a make and with a tag of the photograph's directory.
TAGS = Image.Exif()
TAGS[0x010F], TAGS[0x0112] = "Canon", 6
TAGS.get_ifd(0x8769)[0xA434] = "EF 50mm"
BLOCK = TAGS.tobytes().removeprefix(b"Exif\0\0") + b"behind it"


def extract(data):
    return metadata.extract(io.BytesIO(data))


def inserted(data, blocks):
    return b"".join(metadata.insert(io.BytesIO(data), blocks))


def exif_of(data):
    return extract(data).exif


def with_exif(data, block):
    return inserted(data, Blocks(exif=block))


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
    "png": ("png", picture(), {"dpi": (300, 300)}),
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
def test_extract_what_pillow_has_written(kind):
    assert exif_of(encode(picture(), kind, exif=b"Exif\0\0" + BLOCK)) == BLOCK
    assert exif_of(encode(picture(), kind)) is None
    assert exif_of(encode(picture(), "tiff")) is None


@pytest.mark.parametrize("name", VARIANTS)
def test_insert_and_nothing_else_changes(name):
    kind, image, options = VARIANTS[name]
    data = encode(image, kind, **options)
    for size in (len(BLOCK), len(BLOCK) - 1):  # odd and even
        new = with_exif(data, BLOCK[:size])
        assert exif_of(new) == BLOCK[:size]
        before, after = decode(data), decode(new)
        assert after.info["exif"].removeprefix(b"Exif\0\0") == BLOCK[:size]
        assert after.mode == before.mode
        assert np.array_equal(np.asarray(after), np.asarray(before))
        assert after.getexif().get_ifd(0x8769) == {0xA434: "EF 50mm"}
        assert after.getexif()[0x0112] == 6
        for kept in ("icc_profile", "xmp", "comment", "loop", "transparency"):
            assert after.info.get(kept) == before.info.get(kept), kept
        # Whatever was there is replaced; and all other bytes are there still, in their order.
        assert with_exif(with_exif(data, b"old" * 999), BLOCK[:size]) == new
        if kind == "webp":
            by_libwebp = encode(image, kind, exif=BLOCK[:size], **options)
            if name != "odd profile":  # whose XMP libwebp puts behind EXIF
                assert new == by_libwebp
            assert new[:30] == by_libwebp[:30]
            assert len(new) == len(by_libwebp)
        elif kind == "png":
            assert new == data[:33] + chunk(b"eXIf", BLOCK[:size]) + data[33:]
        else:
            assert new == data[:2] + segment(b"Exif\0\0" + BLOCK[:size]) + data[2:]


def test_the_longest_block_of_a_jpeg():
    data = encode(picture(), "jpeg")
    whole = with_exif(data, bytes(65_527))
    assert exif_of(whole) == bytes(65_527)
    assert np.array_equal(np.asarray(decode(whole)), np.asarray(picture_of(data)))
    assert with_exif(whole, bytes(65_528)) == whole
    for kind in ("png", "webp"):
        assert exif_of(with_exif(encode(picture(), kind), bytes(200_001))) == bytes(200_001)


def picture_of(data):
    return decode(data).convert("RGB")


def test_odd_places():
    a_jpeg, a_png, a_webp = (encode(picture(), kind) for kind in FORMATS)
    inside = segment(b"Exif\0\0" + BLOCK)
    table = a_jpeg.index(b"\xff\xc4")
    for data in (
        a_jpeg[:table] + inside + a_jpeg[table:],  # between the tables
        a_jpeg[:2] + b"\xff\xff\xff" + inside + a_jpeg[2:],  # behind bytes that fill up
        a_jpeg[:2] + segment(b"http://ns.adobe.com/xap/1.0/\0<x/>") + inside + a_jpeg[2:],
        a_jpeg[:2] + inside + segment(b"Exif\0\0another") + a_jpeg[2:],
        a_png[:-12] + chunk(b"eXIf", BLOCK) + a_png[-12:],  # behind the pixels
        a_png[:33] + chunk(b"eXIf", b"Exif\0\0" + BLOCK) + a_png[33:],  # with the prefix of a JPEG
    ):
        assert exif_of(data) == BLOCK
        plain = {b"\xff": a_jpeg, b"\x89": a_png}[data[:1]]
        assert exif_of(with_exif(data, b"new")) == b"new"
        assert len(with_exif(data, b"new")) <= len(with_exif(plain, b"new")) + 40
        assert np.array_equal(np.asarray(decode(with_exif(data, b"new"))), np.asarray(decode(plain)))
    image = (b"VP8 ", a_webp[20 : 20 + int.from_bytes(a_webp[16:20], "little")])
    size = struct.pack("<HBHB", 32, 0, 19, 0)
    announced, silent = (b"VP8X", b"\x08\0\0\0" + size), (b"VP8X", b"\0\0\0\0" + size)
    assert exif_of(riff(announced, (b"EXIF", BLOCK), image)) == BLOCK
    assert exif_of(riff(announced, image, (b"EXIF", b"Exif\0\0" + BLOCK))) == BLOCK
    new = riff(announced, image, (b"EXIF", b"new"))
    for chunks in ((announced, (b"EXIF", BLOCK), image), (silent, image, (b"EXIF", BLOCK))):
        assert with_exif(riff(*chunks) + b"behind the end", b"new") == new
    for data in (riff(silent, image, (b"EXIF", BLOCK)), riff(image, (b"EXIF", BLOCK))):
        assert exif_of(data) is None  # as Pillow has it:
        assert "exif" not in decode(data).info


def test_insert_into_what_is_no_image():
    for data in (
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF",
        riff(),
        riff((b"EXIF", b"")),
        encode(picture(), "bmp"),
    ):
        with pytest.raises(ValueError, match="metadata can"):
            with_exif(data, BLOCK)


# ---- XMP

XMP = b'<?xpacket begin=""?><x:xmpmeta xmlns:x="adobe:ns:meta/"> caf\xc3\xa9 </x:xmpmeta><?xpacket end="w"?>'


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("old", [None, b"<old/>"])
def test_xmp(kind, old):
    data = encode(picture(), kind, exif=b"Exif\0\0" + BLOCK, **({} if old is None or kind == "png" else {"xmp": old}))
    new = inserted(data, Blocks(xmp=XMP))
    assert extract(new) == Blocks(exif=BLOCK, xmp=XMP)
    assert decode(new).info["xmp"] == XMP
    assert np.array_equal(np.asarray(decode(new)), np.asarray(decode(data)))
    assert inserted(inserted(data, Blocks(xmp=b"<other/>")), Blocks(xmp=XMP)) == new


def test_xmp_in_odd_places():
    a_png, a_webp = encode(picture(), "png"), encode(picture(), "webp", xmp=XMP)
    keyword = b"XML:com.adobe.xmp\0"
    for body in (b"\0\0\0\0" + XMP, b"\0\0en\0Titel\0" + XMP, b"\1\0\0\0" + zlib.compress(XMP)):
        assert extract(a_png[:-12] + chunk(b"iTXt", keyword + body) + a_png[-12:]).xmp == XMP
    for body in (b"", b"\0", b"\1\0\0\0broken", b"\1\0\0\0" + zlib.compress(bytes(2**23 + 1), 1)):
        assert extract(a_png[:-12] + chunk(b"iTXt", keyword + body) + a_png[-12:]).xmp is None
    silent = a_webp[:20] + b"\0" + a_webp[21:]
    assert extract(silent) == Blocks()
    assert "xmp" not in decode(silent).info
    for length, kept in ((65_504, True), (65_505, False)):
        new = inserted(encode(picture(), "jpeg", xmp=b"<old/>"), Blocks(xmp=XMP.ljust(length)))
        assert decode(new).info["xmp"] == (XMP.ljust(length) if kept else b"<old/>")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_xmp_of_a_tiff(order, big):
    entry = struct.pack(order + ("HHQQ" if big else "HHII"), 700, 1, len(XMP), 52 if big else 26)
    if big:
        head = {"<": b"II+\0", ">": b"MM\0+"}[order] + struct.pack(order + "HHQQ", 8, 0, 16, 1)
    else:
        head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, 1)
    data = head + entry + bytes(8 if big else 4) + XMP
    assert extract(data) == Blocks(xmp=XMP)
    assert extract(data[:-1]) == extract(data[:20]) == Blocks()
    assert inserted(data[:20], Blocks(xmp=XMP)) == data[:20]
    assert inserted(data, Blocks(exif=BLOCK, icc=SRGB)) == data
    assert extract(inserted(data, Blocks(xmp=b"<another/>"))).xmp == b"<another/>"


@pytest.mark.parametrize("pages", [1, 3])
@pytest.mark.parametrize("size", [33, 34])
@pytest.mark.parametrize("big", [False, True])
def test_xmp_in_a_tiff_and_nothing_else_changes(pages, size, big):
    more = {"save_all": True, "append_images": [picture().rotate(90)] * (pages - 1), "big_tiff": big}
    data = encode(picture(size=(size, 21)), "tiff", tiffinfo={270: "a picture"}, icc_profile=SRGB, **more)
    assert data.startswith(b"II+" if big else b"II*")
    new = inserted(inserted(data, Blocks(xmp=b"<older and longer/>" * 9)), Blocks(xmp=XMP))
    assert extract(data) == Blocks()
    assert extract(new) == Blocks(xmp=XMP)
    before, after = decode(data), decode(new)
    assert after.n_frames == pages
    assert dict(after.tag_v2) == dict(before.tag_v2) | {700: XMP}
    for page in range(pages):
        before.seek(page)
        after.seek(page)
        assert np.array_equal(np.asarray(after), np.asarray(before))


# ---- profiles and colours


def profile(length):
    """As long as is asked for, and with that length in its header; its content is noise behind sRGB's own."""
    whole = SRGB + np.random.default_rng(0).bytes(length - len(SRGB))
    return struct.pack(">I", length) + whole[4:]


@pytest.mark.parametrize("length", [600, 65_516, 65_520, 131_040, 1_000_000, 16_000_000, 16_707_344])
def test_profiles_of_any_size_in_jpeg_for_two_readers(tmp_path, length):
    icc = profile(length)
    data = inserted(encode(picture(), "jpeg", icc_profile=SRGB, comment=b"kept"), Blocks(icc=icc))
    assert extract(data) == Blocks(icc=icc)
    assert decode(data).info["icc_profile"] == icc
    assert decode(data).info["comment"] == b"kept"
    (tmp_path / "a.jpg").write_bytes(data)
    spec = oiio.ImageInput.open(str(tmp_path / "a.jpg")).spec()
    assert np.asarray(spec["ICCProfile"]).tobytes() == icc


def test_a_profile_too_long_for_jpeg_is_refused():
    with pytest.raises(ValueError, match="16,707,346 bytes; write a PNG"):
        inserted(encode(picture(), "jpeg"), Blocks(icc=bytes(16_707_346)))


@pytest.mark.parametrize("kind", ["png", "webp"])
@pytest.mark.parametrize("length", [600, 70_000, 7_000_000])
def test_profiles_in_the_other_formats(kind, length):
    icc = profile(length)
    assert extract(encode(picture(), kind, icc_profile=icc)).icc == icc
    data = inserted(encode(picture(), kind), Blocks(icc=icc))
    assert extract(data) == Blocks(icc=icc)
    if length < 2**20:  # Pillow's limit in PNG
        assert decode(data).info["icc_profile"] == icc


def test_parts_of_a_profile():
    """Two of them in the wrong order are a profile; one that is missing makes it none."""
    icc = profile(100_000)
    parts = [
        segment(b"ICC_PROFILE\0" + bytes([n, 2]) + icc[a:b], b"\xff\xe2")
        for n, a, b in ((1, 0, 60_000), (2, 60_000, 100_000))
    ]
    plain = encode(picture(), "jpeg")
    assert extract(plain[:2] + parts[1] + parts[0] + plain[2:]).icc == icc
    for broken in (parts[0], parts[1], segment(b"ICC_PROFILE\0", jpeg.APP2)):
        assert extract(plain[:2] + broken + plain[2:]).icc is None
    a_png = encode(picture(), "png")
    for body in (b"name\0\0broken", b"", b"name"):
        assert extract(a_png[:33] + chunk(b"iCCP", body) + a_png[33:]).icc is None


GAMMA = (b"gAMA", struct.pack(">I", 45_455))
LINEAR = (b"gAMA", struct.pack(">I", 100_000))
CHROMA = (b"cHRM", struct.pack(">8I", 31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000))
WIDE = (b"cHRM", struct.pack(">8I", 31_270, 32_900, 64_000, 33_000, 21_000, 71_000, 15_000, 6_000))
PQ, INTENT = (b"cICP", bytes([9, 16, 0, 1])), (b"sRGB", b"\0")


@pytest.mark.parametrize(
    ("said", "srgb"),
    [
        ((), True),
        ((INTENT,), True),
        ((INTENT, GAMMA, CHROMA), True),
        ((GAMMA,), True),
        ((GAMMA, CHROMA), True),
        ((LINEAR,), False),
        ((GAMMA, WIDE), False),
        ((PQ,), False),
        ((PQ, INTENT), False),
        (((b"cICP", bytes([1, 13, 0, 1])),), True),
        ((PQ, (b"mDCV", bytes(24)), (b"cLLI", bytes(8))), False),
    ],
)
def test_what_a_png_says_of_its_colours_stays_as_it_was(said, srgb):
    plain = encode(picture(), "png")
    tagged = plain[:33] + b"".join(chunk(*part) for part in said) + plain[33:]
    assert extract(tagged) == Blocks(colour=said)
    assert png.is_srgb(said) == srgb
    other = (
        plain[:33]
        + chunk(*LINEAR)
        + chunk(*INTENT)
        + chunk(b"oFFs", bytes(9))
        + chunk(b"eXIf", b"MM\0*\0\0\0\x08")
        + plain[33:]
    )
    assert inserted(other, extract(tagged)) == tagged
    with_profile = inserted(tagged, Blocks(icc=SRGB, colour=tuple(part for part in said if part[0][1:] == b"ICP")))
    kinds = [kind for kind, _, _ in png.chunks(io.BytesIO(with_profile))]
    assert kinds == [b"IHDR", *(kind for kind, _ in said if kind == b"cICP"), b"iCCP", b"IDAT", b"IEND"]


def test_beside_a_profile_nothing_may_contradict_it():
    plain = encode(picture(), "png", icc_profile=SRGB)
    tagged = plain[:33] + b"".join(chunk(*part) for part in (PQ, INTENT, GAMMA, CHROMA)) + plain[33:]
    assert extract(tagged) == Blocks(icc=SRGB, colour=(PQ,))


# ---- several pictures in a file


def test_frames_of_png():
    still, other = picture(), picture().rotate(180)
    for count in (1, 2, 5):
        many = list(itertools.islice(itertools.cycle([other, still]), count - 1))
        for default in (False, True):
            if count > 1:
                data = encode(still, "png", save_all=True, append_images=many, default_image=default)
                assert png.frames(io.BytesIO(data)) == decode(data).n_frames == count, default
    assert png.frames(io.BytesIO(encode(still, "png"))) == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [False, True])
def test_animations_of_webp(mode, lossless):
    frames = [picture(mode).rotate(angle) for angle in (0, 180, 0, 180)]
    stills = [encode(frame, "webp", lossless=lossless) for frame in frames]
    durations, loops = [40, 0, 2000, 70], 3
    data = inserted(
        webp.animate(list(zip(stills, durations, strict=True)), loops), Blocks(exif=BLOCK, xmp=XMP, icc=SRGB)
    )
    assert [frame.duration for frame in webp.frames(io.BytesIO(data))] == durations
    assert webp.loops(io.BytesIO(data)) == loops
    assert webp.count(io.BytesIO(data)) == 4
    assert extract(data) == Blocks(BLOCK, XMP, SRGB)
    by_libwebp = decode(data)
    assert by_libwebp.n_frames == 4
    assert by_libwebp.info["loop"] == 3
    for number, still in enumerate(stills):
        by_libwebp.seek(number)
        assert np.array_equal(np.asarray(by_libwebp.convert(mode)), np.asarray(decode(still).convert(mode)))
        assert by_libwebp.info["duration"] == durations[number]


def test_what_stands_behind_a_jpeg():
    plain, film = encode(picture(), "jpeg"), b"\0\0\0\x18ftypmp42" + bytes(99)
    for data, more in (
        (plain, False),
        (plain + bytes(1000), False),
        (plain + plain, True),
        (plain + b"padding" + film, True),
        (encode(picture(), "jpeg", progressive=True) + plain, True),
        (encode(picture(), "jpeg", exif=BLOCK + plain), False),
        (plain[:-2], False),
    ):
        assert jpeg.has_more(io.BytesIO(data)) == more
    assert jpeg.end(io.BytesIO(plain + plain)) == len(plain)
    assert jpeg.end(io.BytesIO(plain[:-1])) is None


# ---- whole and broken files


def test_a_png_is_checked_to_its_end():
    data = encode(picture(), "png")
    png.check(io.BytesIO(data + b"behind the end"), pixels=True)
    for broken, reason in (
        (data[:-1], "cut short"),
        (data[:-12], "cut short"),
        (data[:40], "cut short"),
        (data[:20] + bytes([data[20] ^ 1]) + data[21:], "checksum"),
        (data[:36] + b"\xff" + data[37:], "cut short"),
        (data[:8] + chunk(b"tEXt", b"a\0b") + data[8:], "no header"),
    ):
        for pixels in (False, True):
            with pytest.raises(ValueError, match=reason):
                png.check(io.BytesIO(broken), pixels)
    flipped = io.BytesIO(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    png.check(flipped, pixels=False)
    with pytest.raises(ValueError, match="checksum"):
        png.check(flipped, pixels=True)


def test_texts_that_would_fill_the_memory_are_refused():
    plain = encode(picture(), "png")

    def check(*chunks):
        png.check(io.BytesIO(plain[:33] + b"".join(chunks) + plain[33:]), pixels=False)

    large = zlib.compress(bytes(2**22))
    body = {b"zTXt": b"Comment\0\0" + large, b"iTXt": b"Comment\0\1\0en\0Titel\0" + large}
    for kind in body:
        check(chunk(kind, body[kind]), chunk(kind, body[kind]))
        with pytest.raises(ValueError, match="more than 8 MB"):
            check(*[chunk(kind, body[kind])] * 3)
        with pytest.raises(ValueError, match="more than 8 MB"):
            check(chunk(kind, body[kind][: -len(large)] + zlib.compress(bytes(2**28), 1)))
        check(chunk(kind, body[kind][:20]), chunk(kind, b""), chunk(kind, body[kind][:8]))
    check(chunk(b"iTXt", b"Comment\0\0\0\0\0" + bytes(2**24)))


# ---- any bytes at all


WHOLE = [encode(picture(size=(3, 2)), kind, exif=BLOCK) for kind in FORMATS]


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
    found = extract(data)
    assert found.exif is None or found.exif in data
    assert found.xmp is None or found.xmp in data
    for look in (jpeg.has_more, webp.loops, webp.count, png.frames, lambda file: list(webp.frames(file))):
        look(io.BytesIO(data))
    try:
        new = with_exif(data, b"new")
    except ValueError:
        return
    assert exif_of(new) == (None if tiff.is_tiff(data) else b"new")  # a TIFF has no block
    assert with_exif(new, b"new") == new
