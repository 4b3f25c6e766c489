"""Sequences of consecutive sharp frames, in folders of images or in video files."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np

from lmfn import images
from lmfn.absent import absent
from lmfn.data.layouts import DataError
from lmfn.data.synthesis import Image
from lmfn.video.suffixes import address

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


@dataclass(frozen=True)
class FolderSequence:
    """The images of one folder, in the natural order of their names (2 before 10)."""

    path: Path
    size: tuple[int, int]
    """Height and width of every frame."""
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    def name(self, n: int) -> str:
        """The name of frame n."""
        return self.files[n].stem

    def decode(self, first: int, last: int) -> Iterator[tuple[int, Image]]:
        """Number and pixels, uint8 `[H, W, 3]`, of the frames from `first` to `last` (exclusive).

        Raises ImageError for a broken frame.
        """
        for n in range(first, last):
            yield n, images.read_rgb(self.files[n])


@dataclass(frozen=True)
class VideoSequence:
    """Frames of a video file without gaps between them, in display order."""

    path: Path
    size: tuple[int, int]
    """Height and width of every frame, upright."""
    quarters: int
    """Number of counterclockwise quarter turns that make a frame upright."""
    times: tuple[int, ...]
    """Time stamps of the frames in the stream's units, ascending."""
    keys: tuple[int, ...]
    """Time stamps at which decoding can start, ascending."""
    start: int = 0
    """Number of the first of these frames in the video."""

    def __len__(self) -> int:
        return len(self.times)

    def name(self, n: int) -> str:
        """The name of frame n."""
        return f"{self.start + n:06d}"

    def decode(self, first: int, last: int) -> Iterator[tuple[int, Image]]:
        """Number and pixels, uint8 `[H, W, 3]`, upright, of the frames from `first` to `last` (exclusive).

        Decoding starts at a key frame, and the frames between it and `first` are also yielded. Frames are identified by
        their time stamps, so the result does not depend on where decoding starts. Raises DataError if the file does not
        contain the frames in its index.
        """
        numbers = {time: n for n, time in enumerate(self.times)}
        missing = set(range(first, last))
        av = _av(self.path)
        try:
            with av.open(address(self.path)) as container:
                stream = container.streams.video[0]
                for frame in self._from_key_before(container, stream, self.times[first]):
                    n = numbers.get(frame.pts)
                    if n is not None:
                        missing.discard(n)
                        yield n, np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), self.quarters))
                    if not missing:
                        return
        except av.FFmpegError as error:
            raise DataError(f"{self.path} cannot be decoded ({error.strerror}); convert the video first") from error
        raise DataError(f"{self.path}: frame {min(missing)} cannot be decoded; convert the video first")

    def _from_key_before(self, container: Any, stream: Any, time: int) -> Iterator[Any]:
        """Decoded frames starting no later than `time`, although some containers seek past the requested time."""
        for key in reversed(self.keys[: bisect_right(self.keys, time)]):
            container.seek(key, stream=stream, backward=True)
            decoded = container.decode(stream)
            start = next(decoded, None)
            if start is not None and start.pts is not None and start.pts <= time:
                return chain([start], decoded)
        return iter(())


FrameSequence = FolderSequence | VideoSequence


def find_runs(path: str | Path) -> list[FrameSequence]:
    """The sequences of frames in a folder of images, a tree of such folders, a video file or a folder of video files.

    A video is split where frames are missing, that is, where a frame is shown for more than 1.5 times the median
    duration. Only headers are read. Raises DataError if there is nothing, if the images of a folder differ in size, or
    if a video cannot be read; ImageError if an image cannot be read.
    """
    path = Path(path)
    if path.is_file():
        return list(_video(path))
    if not path.is_dir():
        raise DataError(absent("folder or video", path))
    videos = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith("."))
    folders: dict[Path, list[Path]] = {}
    for file in images.find_images(path):
        folders.setdefault(file.parent, []).append(file)
    if not videos and not folders:
        raise DataError(f"{path} holds neither images nor videos")
    return [_folder(folder, files) for folder, files in folders.items()] + [run for v in videos for run in _video(v)]


def without_fragments(runs: Sequence[FrameSequence], least: int) -> list[FrameSequence]:
    """The sequences without those of fewer than `least` frames, if another sequence of the same video is long
    enough."""
    long = {run.path for run in runs if len(run) >= least}
    return [run for run in runs if len(run) >= least or run.path not in long]


def _natural(path: Path) -> tuple[list[str | int], str]:
    """A sort key that puts frame_2 before frame_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.stem)], path.stem


def _folder(folder: Path, files: list[Path]) -> FolderSequence:
    files = sorted(files, key=_natural)
    size = images.read_size(files[0])
    for before, file in pairwise(files):
        if before.stem == file.stem:
            raise DataError(f"{before} and {file} have the same name; a sequence holds each frame once")
        other = images.read_size(file)
        if other != size:
            raise DataError(
                f"{file} is {other[1]}x{other[0]}, but {files[0].name} in the same folder is {size[1]}x{size[0]}; "
                "the frames of a sequence must have one size"
            )
    return FolderSequence(folder, size, tuple(files))


def _video(path: Path) -> Iterator[VideoSequence]:
    """Index a video by reading its packets; only the first frame is decoded."""
    av = _av(path)
    try:
        with av.open(address(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} holds no video")
            stream = container.streams.video[0]
            packets = [p for p in container.demux(stream) if p.size and p.pts is not None and not p.is_discard]
            keys = tuple(sorted(p.pts for p in packets if p.is_keyframe))
            times = tuple(sorted(p.pts for p in packets))
        with av.open(address(path)) as container:
            first = next(container.decode(video=0), None)
    except av.FFmpegError as error:
        raise DataError(f"{path} cannot be read as a video ({error.strerror})") from error
    if not times or not keys or first is None:
        raise DataError(f"{path} holds no frames with time stamps; convert it to MP4 first")
    quarters = round(first.rotation / 90) % 4
    size = (first.width, first.height) if quarters % 2 else (first.height, first.width)
    steps = [later - earlier for earlier, later in pairwise(times)]
    longest = 1.5 * median(steps or [0])
    starts = [0, *(n for n, step in enumerate(steps, 1) if step > longest)]
    for start, end in pairwise([*starts, len(times)]):
        yield VideoSequence(path, size, quarters, times[start:end], keys, start)


def _av(path: Path) -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise DataError(f'{path}: reading videos needs PyAV: pip install "lmfn-deblur[video]"') from error
    return av
