"""Memory available to this process: free memory, limited by its container."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import torch


class Limit(NamedTuple):
    """A control group's limit on memory, in bytes."""

    limit: int
    used: int
    """Bytes in use, without the file cache, which the kernel reclaims when memory is short."""
    source: Path
    """The file that contains the limit."""


def container_limit(root: Path = Path("/")) -> Limit | None:
    """The limit that leaves this process the least memory, or None without a limit (always None outside Linux).

    Reads control groups of both versions, including the parents of the process's own, since a container may see its
    limit in either place. `root` is the root of the file system.
    """
    limits = list(_limits(root))
    return min(limits, key=lambda found: found.limit - found.used) if limits else None


def available(root: Path = Path("/")) -> int:
    """Bytes that this process can still take without swapping: of the machine's memory, of what its container allows
    and of its own limit (`ulimit -v`)."""
    free = [int(psutil.virtual_memory().available)]
    if (container := container_limit(root)) is not None:
        free.append(container.limit - container.used)
    if sys.platform == "linux":
        process = psutil.Process()
        limit, _ = process.rlimit(psutil.RLIMIT_AS)
        if limit != psutil.RLIM_INFINITY:
            free.append(limit - process.memory_info().vms)
    return max(0, min(free))


def available_memory(device: torch.device) -> int | None:
    """Available bytes on the device; None if unknown (mps)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch has reserved but does not use is free.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available() if device.type == "cpu" else None


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(psutil.Process().memory_info().rss)


def scratch_folder(size: int) -> Path:
    """A folder for a scratch file of so many bytes: that for temporary files (`TMPDIR`), /var/tmp, or this one.

    What is in memory itself (tmpfs) is none. Raises MemoryError where no folder has the room.
    """
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    for folder in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()):
        places = (folder.resolve(), *folder.resolve().parents)
        kind = next((mounts[str(place)] for place in places if str(place) in mounts), "")
        if folder.is_dir() and kind not in ("tmpfs", "ramfs") and shutil.disk_usage(folder).free > size:
            return folder
    raise MemoryError(
        f"a scratch file of {size / 1e9:.1f} GB is needed; set TMPDIR to a folder on a disk with the room"
    )


def control_groups(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """The folders of the control groups of this process, innermost first, and the version (1 or 2) of each."""
    listed = root / "proc/self/cgroup"
    for line in listed.read_text().splitlines() if listed.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, version = root / "sys/fs/cgroup", 2
        elif controller in controllers.split(","):
            top, version = root / "sys/fs/cgroup" / controller, 1
        else:
            continue
        # In a container the path is often that of the host, and its own group is the visible root.
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            yield folder, version
            if folder == top:
                break


def _limits(root: Path) -> Iterator[Limit]:
    for folder, version in control_groups("memory", root):
        if version == 2:
            found = _limit(folder, "memory.max", "memory.current", "inactive_file")
        else:
            found = _limit(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if found is not None:
            yield found


def _limit(folder: Path, limit: str, used: str, cache: str) -> Limit | None:
    try:
        allowed = (folder / limit).read_text().strip()
        now = int((folder / used).read_text())
    except OSError:
        return None
    # "max", or in version 1 a number close to 2^63, is no limit.
    if allowed == "max" or int(allowed) >= 2**60:
        return None
    statistics = folder / "memory.stat"
    lines = statistics.read_text().splitlines() if statistics.is_file() else []
    return Limit(int(allowed), max(0, now - int(dict(map(str.split, lines)).get(cache, 0))), folder / limit)
