"""`python -m bench VERB`: the cost of the ops and of the network, compared with the alternatives.

Without --out, ops, model, train and memory only print what they measure; with it, each row is appended to
OUT/VERB.jsonl at once.
"""

import argparse
import sys
import time
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

MEASURING = {
    "ops": ("bench.ops", "the ops with all providers"),
    "model": ("bench.model", "the whole network on one photograph, and its parts"),
    "train": ("bench.train", "a training step of the network"),
    "memory": ("bench.memory", "memory and time by image size, batch, maps and channels"),
}
OTHERS = {
    "resources": (
        "bench.resources",
        "registers, spills, shared memory and matrix instructions of every kernel, without a GPU",
    ),
    "host": ("bench.host", "launches of every op, a frame and a training step, and their host time"),
    "profile": ("bench.profile", "a frame and a training step kernel by kernel: shape, launches, time, roofline"),
    "windows": ("bench.windows", "what attention in windows costs in one photograph"),
    "tune": ("bench.tune", "time launch configs on this GPU and write lmfn_kernels/configs/<gpu>.json"),
    "all": (
        "bench.all",
        "model, train, memory and ops within --minutes; on a GPU also ahead, tests, profile, trial, host and tune",
    ),
    "report": ("bench.report", "make tables and plots from rows, and fill the tables in the docs"),
    "submit": ("bench.submit", "check a folder of rows and collect it in one file for a pull request"),
    "ahead": ("bench.ahead", "compile the kernels of tests and benchmarks for this GPU, in as many processes as cores"),
    "tests": ("bench.gpu_tests", "run the GPU tests in several processes, so that a crash does not affect the others"),
    "trial": ("bench.trial", "test the kernels on trial, and measure a frame and a step with those that passed"),
    "compare": ("bench.compare", "compare two files of rows, or two commits, and tell differences from noise"),
}
"""Verb: its module (with `add_arguments` and `run`) and its help. Modules are imported on use, since each needs
packages that not every machine has."""

WITHOUT_TF32 = {*MEASURING, "profile", "windows", "tune", "ahead"}
"""The bounds, and the tests whose kernels are compiled ahead, are for float32."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    asked = (arguments if arguments is not None else sys.argv[1:])[:1]
    for verb, (module, does) in (MEASURING | OTHERS).items():
        sub = verbs.add_parser(verb, help=does, description=does)
        if [verb] != asked:
            continue
        if verb in MEASURING:
            sub.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
            sub.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's")
            sub.add_argument("--rounds", type=int, default=20, help="timed calls per provider")
            sub.add_argument(
                "--minutes", type=float, default=float("inf"), help="start no new measurement after this time"
            )
            sub.add_argument("--out", type=Path, help="folder; rows are appended to OUT/VERB.jsonl")
            sub.add_argument(
                "--turns", action="store_true", help="print a line and wait for one on stdin before timing anything"
            )
        import_module(module).add_arguments(sub)
    options = parser.parse_args(arguments)
    try:
        if options.verb in WITHOUT_TF32:
            import torch

            torch.backends.cudnn.allow_tf32 = False
        if options.verb in MEASURING:
            return measure(options)
        done: int = import_module(OTHERS[options.verb][0]).run(options)
        return done
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def measure(options: argparse.Namespace) -> int:
    """Run a measuring verb; 1 if a result was wrong."""
    import torch

    from bench.devices import device
    from bench.measure import Session
    from bench.rows import RowFile

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True  # cuDNN may search for its fastest algorithm
    with ExitStack() as stack:
        file = stack.enter_context(RowFile(options.out / f"{options.verb}.jsonl")) if options.out else None
        end = time.monotonic() + 60 * options.minutes
        session = Session(device(options.device), file, options.rounds, end, options.turns)
        import_module(MEASURING[options.verb][0]).run(session, options)
    return 1 if session.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
