"""Weights in the kernels' layout: read without a copy, and the same results under every backend."""

from typing import Any

import pytest
import torch
from torch import Tensor

import lmfn_kernels
from lmfn_kernels import weight_layout
from lmfn_kernels.cases import OPS, Size
from lmfn_kernels.runtime.torch_private import TorchDispatchMode
from lmfn_kernels.testing import random

NAMES = [
    "conv3x3", "conv3x3-down", "stem", "residual_block", "residual_blocks", "distill_stage", "distill_fuse", "esa_gate",
    "rfdb",
]  # fmt: skip


class Copies(TorchDispatchMode):
    """Counts the copies."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket is torch.ops.aten.copy_
        return func(*args, **(kwargs or {}))


def amid_nan(weight: Tensor) -> Tensor:
    """The same, with NaN in its gaps."""
    memory = torch.full((weight.untyped_storage().nbytes() // weight.itemsize,), float("nan"), dtype=weight.dtype)
    return memory.as_strided(weight.shape, weight.stride()).copy_(weight)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_read_it_in_place(name: str) -> None:
    from lmfn_kernels.runtime import launch

    function = OPS[name].function
    tensors = OPS[name].inputs(Size(1, 1, 6, 26, 25), torch.float32)
    weights = [i for i, t in enumerate(tensors) if t.shape[2:] in ((1, 1), (3, 3))]
    with lmfn_kernels.backend("triton"), torch.no_grad():
        tensors = [launch.as_kernel_image(t) if t.ndim == 4 and i not in weights else t for i, t in enumerate(tensors)]
        laid_out = [amid_nan(weight_layout(t)) if i in weights else t for i, t in enumerate(tensors)]
        torch.testing.assert_close(function(*laid_out), function(*tensors), rtol=0, atol=0)
        before, after = [], []
        with launch.intercepting(lambda _, kernel, *__: before.append(kernel.__name__)):
            function(*tensors)
        with launch.intercepting(lambda _, kernel, *__: after.append(kernel.__name__)), Copies() as copies:
            function(*laid_out)
    assert "lay_out_kernel" in before
    assert "lay_out_kernel" not in after
    assert copies.count == 0


@pytest.mark.parametrize("name", ["triton", "torch", "reference"])
def test_it_is_the_same_weight(name: str) -> None:
    with lmfn_kernels.backend(name):
        for shape in ((5, 3, 3, 3), (50, 25, 1, 1), (1, 1, 3, 3)):
            weight = random(shape, torch.float32)
            laid_out = weight_layout(weight)
            assert torch.equal(laid_out, weight)
            assert torch.equal(weight_layout(laid_out), weight)
            assert laid_out.is_contiguous(memory_format=torch.channels_last) == (name != "triton")


def test_what_is_no_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight has shape \(3,\); expected \(any, any, any, any\)"):
        weight_layout(torch.zeros(3))
    with pytest.raises(TypeError, match="weight is a list; expected a tensor"):
        weight_layout([1.0])  # type: ignore[arg-type]
    whole = torch.ones(2, 3, 3, 3, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"weight has dtype torch.int32; expected one of torch.float32, "):
        weight_layout(whole)
    with pytest.raises(TypeError, match=r"conv.weight has dtype torch.int32; expected one of torch.float32, "):
        lmfn_kernels.folded(lmfn_kernels.Conv(whole, whole[:, 0, 0, 0]))
