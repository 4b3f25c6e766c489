"""Atomic file writes."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LONGEST_NAME = 255  # bytes, in nearly every file system


def beside(path: Path, ending: str) -> Path:
    """A hidden path next to `path`, for something temporary: its name and this ending, or a digest of a name that would
    become too long."""
    name = f".{path.name}{ending}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}{ending}"
    return path.with_name(name)


def write(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write the content, or its parts, to a temporary file, flush it to disk, and rename it, so that a full disk or a
    kill leaves the old file intact.

    Folders are created as needed. Raises OSError, which names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = beside(path, f".{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # in a read-only file system it would replace the error that names `path`
            unfinished.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of `write` left by killed processes; no other process may be writing there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
