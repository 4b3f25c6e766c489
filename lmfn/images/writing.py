"""Write images: check them, convert them for the format, encode, and write the file atomically."""

import io
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import OpenImageIO as oiio  # noqa: N813 (the name it goes by in its own documentation)

from lmfn import atomic, metadata
from lmfn.images.formats import LONGEST_SIDE, writable_format
from lmfn.images.photo import ImageError, ImageWarning, Photo, first_line
from lmfn.metadata import Blocks, exif, png, webp, xmp
from lmfn.scratch import Pixels

JPEG_QUALITY = WEBP_QUALITY = 95
JPEG_TEXTS = 32_000  # bytes of all texts in a JPEG: each may be in EXIF, XMP, IPTC and the comment, of 64 kB each
BITS = {"JPEG": 8, "WebP": 8, "PNG": 16, "TIFF": 32}  # maximum of each format
TYPES = {8: (np.uint8, "uint8"), 16: (np.uint16, "uint16"), 32: (np.float32, "float")}
AT_ONCE = 2**22  # samples that are encoded at a time
TIFF_STRIP = 32  # rows, which are compressed together
ROUNDING = 1 / 510  # half a level of 8 bits, the tolerance for rounding beyond [0, 1]


def write(path: str | Path, photo: Photo) -> None:
    """Write the image in the format of the suffix, with its metadata, rounded to the nearest sample.

    The bit depth is that of the photo (of its samples, if they are integers) if the format supports it: JPEG and WebP
    have 8 bits, PNG 8 and 16, TIFF all. JPEG and WebP are lossy (quality 95, JPEG without chroma subsampling); PNG and
    TIFF (deflate) are lossless. JPEG has no alpha, which is dropped if it is 1 everywhere and otherwise an error. WebP
    has no gray, which becomes RGB. Values just outside [0, 1] (by less than 1/510) are clipped with an ImageWarning.

    Between JPEG, PNG and WebP, EXIF and XMP are copied byte for byte except for the orientation and the image size. To
    or from TIFF, and if a block is broken or too long for JPEG (65,527 bytes of EXIF, 65,504 of XMP), they are
    rewritten by OpenImageIO: without maker notes and thumbnail, exposure times to 1e-5 s, XMP and IPTC for known
    fields, without ISO speed in TIFF, not at all in WebP. An ICC profile is kept, except one for gray in
    WebP, with an ImageWarning. Colour chunks of a PNG without a profile are kept in PNG; other formats cannot represent
    them, with an ImageWarning unless the colours are sRGB. Of more than 32 kB of texts, JPEG gets the shortest.

    Folders are created as needed; the file is written atomically.

    Raises ImageError for an unknown suffix, pixels that are not an image in [0, 1], alpha that JPEG would lose, a side
    or a profile too long for the format, or a file that cannot be written.
    """
    path = Path(path)
    form = writable_format(path)
    with _encoded(path, form, [photo]) as file:
        _commit(path, _with_blocks(path, form, file, photo))


def check(path: str | Path, photo: Photo) -> None:
    """Raise the ImageError that `write` raises for pixels and a suffix that do not go together: transparency in JPEG, a
    side too long for the format. Another image of the same shape and alpha, with the same samples, can be written."""
    _check(Path(path), writable_format(Path(path)), photo)


def write_frames(path: str | Path, photos: Iterable[Photo]) -> None:
    """Write the pages of a TIFF, or the frames (of one size) of an animated WebP, each as by `write`.

    Raises ImageError for other formats, before requesting the first photo.
    """
    path = Path(path)
    form = writable_format(path)
    if form not in ("TIFF", "WebP"):
        raise ImageError(f"{path}: {form} holds one image; write several as a TIFF (pages) or WebP (frames)")
    rest = iter(photos)
    first = next(rest)
    if form == "TIFF":
        with _encoded(path, form, chain([first], rest)) as file:
            _commit(path, _with_blocks(path, form, file, first))
        return
    frames = []
    for photo in chain([first], rest):
        if photo.pixels.shape[:2] != first.pixels.shape[:2]:
            raise ImageError(f"{path}: the frames of an animation are of one size; write a TIFF instead")
        with _encoded(path, form, [photo]) as file:
            frames.append((file.read(), photo.duration))
    _commit(path, _with_blocks(path, form, io.BytesIO(webp.animate(frames, first.loops)), first))


