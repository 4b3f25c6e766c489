"""Runs of neighbouring sharp frames, in folders of images or in video files."""

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
from lmfn.data.layouts import DataError
from lmfn.data.synthesis import Image

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
        """What frame n is called."""
        return self.files[n].stem

    def decode(self, first: int, last: int) -> Iterator[tuple[int, Image]]:
        """The frames from `first` up to, not including, `last`, uint8 `[H, W, 3]`, each after its number.

        Raises ImageError for a broken one.
        """
        for n in range(first, last):
            yield n, images.read_rgb(self.files[n])


@dataclass(frozen=True)
class VideoSequence:
    """Frames of a video file that follow each other without a gap, in the order in which they are shown."""

    path: Path
    size: tuple[int, int]
    """Height and width of every frame, upright."""
    quarters: int
    """Quarter turns to the left that bring a frame upright."""
    times: tuple[int, ...]
    """When each frame is shown, in the stream's units; ascending."""
    keys: tuple[int, ...]
    """The times from which decoding can start, ascending."""
    start: int = 0
    """The number, in the video, of the first of the frames."""

    def __len__(self) -> int:
        return len(self.times)

    def name(self, n: int) -> str:
        """What frame n is called."""
        return f"{self.start + n:06d}"

    def decode(self, first: int, last: int) -> Iterator[tuple[int, Image]]:
        """The frames from `first` up to, not including, `last`, uint8 `[H, W, 3]`, upright, each after its number.

        Decoding starts at a key frame, and the frames from there on are given, too. A frame is told by its time, so
        that it is the same from wherever decoding starts. Raises DataError where the file does not hold what its index
        promised.
        """
        numbers = {time: n for n, time in enumerate(self.times)}
        missing = set(range(first, last))
        av = _av(self.path)
        try:
            with av.open(str(self.path)) as container:
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
        """Decoded frames, the first of them not later than `time`: some containers seek to a later place than told."""
        for key in reversed(self.keys[: bisect_right(self.keys, time)]):
            container.seek(key, stream=stream, backward=True)
            decoded = container.decode(stream)
            start = next(decoded, None)
            if start is not None and start.pts is not None and start.pts <= time:
                return chain([start], decoded)
        return iter(())


FrameSequence = FolderSequence | VideoSequence


def find_runs(path: str | Path) -> list[FrameSequence]:
    """The runs of frames in a folder of frames, in a tree of such folders, in a video file or a folder of video files.

    A video ends a run where frames are missing: where one is shown for more than half as long again as most are.
    Only headers are read. Raises DataError where there is nothing, where a folder's frames differ in size or where a
    video cannot be read; ImageError where an image cannot.
    """
    path = Path(path)
    if path.is_file():
        return list(_video(path))
    if not path.is_dir():
        raise DataError(f"there is no folder or video {path}")
    videos = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith("."))
    folders: dict[Path, list[Path]] = {}
    for file in images.find_images(path):
        folders.setdefault(file.parent, []).append(file)
    if not videos and not folders:
        raise DataError(f"{path} holds neither images nor videos")
    return [_folder(folder, files) for folder, files in folders.items()] + [run for v in videos for run in _video(v)]


def without_fragments(runs: Sequence[FrameSequence], least: int) -> list[FrameSequence]:
    """The runs but for those of a video that have fewer frames than `least`, if others of it have as many."""
    long = {run.path for run in runs if len(run) >= least}
    return [run for run in runs if len(run) >= least or run.path not in long]


def _natural(path: Path) -> tuple[list[str | int], str]:
    """A sort key by which frame_2 comes before frame_10."""
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
    """Index a video by reading its packets; the first frame alone is decoded."""
    av = _av(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} holds no video")
            stream = container.streams.video[0]
            packets = [p for p in container.demux(stream) if p.size and p.pts is not None and not p.is_discard]
            keys = tuple(sorted(p.pts for p in packets if p.is_keyframe))
            times = tuple(sorted(p.pts for p in packets))
        with av.open(str(path)) as container:
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
