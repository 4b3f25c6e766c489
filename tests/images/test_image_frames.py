"""Files with several images: refused with an error that names them, or read completely, or only the first image."""

import io
import struct
from pathlib import Path

import numpy as np
import OpenImageIO as oiio  # noqa: N813
import pytest
from PIL import Image, ImageCms

from lmfn import images
from lmfn.images import ImageError, Photo
from lmfn.metadata import Blocks, webp


def picture(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / 60
    return np.stack([200 * y + 20, 150 * x + 50, np.full_like(x, 40 * seed)], axis=2).astype(np.uint8)


def save(path: Path, count: int, **options: object) -> Path:
    first, *rest = (Image.fromarray(picture(n)) for n in range(count))
    first.save(path, save_all=True, append_images=rest, **options)
    return path


def chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def parts_of(data: bytes) -> list[tuple[bytes, bytes]]:
    return [(kind, data[start : start + length]) for kind, start, length in webp.chunks(io.BytesIO(data))]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a.png", "an animated PNG of 4 frames"),
        ("a.webp", "an animated WebP of 4 frames"),
        ("a.tif", "a TIFF of several pages"),
        ("a.gif", "GIF; convert it"),
    ],
)
def test_the_first_is_never_taken_in_silence(tmp_path: Path, name: str, what: str) -> None:
    path = save(tmp_path / name, 4)
    for reader in (images.read, images.read_rgb, images.read_size):
        with pytest.raises(ImageError, match=rf"{name}: {what}"):
            reader(path)
    if name != "a.gif":
        first = images.read(path, first=True)
        assert np.abs(first.pixels * 255 - picture(0)).mean() < 4
        assert images.read(save(tmp_path / f"one{path.suffix}", 1)).pixels.shape == (40, 60, 3)


@pytest.mark.parametrize("pages", [1, 2, 70])
def test_pages_of_a_tiff(tmp_path: Path, pages: int) -> None:
    path = save(tmp_path / "a.tif", pages, compression="tiff_lzw")
    images.write_frames(tmp_path / "b.tif", images.read_frames(path))
    copied = Image.open(tmp_path / "b.tif")
    assert copied.n_frames == pages
    for page in range(pages):
        copied.seek(page)
        assert np.array_equal(np.asarray(copied), picture(page))


def test_pages_of_different_kinds(tmp_path: Path) -> None:
    """Each page has its own size, depth, channels, orientation and description."""
    rng = np.random.default_rng(0)
    pixels = [
        rng.integers(0, 256, (5, 9, 3), dtype=np.uint8),
        rng.integers(0, 65536, (7, 4, 1), dtype=np.uint16),
        rng.random((3, 3, 4), dtype=np.float32),
    ]
    file = oiio.ImageOutput.create("tiff")
    for number, page in enumerate(pixels):
        spec = oiio.ImageSpec(page.shape[1], page.shape[0], page.shape[2], page.dtype.name.replace("float32", "float"))
        spec.attribute("ImageDescription", f"page {number}")
        spec.attribute("Orientation", 6 if number == 1 else 1)
        spec.attribute("oiio:UnassociatedAlpha", 1)
        assert file.open(str(tmp_path / "a.tif"), spec, "AppendSubimage" if number else "Create"), file.geterror()
        assert file.write_image(page)
    assert file.close()
    images.write_frames(tmp_path / "b.tif", images.read_frames(tmp_path / "a.tif"))
    config = oiio.ImageSpec()
    config.attribute("oiio:UnassociatedAlpha", 1)
    copied = oiio.ImageInput.open(str(tmp_path / "b.tif"), config)
    for number, page in enumerate(pixels):
        assert copied.seek_subimage(number, 0)
        assert copied.spec().get_string_attribute("ImageDescription") == f"page {number}"
        expected = np.rot90(page, -1) if number == 1 else page
        found = copied.read_image(number, 0, 0, page.shape[2], "unknown")
        assert found.dtype == page.dtype
        assert np.array_equal(found, expected)
    assert not copied.seek_subimage(3, 0)