@contextmanager
def _encoded(path: Path, form: str, photos: Iterable[Photo]) -> Iterator[BinaryIO]:
    """A file with the images encoded in this format, without the blocks that OpenImageIO does not handle reliably."""
    # On a full disk libjpeg exits the process, and libpng reports success for half a file. The image is therefore
    # encoded in a temporary folder that is known to have space, and its bytes are written where errors are detected.
    try:
        with tempfile.TemporaryDirectory() as folder:
            encoded = Path(folder, f"image.{form.lower()}")
            out = oiio.ImageOutput.create(form.lower())
            if out is None:
                raise ImageError(f"{path}: this build of OpenImageIO cannot write {form} ({oiio.geterror()})")
            for number, photo in enumerate(photos):
                bits = _check(path, form, photo)
                if shutil.disk_usage(folder).free < 2 * photo.pixels.nbytes + 2**24:
                    raise ImageError(f"{path}: cannot be written (no space left in the temporary folder {folder})")
                written = out.open(str(encoded), _spec(form, photo, bits), "AppendSubimage" if number else "Create")
                for first, last in _parts(photo.pixels):
                    rows = _samples(form, _straight(form, photo, first, last), bits)
                    written = written and out.write_scanlines(first, last, 0, rows)
                if not written:
                    raise ImageError(f"{path}: cannot be written ({first_line(out.geterror())})")
            if not out.close():
                raise ImageError(f"{path}: cannot be written ({first_line(out.geterror())})")
            with encoded.open("rb") as file:
                yield file
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror}: {error.filename})") from error


