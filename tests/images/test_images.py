"""Image files against Pillow (an independent reader and writer, installed with scikit-image) and against raw bytes."""

import os
import shutil
import struct
import zlib
from collections import namedtuple
from pathlib import Path

import numpy as np
import OpenImageIO as oiio  # noqa: N813
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin
from PIL.TiffImagePlugin import IFDRational

from lmfn import images
from lmfn.files import deblur_files
from lmfn.images import ImageError, Photo
from lmfn.metadata.png import chunk
from tests.images.conftest import smooth

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def write_raw(path, pixels, *, icc=None, tile=0, channelnames=None, **attributes):
    """Write samples with OpenImageIO, for files that Pillow cannot write; `__` in a name stands for `:`."""
    height, width, channels = pixels.shape
    spec = oiio.ImageSpec(width, height, channels, pixels.dtype.name.replace("float32", "float"))
    if channels == 2:
        spec.channelnames, spec.alpha_channel = ("Y", "A"), 1
    if channelnames:
        spec.channelnames, spec.alpha_channel = channelnames, -1
    spec.tile_width = spec.tile_height = tile
    if icc:
        spec.attribute("ICCProfile", f"uint8[{len(icc)}]", np.frombuffer(icc, np.uint8))
    for name, value in ({"oiio__UnassociatedAlpha": 1} | attributes).items():
        spec.attribute(name.replace("__", ":"), value)
    file = oiio.ImageOutput.create(str(path))
    assert file.open(str(path), spec), file.geterror()
    assert file.write_image(np.ascontiguousarray(pixels)), file.geterror()
    assert file.close(), file.geterror()


def raw(path):
    """Samples and header as OpenImageIO reads them, with nothing applied."""
    config = oiio.ImageSpec()
    config.attribute("oiio:UnassociatedAlpha", 1)
    file = oiio.ImageInput.open(str(path), config)
    assert file is not None, oiio.geterror()
    return file.read_image(0, 0, 0, file.spec().nchannels, "unknown"), file.spec()


def exif(orientation=1):
    tags = Image.Exif()
    tags[0x010F], tags[0x0110], tags[0x0112], tags[0x8298] = "Canon", "EOS 5D", orientation, "(c) somebody"
    photo = tags.get_ifd(0x8769)
    photo[0x9003], photo[0x8827], photo[0x829D] = "2020:01:02 03:04:05", 400, IFDRational(28, 10)
    photo[0xA434], photo[0x927C] = "EF 50mm", b"maker's own"
    gps = tags.get_ifd(0x8825)
    gps[1], gps[2], gps[3], gps[4] = "N", (48.0, 30.0, 12.5), "E", (11.0, 1.0, 2.0)
    return tags


# ---- reading


@pytest.mark.parametrize("size", [(1, 1), (17, 23), (3, 500)])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_of_every_kind_reads_as_pillow_reads_it(tmp_path, mode, size):
    picture = (
        Image.fromarray(noise(*size, 4)).convert("RGB" if mode in ("1", "L", "P", "RGB") else "RGBA").convert(mode)
    )
    picture.save(tmp_path / "a.png")
    assert np.array_equal(images.read_rgb(tmp_path / "a.png"), np.asarray(picture.convert("RGB")))
    plain = {"1": "L", "P": "RGB"}.get(mode, mode)
    photo = images.read(tmp_path / "a.png")
    expected = np.asarray(picture.convert(plain), dtype=np.float32).reshape(*size, -1) / np.float32(255)
    assert photo.pixels.dtype == np.float32
    assert np.array_equal(photo.pixels, expected)
    assert photo.bits == 8
    assert photo.alpha == (mode in ("LA", "RGBA"))
    assert images.read_size(tmp_path / "a.png") == size


def test_transparent_palette(tmp_path):
    picture = Image.fromarray(noise(9, 7, 3)).quantize(8)
    picture.save(tmp_path / "a.png", transparency=2)
    photo = images.read(tmp_path / "a.png")
    expected = Image.open(tmp_path / "a.png").convert("RGBA")
    assert np.array_equal(np.rint(photo.pixels * 255), np.asarray(expected))
    assert photo.alpha


