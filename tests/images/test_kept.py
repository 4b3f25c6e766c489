"""What images keep from file to file: colours, XMP, upright thumbnails and sizes; against Pillow and OpenImageIO."""

import io
import struct
import warnings

import numpy as np
import OpenImageIO as oiio  # noqa: N813
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, TiffImagePlugin

from lmfn import images
from lmfn.images import ImageError, ImageWarning, Photo
from lmfn.metadata import Blocks, xmp
from lmfn.metadata.png import chunk
from tests.images.conftest import smooth

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:mine="http://mine/" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/" xmp:Rating="4" mine:own="caf\xc3\xa9" tiff:Orientation="6" '
    b'tiff:ImageWidth="33" tiff:ImageLength="20"><dc:subject><rdf:Bag><rdf:li>cat</rdf:li></rdf:Bag></dc:subject>'
    b'</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
FORMATS = [".jpg", ".png", ".webp"]


def save(path, packet=None, **options):
    """A file written by Pillow, with XMP in each format."""
    if packet is not None and path.suffix == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", packet.decode())
    elif packet is not None:
        options |= {"tiffinfo": {700: packet}} if path.suffix == ".tif" else {"xmp": packet}
    Image.fromarray(smooth(20, 33)).save(path, **options)
    return path


def copy(source, target):
    images.write(target, images.read(source))
    return Image.open(target)


def chunks(path):
    data, position, found = path.read_bytes(), 8, []
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        found.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += length + 12
    return found


# ---- XMP


@pytest.mark.parametrize("source", [*FORMATS, ".tif"])
@pytest.mark.parametrize("target", FORMATS)
def test_xmp_is_kept_and_says_how_to_turn_where_exif_does_not(tmp_path, source, target):
    path = save(tmp_path / f"a{source}", XMP)
    assert images.read_size(path) == (33, 20)
    copied = copy(path, tmp_path / f"b{target}")
    assert copied.size == (20, 33)
    assert copied.info["xmp"] == xmp.with_size(xmp.upright(XMP), 20, 33)
    assert b'tiff:ImageWidth="20" tiff:ImageLength="33"' in copied.info["xmp"]
    assert np.abs(np.asarray(copied).astype(int) - np.rot90(smooth(20, 33), -1)).max() < 20
    assert copy(tmp_path / f"b{target}", tmp_path / f"c{target}").info["xmp"] == copied.info["xmp"]


def test_exif_s_orientation_prevails(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 1
    path = save(tmp_path / "a.jpg", XMP, exif=tags)
    copied = copy(path, tmp_path / "b.png")
    assert copied.size == (33, 20)
    assert xmp.orientation(copied.info["xmp"]) == 1


def test_rating_and_keywords_reach_a_tiff_and_come_back(tmp_path):
    copy(save(tmp_path / "a.jpg", XMP), tmp_path / "b.tif")
    copied = copy(tmp_path / "b.tif", tmp_path / "c.jpg").info["xmp"]
    assert b"cat" in copied
    assert b"4" in copied[copied.index(b"xmp:Rating") :][:20]


def test_what_xmp_says_of_pictures_behind_the_picture_is_left_out_with_them(tmp_path):
    packet = XMP.replace(b'mine:own="caf\xc3\xa9"', b'hdrgm:Version="1.0"')
    path = save(tmp_path / "a.jpg", packet)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.read(path)
    path.write_bytes(path.read_bytes() + path.read_bytes())
    with pytest.warns(ImageWarning, match=r"a\.jpg: the gain map, depth map or film in the file is not kept"):
        photo = images.read(path)
    images.write(tmp_path / "b.jpg", photo)
    written = (tmp_path / "b.jpg").read_bytes()
    assert b"hdrgm" not in written
    assert b"cat" in written


def test_xmp_that_goes_on_in_further_segments_is_left_out_with_a_word(tmp_path):
    path = save(tmp_path / "a.jpg", XMP)
    body = b"http://ns.adobe.com/xmp/extension/\0" + b"0123456789ABCDEF" * 2 + struct.pack(">II", 4, 0) + b"<x/>"
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body + data[2:])
    with pytest.warns(ImageWarning, match=r"a\.jpg: the extended part of XMP in the file is not kept"):
        images.read(path)


