"""The encoder's ops under every body: stem, residual block, upsample_add."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_memory import GUARD, surrounded
from test_ops import BODIES, GRID, check
from test_torch import check_compiled, same
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import lmfn_kernels
from lmfn_kernels import Conv, upsample_add
from lmfn_kernels.testing import (
    assert_rounded,
    block_case,
    block_flat,
    conv,
    differentiate,
    exactly,
    random,
    stem_case,
    stem_flat,
    upsample_add_case,
)

F32, F64 = torch.float32, torch.float64

CASES: dict[str, tuple[Any, list[Tensor]]] = {
    "stem": (stem_flat(), stem_case(2, 6, 5, 9, 8, F32)),
    "unpadded": (stem_flat(padding=0), stem_case(1, 6, 5, 8, 9, F32)),
    "block": (block_flat(), block_case(1, 6, 5, 9, 8, F32)),
    "lean block": (block_flat(save_middle=False), block_case(1, 6, 6, 9, 8, F32)),
    "upsampled block": (block_flat(upsample=True), block_case(1, 6, 6, 5, 4, F32)),
    "upsample_add": (upsample_add, upsample_add_case(2, 6, 9, 8, (5, 4), F32)),
}


@pytest.mark.parametrize(("body", "dtype"), GRID)
@pytest.mark.parametrize("padding", [1, 0])
def test_stem(body: str, dtype: torch.dtype, padding: int) -> None:
    check(body, stem_flat(padding), stem_case(2, 6, 7, 9, 19, dtype))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 1), (2, 2), (17, 35)])
def test_stem_of_a_few_pixels_and_of_more_than_a_tile(body: str, height: int, width: int) -> None:
    check(body, stem_flat(), stem_case(1, 3, 2, height, width, F32))


@pytest.mark.parametrize("body", BODIES)
def test_of_the_network(body: str) -> None:
    """Its own channels."""
    check(body, stem_flat(), stem_case(1, 64, 64, 12, 18, F32))
    check(body, block_flat(), block_case(1, 64, 64, 9, 10, F32))
    check(body, block_flat(upsample=True), block_case(1, 50, 50, 5, 6, F32))


@pytest.mark.parametrize(("body", "dtype"), GRID)
@pytest.mark.parametrize("options", [{}, {"upsample": True, "save_middle": False}], ids=str)
def test_residual_block(body: str, dtype: torch.dtype, options: dict[str, bool]) -> None:
    check(body, block_flat(**options), block_case(2, 6, 5, 5, 11, dtype))


@pytest.mark.parametrize(("body", "dtype"), GRID)
def test_upsample_add(body: str, dtype: torch.dtype) -> None:
    check(body, upsample_add, upsample_add_case(2, 6, 9, 19, (5, 10), dtype))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("low", [(1, 1), (4, 9), (9, 19), (12, 4)])
def test_upsample_add_of_any_size(body: str, low: tuple[int, int]) -> None:
    """A pixel, half the size rounded down, the same size, a larger one; exactly half is below."""
    check(body, upsample_add, upsample_add_case(1, 3, 9, 19, low, F32))


@pytest.mark.parametrize("body", BODIES)
def test_upsample_add_of_many_channels_to_twice_the_size(body: str) -> None:
    """More than one block of channels, not a multiple of it; PyTorch's own upsampling in float64 beside."""
    a, b = upsample_add_case(1, 70, 4, 6, (2, 3), F64)
    with lmfn_kernels.backend(body):
        results, gradients = differentiate(upsample_add, [a, b])
    with lmfn_kernels.backend("reference"):
        expected, expected_gradients = differentiate(upsample_add, [a, b])
    for x, y in zip([*results, *gradients], [*expected, *expected_gradients], strict=True):
        assert x is not None
        assert y is not None
        assert (x - y).abs().max() <= 1e-13


