"""Atomic file writes."""

import os
from pathlib import Path

LONGEST_NAME = 255  # bytes, in nearly every file system


def write(path: Path, content: bytes) -> None:
    """Write to a temporary file, flush it to disk, and rename it, so that a full disk or a kill leaves the old file
    intact.

    Folders are created as needed. Raises OSError, which names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = f".{os.getpid()}.tmp"
    name = os.fsencode(path.name)[: LONGEST_NAME - 1 - len(ending)].decode(errors="ignore")
    beside = path.with_name(f".{name}{ending}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if error.filename is None:  # the error of a failed write does not name its file
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of `write` left by killed processes; no other process may be writing there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