def test_16_bits_are_rounded_to_8_and_not_cut(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    write_raw(tmp_path / "a.png", values)
    assert np.array_equal(images.read_rgb(tmp_path / "a.png")[:, :, 1], np.rint(values[:, :, 0] * (255 / 65535)))


def test_float_is_rounded_to_8(tmp_path):
    values = np.linspace(0, 1, 999, dtype=np.float32).reshape(27, 37, 1)
    write_raw(tmp_path / "a.tif", values)
    assert np.array_equal(images.read_rgb(tmp_path / "a.tif")[:, :, 0], np.rint(values[:, :, 0] * 255))


def test_gray_jpeg(tmp_path):
    picture = Image.fromarray(smooth(19, 31)).convert("L")
    picture.save(tmp_path / "a.jpg", quality=95)
    gray = np.asarray(Image.open(tmp_path / "a.jpg"))
    assert np.array_equal(images.read_rgb(tmp_path / "a.jpg"), np.stack([gray] * 3, axis=2))
    assert images.read(tmp_path / "a.jpg").pixels.shape == (19, 31, 1)


def test_cmyk_jpeg_becomes_rgb_and_loses_the_profile_of_its_inks(tmp_path):
    inks = SRGB[:16] + b"CMYK" + SRGB[20:]
    Image.fromarray(smooth(24, 40)).convert("CMYK").save(tmp_path / "a.jpg", quality=95, icc_profile=inks)
    expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))
    assert np.array_equal(images.read_rgb(tmp_path / "a.jpg"), expected)
    assert np.abs(expected.astype(int) - smooth(24, 40)).max() < 12
    images.write(tmp_path / "b.jpg", images.read(tmp_path / "a.jpg"))
    copied = Image.open(tmp_path / "b.jpg")
    assert copied.mode == "RGB"
    assert "icc_profile" not in copied.info
    assert np.abs(np.asarray(copied).astype(int) - expected).max() < 12


def test_cmyk_tiff_becomes_an_rgb_tiff(tmp_path):
    Image.fromarray(smooth(24, 40)).convert("CMYK").save(tmp_path / "a.tif")
    images.write(tmp_path / "b.tif", images.read(tmp_path / "a.tif"))
    copied = Image.open(tmp_path / "b.tif")
    assert copied.mode == "RGB"
    assert np.abs(np.asarray(copied).astype(int) - smooth(24, 40)).max() <= 1


def test_tiles_planes_and_compressions_of_tiff(tmp_path):
    pixels = noise(50, 70, 3, dtype=np.uint16)
    write_raw(tmp_path / "tiles.tif", pixels, tile=16)
    write_raw(tmp_path / "planes.tif", pixels, planarconfig="separate")
    write_raw(tmp_path / "lzw.tif", pixels, compression="lzw")
    for name in ("tiles.tif", "planes.tif", "lzw.tif"):
        images.write(tmp_path / "copy.tif", images.read(tmp_path / name))
        copied, spec = raw(tmp_path / "copy.tif")
        assert np.array_equal(copied, pixels), name
        assert spec.format == "uint16"
        assert spec.tile_width == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("tile", [0, 16])
