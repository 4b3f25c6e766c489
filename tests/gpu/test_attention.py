"""ALFM's and ACFM's kernels on a GPU: float64, a hundred times over, graphs, large maps, memory."""

from collections.abc import Callable, Iterator

import pytest
import torch
from test_gpu import DEVICE, DTYPES, TIMES, same
from torch import Tensor

import lmfn_kernels
from lmfn_kernels.testing import (
    assert_rounded,
    attention_case,
    attention_flat,
    channel_gate_case,
    channel_gate_flat,
    differentiate,
    exactly,
    merge_case,
    merge_flat,
)

pytestmark = pytest.mark.gpu  # asked for by `-m gpu` alone, and then a failure where there is no GPU

Case = tuple[Callable[..., Tensor], Callable[[torch.dtype], list[Tensor]]]


def attention(b: int, n: int, c: int, h: int, w: int, form: str = "channels") -> Case:
    return attention_flat(form), lambda dtype: attention_case(b, n, c, c, h, w, dtype, DEVICE, form=form)


def gate(b: int, c: int, h: int, w: int, form: str) -> Case:
    return channel_gate_flat(form), lambda dtype: channel_gate_case(b, c, h, w, dtype, DEVICE, form=form)


def merge(b: int, n: int, c: int, h: int, w: int, form: str, rows: str = "channels") -> Case:
    return merge_flat(form, rows), lambda dtype: merge_case(b, n, c, h, w, dtype, DEVICE, form=form)


# The network's widths and the kernels' limits, at sizes that leave partial tiles.
CASES: dict[str, Case] = {
    "attention": attention(3, 4, 50, 37, 61),
    "attention-64": attention(2, 4, 64, 33, 65),
    "attention-cosine": attention(3, 4, 50, 37, 61, "channels-cosine"),
    "attention-layers": attention(3, 4, 50, 37, 61, "layers"),
    "attention-layers-cosine": attention(3, 3, 50, 37, 61, "layers-cosine"),
    "attention-512": attention(1, 8, 64, 19, 31, "channels-cosine"),
    "attention-one-map": attention(2, 1, 130, 19, 31),
    "gate": gate(3, 50, 37, 61, "pseudo3d"),
    "gate-full3d": gate(3, 50, 37, 61, "full3d"),
    "gate-64": gate(2, 64, 33, 65, "pseudo3d"),
    "merge": merge(3, 4, 50, 37, 61, "pseudo3d"),
    "merge-layers": merge(2, 4, 50, 33, 65, "full3d", "layers"),
    "merge-512": merge(1, 8, 64, 19, 31, "pseudo3d"),
    "gate-one-channel": gate(2, 1, 19, 31, "full3d"),
}


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32, so that its bound holds, whichever setting of PyTorch's an op follows."""
    torch.manual_seed(0)
    settings = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    with lmfn_kernels.backend("triton"):
        yield
    for setting, precision in zip(settings, before, strict=True):
        setting.fp32_precision = precision


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_against_float64_and_a_hundred_times_the_same(name: str, dtype: torch.dtype) -> None:
    function, make = CASES[name]
    tensors = make(dtype)
    exact, exact_gradients = exactly(function, tensors)
    found = differentiate(function, tensors)
    assert_rounded("result", found[0][0], exact[0])
    for i, (gradient, expected) in enumerate(zip(found[1], exact_gradients, strict=True)):
        assert gradient is not None
        assert expected is not None
        assert_rounded(f"gradient of input {i} {tuple(gradient.shape)}", gradient, expected)
    for _ in range(TIMES):
        same(differentiate(function, tensors), found)


@pytest.mark.parametrize("name", CASES)
def test_cuda_graph(name: str) -> None:
    """Forward and backward captured once, replayed on other numbers: nothing synchronises or is fixed at capture."""
    function, make = CASES[name]
    tensors = [t.requires_grad_() for t in make(torch.bfloat16)]

    def step() -> list[Tensor]:
        y = function(*tensors)
        return [y.detach(), *torch.autograd.grad(y.square().mean(), tensors)]

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
        tensors[0].copy_(tensors[0].flip(2))
    graph.replay()
    torch.cuda.synchronize()
    for result, expected in zip(captured, step(), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("name", ["attention", "attention-cosine", "gate"])
def test_compiled(name: str) -> None:
    """One graph, forward and backward, by the default compiler, with the bits of the eager call."""
    function, make = CASES[name]
    tensors = make(torch.bfloat16)
    torch._dynamo.reset()
    same(differentiate(torch.compile(function, fullgraph=True), tensors), differentiate(function, tensors))


def large(b: int, c: int, h: int, w: int, scale: float) -> Tensor:
    """A random map as kernels write it, so that none copies it."""
    from lmfn_kernels.runtime.launch import empty_image

    return empty_image(torch.empty(0, dtype=torch.bfloat16, device=DEVICE), b, c, h, w).normal_(std=scale)


@pytest.mark.parametrize("name", ["attention", "gate"])
def test_more_elements_than_int32_counts(name: str) -> None:
    """Maps of 2.15e9 elements: result and gradient of the last image are those of that image alone."""
    b, c, h, w = 4, 50, 3280, 3281
    maps = 4 if name == "attention" else 2
    if torch.cuda.get_device_properties(0).total_memory < 1e11:
        pytest.skip("the GPU has not the memory")
    function, make = CASES[name]
    images = [large(b, c, h, w, (2 / (h * w)) ** 0.5 if name == "attention" else 1.0) for _ in range(maps)]
    assert images[0].numel() > 2**31
    weights = [t for t in make(torch.bfloat16) if t.ndim != 4 or t.shape[2:] == (1, 1)]
    gradient = large(b, c, h, w, 1.0)

    def both(first: int) -> list[Tensor]:
        """Of the images from the first on: what the last one has."""
        leaves = [image[first:].requires_grad_() for image in images]
        order = [*leaves, *weights] if name == "attention" else [leaves[0], *weights, leaves[1]]
        y = function(*order)
        return [t[-1:].clone() for t in (y.detach(), *torch.autograd.grad(y, leaves, gradient[first:]))]

    for together, alone in zip(both(0), both(b - 1), strict=True):
        assert torch.equal(together, alone)


@pytest.mark.parametrize("name", ["attention", "gate"])
def test_peak_memory(name: str) -> None:
    """Inference: the result, and for ALFM matrices of NC x NC. Training: at most half of what the plain text has."""
    b, n, c, h, w = 4, 4, 50, 180, 320
    if name == "attention":
        function, tensors = attention_flat(), attention_case(b, n, c, c, h, w, torch.bfloat16, DEVICE)
        matrices = 36 * b * (n * c) ** 2 * 4  # 32 partial sums, and F F^T, M, P and P again in 16 bits at most
    else:
        function, tensors = channel_gate_flat(), channel_gate_case(b, c, h, w, torch.bfloat16, DEVICE)
        matrices = 0
    images = [t for t in tensors if t.ndim == 4 and t.shape[3] == w]
    from lmfn_kernels.runtime.launch import as_kernel_image

    leaves = [(as_kernel_image(t) if any(t is i for i in images) else t).requires_grad_() for t in tensors]

    def peak(backend: str, train: bool) -> int:
        def step() -> None:
            with torch.set_grad_enabled(train):
                y = function(*leaves)
                if train:
                    torch.autograd.grad(y, leaves, torch.ones_like(y))

        with lmfn_kernels.backend(backend):
            step()
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            step()
            torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    result = b * h * w * 56 * 2
    assert peak("triton", False) <= result + matrices + 2**20
    assert peak("triton", True) <= peak("reference", True) / 2