@pytest.mark.parametrize(
    ("tag", "words"),
    [(33922, "the georeference"), (34735, "the georeference"), (37724, "the layers"), (42113, "the value for no data")],
)
@pytest.mark.parametrize("big", [False, True])
def test_what_a_tiff_has_of_other_programs_is_left_out_with_a_word(tmp_path, tag, words, big):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info.tagtype[tag], info[tag] = (7, b"content") if tag == 37724 else (2, "content")
    path = save(tmp_path / "a.tif", tiffinfo=info, big_tiff=big)
    with pytest.warns(ImageWarning, match=rf"a\.tif: {words} in the file is not kept"):
        images.read(path)


# ---- thumbnails and sizes


def camera(orientation):
    """An EXIF block with sizes, an exposure time, a thumbnail at its end, and the orientation in two places."""
    small = io.BytesIO()
    Image.fromarray(smooth(20, 33)).resize((8, 5)).save(small, "jpeg")
    thumbnail = small.getvalue()
    directories = (
        {0x0100: (4, 33), 0x0101: (4, 20), 0x0112: (3, orientation), 0x8769: (4, 100)},
        {0x829A: (5, 150), 0xA002: (4, 33), 0xA003: (4, 20)},
        {0x0103: (3, 6), 0x0112: (3, orientation), 0x0201: (4, 300), 0x0202: (4, len(thumbnail))},
    )
    block = bytearray(300) + thumbnail
    for at, following, fields in zip((8, 100, 200), (200, 0, 0), directories, strict=True):
        entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in fields.items())
        whole = struct.pack("<H", len(fields)) + entries + struct.pack("<I", following)
        block[at : at + len(whole)] = whole
    block[:8], block[150:158] = b"II*\0\x08\0\0\0", struct.pack("<II", 1, 8)
    return bytes(block)


def written_tags(path):
    tags = Image.open(path).getexif()
    return dict(tags), tags.get_ifd(0x8769), tags.get_ifd(ExifTags.IFD.IFD1)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("target", [*FORMATS, ".tif"])
def test_a_turned_photograph_s_thumbnail_and_sizes(tmp_path, orientation, target):
    path = save(tmp_path / "a.jpg", exif=b"Exif\0\0" + camera(orientation))
    assert images.read(path).metadata.get_int_attribute("thumbnail_width") == 0
    width, height = copy(path, tmp_path / f"b{target}").size
    assert (width, height) == ((20, 33) if orientation == 6 else (33, 20))
    main, photo, thumbnail = written_tags(tmp_path / f"b{target}")
    assert main[0x0112] == 1
    assert [main[0x0100], main[0x0101]] == [width, height]
    if target == ".tif":
        assert not {0xA002, 0xA003} & photo.keys()
    else:
        assert [photo[0xA002], photo[0xA003]] == [width, height]
    assert (tmp_path / f"b{target}").read_bytes().count(camera(1)[-300:]) == (orientation == 1 and target != ".tif")
    assert (0x0202 in thumbnail) == (orientation == 1 and target != ".tif")


def test_sizes_are_those_of_the_pixels_that_are_written(tmp_path):
    photo = images.read(save(tmp_path / "a.jpg", exif=b"Exif\0\0" + camera(1)))
    photo.pixels = photo.pixels[:11, :22]
    images.write(tmp_path / "b.jpg", photo)
    main, tags, _ = written_tags(tmp_path / "b.jpg")
    assert [main[0x0100], main[0x0101], tags[0xA002], tags[0xA003]] == [22, 11, 22, 11]


