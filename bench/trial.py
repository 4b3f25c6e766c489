"""Test the kernels on trial on a Hopper GPU, and measure a frame and a step with those that passed: `python -m bench
trial`.

The tests of each name in `lmfn_kernels/runtime/trials.py` run in a process of their own, so what crashes or hangs does
not affect the others. OUT/on-trial then has the same files as OUT, measured with all that passed. With a Triton newer
than 3.6, all of this is with the kernels in Gluon too (`newer_triton`).
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench.all import FRAME, STEP
from bench.summary import ON_TRIAL_FOLDER, ON_TRIAL_LINE
from lmfn_kernels.runtime.trials import ON_TRIAL

MEASURED = (
    ("profile",),
    ("model", "--shape", FRAME, "--dtype", "bfloat16", "--provider", "for_inference", "for_inference-fp8"),
    ("train", "--shape", STEP, "--provider", "triton-graph"),
)
NEWER = "newer_triton"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no measurement after this time")
    parser.add_argument("--out", type=Path, required=True, help="folder; what is measured is in OUT/on-trial")


def run(options: argparse.Namespace) -> int:
    """1 if a name did not pass, or something measured was wrong."""
    end = time.monotonic() + 60 * options.minutes
    if not torch.cuda.is_available():
        raise RuntimeError("there is no GPU that PyTorch can use here; kernels on trial run on compute capability 9.0")
    if (capability := torch.cuda.get_device_capability()) != (9, 0):
        print(f"{ON_TRIAL_LINE}nothing for compute capability {capability[0]}.{capability[1]}", flush=True)
        return 0
    bench = [sys.executable, "-m", "bench"]
    environment = os.environ | {"LMFN_TRY": NEWER}
    tests = {
        name: subprocess.Popen([*bench, "tests", "-k", f"on_trial and {name}", "--processes", "1"], env=environment)
        for name in ON_TRIAL
        if name != NEWER
    }
    status = {name: process.wait() for name, process in tests.items()}
    passed, others = ([name for name, code in status.items() if (code == 0) == good] for good in (True, False))
    print(f"{ON_TRIAL_LINE}passed {listed(passed)}; did not pass {listed(others)}", flush=True)
    environment["LMFN_TRY"] = ",".join([NEWER, *passed])
    codes = []
    for verb, *words in MEASURED if passed else ():
        if time.monotonic() > end:
            print(f"{ON_TRIAL_LINE}no time left for {verb}", flush=True)
            continue
        command = [*bench, verb, "--device", "cuda", "--out", str(options.out / ON_TRIAL_FOLDER), *words]
        codes.append(subprocess.run(command, env=environment).returncode)
    return 1 if others or any(codes) else 0


def listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
