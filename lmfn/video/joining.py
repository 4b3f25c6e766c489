"""Join the segments to one clip: their packets are copied, and so are the input's other streams."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import merge
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from lmfn.video.encoding import Encoding, add_pictures, start_encoding
from lmfn.video.probing import Clip, opened
from lmfn.video.segments import Segment, segment_file
from lmfn.video.suffixes import VideoError, address
from lmfn.video.writing import whole_file

MUXER_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder")  # describe the container, not the film


class Timed(NamedTuple):
    """A packet and its decoding time in seconds, by which packets are interleaved."""

    seconds: float
    packet: Any


@dataclass
class _Output:
    """The streams of the output container."""

    pictures: Any
    """The stream of the pictures."""
    copied: dict[int, Any] = field(default_factory=dict)
    """The copied streams by their index in the input."""
    notes: list[str] = field(default_factory=list)
    """Notes on streams that the container cannot hold."""


def join(clip: Clip, folder: Path, segments: list[Segment], target: Path, encoding: Encoding) -> list[str]:
    """Write the clip from the segments in the folder; returns notes on what its container cannot hold.

    Sound, subtitles, chapters, tags and attached files are copied bit for bit, time stamps with the precision of the
    container (1 ms in Matroska and WebM). Raises VideoError if the container cannot hold the sound, or if the clip
    cannot be written.
    """
    written: Counter[int] = Counter()
    with (
        whole_file(target, folder, written) as beside,
        av.open(address(clip.path)) as source,
        av.open(address(beside), "w", options=_options(target)) as container,
    ):
        output = _streams(clip, source, container, target, encoding)
        start_encoding(container)
        pictures = _pictures(clip, folder, segments, output.pictures)
        for timed in merge(pictures, _beside(clip, source, output.copied), key=lambda timed: timed.seconds):
            written[timed.packet.stream.index] += 1
            container.mux_one(timed.packet)
    return output.notes


def try_out(clip: Clip, folder: Path, target: Path, encoding: Encoding) -> None:
    """Write a single frame with the headers of all streams to a temporary file in the folder.

    Raises VideoError if the codec or the container does not support the streams.
    """
    trial = folder / f".trial{target.suffix}"
    try:
        with av.open(address(clip.path)) as source, av.open(address(trial), "w", options=_options(target)) as container:
            output = _streams(clip, source, container, target, encoding)
            start_encoding(container)
            frame = encoding.frame(np.zeros((clip.height, clip.width, 3), np.float32), clip)
            frame.pts, frame.time_base = 0, clip.time_base
            for packet in output.pictures.encode(frame) + output.pictures.encode():
                packet.dts = packet.pts  # x265's is undefined for a single frame
                container.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, VideoError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, OSError):
            raise VideoError(f"{target} cannot be written ({reason})") from error
        odd = clip.width % 2 or clip.height % 2
        remedy = "the size is odd: try --codec libvpx-vp9" if odd else "try another --codec or another container"
        raise VideoError(
            f"{target}: {encoding.codec} cannot write {clip.width}x{clip.height} pixels of {encoding.pix_fmt} "
            f"({reason}); {remedy}"
        ) from error
    finally:
        trial.unlink(missing_ok=True)


def _options(target: Path) -> dict[str, str]:
    """Muxer options: the index of an MP4 is put at its beginning, so that it plays while it is being downloaded."""
    return {"movflags": "+faststart"} if target.suffix.lower() in (".mp4", ".m4v", ".mov") else {}


def _streams(clip: Clip, source: Any, container: Any, target: Path, encoding: Encoding) -> _Output:
    """Add all streams in the input's order, and the tags; they must exist before the first packet."""
    container.metadata.update({key: text for key, text in source.metadata.items() if key not in MUXER_TAGS})
    output = _Output(None)
    for stream in source.streams:
        copied = None
        if stream.index == clip.index:
            copied = output.pictures = add_pictures(container, clip, encoding)
        elif stream.type == "video":
            continue  # `probe` has noted it
        elif stream.type == "attachment" and container.format.name == "matroska":
            container.add_attachment(stream.name or "attachment", stream.mimetype or "", stream.data)
            continue
        elif stream.type in ("audio", "subtitle") and stream.codec_context.name in container.supported_codecs:
            copied = output.copied[stream.index] = container.add_stream_from_template(stream)
        elif stream.type == "audio":
            raise VideoError(
                f"{target}: {target.suffix} cannot hold the sound of {clip.path} ({stream.codec_context.name}); "
                "write .mkv, which holds any"
            )
        elif not (stream.type == "data" and source.chapters()):  # in an MP4, chapters are also a data stream
            name = stream.codec_context.name if stream.codec_context else stream.name or "unknown"
            output.notes.append(
                f"{clip.path}: its {stream.type} stream {stream.index} ({name}) is left out: {target.suffix} cannot "
                "hold it"
            )
        if copied is not None:
            copied.metadata.update({key: text for key, text in stream.metadata.items() if key not in MUXER_TAGS})
            copied.disposition = stream.disposition
    if chapters := source.chapters():
        container.set_chapters(chapters)
    return output