def test_gray_with_white_as_0(tmp_path, dtype, channels, tile):
    """As scanners and X-ray machines write it; alpha is as everywhere."""
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    pixels = (noise(21, 34, channels, dtype=np.uint16) / 65535 * top).astype(dtype)
    negative = pixels.copy()
    negative[:, :, 0] = top - pixels[:, :, 0]
    write_raw(tmp_path / "a.tif", negative, tile=tile)
    data = (tmp_path / "a.tif").read_bytes()
    gray, inverted = (struct.pack("<HHII", 262, 3, 1, meaning) for meaning in (1, 0))
    assert data.count(gray) == 1
    (tmp_path / "a.tif").write_bytes(data.replace(gray, inverted))
    photo = images.read(tmp_path / "a.tif", whole_numbers=True)
    assert photo.pixels.dtype == dtype
    assert np.allclose(photo.pixels, pixels, rtol=0, atol=1e-7)
    images.write(tmp_path / "b.tif", photo)
    assert np.array_equal(images.read(tmp_path / "b.tif", whole_numbers=True).pixels, photo.pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_its_tag_reset(tmp_path, suffix, orientation):
    path, copy = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    options = {".jpg": {"quality": 95}, ".webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(smooth(20, 33)).save(path, exif=exif(orientation), **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(images.read_rgb(path), upright)
    assert images.read_size(path) == upright.shape[:2]
    images.write(copy, images.read(path))
    tag = Image.open(copy).getexif().get(0x0112, 1)
    assert tag == 1
    assert np.abs(images.read_rgb(copy).astype(int) - upright).max() <= (0 if suffix in (".png", ".tif") else 12)


def test_a_senseless_orientation_is_ignored(tmp_path):
    Image.fromarray(smooth(20, 33)).save(tmp_path / "a.png", exif=exif(99))
    assert np.array_equal(images.read_rgb(tmp_path / "a.png"), smooth(20, 33))


def test_names_with_spaces_accents_and_question_marks(tmp_path):
    folder = tmp_path / "Été à l'île"
    for name in ("häß lich 日本.png", "what?x=1.png", "100%#d.png"):
        images.write(folder / name, Photo(noise(5, 6, 3).astype(np.float32) / 255))
        assert np.array_equal(images.read_rgb(folder / name), noise(5, 6, 3))


def test_a_png_with_the_suffix_of_a_jpeg_is_read(tmp_path):
    Image.fromarray(noise(5, 6, 3)).save(tmp_path / "a.jpg", format="png")
    assert np.array_equal(images.read_rgb(tmp_path / "a.jpg"), noise(5, 6, 3))


# ---- there and back


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_and_tiff_come_back_to_the_bit(tmp_path, suffix, dtype, channels):
    source, copy = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    pixels = noise(37, 29, channels, dtype=dtype)
    pixels[0, :, -1] = 0  # fully transparent, with colours
    write_raw(source, pixels, Make="Canon", Exif__LensModel="EF 50mm", icc=profile(channels))
    photo = images.read(source)
    assert photo.bits == pixels.itemsize * 8
    images.write(copy, photo)
    copied, spec = raw(copy)
    assert copied.dtype == dtype
    assert np.array_equal(copied, pixels)
    assert spec.alpha_channel == (channels - 1 if channels in (2, 4) else -1)
    assert spec.get_string_attribute("Make") == "Canon"
    assert spec.get_string_attribute("Exif:LensModel") == "EF 50mm"
    assert np.asarray(spec["ICCProfile"]).tobytes() == profile(channels)
    if dtype == np.uint8:
        assert np.array_equal(np.asarray(Image.open(copy)).reshape(pixels.shape), pixels)


def profile(channels):
    return SRGB if channels > 2 else SRGB[:16] + b"GRAY" + SRGB[20:]


def test_all_16_bit_values_come_back(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    write_raw(tmp_path / "a.png", values)
    images.write(tmp_path / "b.png", images.read(tmp_path / "a.png"))
    assert np.array_equal(raw(tmp_path / "b.png")[0], values)


def test_float_tiff_comes_back(tmp_path):
    values = np.random.default_rng(1).random((11, 13, 3), dtype=np.float32)
    write_raw(tmp_path / "a.tif", values)
    images.write(tmp_path / "b.tif", images.read(tmp_path / "a.tif"))
    copied, spec = raw(tmp_path / "b.tif")
    assert np.array_equal(copied, values)
    assert spec.format == "float"


def test_colours_multiplied_with_alpha_come_back_so(tmp_path):
    pixels = noise(8, 9, 4)
    pixels[:, :, :3] = np.minimum(pixels[:, :, :3], pixels[:, :, 3:])
    write_raw(tmp_path / "a.tif", pixels, oiio__UnassociatedAlpha=0)
    images.write(tmp_path / "b.tif", images.read(tmp_path / "a.tif"))
    copied, spec = raw(tmp_path / "b.tif")
    assert np.array_equal(copied, pixels)
    assert spec.get_int_attribute("oiio:UnassociatedAlpha", 0) == 0


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [2, 4])
def test_colours_multiplied_with_alpha_are_divided_by_it_for_formats_without(tmp_path, suffix, dtype, channels):
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    alpha = np.tile(np.linspace(0, 1, 33)[:, None], (1, 24))
    colours = smooth(33, 24)[:, :, : channels - 1] / 255
    samples = np.dstack([colours * alpha[:, :, None], alpha]) * top
    samples = samples if dtype == np.float32 else np.rint(samples)
    write_raw(tmp_path / "a.tif", samples.astype(dtype), oiio__UnassociatedAlpha=0)
    images.write(tmp_path / f"b{suffix}", images.read(tmp_path / "a.tif"))
    copied = images.read(tmp_path / f"b{suffix}").pixels
    assert np.abs(copied[:, :, -1] - alpha).max() <= 0.51 / 255
    error = np.abs(copied[:, :, :-1] - colours)[alpha > 0.2].max()
    assert error < (0.06 if suffix == ".webp" else 0.001 if dtype != np.uint8 else 6 / 255)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_a_new_photo_keeps_its_colours_under_alpha(tmp_path, suffix):
    pixels = np.dstack([smooth(16, 16), np.full((16, 16), 51, np.uint8)])
    images.write(tmp_path / f"a{suffix}", Photo(pixels.astype(np.float32) / 255))
    copied = np.asarray(Image.open(tmp_path / f"a{suffix}")).astype(int)
    assert np.array_equal(copied[:, :, 3], pixels[:, :, 3])
    assert np.abs(copied - pixels).max() <= (12 if suffix == ".webp" else 0)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_and_gps_are_kept(tmp_path, suffix):
    Image.fromarray(smooth(20, 30)).save(tmp_path / "a.jpg", exif=exif(), icc_profile=SRGB)
    copy = tmp_path / f"b{suffix}"
    images.write(copy, images.read(tmp_path / "a.jpg"))
    picture = Image.open(copy)
    tags = picture.getexif()
    assert (tags[0x010F], tags[0x0110], tags[0x8298]) == ("Canon", "EOS 5D", "(c) somebody")
    photo, gps = dict(tags) | tags.get_ifd(0x8769), tags.get_ifd(0x8825)
    assert photo[0x9003] == "2020:01:02 03:04:05"
    assert photo[0xA434] == "EF 50mm"
    assert photo.get(0x8827) == (None if suffix == ".tif" else 400)  # ISO: OpenImageIO loses it in TIFF
    assert float(photo[0x829D]) == pytest.approx(2.8)
    assert gps[1] == "N"
    assert np.allclose(np.array(gps[2], float), [48, 30, 12.5])
    assert picture.info["icc_profile"] == SRGB


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("tags", [None, exif(6)])
def test_icc_is_kept_in_webp(tmp_path, channels, tags):
    pixels = np.dstack([smooth(20, 30), np.full((20, 30), 51, np.uint8)])[:, :, :channels]
    Image.fromarray(pixels).save(tmp_path / "a.webp", icc_profile=SRGB, **({"exif": tags} if tags else {}))
    images.write(tmp_path / "b.webp", images.read(tmp_path / "a.webp"))
    copied = Image.open(tmp_path / "b.webp")
    assert copied.info["icc_profile"] == SRGB
    assert copied.size == ((20, 30) if tags else (30, 20))
    assert copied.getexif().get(0x0112) == (1 if tags else None)
    assert np.array_equal(np.asarray(copied), raw(tmp_path / "b.webp")[0])
    assert channels == 3 or (np.asarray(copied)[:, :, 3] == 51).all()


# ---- the EXIF block, byte for byte

TAKEN = [".jpg", ".png", ".webp"]


def camera(orientation=1, order="MM"):
    """Metadata as Pillow reads it, including what OpenImageIO loses: a maker note, a short exposure, a thumbnail."""
    tags = exif(orientation)
    tags.endian = {"MM": ">", "II": "<"}[order]
    tags.get_ifd(0x8769)[0x829A] = IFDRational(1, 8001)
    tags.get_ifd(0x8769)[0x927C] = bytes(range(256))
    small = tags.get_ifd(ExifTags.IFD.IFD1)
    small[0x0112], small[0x0103] = orientation, 6
    return tags.tobytes()


def block_of(path):
    return Image.open(path).info["exif"].removeprefix(b"Exif\0\0")


def everything(path):
    tags = Image.open(path).getexif()
    return [dict(tags), *(tags.get_ifd(ifd) for ifd in (0x8769, 0x8825, ExifTags.IFD.IFD1))]


@pytest.mark.parametrize("source", TAKEN)
@pytest.mark.parametrize("target", TAKEN)
@pytest.mark.parametrize("order", ["MM", "II"])
def test_the_exif_block_is_kept_to_the_byte(tmp_path, source, target, order):
    upright, turned = camera(1, order), camera(6, order)
    assert upright[6:8].decode() == order
    for number, block in enumerate((upright, turned)):
        path, copy = tmp_path / f"{number}{source}", tmp_path / "out" / f"{number}{target}"
        Image.fromarray(smooth(20, 33)).save(path, exif=block)
        images.write(copy, images.read(path))
        assert block_of(copy) == upright[6:]
        expected, found = everything(path), everything(copy)
        for tags in expected:
            tags.update({0x0112: 1} if 0x0112 in tags else {})
        assert found == expected
        assert found[1][0x927C] == bytes(range(256))
        assert found[1][0x829A] * 8001 == 1
        assert copy.read_bytes().count(b"EF 50mm") == 1
        assert np.array_equal(np.asarray(Image.open(copy)), raw(copy)[0])
        assert raw(copy)[1].get_string_attribute("Exif:LensModel") == "EF 50mm"


def test_the_thumbnail_is_kept_and_deblurring_keeps_the_block(tmp_path):
    thumbnail = b"\xff\xd8 a small picture \xff\xd9"
    block = camera(6) + thumbnail  # outside the directories, like the data of many makers
    Image.fromarray(smooth(20, 33)).save(tmp_path / "a.jpg", exif=block)
    for extension in TAKEN:
        (done,) = deblur_files([tmp_path / "a.jpg"], deblurrer=lambda image: 1 - image, extension=extension).done
        assert block_of(done) == (camera(1) + thumbnail)[6:]


def test_a_block_that_openimageio_does_not_see_still_says_how_to_turn(tmp_path):
    Image.fromarray(smooth(20, 33)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:-12] + chunk(b"eXIf", camera(6)[6:]) + data[-12:])  # after the pixels
    images.write(tmp_path / "b.png", images.read(tmp_path / "a.png"))
    seen, copied = (np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / name))) for name in ("a.png", "b.png"))
    assert seen.shape == (33, 20, 3)
    assert np.array_equal(seen, copied)


