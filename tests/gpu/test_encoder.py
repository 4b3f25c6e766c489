"""The encoder's and the head's kernels on a GPU: float64, a hundred times over, graphs; the memory of training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lmfn_kernels
from lmfn.network import Network
from lmfn_kernels.testing import (
    assert_rounded,
    block_case,
    block_flat,
    differentiate,
    exactly,
    stem_case,
    stem_flat,
    upsample_add_case,
    upsampled_conv_case,
    upsampled_conv_flat,
)

pytestmark = pytest.mark.gpu  # asked for by `-m gpu` alone, and then a failure where there is no GPU

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
Case = tuple[Callable[..., Any], Callable[[torch.dtype], list[Tensor]]]

# The network's widths, at sizes that leave partial tiles.
CASES: dict[str, Case] = {
    "stem": (stem_flat(), lambda d: stem_case(3, 64, 64, 37, 61, d, "cuda")),
    "unpadded stem": (stem_flat(padding=0), lambda d: stem_case(3, 64, 64, 37, 61, d, "cuda")),
    "block": (block_flat(), lambda d: block_case(3, 64, 64, 37, 61, d, "cuda")),
    "upsampled block": (block_flat(upsample=True), lambda d: block_case(3, 50, 50, 19, 31, d, "cuda")),
    "upsample_add": (
        lmfn_kernels.upsample_add,
        lambda d: upsample_add_case(3, 64, 37, 61, (19, 31), d, "cuda"),
    ),
    "upsampled_conv3x3": (upsampled_conv_flat, lambda d: upsampled_conv_case(3, 50, 3, 37, 61, d, "cuda")),
}


@pytest.fixture(autouse=True)
def _full_precision() -> Any:
    """Products of float32 in float32, so that its bound holds."""
    torch.manual_seed(0)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with lmfn_kernels.backend("triton"):
        yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_against_float64_and_a_hundred_times_the_same(name: str, dtype: torch.dtype) -> None:
    function, make = CASES[name]
    tensors = make(dtype)
    exact, exact_gradients = exactly(function, tensors)
    results, gradients = differentiate(function, tensors)
    for found, expected in zip([*results, *gradients], [*exact, *exact_gradients], strict=True):
        assert found is not None
        assert expected is not None
        assert_rounded("result or gradient", found, expected)
    for _ in range(100):
        again, gradients_again = differentiate(function, tensors)
        for a, b in zip([*results, *gradients], [*again, *gradients_again], strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_cuda_graph(name: str) -> None:
    """Captured once, replayed on other numbers: nothing synchronises, nothing is fixed at capture."""
    function, make = CASES[name]
    first, *rest = make(torch.bfloat16)
    static = first.clone()
    with torch.no_grad():
        function(static, *rest)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = function(static, *rest)
        static.copy_(first.flip(0))
        graph.replay()
        assert torch.equal(out, function(first.flip(0), *rest))


@pytest.mark.parametrize("memory", ["normal", "lean"])
def test_peak_memory_of_training(memory: str) -> None:
    """Forward and backward of the whole network under autocast: at most 0.4 of what the formulas take at their peak."""
    model = Network.from_preset("lmfn").cuda().to(memory_format=torch.channels_last)
    images = torch.rand(4, 3, 256, 256, device="cuda")

    def peak(backend: str) -> int:
        with lmfn_kernels.backend(backend):
            for _ in range(2):
                model.zero_grad()
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                with torch.autocast("cuda", torch.bfloat16):
                    output = model(images)
                F.l1_loss(output.float(), images).backward()
                torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    plain = peak("reference")
    model.memory = memory
    assert peak("triton") <= 0.4 * plain
