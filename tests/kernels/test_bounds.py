"""Kernels neither read nor write outside their images, whatever is there, even if images are far apart."""

import gc
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import lmfn_kernels
from lmfn_kernels import Conv, conv3x3
from lmfn_kernels.cases import OPS, conv, is_image
from lmfn_kernels.runtime import configs
from lmfn_kernels.runtime.layout import compact_pixels, pixel_pitch
from lmfn_kernels.runtime.torch_private import FakeTensorMode
from lmfn_kernels.testing import assert_within_rounding, differentiate, gradients_for, random, reference_with_bounds
from tests.kernels.conftest import GUARD, amid_nan

FOLDERS = ("acfm", "alfm", "conv", "mshf", "rfdb", "upsample")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """All memory that kernels are given for writing: filled with NaN, between guard bands that must not change."""
    made: list[tuple[Tensor, Tensor]] = []
    empty_strided = torch.empty_strided

    def guarded(size: Sequence[int], stride: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        extent = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        memory = torch.full((extent + 2 * GUARD,), 7, dtype=dtype, device=device)
        made.append((memory.as_strided(size, stride, GUARD), memory))
        return made[-1][0].fill_(float("nan") if dtype.is_floating_point else 111)

    def packed(size: Sequence[int], **options: Any) -> Tensor:
        return guarded(size, empty_strided(size, (0,) * len(size)).contiguous().stride(), **options)

    monkeypatch.setattr(torch, "empty_strided", guarded)
    monkeypatch.setattr(torch, "empty", packed)
    return made


def hold_to_bounds(name: str, written: list[tuple[Tensor, Tensor]]) -> None:
    inputs = OPS[name].draw((1, 2, 7, 9, 18), torch.float64)  # 7, 3 and 1 channels leave gaps between pixels
    expected, of_gradients = reference_with_bounds(OPS[name].function, inputs)
    inputs = [amid_nan(t) if is_image(t) else t for t in inputs]
    written.clear()
    with lmfn_kernels.backend("triton"):
        results, gradients = differentiate(OPS[name].function, inputs)
    for found, reference in zip([*results, *gradients], [*expected, *of_gradients], strict=True):
        assert found is not None
        assert reference is not None
        assert_within_rounding("result or gradient", found, reference)
    hold_guards(written)


def hold_guards(written: list[tuple[Tensor, Tensor]]) -> None:
    from lmfn_kernels.runtime import launch

    assert written
    for view, memory in written:
        inside = torch.zeros(memory.numel(), dtype=torch.bool)
        shape, lies = list(view.shape), (view.stride(), view.storage_offset())
        if id(view) in launch._padded:
            shape[1] = view.stride(3)
            padding = memory.as_strided(shape, *lies)[:, view.shape[1] :]
            assert not padding.any(), "kernels will read something other than zeros after the channels"
        inside.as_strided(shape, *lies).fill_(True)
        assert (memory[~inside] == 7.0).all(), "a kernel wrote beyond its image"


@pytest.mark.parametrize("name", OPS)
def test_nothing_beyond_the_image_is_read_or_written(name: str, written: list[tuple[Tensor, Tensor]]) -> None:
    hold_to_bounds(name, written)


@pytest.mark.parametrize("name", ["conv3x3-down", "distill_stage", "esa_gate", "layer_apply"])
def test_without_tma(name: str, monkeypatch: pytest.MonkeyPatch, written: list[tuple[Tensor, Tensor]]) -> None:
    """Kernels that are given pointers instead of descriptors compute the same bits, and stay within the same bounds."""
    from lmfn_kernels.runtime import launch

    inputs = [amid_nan(t) if is_image(t) else t for t in OPS[name].draw((1, 2, 7, 9, 18), torch.float16)]

    def both() -> list[Tensor | None]:
        written.clear()
        results, gradients = differentiate(OPS[name].function, inputs)
        hold_guards(written)
        return [*results, *gradients]

    launched: list[str] = []

    def noted(inner: Any, kernel: Any, grid: Any, arguments: dict[str, Any]) -> None:
        launched.extend(a for a, value in arguments.items() if isinstance(value, launch.Pointed))
        inner(kernel, grid, arguments)

    with lmfn_kernels.backend("triton"):
        expected = both()
        monkeypatch.setattr(launch, "_by_pointers", lambda _: True)
        with launch.intercepting(noted):
            found = both()
    assert launched
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("name", OPS)
def test_pixels_64_apart(name: str, written: list[tuple[Tensor, Tensor]]) -> None:
    """Results without gradients have the bits of those that are saved in less memory. What follows the channels of
    padded images is zero even where an infinity met a weight of 0."""
    channels = 66 if name == "conv3x3-reduce" else 34
    inputs = [amid_nan(t) if is_image(t) else t for t in OPS[name].draw((1, 2, channels, 3, 5), torch.float32)]

    def results() -> list[Tensor]:
        written.clear()
        found = OPS[name].function(*inputs)
        hold_guards(written)
        return [found] if isinstance(found, Tensor) else list(found)

    with lmfn_kernels.backend("triton"), torch.no_grad():
        with compact_pixels():
            expected = results()
        for result, reference in zip(results(), expected, strict=True):
            assert torch.equal(result, reference)
            assert result.ndim < 4 or result.shape[1] <= 32 or result.stride(3) == 64
        for t in inputs:
            if is_image(t):
                t[:, :, t.shape[2] // 2, t.shape[3] // 2] = float("inf")
        results()


@pytest.mark.parametrize("inference", [False, True])
def test_zeros_are_read_only_where_kernels_wrote_them(inference: bool) -> None:
    """Anything else with the strides of a kernel's image may hold NaN after its channels."""
    from lmfn_kernels.runtime import launch

    x, weight, *_ = OPS["conv3x3"].draw((1, 1, 34, 3, 5), torch.float32)

    def whole(image: Tensor) -> Tensor:
        return image.as_strided((1, 64, 3, 5), image.stride(), image.storage_offset())

    with lmfn_kernels.backend("triton"), torch.inference_mode(inference), torch.no_grad():
        ours, elsewhere, narrower, spoilt = (conv3x3(x, weight) for _ in range(4))
        dense = ours.contiguous()
        expected = conv3x3(dense, weight)
        larger = torch.full((1, 64, 3, 5), float("nan")).contiguous(memory_format=torch.channels_last)
        others = [
            amid_nan(ours),
            larger[:, :34].copy_(ours),
            launch.as_kernel_image(dense),
            ours.detach(),
            ours[:, :, :],
        ]
        elsewhere.data = others[0]
        narrower.as_strided_((1, 33, 3, 5), narrower.stride())
        others += [elsewhere]
        if not inference:  # where PyTorch does not count writes
            whole(spoilt)[:, 34:] = float("nan")
            others += [spoilt]
        assert launch._Described(ours).shape[3] == 64
        assert launch._Described(narrower).shape[3] == 33
        assert torch.equal(conv3x3(ours, weight), expected)
        for image in others:
            assert image.stride() == ours.stride()
            assert launch._Described(image).shape[3] == 34
            assert torch.equal(conv3x3(image, weight), expected)


def test_padded_images_are_forgotten_once_freed() -> None:
    from lmfn_kernels.runtime import launch

    gc.collect()
    before = len(launch._padded)
    image = launch.padded_image(torch.empty(0), 1, 34, 2, 2)
    assert len(launch._padded) == before + 1
    assert image.untyped_storage().nbytes() == 2 * 2 * 64 * 4, "the zeros of the last pixel lie beyond its memory"
    del image
    assert len(launch._padded) == before


@pytest.mark.parametrize("name", OPS)
def test_fakes_lie_as_results_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels as far apart, with and without what is saved for backward."""
    inputs = OPS[name].draw((1, 2, 34, 3, 5), torch.float32)

    def strides(inputs: list[Tensor]) -> list[tuple[int, ...]]:
        found: list[Tensor] = []
        for saving in (False, True):
            with lmfn_kernels.backend("triton"):
                results = OPS[name].function(*(t.detach().requires_grad_(saving) for t in inputs))
            found += [results] if isinstance(results, Tensor) else results
        return [t.stride() for t in found]

    with FakeTensorMode() as fake:
        of_fakes = strides([fake.from_tensor(t) for t in inputs])
    for folder in FOLDERS:
        module = import_module(f"lmfn_kernels.{folder}.triton_backend")
        monkeypatch.setattr(module, "launch", lambda *_, **__: None, raising=False)  # strides are the host's
    assert strides(inputs) == of_fakes


def test_four_maps_in_one_program(monkeypatch: pytest.MonkeyPatch, written: list[tuple[Tensor, Tensor]]) -> None:
    """The number of slots on sm_90."""
    monkeypatch.setattr("lmfn_kernels.alfm.triton_backend._at_once", lambda _: 4)
    hold_to_bounds("layer_attention", written)


def test_two_maps_in_a_program(monkeypatch: pytest.MonkeyPatch, written: list[tuple[Tensor, Tensor]]) -> None:
    """The maps of an RFDB's fusion whose gradients a program computes where tiles have two rows."""
    monkeypatch.setattr(configs, "INTERPRETED", configs.INTERPRETED._replace(height=2))
    hold_to_bounds("distill_fuse", written)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_zeros_after_the_channels_of_gradients(written: list[tuple[Tensor, Tensor]]) -> None:
    """Even where an infinity meets a weight of 0."""
    from lmfn_kernels.rfdb import triton_backend as triton
    from lmfn_kernels.runtime import launch

    c, d, f, dtype = 34, 25, 3, torch.float16
    g, y, a, v, *maps = (triton.as_kernel_image(random((1, n, 3, 5), dtype)) for n in (c, c, f, f, d, d, d, d))
    g[:, :, 1, 1] = float("inf")
    skip, expand = Conv(*conv(f, f, 1, dtype)), Conv(*conv(c, f, 1, dtype))
    fuse, squeeze = conv(c, 4 * d, 1, dtype)[0], conv(f, c, 1, dtype)[0]
    transposed = [weight.transpose(0, 1) for weight in (squeeze, *fuse.chunk(4, dim=1))]
    written.clear()
    dy, *_ = triton.gate_backward([g], y, a, v, skip, expand, False)
    z, *_ = triton.fuse_backward(g, a, y, maps, fuse, squeeze, transposed, 0.05, 1.0)
    assert [len(image[image.isinf() | image.isnan()]) > 0 for image in (dy, *z)] == [True] * 5
    assert [launch._Described(image).shape[3] for image in (dy, *z)] == [64, 32, 32, 32, 32]
    hold_guards(written)


def apart(b: int, c: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    """Two images in the kernels' layout, more than 2^31 elements apart; the memory between them is never used."""
    s, distance = pixel_pitch(c, dtype), 2**31 + 1024
    return torch.empty((b - 1) * distance + h * w * s, dtype=dtype).as_strided((b, c, h, w), (distance, 1, w * s, s))


@pytest.mark.parametrize("name", OPS)
def test_more_elements_than_int32_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs, gradients, results and everything between them, for two distant images, are bit-identical to those of
    adjacent ones."""
    inputs = OPS[name].draw((2, 2, 3, 4, 7), torch.float16)

    def far(t: Tensor) -> Tensor:
        return apart(*t.shape, t.dtype).copy_(t) if is_image(t) and t.shape[0] == 2 else t

    def both(inputs: list[Tensor], lay: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves = [lay(t).requires_grad_() for t in inputs]
        found = OPS[name].function(*leaves)
        results = [found] if isinstance(found, Tensor) else list(found)
        gradients = [lay(g) for g in gradients_for(results)]
        return [*results, *torch.autograd.grad(results, leaves, gradients)]

    def empty_image(like: Tensor, b: int, c: int, h: int, w: int, dtype: torch.dtype | None = None) -> Tensor:
        return apart(b, c, h, w, dtype or like.dtype)

    with lmfn_kernels.backend("triton"):
        near = both(inputs, lambda t: t)
        with monkeypatch.context() as patch:
            for folder in FOLDERS:
                backend = import_module(f"lmfn_kernels.{folder}.triton_backend")
                patch.setattr(backend, "empty_image", empty_image, raising=False)
                patch.setattr(backend, "padded_image", empty_image, raising=False)
            distant = both(inputs, far)
    for one, other in zip(near, distant, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["stem", "upsample_add", "upsampled_conv3x3"])
def test_an_image_of_more_elements_than_int32_counts(name: str) -> None:
    """For one image whose rows are far apart, results and gradients are bit-identical to those of adjacent rows."""
    inputs = OPS[name].draw((1, 1, 3, 66, 8), torch.float16)
    distance = 2**26 + 64  # the 33rd row lies beyond

    def far(t: Tensor) -> Tensor:
        h, w = t.shape[2:]
        rows = torch.empty((h - 1) * distance + 8 * w, dtype=t.dtype)
        return rows.as_strided(t.shape, (h * distance, 1, distance, 8)).copy_(t)

    def both(inputs: list[Tensor]) -> list[Tensor]:
        leaves = [t.requires_grad_() for t in inputs]
        result = OPS[name].function(*leaves)
        return [result, *torch.autograd.grad(result, leaves, gradients_for([result]))]

    with lmfn_kernels.backend("triton"):
        near = both(inputs)
        distant = both([far(t.detach()) if is_image(t) else t for t in inputs])
    for one, other in zip(near, distant, strict=True):
        assert torch.equal(one, other)