@pytest.mark.parametrize("body", BODIES)
# Derandomised and not shrunk: the same examples everywhere, and a failure names one in seconds.
@settings(
    max_examples=5,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_of_any_kind(body: str, data: st.DataObject) -> None:
    """Shapes, strides, dtypes, and which inputs need gradients."""
    name = data.draw(st.sampled_from(["stem", "block", "upsampled block", "upsample_add"]), label="op")
    b, c, n, h, w = (
        data.draw(st.integers(1, high), label=x) for x, high in zip("bcnhw", (2, 9, 9, 20, 20), strict=True)
    )
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]), label="dtype")
    torch.manual_seed(data.draw(st.integers(0, 99), label="seed"))
    if name == "stem":
        tensors = stem_case(b, c, n, h, w, dtype)
    elif name == "upsample_add":
        tensors = upsample_add_case(b, c, h, w, (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))), dtype)
    else:
        tensors = block_case(b, c, n, h, w, dtype)
    kind = data.draw(st.sampled_from(["plain", "channels_last", "sliced", "expanded", "transposed"]), label="memory")
    inputs = tensors[0].shape[1]
    if kind == "channels_last":
        tensors = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
    elif kind == "sliced":
        tensors[0] = random((b, inputs + 3, h + 2, w + 1), dtype)[:, 2:-1, 1:-1, 1:]
    elif kind == "expanded":
        tensors[0] = random((1, inputs, h, 1), dtype).expand(b, inputs, h, w)
    elif kind == "transposed":
        tensors[0] = random((b, inputs, w, h), dtype).mT
    needs = data.draw(st.lists(st.booleans(), min_size=len(tensors), max_size=len(tensors)), label="needs")
    check(body, CASES[name][0], tensors, needs)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Every image and partial sum that a kernel is given to write starts as NaN, amid a guard band that must stay."""
    from lmfn_kernels.conv import triton_backend as convolution
    from lmfn_kernels.mshf import triton_backend as mshf
    from lmfn_kernels.runtime import launch
    from lmfn_kernels.upsample import triton_backend as bilinear

    made: list[tuple[Tensor, Tensor]] = []

    def empty(like: Tensor, b: int, c: int, h: int, w: int) -> Tensor:
        made.append(surrounded(torch.full((b, c, h, w), float("nan"), dtype=like.dtype), 7.0))
        return made[-1][0]

    def partial(like: Tensor, splits: int, shape: tuple[int, ...]) -> Tensor:
        return torch.full((splits, *shape), float("nan"), dtype=launch.accumulator_dtype(like))

    for module in (launch, convolution, bilinear, mshf):
        for name, made_here in (("empty_image", empty), ("partial_sums", partial)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, made_here)
    return made


@pytest.mark.parametrize("name", CASES)
def test_nothing_beyond_the_image_is_read_or_written(poisoned: list[tuple[Tensor, Tensor]], name: str) -> None:
    function, tensors = CASES[name]
    exact, exact_gradients = exactly(function, tensors)
    tensors = [surrounded(t, float("nan"))[0] if t.ndim == 4 and t.shape[2] > 3 else t for t in tensors]
    with lmfn_kernels.backend("triton"):
        results, gradients = differentiate(function, tensors)
    for found, expected in zip([*results, *gradients], [*exact, *exact_gradients], strict=True):
        assert found is not None
        assert expected is not None
        assert_rounded("result or gradient", found, expected)
    assert poisoned
    for view, memory in poisoned:
        written = torch.zeros(memory.numel(), dtype=torch.bool)
        written.as_strided(view.shape, view.stride(), GUARD).fill_(True)
        assert (memory[~written] == 7.0).all(), "a kernel wrote beyond its image"


@pytest.mark.parametrize("body", BODIES)
def test_gradcheck(body: str) -> None:
    """Against finite differences, in float64, for inputs that no activation's kink is near."""
    cases: list[tuple[Any, list[Tensor]]] = [
        (stem_flat(), stem_case(1, 3, 2, 5, 4, F64)),
        (stem_flat(padding=0), stem_case(1, 3, 2, 5, 6, F64)),
        (block_flat(), block_case(1, 3, 2, 4, 5, F64)),
        (block_flat(upsample=True), block_case(1, 2, 3, 2, 3, F64)),
        (upsample_add, upsample_add_case(1, 2, 5, 7, (3, 2), F64)),
    ]
    with lmfn_kernels.backend(body):
        for function, tensors in cases if body == "torch" else cases[::2]:  # the interpreter takes its time
            assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in tensors], fast_mode=True)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", CASES)
def test_same_bits_and_inputs_left_alone(name: str, body: str) -> None:
    function, tensors = CASES[name]
    before = [t.clone() for t in tensors]
    with lmfn_kernels.backend(body):
        first, again = (differentiate(function, tensors) for _ in range(2))
    same(first, again)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


def kept(function: Any, tensors: list[Tensor]) -> int:
    """Elements that autograd holds on to, the inputs not."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    given_here = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    held: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        memory = t.untyped_storage()
        if memory.data_ptr() not in given_here:
            held[memory.data_ptr()] = memory.nbytes() // t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function(*leaves)
    return sum(held.values())


def test_kept_for_backward() -> None:
    """The stem: its result, for the signs. The block: its middle, or nothing. upsample_add: nothing."""
    expected = {"stem": 2 * 5 * 5 * 4, "unpadded": 5 * 3 * 4, "block": 5 * 72, "lean block": 0}
    expected |= {"upsampled block": 6 * 80, "upsample_add": 0}
    assert {name: kept(function, tensors) for name, (function, tensors) in CASES.items()} == expected


def test_f0_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stem's kernels have no memory of its size, forward or for the weights; for the image's gradient they have."""
    made: list[tuple[int, ...]] = []
    real = torch.empty_strided

    def empty_strided(size: tuple[int, ...], *rest: Any, **options: Any) -> Tensor:
        made.append(tuple(size))
        return real(size, *rest, **options)

    monkeypatch.setattr(torch, "empty_strided", empty_strided)
    tensors = stem_case(1, 6, 5, 10, 9, F32)
    for of_image in (False, True):
        with lmfn_kernels.backend("triton"):
            differentiate(stem_flat(), tensors, [of_image, True, True, True, True])
        assert ((1, 6, 10, 9) in made) == of_image


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", CASES)
def test_compiles_whole(name: str, body: str) -> None:
    check_compiled(*CASES[name][:2], body)