def test_the_metadata_s_exif_where_the_block_is_broken_or_too_long(tmp_path):
    cut = camera()[6:120]  # the directory is complete, the data it points to is not
    for number, (block, kept) in enumerate(((b"no TIFF at all", False), (cut[:60], False), (cut, True))):
        Image.fromarray(smooth(20, 33)).save(tmp_path / "a.png", exif=block)
        photo = images.read(tmp_path / "a.png")
        assert photo.blocks.exif == (block if kept else None), number
        photo.metadata.attribute("Make", "Nikon")
        images.write(tmp_path / "b.jpg", photo)
        assert (block_of(tmp_path / "b.jpg") == block) == kept
        assert raw(tmp_path / "b.jpg")[1].get_string_attribute("Make") == ("Canon" if kept else "Nikon")
    long = camera() + bytes(65_533 - len(camera()))
    for size in (65_527, 65_528):
        Image.fromarray(smooth(20, 33)).save(tmp_path / "a.png", exif=long[: size + 6].ljust(size + 6, b"\1"))
        images.write(tmp_path / "b.jpg", images.read(tmp_path / "a.png"))
        assert (
            len(block_of(tmp_path / "b.jpg")) == size
            if size == 65_527
            else 200 < len(block_of(tmp_path / "b.jpg")) < 999
        )
        assert everything(tmp_path / "b.jpg")[0][0x010F] == "Canon"
        images.write(tmp_path / "b.webp", images.read(tmp_path / "a.png"))
        assert len(block_of(tmp_path / "b.webp")) == size


