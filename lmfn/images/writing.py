"""Write images: check them, convert them for the format, encode, and write the file atomically."""

import shutil
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import OpenImageIO as oiio  # noqa: N813 (the name it goes by in its own documentation)

from lmfn import atomic, metadata
from lmfn.images.formats import LONGEST_SIDE, writable_format
from lmfn.images.photo import ImageError, ImageWarning, Photo
from lmfn.metadata import Blocks, exif, png, webp, xmp

JPEG_QUALITY = WEBP_QUALITY = 95
JPEG_TEXTS = 32_000  # bytes of all texts in a JPEG: each may be in EXIF, XMP, IPTC and the comment, of 64 kB each
BITS = {"JPEG": 8, "WebP": 8, "PNG": 16, "TIFF": 32}  # maximum of each format
TYPES = {8: (np.uint8, "uint8"), 16: (np.uint16, "uint16"), 32: (np.float32, "float")}
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
    fields, without ISO speed in TIFF, not at all in WebP. An ICC profile is kept if it fits the colours. Colour chunks
    of a PNG without a profile are kept in PNG; other formats cannot represent them, with an ImageWarning unless the
    colours are sRGB. Of texts of more than 32 kB in total, JPEG gets the shortest.

    Folders are created as needed; the file is written atomically.

    Raises ImageError for an unknown suffix, pixels that are not an image in [0, 1], alpha that JPEG would lose, a side
    or a profile too long for the format, or a file that cannot be written.
    """
    path = Path(path)
    form = writable_format(path)
    _commit(path, _with_blocks(path, form, _encode(path, form, [photo]), photo))


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
        data = _encode(path, form, chain([first], rest))
    else:
        frames = []
        for photo in chain([first], rest):
            if photo.pixels.shape[:2] != first.pixels.shape[:2]:
                raise ImageError(f"{path}: the frames of an animation are of one size; write a TIFF instead")
            frames.append((_encode(path, form, [photo]), photo.duration))
        data = webp.animate(frames, first.loops)
    _commit(path, _with_blocks(path, form, data, first))


def _encode(path: Path, form: str, photos: Iterable[Photo]) -> bytes:
    """The images encoded in this format, without the blocks that OpenImageIO does not handle reliably."""
    # On a full disk libjpeg exits the process, and libpng reports success for half a file. The image is therefore
    # encoded in a temporary folder that is known to have space, and its bytes are written where errors are detected.
    encoded = None
    try:
        with tempfile.TemporaryDirectory() as folder:
            encoded = Path(folder, f"image.{form.lower()}")
            file = oiio.ImageOutput.create(form.lower())
            if file is None:
                raise ImageError(f"{path}: this build of OpenImageIO cannot write {form} ({oiio.geterror()})")
            for number, photo in enumerate(photos):
                pixels = _samples(path, form, photo)
                if shutil.disk_usage(folder).free < 2 * pixels.nbytes + 2**24:
                    raise ImageError(f"{path}: cannot be written (no space left in the temporary folder {folder})")
                mode = "AppendSubimage" if number else "Create"
                if not (file.open(str(encoded), _spec(form, photo, pixels), mode) and file.write_image(pixels)):
                    raise ImageError(f"{path}: cannot be written ({_first_line(file.geterror())})")
            if not file.close():
                raise ImageError(f"{path}: cannot be written ({_first_line(file.geterror())})")
            return encoded.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror}: {error.filename})") from error


def _samples(path: Path, form: str, photo: Photo) -> np.ndarray:
    """The pixels in the channels and dtype of the format."""
    pixels, bits = _checked(path, photo)
    height, width, channels = pixels.shape
    longest = LONGEST_SIDE.get(form, max(height, width))
    if max(height, width) > longest:
        raise ImageError(f"{path}: {form} holds {longest:,} pixels a side; the image is {width:,} x {height:,}")
    if form == "JPEG" and photo.alpha:
        if pixels[:, :, -1].min() < (1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max):
            raise ImageError(f"{path}: JPEG cannot hold the image's transparency; write a PNG, TIFF or WebP instead")
        pixels = pixels[:, :, :-1]
    if form == "WebP" and channels < 3:
        pixels = np.dstack([pixels[:, :, :1]] * 3 + [pixels[:, :, 1:]])
    bits = min(bits, BITS[form])
    wanted, _ = TYPES[bits]
    if pixels.dtype.kind == "u" and pixels.dtype != wanted:
        pixels = pixels / np.float64(np.iinfo(pixels.dtype).max)
    if bits < 32 and pixels.dtype.kind == "f":
        pixels = np.rint(pixels * pixels.dtype.type(2**bits - 1))
    return np.ascontiguousarray(pixels, dtype=wanted)


def _checked(path: Path, photo: Photo) -> tuple[np.ndarray, int]:
    """The pixels, with floats clipped to [0, 1], and their bit depth. Raises ImageError unless they are an image."""
    pixels = photo.pixels
    if isinstance(pixels, np.ma.MaskedArray):
        raise ImageError(f"{path}: the pixels are a masked array; fill it first (pixels.filled(value))")
    if not isinstance(pixels, np.ndarray):
        raise ImageError(f"{path}: the pixels are a {type(pixels).__name__}; they must be a numpy array [H, W, C]")
    if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4 or pixels.size == 0:
        raise ImageError(
            f"{path}: the pixels have shape {pixels.shape}; it must be [H, W, C] with H, W >= 1 and C from 1 to 4"
        )
    if pixels.dtype.kind == "u" and pixels.itemsize in (1, 2):
        return pixels, 8 * pixels.itemsize
    if pixels.dtype.kind != "f":
        raise ImageError(f"{path}: the pixels are {pixels.dtype}; they must be floats in [0, 1], uint8 or uint16")
    if photo.bits not in TYPES:
        raise ImageError(f"{path}: samples of {photo.bits} bits; they must be of 8, 16 or 32")
    pixels = pixels.astype(np.promote_types(pixels.dtype, np.float32), copy=False)
    low, high = pixels.min(), pixels.max()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also true for NaN
        raise ImageError(f"{path}: the pixels are from {low:.6g} to {high:.6g}; they must be in [0, 1]")
    if low < 0 or high > 1:
        warnings.warn(f"{path}: pixels from {low:.6g} to {high:.6g} were clipped to [0, 1]", ImageWarning, stacklevel=5)
        pixels = pixels.clip(0, 1)
    return pixels, photo.bits


def _spec(form: str, photo: Photo, pixels: np.ndarray) -> oiio.ImageSpec:
    """The header for OpenImageIO."""
    height, width, channels = pixels.shape
    spec = oiio.ImageSpec(width, height, channels, TYPES[8 * pixels.dtype.itemsize][1])
    if channels == 2:
        spec.channelnames, spec.alpha_channel = ("Y", "A"), 1
    spec.extra_attribs = photo.metadata.extra_attribs
    if photo.alpha:
        spec.attribute("oiio:UnassociatedAlpha", photo.metadata.get_int_attribute("oiio:UnassociatedAlpha", 1))
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


def _with_blocks(path: Path, form: str, data: bytes, photo: Photo) -> bytes:
    """The encoded image with those blocks of the photo that apply to it."""
    height, width, channels = photo.pixels.shape
    blocks = photo.blocks
    if form == "WebP" and channels < 3:
        blocks = replace(blocks, icc=None)  # the profile is for gray
    if form != "PNG" and blocks.icc is None and not png.is_srgb(blocks.colour):
        message = f"{path}: the colours are not sRGB, but {form} tells only by an ICC profile; they will look different"
        warnings.warn(message, ImageWarning, stacklevel=4)
    try:
        return metadata.insert(
            data,
            Blocks(
                blocks.exif and exif.with_size(blocks.exif, width, height),
                blocks.xmp and xmp.with_size(blocks.xmp, width, height),
                blocks.icc,
                blocks.colour,
            ),
        )
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from error


def _commit(path: Path, data: bytes) -> None:
    try:
        atomic.write(path, data)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror})") from error


def _first_line(message: str) -> str:
    return message.strip().split("\n")[0] or "no reason given"