@pytest.mark.parametrize("name", ["stem", "upsampled block", "upsample_add"])
def test_compiles_for_any_size(name: str) -> None:
    torch._dynamo.reset()
    function = CASES[name][0]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for h, w in ((12, 16), (20, 31)):
        if name == "stem":
            tensors = stem_case(2, 6, 5, h, w, F32)
        elif name == "upsample_add":
            tensors = upsample_add_case(2, 6, h, w, (h // 2, w // 2), F32)
        else:
            tensors = block_case(2, 6, 5, h, w, F32)
        with lmfn_kernels.backend("torch"):
            same(differentiate(compiled, tensors), differentiate(function, tensors))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name: str, body: str, opcheck: Any) -> None:
    opcheck(*CASES[name][:2], body)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", CASES)
def test_autocast(name: str, body: str) -> None:
    """Computed in autocast's dtype, gradients in each input's."""
    dtype = torch.bfloat16 if body == "torch" else torch.float16
    function, tensors = CASES[name]
    with lmfn_kernels.backend(body), torch.autocast("cpu", dtype):
        results, gradients = differentiate(function, tensors)
    assert results[0].dtype == dtype
    for tensor, gradient in zip(tensors, gradients, strict=True):
        assert gradient is not None
        assert gradient.dtype == tensor.dtype
    exact, _ = exactly(function, [t.to(dtype) for t in tensors])
    # A bias is not rounded to 16 bits, which is one rounding of the exact value fewer or more.
    assert (results[0].double() - exact[0].value).abs().max() <= 3 * exact[0].largest.max()


@pytest.mark.parametrize("name", CASES)
def test_checkpoint(name: str) -> None:
    function, tensors = CASES[name]

    def call(*all_tensors: Tensor) -> Tensor:
        result: Tensor = checkpoint(function, *all_tensors, use_reentrant=False)
        return result

    same(differentiate(call, tensors), differentiate(function, tensors))


@pytest.mark.parametrize("name", CASES)
def test_second_order_is_refused_clearly(name: str) -> None:
    function, tensors = CASES[name]
    leaves = [t.detach().requires_grad_() for t in tensors]

    def second() -> Tensor:
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(first[0].square().sum(), leaves[0])[0]

    with lmfn_kernels.backend("torch"), pytest.raises(RuntimeError, match="has no second-order gradients"):
        second()
    with lmfn_kernels.backend("reference"):
        assert second().isfinite().all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("body", BODIES)
def test_weight_gradients_have_the_strides_of_weights(body: str, memory_format: torch.memory_format) -> None:
    """Or DistributedDataParallel would copy them."""
    for name in ("stem", "block"):
        function, tensors = CASES[name]
        tensors = [t.contiguous(memory_format=memory_format) if t.ndim == 4 else t for t in tensors]
        with lmfn_kernels.backend(body):
            _, gradients = differentiate(function, tensors)
        for tensor, gradient in zip(tensors[1:], gradients[1:], strict=True):
            assert gradient is not None
            assert gradient.stride() == tensor.stride()


def test_wrong_arguments_are_named() -> None:
    x, *flat = stem_case(1, 6, 5, 9, 8, F32)
    conv0, down = Conv(*flat[:2]), Conv(*flat[2:])
    with pytest.raises(ValueError, match="padding is 2; expected is 0 or 1"):
        lmfn_kernels.stem(x, conv0, down, padding=2)
    with pytest.raises(ValueError, match="height and width of at least 3"):
        lmfn_kernels.stem(x[:, :, :2], conv0, down, padding=0)
    with pytest.raises(ValueError, match=r"down.weight has shape .6, 3, 3, 3.; expected is .6, 6, 3, 3."):
        lmfn_kernels.stem(x, conv0, conv0)
    with pytest.raises(ValueError, match=r"conv2.weight has shape .5, 6, 3, 3.; expected is .6, 5, 3, 3."):
        lmfn_kernels.residual_block(random((1, 6, 5, 5), F32), down, down)
    with pytest.raises(ValueError, match=r"b has shape .1, 5, 2, 2.; expected is .1, 6, any, any."):
        upsample_add(random((1, 6, 5, 5), F32), random((1, 5, 2, 2), F32))
    wide = [random((1, 4, 9, 8), F32), Conv(*conv(6, 4, 3, F32)), down]
    with lmfn_kernels.backend("triton"), pytest.raises(ValueError, match="x has 4 channels, and the stem's kernels"):
        lmfn_kernels.stem(*wide)
    assert lmfn_kernels.stem(*wide).shape == (1, 5, 5, 4), "the plain body takes it"
