"""Every address that a kernel reads or writes lies in the memory of one of its tensors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter  # noqa: TID251 (only tests run the interpreter)

import lmfn_kernels
from lmfn_kernels.cases import OPS, is_image
from lmfn_kernels.runtime.launch import intercepting
from lmfn_kernels.testing import differentiate

ALLOCATED = 512
"""Memory on a GPU is allocated in multiples of so many bytes; a kernel may read what lies after a tensor there."""


@contextmanager
def within_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the kernels whose loads and stores are checked."""
    ours, names, memory = interpreter._interpreter, [], np.empty((0, 2), np.uint64)

    def check(pointers: np.ndarray, mask: np.ndarray, size: int) -> None:
        at = np.broadcast_to(pointers, np.shape(mask))[np.asarray(mask, bool)].astype(np.uint64)
        inside = ((at[:, None] >= memory[:, 0]) & (at[:, None] + np.uint64(size) <= memory[:, 1])).any(1)
        if not inside.all():
            raise AssertionError(f"{names[-1]}: {(~inside).sum()} addresses beyond the memory of its tensors")

    def load(pointers: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: Any) -> Any:
        check(pointers, mask, np.dtype(dtype).itemsize)
        return ours.load(pointers, mask, other, dtype)

    def store(pointers: np.ndarray, value: np.ndarray, mask: np.ndarray) -> Any:
        check(pointers, mask, np.asarray(value).itemsize)
        return ours.store(pointers, value, mask)

    def launched(launch: Callable[..., Any], kernel: Any, grid: Any, arguments: dict[str, Any]) -> Any:
        nonlocal memory
        names.append(kernel.__name__)
        tensors = [getattr(a, "base", a) for a in arguments.values()]
        storages = [t.untyped_storage() for t in tensors if isinstance(t, Tensor)]
        ends = [(s.data_ptr(), s.data_ptr() + -(-s.nbytes() // ALLOCATED) * ALLOCATED) for s in storages]
        memory = np.unique(np.array(ends, np.uint64), axis=0)
        return launch(kernel, grid, arguments)

    checked = SimpleNamespace(**{name: getattr(ours, name) for name in dir(ours)} | {"load": load, "store": store})
    monkeypatch.setattr(interpreter, "_interpreter", checked)
    with intercepting(launched):
        yield names


def slice_of(t: Tensor) -> Tensor:
    """An image of the last channels of larger pixels, which ends with its memory, and needs no copy."""
    b, c, h, w = t.shape
    memory = torch.full((b, h, w, 64), float("nan"), dtype=t.dtype)
    return memory.permute(0, 3, 1, 2)[:, 64 - -(-c // 8) * 8 :][:, :c].copy_(t)


@pytest.mark.parametrize("name", OPS)
def test_a_slice_that_ends_with_its_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = OPS[name].draw(
        (1, 2, 34, 2, 16), torch.float16
    )  # every fourth pixel of 64 values ends a multiple of 512 bytes
    slices = [slice_of(t) if is_image(t) else t for t in inputs]
    with lmfn_kernels.backend("triton"), within_memory(monkeypatch) as names:
        results, gradients = differentiate(OPS[name].function, slices)
    assert names
    for found in (*results, *gradients):
        assert found is not None
        assert found.isfinite().all(), "of memory between the slice's pixels, which is NaN"
