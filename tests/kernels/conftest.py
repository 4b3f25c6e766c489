"""What the tests of the kernels share; `tests/conftest.py` sets Triton's interpreter."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def environment() -> dict[str, str]:
    """For a process that is to compile kernels, or to have none: without the interpreter."""
    return {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "LMFN_BACKEND")}