def test_tiff_carries_tags_and_no_block(tmp_path):
    Image.fromarray(smooth(20, 33)).save(tmp_path / "a.jpg", exif=camera())
    images.write(tmp_path / "a.tif", images.read(tmp_path / "a.jpg"))
    photo = images.read(tmp_path / "a.tif")
    assert photo.blocks.exif is None
    for suffix in (".jpg", ".png"):
        images.write(tmp_path / f"b{suffix}", photo)
        main, photograph, *_ = everything(tmp_path / f"b{suffix}")
        assert (main | photograph)[0xA434] == "EF 50mm"  # OpenImageIO may put it into the main directory


@pytest.mark.parametrize("text", ["x" * 100_000, "\xe9" * 40_000, "a;" * 15_000])
def test_texts_too_long_for_jpeg_are_left_out(tmp_path, text):
    info = PngImagePlugin.PngInfo()
    info.add_text("Description", text)
    info.add_text("Copyright", "(c) somebody")
    Image.fromarray(smooth(20, 33)).save(tmp_path / "a.png", pnginfo=info)
    photo = images.read(tmp_path / "a.png")
    images.write(tmp_path / "b.jpg", photo)
    assert raw(tmp_path / "b.jpg")[1].get_string_attribute("Copyright") == "(c) somebody"
    assert "ImageDescription" not in raw(tmp_path / "b.jpg")[1]
    images.write(tmp_path / "b.png", photo)
    assert Image.open(tmp_path / "b.png").text["Description"] == text


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's warnings on such blocks
@pytest.mark.parametrize("suffix", TAKEN)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
    length=st.just(9999) | st.integers(0, 500),
    target=st.sampled_from(TAKEN),
)
def test_mutated_blocks_do_no_harm(tmp_path, suffix, changes, length, target):
    block = camera(6)[6:]
    for at, new in changes:
        block = block[:at] + new + block[at + len(new) :]
    path, copy = tmp_path / f"a{suffix}", tmp_path / f"b{target}"
    Image.fromarray(smooth(9, 11)).save(path, exif=b"Exif\0\0" + block[:length])
    photo = images.read(path)
    assert np.array_equal(np.rint(photo.pixels * 255), images.read_rgb(path))
    images.write(copy, photo)
    again = images.read(copy)
    assert again.pixels.shape == photo.pixels.shape
    assert np.array_equal(np.asarray(Image.open(copy)), raw(copy)[0])
    if target == ".png":
        assert np.array_equal(again.pixels, photo.pixels)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's warnings on such blocks