def _pictures(clip: Clip, folder: Path, segments: list[Segment], stream: Any) -> Iterator[Timed]:
    """The segments' packets, with ascending decoding times over all of them; each lasts until the next frame."""
    shifts, times = [], []
    origin = round(clip.origin / clip.time_base)
    for number, segment in enumerate(segments):
        found = [packet.pts for packet in _packets(clip, segment_file(folder, number))]
        shifts.append(segment.start - origin - min(found))
        times += [pts + shifts[-1] for pts in found]
    shown = sorted(times)
    following = dict(zip(shown, [*shown[1:], max(segments[-1].end - origin, shown[-1] + 1)], strict=True))
    # The k-th packet is decoded when the k-th frame is shown, minus the delay that makes every packet early enough.
    wait = max(nth - own for nth, own in zip(shown, times, strict=True))
    decoded = iter(shown)
    for number, shift in enumerate(shifts):
        for packet in _packets(clip, segment_file(folder, number), stream):
            packet.pts, packet.dts, packet.stream = packet.pts + shift, next(decoded) - wait, stream
            packet.duration = following[packet.pts] - packet.pts
            yield Timed(float(packet.dts * packet.time_base), packet)


def _packets(clip: Clip, file: Path, stream: Any = None) -> Iterator[Any]:
    """The packets of a segment, in the clip's time base. The codec parameters of `stream`, if given, must be the
    same."""
    with opened(file) as container:
        own = container.streams[0]
        if stream is not None and (own.codec_context.extradata or b"") != (stream.codec_context.extradata or b""):
            raise VideoError(f"{file} was encoded differently; remove the folder {file.parent} and start again")
        for packet in container.demux(own):
            if packet.size:
                packet.pts = int(packet.pts * packet.time_base / clip.time_base)  # NUT has a finer time base
                packet.time_base = clip.time_base
                yield packet


def _beside(clip: Clip, source: Any, copied: dict[int, Any]) -> Iterator[Timed]:
    """The packets of the copied streams."""
    if not copied:
        return
    for packet in source.demux([source.streams[index] for index in copied]):
        if packet.size and None not in (packet.pts, packet.dts) and not _is_gap(packet):
            stream = copied[packet.stream.index]
            origin = round(clip.origin / packet.time_base)
            packet.pts, packet.dts = packet.pts - origin, packet.dts - origin
            seconds = float(packet.dts * packet.time_base)
            packet.stream = stream
            yield Timed(seconds, packet)


def _is_gap(packet: Any) -> bool:
    """Whether the packet is the empty text between subtitles in an MP4, which the muxer inserts by itself."""
    return packet.stream.type == "subtitle" and bytes(packet) == b"\0\0"
