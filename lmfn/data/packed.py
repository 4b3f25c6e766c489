"""Training images in one file, for machines without an image library, or without the data.

A pack is an .npz file of two arrays: `index`, which is JSON (sources, sizes, places, the SHA-256 of `data`), and
`data`, the images one after the other. Each is stored as differences between neighbours, compressed by zlib: a quarter
to half of the size of its pixels, and lossless. An image in a pack is read by the path PACK/NUMBER.
"""

import functools
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmfn import images
from lmfn.data.layouts import DataError, Pair, PairSet
from lmfn.data.synthesis import Image

FORMAT = 1
SUFFIX = ".npz"
PER_IMAGE = 64
"""Bytes of the index for an image, at most."""


@dataclass
class PackedSource:
    """A source of training patches, its images by their numbers in the pack."""

    kind: str
    """`pairs`, `frames` or `photos`, as `Source` has them."""
    path: str
    """Where the images came from."""
    weight: float
    items: list[list[int]] = field(default_factory=list)
    """Blurred and sharp; neighbouring frames in their order; one photograph."""


class Pack:
    """A pack, read: sources, sizes (height and width), and images by their numbers.

    Raises DataError for a file that is missing, no pack, damaged, or of another format.
    """

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                index, self._data = json.loads(arrays["index"].tobytes()), arrays["data"]
            if index["format"] != FORMAT:
                raise DataError(f"{path} is a pack of format {index['format']}, and this version reads {FORMAT}")
            self.sha256: str = index["sha256"]
            self.sources = [PackedSource(**source) for source in index["sources"]]
            self.sizes: list[tuple[int, int]] = [(height, width) for height, width in index["sizes"]]
            self._ends: list[int] = index["ends"]
        except FileNotFoundError:
            raise DataError(f"there is no pack {path}; make one by lmfn data pack") from None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is no pack, or damaged ({error}); make one by lmfn data pack") from error
        if hashlib.sha256(self._data).hexdigest() != self.sha256:
            raise DataError(f"{path} is damaged: its SHA-256 is not the one that it names; copy it again")

    def read(self, number: int) -> Image:
        """An image, uint8 `[H, W, 3]`."""
        first = self._ends[number - 1] if number else 0
        pixels = zlib.decompress(self._data[first : self._ends[number]])
        return from_differences(np.frombuffer(pixels, np.uint8).reshape(3, *self.sizes[number]))


@functools.lru_cache(maxsize=4)
def open_pack(path: Path) -> Pack:
    """The pack in a file, read once per process."""
    return Pack(path)


def is_pack(path: Path) -> bool:
    """Whether a path is meant as a pack's; of an image in one, it is the parent's."""
    return path.suffix == SUFFIX


def read_rgb(path: Path) -> Image:
    """An image, uint8 `[H, W, 3]`, from a file or a pack. Raises ImageError or DataError."""
    return open_pack(path.parent).read(int(path.name)) if is_pack(path.parent) else images.read_rgb(path)


def read_size(path: Path) -> tuple[int, int]:
    """Its height and width. Raises ImageError or DataError."""
    return open_pack(path.parent).sizes[int(path.name)] if is_pack(path.parent) else images.read_size(path)


def packed_pairs(path: Path) -> PairSet:
    """All pairs of a pack. Raises DataError where it has none."""
    items = [item for source in open_pack(path).sources if source.kind == "pairs" for item in source.items]
    if not items:
        raise DataError(f"{path} holds no pairs; lmfn data pack takes them by --pairs")
    return PairSet("pack", path, None, tuple(Pair(str(b), path / str(b), path / str(s)) for b, s in items))


class PackWriter:
    """A pack in the making, of at most so many bytes."""

    def __init__(self, most: float) -> None:
        self.sizes: list[tuple[int, int]] = []
        self._most, self._parts, self.bytes = most, list[bytes](), 0

    def add(self, images: Sequence[Image]) -> list[int] | None:
        """The images' numbers; None, with none of them added, where the pack would be too large."""
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
        """The file."""
        joined = b"".join(self._parts)
        ends = np.cumsum([len(part) for part in self._parts], dtype=int).tolist()
        index: dict[str, Any] = {"format": FORMAT, "sha256": hashlib.sha256(joined).hexdigest()}
        index |= {"sources": [asdict(source) for source in sources], "sizes": self.sizes, "ends": ends}
        file = io.BytesIO()
        np.savez(file, index=np.frombuffer(json.dumps(index).encode(), np.uint8), data=np.frombuffer(joined, np.uint8))
        return file.getvalue()


def to_differences(image: Image) -> np.ndarray:
    """`[3, H, W]`: red and blue less green, then each value less its neighbours above and to the left, modulo 256."""
    planes = image.transpose(2, 0, 1).copy(order="C")
    planes[[0, 2]] -= planes[1]
    planes[:, 1:] -= planes[:, :-1].copy()
    planes[:, :, 1:] -= planes[:, :, :-1].copy()
    return planes


def from_differences(differences: np.ndarray) -> Image:
    """The image that `to_differences` was given."""
    planes = differences.cumsum(axis=2, dtype=np.uint8).cumsum(axis=1, dtype=np.uint8)
    planes[[0, 2]] += planes[1]
    return np.ascontiguousarray(planes.transpose(1, 2, 0))
