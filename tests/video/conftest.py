"""Small clips in every container, with all the streams and data that clips have besides pictures."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

TICKS = Fraction(1, 90000)


@pytest.fixture
def make_clip() -> Callable[..., list[int]]:
    """Write a clip whose frames have the given mean levels, each with its own pattern; returns the time stamps."""

    def write(
        path: Path,
        levels: Sequence[int],
        *,
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        size: tuple[int, int] = (32, 48),
        options: dict[str, str] | None = None,
        sound: str | None = "aac",
        subtitles: bool = False,
        rotation: int = 0,
        colours: tuple[int, int, int, int] = (1, 1, 1, 1),
        start: int = 0,
    ) -> list[int]:
        times = []
        with av.open(str(path), "w") as container:
            container.metadata["title"] = "a title"
            stream = container.add_stream(codec, rate=30, options={"bf": "2", "g": "6"} if options is None else options)
            context = stream.codec_context
            context.height, context.width, context.pix_fmt = *size, pix_fmt
            if path.suffix != ".avi":
                context.time_base = stream.time_base = TICKS
            context.color_range, context.color_primaries, context.color_trc, context.colorspace = colours
            if rotation:
                stream.set_display_rotation(rotation)
            audio = container.add_stream(sound, rate=48000) if sound else None
            text = container.add_mux_stream("mov_text") if subtitles else None
            if text:
                text.time_base = Fraction(1, 1000)
            if path.suffix not in (".avi", ".ts"):
                spans = ((0, 300, "one"), (300, 600, "two"))
                container.set_chapters(
                    [
                        {"id": n, "start": a, "end": b, "time_base": Fraction(1, 1000), "metadata": {"title": title}}
                        for n, (a, b, title) in enumerate(spans)
                    ]
                )
            container.start_encoding()
            for n in range(2 if text else 0):
                packet = av.Packet(b"\x00\x02" + b"ab"[n : n + 1] * 2)
                packet.stream, packet.pts, packet.dts, packet.duration = text, 400 * n, 400 * n, 200
                packet.time_base = text.time_base
                container.mux(packet)
            pts = start * 90000
            for n, level in enumerate(levels):
                frame = picture(level, size, n, pix_fmt, colours)
                frame.pts, frame.time_base = (n, Fraction(1, 30)) if path.suffix == ".avi" else (pts, TICKS)
                times.append(pts)
                pts += 3000 + 700 * (n % 3)  # with a variable frame rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
            if audio:
                tone = np.sin(np.arange(len(levels) * 1600, dtype=np.float32) * 0.05) * 0.3
                for n in range(0, len(levels) * 1600, 960):
                    part = av.AudioFrame.from_ndarray(tone[None, n : n + 960], format="fltp", layout="mono")
                    part.sample_rate, part.pts = 48000, start * 48000 + n
                    container.mux(audio.encode(part))
                container.mux(audio.encode())
        return times

    return write


def picture(
    level: int, size: tuple[int, int], seed: int, pix_fmt: str = "yuv420p", colours: tuple[int, ...] = (1, 1, 1, 1)
) -> Any:
    """A frame with that mean level and a faint pattern of its own."""
    coarse = np.random.default_rng(seed).integers(-9, 10, (size[0] // 8 + 1, size[1] // 8 + 1, 3))
    pixels = (level + coarse.repeat(8, 0).repeat(8, 1))[: size[0], : size[1]].clip(0, 255).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(format=pix_fmt, dst_colorspace=colours[3], dst_color_range=colours[0])


def packets(path: Path, kind: str) -> list[tuple[float, bytes]]:
    """Time in seconds and content of the packets of the first stream of this kind."""
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        return [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(stream) if p.size]


def frames(path: Path) -> list[Any]:
    """All decoded frames."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def samples(path: Path) -> np.ndarray:
    """The decoded sound."""
    with av.open(str(path)) as container:
        return np.concatenate([part.to_ndarray() for part in container.decode(audio=0)], axis=1)
