"""The kernels on a GPU: every launch config in every dtype, against float64, a hundred times over."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lmfn_kernels
from bench.cases import (
    assert_close,
    assert_no_worse,
    conv_case,
    conv_flat,
    differentiate,
    fuse_case,
    fuse_flat,
    gate_case,
    gate_flat,
    rfdb_case,
    rfdb_flat,
    stage_case,
    stage_flat,
)

pytestmark = pytest.mark.gpu  # asked for by `-m gpu` alone, and then a failure where there is no GPU

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
Case = tuple[Callable[..., Any], list[Tensor], int]


def cases(dtype: torch.dtype) -> dict[str, Case]:
    """Op, inputs, and the products that one of its results sums; sizes that leave partial tiles."""
    found: dict[str, Case] = {
        "distill_stage": (stage_flat, stage_case(3, 50, 25, 37, 61, dtype, "cuda"), 450),
        "distill_fuse": (fuse_flat, fuse_case(3, 50, 25, 12, 37, 61, dtype, "cuda"), 450),
        "esa_gate": (gate_flat, gate_case(3, 50, 12, 37, 61, (4, 8), dtype, "cuda"), 64),
        "rfdb": (rfdb_flat, rfdb_case(3, 50, 25, 12, 37, 61, dtype, "cuda"), 1800),
    }
    for n, stride in ((50, 1), (64, 1), (64, 2), (130, 1)):
        tensors = conv_case(3, n, n, 37, 61, dtype, "cuda", stride=stride)
        found[f"conv3x3-{n}-{stride}"] = (conv_flat(stride=stride, activation="leaky_relu"), tensors, 9 * n)
    return found


@pytest.fixture(autouse=True)
def _full_precision() -> Any:
    """Products of float32 in float32, so that its bound holds; TF32 has a test of its own."""
    torch.manual_seed(0)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with lmfn_kernels.backend("triton"):
        yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases(torch.float32) if torch.cuda.is_available() else ["any"])
def test_against_float64_and_a_hundred_times_the_same(name: str, dtype: torch.dtype) -> None:
    function, tensors, terms = cases(dtype)[name]
    with lmfn_kernels.backend("reference"):
        exact, exact_gradients = differentiate(function, [t.double() for t in tensors])
        _, plain = differentiate(function, tensors)
    results, gradients = differentiate(function, tensors)
    for result, expected in zip(results, exact, strict=True):
        assert_close("result", result, expected, terms, dtype)
    pixels = exact[0][:, 0].numel()
    for i, (gradient, expected, text) in enumerate(zip(gradients, exact_gradients, plain, strict=True)):
        assert gradient is not None
        assert expected is not None
        assert text is not None
        all_terms = terms * (pixels if i else 1)
        if name == "rfdb" and dtype.itemsize == 2:
            assert_no_worse(f"gradient {i}", gradient, expected, text, all_terms, dtype)
        else:
            assert_close(f"gradient {i}", gradient, expected, all_terms, dtype)
    for _ in range(100):
        again, gradients_again = differentiate(function, tensors)
        for a, b in zip([*results, *gradients], [*again, *gradients_again], strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a, b)


def test_tf32_follows_torch() -> None:
    """With TF32 the result differs from that without, and stays within TF32's rounding (10 bits)."""
    function, tensors, terms = cases(torch.float32)["distill_stage"]
    full, _ = differentiate(function, tensors)
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    short, _ = differentiate(function, tensors)
    assert not torch.equal(full[0], short[0])
    assert_close("result", short[0], full[0].double(), terms, torch.float16)


def test_auto_takes_the_kernels() -> None:
    _, tensors, _ = cases(torch.bfloat16)["rfdb"]
    with lmfn_kernels.backend("auto"):
        automatic = rfdb_flat(*tensors)
    assert torch.equal(automatic, rfdb_flat(*tensors))


def test_cuda_graph() -> None:
    """Captured once, replayed on other numbers: nothing synchronises, nothing is fixed at capture."""
    _, tensors, _ = cases(torch.bfloat16)["rfdb"]
    static = tensors[0].clone()
    rfdb_flat(static, *tensors[1:])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = rfdb_flat(static, *tensors[1:])
    static.copy_(tensors[0].flip(0))
    graph.replay()
    assert torch.equal(out, rfdb_flat(tensors[0].flip(0), *tensors[1:]))


def test_compiled() -> None:
    function, tensors, _ = cases(torch.bfloat16)["rfdb"]
    results, gradients = differentiate(torch.compile(function, fullgraph=True), tensors)
    expected, expected_gradients = differentiate(function, tensors)
    for a, b in zip([*results, *gradients], [*expected, *expected_gradients], strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_not_the_current_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    _, tensors, _ = cases(torch.bfloat16)["rfdb"]
    elsewhere = [t.to("cuda:1") for t in tensors]
    assert torch.equal(rfdb_flat(*tensors).cpu(), rfdb_flat(*elsewhere).cpu())


def test_more_elements_than_int32_counts() -> None:
    """A batch of 4.3e9 bytes: its last image is as if alone."""
    shape = (24, 64, 1200, 1200)
    if torch.cuda.get_device_properties(0).total_memory < 2.5e10:
        pytest.skip("the GPU has not the memory")
    _, weight, bias, _ = conv_case(1, 64, 64, 8, 8, torch.float16, "cuda")
    x = torch.randn(shape, dtype=torch.float16, device="cuda").contiguous(memory_format=torch.channels_last)
    assert x.numel() > 2**31
    with torch.no_grad():
        assert torch.equal(
            lmfn_kernels.conv3x3(x, weight, bias)[-1:], lmfn_kernels.conv3x3(x[-1:].clone(), weight, bias)
        )


def test_peak_memory_of_training() -> None:
    """Forward and backward of one block hold less than the plain text does."""
    tensors = [t.requires_grad_() for t in rfdb_case(4, 50, 25, 12, 180, 320, torch.bfloat16, "cuda")]

    def peak(backend: str) -> int:
        with lmfn_kernels.backend(backend):
            torch.autograd.grad(rfdb_flat(*tensors).sum(), tensors)
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            torch.autograd.grad(rfdb_flat(*tensors).sum(), tensors)
            torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    assert peak("triton") < peak("reference")
