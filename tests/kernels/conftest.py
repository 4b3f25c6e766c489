"""Fixtures for the tests of the kernels; `tests/conftest.py` sets Triton's interpreter. `lmfn_kernels` is imported
inside the fixtures, since the interpreter may not have been set yet when this file is read."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

GUARD = 64
"""Elements of memory around an image that must be neither read nor written."""

# The dtypes that the interpreter computes correctly; bfloat16 is wrong there.
GRID = [("torch", torch.bfloat16)]
GRID += [(backend, d) for backend in ("torch", "triton") for d in (torch.float64, torch.float32, torch.float16)]


def amid_nan(x: Tensor) -> Tensor:
    """`x` in the kernels' layout, without a copy, surrounded by NaN and infinities, which are also in the gaps between
    pixels."""
    from lmfn_kernels.runtime.layout import pixel_pitch

    b, c, h, w = x.shape
    s = pixel_pitch(c, x.dtype)
    memory = torch.full((b * h * w * s + 2 * GUARD,), float("nan"), dtype=x.dtype)
    memory[::2] = float("inf")  # where a maximum does not propagate NaN
    return memory.as_strided((b, c, h, w), (h * w * s, 1, w * s, s), GUARD).copy_(x)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["torch", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each of the two backends, selected during the test."""
    import lmfn_kernels

    with lmfn_kernels.backend(request.param):
        yield request.param


@pytest.fixture(params=GRID, ids=lambda grid: f"{grid[0]}-{str(grid[1]).removeprefix('torch.')}")
def backend_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Every dtype of each backend, which is selected during the test."""
    import lmfn_kernels

    with lmfn_kernels.backend(request.param[0]):
        yield request.param[1]
