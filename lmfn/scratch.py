"""Rows in a file instead of in memory: of the network's maps, and of images."""

import tempfile
from pathlib import Path
from typing import Any, Self, cast

import numpy as np


class RowFile:
    """Rows of equal length, by number. The file has no name, or is deleted when this process ends, however it ends."""

    def __init__(self, folder: Path, row_bytes: int) -> None:
        self.folder, self.row_bytes = folder, row_bytes
        self.file = cast(Any, tempfile.TemporaryFile(dir=folder, buffering=0))  # noqa: SIM115 (it stays open)

    def read(self, first: int, into: Any) -> None:
        """Fill a buffer with the rows from `first` on."""
        self._transfer(first, into, self.file.readinto)

    def write(self, first: int, rows: Any) -> None:
        self._transfer(first, rows, self.file.write)

    def _transfer(self, first: int, rows: Any, call: Any) -> None:
        self.file.seek(first * self.row_bytes)
        left = memoryview(rows).cast("B")
        while left:
            done = call(left)
            if not done:
                raise OSError("the scratch file ended early")
            left = left[done:]


class StoredPixels:
    """The pixels of an image, `[H, W, C]`, in a file: read and written by rows, like those of an array.

    `stored[first:last]` is a copy of these rows, `stored[first:last] = rows` writes them.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.file = RowFile(folder, shape[1] * shape[2] * self.dtype.itemsize)

    @classmethod
    def of(cls, pixels: np.ndarray, folder: Path) -> Self:
        """The pixels of an array, which may be turned: they are copied row by row."""
        stored = cls(folder, pixels.shape, pixels.dtype)
        for first in range(0, len(pixels), 64):
            stored[first : first + 64] = pixels[first : first + 64]
        return stored

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.shape[0] * self.file.row_bytes

    def empty_like(self) -> Self:
        """Pixels of the same kind that are not written yet, in the same folder."""
        return type(self)(self.file.folder, self.shape, self.dtype)

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(self.shape[0])
        found = np.empty((max(last - first, 0), *self.shape[1:]), self.dtype)
        if found.size:
            self.file.read(first, found)
        return found

    def __setitem__(self, rows: slice, pixels: np.ndarray) -> None:
        first, last, _ = rows.indices(self.shape[0])
        if pixels.shape != (last - first, *self.shape[1:]):
            raise ValueError(f"rows {first} to {last} of {self.shape} cannot be pixels of shape {pixels.shape}")
        self.file.write(first, np.ascontiguousarray(pixels, self.dtype))


Pixels = np.ndarray | StoredPixels
"""The pixels of an image, `[H, W, C]`: an array, or rows in a file."""
