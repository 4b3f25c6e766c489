"""Kernels compiled ahead, on a machine without a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import ahead
from bench.parts import ROOT

SHARES = """
import os
import sys
from pathlib import Path
from unittest.mock import patch

from bench import ahead
from bench.__main__ import main
from bench.registry import PARTS
from bench.stand_in import gpu
from lmfn_kernels import backend
from lmfn_kernels.runtime import backend as backends, configs
from lmfn_kernels.runtime.triton_private import CUDABackend
from triton import knobs

def wrong():
    raise RuntimeError("cannot be called")

def conv(dtype=ahead.torch.float16):
    op = PARTS["conv3x3_down"]
    ahead.call_op(op, op.shape(2, 9, 8), dtype, train=False)

cache, done = map(Path, sys.argv[1:])
ahead.calls = lambda: [("wrong", wrong), ("conv", conv), ("conv again", conv)]
for place, names in (("1/2", ""), ("0/2", ""), ("1/2", "1, conv_kernel of conv")):
    done.write_text(names)
    if os.fork() == 0:
        os._exit(main(["ahead", "--gpu", "some-gpu:90:232448", "--share", place, "--done", str(done)]))
    print("END", os.wait()[1], len(list(cache.rglob("conv_kernel.cubin"))), flush=True)

with gpu(), backend("triton"), patch.object(backends, "INTERPRETED", True):
    knobs.cache.dir, made = str(cache), CUDABackend.make_cubin
    with patch.object(configs, "describe", return_value=configs.Device("some-gpu", 90, 232448)):
        for dtype in (ahead.torch.float16, ahead.torch.bfloat16):
            conv(dtype)
            print(made.call_count)
"""

ON_TRIAL = """
from itertools import islice
from bench import ahead

def noted(kernel, _, arguments):
    print(kernel.__name__ + ":pdl" * arguments.get("launch_pdl", False), end=" ")

with ahead.in_place_of_launches("some-gpu:90:232448", noted):
    for name, call in islice(ahead.calls(), 8):
        if name.startswith("a frame") and "bfloat16" in name:
            call()
            print()
"""

DEFAULT = """
import sys

import torch

from bench import ahead
from lmfn.inference import plain
from lmfn.network import Network

sys.path.insert(0, "tests/gpu")
import test_default_kernels as defaults

forms = set()

def noted(kernel, _, arguments):
    tensors = sorted(n for n, a in arguments.items() if isinstance(a, torch.Tensor) or hasattr(a, "base"))
    if kernel.__name__ not in ("sum_kernel", "lay_out_kernel"):  # which take any number
        of_tile = (arguments.get(name) for name in ("MODE", "WINDOWED", "STRIDE", "BLOCK_H", "BLOCK_W", "num_warps"))
        forms.add((kernel.__name__, *tensors, *map(str, of_tile)))

with ahead.in_place_of_launches("some-gpu:90:232448", noted):
    for window in (None, 384):
        model = Network.from_preset("lmfn", similarity="cosine", alfm_window=window, esa_grid="fixed")
        with torch.no_grad():
            plain(model, torch.device("cpu"), torch.bfloat16)(torch.zeros(1, 3, 720, 1280))
    model = Network.from_preset("lmfn", similarity="cosine", alfm_window=384, esa_grid="fixed")
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.zeros(16, 3, 256, 256)).sum().backward()
    needed = set(forms)
    forms.clear()
    for part in defaults.PARTS.values():
        for mode in ("frame", "step"):
            defaults.run(part, mode, part.inputs(getattr(part, mode), torch.bfloat16, "cpu"))
print(len(needed))
print(*sorted(needed - forms), sep="\\n")
"""


def in_process(environment: dict[str, str], tmp_path: Path, code: str, *arguments: str) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path / "cache")},
        timeout=250,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


def test_each_kernel_is_compiled_once_by_one_process(environment: dict[str, str], tmp_path: Path) -> None:
    lines = in_process(environment, tmp_path, SHARES, str(tmp_path / "cache"), str(tmp_path / "done.txt"))
    assert [line.partition(": ")[0] if line.startswith("PASSED") else line for line in lines] == [
        "BEGIN 1, conv_kernel of conv",
        "PASSED 1, conv_kernel of conv",
        "COMPLETE",
        "END 0 1",
        "FAILED wrong: RuntimeError('cannot be called')",
        "COMPLETE",
        "END 0 1",
        "COMPLETE",
        "END 0 1",
        # A launch then finds its kernel in the cache, and compiles it if it is missing.
        "0",
        "1",
    ]


def test_the_command_ends_in_time(environment: dict[str, str], tmp_path: Path) -> None:
    """Everything compiled within a short time limit is correct; the rest is left to the first launch."""
    command = [sys.executable, "-m", "bench", "ahead", "--gpu", "some-gpu:90:232448", "--processes", "1"]
    done = subprocess.run(
        [*command, "--minutes", "0.02"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" kernels compiled, 0 failed\n")


def test_what_is_compiled_apart() -> None:
    kernel = type("Kernel", (), {"__name__": "kernel", "params": []})()

    def key(**arguments: object) -> tuple[object, ...]:
        return ahead.specialisation(kernel, arguments)

    assert key(H=720) == key(H=16), "16 divides both"
    assert len({key(H=size) for size in (720, 37, 1, 2**31 + 1)}) == 4
    kernel.params = [type("Parameter", (), {"name": "H", "is_constexpr": True})]
    assert key(H=720) != key(H=16), "a constant"
    x = torch.zeros(64)
    assert key(p_x=x) == key(p_x=torch.zeros(32))
    assert len({key(p_x=x), key(p_x=x[1:]), key(p_x=x.double()), key(p_x=None)}) == 4


def test_calls_begin_with_what_is_measured_first() -> None:
    names = [name for name, _ in ahead.calls()]
    assert names[:2] == ["a frame, bfloat16", "a step"]
    for dtype in ("bfloat16", "float32", "float16"):
        assert any(name.startswith("rfdb (3, 37, 61)") and name.endswith(dtype) for name in names)
    assert len(set(names)) > 60


def test_kernels_on_trial_are_among_them(environment: dict[str, str], tmp_path: Path) -> None:
    """Compiled as they are launched: whether launches overlap is an option of the compiler as well."""
    lines = in_process(environment, tmp_path, ON_TRIAL)
    usual, overlapping, everything = (line.split() for line in lines)
    assert "stem_kernel" in usual
    assert overlapping == [f"{kernel}:pdl" for kernel in usual]
    assert "quartered_stem_kernel:pdl" in everything


@pytest.mark.parametrize("gpu", ["some-gpu:90:232448", "nvidia:odd:name:80:166912"])
def test_nothing_is_launched(gpu: str) -> None:
    """The network's frame, whose launches are all intercepted; nothing else stays changed."""
    from lmfn_kernels.runtime import configs

    seen: list[str] = []
    with ahead.in_place_of_launches(gpu, lambda kernel, *_: seen.append(kernel.__name__)):
        assert ":".join(map(str, configs.describe(torch.device("cpu")))) == gpu
        next(call for name, call in ahead.calls() if name.startswith("stem"))()
    assert "stem_kernel" in seen
    assert configs.describe(torch.device("cpu")) == ("cpu", 0, 0)


def test_what_the_network_launches_by_default_is_tested_on_a_gpu(environment: dict[str, str], tmp_path: Path) -> None:
    """Each kernel, with the same tensors and tile, in `tests/gpu/test_default_kernels.py`."""
    needed, *missing = in_process(environment, tmp_path, DEFAULT)
    assert int(needed) > 40
    assert missing == [""], missing
