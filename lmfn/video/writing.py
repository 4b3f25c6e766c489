"""Write video files atomically."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import av

from lmfn import atomic
from lmfn.video.suffixes import VideoError, address


@contextlib.contextmanager
def whole_file(path: Path, folder: Path, number_of_packets: Counter[int]) -> Iterator[Path]:
    """A hidden path in the folder to write to. At the end the file there replaces `path`, provided that it can be read
    back and each stream has at least the number of packets that was counted; otherwise it is removed.

    Raises VideoError if it is incomplete, or if FFmpeg's libraries cannot write it.
    """
    beside = atomic.beside(folder / path.stem, f".{os.getpid()}{path.suffix}")
    try:
        yield beside
        _check(path, beside, number_of_packets)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path} cannot be written ({error.strerror})") from error
    finally:
        beside.unlink(missing_ok=True)


def _check(path: Path, beside: Path, expected: Counter[int]) -> None:
    """Raise VideoError if packets are missing: FFmpeg does not report every failed write at the end of a file."""
    found: Counter[int] = Counter()
    with av.open(address(beside)) as container:
        found.update(packet.stream.index for packet in container.demux() if packet.size)
    if lost := {index: count for index, count in expected.items() if found[index] < count}:
        raise VideoError(f"{path} cannot be written completely (packets missing by stream: {lost}; no space left?)")
