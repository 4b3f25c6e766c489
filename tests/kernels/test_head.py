"""The head's op under every body: the convolution of an upsampled map that is never made."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_memory import surrounded
from test_ops import BODIES, GRID, check
from test_torch import check_compiled, same
from torch import Tensor

import lmfn_kernels
from lmfn_kernels import Conv
from lmfn_kernels.testing import (
    assert_rounded,
    differentiate,
    exactly,
    random,
    upsampled_conv_case,
    upsampled_conv_flat,
)
from lmfn_kernels.upsample.polyphase import PARTS, fold_upsampling, unfold_gradient

F32, F64 = torch.float32, torch.float64


@pytest.mark.parametrize(("body", "dtype"), GRID)
def test_against_the_formula(body: str, dtype: torch.dtype) -> None:
    check(body, upsampled_conv_flat, upsampled_conv_case(2, 6, 3, 9, 19, dtype))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (2, 2)])
def test_of_a_few_pixels(body: str, height: int, width: int) -> None:
    """One pixel, whose every neighbour is padding, among them."""
    check(body, upsampled_conv_flat, upsampled_conv_case(1, 3, 2, height, width, F32))


@pytest.mark.parametrize("body", BODIES)
def test_of_the_network_and_of_many_channels(body: str) -> None:
    check(body, upsampled_conv_flat, upsampled_conv_case(1, 50, 3, 9, 10, F32))
    check(body, upsampled_conv_flat, upsampled_conv_case(1, 70, 20, 4, 5, F32))


def test_tiles_within_the_image_meet_one_part() -> None:
    """An image of five by four tiles."""
    check("triton", upsampled_conv_flat, upsampled_conv_case(1, 4, 3, 40, 64, F32))


def test_fold() -> None:
    """Every part against the formula, on an image that is zero but at one place: the edges, the corners, the inside."""
    x, weight, _ = upsampled_conv_case(1, 2, 3, 5, 6, F64)
    folded = fold_upsampling(weight)
    y = torch.zeros(1, 12, 5, 6, dtype=F64)
    for (rows, columns), part in zip(PARTS, folded, strict=True):
        y[:, :, rows, columns] += F.conv2d(x[:, :, rows, columns], part, padding=1)
    up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    assert (F.pixel_shuffle(y, 2) - F.conv2d(up, weight, padding=1)).abs().max() <= 1e-14
    # Linear, and `unfold` is its adjoint.
    g = random(folded.shape)
    assert ((folded * g).sum() - (weight * unfold_gradient(g)).sum()).abs() <= 1e-12


def test_nothing_beyond_the_image_is_read_or_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmfn_kernels.upsample import triton_backend

    memory: list[Tensor] = []

    def planes(like: Tensor, b: int, c: int, h: int, w: int) -> Tensor:
        size = b * c * h * w
        memory.append(torch.full((size + 128,), 7.0, dtype=like.dtype))
        return memory[-1][64:-64].fill_(float("nan")).reshape(b, c, h, w)

    monkeypatch.setattr(triton_backend, "planes", planes)
    tensors = upsampled_conv_case(2, 6, 3, 9, 19, F32)
    exact, exact_gradients = exactly(upsampled_conv_flat, tensors)
    for filler in (float("nan"), float("inf")):
        tensors[0], _ = surrounded(tensors[0], filler)
        with lmfn_kernels.backend("triton"):
            results, gradients = differentiate(upsampled_conv_flat, tensors)
        for found, expected in zip([*results, *gradients], [*exact, *exact_gradients], strict=True):
            assert found is not None
            assert expected is not None
            assert_rounded("result or gradient", found, expected)
    assert len(memory) == 2
    assert all((m[:64] == 7).all() and (m[-64:] == 7).all() for m in memory)


@pytest.mark.parametrize("body", BODIES)
def test_amid_pytorch(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences, the same bits again and compiled, some gradients only, weights' strides, no upsampled map."""
    tensors = upsampled_conv_case(1, 5, 3, 4, 6, F32)
    check_compiled(upsampled_conv_flat, tensors, body, dynamic=True)
    with lmfn_kernels.backend(body):
        leaves = [t.requires_grad_() for t in upsampled_conv_case(1, 2, 3, 3, 4, F64)]
        assert torch.autograd.gradcheck(upsampled_conv_flat, leaves, fast_mode=True)
        first = differentiate(upsampled_conv_flat, tensors)
        same(first, differentiate(upsampled_conv_flat, tensors))
        for needs in ([True, False, False], [False, True, False], [False, False, True]):
            _, gradients = differentiate(upsampled_conv_flat, tensors, needs)
            for found, whole, need in zip(gradients, first[1], needs, strict=True):
                assert found is None or torch.equal(found, whole) == need
        last = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
        _, gradients = differentiate(upsampled_conv_flat, last)
        assert gradients[1].stride() == last[1].stride()
        monkeypatch.setattr(F, "interpolate", None)
        same(differentiate(upsampled_conv_flat, tensors), first)


@pytest.mark.parametrize("body", BODIES)
def test_opcheck(body: str, opcheck: Any) -> None:
    opcheck(upsampled_conv_flat, upsampled_conv_case(1, 5, 3, 4, 6, F32), body)


def test_autocast_second_order_and_errors() -> None:
    x, weight, bias = tensors = upsampled_conv_case(1, 5, 3, 4, 6, F32)
    with torch.autocast("cpu", torch.bfloat16):
        results, gradients = differentiate(upsampled_conv_flat, tensors)
    assert results[0].dtype == torch.bfloat16
    assert all(g is not None and g.dtype == F32 for g in gradients)
    leaves = [t.detach().requires_grad_() for t in tensors]
    first = torch.autograd.grad(upsampled_conv_flat(*leaves).square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="upsampled_conv3x3 has no second-order gradients"):
        torch.autograd.grad(first[0].square().sum(), leaves[0])
    with pytest.raises(ValueError, match=r"conv.weight has shape .3, 5, 3, 3.; expected is .3, 4, 3, 3."):
        lmfn_kernels.upsampled_conv3x3(x[:, :4], Conv(weight, bias))
