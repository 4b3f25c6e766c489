"""The encoder's ops: what they do not write to memory, what the kernels refuse, and errors."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import lmfn_kernels
from lmfn_kernels import Conv
from lmfn_kernels.cases import (
    block_from_flat,
    block_inputs,
    blocks_from_flat,
    blocks_inputs,
    conv,
    stem_from_flat,
    stem_inputs,
)
from lmfn_kernels.runtime.launch import intercepting
from lmfn_kernels.testing import assert_correct, differentiate, random

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


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("maps", [1, 2, 3])
def test_several_blocks_are_single_ones(maps: int) -> None:
    """Bit by bit, of any sizes and numbers of images, with and without the maps between the convolutions."""
    sizes = [(2, 9, 17), (1, 1, 4), (3, 5, 6)][:maps]
    tensors = [tensor for b, h, w in sizes for tensor in block_inputs(b, 6, 5, h, w, F32)]

    def singly(*flat: Tensor) -> list[Tensor]:
        return [block_from_flat()(*flat[i : i + 5]) for i in range(0, len(flat), 5)]

    expected, of_each = differentiate(singly, tensors)
    for save_middle in (True, False):
        results, gradients = differentiate(partial(blocks_from_flat, save_middle=save_middle), tensors)
        for found, one in zip([*results, *gradients], [*expected, *of_each], strict=True):
            assert found is not None
            assert torch.equal(found, one)


def test_weights_of_several_blocks_take_one_launch_each_way() -> None:
    """That lays them out, and that adds up the partial sums of their gradients."""
    launched: list[str] = []

    def noted(launch: Callable[..., object], kernel: Any, *rest: Any) -> object:
        launched.append(kernel.__name__)
        return launch(kernel, *rest)

    with lmfn_kernels.backend("triton"), intercepting(noted):
        differentiate(blocks_from_flat, blocks_inputs(1, 6, 5, [(4, 6)] * 3, F32))
    assert [launched.count(name) for name in ("conv_kernel", "lay_out_kernel", "sum_kernel")] == [4 * 3, 1, 1]


def test_wrong_blocks_are_named() -> None:
    x, *flat = block_inputs(1, 6, 5, 4, 4, F32)
    conv1, conv2 = Conv(*flat[:2]), Conv(*flat[2:])
    blocks = lmfn_kernels.residual_blocks
    with pytest.raises(ValueError, match="2 maps, 1 convs1 and 2 convs2; expected as many of each, at most 3"):
        blocks([x, x], [conv1], [conv2] * 2)
    for number in (0, 4):
        with pytest.raises(ValueError, match=f"there are {number} maps"):
            blocks([x] * number, [conv1] * number, [conv2] * number)
    with pytest.raises(ValueError, match=r"maps.1. has shape .1, 4, 4, 4.; expected .any, 6, any, any."):
        blocks([x, random((1, 4, 4, 4), F32)], [conv1] * 2, [conv2] * 2)
    with pytest.raises(TypeError, match=r"maps.2. has dtype torch.float64; expected torch.float32"):
        blocks([x, x, x.double()], [conv1] * 3, [conv2] * 3)
    with pytest.raises(ValueError, match=r"convs1.1..weight has shape .6, 6, 3, 3.; expected .5, 6, 3, 3."):
        blocks([x, x], [conv1, Conv(*conv(6, 6, 3, F32))], [conv2] * 2)
    with pytest.raises(ValueError, match=r"convs2.1..bias has shape .5,.; expected .6."):
        blocks([x, x], [conv1] * 2, [conv2, Conv(conv2.weight, conv1.bias)])
