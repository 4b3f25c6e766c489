"""Files that would fill the memory, hang the reader, or pretend to be images."""

import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmfn import images, memory
from lmfn.images import ImageError, Photo
from lmfn.metadata.png import chunk


def png_bomb(path: Path, side: int, bits: int, colour: int) -> Path:
    """A complete PNG of zeros: a few hundred kilobytes that decode to gigabytes."""
    size, block = side * (1 + side * bits * {0: 1, 2: 3}[colour] // 8), 2**20
    compressor = zlib.compressobj(9, wbits=-15)
    zeros = compressor.compress(bytes(block)) + compressor.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, wbits=-15)
    end = rest.compress(bytes(size % block)) + rest.flush() + struct.pack(">I", (size % 65521) << 16 | 1)  # Adler-32
    data = b"\x78\x9c" + zeros * (size // block) + end
    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 300_000_000)


@pytest.mark.usefixtures("little_memory")
def test_the_pixels_of_the_header_are_held_against_the_memory(tmp_path: Path) -> None:
    assert images.read(png_bomb(tmp_path / "whole.png", 2_000, 1, 0)).pixels.shape == (2000, 2000, 1)
    gray = png_bomb(tmp_path / "gray.png", 16_000, 1, 0)
    with pytest.raises(ImageError, match=r"gray\.png: 16,000 x 16,000 pixels need 2\.3 GB, and 0\.3 GB are free"):
        images.read(gray)
    assert images.read_size(gray) == (16_000, 16_000)
    Image.new("RGB", (8000, 8000)).save(tmp_path / "a.jpg")
    Image.new("RGB", (8000, 8000)).save(tmp_path / "a.webp", quality=0, method=0)
    Image.new("RGB", (8000, 8000)).save(tmp_path / "a.tif", compression="packbits")
    for name in ("a.jpg", "a.webp", "a.tif"):
        for reader in (images.read, images.read_rgb):
            with pytest.raises(ImageError, match=r"8,000 x 8,000 pixels need 1\.7 GB"):
                reader(tmp_path / name)
    images.write(tmp_path / "small.png", Photo(np.zeros((99, 99, 3), np.uint8)))
    images.read(tmp_path / "small.png")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux counts it")
def test_a_bomb_is_refused_without_being_decoded(tmp_path: Path) -> None:
    bomb = png_bomb(tmp_path / "bomb.png", 60_000, 1, 0)
    code = (
        "import resource, sys; from lmfn import images; resource.setrlimit(resource.RLIMIT_AS, (8 * 10**9,) * 2)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: images.read(sys.argv[1])\n"
        "except images.ImageError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run([sys.executable, "-c", code, bomb], capture_output=True, text=True, check=True, timeout=60)
    message, kilobytes = run.stdout.splitlines()
    assert "60,000 x 60,000 pixels need 32.4 GB" in message
    assert int(kilobytes) < 100_000


def test_texts_of_a_png_that_would_fill_the_memory(tmp_path: Path) -> None:
    images.write(tmp_path / "a.png", Photo(np.zeros((9, 9, 3), np.uint8)))
    data = (tmp_path / "a.png").read_bytes()
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(7_000_000), 9))
    (tmp_path / "a.png").write_bytes(data[:33] + text * 300 + data[33:])
    with pytest.raises(ImageError, match=r"a\.png: compressed texts of more than 8 MB"):
        images.read_size(tmp_path / "a.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    for name, reason in (
        (tmp_path / "x.png", "x.png: a pipe, not a file"),
        (Path("/dev/null"), "/dev/null: a device, not a file"),
        (tmp_path / "loop.png", r"cannot be read \(Too many levels of symbolic links\)"),
        (tmp_path / "gone.png", r"cannot be read \(No such file or directory\)"),
        (tmp_path / ("n" * 300 + ".png"), r"cannot be read \(File name too long\)"),
    ):
        for reader in (images.read, images.read_rgb, images.read_size, lambda path: list(images.read_frames(path))):
            with pytest.raises(ImageError, match=reason):
                reader(name)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"GIF89a", "a.png", "GIF, not PNG as its name says; convert it to PNG, JPEG or TIFF"),
        (b"GIF89a", "a.gif", r"a\.gif: GIF; convert it"),
        (b"BM" + bytes(60), "a.bmp", r"a\.bmp: BMP; convert it"),
        (b"\0\0\0\x20ftypisom", "a.jpg", "video, not JPEG as its name says; no image"),
        (b"\0\0\0\x18ftypcrx ", "a.cr3", "camera raw; develop it into a TIFF or JPEG first"),
        (b"II*\0\x10\0\0\0CR\2\0", "a.tif", "camera raw, not TIFF as its name says; develop it"),
        (b"<!DOCTYPE html><html>", "a.webp", "web page, not WebP as its name says; no image"),
        (b"%PDF-1.7", "a.pdf", "PDF; no image"),
        (b"P6\n1 1\n255\n   ", "a.ppm", "PNM; convert it"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a.jxl", "JPEG XL; convert it"),
        (b"8BPS\0\1", "a.psd", "Photoshop; convert it"),
        (b"no image at all", "a.png", "not an image, or a broken one"),
        (b"\x89PNG\r\n\x1a\n", "a.png", "cut short"),
    ],
)
def test_files_are_named_by_their_content(tmp_path: Path, content: bytes, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=message):
        images.read(tmp_path / name)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "tiff"])
def test_damaged_files_are_read_or_one_error(tmp_path: Path, form: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Bits flipped, bytes changed, the end cut off, and parts duplicated or removed."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :56]
    picture = Image.fromarray(np.stack([5 * y, 4 * x, x + y], axis=2).astype(np.uint8))
    tags = Image.Exif()
    tags[0x010F], tags[0x0112] = "Canon", 6
    options = {"tiff": {"compression": "tiff_lzw"}, "jpeg": {"progressive": True}, "webp": {"lossless": True}}
    picture.save(tmp_path / "whole", form, exif=tags, **options.get(form, {}))
    whole = (tmp_path / "whole").read_bytes()
    path, copy = tmp_path / f"a.{form}", tmp_path / "copy.png"
    read, messages = 0, list[str]()
    for number in range(150):
        data = bytearray(whole)
        for at in rng.integers(len(data), size=1 + number % 4):
            match number % 5:
                case 0:
                    data[at] ^= 1 << int(rng.integers(8))
                case 1:
                    data[at] = int(rng.integers(256))
                case 2:
                    del data[at:]
                case 3:
                    data[at:at] = data[at : at + 40]
                case 4:
                    del data[at : at + int(rng.integers(1, 9))]
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                photo = images.read(path)
            except ImageError as error:
                messages.append(str(error))
                continue
        read += 1
        images.write(copy, photo)
        assert images.read_size(copy) == photo.pixels.shape[:2]
    assert 0 < read < 150
    assert all(message.startswith(f"{path}: ") and "\n" not in message for message in messages)
    assert capfd.readouterr() == ("", "")
