"""Bilinear upsampling, and the convolution of an upsampled map that is never written to memory."""

import pytest
import torch
import torch.nn.functional as F

import lmfn_kernels
from lmfn_kernels import Conv, folded, upsample_add, upsampled_conv3x3
from lmfn_kernels.cases import upsample_add_inputs, upsampled_conv_from_flat, upsampled_conv_inputs
from lmfn_kernels.runtime.launch import intercepting
from lmfn_kernels.testing import assert_correct, differentiate, random
from lmfn_kernels.upsample.backend import implementation
from lmfn_kernels.upsample.grid import upsample
from lmfn_kernels.upsample.polyphase import AXIS, PARTS, fold_upsampling, unfold_gradient

F32, F64 = torch.float32, torch.float64


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("low", [(1, 1), (4, 9), (9, 19), (12, 4)])
def test_upsample_add_of_any_size(low: tuple[int, int]) -> None:
    """A single pixel, half the size rounded down, the same size, and a larger one; twice the size is tested below."""
    assert_correct(upsample_add, upsample_add_inputs(1, 3, 9, 19, low, F32))


@pytest.mark.usefixtures("backend")
def test_upsample_add_of_many_channels_to_twice_the_size() -> None:
    """More than one block of channels, not a multiple of it; compared with PyTorch's own upsampling in float64."""
    inputs = upsample_add_inputs(1, 70, 4, 6, (2, 3), F64)
    results, gradients = differentiate(upsample_add, inputs)
    with lmfn_kernels.backend("reference"):
        expected, expected_gradients = differentiate(upsample_add, inputs)
    for x, y in zip([*results, *gradients], [*expected, *expected_gradients], strict=True):
        assert x is not None
        assert y is not None
        assert (x - y).abs().max() <= 1e-13


@pytest.mark.parametrize("fixed_grid", [False, True])
def test_gradients_reach_only_the_pixels_that_were_read(fixed_grid: bool) -> None:
    """Infinity times a weight of 0 would be NaN. Sizes above and below the smaller map's; the fixed grid repeats its
    last row or is cropped."""
    functions = implementation("triton")
    for low, size in (((2, 3), (13, 9)), ((3, 2), (6, 4)), ((4, 3), (3, 5))):
        g, v = random((1, 3, *size), F64), torch.zeros((1, 3, *low), dtype=F64, requires_grad=True)
        g[:, :, size[0] // 2, size[1] // 2] = torch.inf
        at = torch.where(g.isinf(), 1.0, 0.0)
        (reached,) = torch.autograd.grad(upsample(v, size, fixed_grid), v, at)
        found = functions.upsample_backward(functions.as_kernel_image(g), v.detach(), fixed_grid)
        assert torch.equal(found.isinf(), reached != 0), (low, size)
        assert not found.isnan().any(), (low, size)


@pytest.mark.usefixtures("backend")
def test_convolution_of_many_channels() -> None:
    assert_correct(upsampled_conv_from_flat, upsampled_conv_inputs(1, 70, 5, 4, 5, F32))


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (5, 2), (33, 65)])
def test_convolution_of_any_size(size: tuple[int, int]) -> None:
    """A single pixel, an odd number along one axis or the other, and tiles that do not touch the edge of the image;
    without a residual. Results and gradients."""
    inputs = upsampled_conv_inputs(1, 4, 3, *size, F64)[:-1]
    with lmfn_kernels.backend("triton"):
        results, gradients = differentiate(upsampled_conv_from_flat, inputs)
    with lmfn_kernels.backend("reference"):
        expected, expected_gradients = differentiate(upsampled_conv_from_flat, inputs)
    for x, y in zip([*results, *gradients], [*expected, *expected_gradients], strict=True):
        assert x is not None
        assert y is not None
        assert (x - y).abs().max() <= 1e-12


@pytest.mark.parametrize("size", [(1, 4), (4, 3), (3, 3)])
def test_a_folded_convolution_has_the_same_bits(backend_dtype: torch.dtype, size: tuple[int, int]) -> None:
    """One fold for even and odd sizes, with and without autograd; the gradient of x is the same, too."""
    x, weight, bias, residual = upsampled_conv_inputs(1, 5, 3, *size, backend_dtype)
    once = folded(Conv(weight, bias))
    expected, gradients = differentiate(lambda x, r: upsampled_conv3x3(x, Conv(weight, bias), r), [x, residual])
    found, same = differentiate(lambda x, r: upsampled_conv3x3(x, once, r), [x, residual])
    for one, other in zip([*found, *same], [*expected, *gradients], strict=True):
        assert torch.equal(one, other)  # type: ignore[arg-type]
    with torch.no_grad():
        weight.zero_()  # `once` has copies
        bias.zero_()
        assert torch.equal(upsampled_conv3x3(x, once, residual), expected[0])


