"""Files that are there whole or not at all."""

import os
from pathlib import Path

LONGEST_NAME = 255  # bytes, in nearly every file system


def write(path: Path, content: bytes) -> None:
    """Write beside, flush to the disk, rename: a full disk or a kill leaves the old file or the new one, whole.

    Folders are made as needed. Raises OSError, which names `path` also where the disk is full.
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
        if error.filename is None:  # a write that failed does not know its file
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what `write` left in a folder when its process was killed; no other process may be writing there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
