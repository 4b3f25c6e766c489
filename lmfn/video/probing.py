"""Check a clip before any work: one pass over its packets, without decoding them."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
from av.format import Flags
from av.sidedata.sidedata import Type
from av.stream import Disposition

from lmfn.video.conversion import RED_AND_BLUE, RGB_SPACE, UNSPECIFIED
from lmfn.video.suffixes import VideoError, address

HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273
NOT_KEPT = {
    "the projection of its pictures (360 degrees)": (Type.SPHERICAL,),
    "the arrangement of its stereoscopic pictures": (Type.STEREO3D,),
    "its closed captions": (Type.A53_CC,),
    "its dynamic HDR metadata": (Type.DYNAMIC_HDR_PLUS, Type.DYNAMIC_HDR_VIVID),
    "its Dolby Vision metadata": (Type.DOVI_METADATA, Type.DOVI_RPU_BUFFER),
}
"""What frames tell beside their pixels, and the result does not, by FFmpeg's kinds of side data."""
FEW = 8  # frames decoded to detect interlacing
MISSING = 0.5  # seconds by which a clip may be shorter than it declares
ALPHA = ("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya")


@dataclass(frozen=True)
class Colours:
    """The tags of ITU-T H.273 that define the meaning of the samples, with PyAV's numbers."""

    color_range: int
    color_primaries: int
    color_trc: int
    colorspace: int


@dataclass(frozen=True)
class Clip:
    """The properties of a clip's pictures and of their display."""

    path: Path
    index: int
    """Index of the stream with the pictures."""
    width: int
    height: int
    pix_fmt: str
    time_base: Fraction
    """Unit of the frames' time stamps in seconds."""
    rate: Fraction
    """Nominal frames per second; the time stamps define when each frame is shown."""
    pixel_aspect: Fraction
    """Width of a pixel divided by its height."""
    matrix: tuple[int, ...] | None
    """Display matrix (rotation) as containers store it; None if there is none."""
    colours: Colours
    origin: Fraction
    """Time in seconds on the clip's clock that becomes 0, since the clock of an MPEG stream starts at any value."""
    slots: tuple[int, ...] | None
    """Time of the k-th frame in units of the time base, if the frames have no time stamps; None otherwise."""
    start: float
    """Time in seconds at which the first frame is shown."""
    end: float
    """Time in seconds at which the last frame ends."""
    interlaced: bool
    notes: tuple[str, ...]
    """Notes for the user on what is not preserved."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open the clip's container. Errors of FFmpeg's libraries become VideoError."""
    try:
        with av.open(address(path)) as container:
            yield container
    except av.FFmpegError as error:
        raise VideoError(f"{path} cannot be read as a video ({error.strerror})") from error


def probe(path: Path) -> Clip:
    """Read a clip's headers, the time stamps of all its packets, and its first frames.

    Raises VideoError for a file without moving pictures, without time stamps, or shorter than it declares.
    """
    with opened(path) as container:
        if container.format.name.endswith("_pipe"):
            raise VideoError(f"{path} is a single picture, not a clip; rename it with the suffix of its format")
        stream = picture_stream(path, container)
        index = stream.index
        begin, end, decoded = _packet_times(path, container, index)
        has_any_start = Flags(container.format.flags) & Flags.ts_discont
        origin = Fraction(container.start_time or 0, av.time_base) if has_any_start else Fraction(0)
        notes = [f"{path}: {text}" for text in _other_pictures(container, stream)]
    with opened(path) as container:
        stream = container.streams[index]
        frames = list(islice(container.decode(stream), FEW))
        if not frames:
            raise VideoError(f"{path}: no frame can be decoded")
        first, codec = frames[0], stream.codec_context
        side_data = _side_data(first)
        # AVI has only decoding times; the k-th frame shown has the k-th of them.
        rising = all(None not in (a.pts, b.pts) and a.pts < b.pts for a, b in pairwise(frames))
        lacks_times = container.format.name == "avi" and not rising and None not in decoded
        colours = Colours(first.color_range, first.color_primaries, first.color_trc, first.colorspace)
        if colours.colorspace not in (RGB_SPACE, UNSPECIFIED, *RED_AND_BLUE):
            raise VideoError(
                f"{path}: the matrix of its colours ({colours.colorspace} in ITU-T H.273) is not supported; convert it "
                "to BT.709 first"
            )
        if (hdr := HDR.get(colours.color_trc)) is not None:
            notes.append(f"{path}: HDR ({hdr}) is kept without tone mapping; the network was not trained on HDR")
            if any(side_data.get(kind) for kind in (Type.MASTERING_DISPLAY_METADATA, Type.CONTENT_LIGHT_LEVEL)):
                notes.append(f"{path}: the metadata of its mastering display is not kept")
        told = {side.type for frame in frames for side in _side_data(frame) if not _is_flat(side)}
        notes += [f"{path}: {what} is not kept" for what, kinds in NOT_KEPT.items() if told.intersection(kinds)]
        if first.format.name.startswith(ALPHA) or stream.metadata.get("alpha_mode") == "1":
            notes.append(f"{path}: its transparency is not kept")
        return Clip(
            path=path,
            index=index,
            width=first.width,
            height=first.height,
            pix_fmt=first.format.name,
            time_base=stream.time_base,
            rate=stream.guessed_rate or stream.average_rate or Fraction(30),
            pixel_aspect=stream.sample_aspect_ratio or codec.sample_aspect_ratio or Fraction(1),
            matrix=_matrix(first, side_data),
            colours=colours,
            origin=origin,
            slots=tuple(sorted(decoded)) if lacks_times else None,
            start=begin,
            end=end,
            interlaced=any(frame.interlaced_frame for frame in frames),
            notes=tuple(notes),
        )


