"""The encoder's ops: what they do not write to memory, what the kernels refuse, and errors."""

from typing import Any

import pytest
import torch
from torch import Tensor

import lmfn_kernels
from lmfn_kernels import Conv
from lmfn_kernels.testing import (
    assert_correct,
    block_from_flat,
    block_inputs,
    conv,
    differentiate,
    random,
    stem_from_flat,
    stem_inputs,
)

F32 = torch.float32


@pytest.mark.usefixtures("backend")
def test_block_with_other_channels_inside() -> None:
    assert_correct(block_from_flat(), block_inputs(2, 6, 5, 5, 11, F32))
    assert_correct(block_from_flat(upsample=True, save_middle=False), block_inputs(2, 6, 5, 5, 11, F32))


@pytest.mark.usefixtures("backend")
def test_stem_without_activations() -> None:
    def call(x: Tensor, *flat: Tensor) -> Tensor:
        return lmfn_kernels.stem(x, Conv(*flat[:2]), Conv(*flat[2:4]), slope=1.0, mean=flat[4])

    assert_correct(call, stem_inputs(1, 4, 3, 5, 6, F32))


def test_f0_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stem's kernels allocate nothing of its size, in forward and for the weights; for the image's gradient they
    do."""
    made: list[tuple[int, ...]] = []
    real = torch.empty_strided

    def empty_strided(size: tuple[int, ...], *rest: Any, **options: Any) -> Tensor:
        made.append(tuple(size))
        return real(size, *rest, **options)

    monkeypatch.setattr(torch, "empty_strided", empty_strided)
    tensors = stem_inputs(1, 6, 5, 10, 9, F32)
    for of_image in (False, True):
        with lmfn_kernels.backend("triton"):
            differentiate(stem_from_flat(), tensors, [of_image, True, True, True, True, False])
        assert ((1, 6, 10, 9) in made) == of_image


def test_wrong_arguments_are_named() -> None:
    x, *flat, mean = stem_inputs(1, 6, 5, 9, 8, F32)
    conv0, down = Conv(*flat[:2]), Conv(*flat[2:])
    with pytest.raises(ValueError, match=r"mean has shape .3,.; expected .4."):
        lmfn_kernels.stem(random((1, 4, 9, 8), F32), Conv(*conv(6, 4, 3, F32)), down, mean=mean)
    with pytest.raises(ValueError, match="padding is 2; expected 0 or 1"):
        lmfn_kernels.stem(x, conv0, down, padding=2)
    with pytest.raises(ValueError, match="height and width of at least 3"):
        lmfn_kernels.stem(x[:, :, :2], conv0, down, padding=0)
    with pytest.raises(ValueError, match=r"down.weight has shape .6, 3, 3, 3.; expected .6, 6, 3, 3."):
        lmfn_kernels.stem(x, conv0, conv0)
    with pytest.raises(ValueError, match=r"conv2.weight has shape .5, 6, 3, 3.; expected .6, 5, 3, 3."):
        lmfn_kernels.residual_block(random((1, 6, 5, 5), F32), down, down)
    wide = [random((1, 4, 9, 8), F32), Conv(*conv(6, 4, 3, F32)), down]
    with lmfn_kernels.backend("triton"), pytest.raises(ValueError, match="x has 4 channels, and the stem's kernels"):
        lmfn_kernels.stem(*wide)
    assert lmfn_kernels.stem(*wide).shape == (1, 5, 5, 4), "PyTorch takes it"
