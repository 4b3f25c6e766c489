"""The file name suffixes of clips."""

from pathlib import Path

WRITABLE = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
READABLE = (
    *WRITABLE,
    *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2t", ".m2ts", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".ogm", ".ogv", ".qt", ".rm", ".ts", ".vob", ".wmv", ".wtv"),
)


class VideoError(ValueError):
    """A clip cannot be read or written. The message names the file and the reason."""


class UnusableClipError(VideoError):
    """The clip itself is at fault, so that trying again does not help."""


def address(path: Path) -> str:
    """The file for FFmpeg's libraries, which take 12:30.mp4 for one of the protocol 12, and http:a.mp4 for a page."""
    return str(path.absolute())


def is_clip(path: Path) -> bool:
    """Whether the file is a clip, by its suffix."""
    return path.suffix.lower() in READABLE
