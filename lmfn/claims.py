"""Claims on results in progress, so that a file that kills its process does not do so repeatedly.

A scheduler replaces a dead process and gives the new one the same file. Each attempt therefore adds a line to a claim
file next to the result, which is removed when the attempt ends, successfully or not: remaining claims are from
processes that died.
"""

import functools
import hashlib
import os
import socket
from pathlib import Path

import psutil

MOST_DEATHS = 2
"""Number of processes that may die at a file before it is given up."""


class Claim:
    """The claim file of a result."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.claim")

    def deaths(self) -> int:
        """The number of processes that died at it; those of other hosts are assumed dead."""
        return sum(not _is_alive(*attempt) for attempt in self._attempts())

    def take(self) -> None:
        """Begin an attempt; removes partial results of dead processes on this host. Raises OSError."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        for host, process, _ in self._attempts():
            if host == socket.gethostname() and process != os.getpid():
                for leftover in self.target.parent.glob(f".*.{process}.tmp"):
                    leftover.unlink(missing_ok=True)
        line = f"{socket.gethostname()} {os.getpid()} {_created(os.getpid()):.2f} {self.target.name}\n"
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(file, line.encode(errors="surrogateescape"))
        finally:
            os.close(file)

    def release(self) -> None:
        """End the attempt."""
        self.path.unlink(missing_ok=True)

    def renew(self) -> None:
        """Forget the earlier attempts, since this one got further."""
        self.release()
        self.take()

    def _attempts(self) -> list[tuple[str, int, float]]:
        try:
            lines = self.path.read_text(errors="surrogateescape").splitlines()
        except FileNotFoundError:
            return []
        words = [line.split(" ", 3) for line in lines]
        return [(host, int(process), float(created)) for host, process, created, _ in words]


@functools.lru_cache(maxsize=1)
def _created(process: int) -> float:
    """Start time of this process, since process ids are reused."""
    return float(psutil.Process(process).create_time())


def _is_alive(host: str, process: int, created: float) -> bool:
    if host != socket.gethostname():
        return False
    try:
        return bool(abs(psutil.Process(process).create_time() - created) < 1)
    except psutil.Error:
        return False
