"""Which ptxas assembles kernels for sm_90, determined from its output: a cubin names the release that made it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = '''
import json, os, threading, warnings
from unittest.mock import patch
import torch
import triton
import triton.language as tl
from triton import knobs
from triton.compiler import ASTSource
from lmfn_kernels.runtime import assembler
from lmfn_kernels.runtime.triton_private import CUDABackend, GPUTarget

hopper = GPUTarget("cuda", 90, 32)
usual = CUDABackend.make_cubin

@triton.jit
def copy(p_to, p_from):
    tl.store(p_to, tl.load(p_from))

def assembled(warps, **options):
    """The release of the ptxas that made it, and the name in Triton's cache."""
    source = ASTSource(copy, {"p_to": "*fp32", "p_from": "*fp32"})
    made = triton.compile(source, target=hopper, options={"num_warps": warps, **options})
    return int.from_bytes(made.asm["cubin"][20:24], "little"), made.hash

def warned():
    assembler.options.cache_clear()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        return [assembler.options(hopper) for _ in range(3)], [str(one.message) for one in found]

before = assembled(1)
options = assembler.options(hopper)
theirs = []
thread = threading.Thread(target=lambda: theirs.extend(assembled(n) for n in (2, 4, 8)))
thread.start()
ours = [assembled(n, **options) for n in (1, 2, 4, 8)]
thread.join()
theirs = [before, *theirs, assembled(16)]
others = [GPUTarget("cuda", 80, 32), GPUTarget("cuda", 100, 32), GPUTarget("hip", "gfx942", 64)]
found = {"ours": ours, "theirs": theirs, "others": [assembler.options(other) for other in others]}

CUDABackend.make_cubin = usual
try:
    assembled(16, **options)
except Exception as error:
    found["refused"] = f"{type(error).__name__}: {error}"

os.environ["TRITON_PTXAS_PATH"] = knobs.nvidia.ptxas_blackwell.path
found["newer anyway"] = warned()
del os.environ["TRITON_PTXAS_PATH"]
available = patch.object(torch.cuda, "is_available", lambda: True)
with available, patch.object(assembler, "driver_release", lambda: (11, 8)):
    found["old driver"] = warned()
usual = knobs.NvidiaTool.from_path
with patch.object(knobs.NvidiaTool, "from_path", lambda path: None if "blackwell" in path else usual(path)):
    found["not there"] = warned()
print(json.dumps(found))
'''


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """From a process that compiles, since this one uses Triton's interpreter."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("triton")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    ours = {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": str(Path(__file__).parents[2])}
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET" and not k.startswith("TRITON_PTXAS")}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=inherited | ours, timeout=240
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_our_kernels_get_the_newer_one_and_nobody_elses(found: dict[str, Any]) -> None:
    """Other packages' kernels, compiled before, after, and in another thread at the same time, use their own ptxas."""
    assert {release for release, _ in found["ours"]} == {129}
    assert {release for release, _ in found["theirs"]} == {128}
    assert found["others"] == [{}, {}, {}]


def test_what_the_old_one_made_is_not_found_in_the_cache(found: dict[str, Any]) -> None:
    names = [name for _, name in found["ours"] + found["theirs"]]
    assert len(set(names)) == len(names)


def test_the_old_one_refuses_what_is_for_the_newer_one(found: dict[str, Any]) -> None:
    """If Triton chose its assembler in another way, there would be an error instead of a wrong kernel."""
    assert found["refused"].startswith("PTXASError")
    assert "Unsupported .version 8.8" in found["refused"]


def test_a_newer_one_is_left_alone(found: dict[str, Any]) -> None:
    assert found["newer anyway"] == [[{}, {}, {}], []]


@pytest.mark.parametrize("missing", ["not there", "old driver"])
def test_one_warning_where_there_is_no_newer_one(found: dict[str, Any], missing: str) -> None:
    options, (warning,) = found[missing]
    assert options == [{}, {}, {}]
    assert "ptxas 12.8" in warning
    assert "TRITON_PTXAS_PATH" in warning
