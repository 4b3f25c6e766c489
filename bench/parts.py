"""Run commands with time limits one after the other, and others in the background that wait for their turn to time.

Each command is a process group of its own, so one that crashes, hangs or prints endlessly does not affect the others. A
background command prints `WAITING` when it is ready to time something, reads a line before it does, and prints `TIMED`
afterwards. While a part is timed, all background commands are stopped.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

ROOT = Path(__file__).parents[1]
LEAST_SECONDS = 5.0
"""A part that would get less is not started."""
TURN_SECONDS = 60.0
"""A background command that takes longer for one turn is killed."""
LONGEST_LINE, MOST_BYTES = 10_000, 2**20
"""Characters shown per line and per command; the rest is only counted."""
WAITING, TIMED = "[waits for its turn]", "[timed]"


class Part(NamedTuple):
    """A share of the time, and a command that takes the number of minutes it may use.

    Without a command the time belongs to the background commands.
    """

    name: str
    share: float
    command: Callable[[float], list[str]] | None
    timed: bool = True
    """Whether the part times something, so that background commands must be stopped meanwhile."""
    least: float = 0.0
    """Seconds without which the part has no result: it gets them if they are left, and is not started otherwise."""


class Outcome(NamedTuple):
    name: str
    status: str
    """`done`, `failed with 1`, `died of SIGABRT`, `out of time` or `not started`."""
    seconds: float

    @property
    def failed(self) -> bool:
        return self.status.startswith(("failed", "died"))


class Log:
    """Writes lines to the console and to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._file = self.path.open("w", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def say(self, text: str) -> None:
        with self._lock:
            print(text, flush=True)
            if not self._file.closed:  # a killed command may still print
                self._file.write(text + "\n")
                self._file.flush()


class Command:
    """A running command; `heard` receives each line that it prints, from a separate thread.

    `grouped`: it runs in a process group of its own. `answered`: its stdin can be written to.
    """

    def __init__(
        self, command: list[str], heard: Callable[[str], None], *, grouped: bool = True, answered: bool = False
    ) -> None:
        self.began = time.monotonic()
        self._heard, self._grouped, self._bytes, self._left_out = heard, grouped, 0, 0
        # A group, not a session, so that ending the session of the run ends all of it.
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE if answered else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0 if grouped else None,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def _read(self) -> None:
        assert self.process.stdout is not None
        descriptor, rest = self.process.stdout.fileno(), b""
        while chunk := os.read(descriptor, 2**16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._line(line)
            if len(rest) > LONGEST_LINE:
                self._line(rest)
                rest = b""
        if rest:
            self._line(rest)
        if self._left_out:
            self._heard(f"... {self._left_out} more lines")

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2][:LONGEST_LINE]
        self._bytes += len(text) + 1
        if self._bytes <= MOST_BYTES:
            self._heard(text)
        else:
            self._left_out += 1

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the group, or to this process alone if it has no group of its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._grouped:
                os.killpg(self.process.pid, number)
            elif self.process.poll() is None:
                os.kill(self.process.pid, number)

    def wait(self, seconds: float) -> str:
        """Wait until it ends, or kill it after the time limit; returns its status, as in `Outcome`."""
        status = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self.process.wait(max(0.0, seconds))
        finally:
            self.kill()
        if status is None:
            return "out of time"
        return (
            "done"
            if status == 0
            else f"died of {signal.Signals(-status).name}"
            if status < 0
            else f"failed with {status}"
        )

    def kill(self) -> None:
        """Kill the command and all processes that it started."""
        self.signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process stuck in a driver may not die at once
            self.process.wait(10)
        self._reader.join(2)  # a process that left the group may keep the pipe open


class Beside:
    """A background command."""

    def __init__(self, name: str, command: list[str], say: Callable[[str], None]) -> None:
        self.name, self._say = name, say
        self._changed = threading.Condition()
        self._state = "working"  # or "waiting" for its turn, or "timing"
        self.outcome: Outcome | None = None
        self._command = Command(command, self._hear, answered=True)
        with contextlib.suppress(OSError):  # the parts have priority
            os.setpriority(os.PRIO_PROCESS, self._command.process.pid, 19)

    def _hear(self, line: str) -> None:
        if line in (WAITING, TIMED):
            with self._changed:
                self._state = "waiting" if line == WAITING else "working"
                self._changed.notify_all()
        self._say(line)

    @property
    def running(self) -> bool:
        if self.outcome is None and self._command.process.poll() is not None:
            self.stop()
        return self.outcome is None

    @property
    def waits(self) -> bool:
        return self._state == "waiting" and self.running

    def pause(self) -> None:
        if self.running:
            self._command.signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self.running:
            self._command.signal(signal.SIGCONT)

    def take_turn(self, seconds: float) -> None:
        """Let it time one measurement; it is killed if that takes too long."""
        assert self._command.process.stdin is not None
        end = time.monotonic() + seconds
        self._state = "timing"
        try:
            self._command.process.stdin.write(b"\n")
            self._command.process.stdin.flush()
        except OSError:  # it has just ended
            return
        with self._changed:
            while self._state == "timing" and self.running and time.monotonic() < end:
                self._changed.wait(0.1)
        if self._state == "timing":
            self.stop()

    def stop(self) -> None:
        """Record the outcome, and kill what still runs."""
        if self.outcome is None:
            self.outcome = Outcome(self.name, self._command.wait(0), self._command.seconds)


def take_turns(others: Sequence[Beside], end: float) -> None:
    """Let waiting commands time their measurements, one at a time and with everything else stopped."""
    for one in others:
        left = end - time.monotonic()
        if one.waits and left > 0:
            for other in others:
                if other is not one:
                    other.pause()
            one.take_turn(min(TURN_SECONDS, left))
            for other in others:
                other.resume()


def give_time(others: Sequence[Beside], seconds: float) -> float:
    """Let background commands work and time until all have ended or time is up; returns the seconds it took."""
    began = time.monotonic()
    while (left := began + seconds - time.monotonic()) > 0 and any(one.running for one in others):
        take_turns(others, began + seconds)
        time.sleep(min(0.1, left))
    return time.monotonic() - began


def run_parts(
    seconds: float,
    todo: Sequence[Part],
    log: Log,
    *,
    beside: Sequence[Part] = (),
    hear: Callable[[str, str], None] = lambda _part, _line: None,
    report: Callable[[list[Outcome]], None] = lambda _outcomes: None,
) -> list[Outcome]:
    """Run the parts, each with its share of the remaining time, and `beside` in the background; the outcome of each.
    A background command that would not have its least time is left out.

    `hear` receives every line with the name of its part; `report` the outcomes so far, after each part.
    """
    end = time.monotonic() + seconds
    outcomes: list[Outcome] = []

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        log.say(f"{outcome.name}: {outcome.status}, {outcome.seconds:.0f} seconds")
        report(outcomes)

    def say(name: str, before: str, line: str) -> None:
        hear(name, line)
        log.say(before + line)

    others = [
        Beside(part.name, part.command(0.8 * seconds / 60), partial(say, part.name, f"{part.name}: "))
        for part in beside
        if part.command and seconds >= part.least
    ]
    try:
        for place, part in enumerate(todo):
            take_turns(others, end)
            left = end - time.monotonic()
            mine = left * part.share / sum(one.share for one in todo[place:])
            mine = max(mine, min(part.least, left))
            if mine < max(part.least, LEAST_SECONDS):
                note(Outcome(part.name, "not started", 0.0))
                continue
            log.say(f"{part.name}: {mine:.0f} seconds of {left:.0f}")
            if part.command is None:
                note(Outcome(part.name, "done", give_time(others, mine)))
                continue
            for one in others if part.timed else ():
                one.pause()
            # A part is told four fifths of its time, after which it starts nothing new, and finishes in the last fifth.
            running = Command(part.command(0.8 * mine / 60), partial(say, part.name, ""))
            status = running.wait(mine)
            for one in others:
                one.resume()
            note(Outcome(part.name, status, running.seconds))
        give_time(others, end - time.monotonic())
    finally:
        for one in others:
            one.stop()
            assert one.outcome is not None
            note(one.outcome)
    return outcomes
