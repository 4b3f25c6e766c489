"""Synthesis of blurred and sharp images from photographs and frames. Nothing here reads a file.

`paths`: motion. `scenes`: text, patterns, softness. `camera`: noise, mosaic, JPEG. `exposure`: all of them combined.
"""

from lmfn.data.synthesis.exposure import (
    Exposure,
    Image,
    Mean,
    Photographs,
    Runs,
    blur_photo,
    draw_frame_count,
    mean_of_frames,
    mirrored,
    synthesise,
)

__all__ = [
    "Exposure",
    "Image",
    "Mean",
    "Photographs",
    "Runs",
    "blur_photo",
    "draw_frame_count",
    "mean_of_frames",
    "mirrored",
    "synthesise",
]
