"""The kernels on a GPU: every launch config in every dtype, against float64, a hundred times over."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import lmfn_kernels
from lmfn_kernels.testing import (
    assert_rounded,
    conv_case,
    conv_flat,
    differentiate,
    exactly,
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

DEVICE = "cuda"
TIMES = 100
DTYPES = [torch.bfloat16, torch.float16, torch.float32]

# Op, and its inputs, at sizes that leave partial tiles.
CASES: dict[str, tuple[Callable[..., Any], Callable[[torch.dtype], list[Tensor]]]] = {
    "distill_stage": (stage_flat, lambda dtype: stage_case(3, 50, 25, 37, 61, dtype, DEVICE)),
    "distill_fuse": (fuse_flat, lambda dtype: fuse_case(3, 50, 25, 12, 37, 61, dtype, DEVICE)),
    "esa_gate": (gate_flat, lambda dtype: gate_case(3, 50, 12, 37, 61, (4, 8), dtype, DEVICE)),
    "rfdb": (rfdb_flat, lambda dtype: rfdb_case(3, 50, 25, 12, 37, 61, dtype, DEVICE)),
    "conv3x3-50": (
        conv_flat(activation="leaky_relu"),
        lambda dtype: conv_case(3, 50, 50, 37, 61, dtype, DEVICE),
    ),
    "conv3x3-64-stride-2": (
        conv_flat(stride=2, activation="leaky_relu"),
        lambda dtype: conv_case(3, 64, 64, 37, 61, dtype, DEVICE, stride=2),
    ),
    "conv3x3-130": (
        conv_flat(activation="relu"),
        lambda dtype: conv_case(3, 130, 130, 37, 61, dtype, DEVICE),
    ),
}


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32, so that its bound holds; TF32 has a test of its own."""
    torch.manual_seed(0)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with lmfn_kernels.backend("triton"):
        yield
    torch.backends.cudnn.conv.fp32_precision = before


def same(one: tuple[list[Tensor], list[Tensor | None]], other: tuple[list[Tensor], list[Tensor | None]]) -> None:
    for a, b in zip([*one[0], *one[1]], [*other[0], *other[1]], strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_against_float64_and_a_hundred_times_the_same(name: str, dtype: torch.dtype) -> None:
    function, make = CASES[name]
    tensors = make(dtype)
    exact, exact_gradients = exactly(function, tensors)
    found = differentiate(function, tensors)
    for i, (result, expected) in enumerate(zip(found[0], exact, strict=True)):
        assert_rounded(f"result {i}", result, expected)
    for i, (gradient, expected_gradient) in enumerate(zip(found[1], exact_gradients, strict=True)):
        assert gradient is not None
        assert expected_gradient is not None
        assert_rounded(f"gradient of input {i} {tuple(gradient.shape)}", gradient, expected_gradient)
    for _ in range(TIMES):
        same(differentiate(function, tensors), found)


def test_tf32_follows_torch() -> None:
    """With TF32 the result differs from that without, by no more than rounding to its 10 bits, float16's, does."""
    function, make = CASES["distill_stage"]
    tensors = make(torch.float32)
    with torch.no_grad():
        full = function(*tensors)[0]
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        short = function(*tensors)[0]
    assert not torch.equal(full, short)
    exact, _ = exactly(function, [t.half() for t in tensors])
    assert_rounded("result", short, exact[0]._replace(value=full.double()))


def test_auto_takes_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no table says otherwise."""
    from lmfn_kernels.runtime import configs

    monkeypatch.setattr(configs, "tuned", lambda _: configs.Table({}, {}))
    tensors = CASES["rfdb"][1](torch.bfloat16)
    with lmfn_kernels.backend("auto"):
        automatic = rfdb_flat(*tensors)
    assert torch.equal(automatic, rfdb_flat(*tensors))


def test_cuda_graph() -> None:
    """Captured once, replayed on other numbers: nothing synchronises, nothing is fixed at capture."""
    tensors = CASES["rfdb"][1](torch.bfloat16)
    static = tensors[0].clone()
    other = tensors[0].flip(0)
    with torch.no_grad():
        warm = torch.cuda.Stream()
        warm.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm):
            rfdb_flat(static, *tensors[1:])
        torch.cuda.current_stream().wait_stream(warm)
        expected = rfdb_flat(other, *tensors[1:])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = rfdb_flat(static, *tensors[1:])
        static.copy_(other)
        graph.replay()
        torch.cuda.synchronize()
    assert torch.equal(out, expected)


def test_cuda_graph_of_training() -> None:
    """Forward and backward in one graph, all gradients."""
    tensors = [t.requires_grad_() for t in CASES["rfdb"][1](torch.bfloat16)]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(rfdb_flat(*tensors).square().mean(), tensors)

    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        tensors[0].copy_(tensors[0].flip(0))
    graph.replay()
    torch.cuda.synchronize()
    for gradient, expected in zip(captured, step(), strict=True):
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("name", CASES)
def test_compiled(name: str) -> None:
    """One graph, forward and backward, by the default compiler, with the bits of the eager call."""
    function, make = CASES[name]
    tensors = make(torch.bfloat16)
    torch._dynamo.reset()
    same(differentiate(torch.compile(function, fullgraph=True), tensors), differentiate(function, tensors))


def test_compiled_under_auto() -> None:
    """The choice itself, with the device's table, is part of the graph."""
    tensors = CASES["distill_stage"][1](torch.bfloat16)
    torch._dynamo.reset()
    with lmfn_kernels.backend("auto"):
        same(differentiate(torch.compile(stage_flat, fullgraph=True), tensors), differentiate(stage_flat, tensors))


def test_not_the_current_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    tensors = CASES["rfdb"][1](torch.bfloat16)
    elsewhere = [t.to("cuda:1") for t in tensors]
    assert torch.equal(rfdb_flat(*tensors).cpu(), rfdb_flat(*elsewhere).cpu())


def test_more_elements_than_int32_counts() -> None:
    """A batch of 4.4e9 bytes: its last image is as if alone."""
    shape = (24, 64, 1200, 1200)
    if torch.cuda.get_device_properties(0).total_memory < 2.5e10:
        pytest.skip("the GPU has not the memory")
    _, weight, bias, _ = conv_case(1, 64, 64, 8, 8, torch.float16, DEVICE)
    x = torch.empty(shape, dtype=torch.float16, device=DEVICE, memory_format=torch.channels_last).normal_()
    assert x.numel() > 2**31
    with torch.no_grad():
        many, one = lmfn_kernels.conv3x3(x, weight, bias), lmfn_kernels.conv3x3(x[-1:].clone(), weight, bias)
    assert torch.equal(many[-1:], one)


def test_peak_memory_of_training() -> None:
    """Forward and backward of one block hold less than the plain text does."""
    tensors = [t.requires_grad_() for t in rfdb_case(4, 50, 25, 12, 180, 320, torch.bfloat16, DEVICE)]

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
