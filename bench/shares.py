"""Divide work among several processes, so that a crash of one does not affect the others.

Each process receives its share, `--share PLACE/OF`, and the names of the pieces that are done already, one per line of
the file `--done FILE`. It prints `BEGIN name` before each piece and `PASSED name`, `SKIPPED name: why` or `FAILED name:
why` after it, and `COMPLETE` at the end. After a crash, or if a piece hangs, another process continues with the rest.
"""

import math
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench.parts import Command

HANGS, STARTS = 90.0, 180.0
"""Seconds without output after which a piece, or a process before its first piece, is considered hung."""
OUTCOMES = ("PASSED", "FAILED", "SKIPPED")


def run_shares(command: list[str], processes: int, end: float = math.inf) -> dict[str, int]:
    """Run the command in several processes; returns the number of pieces by `OUTCOMES`, and of `broken` and `cut`
    shares.

    A share is broken if a process ended early outside any piece, and cut if it was not complete at `end`, in
    `time.monotonic`, when its process is killed.
    """
    shares = [Share([*command, "--share", f"{place}/{processes}"], end) for place in range(processes)]
    threads = [threading.Thread(target=share.run) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends = [end for share in shares for end in share.ends.values()]
    states = {state: sum(getattr(share, state) for share in shares) for state in ("broken", "cut")}
    return {end: ends.count(end) for end in OUTCOMES} | states


class Share:
    """One share, run in as many consecutive processes as necessary."""

    _printing = threading.Lock()

    def __init__(self, command: list[str], end: float) -> None:
        self.ends: dict[str, str] = {}
        """Outcome (one of `OUTCOMES`) by piece."""
        self.broken = self.cut = False
        self._command, self._end, self._complete, self._piece = command, end, False, ""

    def run(self) -> None:
        while not (self._complete or self.broken or self.cut):
            ended = len(self.ends)
            self._run_what_is_left()
            self.cut = not self._complete and time.monotonic() >= self._end
            self.broken = not (self._complete or self.cut) and len(self.ends) == ended

    def _run_what_is_left(self) -> None:
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        with tempfile.TemporaryDirectory() as folder:
            done = Path(folder) / "done.txt"
            done.write_text("\n".join(self.ends), encoding="utf-8")
            # In this process's group, so that killing the group kills all.
            command = Command([*self._command, "--done", str(done)], lines.put, grouped=False)
            heard = now = time.monotonic()
            while command.process.poll() is None and now < min(self._end, heard + (HANGS if self._piece else STARTS)):
                try:
                    self._hear(lines.get(timeout=0.1))
                    heard = time.monotonic()
                except queue.Empty:
                    pass
                now = time.monotonic()
            status = command.wait(0)
        while not lines.empty():
            self._hear(lines.get())
        if self._piece and not (status == "out of time" and now >= self._end):
            why = f"no output for {HANGS:.0f} seconds" if status == "out of time" else f"its process {status}"
            self._hear(f"FAILED {self._piece}: {why}")

    def _hear(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "BEGIN":
            self._piece = rest
        elif line == "COMPLETE":
            self._complete = True
        else:
            if word in OUTCOMES:
                # A piece's name may itself contain ": ".
                self.ends[self._piece or rest.partition(": ")[0]] = word
                self._piece = ""
            with self._printing:
                print(line, flush=True)


def say(text: str) -> None:
    """Print a line of the protocol and flush it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
