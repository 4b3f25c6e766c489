"""Frames from a clip's samples to RGB and back, by the formulas of ITU-T H.273.

FFmpeg's swscale resamples chroma, but does not convert: in full range, as phones and action cameras record it, it
lowers most values of chroma by one, which tints the whole clip, and white is never 1.
"""

from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

SCALING = (
    Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
)
RGB_SPACE, UNSPECIFIED = 0, 2  # among H.273's matrix coefficients
BT601 = (0.299, 0.114)
RED_AND_BLUE = {
    1: (0.2126, 0.0722), 4: (0.3, 0.11), 5: BT601, 6: BT601, 7: (0.212, 0.087), 9: (0.2627, 0.0593),
}  # fmt: skip
"""Their shares in luma by H.273's matrix coefficients."""


class Levels(NamedTuple):
    """What samples of YUV mean."""

    black: int
    luma: int
    """From black to white."""
    gray: int
    """Of chroma."""
    chroma: int
    """From -1/2 to 1/2."""
    most: int

    @classmethod
    def of(cls, form: Any, value_range: int) -> "Levels":
        """For a pixel format, and a range, which is limited unless it is tagged as full."""
        unit = 2 ** (depth(form) - 8)
        most = 256 * unit - 1
        if value_range == ColorRange.JPEG:
            return cls(0, most, 128 * unit, most, most)
        return cls(16 * unit, 219 * unit, 128 * unit, 224 * unit, most)


def to_rgb(frame: Any) -> np.ndarray:
    """The frame as float32 `[H, W, 3]` in [0, 1]."""
    form = frame.format
    if form.is_rgb:  # always of full range, regardless of its tag
        wide = depth(form) > 8
        samples: Any = _resampled(frame, "rgb48le" if wide else "rgb24", RGB_SPACE, ColorRange.JPEG).to_ndarray()
        return np.asarray(samples / np.float32(65535 if wide else 255))
    space = matrix(frame.colorspace)
    levels, (red, blue) = Levels.of(form, frame.color_range), RED_AND_BLUE[space]
    planes = _planes(_resampled(frame, _unsampled(form), space, frame.color_range))
    y, cb, cr = (plane.astype(np.float32) for plane in planes)
    luma = (y - levels.black) / levels.luma
    blueness = (cb - levels.gray) * (2 * (1 - blue) / levels.chroma)
    redness = (cr - levels.gray) * (2 * (1 - red) / levels.chroma)
    green = luma - (red * redness + blue * blueness) / (1 - red - blue)
    return np.stack([luma + redness, green, luma + blueness], axis=2).clip(0, 1)


def from_rgb(rgb: np.ndarray, pix_fmt: str, value_range: int, colour_space: int) -> Any:
    """A frame of this pixel format, range and matrix from float32 `[H, W, 3]` in [0, 1]."""
    form, space = av.VideoFormat(pix_fmt), matrix(colour_space)
    if form.is_rgb:
        wide = depth(form) > 8
        samples: Any = np.rint(rgb * np.float32(65535 if wide else 255)).astype(np.uint16 if wide else np.uint8)
        frame = av.VideoFrame.from_ndarray(samples, format="rgb48le" if wide else "rgb24")
        return _resampled(frame, pix_fmt, space, ColorRange.JPEG)
    value_range = ColorRange.JPEG if value_range == ColorRange.JPEG else ColorRange.MPEG
    levels, (red, blue) = Levels.of(form, value_range), RED_AND_BLUE[space]
    r, g, b = (rgb[:, :, channel] for channel in range(3))
    luma = red * r + (1 - red - blue) * g + blue * b
    cb = (b - luma) * (levels.chroma / (2 * (1 - blue))) + levels.gray
    cr = (r - luma) * (levels.chroma / (2 * (1 - red))) + levels.gray
    frame = av.VideoFrame(rgb.shape[1], rgb.shape[0], _unsampled(form))
    for plane, place in zip((luma * levels.luma + levels.black, cb, cr), _planes(frame), strict=True):
        place[:] = np.rint(plane).clip(0, levels.most)
    return _resampled(frame, pix_fmt, space, value_range)


def depth(form: Any) -> int:
    """Bits per sample that a frame in this pixel format is converted with; one of 1 bit has 8, one of float 16."""
    return min(max(int(form.components[0].bits), 8), 16)


def matrix(colour_space: int) -> int:
    """The matrix coefficients that a clip with this tag is converted with."""
    return colour_space if colour_space in RED_AND_BLUE else int(Colorspace.ITU601)


def _resampled(frame: Any, pix_fmt: str, space: int, value_range: int) -> Any:
    """The frame in another pixel format of the same depth, with the values that it has."""
    return frame.reformat(
        format=pix_fmt,
        src_colorspace=space,
        dst_colorspace=space,
        src_color_range=value_range,
        dst_color_range=value_range,
        interpolation=SCALING,
    )


def _unsampled(form: Any) -> str:
    """The pixel format with the same depth and as much chroma as luma."""
    return "yuv444p" if depth(form) == 8 else f"yuv444p{depth(form)}le"


def _planes(frame: Any) -> list[np.ndarray]:
    """The samples of luma and chroma, which may be written to."""
    dtype = np.dtype(np.uint8 if depth(frame.format) == 8 else "<u2")
    rows = (np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize) for plane in frame.planes)
    return [row[: frame.height, : frame.width] for row in rows]