def _parts(pixels: Pixels) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of parts of the image that are encoded one after the other."""
    height, width, channels = pixels.shape
    rows = max(1, AT_ONCE // (width * channels) // TIFF_STRIP) * TIFF_STRIP
    return ((first, min(first + rows, height)) for first in range(0, height, rows))


def _straight(form: str, photo: Photo, first: int, last: int) -> np.ndarray:
    """Rows of the photo with colours as the format has them: only those of a TIFF may be multiplied with alpha."""
    pixels: np.ndarray = photo.pixels[first:last]
    if form == "TIFF" or not photo.alpha or photo.metadata.get_int_attribute("oiio:UnassociatedAlpha", 1):
        return pixels
    most = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    straight = pixels / np.float64(most)
    alpha = straight[:, :, -1:]
    np.divide(straight[:, :, :-1], alpha, out=straight[:, :, :-1], where=alpha > 0)
    return straight


def _samples(form: str, pixels: np.ndarray, bits: int) -> np.ndarray:
    """Rows in the channels and dtype of the format."""
    if form == "JPEG" and pixels.shape[2] in (2, 4):
        pixels = pixels[:, :, :-1]
    if form == "WebP" and pixels.shape[2] < 3:
        pixels = np.dstack([pixels[:, :, :1]] * 3 + [pixels[:, :, 1:]])
    wanted, _ = TYPES[bits]
    if pixels.dtype.kind == "u" and pixels.dtype != wanted:
        pixels = pixels / np.float64(np.iinfo(pixels.dtype).max)
    if pixels.dtype.kind == "f":
        pixels = pixels.astype(np.promote_types(pixels.dtype, np.float32), copy=False).clip(0, 1)
    if bits < 32 and pixels.dtype.kind == "f":
        pixels = np.rint(pixels * pixels.dtype.type(2**bits - 1))
    return np.ascontiguousarray(pixels, dtype=wanted)


def _check(path: Path, form: str, photo: Photo) -> int:
    """The bits per sample in this format. Raises ImageError unless the pixels are an image that it can hold."""
    bits = _check_pixels(path, photo)
    pixels, (height, width, _) = photo.pixels, photo.pixels.shape
    longest = LONGEST_SIDE.get(form, max(height, width))
    if max(height, width) > longest:
        raise ImageError(f"{path}: {form} holds {longest:,} pixels a side; the image is {width:,} x {height:,}")
    if form == "JPEG" and photo.alpha:
        opaque = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
        if any(pixels[first:last][:, :, -1].min() < opaque for first, last in _parts(pixels)):
            raise ImageError(f"{path}: JPEG cannot hold the image's transparency; write a PNG, TIFF or WebP instead")
    return min(bits, BITS[form])


def _check_pixels(path: Path, photo: Photo) -> int:
    """The bits per sample of the photo. Raises ImageError unless its pixels are an image."""
    pixels = photo.pixels
    if isinstance(pixels, np.ma.MaskedArray):
        raise ImageError(f"{path}: the pixels are a masked array; fill it first (pixels.filled(value))")
    if not isinstance(pixels, Pixels):
        raise ImageError(f"{path}: the pixels are a {type(pixels).__name__}; they must be a numpy array [H, W, C]")
    if len(pixels.shape) != 3 or not 1 <= pixels.shape[2] <= 4 or 0 in pixels.shape:
        raise ImageError(
            f"{path}: the pixels have shape {pixels.shape}; it must be [H, W, C] with H, W >= 1 and C from 1 to 4"
        )
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize in (1, 2):
        return 8 * pixels.dtype.itemsize
    if pixels.dtype.kind != "f":
        raise ImageError(f"{path}: the pixels are {pixels.dtype}; they must be floats in [0, 1], uint8 or uint16")
    if photo.bits not in TYPES:
        raise ImageError(f"{path}: samples of {photo.bits} bits; they must be of 8, 16 or 32")
    low, high = np.inf, -np.inf
    for first, last in _parts(pixels):
        part = pixels[first:last]
        low, high = np.minimum(low, part.min()), np.maximum(high, part.max())  # NaN if one is NaN
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also true for NaN
        raise ImageError(f"{path}: the pixels are from {low:.6g} to {high:.6g}; they must be in [0, 1]")
    if low < 0 or high > 1:
        warnings.warn(f"{path}: pixels from {low:.6g} to {high:.6g} were clipped to [0, 1]", ImageWarning, stacklevel=6)
    return photo.bits


def _spec(form: str, photo: Photo, bits: int) -> oiio.ImageSpec:
    """The header for OpenImageIO."""
    height, width, _ = photo.pixels.shape
    channels = _samples(form, photo.pixels[:1], bits).shape[2]
    spec = oiio.ImageSpec(width, height, channels, TYPES[bits][1])
    if channels == 2:
        spec.channelnames, spec.alpha_channel = ("Y", "A"), 1
    spec.extra_attribs = photo.metadata.extra_attribs
    if photo.alpha:
        premultiplied = form == "TIFF" and not photo.metadata.get_int_attribute("oiio:UnassociatedAlpha", 1)
        spec.attribute("oiio:UnassociatedAlpha", int(not premultiplied))
    if form == "TIFF" and photo.blocks.icc:
        icc = np.frombuffer(photo.blocks.icc, np.uint8)
        spec.attribute("ICCProfile", f"uint8[{len(icc)}]", icc)
    elif form == "JPEG":
        spec.attribute("Compression", f"jpeg:{JPEG_QUALITY}")
        spec.attribute("jpeg:subsampling", "4:4:4")
        _limit_texts(spec)
    elif form == "WebP":
        spec.attribute("Compression", f"webp:{WEBP_QUALITY}")
    elif form == "PNG" and photo.blocks.exif:
        for pattern in ("Exif:.*", "GPS:.*"):  # they would also be written as texts
            spec.erase_attribute(pattern, casesensitive=True)
    return spec


def _limit_texts(spec: oiio.ImageSpec) -> None:
    """libjpeg exits the process if a segment (64 kB) overflows. The items of a list are written to tags one by one."""
    texts = {item.name: item.value for item in spec.extra_attribs if isinstance(item.value, str)}
    room = JPEG_TEXTS
    for name, text in sorted(texts.items(), key=lambda item: len(item[1])):
        room -= len(text.encode(errors="surrogateescape")) + len("<rdf:li></rdf:li> ") * text.count(";")
        if room < 0:
            spec.extra_attribs.remove(name)


def _with_blocks(path: Path, form: str, file: BinaryIO, photo: Photo) -> Iterator[bytes]:
    """The encoded image with those blocks of the photo that apply to it."""
    height, width, channels = photo.pixels.shape
    blocks = photo.blocks
    if form == "WebP" and channels < 3 and blocks.icc:
        blocks = replace(blocks, icc=None)
        message = f"{path}: the colour profile is for gray, and WebP is RGB; it is not kept, and tones may differ"
        warnings.warn(message, ImageWarning, stacklevel=4)
    if form != "PNG" and blocks.icc is None and not png.is_srgb(blocks.colour):
        message = f"{path}: the colours are not sRGB, but {form} tells only by an ICC profile; they will look different"
        warnings.warn(message, ImageWarning, stacklevel=4)
    try:
        return metadata.insert(
            file,
            Blocks(
                blocks.exif and exif.with_size(blocks.exif, width, height),
                blocks.xmp and xmp.with_size(blocks.xmp, width, height),
                blocks.icc,
                blocks.colour,
            ),
        )
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from error


def _commit(path: Path, parts: Iterable[bytes]) -> None:
    try:
        atomic.write(path, parts)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror})") from error
