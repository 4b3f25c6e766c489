"""Sharpen video clips, frame by frame: `deblur_clip`. PyAV, which it needs, is the extra `video`.

`probing` looks at a clip before any work, `encoding` chooses how the result is encoded, `segments` decodes, sharpens
and encodes side by side into files that are whole or not there, and `joining` makes one clip of them with all that was
beside the pictures.
"""

from typing import TYPE_CHECKING

from lmfn.lazy import loader
from lmfn.video.suffixes import READABLE, WRITABLE, VideoError, is_clip

if TYPE_CHECKING:
    from lmfn.video.clip import ClipSummary, deblur_clip

__all__ = ["READABLE", "WRITABLE", "ClipSummary", "VideoError", "deblur_clip", "is_clip"]

__getattr__, __dir__ = loader(__name__, dict.fromkeys(("ClipSummary", "deblur_clip"), "clip"))
