"""What kernels read and write beyond their images: nothing, whatever is there; and what is kept for backward."""

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
    gate_case,
    rfdb_case,
    rfdb_flat,
)

GUARD = 64


def surrounded(x: Tensor, filler: float) -> tuple[Tensor, Tensor]:
    """`x` as kernels read it, without a copy, amid `filler`, also between the pixels; and all of the memory."""
    from lmfn_kernels.runtime.layout import pitch

    b, c, h, w = x.shape
    s = pitch(c, x.dtype)
    memory = torch.full((b * h * w * s + 2 * GUARD,), filler, dtype=x.dtype)
    view = memory.as_strided((b, c, h, w), (h * w * s, 1, w * s, s), GUARD)
    return view.copy_(x), memory


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Every image and partial sum that a kernel is given to write starts as NaN, amid a guard band that must stay."""
    from lmfn_kernels.conv import triton_backend as conv
    from lmfn_kernels.rfdb import triton_backend as rfdb
    from lmfn_kernels.runtime import launch
    from lmfn_kernels.upsample import triton_backend as bilinear

    made: list[tuple[Tensor, Tensor]] = []

    def empty(like: Tensor, b: int, c: int, h: int, w: int, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or like.dtype
        filler = float("nan") if dtype.is_floating_point else 111
        made.append(surrounded(torch.full((b, c, h, w), filler, dtype=dtype), 7.0))
        return made[-1][0]

    def partial(like: Tensor, splits: int, shape: tuple[int, ...]) -> Tensor:
        return torch.full((splits, *shape), float("nan"), dtype=launch.accumulator_dtype(like))

    for module in (launch, conv, bilinear, rfdb):
        for name, made_here in (("empty_image", empty), ("partial_sums", partial)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, made_here)
    return made


@pytest.mark.parametrize("filler", [float("nan"), float("inf")])
def test_nothing_beyond_the_image_is_read_or_written(poisoned: list[tuple[Tensor, Tensor]], filler: float) -> None:
    tensors = rfdb_case(2, 10, 5, 4, 17, 19)
    exact, exact_gradients = exactly(rfdb_flat, tensors)
    tensors[0], memory = surrounded(tensors[0], filler)
    with lmfn_kernels.backend("triton"):
        results, gradients = differentiate(rfdb_flat, tensors)
    assert_rounded("result", results[0], exact[0])
    for i, (gradient, expected) in enumerate(zip(gradients, exact_gradients, strict=True)):
        assert gradient is not None
        assert expected is not None
        assert_rounded(f"gradient {i}", gradient, expected)
    assert len(poisoned) > 20
    for view, memory in poisoned:
        written = torch.zeros(memory.numel(), dtype=torch.bool)
        written.as_strided(view.shape, view.stride(), GUARD).fill_(True)
        assert (memory[~written] == 7.0).all(), "a kernel wrote beyond its image"


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("stride", [1, 2])
def test_strided_convolution_reads_no_neighbour(stride: int) -> None:
    tensors = conv_case(2, 6, 7, 9, 10, torch.float64, stride=stride)
    function = conv_flat(stride=stride, activation="leaky_relu")
    exact, exact_gradients = exactly(function, tensors)
    tensors[0], _ = surrounded(tensors[0], float("nan"))
    with lmfn_kernels.backend("triton"):
        results, gradients = differentiate(function, tensors)
    for result, expected in zip([*results, *gradients], [*exact, *exact_gradients], strict=True):
        assert result is not None
        assert expected is not None
        assert_rounded("result or gradient", result, expected)


def kept_bytes(backend: str, tensors: list[Tensor]) -> int:
    """Bytes of all memory that autograd holds on to, the input included, the parameters not."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    parameters = {leaf.untyped_storage().data_ptr() for leaf in leaves[1:]}
    held: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        memory = t.untyped_storage()
        if memory.data_ptr() not in parameters:
            held[memory.data_ptr()] = memory.nbytes()
        return t

    with lmfn_kernels.backend(backend), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        rfdb_flat(*leaves)
    return sum(held.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_kept_for_backward(backend: str, dtype: torch.dtype) -> None:
    tensors = rfdb_case(1, 50, 25, 12, 32, 40, dtype)
    ratio = kept_bytes(backend, tensors) / tensors[0].nbytes
    assert 4 <= ratio <= 5.5, "three maps and the input are kept, and no more than 1.5 inputs beside them"


def test_kept_for_backward_under_autocast() -> None:
    """In bytes of the float32 input, which has to be kept in 16 bits too."""
    tensors = rfdb_case(1, 50, 25, 12, 32, 40, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ratio = kept_bytes("torch", tensors) / tensors[0].nbytes
    assert ratio <= 5.5 / 2 + 0.5


def test_plain_text_keeps_much_more() -> None:
    """So that the measure above measures."""
    tensors = rfdb_case(1, 50, 25, 12, 32, 40, torch.float32)
    assert kept_bytes("reference", tensors) / tensors[0].nbytes > 10


def far_apart(x: Tensor) -> Tensor:
    """The two images of `x`, as kernels read them, more than 2^31 elements apart; between them no memory is used."""
    from lmfn_kernels.runtime.layout import pitch

    b, c, h, w = x.shape
    s = pitch(c, x.dtype)
    apart = 2**31 + 1024
    return torch.empty(apart + h * w * s, dtype=x.dtype).as_strided((b, c, h, w), (apart, 1, w * s, s)).copy_(x)


def test_more_elements_than_int32_counts() -> None:
    from lmfn_kernels.rfdb import triton_backend

    dtype = torch.float16
    y, a, v, *weights = gate_case(2, 10, 4, 16, 18, (4, 5), dtype)
    convs = lmfn_kernels.Conv(*weights[:2]), lmfn_kernels.Conv(*weights[2:])
    near, far = [triton_backend.layout(t) for t in (y, a, v)], [far_apart(t) for t in (y, a, v)]
    assert all(triton_backend.layout(t) is t for t in far), "read where it lies"
    assert torch.equal(triton_backend.gate(*near, *convs), triton_backend.gate(*far, *convs))
    for one, other in zip(triton_backend.pool(near[1]), triton_backend.pool(far[1]), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(
        triton_backend.upsample_backward(near[1], near[2]), triton_backend.upsample_backward(far[1], near[2])
    )
    low, index = triton_backend.pool(near[1])
    assert torch.equal(
        triton_backend.pool_backward(low, index, near[1]), triton_backend.pool_backward(far_apart(low), index, near[1])
    )
    x, weight, bias, _ = conv_case(2, 10, 10, 16, 18, dtype)
    x = triton_backend.layout(x)
    for stride in (1, 2):
        options = {"stride": stride, "padding": 1}
        e = triton_backend.conv(x, weight, bias, **options)
        assert torch.equal(e, triton_backend.conv(far_apart(x), weight, bias, **options))
        assert torch.equal(
            triton_backend.input_gradient(e, weight, x, **options),
            triton_backend.input_gradient(far_apart(e), weight, x, **options),
        )
        gradients = [triton_backend.weight_gradient(e, image, weight, **options) for image in (x, far_apart(x))]
        assert torch.equal(gradients[0][0], gradients[1][0])
