"""What the tests of the kernels share; `tests/conftest.py` sets Triton's interpreter.

`lmfn_kernels` is imported in the fixtures: when this file is read, the interpreter may not have been set yet.
"""

import os
from collections.abc import Iterator

import pytest
import torch

# What the interpreter computes in; it gets bfloat16 wrong.
GRID = [("torch", torch.bfloat16)]
GRID += [(backend, d) for backend in ("torch", "triton") for d in (torch.float64, torch.float32, torch.float16)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["torch", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each of the two, chosen during the test."""
    import lmfn_kernels

    with lmfn_kernels.backend(request.param):
        yield request.param


@pytest.fixture(params=GRID, ids=lambda grid: f"{grid[0]}-{str(grid[1]).removeprefix('torch.')}")
def backend_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Every dtype of each backend, which is chosen during the test."""
    import lmfn_kernels

    with lmfn_kernels.backend(request.param[0]):
        yield request.param[1]


@pytest.fixture
def environment() -> dict[str, str]:
    """For a process that is to compile kernels, or to have none: without the interpreter."""
    return {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "LMFN_BACKEND")}
