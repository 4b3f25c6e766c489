"""Triton's interpreter for the tests of this folder: kernels run on the CPU, line by line in NumPy.

bfloat16 arithmetic and products are silently wrong there, so no test of this folder runs a kernel in it.
"""

import os
import sys
from collections.abc import Iterator

import pytest
import torch

from lmfn_kernels.runtime import backend


@pytest.fixture(scope="session", autouse=True)
def _interpreter() -> Iterator[None]:
    """Set when the first test of this folder runs, and not when it is collected: GPU tests may be collected with it."""
    if "lmfn_kernels.runtime.kernels" in sys.modules:
        raise RuntimeError("the kernels are compiled already in this process; run the GPU's tests in one of their own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(backend, "INTERPRETED", True)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def environment() -> dict[str, str]:
    """For a process that is to compile kernels, or to have none: without the interpreter."""
    return {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "LMFN_BACKEND")}
