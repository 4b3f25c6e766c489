"""Synthesis of blurred and sharp images from photographs and frames. Nothing here reads a file.

`paths`: motion. `scenes`: text, patterns, softness. `camera`: noise, mosaic, JPEG. `exposure`: all of them combined.
"""

from lmfn.data.synthesis.exposure import (
    Exposure,
    Image,
    Mean,
    blur_photo,
    draw_frame_count,
    expose,
    mean_of_frames,
    mean_of_windows,
    mirrored,
)

__all__ = [
    "Exposure",
    "Image",
    "Mean",
    "blur_photo",
    "draw_frame_count",
    "expose",
    "mean_of_frames",
    "mean_of_windows",
    "mirrored",
]
