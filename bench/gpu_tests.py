"""Run the GPU tests in several processes, the most informative first: `python -m bench tests`.

After a CUDA error, which makes every later call of the process fail, after a crash, and if a test hangs, another
process continues with the remaining tests. pytest-xdist, which a machine that only measures may lack, would let a
worker with a dead CUDA context fail all its other tests, and cannot recover one that is stuck in a kernel.
"""

import argparse
import os
import sys

from bench.shares import run_shares


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", default=["tests/gpu"], help="default: tests/gpu")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))


def run(options: argparse.Namespace) -> int:
    """1 if a test failed or none ran."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # what is installed makes no difference
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-qq", "--tb=short", "--no-summary"]
    command += ["-p", "no:cacheprovider", "-p", "bench.pytest_share", *options.paths]
    found = run_shares(command, options.processes)
    print(f"{found['PASSED']} passed, {found['FAILED']} failed, {found['SKIPPED']} skipped", flush=True)
    return 0 if found["PASSED"] and not found["FAILED"] and not found["broken"] else 1
