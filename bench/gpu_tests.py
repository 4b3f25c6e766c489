"""Run the GPU tests in several processes, the most informative first: `python -m bench tests`.

If a process crashes, a test hangs, or a CUDA error makes all later calls of the process fail, another process
continues with the remaining tests. pytest-xdist, which may not be installed on a machine that only measures, would let
a worker with a dead CUDA context fail all its other tests, and cannot replace one that is stuck in a kernel.
"""

import argparse
import math
import os
import sys
import time

from bench.shares import run_shares


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", default=["tests/gpu"], help="default: tests/gpu")
    parser.add_argument("-k", dest="expression", default="", help="only tests whose names match, as pytest's -k")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--minutes", type=float, default=math.inf, help="end then, whatever still runs")


CUT, NONE = 3, 5
"""The exit status if no test failed, but not all had ended when the time was up, and if there was no test."""


def run(options: argparse.Namespace) -> int:
    """1 if a test failed, or all were skipped."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # so that installed plugins make no difference
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-qq", "--tb=short", "--no-summary"]
    command += ["-p", "no:cacheprovider", "-p", "bench.pytest_share", "-k", options.expression, *options.paths]
    found = run_shares(command, options.processes, time.monotonic() + 60 * options.minutes)
    cut = ", then the time was up" if found["cut"] else ""
    print(f"{found['PASSED']} passed, {found['FAILED']} failed, {found['SKIPPED']} skipped{cut}", flush=True)
    if found["FAILED"] or found["broken"]:
        return 1
    if found["cut"]:
        return CUT
    return 0 if found["PASSED"] else 1 if found["SKIPPED"] else NONE
