"""Which files are clips, by their names."""

from pathlib import Path

WRITABLE = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
READABLE = (*WRITABLE, ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv")


class VideoError(ValueError):
    """A clip cannot be read or written. The message names the file and the reason."""


def is_clip(path: Path) -> bool:
    """Whether the name is that of a clip."""
    return path.suffix.lower() in READABLE
