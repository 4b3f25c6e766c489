"""What the tests on a GPU share: all of them have the mark `gpu`, and run only by `-m gpu`, where a missing GPU is a
failure."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

DEVICE = "cuda"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before those that `-m` does not select are left out."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _memory_is_for_all() -> Iterator[None]:
    """Several processes share the GPU."""
    yield
    torch.cuda.empty_cache()