@pytest.mark.parametrize("suffix", TAKEN)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3))
def test_mutated_files_are_read_or_an_error(tmp_path, suffix, changes):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(smooth(9, 11)).save(path, exif=camera(6))
    data = path.read_bytes()
    for place, new in changes:
        at = int(place * len(data))
        data = data[:at] + new + data[at + len(new) :]
    path.write_bytes(data)
    try:
        photo = images.read(path)
    except ImageError:
        return
    images.write(tmp_path / f"b{suffix}", photo)
    assert np.array_equal(np.asarray(Image.open(tmp_path / f"b{suffix}")), raw(tmp_path / f"b{suffix}")[0].squeeze())


@pytest.mark.parametrize("channels", [1, 2])
def test_gray_becomes_rgb_in_webp_and_its_profile_goes(tmp_path, channels):
    write_raw(tmp_path / "a.png", np.full((9, 8, channels), 77, np.uint8), icc=profile(1))
    images.write(tmp_path / "a.webp", images.read(tmp_path / "a.png"))
    picture = Image.open(tmp_path / "a.webp")
    assert picture.mode == ("RGB", "RGBA")[channels - 1]
    assert "icc_profile" not in picture.info
    assert np.abs(np.asarray(picture).astype(int) - 77).max() <= 2


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_are_of_high_quality_and_8_bits(tmp_path, suffix):
    pixels = smooth(64, 80).astype(np.float32) / 255
    images.write(tmp_path / f"a{suffix}", Photo(pixels, bits=16))
    again = images.read(tmp_path / f"a{suffix}")
    assert again.bits == 8
    assert np.abs(again.pixels - pixels).mean() < 1.5 / 255
    if suffix == ".jpg":
        assert max(Image.open(tmp_path / "a.jpg").quantization[0]) <= 13  # libjpeg has at most 12.1 at quality 95