# ---- colours


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("target", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("length", [len(SRGB), 70_508])
def test_profiles_are_kept_to_the_byte_for_two_readers(tmp_path, suffix, target, length):
    icc = struct.pack(">I", length) + (SRGB + np.random.default_rng(0).bytes(length - len(SRGB)))[4:]
    path = save(tmp_path / f"a{suffix}", icc_profile=icc)
    copied = copy(path, tmp_path / f"b{target}")
    assert copied.info["icc_profile"] == icc
    spec = oiio.ImageInput.open(str(tmp_path / f"b{target}")).spec()
    assert np.asarray(spec["ICCProfile"]).tobytes() == icc
    if target == ".png":
        kinds = [kind for kind, _ in chunks(tmp_path / "b.png")]
        assert kinds.count(b"iCCP") == 1
        assert not {b"sRGB", b"gAMA", b"cHRM", b"cICP"} & set(kinds)


GAMMA = (b"gAMA", struct.pack(">I", 45_455))
LINEAR = (b"gAMA", struct.pack(">I", 100_000))
WIDE = (b"cHRM", struct.pack(">8I", 31_270, 32_900, 64_000, 33_000, 21_000, 71_000, 15_000, 6_000))


@pytest.mark.parametrize(
    ("said", "srgb"),
    [((), True), ((GAMMA,), True), ((GAMMA, WIDE), False), ((LINEAR,), False), (((b"sRGB", b"\1"),), True)],
)
def test_what_a_png_says_of_its_colours(tmp_path, said, srgb):
    path = save(tmp_path / "a.png")
    data = path.read_bytes()
    path.write_bytes(data[:33] + b"".join(chunk(*part) for part in said) + data[33:])
    photo = images.read(path)
    images.write(tmp_path / "b.png", photo)
    assert chunks(tmp_path / "b.png")[1:-2] == list(said)
    assert np.array_equal(images.read(tmp_path / "b.png").pixels, photo.pixels)
    for target in (".jpg", ".webp"):
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            images.write(tmp_path / f"b{target}", photo)
        assert [str(w.message) for w in raised if "colours are not sRGB" in str(w.message)] == (
            [] if srgb else [str(raised[0].message)]
        )


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif"])
def test_a_file_that_says_nothing_of_its_colours_becomes_a_png_that_says_nothing(tmp_path, suffix):
    copy(save(tmp_path / f"a{suffix}"), tmp_path / "b.png")
    assert [kind for kind, _ in chunks(tmp_path / "b.png")] == [b"IHDR", b"IDAT", b"IEND"]


@pytest.mark.parametrize(
    ("mode", "space", "source", "target", "words"),
    [
        ("CMYK", b"CMYK", ".jpg", ".jpg", "is for CMYK, and the pixels are RGB"),
        ("CMYK", b"CMYK", ".tif", ".png", "is for CMYK, and the pixels are RGB"),
        ("L", b"RGB ", ".jpg", ".jpg", "is for RGB, and the pixels are gray"),
        ("L", b"GRAY", ".png", ".webp", "profile is for gray"),
        ("L", b"GRAY", ".png", ".jpg", None),
        ("RGB", b"RGB ", ".tif", ".webp", None),
    ],
)
def test_a_profile_for_other_colours_goes_with_a_word(tmp_path, mode, space, source, target, words):
    icc = SRGB[:16] + space + SRGB[20:]
    Image.fromarray(smooth(24, 40)).convert(mode).save(tmp_path / f"a{source}", icc_profile=icc)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", ImageWarning)
        images.write(tmp_path / f"b{target}", images.read(tmp_path / f"a{source}"))
    with Image.open(tmp_path / f"b{target}") as copied:
        assert copied.info.get("icc_profile") == (None if words else icc)
    messages = [str(warning.message) for warning in raised if warning.category is ImageWarning]
    assert len(messages) == bool(words)
    assert all(words in message for message in messages)


def test_a_profile_that_jpeg_cannot_hold(tmp_path):
    photo = Photo(smooth(9, 9), blocks=Blocks(icc=bytes(17_000_000)))
    with pytest.raises(ImageError, match=r"a\.jpg: JPEG cannot hold an ICC profile of 17,000,000 bytes"):
        images.write(tmp_path / "a.jpg", photo)
    assert not list(tmp_path.iterdir())


# ---- pixels


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_integers_are_written_as_what_they_are(tmp_path, suffix, dtype, channels):
    largest = np.iinfo(dtype).max
    pixels = np.linspace(0, largest, 20 * 33 * channels).reshape(20, 33, channels).astype(dtype)
    pixels[:, :, 3:] = largest
    images.write(tmp_path / f"a{suffix}", Photo(pixels, bits=32))  # the bits are those of the samples
    back = images.read(tmp_path / f"a{suffix}")
    colours = slice(0, back.pixels.shape[2]) if suffix in (".png", ".tif") else slice(0, 1)
    assert back.bits == (8 * pixels.itemsize if suffix in (".png", ".tif") else 8)
    tolerance = 0 if suffix in (".png", ".tif") else 0.1
    written = np.rint(back.pixels[:, :, colours] * largest) if tolerance == 0 else back.pixels[:, :, colours] * largest
    assert np.abs(written - pixels[:, :, colours].astype(int)).max() <= tolerance * largest


def test_16_bits_are_rounded_to_8(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    images.write(tmp_path / "a.webp", Photo(np.full((16, 16, 3), 65_407, np.uint16)))
    assert images.read_rgb(tmp_path / "a.webp").max() == 255
    images.write(tmp_path / "a.png", Photo(values))
    assert np.array_equal(np.rint(images.read(tmp_path / "a.png").pixels * 65535), values)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
def test_rounding_beyond_the_range_is_clipped_with_a_word(tmp_path, dtype, suffix):
    pixels = np.full((16, 16, 3), 0.5, dtype)
    pixels[0, 0], pixels[0, 1] = -0.001, 1.001
    path = tmp_path / f"a{suffix}"
    with pytest.warns(ImageWarning, match=r"a\.\w+: pixels from -0\.001\d* to 1\.00\d+ were clipped to \[0, 1\]"):
        images.write(path, Photo(pixels, bits=32))
    back = images.read(path).pixels
    assert back.min() >= 0
    assert back.max() <= 1
    if suffix in (".png", ".tif"):
        assert back[0, 0].max() == 0
        assert back[0, 1].min() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.write(path, Photo(pixels.clip(0, 1)))


NOT_WRITTEN = [
    (np.full((4, 4, 3), 1.01), r"the pixels are from 1\.01 to 1\.01; they must be in \[0, 1\]"),
    (np.full((4, 4, 3), -0.01, np.float32), r"from -0\.01 to -0\.01"),
    (np.full((4, 4, 3), 255, np.float32), "from 255 to 255"),
    (np.full((4, 4, 3), np.nan, np.float16), "from nan to nan"),
    (np.full((4, 4, 3), np.inf), "from inf to inf"),
    (np.zeros((4, 4, 3), np.int64), "the pixels are int64; they must be floats in"),
    (np.zeros((4, 4, 3), np.int8), "int8"),
    (np.zeros((4, 4, 3), np.uint32), "uint32"),
    (np.zeros((4, 4, 3), bool), "bool"),
    (np.zeros((4, 4, 3), complex), "complex128"),
    (np.zeros((4, 4, 3), object), "object"),
    (np.zeros((4, 4), np.uint8), r"the pixels have shape \(4, 4\); it must be \[H, W, C\]"),
    (np.zeros((1, 4, 4, 3)), r"shape \(1, 4, 4, 3\)"),
    (np.zeros((4, 4, 5)), r"shape \(4, 4, 5\)"),
    (np.zeros((0, 4, 3)), r"shape \(0, 4, 3\)"),
    (np.ma.masked_equal(np.zeros((4, 4, 3)), 0), r"the pixels are a masked array; fill it first \(pixels\.filled"),
    ([[[0.0]]], "the pixels are a list"),
]


@pytest.mark.parametrize(("pixels", "message"), NOT_WRITTEN)
def test_what_is_no_image_is_one_clear_error(tmp_path, pixels, message):
    for suffix in (".png", ".jpg", ".tif", ".webp"):
        with pytest.raises(ImageError, match=rf"a\{suffix}: .*{message}"):
            images.write(tmp_path / f"a{suffix}", Photo(pixels))
    assert not list(tmp_path.iterdir())


def test_sides_too_long_for_the_format(tmp_path):
    for suffix, longest in ((".jpg", 65_500), (".webp", 16_383), (".png", 1_000_000)):
        with pytest.raises(ImageError, match=rf"{longest:,} pixels a side; the image is {longest + 1:,} x 1"):
            images.write(tmp_path / f"a{suffix}", Photo(np.zeros((1, longest + 1, 3), np.uint8)))
        images.write(tmp_path / f"a{suffix}", Photo(np.zeros((1, longest, 3), np.uint8)))
        assert images.read_size(tmp_path / f"a{suffix}") == (1, longest)


@pytest.mark.parametrize("suffix", [".jpe", ".jfif", ".JPE", ".JFIF", ".jpeg"])
def test_jpeg_by_other_names(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    images.write(path, Photo(smooth(20, 33)))
    assert Image.open(path).format == "JPEG"
    assert images.find_images(tmp_path) == [path]
    assert images.read(path).pixels.shape == (20, 33, 3)
