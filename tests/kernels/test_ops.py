"""Properties of every op under both backends: float64, gradients, memory layouts, determinism."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import lmfn_kernels
from lmfn_kernels.cases import OPS, Size, is_image
from lmfn_kernels.testing import assert_correct, differentiate, random


def correct(name: str, inputs: list[Tensor], needs: list[bool] | None = None) -> None:
    op = OPS[name]
    assert_correct(op.function, inputs, needs, dtype=op.result_dtype(inputs[0].dtype))


@pytest.mark.parametrize("name", OPS)
def test_within_rounding_of_float64(name: str, backend_dtype: torch.dtype) -> None:
    """On images of more than one tile, with channels that do not fill a block."""
    images, height = (2, 9) if backend_dtype == torch.float32 else (1, 4)
    correct(name, OPS[name].draw((images, 3, 6, height, 19), backend_dtype))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", [name for name, op in OPS.items() if max(op.smallest) <= 3])
def test_a_few_pixels(name: str) -> None:
    for height, width in ((1, 1), (1, 5), (4, 1)):
        correct(name, OPS[name].draw((1, 2, 3, height, width), torch.float32))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", OPS)
def test_widths_of_the_network(name: str) -> None:
    correct(name, OPS[name].draw((1, *OPS[name].widths, 4, 6), torch.float32))


@pytest.mark.parametrize("name", OPS)
def test_gradcheck(name: str) -> None:
    """Against finite differences in float64, along one direction through all inputs. The kernels' gradients are
    compared with those of the formula above."""
    inputs = OPS[name].draw((1, 2, 2, 3, 4), torch.float64)
    direction = [random(t.shape) for t in inputs]

    def along(step: Tensor) -> Any:
        return OPS[name].function(*(t + step * d for t, d in zip(inputs, direction, strict=True)))

    assert torch.autograd.gradcheck(along, [torch.zeros(1, dtype=torch.float64, requires_grad=True)], fast_mode=True)


def steps(t: Tensor) -> list[int]:
    """The strides that occur in practice."""
    return [step for step, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def in_memory(image: Tensor, kind: str) -> Tensor:
    """An image of the same size, in memory of this kind."""
    b, c, h, w = image.shape
    if kind == "channels_last":
        return image.contiguous(memory_format=torch.channels_last)
    if kind == "sliced":
        return random((b, c + 3, h + 2, w + 1), image.dtype)[:, 2:-1, 1:-1, 1:] * image.std()
    if kind == "expanded":
        return (random((1, c, h, 1), image.dtype) * image.std()).expand(b, c, h, w)
    return image.mT.contiguous().mT if kind == "transposed" else image


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", OPS)
# The same examples everywhere, without shrinking, so that a failure names one within seconds.
@settings(max_examples=2, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_kind(name: str, data: st.DataObject) -> None:
    """Sizes, memory layout of every image, dtypes, and which inputs need gradients."""
    b, n, c, h, w = (data.draw(st.integers(1, m), label=x) for x, m in zip("bnchw", (2, 4, 9, 12, 18), strict=True))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.float16]), label="dtype")
    torch.manual_seed(data.draw(st.integers(0, 99), label="seed"))
    inputs = OPS[name].draw((b, n, c, h, w), dtype)
    kinds = st.sampled_from(["plain", "channels_last", "sliced", "expanded", "transposed"])
    inputs = [in_memory(t, data.draw(kinds, label="memory")) if is_image(t) else t for t in inputs]
    needs = data.draw(st.lists(st.booleans(), min_size=len(inputs), max_size=len(inputs)), label="needs")
    correct(name, inputs, needs)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", OPS)
def test_vectors_with_gaps(name: str) -> None:
    """Biases and other vectors whose values are not next to each other in memory."""
    inputs = OPS[name].draw((1, 2, 6, 4, 5), torch.float32)
    inputs = [torch.stack([t, t + 9], dim=1)[:, 0] if t.ndim == 1 else t for t in inputs]
    correct(name, inputs)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", OPS)
def test_gradients_without_memory_of_their_own(name: str) -> None:
    """Those of a sum are one number, expanded."""
    inputs = [t.requires_grad_() for t in OPS[name].draw((1, 2, 3, 4, 5), torch.float32)]
    found = results(name, inputs)
    dense = torch.autograd.grad(found, inputs, [torch.ones_like(y) for y in found], retain_graph=True)
    expanded = torch.autograd.grad(found, inputs, [y.new_ones(()).expand(y.shape) for y in found])
    assert all(map(torch.equal, dense, expanded))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_same_bits_inputs_left_alone_and_strides_of_weights(name: str, memory_format: torch.memory_format) -> None:
    """A weight's gradient has the weight's strides; otherwise DistributedDataParallel would copy it."""
    inputs = OPS[name].draw((1, 2, 3, 4, 5), torch.float32)
    inputs = [t.contiguous(memory_format=memory_format) if t.ndim == 4 else t for t in inputs]
    before = [t.clone() for t in inputs]
    (results, gradients), again = (differentiate(OPS[name].function, inputs) for _ in range(2))
    for one, other in zip([*results, *gradients], [*again[0], *again[1]], strict=True):
        assert torch.equal(one, other)  # type: ignore[arg-type]
    for t, unchanged, gradient in zip(inputs, before, gradients, strict=True):
        assert torch.equal(t, unchanged)
        assert gradient is not None
        assert t.shape[2:] not in ((1, 1), (3, 3)) or steps(gradient) == steps(t)


@pytest.mark.parametrize("name", OPS)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    """Only for the kernels: the order of sums in PyTorch depends on the size of the whole batch."""
    inputs = OPS[name].draw((4, 2, 5, 4, 5), torch.float32)
    alone = [t[1:2] if t.shape[0] == 4 else t for t in inputs]  # no weight has a size of 4
    with torch.no_grad(), lmfn_kernels.backend("triton"):
        for together, one in zip(results(name, inputs), results(name, alone), strict=True):
            assert torch.equal(together[1:2], one)


def results(name: str, inputs: list[Tensor]) -> list[Tensor]:
    found = OPS[name].function(*inputs)
    return [found] if isinstance(found, Tensor) else list(found)


def test_reference_is_what_it_says() -> None:
    """Under the backend `reference`, the formula's own results have gradients of any order."""
    inputs = [t.requires_grad_() for t in OPS["rfdb"].inputs(Size(1, 1, 2, 15, 15), torch.float64)]
    with lmfn_kernels.backend("reference"):
        assert torch.autograd.gradgradcheck(OPS["rfdb"].function, inputs, fast_mode=True)
