"""ACFM: its forms, the merge with ALFM, and its errors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lmfn_kernels
from lmfn_kernels.acfm import torch_backend
from lmfn_kernels.cases import channel_gate_from_flat, channel_gate_inputs, merge_from_flat, merge_inputs
from lmfn_kernels.testing import assert_correct

FORMS = ["pseudo3d", "full3d"]


@pytest.fixture(autouse=True)
def _small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small images have several strips."""
    monkeypatch.setattr(torch_backend, "VALUES", 400)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("c", "h", "w"), [(1, 1, 1), (2, 4, 1), (64, 3, 4)])
def test_channels(form: str, c: int, h: int, w: int) -> None:
    assert_correct(channel_gate_from_flat(form), channel_gate_inputs(1, c, h, w, torch.float32, form=form))


@pytest.mark.parametrize("form", FORMS)
def test_many_channels(form: str) -> None:
    tensors = channel_gate_inputs(1, 130, 4, 5, torch.float64, form=form)
    with lmfn_kernels.backend("torch"):
        assert_correct(channel_gate_from_flat(form), tensors)
    with (
        lmfn_kernels.backend("triton"),
        pytest.raises(ValueError, match="130 channels, and the kernels hold at most 64"),
    ):
        channel_gate_from_flat(form)(*tensors)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("form", FORMS)
def test_merge(form: str) -> None:
    """`add` is added to the gated x; without it the result is the gated x alone."""
    x, alpha, *weights, add = channel_gate_inputs(1, 5, 6, 7, torch.float64, form=form)
    gate = lmfn_kernels.Full3D(*weights) if form == "full3d" else lmfn_kernels.Pseudo3D(*weights)
    alone = lmfn_kernels.channel_gate(x, gate, alpha)
    torch.testing.assert_close(lmfn_kernels.channel_gate(x, gate, alpha, add), alone + add, rtol=1e-14, atol=1e-14)
    assert torch.equal(lmfn_kernels.channel_gate(x, gate, alpha * 0), x), "at alpha 0 it is the identity"


@pytest.mark.usefixtures("backend")
def test_attention_is_added_to_either_form() -> None:
    assert_correct(merge_from_flat("full3d"), merge_inputs(2, 3, 6, 9, 19, torch.float64, form="full3d"))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("n", "c", "h", "w"), [(1, 1, 1, 1), (8, 3, 1, 5), (2, 64, 3, 2)])
def test_attention_of_any_size(n: int, c: int, h: int, w: int) -> None:
    assert_correct(merge_from_flat(slope=1.0), merge_inputs(1, n, c, h, w, torch.float32))


def test_merge_with_attention_in_windows(backend_dtype: torch.dtype) -> None:
    assert_correct(merge_from_flat(window=32), merge_inputs(1, 2, 3, 20, 35, backend_dtype))


def test_attention_of_many_channels_is_two_ops() -> None:
    """ALFM's kernels support inputs that the gate's do not."""
    tensors = merge_inputs(1, 2, 70, 3, 4, torch.float64)
    with lmfn_kernels.backend("torch"):
        assert_correct(merge_from_flat(), tensors)
    with (
        lmfn_kernels.backend("triton"),
        pytest.raises(ValueError, match="70 channels, and the kernels hold at most 64"),
    ):
        merge_from_flat()(*tensors)


def test_what_is_added_is_written_for_backward_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmfn_kernels.acfm import triton_backend as acfm_launch
    from lmfn_kernels.runtime import launch

    made: list[Tensor] = []

    def counting(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(*args: object) -> Tensor:
            made.append(make(*args))
            return made[-1]

        return counted

    monkeypatch.setattr(acfm_launch, "padded_image", counting(launch.padded_image))
    monkeypatch.setattr(acfm_launch, "empty_image", counting(launch.empty_image))
    monkeypatch.setattr("lmfn_kernels.alfm.triton_backend.empty_image", counting(launch.empty_image))
    x, *others = merge_inputs(1, 2, 5, 6, 7, torch.float32)
    with lmfn_kernels.backend("triton"):
        result = merge_from_flat()(x, *others)
        assert [t.data_ptr() for t in made] == [result.data_ptr()], "the result alone has the size of x"
        made.clear()
        kept = merge_from_flat()(x.requires_grad_(), *others)
        assert len(made) == 2
        made.clear()
        merge_from_flat(slope=1.0)(x, *others)
        assert len(made) == 1, "without an activation, backward needs no signs"
    assert torch.equal(kept, result)


def test_errors_name_the_argument() -> None:
    x, alpha, *weights, add = channel_gate_inputs(1, 3, 4, 5, torch.float32)
    gate = lmfn_kernels.Pseudo3D(*weights)
    maps = [torch.zeros(1, 3, 4, 6)]
    attention = lmfn_kernels.LayerAttention(maps, alpha, torch.zeros(3, 3, 1, 1), torch.zeros(3))
    with pytest.raises(ValueError, match=r"add.maps.0. has shape .1, 3, 4, 6.; expected .1, 3, 4, 5."):
        lmfn_kernels.channel_gate(x, gate, alpha, attention)
    attention = attention._replace(maps=[x], weight=torch.zeros(2, 3, 1, 1), bias=torch.zeros(2))
    with pytest.raises(ValueError, match=r"add.weight has shape .2, 3, 1, 1.; expected .3, "):
        lmfn_kernels.channel_gate(x, gate, alpha, attention)
    with pytest.raises(TypeError, match="gate is a list; expected Pseudo3D or Full3D"):
        lmfn_kernels.channel_gate(x, weights, alpha)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gate.channel_weight has shape .4,.; expected .3."):
        lmfn_kernels.channel_gate(x, gate._replace(channel_weight=torch.zeros(4)), alpha)
    with pytest.raises(ValueError, match=r"gate.weight has shape .3, 3.; expected .3, 3, 3."):
        lmfn_kernels.channel_gate(x, lmfn_kernels.Full3D(*weights[:2]), alpha)
    with pytest.raises(ValueError, match=r"alpha has shape .2,.; expected .1."):
        lmfn_kernels.channel_gate(x, gate, torch.zeros(2))
    with pytest.raises(ValueError, match=r"add has shape .1, 3, 4, 4.; expected .1, 3, 4, 5."):
        lmfn_kernels.channel_gate(x, gate, alpha, add[..., 1:])
    with pytest.raises(ValueError, match=r"x has shape .3, 4, 5.; expected a non-empty"):
        lmfn_kernels.channel_gate(x[0], gate, alpha)
    with pytest.raises(TypeError, match=r"x has dtype torch.int64"):
        lmfn_kernels.channel_gate(x.long(), gate, alpha)
