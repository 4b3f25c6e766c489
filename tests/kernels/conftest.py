"""What the tests of the kernels share; `tests/conftest.py` sets Triton's interpreter."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def environment() -> dict[str, str]:
    """For a process that is to compile kernels, or to have none: without the interpreter."""
    return {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "LMFN_BACKEND")}


Opcheck = Callable[[Callable[..., Any], Sequence[Tensor], str], None]


@pytest.fixture
def opcheck(monkeypatch: pytest.MonkeyPatch) -> Opcheck:
    """Hold what a function calls, forward and backward, to its schema, its fakes and its tracing, as registered."""
    import lmfn_kernels  # not above, where the interpreter is not set yet
    from lmfn_kernels.runtime.registration import Op
    from lmfn_kernels.testing import differentiate

    calls: list[tuple[Any, tuple[Any, ...]]] = []
    forward, backward = Op.forward, Op.backward

    def seen_forward(op: Any, backend: str, arguments: Any, options: Any, save: bool) -> list[Tensor]:
        calls.append((getattr(torch.ops.lmfn, op.name).default, (backend, *arguments, *options, save)))
        return forward(op, backend, arguments, options, save)

    def seen_backward(
        op: Any, backend: str, gradients: Any, saved: Any, arguments: Any, options: Any, needs: Any
    ) -> Any:
        flat = backend, *gradients, saved, *arguments, *options, list(needs)
        calls.append((getattr(torch.ops.lmfn, f"{op.name}_backward").default, flat))
        return backward(op, backend, gradients, saved, arguments, options, needs)

    def check(function: Callable[..., Any], tensors: Sequence[Tensor], backend: str) -> None:
        with monkeypatch.context() as patch, lmfn_kernels.backend(backend):
            patch.setattr(Op, "forward", seen_forward)
            patch.setattr(Op, "backward", seen_backward)
            differentiate(function, tensors, [i % 3 != 1 for i in range(len(tensors))])
        assert len(calls) >= 2
        for op, arguments in calls:
            arguments = torch.utils._pytree.tree_map_only(Tensor, torch.Tensor.detach, arguments)
            tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
            torch.library.opcheck(op, arguments, test_utils=tests)

    return check
