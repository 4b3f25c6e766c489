"""How the result is encoded: the codec, the sample format, and the output stream."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from lmfn.video.conversion import RGB_SPACE, from_rgb, matrix
from lmfn.video.probing import Clip
from lmfn.video.suffixes import VideoError

CRF = 16
"""Default quality: hard to distinguish from the frames before encoding."""
QUIET = {"libx265": {"x265-params": "log-level=error"}}
CONSTANT_QUALITY = {"libvpx-vp9": {"b": "0"}}  # without it, crf only limits the quality within a bit rate
SMALLEST = {"libx265": 64}
"""Minimum length of the shorter side in pixels. Below it, x265 with 10 bits writes past its buffers and crashes."""


@dataclass(frozen=True)
class Encoding:
    """A codec with its pixel format and options."""

    codec: str
    pix_fmt: str
    options: tuple[tuple[str, str], ...]

    def frame(self, rgb: np.ndarray, clip: Clip) -> Any:
        """A frame in `pix_fmt`, with the colour matrix and range of the clip, from float32 `[H, W, 3]` in [0, 1]."""
        return from_rgb(rgb, self.pix_fmt, clip.colours.color_range, clip.colours.colorspace)


def choose_encoding(clip: Clip, target: Path, codec: str | None, crf: float | None) -> Encoding:
    """The encoding for a clip: without a codec, VP9 in WebM, otherwise H.264 for 8 bits and HEVC for more.

    Bit depth and chroma sampling are those of the clip. `crf` is quality on the codec's scale, where lower is better;
    the default is `CRF` if the codec has the option.

    Raises VideoError for a codec that is not available, does not support these samples, or does not have the option,
    and for a quality outside every codec's scale.
    """
    if crf is not None and not 0 <= crf <= 63:
        raise VideoError(f"crf is {crf:g}; it must be from 0 to 63 (51 with H.264 and HEVC), lower being better")
    bits = max(component.bits for component in av.VideoFormat(clip.pix_fmt).components)
    if codec is None:
        codec = "libvpx-vp9" if target.suffix.lower() == ".webm" else "libx264" if bits == 8 else "libx265"
    try:
        encoder = av.Codec(codec, "w")
    except ValueError as error:
        raise VideoError(f"there is no encoder {codec!r}; some are libx264, libx265, libvpx-vp9, libsvtav1") from error
    if encoder.type != "video":
        raise VideoError(f"{codec} is no video encoder; some are libx264, libx265, libvpx-vp9, libsvtav1")
    if min(clip.width, clip.height) < (least := SMALLEST.get(codec, 1)):
        raise VideoError(
            f"{clip.path} is {clip.width}x{clip.height}, and {codec} needs at least {least} pixels per side; "
            "try --codec libx264"
        )
    pix_fmt = _nearest(clip.pix_fmt, encoder)
    if pix_fmt is None:
        known = ", ".join(form.name for form in encoder.video_formats or ())
        raise VideoError(
            f"{clip.path} has samples {clip.pix_fmt}, which {codec} cannot write; it writes {known}. "
            "FFV1 writes any: --codec ffv1 --ext mkv"
        )
    options = {**QUIET.get(codec, {}), **CONSTANT_QUALITY.get(codec, {})}
    if "crf" in {option.name for option in av.CodecContext.create(codec, "w").supported_options.private}:
        options["crf"] = f"{CRF if crf is None else crf:g}"
    elif crf is not None:
        raise VideoError(f"{codec} has no option crf; leave --crf out")
    return Encoding(codec, pix_fmt, tuple(options.items()))


def _nearest(pix_fmt: str, encoder: Any) -> str | None:
    """The encoder's format with the fewest bits that represents this one without loss, except alpha."""
    wanted = av.VideoFormat(pix_fmt.replace("yuvj", "yuv"))
    bits = max(component.bits for component in wanted.components)

    def area(form: Any) -> int:
        return 1 if len(form.components) < 3 else int(form.chroma_width(64) * form.chroma_height(64))

    candidates = [
        form
        for form in encoder.video_formats or ()
        if not form.name.startswith(("yuvj", "nv", "gbrap", "yuva", "bgra"))
        and form.is_planar  # excludes gray, whose range decoders and scalers interpret differently
        and form.is_rgb <= wanted.is_rgb
        and max(component.bits for component in form.components) >= bits
        and area(form) >= area(wanted)
    ]
    ranked = sorted(candidates, key=lambda form: (form.components[0].bits, area(form), form.is_rgb != wanted.is_rgb))
    return ranked[0].name if ranked else None


def add_pictures(container: Any, clip: Clip, encoding: Encoding) -> Any:
    """Add a video stream for the clip's pictures to an output container; returns the stream."""
    stream = container.add_stream(encoding.codec, rate=clip.rate, options=dict(encoding.options))
    codec = stream.codec_context
    codec.width, codec.height, codec.pix_fmt = clip.width, clip.height, encoding.pix_fmt
    codec.time_base = stream.time_base = clip.time_base
    codec.sample_aspect_ratio = clip.pixel_aspect
    for name, value in asdict(clip.colours).items():
        setattr(codec, name, value)
    if codec.colorspace == RGB_SPACE and not av.VideoFormat(encoding.pix_fmt).is_rgb:
        codec.colorspace = matrix(RGB_SPACE)
    if clip.matrix is not None:
        stream.set_display_matrix(clip.matrix)
    return stream


def start_encoding(container: Any) -> None:
    """Open the codecs and write the header. Run by root, SVT-AV1 makes the thread that opens it, and with it all that
    this thread starts later, real-time, which takes the processor from every other program: that is undone."""
    if not hasattr(os, "sched_getscheduler"):
        container.start_encoding()
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        container.start_encoding()
    finally:
        if (os.sched_getscheduler(0), os.sched_getparam(0)) != before:
            os.sched_setscheduler(0, *before)
