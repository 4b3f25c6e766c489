"""Say why there is no file or folder at a path."""

import stat
from pathlib import Path

KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""What a path leads to, by the type in its mode."""


def absent(what: str, path: Path) -> str:
    """`there is no WHAT PATH`, or `PATH: a pipe, not a WHAT` if something else is there. Only regular files are
    opened, since reading a pipe would wait for a writer, and a device may have no end."""
    try:
        kind = KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except (OSError, ValueError):
        kind = "a link without a target" if path.is_symlink() else None
    return f"there is no {what} {path}" if kind is None else f"{path}: {kind}, not a {what}"
