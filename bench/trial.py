"""Test the kernels on trial on a Hopper GPU, and measure a frame and a step with those that passed: `python -m bench
trial`.

The tests of each name in `lmfn_kernels/runtime/trials.py` run in a process of their own, so what crashes or hangs does
not affect the others; what has not ended in time has not passed. First come those in bfloat16, then what is measured:
OUT/on-trial has the same files as OUT, with all that passed. Last, if there is time, those that passed are tested in
float16. With a Triton newer than 3.6, all of this is with the kernels in Gluon too (`newer_triton`).
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.all import FRAME, STEP
from bench.gpu_tests import CUT, NONE
from bench.summary import ON_TRIAL_FOLDER, ON_TRIAL_LINE
from lmfn_kernels.runtime.trials import ON_TRIAL

MEASURED = (
    ("profile",),
    ("model", "--shape", FRAME, "--dtype", "bfloat16", "--provider", "for_inference", "for_inference-fp8"),
    ("train", "--shape", STEP, "--provider", "triton-graph"),
)
NEWER = "newer_triton"
FLOAT16 = "torch.float16"
"""In the names of tests; float16 alone would be in those of bfloat16, too."""
OF_TESTS = 0.6
"""The share of the time after which tests that have not ended are given up, such as one that waits for ever."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no measurement after this time")
    parser.add_argument("--out", type=Path, required=True, help="folder; what is measured is in OUT/on-trial")


def run(options: argparse.Namespace) -> int:
    """1 if a name failed, or something measured was wrong."""
    end = time.monotonic() + 60 * options.minutes
    if not torch.cuda.is_available():
        raise RuntimeError("there is no GPU that PyTorch can use here; kernels on trial run on compute capability 9.0")
    if (capability := torch.cuda.get_device_capability()) != (9, 0):
        print(f"{ON_TRIAL_LINE}nothing for compute capability {capability[0]}.{capability[1]}", flush=True)
        return 0
    environment = os.environ | {"LMFN_TRY": NEWER}
    left = [name for name in ON_TRIAL if name != NEWER]
    passed, failed = tested(left, f"not {FLOAT16}", OF_TESTS * options.minutes, environment)
    environment["LMFN_TRY"] = ",".join([NEWER, *passed])
    if passed and len(passed) < len(left):  # all together are compiled ahead by `bench all`
        few = [name for name in passed if name != "overlap"]  # as a profile has them
        tried = ({"LMFN_TRY": ",".join([NEWER, *names])} for names in (passed, few))
        for process in [started(environment | of, "ahead", "--minutes", "0.2", quiet=True) for of in tried]:
            process.wait()
    codes = []
    for verb, *words in MEASURED if passed else ():
        if time.monotonic() > end:
            print(f"{ON_TRIAL_LINE}no time left for {verb}", flush=True)
            continue
        out = str(options.out / ON_TRIAL_FOLDER)
        codes.append(started(environment, verb, "--device", "cuda", "--out", out, *words).wait())
    if passed and time.monotonic() < end:
        environment["LMFN_TRY"] = NEWER
        failed += tested(passed, FLOAT16, (end - time.monotonic()) / 60, environment)[1]
    return 1 if failed or any(codes) else 0


def tested(names: Sequence[str], which: str, minutes: float, environment: dict[str, str]) -> tuple[list[str], ...]:
    """The names whose tests passed, and those of which some failed, and say so."""
    of_each = ["--processes", "1", "--minutes", f"{minutes:.3f}"]
    tests = {name: started(environment, "tests", "-k", f"on_trial and {name} and {which}", *of_each) for name in names}
    status = {name: process.wait() for name, process in tests.items()}
    passed, cut, none = ([name for name in names if status[name] == code] for code in (0, CUT, NONE))
    failed = [name for name in names if name not in (*passed, *cut, *none)]
    ends = {"passed": passed, "failed": failed, "not ended in time": cut, "no tests": none}
    said = "; ".join(f"{end}: {', '.join(of)}" for end, of in ends.items() if of)
    print(f"{ON_TRIAL_LINE}{which}: {said}", flush=True)
    return passed, failed


def started(environment: dict[str, str], *words: str, quiet: bool = False) -> subprocess.Popen[bytes]:
    """`quiet`: without output, which a summary would count."""
    output = subprocess.DEVNULL if quiet else None
    return subprocess.Popen([sys.executable, "-m", "bench", *words], env=environment, stdout=output)
