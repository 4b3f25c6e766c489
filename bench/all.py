"""Everything within some minutes, the most telling first: `python -m bench all`.

On a GPU its tests, then tuning, then the ops and the network; on a CPU the network, then the ops. Each part is a
process of its own with a share of the time that is left: one that fails or hangs takes no other with it. Rows are on
the disk as soon as they are measured, so time that runs out loses nothing.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LEAST_SECONDS = 5.0


class Part(NamedTuple):
    """A share of the time, and a command that is given minutes to keep to, or none and is stopped."""

    name: str
    share: float
    command: Callable[[float], list[str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--out", type=Path, help="where all results go; default: bench/results/<device>")


def parts(device: str, out: Path) -> list[Part]:
    def verb(name: str, share: float, *more: str) -> Part:
        def command(minutes: float) -> list[str]:
            options = ["--device", device, "--minutes", f"{minutes:.3f}", "--out", str(out)]
            return [sys.executable, "-m", "bench", name, *options, *more]

        return Part(name, share, command)

    if device == "cpu":
        few = ("--rounds", "5")
        return [verb("model", 3, *few), verb("train", 1, *few), verb("memory", 2.5, *few), verb("ops", 4, *few)]
    tests = Part("tests", 2, lambda _: [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu"])
    return [tests, verb("tune", 1.5), verb("ops", 3), verb("model", 1.5), verb("train", 1.5), verb("memory", 1)]


def run(options: argparse.Namespace) -> int:
    from bench.devices import device, folder_name

    on = device(options.device)
    out = (options.out or ROOT / "bench" / "results" / folder_name(on.name)).resolve()
    out.mkdir(parents=True, exist_ok=True)
    return within(60 * options.minutes, parts(on.kind, out), out / "log.txt")


def stopped_after(seconds: float, command: list[str], say: Callable[[str], None]) -> str:
    """How a command ended: `done` where all was well. It and all that it started are killed when its time is over."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        timer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            for line in process.stdout:
                say(line.rstrip())
            status = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return {0: "done", -signal.SIGKILL: "stopped, its time was over"}.get(status, f"failed with {status}")


def within(seconds: float, todo: list[Part], log: Path) -> int:
    """Run the parts, each with its share of what is left; the number of those that failed, for want of time apart.

    What they print is shown, and kept in `log`.
    """
    end, failed = time.monotonic() + seconds, 0
    with log.open("w", encoding="utf-8") as file:

        def say(text: str) -> None:
            print(text, flush=True)
            file.write(text + "\n")
            file.flush()

        for place, part in enumerate(todo):
            left = end - time.monotonic()
            mine = left * part.share / sum(one.share for one in todo[place:])
            if mine < LEAST_SECONDS:
                say(f"{part.name}: out of time, not begun")
                continue
            say(f"{part.name}: {mine:.0f} seconds of {left:.0f}")
            began = time.monotonic()
            # A part begins nothing after four fifths of its time, and has the last one to end what it has begun.
            status = stopped_after(mine, part.command(0.8 * mine / 60), say)
            say(f"{part.name}: {status}, {time.monotonic() - began:.0f} seconds")
            failed += status.startswith("failed")
    return failed