def _packet_times(path: Path, container: Any, index: int) -> tuple[float, float, list[Any]]:
    """When the first picture of a stream begins and the last one ends, in seconds, and the decoding times of all.

    Raises VideoError for pictures without time stamps, and for a clip that is shorter than it declares.
    """
    times, ends, decoded = [], [], []
    for packet in container.demux():
        if packet.pts is None or not packet.size:
            continue
        end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
        ends.append(end)
        if packet.stream.index == index and not packet.is_discard:
            times.append((float(packet.pts * packet.time_base), end))
            decoded.append(packet.dts)
    if not times:
        raise VideoError(f"{path} holds no frames with time stamps; convert it to MP4 first")
    declared = (container.duration or 0) / av.time_base
    length = max(ends) - min(0, (container.start_time or 0) / av.time_base, *(begin for begin, _ in times))
    if declared - length > MISSING:
        raise VideoError(
            f"{path} is incomplete: it ends after {length:.1f} of the {declared:.1f} s that it declares; "
            f"to use what is there, copy it first: ffmpeg -i {path.name} -c copy copied{path.suffix}"
        )
    return min(begin for begin, _ in times), max(end for _, end in times), decoded


def _side_data(frame: Any) -> Any:
    """The side data of a frame. PyAV raises if it does not know one of the kinds, such as EXIF in MJPEG or the eye in
    stereoscopic clips."""
    try:
        return frame.side_data
    except ValueError:
        return {}


def _is_flat(side: Any) -> bool:
    """Whether side data of the kind for stereoscopic pictures says that these are none."""
    return side.type == Type.STEREO3D and not any(bytes(side)[:4])


def _matrix(frame: Any, side_data: Any) -> tuple[int, ...] | None:
    """The display matrix of the frame, as in `Clip.matrix`."""
    if (found := side_data.get(Type.DISPLAYMATRIX)) is not None:
        return tuple(memoryview(found).cast("B").cast("i"))
    if not frame.rotation:
        return None
    angle = math.radians(frame.rotation)
    cosine, sine = round(2**16 * math.cos(angle)), round(2**16 * math.sin(angle))
    return (cosine, -sine, 0, sine, cosine, 0, 0, 0, 2**30)


def picture_stream(path: Path, container: Any) -> Any:
    """The first stream of moving pictures. Raises VideoError if there is none."""
    moving = [stream for stream in container.streams.video if not is_cover(stream)]
    if moving:
        return moving[0]
    held = "no moving pictures, but " + ("sound" if container.streams.audio else "neither pictures nor sound")
    held += " and a cover picture" if container.streams.video else ""
    raise VideoError(f"{path} holds {held}; lmfn deblur takes clips and photographs")


def is_cover(stream: Any) -> bool:
    """Whether the stream is a cover picture, as in audio files."""
    return bool(stream.disposition & Disposition.attached_pic)


def _other_pictures(container: Any, chosen: Any) -> Iterator[str]:
    for stream in container.streams.video:
        if stream.index != chosen.index:
            kind = "cover picture" if is_cover(stream) else "second stream of pictures"
            yield f"its {kind} (stream {stream.index}) is left out"
