"""Photographs in files: PNG, JPEG, WebP and TIFF, 8 and 16 bits (and float TIFF), read and written with OpenImageIO.

Whatever a file holds comes back upright, as gray, gray + alpha, RGB or RGBA; CMYK and palettes become RGB. Values are
never changed by a colour transform, and colours are never multiplied with alpha. Every failure is an `ImageError` that
names the file and the reason.
"""

import os
import shutil
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import OpenImageIO as oiio  # noqa: N813 (the name it goes by in its own documentation)

from lmfn import atomic, exif

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
"""The suffixes of image files, lower case; to be compared with a suffix in lower case."""

JPEG_QUALITY = WEBP_QUALITY = 95
JPEG_TEXTS = 32_000  # bytes of all texts in a JPEG: each may be in EXIF, XMP, IPTC and the comment, of 64 kB each
FORMATS = ("png", "jpeg", "webp", "tiff")
RGB_LIKE = range(7)  # TIFF's photometric interpretations that OpenImageIO turns into gray or RGB; CIELAB is not one

# Attributes that describe the old file's layout or were derived from its header, and would be false of the file that is
# written: patterns for OpenImageIO, which knows no alternatives.
LAYOUT = (
    "oiio:BitsPerSample", "oiio:RowsPerChunk", "tiff:.*", "jpeg:.*", "webp:.*", "png:.*", "compression", "planarconfig",
    "PixelAspectRatio", "Exif:YCbCrSubsampling", "Exif:Pixel.Dimension", "ICCProfile:.*",
)  # fmt: skip


class ImageError(ValueError):
    """An image file cannot be read or written. The message names the file and the reason."""


@dataclass
class Photo:
    """An image and what must be kept of its file."""

    pixels: np.ndarray
    """float32 `[H, W, C]` in [0, 1], upright: gray, gray + alpha, RGB or RGBA for C = 1 to 4."""
    bits: int = 8
    """Bits of a sample: 8 or 16 (whole numbers), or 32 (float)."""
    metadata: oiio.ImageSpec = field(default_factory=oiio.ImageSpec)
    """An `OpenImageIO.ImageSpec` whose attributes (EXIF, GPS, ICC profile, resolution, text) `write` puts back."""
    exif: bytes | None = None
    """The EXIF block of a JPEG, PNG or WebP (from its TIFF header on); they get it, not the EXIF in `metadata`."""

    @property
    def alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.pixels.shape[2] in (2, 4)


def read_rgb(path: str | Path) -> np.ndarray:
    """The image as uint8 `[H, W, 3]`, upright; gray is repeated, alpha dropped, 16 bits and float rounded to 8.

    Raises ImageError.
    """
    pixels, _ = _load(Path(path))
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif pixels.dtype == np.float32:
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.shape[2] < 3:
        return np.repeat(pixels[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, :3])


def read_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the upright image, from the file's header alone. Raises ImageError."""
    _, spec = _open(Path(path))
    return (spec.width, spec.height) if _orientation(spec) > 4 else (spec.height, spec.width)


def read(path: str | Path) -> Photo:
    """The image with all that must be kept of its file; of several in one file (pages, frames) the first.

    The EXIF block is the file's, with Orientation 1; a broken one and that of a TIFF are left out, and EXIF is then
    what OpenImageIO reads into the metadata.

    Raises ImageError, also for float samples outside [0, 1].
    """
    path = Path(path)
    pixels, spec = _load(path)
    bits = 8 * pixels.dtype.itemsize
    metadata = oiio.ImageSpec(spec)
    for pattern in LAYOUT:
        metadata.erase_attribute(pattern)
    # A profile of the colours before their conversion to RGB says nothing about those after it.
    colours = "rgb" if pixels.shape[2] > 2 else "gray"
    if spec.get_string_attribute("ICCProfile:color_space").lower() != colours:
        metadata.erase_attribute("ICCProfile")
    if pixels.shape[2] in (2, 4):  # TIFF may hold colours already multiplied with alpha; it then has no such attribute
        metadata.attribute("oiio:UnassociatedAlpha", spec.get_int_attribute("oiio:UnassociatedAlpha", 0))
    if "Orientation" in metadata:
        metadata.attribute("Orientation", 1)
    if bits < 32:
        pixels = pixels.astype(np.float32) / np.float32(2**bits - 1)
    block = exif.extract(path.read_bytes())
    upright = None if block is None else exif.upright(block)
    if upright is not None and "Orientation" not in spec:
        upright = block  # OpenImageIO passes over a block behind a PNG's pixels: they are not turned, and must still be
    return Photo(pixels, bits, metadata, upright)


