"""Segments of the result: some frames each, encoded independently into files that are written atomically.

Decoding, the network and encoding run in parallel, each a few frames ahead of the next. A container whose writer was
killed cannot be read, so the clip is written as segments until all are done; a resumed run reuses complete segments.
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.filter import Graph

from lmfn import atomic
from lmfn.overlap import ahead, heard, warnings_by_thread
from lmfn.plausibility import DoubtfulOutput
from lmfn.video.conversion import to_rgb
from lmfn.video.encoding import Encoding, add_pictures, start_encoding
from lmfn.video.flicker import Flicker, FlickerMeter
from lmfn.video.probing import Clip, opened
from lmfn.video.suffixes import UnusableClipError, VideoError, address
from lmfn.video.writing import whole_file

FRAMES = 64
"""Frames per segment: the most that is lost if the process is killed, and the distance between key frames."""
AHEAD = 3  # number of frames that each step may be ahead of the next
EARLIER = 32  # units of time by which a segment's packets are decoded early, more than encoders reorder frames

Sharpen = Callable[[np.ndarray], np.ndarray]


class Picture(NamedTuple):
    """A frame in the pipeline."""

    pts: int
    duration: int
    blurred: np.ndarray
    """float32 `[H, W, 3]` in [0, 1]."""
    sharp: np.ndarray | None = None
    """The sharpened frame, of the same shape and dtype."""
    doubt: str | None = None
    """Why the output looks broken; None if it does not."""


@dataclass(frozen=True)
class Segment:
    """The properties of a complete segment."""

    frames: int
    start: int
    """Time of its first frame in the clip's time base. Times in the segment's file are shifted, since decoding times
    may be negative, which NUT does not allow."""
    end: int
    """Time at which its last frame ends."""
    doubts: list[tuple[float, str]] = field(default_factory=list)
    """Time in seconds and reason for each frame whose output looks broken."""
    flicker: Flicker = field(default_factory=Flicker)

    def text(self) -> str:
        """JSON that `parse` reads back exactly."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> "Segment":
        """The segment from the JSON of `text`."""
        values = json.loads(text)
        flicker = Flicker(**values.pop("flicker"))
        doubts = [tuple(doubt) for doubt in values.pop("doubts")]
        return cls(**values, doubts=doubts, flicker=flicker)


def segment_file(folder: Path, number: int) -> Path:
    """The file of a segment; it exists if the segment is complete. Its properties are next to it, as JSON."""
    return folder / f"{number:06d}.nut"


