"""Weights that lie as the kernels read them: read in place, and in every body the same results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lmfn_kernels
from lmfn_kernels import weight_layout
from lmfn_kernels.testing import (
    block_case,
    block_flat,
    conv_case,
    conv_flat,
    fuse_case,
    fuse_flat,
    gate_case,
    gate_flat,
    random,
    rfdb_case,
    rfdb_flat,
    stage_case,
    stage_flat,
    stem_case,
    stem_flat,
)

F32 = torch.float32
CASES: dict[str, tuple[Callable[..., Any], list[Tensor], int]] = {
    "conv3x3": (conv_flat(), conv_case(1, 3, 2, 9, 8, F32), 1),
    "conv3x3 of stride 2": (conv_flat(stride=2), conv_case(1, 3, 2, 9, 8, F32, stride=2), 1),
    "stem": (stem_flat(), stem_case(1, 6, 5, 9, 8, F32), 1),
    "residual_block": (block_flat(), block_case(1, 6, 5, 9, 8, F32), 1),
    "distill_stage": (stage_flat, stage_case(1, 6, 3, 9, 8, F32), 1),
    "distill_fuse": (fuse_flat, fuse_case(1, 6, 3, 2, 9, 8, F32), 4),
    "esa_gate": (gate_flat, gate_case(1, 6, 2, 9, 8, (2, 2), F32), 3),
    "rfdb": (rfdb_flat, rfdb_case(1, 6, 3, 2, 15, 16, F32), 1),
}
"""An op, its tensors, and how many of them are images, before the weights."""


class Copies(TorchDispatchMode):
    """Counts them."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket is torch.ops.aten.copy_
        return func(*args, **(kwargs or {}))


def amid_nan(weight: Tensor) -> Tensor:
    """The same, its gaps not a number."""
    memory = torch.full((weight.untyped_storage().nbytes() // weight.itemsize,), float("nan"), dtype=weight.dtype)
    return memory.as_strided(weight.shape, weight.stride()).copy_(weight)


@pytest.mark.parametrize("name", CASES)
def test_kernels_read_it_in_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmfn_kernels.runtime import launch

    function, tensors, images = CASES[name]
    weights = [i for i, t in enumerate(tensors) if i >= images and t.shape[2:] in ((1, 1), (3, 3))]
    with lmfn_kernels.backend("triton"), torch.no_grad():
        tensors = [launch.as_kernel_image(t) if t.ndim == 4 and i not in weights else t for i, t in enumerate(tensors)]
        laid_out = [amid_nan(weight_layout(t)) if i in weights else t for i, t in enumerate(tensors)]
        torch.testing.assert_close(function(*laid_out), function(*tensors), rtol=0, atol=0)
        monkeypatch.setattr(launch, "launcher", lambda *_: None)
        with Copies() as before:
            function(*tensors)
        with Copies() as after:
            function(*laid_out)
    assert before.count >= len(weights) > 0
    assert after.count == 0


@pytest.mark.parametrize("body", ["triton", "torch", "reference"])
def test_it_is_the_same_weight(body: str) -> None:
    with lmfn_kernels.backend(body):
        for shape in ((5, 3, 3, 3), (50, 25, 1, 1), (1, 1, 3, 3)):
            weight = random(shape, F32)
            laid_out = weight_layout(weight)
            assert torch.equal(laid_out, weight)
            assert torch.equal(weight_layout(laid_out), weight)
            assert laid_out.is_contiguous(memory_format=torch.channels_last) == (body != "triton")


def test_what_is_no_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight has shape \(3,\); expected is \(any, any, any, any\)"):
        weight_layout(torch.zeros(3))
    with pytest.raises(TypeError, match="weight is a list; a tensor is expected"):
        weight_layout([1.0])  # type: ignore[arg-type]