def write(path: str | Path, photo: Photo) -> None:
    """Write the image in the format that the suffix names, with its metadata, rounded to the nearest sample.

    The bit depth is the photo's where the format has it: JPEG and WebP have 8 bits, PNG 8 and 16, TIFF all. JPEG and
    WebP are lossy (quality 95, JPEG without chroma subsampling); PNG and TIFF (deflate) give back the very samples.
    JPEG has no alpha: it is dropped where all of it is 1, and an error elsewhere. WebP has no gray: it becomes RGB.

    From JPEG, PNG or WebP into any of them, EXIF goes byte for byte but for the orientation, with GPS and maker notes;
    its thumbnail, and the width and height it names, are those of the old image. Into or out of TIFF, and where a block
    is broken or too long for JPEG (65,527 bytes), it goes as OpenImageIO rewrites it: without maker notes and
    thumbnail, exposure times to 1e-5 s, into TIFF without ISO speed, into WebP not at all. An ICC profile is kept where
    it fits the colours; XMP and IPTC where OpenImageIO knows the field, not in WebP. Of texts of more than 32 kB in
    all, JPEG gets the shortest.

    Folders are made as needed; the file appears whole or not at all.

    Raises ImageError for an unknown suffix, alpha that JPEG would lose, or a file that cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageError(f"{path}: the suffix must be one of {', '.join(SUFFIXES)}")
    pixels = photo.pixels
    if suffix in (".jpg", ".jpeg") and photo.alpha:
        if pixels[:, :, -1].min() < 1:
            raise ImageError(f"{path}: JPEG cannot hold the image's transparency; write a PNG, TIFF or WebP instead")
        pixels = pixels[:, :, :-1]
    if suffix == ".webp" and pixels.shape[2] < 3:
        pixels = np.dstack([pixels[:, :, :1]] * 3 + [pixels[:, :, 1:]])
    bits = photo.bits if suffix in (".tif", ".tiff") else min(photo.bits, 16 if suffix == ".png" else 8)
    samples = {8: np.uint8, 16: np.uint16, 32: np.float32}[bits]
    if bits < 32:
        pixels = np.rint(pixels * np.float32(2**bits - 1))
    pixels = np.ascontiguousarray(pixels, dtype=samples)

    height, width, channels = pixels.shape
    spec = oiio.ImageSpec(width, height, channels, {8: "uint8", 16: "uint16", 32: "float"}[bits])
    if channels == 2:
        spec.channelnames, spec.alpha_channel = ("Y", "A"), 1
    spec.extra_attribs = photo.metadata.extra_attribs
    if channels > photo.pixels.shape[2]:
        spec.erase_attribute("ICCProfile")  # it is one of gray
    if photo.alpha:
        spec.attribute("oiio:UnassociatedAlpha", photo.metadata.get_int_attribute("oiio:UnassociatedAlpha", 1))
    if suffix in (".jpg", ".jpeg"):
        spec.attribute("Compression", f"jpeg:{JPEG_QUALITY}")
        spec.attribute("jpeg:subsampling", "4:4:4")
        # libjpeg ends the whole process where a segment (64 kB) overflows. A list's items are each put into tags.
        texts = {item.name: item.value for item in spec.extra_attribs if isinstance(item.value, str)}
        room = JPEG_TEXTS
        for name, text in sorted(texts.items(), key=lambda item: len(item[1])):
            room -= len(text.encode(errors="surrogateescape")) + len("<rdf:li></rdf:li> ") * text.count(";")
            if room < 0:
                spec.extra_attribs.remove(name)
    elif suffix == ".webp":
        spec.attribute("Compression", f"webp:{WEBP_QUALITY}")
    elif suffix == ".png" and photo.exif:
        for pattern in ("Exif:.*", "GPS:.*"):  # they would be written as texts too
            spec.erase_attribute(pattern, casesensitive=True)

    # On a full disk libjpeg ends the whole process and libpng's half a file passes for a success. So the image is
    # encoded in a temporary folder that is known to have room, and the bytes are written where an error is seen.
    try:
        with tempfile.TemporaryDirectory() as folder:
            encoded = Path(folder, f"image{suffix}")
            if shutil.disk_usage(folder).free < 2 * pixels.nbytes + 2**24:
                raise ImageError(f"{path}: cannot be written (no space left in the temporary folder {folder})")
            file = oiio.ImageOutput.create(str(encoded))
            if file is None:
                raise ImageError(f"{path}: this build of OpenImageIO cannot write {suffix} ({oiio.geterror()})")
            whole = file.open(str(encoded), spec) and file.write_image(pixels)
            if not (file.close() and whole):
                raise ImageError(f"{path}: cannot be written ({_first_line(file.geterror())})")
            data = encoded.read_bytes()
            if photo.exif and suffix not in (".tif", ".tiff"):
                data = exif.insert(data, photo.exif)
            atomic.write(path, data)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror})") from error


def find_images(folder: str | Path) -> list[Path]:
    """All files below the folder with one of `SUFFIXES`, sorted; hidden files and folders are left out.

    Raises ImageError where the folder, or one in it, is missing or cannot be read.
    """

    def fail(error: OSError) -> None:
        raise ImageError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error

    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name) for name in files if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(found)


def _open(path: Path) -> tuple[oiio.ImageInput, oiio.ImageSpec]:
    """OpenImageIO's reader and the header it has read."""
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise ImageError(f"{path}: the file is empty")
        str(path).encode()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeEncodeError as error:
        raise ImageError(f"{str(path)!r}: the name is not valid UTF-8; rename the file") from error
    config = oiio.ImageSpec()
    config.attribute("oiio:UnassociatedAlpha", 1)
    reader = oiio.ImageInput.open(str(path), config)
    if reader is None:
        raise ImageError(f"{path}: not an image, or a broken one ({_first_line(oiio.geterror())})")
    if reader.format_name() not in FORMATS:
        raise ImageError(f"{path}: {reader.format_name()} files are not supported; convert it to PNG, JPEG or TIFF")
    if not _is_whole(path, reader.format_name()):
        raise ImageError(f"{path}: the file is cut short")
    return reader, reader.spec()


