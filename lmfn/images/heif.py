"""Read HEIC and AVIF with pillow-heif and Pillow (the extra `heif`)."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lmfn.metadata import Blocks, exif

AVAILABLE = find_spec("pillow_heif") is not None
SUFFIXES = (".heic", ".heif", ".hif", ".avif")
UNSPECIFIED = 2  # among the numbers of colour primaries and transfer functions (ITU-T H.273)


@dataclass
class Picture:
    """The first picture of a file, from its header."""

    width: int
    height: int
    channels: int
    bits: int
    """8, or 16 for more than 8; AVIF is read with 8."""
    count: int
    """The number of pictures."""
    orientation: int
    """The remaining rotation, as an EXIF orientation."""
    blocks: Blocks
    more: bool
    """Whether the file also has gain or depth maps, or a film."""
    decode: Callable[[], np.ndarray]
    """Decodes it to uint8 or uint16 `[height, width, channels]`."""


def open_heic(path: Path) -> Picture:
    """libheif decodes pictures upright. Raises as pillow-heif for a broken file."""
    import pillow_heif

    image = pillow_heif.open_heif(path, convert_hdr_to_8bit=False)
    colours = image.mode.partition(";")[0]
    more = bool(image.info["depth_images"] or image.info["aux"]) or has_film(path)
    wide = image.info["bit_depth"] > 8

    def decode() -> np.ndarray:
        samples = np.asarray(image)
        if wide:  # fewer bits, for example 10, are in the upper ones of 16
            largest = 2 ** image.info["bit_depth"] - 1
            samples = samples >> (16 - image.info["bit_depth"])
            samples = ((samples.astype(np.uint32) * 65535 + largest // 2) // largest).astype(np.uint16)
        return samples.reshape(*samples.shape[:2], -1)

    width, height = image.size
    return Picture(width, height, len(colours), 16 if wide else 8, len(image), 1, _blocks(image.info), more, decode)


def open_avif(path: Path) -> Picture:
    """Pillow leaves the rotation to EXIF's Orientation. Raises as Pillow for a broken file."""
    from PIL import AvifImagePlugin

    image = AvifImagePlugin.AvifImageFile(path)
    blocks = _blocks(image.info)
    orientation = exif.orientation(blocks.exif or b"") or 1

    def decode() -> np.ndarray:
        samples = np.asarray(image)
        return samples.reshape(*samples.shape[:2], -1)

    width, height = image.size
    return Picture(width, height, len(image.mode), 8, image.n_frames, orientation, blocks, has_film(path), decode)


def has_film(path: Path) -> bool:
    """Whether a film follows the pictures, as in a motion photo: in a box of its own, or as a whole MP4."""
    with path.open("rb") as file:
        size, start = file.seek(0, io.SEEK_END), 0
        while start + 8 <= size:
            file.seek(start)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if kind == b"mpvd" or (kind == b"ftyp" and start):
                return True
            if length == 1:  # it has 8 bytes
                length = int.from_bytes(head[8:], "big")
            if length < 8:  # up to the end, or nothing that is known
                return False
            start += length
    return False


def _blocks(info: Mapping[Any, Any]) -> Blocks:
    """The metadata that the libraries found."""
    block = info.get("exif")
    nclx = info.get("nclx_profile", {})
    colour = [nclx.get(name, UNSPECIFIED) for name in ("color_primaries", "transfer_characteristics")]
    return Blocks(
        block and block.removeprefix(b"Exif\0\0"),
        info.get("xmp"),
        info.get("icc_profile") or None,
        () if UNSPECIFIED in colour else ((b"cICP", bytes([*colour, 0, 1])),),
    )
