"""FP8 for inference, as PyTorch simulates it without a Hopper GPU."""

import numpy as np
import pytest
import small_networks
import torch
from skimage import data

from lmfn import LMFN, Deblurrer, fp8
from lmfn.inference import for_inference

pytestmark = pytest.mark.filterwarnings("ignore:FP8 needs a GPU:UserWarning")


def pair() -> tuple[np.ndarray, np.ndarray]:
    """A photograph blurred by a path of 9 pixels, and sharp."""
    sharp = data.astronaut()[:160, 60:252].astype(np.float32) / 255
    return np.stack([np.roll(sharp, (i // 2, i), (0, 1)) for i in range(-4, 5)]).mean(axis=0), sharp


def psnr(found: np.ndarray, sharp: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((found - sharp) ** 2)))


@pytest.mark.parametrize("weights", ["lmfn", "lmfn-released"])
def test_quality(weights: str) -> None:
    """It costs at most 0.03 dB: on real pairs it was 0.004, and 0.015 with the released weights."""
    blurred, sharp = pair()
    full, short = (
        psnr(Deblurrer(weights, device="cpu", precision=precision, guard="off")(blurred), sharp)
        for precision in ("fp32", "fp8")
    )
    assert full > psnr(blurred, sharp) + 0.3, "the network deblurs"
    assert full - 0.03 < short != full


def test_maps_and_scales() -> None:
    """Every map inside residual blocks and between stages, with scales that leave room beyond the chart."""
    model = LMFN.from_pretrained()
    fp8.store_as_e4m3(model, torch.bfloat16)
    blocks = [block for block in model.modules() if isinstance(block, (fp8.RB, fp8.RFDB))]
    assert len(blocks) == 14
    assert all(block.e4m3 is not None for block in blocks)
    scales = fp8.calibrate(LMFN.from_pretrained(), ["head.rb2", "rfdbs.0"])
    assert [len(found) for found in scales.values()] == [2, 1]
    assert all(np.log2(scale).is_integer() for found in scales.values() for scale in found)


def test_in_strips() -> None:
    blurred, _ = pair()
    whole, strips = Deblurrer(device="cpu", precision="fp8"), Deblurrer(device="cpu", precision="fp8")
    strips.engine = strips.engine._replace(run=lambda _: pytest.fail("not in strips"))
    way = whole.way(blurred)
    plan = strips.engine.strips.plan(192, 224, 0)
    strips.way = lambda _: way._replace(plan=plan)
    difference = np.abs(whole(blurred) - strips(blurred))
    assert difference.max() < 0.02
    assert difference.mean() < 1e-3


def test_the_simulation_is_announced() -> None:
    with pytest.warns(UserWarning, match=r"compute capability 9.0 .* on cpu: FP8 is simulated"):
        for_inference(LMFN.from_preset(channels=40, features=40, rfdbs=1), "cpu", torch.float8_e4m3fn)


def test_only_blocks_that_the_kernels_take() -> None:
    model = small_networks.network(channels=40, rfdbs=1)
    fp8.store_as_e4m3(model, torch.bfloat16)
    assert model.encoder.rb_16th.e4m3 is not None
    assert model.rfdbs[0].e4m3 is None
    with pytest.raises(ValueError, match="FP8 needs 33 to 64 channels, and the network has 8 and 6"):
        fp8.store_as_e4m3(small_networks.network(), torch.bfloat16)