def test_each_page_keeps_its_own_profile(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profiles = [srgb, None, srgb + bytes(4), srgb]
    pages = [Photo(picture(n), blocks=Blocks(icc=profile)) for n, profile in enumerate(profiles)]
    images.write_frames(tmp_path / "a.tif", pages)
    images.write_frames(tmp_path / "b.tif", images.read_frames(tmp_path / "a.tif"))
    copied = Image.open(tmp_path / "b.tif")
    for page, profile in enumerate(profiles):
        copied.seek(page)
        assert copied.tag_v2.get(34675) == profile


def test_small_copies_and_masks_of_a_tiff_are_no_pages(tmp_path: Path) -> None:
    def write(*kinds: int) -> Path:
        first, *rest = (Image.fromarray(picture(n)) for n in range(len(kinds)))
        for page, kind in zip((first, *rest), kinds, strict=True):
            page.encoderinfo = {"tiffinfo": {254: kind}}
        first.save(tmp_path / "a.tif", save_all=True, append_images=rest, tiffinfo={254: kinds[0]})
        return tmp_path / "a.tif"

    assert images.read(write(0, 1, 4, 1)).pixels.shape == (40, 60, 3)
    with pytest.raises(ImageError, match="several pages"):
        images.read(write(0, 1, 0))
    assert len(list(images.read_frames(write(0, 1, 0, 2)))) == 3
    for kinds in ((1, 0), (1,), (4, 0)):  # as in a camera's raw file
        with pytest.raises(ImageError, match="its first image is a small copy or a mask"):
            images.read(write(*kinds), first=True)


@pytest.mark.parametrize("alpha", [False, True])
def test_frames_of_an_animated_webp(tmp_path: Path, alpha: bool) -> None:
    durations = [40, 2000, 70, 100]
    frames = [Image.fromarray(picture(n)).convert("RGBA" if alpha else "RGB") for n in range(4)]
    if alpha:
        for frame in frames:
            frame.putalpha(120)
    exif = Image.Exif()
    exif[0x010F] = "Canon"
    frames[0].save(
        tmp_path / "a.webp",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=3,
        lossless=True,
        exif=exif,
    )
    photos = list(images.read_frames(tmp_path / "a.webp"))
    for number, photo in enumerate(photos):
        assert np.array_equal(np.rint(photo.pixels[:, :, :3] * 255), picture(number))
        assert photo.alpha == alpha
    images.write_frames(tmp_path / "b.webp", photos)
    copied = Image.open(tmp_path / "b.webp")
    assert (copied.n_frames, copied.info["loop"]) == (4, 3)
    assert copied.getexif()[0x010F] == "Canon"
    for number, frame in enumerate(frames):
        copied.seek(number)
        found = np.asarray(copied.convert(frame.mode)).astype(int)
        assert np.abs(found - np.asarray(frame)).mean() < 3
        assert copied.info["duration"] == durations[number]


@pytest.mark.parametrize("disposal", [0, 1])
@pytest.mark.parametrize("blend", [0, 1])
def test_frames_are_put_together_as_libwebp_does_it(tmp_path: Path, disposal: int, blend: int) -> None:
    """Half-transparent parts of the picture at their positions, blended with what was there or replacing it."""
    rng = np.random.default_rng(0)
    parts = []
    for number, (left, top) in enumerate(((0, 0), (4, 10), (20, 6), (20, 6), (0, 0))):
        height, width = (40, 60) if number == 0 else (20, 30)
        pixels = np.dstack([rng.integers(0, 256, (height, width, 3)), np.full((height, width), 255)]).astype(np.uint8)
        pixels[2:9, 2:9, 3], pixels[10:15, 10:15, 3] = 100, 0
        still = io.BytesIO()
        Image.fromarray(pixels).save(still, "webp", lossless=True, exact=True)
        image = next(part for part in parts_of(still.getvalue()) if part[0] == b"VP8L")
        head = b"".join(n.to_bytes(3, "little") for n in (left // 2, top // 2, width - 1, height - 1, 100))
        parts.append(chunk(b"ANMF", head + bytes([disposal | (0 if blend else 2)]) + chunk(*image)))
    header = b"\x12\0\0\0" + (59).to_bytes(3, "little") + (39).to_bytes(3, "little")
    whole = b"WEBP" + chunk(b"VP8X", header) + chunk(b"ANIM", bytes(6)) + b"".join(parts)
    (tmp_path / "a.webp").write_bytes(b"RIFF" + struct.pack("<I", len(whole)) + whole)
    expected = Image.open(tmp_path / "a.webp")
    for number, photo in enumerate(images.read_frames(tmp_path / "a.webp")):
        expected.seek(number)
        frame = np.asarray(expected.convert("RGBA")).astype(int)
        found = np.rint(photo.pixels * 255)
        assert np.abs(found[:, :, 3] - frame[:, :, 3]).max() <= 1
        assert np.abs((found - frame)[frame[:, :, 3] > 0]).max() <= 2, number
    assert number == 4


def test_an_animation_of_one_frame_is_a_still(tmp_path: Path) -> None:
    pixels = np.dstack([picture(2), np.full((40, 60), 120, np.uint8)])
    still = io.BytesIO()
    Image.fromarray(pixels).save(still, "webp", lossless=True)
    (tmp_path / "a.webp").write_bytes(webp.animate([(still.getvalue(), 100)], 0))
    assert np.array_equal(np.rint(images.read(tmp_path / "a.webp").pixels * 255), pixels)


def test_broken_animations_are_one_error(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.webp", 3, lossless=True).read_bytes()
    place = whole.index(b"ANMF")
    for broken in (
        whole[: place + 8] + b"\xff" + whole[place + 9 :],  # where the frame is
        whole.replace(b"VP8L", b"XXXX"),
        whole[: whole.index(b"VP8L") + 12] + bytes(20) + whole[whole.index(b"VP8L") + 32 :],
    ):
        (tmp_path / "a.webp").write_bytes(broken)
        with pytest.raises(ImageError, match=r"a\.webp: (broken|not an image)"):
            list(images.read_frames(tmp_path / "a.webp"))


def test_frames_from_one_format_into_another(tmp_path: Path) -> None:
    path = save(tmp_path / "a.webp", 3, duration=100, lossless=True)
    images.write_frames(tmp_path / "b.tif", images.read_frames(path))
    assert [np.rint(page.pixels * 255).max() for page in images.read_frames(tmp_path / "b.tif")] == [
        picture(n).max() for n in range(3)
    ]
    images.write_frames(tmp_path / "c.webp", images.read_frames(tmp_path / "b.tif"))
    assert Image.open(tmp_path / "c.webp").n_frames == 3


def test_what_cannot_hold_several_is_refused_before_they_are_asked_for(tmp_path: Path) -> None:
    def never():
        raise AssertionError("a photo was asked for")
        yield Photo(picture(0))

    for suffix, form in ((".png", "PNG"), (".jpg", "JPEG"), (".jfif", "JPEG")):
        with pytest.raises(ImageError, match=rf"{form} holds one image; write several as a TIFF \(pages\) or WebP"):
            images.write_frames(tmp_path / f"a{suffix}", never())
    with pytest.raises(ImageError, match="an animated PNG of 3 frames, of which only the first can be read"):
        list(images.read_frames(save(tmp_path / "a.png", 3)))
    sizes = [Photo(picture(0)), Photo(picture(0)[:20])]
    with pytest.raises(ImageError, match=r"b\.webp: the frames of an animation are of one size"):
        images.write_frames(tmp_path / "b.webp", sizes)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