def test_opaque_alpha_is_dropped_for_jpeg_and_any_other_is_an_error(tmp_path):
    pixels = np.dstack([smooth(16, 16), np.full((16, 16), 255, np.uint8)]).astype(np.float32) / 255
    images.write(tmp_path / "a.jpg", Photo(pixels))
    assert Image.open(tmp_path / "a.jpg").mode == "RGB"
    pixels[3, 4, 3] = 0.99
    with pytest.raises(ImageError, match=r"b\.jpg: JPEG cannot hold.*PNG"):
        images.write(tmp_path / "b.jpg", Photo(pixels))
    assert sorted(os.listdir(tmp_path)) == ["a.jpg"]


def test_samples_are_rounded_to_the_nearest_and_clipped_by_nobody(tmp_path):
    values = np.array([0.4, 0.6, 1.4, 1.6, 254.4, 254.6], np.float32).reshape(1, 6, 1) / 255
    images.write(tmp_path / "a.png", Photo(values))
    assert raw(tmp_path / "a.png")[0].ravel().tolist() == [0, 1, 1, 2, 254, 255]


# ---- errors


def broken_files(folder):
    """Files that are not complete images, and the text that the error must contain."""
    pixels = noise(90, 110, 3)
    for name, options in (
        ("a.png", {}),
        ("a.jpg", {}),
        ("progressive.jpg", {"progressive": True}),
        ("a.webp", {}),
        ("a.tif", {}),
        ("deflate.tif", {"compression": "tiff_adobe_deflate"}),
    ):
        Image.fromarray(pixels).save(folder / name, **options)
        whole = (folder / name).read_bytes()
        for percent in (1, 50, 97):
            cut = folder / f"cut {percent} {name}"
            cut.write_bytes(whole[: len(whole) * percent // 100])
            yield cut, None
        (folder / name).unlink()
    Image.fromarray(pixels).save(folder / "a.png")
    whole = (folder / "a.png").read_bytes()
    (folder / "no end.png").write_bytes(whole[:-12])
    yield folder / "no end.png", "cut short"
    middle = len(whole) // 2
    (folder / "flipped bit.png").write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    yield folder / "flipped bit.png", "broken"
    (folder / "text.png").write_text("This is no image.\n")
    yield folder / "text.png", "not an image"
    (folder / "pnm.png").write_text("P3\n2 1\n255\n1 2 3 4 5 6\n")
    yield folder / "pnm.png", "PNM, not PNG as its name says; convert it to PNG"
    (folder / "empty.jpg").touch()
    yield folder / "empty.jpg", "the file is empty"
    (folder / "folder.png").mkdir()
    yield folder / "folder.png", "directory"
    yield folder / "missing.png", "No such file"
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bomb)
    yield folder / "huge.png", "claims"
    write_raw(folder / "five.tif", noise(4, 4, 5))
    yield folder / "five.tif", "5 channels"
    write_raw(folder / "two.tif", noise(4, 4, 2), channelnames=("a", "b"))
    yield folder / "two.tif", "2 channels"
    write_raw(folder / "whole.tif", noise(4, 4, 3, dtype=np.int16))
    yield folder / "whole.tif", "int16"
    write_raw(folder / "hdr.tif", np.full((4, 4, 3), 1.5, np.float32))
    yield folder / "hdr.tif", r"outside \[0, 1\]"
    write_raw(folder / "nan.tif", np.full((4, 4, 3), np.nan, np.float32))
    yield folder / "nan.tif", r"outside \[0, 1\]"
    Image.fromarray(pixels).convert("LAB").save(folder / "lab.tif")
    yield folder / "lab.tif", "CIELAB"


def test_broken_files_are_errors_that_name_file_and_reason_and_print_nothing(tmp_path, capfd):
    for path, reason in broken_files(tmp_path):
        for reader in (images.read, images.read_rgb):
            with pytest.raises(ImageError, match=reason) as caught:
                reader(path)
            message = str(caught.value)
            assert message.startswith(f"{path}: "), message
            assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    Image.fromarray(noise(4, 4, 3)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    if os.geteuid() == 0:  # root, whom the mode does not restrict

        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    for reader in (images.read, images.read_rgb, images.read_size):
        with pytest.raises(ImageError, match=r"a\.png: cannot be read \(Permission denied\)"):
            reader(tmp_path / "a.png")


def test_a_name_that_is_not_utf8(tmp_path):
    path = os.fsdecode(bytes(tmp_path) + b"/\xff.png")
    Path(path).write_bytes(b"x")
    with pytest.raises(ImageError, match="not valid UTF-8"):
        images.read(path)


def test_write_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    old = tmp_path / "a.png"
    old.write_bytes(b"what was there before")
    with pytest.raises(ImageError, match=r"a\.bmp: the suffix must be one of \.png"):
        images.write(tmp_path / "a.bmp", Photo(np.zeros((2, 2, 3), np.float32)))
    with pytest.raises(ImageError, match=r"a\.webp: WebP holds 16,383 pixels a side; the image is 17,000 x 2"):
        images.write(tmp_path / "a.webp", Photo(np.zeros((2, 17000, 3), np.float32)))
    with pytest.raises(ImageError, match=r"b\.png: cannot be written \((Not a directory|File exists)\)"):
        images.write(old / "b.png", Photo(np.zeros((2, 2, 3), np.float32)))
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
        with pytest.raises(ImageError, match=r"a\.png: cannot be written \(no space left"):
            images.write(old, Photo(np.zeros((2, 2, 3), np.float32)))
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(ImageError, match=r"a\.png: cannot be written \(No space left on device\)"):
            images.write(old, Photo(np.zeros((2, 2, 3), np.float32)))
    assert old.read_bytes() == b"what was there before"
    assert os.listdir(tmp_path) == ["a.png"]
    images.write(old, Photo(np.ones((2, 2, 3), np.float32)))
    assert images.read_rgb(old).min() == 255


# ---- folders


def test_find_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/c.tiff", "sub/deep er/d.WebP", "notes.txt", ".hidden.png", ".cache/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in images.find_images(tmp_path)]
    assert found == ["a.jpg", "b.PNG", "sub/c.tiff", "sub/deep er/d.WebP"]


def test_find_images_in_no_folder(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere: the folder cannot be read \(No such file"):
        images.find_images(tmp_path / "nowhere")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_file_that_is_cut_short_is_found_by_its_size_alone(tmp_path, suffix):
    """So that broken files of a data set are named before training starts. A preview inside has its own end marker."""
    thumbnail = tmp_path / "thumbnail.jpg"
    images.write(thumbnail, Photo(smooth(8, 8).astype(np.float32) / 255))
    block = Image.Exif()
    block[0x9286] = thumbnail.read_bytes()
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(smooth(60, 90)).save(path, exif=block)
    whole = path.read_bytes()
    assert images.read_size(path) == (60, 90)
    path.write_bytes(whole + b"something behind it")
    assert images.read_size(path) == (60, 90)
    for keep in (len(whole) - 1, len(whole) - 30, len(whole) * 9 // 10):
        path.write_bytes(whole[:keep])
        with pytest.raises(ImageError, match=r"photo.*(cut short|broken)"):
            images.read_size(path)