@pytest.mark.parametrize("of", ["triton", "torch", "reference"])
@pytest.mark.parametrize("taken", ["triton", "torch", "reference"])
def test_a_folded_convolution_under_another_backend(of: str, taken: str) -> None:
    """Or for images in another dtype, under autocast: then its own weight is folded."""
    x, weight, bias, residual = upsampled_conv_inputs(1, 5, 3, 4, 6, F32)
    with lmfn_kernels.backend(of):
        once = folded(Conv(weight, bias))
    assert torch.equal(once.weight, weight)
    for cast in (False, True):
        with lmfn_kernels.backend(taken), torch.autocast("cpu", torch.float16, enabled=cast):
            expected = upsampled_conv3x3(x, Conv(once.weight, once.bias), residual)
            assert torch.equal(upsampled_conv3x3(x, once, residual), expected)


def test_a_folded_convolution_is_one_launch() -> None:
    x, weight, bias, residual = upsampled_conv_inputs(1, 8, 3, 4, 6, F32)
    counts = []
    with lmfn_kernels.backend("triton"):
        for conv in (Conv(weight, bias), folded(Conv(weight, bias))):
            launched: list[str] = []
            with intercepting(lambda _, kernel, *__, to=launched: to.append(kernel.__name__)):
                upsampled_conv3x3(x, conv, residual)
            counts.append(launched)
    assert counts == [["fold_upsampling_kernel", "upsampled_conv_kernel"], ["upsampled_conv_kernel"]]


def test_taps_left_out_are_zero() -> None:
    left_out = [AXIS[place][result][tap] for place in (1, 2) for result in (0, 1) for tap in (0, 2)]
    assert not any(map(any, left_out))


def test_fold() -> None:
    """Each part against the formula, on an image that is zero except in one place: edges, corners, interior."""
    x, weight, *_ = upsampled_conv_inputs(1, 2, 3, 5, 6, F64)
    folded = fold_upsampling(weight)
    y = torch.zeros(1, 12, 5, 6, dtype=F64)
    for (rows, columns), part in zip(PARTS, folded, strict=True):
        y[:, :, rows, columns] += F.conv2d(x[:, :, rows, columns], part, padding=1)
    up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    assert (F.pixel_shuffle(y, 2) - F.conv2d(up, weight, padding=1)).abs().max() <= 1e-14
    # `fold` is linear, and `unfold` is its adjoint.
    g = random(folded.shape)
    assert ((folded * g).sum() - (weight * unfold_gradient(g)).sum()).abs() <= 1e-12


@pytest.mark.usefixtures("backend")
def test_the_upsampled_map_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = upsampled_conv_inputs(1, 5, 3, 4, 6, F32)
    first = differentiate(upsampled_conv_from_flat, inputs)
    monkeypatch.setattr(F, "interpolate", None)
    for one, other in zip(first, differentiate(upsampled_conv_from_flat, inputs), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))  # type: ignore[arg-type]


@pytest.mark.usefixtures("backend")
def test_some_gradients_have_the_bits_of_all() -> None:
    inputs = upsampled_conv_inputs(1, 5, 3, 4, 6, F32)
    _, whole = differentiate(upsampled_conv_from_flat, inputs)
    for needs in torch.eye(4).bool().tolist():
        _, gradients = differentiate(upsampled_conv_from_flat, inputs, needs)
        for found, expected, need in zip(gradients, whole, needs, strict=True):
            assert (found is not None) == need
            assert found is None or torch.equal(found, expected)  # type: ignore[arg-type]


def test_errors_name_the_argument() -> None:
    x, weight, bias, residual = upsampled_conv_inputs(1, 5, 3, 4, 6, F32)
    with pytest.raises(ValueError, match=r"residual has shape .1, 3, 8, 11.; expected .1, 3, 8, 12."):
        lmfn_kernels.upsampled_conv3x3(x, Conv(weight, bias), residual[..., 1:])
    with pytest.raises(ValueError, match=r"conv.weight has shape .3, 5, 3, 3.; expected .3, 4, 3, 3."):
        lmfn_kernels.upsampled_conv3x3(x[:, :4], Conv(weight, bias))
    with pytest.raises(ValueError, match=r"b has shape .1, 5, 2, 2.; expected .1, 6, any, any."):
        upsample_add(random((1, 6, 5, 5), F32), random((1, 5, 2, 2), F32))
    with pytest.raises(ValueError, match=r"conv.weight has shape .3, 5, 1, 1.; expected .any, any, 3, 3."):
        folded(Conv(weight[..., :1, :1], bias))
    with pytest.raises(ValueError, match=r"conv.weight has shape .3, 5, 3, 3.; expected .3, 4, 3, 3."):
        upsampled_conv3x3(x[:, :4], folded(Conv(weight, bias)))
