"""All benchmarks within a time limit, the most informative first: `python -m bench all`.

Each part is a process of its own with a share of the remaining time, so a part that fails, crashes or hangs does not
affect the others. Rows, the table of kernels, the log and a summary are written as soon as they are known.

On a CPU: the network, a training step, growth, the ops. On a GPU all kernels are compiled first, on all cores; then
follow the tests, the frame and the step against eager PyTorch, their kernels, the same with the kernels on trial, the
ops, growth and tuning. What torch.compile takes minutes to compile is compiled in the background and timed between the
parts once it is ready.
"""

import argparse
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.parts import ROOT, Log, Part, run_parts
from bench.summary import Summary

# Not imported: a defect in the measured code must not end this process.
FRAME, STEP, OTHER_FRAMES = "1x720x1280", "16x256x256", ("8x720x1280", "1x2160x3840")
OPS = ("rfdb", "layer_attention", "channel_gate", "conv3x3")
Command = Callable[[float], list[str]]
"""A command line for the given number of minutes."""

EAGER, COMPILED = ("triton", "torch", "eager", "eager-channels-last"), ("compile", "compile-max-autotune")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--out", type=Path, help="folder for all results; default: bench/results/<device>")


def parts(device: str, out: Path) -> tuple[list[Part], list[Part]]:
    """The parts that run one after the other, and those in the background."""

    def bench(verb: str, *more: str, forwarded: tuple[str, ...] = ("device", "minutes", "out")) -> Command:
        def command(minutes: float) -> list[str]:
            options = {"device": device, "minutes": f"{minutes:.3f}", "out": str(out)}
            words = [word for name in forwarded for word in (f"--{name}", options[name])]
            return [sys.executable, "-m", "bench", verb, *words, *more]

        return command

    if device == "cpu":
        few = ("--rounds", "5")
        shares = {"model": 3, "train": 1, "memory": 2.5, "ops": 4}
        return [Part(verb, share, bench(verb, *few)) for verb, share in shares.items()], []
    frame, step, ops = ("model", "--shape", FRAME), ("train", "--shape", STEP), ("ops", "--op", *OPS)
    # What is checked in float64 takes half a minute until its first row on a machine with everything still to load, and
    # the trial a minute each for its tests and for what it measures.
    todo = [
        Part("compile", 4, bench("ahead", forwarded=("minutes",)), timed=False),
        Part("tests", 2.6, bench("tests", "-k", "not on_trial", forwarded=()), timed=False, least=60),
        Part(
            "frame",
            0.8,
            bench(*frame, "--dtype", "bfloat16", "float16", "--provider", "for_inference", "for_inference-fp8", *EAGER),
            least=50,
        ),
        Part("step", 0.8, bench(*step, "--provider", "triton-graph", *EAGER), least=50),
        Part("kernels", 0.8, bench("profile", forwarded=("device", "out")), least=40),
        Part("trial", 3, bench("trial", forwarded=("minutes", "out")), least=190),
        Part("host", 0.3, bench("host", "--op", "--seconds", "0.1", forwarded=("device",)), least=20),
        Part("compiled peers", 1, None),
        Part("ops", 1.5, bench(*ops, "--provider", *EAGER), least=30),
        Part("growth", 1, bench("memory"), least=30),
        Part("sizes", 1, bench("model", "--shape", *OTHER_FRAMES, "--provider", "for_inference", *EAGER), least=30),
        Part("parts", 1, bench("model", "--units"), least=30),
        Part("tuning", 1.3, bench("tune", forwarded=("minutes", "out")), least=30),
    ]
    # Compiling with max-autotune takes longer than six minutes on sixteen cores, and slows the tests.
    beside = [
        Part("compiled frame", 1, bench(*frame, "--turns", "--provider", "for_inference", *COMPILED), least=400),
        Part("compiled step", 1, bench(*step, "--turns", "--provider", "triton-graph", *COMPILED), least=400),
        Part("compiled ops", 1, bench(*ops, "--turns", "--provider", "triton", *COMPILED), least=400),
    ]
    return todo, beside


def run(options: argparse.Namespace) -> int:
    """1 if a part or a test failed."""
    from bench.devices import device, folder_name

    on = device(options.device)
    needed = ("einops", "numpy", *(("pytest", "triton") if on.kind == "cuda" else ()))
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ValueError(f"not installed: {', '.join(missing)}; pip install {' '.join(missing)}")
    out = (options.out or ROOT / "bench" / "results" / folder_name(on.name)).resolve()
    out.mkdir(parents=True, exist_ok=True)
    make_room_for_kernels()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no command is left running
    todo, beside = parts(on.kind, out)
    summary = Summary(out, on.name, options.minutes)
    with Log(out / "log.txt") as log:
        outcomes = run_parts(60 * options.minutes, todo, log, beside=beside, hear=summary.hear, report=summary.write)
    print(summary.path.read_text(encoding="utf-8"), flush=True)
    return 1 if summary.failed(outcomes) else 0


def make_room_for_kernels() -> None:
    """The folder of Triton's cache, which all processes share: in the home folder, or elsewhere if that is not
    writable."""
    cache = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError:
        os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="triton-cache-")