def _is_whole(path: Path, form: str) -> bool:
    """Whether the file reaches its format's end, found without decoding it: a whole data set can be looked at first."""
    with path.open("rb") as file:
        if form == "webp":  # RIFF: the length of what follows
            return int.from_bytes(file.read(8)[4:], "little") <= path.stat().st_size - 8
        if form == "png":
            file.seek(-12, os.SEEK_END)
            if file.read(8)[4:] != b"IEND":  # something may stand behind it, too
                _check_png(path)
        if form == "jpeg":
            data, position = file.read(), 2
            while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda":
                # Fill bytes may stand before a marker; each segment before the scan has its length.
                fill = data[position + 1 : position + 2] == b"\xff"
                position += 1 if fill else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
            return data.find(b"\xff\xd9", position) > 0
    return True


def _load(path: Path) -> tuple[np.ndarray, oiio.ImageSpec]:
    """The samples as the file has them, `[H, W, C]` uint8, uint16 or float32 in [0, 1], upright; and the header."""
    reader, spec = _open(path)
    colours = spec.nchannels - (spec.alpha_channel == spec.nchannels - 1)
    if colours not in (1, 3):
        raise ImageError(
            f"{path}: {spec.nchannels} channels {spec.channelnames}; gray or RGB, with or without alpha, can be read"
        )
    if spec.get_int_attribute("tiff:PhotometricInterpretation", 1) not in RGB_LIKE:
        raise ImageError(f"{path}: colours in {spec.get_string_attribute('tiff:ColorSpace')}; convert it to RGB")
    samples = {"uint8": "uint8", "uint16": "uint16", "half": "float", "float": "float"}.get(str(spec.format))
    if samples is None:
        raise ImageError(f"{path}: samples of type {spec.format}; 8 or 16 bits or float can be read")
    if reader.format_name() == "png":
        _check_png(path)
    pixels = reader.read_image(0, 0, 0, spec.nchannels, samples)
    # After a truncated JPEG there are pixels (gray ones where data was missing), and an error.
    problem = reader.geterror()
    if pixels is None or problem:
        raise ImageError(f"{path}: broken or cut short ({_first_line(problem)})")
    if samples == "float" and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ImageError(f"{path}: float samples outside [0, 1]; scale them into [0, 1] first")
    orientation = _orientation(spec)
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels), spec


def _orientation(spec: oiio.ImageSpec) -> int:
    """EXIF's Orientation, 1 to 8; above 4 height and width are exchanged."""
    orientation = int(spec.get_int_attribute("Orientation", 1))
    return orientation if 1 <= orientation <= 8 else 1


def _check_png(path: Path) -> None:
    """Raise ImageError unless all chunks up to the end are there and intact.

    libpng does not miss the end of the file if only that is missing, and what else it misses it prints to stderr.
    """
    data = memoryview(path.read_bytes())
    position, kind = 8, b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[position : position + 4]), bytes(data[position + 4 : position + 8])
        end = position + 8 + length
        if end + 4 > len(data):
            raise ImageError(f"{path}: the file is cut short")
        if zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise ImageError(f"{path}: the file is broken (wrong checksum)")
        position = end + 4


def _first_line(message: str) -> str:
    return message.strip().split("\n")[0] or "no reason given"