def whole_segments(folder: Path) -> list[Segment]:
    """The complete segments in the folder, up to the first missing one. Raises VideoError if the JSON of one is
    broken."""
    found: list[Segment] = []
    while (file := segment_file(folder, len(found))).is_file():
        known = file.with_suffix(".json")
        try:
            found.append(Segment.parse(known.read_text()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise VideoError(f"{known} is broken ({error}); remove {folder} to start again") from error
    return found


def write_segments(
    clip: Clip, folder: Path, encoding: Encoding, sharpen: Sharpen, *, deinterlace: bool, frames: int
) -> Iterator[Segment]:
    """Decode, sharpen and encode what is not in the folder yet; yields existing segments, then each new one once it is
    complete.

    Raises VideoError for a clip that cannot be decoded to its end, and for frames that change their size, have no
    ascending time stamps, or are interlaced without `deinterlace`; OSError if the folder cannot be written to.
    """
    found = whole_segments(folder)
    yield from found
    if found and found[-1].frames < frames:
        return  # that was the clip's last segment
    decoded = decode(clip, deinterlace=deinterlace, skip=sum(segment.frames for segment in found))
    with warnings_by_thread(DoubtfulOutput):
        pictures = ahead(_sharpened(ahead(decoded, AHEAD), sharpen), AHEAD)
        try:
            for number, first in enumerate(pictures, start=len(found)):
                part = chain([first], islice(pictures, frames - 1))
                yield _write(clip, segment_file(folder, number), encoding, first.pts, part)
        finally:
            pictures.close()


def decode(clip: Clip, *, deinterlace: bool, skip: int = 0) -> Iterator[Picture]:
    """The frames of a clip in display order, without the first `skip`; raises as `write_segments`.

    Decoding always starts at the beginning, since not every container can be entered elsewhere, and decoding is fast
    compared with the network.
    """
    with opened(clip.path) as container:
        stream = container.streams[clip.index]
        stream.thread_type = "AUTO"
        last: int | None = None
        frames = _checked(clip, _frames(clip, container, stream), deinterlace)
        for number, frame in enumerate(_deinterlaced(clip, frames, stream) if deinterlace else frames):
            pts = int(frame.pts * frame.time_base / clip.time_base)
            if last is not None and pts <= last:
                raise UnusableClipError(
                    f"{clip.path}: the frames at {_at(clip, pts)} have no rising time stamps; convert it"
                )
            last = pts
            if number >= skip:
                duration = int((frame.duration or 0) * frame.time_base / clip.time_base)
                yield Picture(pts, duration, to_rgb(frame))


def _frames(clip: Clip, container: Any, stream: Any) -> Iterator[Any]:
    """The decoded frames. Raises VideoError if one cannot be decoded."""
    last = None
    decoded = container.decode(stream)
    while True:
        try:
            frame = next(decoded)
        except StopIteration:
            return
        except av.FFmpegError as error:
            kind = VideoError if isinstance(error, OSError) else UnusableClipError  # a disk may come back
            raise kind(
                f"{clip.path} cannot be decoded after {_at(clip, last)} ({error.strerror}); {_repair(clip)}"
            ) from error
        last = frame.pts
        yield frame


def _checked(clip: Clip, frames: Iterator[Any], deinterlace: bool) -> Iterator[Any]:
    """The same frames. Raises UnusableClipError for one that the result cannot represent."""
    for number, frame in enumerate(frames):
        if clip.slots is not None:
            frame.pts = clip.slots[number] if number < len(clip.slots) else None
        if frame.pts is None:
            raise UnusableClipError(f"{clip.path} has frames without time stamps; convert it to MP4 first")
        if (frame.width, frame.height) != (clip.width, clip.height):
            raise UnusableClipError(
                f"{clip.path} changes its size at {_at(clip, frame.pts)}, from {clip.width}x{clip.height} to "
                f"{frame.width}x{frame.height}; cut it there first"
            )
        if frame.is_corrupt:
            raise UnusableClipError(f"{clip.path} is damaged at {_at(clip, frame.pts)}; {_repair(clip)}")
        if frame.interlaced_frame and not deinterlace:
            raise UnusableClipError(interlaced(clip))
        yield frame


def _repair(clip: Clip) -> str:
    return f"to use the rest, convert it first: ffmpeg -i {clip.path.name} -c copy -c:v ffv1 converted.mkv"


def interlaced(clip: Clip) -> str:
    """The error message for an interlaced clip."""
    return f"{clip.path} is interlaced: each frame combines two moments; --deinterlace makes it progressive"


def _deinterlaced(clip: Clip, frames: Iterator[Any], stream: Any) -> Iterator[Any]:
    """The same number of frames, with bwdif applied to interlaced ones."""
    graph = Graph()
    source = graph.add_buffer(template=stream, time_base=clip.time_base)
    bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    sink = graph.add("buffersink")
    source.link_to(bwdif)
    bwdif.link_to(sink)
    graph.configure()
    for frame in chain(frames, [None]):
        graph.push(frame)
        while True:
            try:
                yield graph.pull()
            except (av.BlockingIOError, av.EOFError):
                break


def _sharpened(pictures: Generator[Picture, None, None], sharpen: Sharpen) -> Iterator[Picture]:
    try:
        for picture in pictures:
            messages: list[warnings.WarningMessage] = []
            with heard(messages):
                sharp = sharpen(picture.blurred)
            doubt = "; ".join(str(message.message) for message in messages) or None
            yield picture._replace(sharp=sharp, doubt=doubt)
    finally:
        pictures.close()


def _write(clip: Clip, file: Path, encoding: Encoding, start: int, pictures: Iterator[Picture]) -> Segment:
    """Encode the pictures into a file that is written atomically."""
    meter, doubts, end = FlickerMeter(), [], start
    written: Counter[int] = Counter()
    number = count(start - EARLIER)

    def mux(packets: list[Any]) -> None:
        for packet in packets:
            packet.dts = next(number)  # x265 leaves them undefined for short segments; `join` replaces them
            container.mux(packet)

    with whole_file(file, file.parent, written) as beside:
        with av.open(address(beside), "w", format="nut") as container:
            stream = add_pictures(container, clip, encoding)
            start_encoding(container)
            for picture in pictures:
                assert picture.sharp is not None
                frame = encoding.frame(picture.sharp, clip)
                frame.pts, frame.time_base, frame.duration = picture.pts, clip.time_base, picture.duration
                mux(stream.encode(frame))
                meter.add(picture.blurred, picture.sharp)
                written[0] += 1
                end = picture.pts + picture.duration
                if picture.doubt:
                    doubts.append((float(picture.pts * clip.time_base), picture.doubt))
            mux(stream.encode())
        segment = Segment(written[0], start, end, doubts, meter.total)
        atomic.write(file.with_suffix(".json"), segment.text().encode())
    return segment


def _at(clip: Clip, pts: int | None) -> str:
    return "its beginning" if pts is None else f"{float(pts * clip.time_base):.2f} s"
