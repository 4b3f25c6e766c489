"""HEIC and AVIF against the decoders of their own libraries, and behaviour without these libraries."""

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lmfn import images
from lmfn.images import ImageError, ImageWarning, formats, heif
from lmfn.metadata import Blocks
from tests.images.conftest import smooth

pillow_heif = pytest.importorskip("pillow_heif")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"> tiff:Orientation="6" xmp:Rating="4" </x:xmpmeta>'


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112], tags[0x010F] = orientation, "Apple"
    return tags.tobytes()


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    picture = Image.fromarray(pixels)
    if path.suffix == ".avif":
        picture.save(path, quality=95, **options)
    else:
        pillow_heif.from_pillow(picture).save(path, quality=95, **options)
    return path


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_they_come_back_upright_with_their_metadata(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a{suffix}"
    packet = XMP.replace(b"6", b"%d" % orientation)
    if suffix == ".avif":
        save(path, smooth(), exif=exif(orientation), icc_profile=SRGB, xmp=packet)
    else:
        picture = Image.fromarray(smooth())
        picture.info |= {"icc_profile": SRGB, "xmp": packet}
        pillow_heif.register_heif_opener()
        picture.save(path, quality=95, exif=exif(orientation))
    turns = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
    expected = np.rot90(smooth(), turns)
    photo = images.read(path)
    assert photo.bits == 8
    assert images.read_size(path) == expected.shape[:2]
    assert np.abs(np.rint(photo.pixels * 255) - expected).mean() < 2
    assert np.array_equal(images.read_rgb(path), np.rint(photo.pixels * 255))
    for target in (".jpg", ".png", ".webp", ".tif"):
        images.write(tmp_path / f"b{target}", photo)
        copied = Image.open(tmp_path / f"b{target}")
        assert copied.size == expected.shape[1::-1]
        assert copied.info["icc_profile"] == SRGB
        assert copied.getexif().get(0x0112, 1) == 1
        if target != ".tif":
            assert copied.getexif()[0x010F] == "Apple"
        assert b'tiff:Orientation="1" xmp:Rating="4"' in copied.info["xmp"]


def test_a_gain_map_that_is_not_kept_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pillow-heif cannot write a depth map, but lists existing ones as auxiliary images."""
    path = save(tmp_path / "a.heic", smooth())
    found = pillow_heif.open_heif(path, convert_hdr_to_8bit=False)
    found.info["aux"] = {"urn:com:apple:photo:2020:aux:hdrgainmap": [2]}
    monkeypatch.setattr(pillow_heif, "open_heif", lambda *_, **__: found)
    with pytest.warns(ImageWarning, match=r"a\.heic: the gain map, depth map or film in the file is not kept"):
        images.read(path)


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_a_film_behind_the_picture_is_left_out_with_a_word(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", smooth())
    data, film = path.read_bytes(), struct.pack(">I4s4sI", 16, b"ftyp", b"mp42", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ImageWarning)
        images.read(path)
        path.write_bytes(data + struct.pack(">I4s", 9, b"free") + b"x" + struct.pack(">I4sI", 0, b"free", 7))
        images.read(path)
    for more in (struct.pack(">I4s", 24, b"mpvd") + film, struct.pack(">I4sQ", 1, b"mpvd", 32) + film, film):
        path.write_bytes(data + more)
        with pytest.warns(ImageWarning, match=rf"a\{suffix}: the gain map, depth map or film in the file is not kept"):
            images.read(path)


def test_alpha_and_gray(tmp_path: Path) -> None:
    pixels = np.dstack([smooth(), np.full((48, 72), 51, np.uint8)])
    for suffix in (".heic", ".avif"):
        photo = images.read(save(tmp_path / f"a{suffix}", pixels))
        assert photo.alpha
        assert np.abs(photo.pixels[:, :, 3] * 255 - 51).max() <= 1
    gray = images.read(save(tmp_path / "gray.heic", smooth()[:, :, 0]))
    assert np.abs(gray.pixels.mean(axis=2) * 255 - smooth()[:, :, 0]).mean() < 2


def test_10_bits_of_heic_are_16_and_white_is_white(tmp_path: Path) -> None:
    pixels = np.linspace(0, 65535, 64 * 64, dtype=np.uint16).reshape(64, 64, 1).repeat(3, 2)
    picture = pillow_heif.from_bytes(mode="RGB;16", size=(64, 64), data=pixels.tobytes())
    picture.save(tmp_path / "a.heic", quality=-1, chroma=444, matrix_coefficients=0)
    photo = images.read(tmp_path / "a.heic")
    assert photo.bits == 16
    assert photo.pixels.max() == 1
    assert photo.pixels.min() == 0
    assert np.abs(photo.pixels - pixels / 65535).max() < 2 / 1023


def test_colours_without_a_profile(tmp_path: Path) -> None:
    """The colour description of an HDR photograph from an iPhone or a camera is kept in a PNG; sRGB needs none."""
    for primaries, transfer, said in ((9, 16, ((b"cICP", bytes([9, 16, 0, 1])),)), (2, 2, ())):
        picture = pillow_heif.from_pillow(Image.fromarray(smooth()))
        picture.save(tmp_path / "a.heic", color_primaries=primaries, transfer_characteristics=transfer)
        assert images.read(tmp_path / "a.heic").blocks == Blocks(colour=said)


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_several_pictures(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(np.roll(smooth(), shift, axis=1)) for shift in (0, 20, 40)]
    if suffix == ".avif":
        frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:], duration=50, quality=95)
    else:
        picture = pillow_heif.from_pillow(frames[0])
        for frame in frames[1:]:
            picture.add_from_pillow(frame)
        picture.save(tmp_path / "a.heic", quality=95)
    path = tmp_path / f"a{suffix}"
    with pytest.raises(ImageError, match=rf"{suffix[1:].upper()} of 3 images; take all or the first"):
        images.read(path)
    with pytest.raises(ImageError, match="of 3 images, of which only the first can be read"):
        list(images.read_frames(path))
    assert np.abs(images.read(path, first=True).pixels * 255 - smooth()).mean() < 2


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_damaged_files_are_read_or_one_error(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    whole = save(tmp_path / f"whole{suffix}", smooth()).read_bytes()
    path, errors = tmp_path / "a.jpg", []  # recognised by its content, not by its name
    for number in range(60):
        data = bytearray(whole)
        at = int(rng.integers(16, len(data)))
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data[:at] if number % 2 else data)
        try:
            images.read(path)
        except ImageError as error:
            errors.append(str(error))
    assert len(errors) > 20
    assert all(error.startswith(f"{path}: ") and "\n" not in error for error in errors)


def test_without_the_libraries_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif, "AVAILABLE", False)
    path = save(tmp_path / "a.heic", smooth()).rename(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="HEIC, not JPEG as its name says; to read it: pip install pillow-heif"):
        images.read(path)
    with pytest.raises(ImageError, match=r"a\.avif: AVIF; to read it: pip install pillow-heif"):
        images.read(save(tmp_path / "a.avif", smooth()))


def test_names(tmp_path: Path) -> None:
    for name in ("a.HEIC", "b.heif", "c.hif", "d.avif"):
        (tmp_path / name).touch()
        with pytest.raises(ImageError, match="the suffix must be one of"):
            formats.writable_format(tmp_path / name)
    assert [path.name for path in images.find_images(tmp_path)] == ["a.HEIC", "b.heif", "c.hif", "d.avif"]
