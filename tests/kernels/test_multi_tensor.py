"""Many small tensors in one launch: an op's weights laid out, and its gradients summed."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lmfn_kernels
from bench.host import Launches
from lmfn_kernels import conv3x3, weight_layout
from lmfn_kernels.cases import (
    channel_gate_from_flat,
    channel_gate_inputs,
    conv_inputs,
    rfdb_from_flat,
    rfdb_inputs,
    stem_from_flat,
    stem_inputs,
)
from lmfn_kernels.testing import random

pytest.importorskip("triton")

F16, F32, F64 = torch.float16, torch.float32, torch.float64


def weights(dtype: torch.dtype) -> list[Tensor]:
    """More tensors than one launch takes, with all kinds of strides."""
    shapes = [(n, k, size, size) for n, k, size in ((3, 5, 3), (16, 4, 1), (1, 1, 3), (50, 25, 1), (9, 70, 3))]
    found = [random(shape, dtype) for shape in shapes]
    found += [weight.contiguous(memory_format=torch.channels_last) for weight in found]
    found += [weight.transpose(0, 1) for weight in found[:4]] + [random((12, 8, 3, 3), dtype)[::2, 1:7]]
    return [*found, *(random((2, 3, 1, 1), dtype) for _ in range(20))]


@pytest.mark.parametrize(("dtype", "to"), [(F32, F16), (F32, F32), (F64, F64)])
def test_lay_out(dtype: torch.dtype, to: torch.dtype) -> None:
    from lmfn_kernels.runtime.launch import lies_as_taps, weight_as_taps
    from lmfn_kernels.runtime.layout import pitch
    from lmfn_kernels.runtime.multi_tensor import SLOTS, lay_out

    given = weights(dtype)
    assert len(given) > SLOTS[-1]
    with lmfn_kernels.backend("triton"):
        given.append(weight_layout(given[0].to(to)))
    with Launches() as launched:
        found = lay_out(given, to)
    todo = sum(weight.dtype != to or not lies_as_taps(weight) for weight in given)
    assert launched.ours == -(-todo // SLOTS[-1])
    assert launched.others.keys() <= {"copy_"}, "those of Triton's interpreter"
    assert found[-1] is given[-1], "it lies so already"
    for weight, laid_out in zip(given, found, strict=True):
        assert torch.equal(laid_out, weight.to(to))
        assert lies_as_taps(laid_out)
        taps = weight_as_taps(laid_out)
        assert taps.data_ptr() == laid_out.data_ptr()
        assert torch.equal(taps, weight.to(to).flatten(2).permute(2, 1, 0))
        if laid_out is not weight:  # kernels also read the padding
            rows = taps.shape[0], taps.shape[1], pitch(weight.shape[0], to) - weight.shape[0]
            assert not taps.as_strided(rows, taps.stride(), taps.storage_offset() + taps.shape[2]).any()


def test_sum_gradients() -> None:
    """Into each tensor's dtype and strides, whatever the order of the dimensions of the partial sums; nothing else is
    written."""
    from lmfn_kernels.runtime.gradients import PartialSums
    from lmfn_kernels.runtime.multi_tensor import sum_gradients

    tensors = [*weights(F32), random((7,), F32), random((300,), F32), random((1,), F16)]
    partials = []
    for i, tensor in enumerate(tensors):
        memory = random((1 + 6 * (i % 4) if tensor.ndim > 1 else 300, *tensor.shape[::-1]), F32)
        partials.append(memory.permute(0, *range(tensor.ndim, 0, -1)))
    gradients = [PartialSums(values) for values in partials]
    with Launches() as launched:
        found = sum_gradients(gradients, tensors)
    assert launched.ours == 3, "two of float32, one of float16"
    assert launched.others.keys() <= {"copy_"}, "those of Triton's interpreter"
    for tensor, values, result in zip(tensors, partials, found, strict=True):
        assert (result.dtype, result.stride()) == (tensor.dtype, torch.empty_like(tensor).stride())
        torch.testing.assert_close(result, values.double().sum(0).to(tensor.dtype), rtol=1e-3, atol=1e-5)
    assert all(map(torch.equal, found, sum_gradients(gradients, tensors)))


@pytest.mark.parametrize(
    "of",
    [
        lambda m: m[:, :60],
        lambda m: m[:, :58],
        lambda m: m[:, 1:61],
        lambda m: m[:, ::2],
        lambda m: m[:, :60].unflatten(1, (5, 3, 4)).permute(0, 2, 3, 1),
        lambda m: m[:, :60].unflatten(1, (5, 12))[..., :8],
        lambda m: m.flatten()[: 70 * 63].view(70, 63)[:, :60],
    ],
    ids=["in order", "not a multiple of 4", "later", "every second", "permuted", "rows with gaps", "odd strides"],
)
def test_wherever_partial_sums_lie(of: Callable[[Tensor], Tensor]) -> None:
    """What is next to them is not summed."""
    from lmfn_kernels.runtime.gradients import PartialSums
    from lmfn_kernels.runtime.multi_tensor import sum_gradients

    memory = torch.full((70, 64), math.nan)
    values = of(memory)
    values.copy_(random(tuple(values.shape), F32))
    (found,) = sum_gradients([PartialSums(values)], [torch.empty(values.shape[1:])])
    torch.testing.assert_close(found, values.double().sum(0).float(), rtol=1e-5, atol=1e-5)


def test_tables_stay() -> None:
    """Their memory is not used for anything else: a CUDA graph with such a launch may be replayed at any time."""
    from lmfn_kernels.runtime import launch, multi_tensor

    def table(begin: int) -> Tensor:
        return multi_tensor._lay_out_table(((begin, (1, 1, 1, 1), (1, 1, 1, 1)),), F32, torch.device("cpu"))

    first = table(0)
    for begin in range(1, launch.PLANS + 1):
        table(begin)
    assert table(0) is first


@pytest.mark.parametrize("count", [1, 4, 5, 8, 9, 16, 17, 32])
def test_any_number(count: int) -> None:
    """A launch with as few arguments as there are tensors of, up to a power of two, reads each of them."""
    from lmfn_kernels.runtime.multi_tensor import lay_out

    given = [random((i % 3 + 1, 2, 1, 1), F32) for i in range(count)]
    with Launches() as launched:
        found = lay_out(given, F16)
    assert launched.ours == 1
    assert all(torch.equal(laid_out, weight.half()) for laid_out, weight in zip(found, given, strict=True))


@pytest.mark.parametrize(
    ("function", "tensors", "forward", "backward"),
    [
        (rfdb_from_flat, rfdb_inputs(1, 6, 3, 2, 15, 16, F32), 8, 17),
        (conv3x3, conv_inputs(1, 5, 6, 7, 8, F32), 2, 3),
        (stem_from_flat(), stem_inputs(1, 6, 7, 9, 10, F32)[:-1], 3, 7),  # without the gradient of a mean
        (channel_gate_from_flat(), channel_gate_inputs(1, 6, 7, 8, F32), 1, 3),
    ],
    ids=["rfdb", "conv3x3", "stem", "channel_gate"],
)
def test_launches_of_an_op(function: Callable[..., Tensor], tensors: list[Tensor], forward: int, backward: int) -> None:
    """One launch lays out all weights, for both passes, and one sums all gradients; PyTorch launches nothing."""
    leaves = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
    leaves = [t.detach().requires_grad_() for t in leaves]
    with lmfn_kernels.backend("triton"), torch.autocast("cpu", F16):
        with Launches() as of_forward:
            y = function(*leaves)
        gradient = torch.ones_like(y)
        with Launches() as of_backward:
            y.backward(gradient)
    assert (of_forward.others + of_backward.others).keys() <= {"_to_copy", "copy_", "clone"}, "images' alone"
    assert (of_forward.ours, of_backward.ours) == (forward, backward)
