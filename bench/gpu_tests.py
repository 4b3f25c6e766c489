"""The GPU's tests in several processes, the most telling first: `python -m bench tests`.

After a CUDA error, which no later call of its process survives, after a crash, and where a test hangs, another process
goes on with the tests that are left. pytest-xdist, which a machine that only measures may lack, leaves a worker with a
dead CUDA context to fail all its other tests, and cannot free one that a kernel holds.
"""

import argparse
import os
import sys

from bench.shares import run_shares


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", default=["tests/gpu"], help="default: tests/gpu")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))


def run(options: argparse.Namespace) -> int:
    """1 where a test failed or none ran."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # what is installed makes no difference
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-qq", "--tb=short", "--no-summary"]
    command += ["-p", "no:cacheprovider", "-p", "bench.pytest_share", *options.paths]
    found = run_shares(command, options.processes)
    print(f"{found['PASSED']} passed, {found['FAILED']} failed, {found['SKIPPED']} skipped", flush=True)
    return 0 if found["PASSED"] and not found["FAILED"] and not found["broken"] else 1
