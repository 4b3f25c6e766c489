"""Large images: pixels that are read, kept and written row by row, instead of in memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import OpenImageIO as oiio  # noqa: N813
import pytest
from PIL import Image

from lmfn import images, memory
from lmfn.images import ImageError, Photo, reading, writing
from lmfn.scratch import StoredPixels

SHAPE = 67, 45


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """Images above 1 kB are large, and are read and written a few rows at a time."""
    monkeypatch.setattr(reading, "LARGE", 1000)
    monkeypatch.setattr(reading, "AT_ONCE", 900)
    monkeypatch.setattr(writing, "AT_ONCE", 900)


def noise(channels=3, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (*SHAPE, channels), dtype, endpoint=True)


def both(path):
    """The pixels as an array, and as they were stored."""
    stored = images.read(path, whole_numbers=True, stored=True).pixels
    assert isinstance(stored, StoredPixels)
    return images.read(path, whole_numbers=True).pixels, stored[:]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_stored_pixels_are_those_of_the_file(tmp_path, suffix, dtype):
    for channels in (1, 3) if suffix == ".jpg" else (1, 2, 3, 4):
        path = tmp_path / f"{channels}{suffix}"
        images.write(path, Photo(noise(channels, dtype)))
        expected, stored = both(path)
        assert stored.dtype == expected.dtype
        assert np.array_equal(stored, expected)
        again = tmp_path / f"again{suffix}"
        images.write(again, images.read(path, whole_numbers=True, stored=True))
        images.write(path, images.read(path, whole_numbers=True))
        assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_pixels_are_upright(tmp_path, orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    for suffix, options in ((".png", {}), (".jpg", {"quality": 90}), (".jpg", {"progressive": True})):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(noise()).save(path, exif=tags, **options)
        assert np.array_equal(*both(path))


def test_float_samples_and_tiles_are_stored(tmp_path):
    floats = np.random.default_rng(0).random((*SHAPE, 3), np.float32)
    images.write(tmp_path / "a.tif", Photo(floats, bits=32))
    assert np.array_equal(both(tmp_path / "a.tif")[1], floats)
    header = oiio.ImageSpec(SHAPE[1], SHAPE[0], 3, "uint8")
    header.tile_width = header.tile_height = 16
    out = oiio.ImageOutput.create("tiff")
    assert out.open(str(tmp_path / "tiles.tif"), header)
    assert out.write_tiles(0, SHAPE[1], 0, SHAPE[0], 0, 1, noise())
    out.close()
    assert np.array_equal(both(tmp_path / "tiles.tif")[1], noise())


def test_a_file_that_breaks_off_is_an_error(tmp_path):
    images.write(tmp_path / "a.tif", Photo(noise()))
    whole = (tmp_path / "a.tif").read_bytes()
    middle = len(whole) // 2
    (tmp_path / "a.tif").write_bytes(whole[:middle] + bytes(800) + whole[middle + 800 :])
    with pytest.raises(ImageError, match=r"a\.tif: broken or cut short"):
        images.read(tmp_path / "a.tif", whole_numbers=True, stored=True)


def test_without_room_for_a_file_pixels_are_in_memory(tmp_path, monkeypatch):
    images.write(tmp_path / "a.png", Photo(noise()))

    def no_room(size):
        raise MemoryError(size)

    monkeypatch.setattr(memory, "scratch_folder", no_room)
    pixels = images.read(tmp_path / "a.png", whole_numbers=True, stored=True).pixels
    assert isinstance(pixels, np.ndarray)
    assert np.array_equal(pixels, noise())


@pytest.mark.parametrize(("suffix", "options"), [(".png", {}), (".jpg", {"progressive": True}), (".webp", {})])
def test_what_the_decoder_holds_counts(tmp_path, monkeypatch, suffix, options):
    """A progressive JPEG's coefficients and a WebP; of a PNG nothing, if it is not interlaced."""
    Image.fromarray(noise()).save(tmp_path / f"a{suffix}", **options)
    monkeypatch.setattr(reading, "TAKEN_FOR_GRANTED", 0)
    monkeypatch.setattr(memory, "available", lambda: 100)
    if suffix == ".png":
        assert np.array_equal(images.read(tmp_path / "a.png", whole_numbers=True, stored=True).pixels[:], noise())
        return
    with pytest.raises(ImageError, match="45 x 67 pixels need"):
        images.read(tmp_path / f"a{suffix}", whole_numbers=True, stored=True)


def test_rows_of_another_shape_are_refused(tmp_path):
    stored = StoredPixels(tmp_path, (4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match=r"rows 1 to 3 of \(4, 5, 3\)"):
        stored[1:3] = np.zeros((1, 5, 3), np.uint8)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_large_image_is_never_whole_in_memory(tmp_path, suffix):
    """72 MB of samples, from one file to another, by the operating system's account."""
    call = f"""
from pathlib import Path
import numpy as np
from lmfn import images
from lmfn.images import Photo
from lmfn.scratch import StoredPixels
def status(name): return 1024 * int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])
folder = Path({str(tmp_path)!r})
images.write(folder / "a{suffix}", Photo(np.zeros((9, 9, 3), np.uint8)))
images.read(folder / "a{suffix}")
pixels = StoredPixels(folder, (6000, 4000, 3), np.uint8)
rows = np.random.default_rng(0).integers(0, 256, (100, 4000, 3), np.uint8)
rows[:, 400:] = 99
for first in range(0, 6000, 100):
    pixels[first : first + 100] = rows
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
images.write(folder / "b{suffix}", Photo(pixels))
again = images.read(folder / "b{suffix}", whole_numbers=True, stored=True)
assert isinstance(again.pixels, StoredPixels)
images.write(folder / "c{suffix}", again)
print(status("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert int(done.stdout) < 40 * 2**20
