"""Sharpen video clips, frame by frame: `deblur_clip`. Needs PyAV, installed with the extra `video`.

`probing` checks a clip beforehand, `encoding` chooses how the result is encoded, `conversion` makes RGB of frames and
frames of RGB, `segments` decodes, sharpens and encodes in parallel and writes files atomically, and `joining` makes one
clip of them, with the input's other streams.
"""

from typing import TYPE_CHECKING

from lmfn.lazy import loader
from lmfn.video.suffixes import READABLE, WRITABLE, VideoError, is_clip

if TYPE_CHECKING:
    from lmfn.video.clip import ClipSummary, deblur_clip

__all__ = ["READABLE", "WRITABLE", "ClipSummary", "VideoError", "deblur_clip", "is_clip"]

__getattr__, __dir__ = loader(__name__, dict.fromkeys(("ClipSummary", "deblur_clip"), "clip"))
