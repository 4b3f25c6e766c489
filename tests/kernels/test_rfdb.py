"""The RFDB and its parts: sizes of ESA's low maps, what the kernels refuse, and errors."""

from functools import partial

import pytest
import torch

import lmfn_kernels
from lmfn_kernels import Conv, RFDBWeights
from lmfn_kernels.testing import assert_correct, gate_from_flat, gate_inputs, rfdb_from_flat, rfdb_inputs


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("low", [(1, 1), (2, 3), (4, 19), (7, 4)])
def test_esa_gate_of_low_maps_of_any_size(low: tuple[int, int]) -> None:
    assert_correct(gate_from_flat, gate_inputs(1, 6, 3, 4, 19, low, torch.float64))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("low", [(1, 1), (1, 2), (2, 4)])  # too few, and too many, for 9 x 19
def test_esa_gate_on_a_fixed_grid(low: tuple[int, int]) -> None:
    assert_correct(partial(gate_from_flat, fixed_grid=True), gate_inputs(1, 6, 3, 9, 19, low, torch.float32))


@pytest.mark.usefixtures("backend")
def test_rfdb_on_a_fixed_grid() -> None:
    assert_correct(partial(rfdb_from_flat, fixed_grid=True), rfdb_inputs(1, 6, 3, 2, 21, 28, torch.float32))


@pytest.mark.usefixtures("backend")
def test_the_networks_block_at_the_smallest_size() -> None:
    assert_correct(rfdb_from_flat, rfdb_inputs(1, 50, 25, 12, 15, 15, torch.float32))


def test_kernels_refuse_what_they_cannot_take() -> None:
    with lmfn_kernels.backend("triton"), pytest.raises(ValueError, match="70 channels, and the fused kernels"):
        rfdb_from_flat(*rfdb_inputs(1, 70, 5, 4, 15, 15))


def test_errors_name_the_convolution() -> None:
    x, *flat = rfdb_inputs(1, 6, 3, 2, 15, 15)
    convs = [Conv(*flat[i : i + 2]) for i in range(0, len(flat), 2)]
    weights = RFDBWeights((*convs[:3],), (*convs[3:6],), *convs[6:])
    with pytest.raises(ValueError, match="height and width of at least 15"):
        lmfn_kernels.rfdb(x[:, :, :14], weights)
    with pytest.raises(ValueError, match=r"weights.conv_f.weight has shape .6, 12, 1, 1.; expected .2, 2, 1, 1."):
        lmfn_kernels.rfdb(x, weights._replace(conv_f=weights.fuse))
    with pytest.raises(ValueError, match=r"weights.refine has 2 convolutions; expected 3"):
        lmfn_kernels.rfdb(x, weights._replace(refine=weights.refine[:2]))  # type: ignore[arg-type]
