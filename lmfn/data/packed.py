"""Training images in one file, for machines without an image library or without the data.

A pack is an .npz file of two arrays: `index`, which is JSON (sources, sizes, offsets, the SHA-256 of `data`), and
`data`, the concatenated images. Each is stored losslessly as differences between neighbours, compressed by zlib, in a
quarter to half of the bytes of its pixels. The path of an image in a pack is PACK/NUMBER.
"""

import functools
import hashlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmfn import images
from lmfn.absent import absent
from lmfn.data.layouts import DataError, Pair, PairSet
from lmfn.data.synthesis import Image

FORMAT = 1
SUFFIX = ".npz"
PER_IMAGE = 64
"""Maximum bytes of an image's entry in the index."""


@dataclass
class PackedSource:
    """A source of training patches, its images by their numbers in the pack."""

    kind: str
    """`pairs`, `frames` or `photos`, as in `Source`."""
    path: str
    """Where the images came from."""
    weight: float
    items: list[list[int]] = field(default_factory=list)
    """Numbers of a blurred and a sharp image, of consecutive frames, or of one photograph."""


class Pack:
    """A pack in memory: sources, sizes (height and width), and images by number.

    Raises DataError for a file that is missing, not a pack, damaged, or of another format.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():  # a pipe would be waited for
            raise DataError(f"{absent('pack', path)}; make one with lmfn data pack")
        try:
            with zipfile.ZipFile(path) as stored:  # as it is written: without compression, which may hide any size
                if sum(entry.file_size for entry in stored.infolist()) > path.stat().st_size:
                    raise ValueError("it is compressed")
            with np.load(path, allow_pickle=False) as arrays:
                index, self._data = json.loads(arrays["index"].tobytes()), arrays["data"]
            if index["format"] != FORMAT:
                raise DataError(f"{path} is a pack of format {index['format']}, and this version reads {FORMAT}")
            self.sha256: str = index["sha256"]
            self.sources = [PackedSource(**source) for source in index["sources"]]
            self.sizes: list[tuple[int, int]] = [(height, width) for height, width in index["sizes"]]
            self._ends: list[int] = index["ends"]
            self._check()
        except (OSError, ValueError, LookupError, TypeError, EOFError, RecursionError, zipfile.BadZipFile) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is not a pack, or damaged ({error}); make one with lmfn data pack") from error
        if hashlib.sha256(self._data).hexdigest() != self.sha256:
            raise DataError(f"{path} is damaged: its SHA-256 differs from the recorded one; copy it again")

    def _check(self) -> None:
        """Raise ValueError where the index is not one that `PackWriter` writes."""
        count, sides = len(self.sizes), [side for size in self.sizes for side in size]
        items = [item for source in self.sources for item in source.items]
        numbers = [number for item in items for number in item]
        if not all(type(n) is int for n in (*sides, *self._ends, *numbers)) or not all(items):
            raise ValueError("a size, place or number in its index is no whole number")
        if min(sides, default=1) < 1 or len(self._ends) != count or not all(0 <= n < count for n in numbers):
            raise ValueError("its index does not fit its images")
        places = [0, *self._ends, self._data.size]
        if self._data.dtype != np.uint8 or places != sorted(places):
            raise ValueError("its images are not where its index says")
        for source in self.sources:
            if source.kind not in ("pairs", "frames", "photos") or not 0 < float(source.weight) < math.inf:
                raise ValueError("a source in its index has an unknown kind or weight")

    def read(self, number: int) -> Image:
        """An image, uint8 `[H, W, 3]`. Raises DataError where it has not its size."""
        first = self._ends[number - 1] if number else 0
        shape = 3, *self.sizes[number]
        try:
            pixels = zlib.decompressobj().decompress(self._data[first : self._ends[number]], math.prod(shape) + 1)
            return from_differences(np.frombuffer(pixels, np.uint8).reshape(shape))
        except (zlib.error, ValueError) as error:
            raise DataError(
                f"image {number} of the pack is broken ({error}); create it again with lmfn data pack"
            ) from error


@functools.lru_cache(maxsize=4)
def open_pack(path: Path) -> Pack:
    """The pack in a file, read once per process."""
    return Pack(path)


def is_pack(path: Path) -> bool:
    """Whether a path names a pack; the path of an image in it is a child."""
    return path.suffix == SUFFIX


def read_rgb(path: Path) -> Image:
    """An image, uint8 `[H, W, 3]`, from a file or a pack. Raises ImageError or DataError."""
    return open_pack(path.parent).read(int(path.name)) if is_pack(path.parent) else images.read_rgb(path)


def read_size(path: Path) -> tuple[int, int]:
    """Its height and width. Raises ImageError or DataError."""
    return open_pack(path.parent).sizes[int(path.name)] if is_pack(path.parent) else images.read_size(path)


def packed_pairs(path: Path) -> PairSet:
    """All pairs of a pack. Raises DataError if it has none."""
    items = [item for source in open_pack(path).sources if source.kind == "pairs" for item in source.items]
    if not items:
        raise DataError(f"{path} contains no pairs; add them with lmfn data pack --pairs")
    return PairSet("pack", path, None, tuple(Pair(str(b), path / str(b), path / str(s)) for b, s in items))


class PackWriter:
    """Builds a pack of at most a given number of bytes."""

    def __init__(self, most: float) -> None:
        self.sizes: list[tuple[int, int]] = []
        self._most, self._parts, self.bytes = most, list[bytes](), 0

    def add(self, images: Sequence[Image]) -> list[int] | None:
        """The numbers of the added images; None, with nothing added, if the pack would be too large."""
        parts = [zlib.compress(to_differences(image).tobytes(), 6) for image in images]
        more = sum(len(part) + PER_IMAGE for part in parts)
        if self.bytes + more > self._most:
            return None
        first = len(self.sizes)
        self._parts += parts
        self.bytes += more
        self.sizes += [image.shape[:2] for image in images]
        return list(range(first, len(self.sizes)))

    def content(self, sources: Sequence[PackedSource]) -> bytes:
        """The content of the file."""
        joined = b"".join(self._parts)
        ends = np.cumsum([len(part) for part in self._parts], dtype=int).tolist()
        index: dict[str, Any] = {"format": FORMAT, "sha256": hashlib.sha256(joined).hexdigest()}
        index |= {"sources": [asdict(source) for source in sources], "sizes": self.sizes, "ends": ends}
        file = io.BytesIO()
        np.savez(file, index=np.frombuffer(json.dumps(index).encode(), np.uint8), data=np.frombuffer(joined, np.uint8))
        return file.getvalue()


def to_differences(image: Image) -> np.ndarray:
    """`[3, H, W]`: red and blue minus green, then each value minus its prediction from the neighbours, modulo 256."""
    planes = image.transpose(2, 0, 1).copy(order="C")
    planes[[0, 2]] -= planes[1]
    planes[:, 1:] -= planes[:, :-1].copy()
    planes[:, :, 1:] -= planes[:, :, :-1].copy()
    return planes


def from_differences(differences: np.ndarray) -> Image:
    """The inverse of `to_differences`."""
    planes = differences.cumsum(axis=2, dtype=np.uint8).cumsum(axis=1, dtype=np.uint8)
    planes[[0, 2]] += planes[1]
    return np.ascontiguousarray(planes.transpose(1, 2, 0))
