"""Training patches made on a GPU equal those made on a CPU."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lmfn.data.rendering import Patch, render
from lmfn.data.synthesis import Exposure, Mean, mirrored
from lmfn.options import BlurOptions
from tests.gpu.conftest import DEVICE

SIDE, SIZE = 64, (100, 120)


def cutter(images: Tensor) -> Callable[[Sequence[tuple[int, int, int]], int], Tensor]:
    """Parts of images `[N, H, W, 3]`, on the images' device."""

    def cut(parts: Sequence[tuple[int, int, int]], side: int) -> Tensor:
        along = torch.arange(side, device=images.device)
        return torch.stack(
            [
                images[number][mirrored(top + along, SIZE[0])][:, mirrored(left + along, SIZE[1])]
                for number, top, left in parts
            ]
        )

    return cut


def test_patches_are_those_of_the_cpu() -> None:
    rng, blur = np.random.default_rng(0), BlurOptions(highlights=(1, 3))
    coarse = torch.rand(9, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bicubic").clamp(0, 1)
    images = (smooth * 255).round().byte().permute(0, 2, 3, 1).contiguous()
    images[:, ::9] = 255  # clipped highlights
    patches = []
    for n in range(96):
        corner = int(rng.integers(SIZE[0] - SIDE)), int(rng.integers(SIZE[1] - SIDE))
        numbers, exposure = [((0, 1), None), (tuple(range(9)), Mean.draw(rng, blur)), ((n % 9,), None)][n % 3]
        exposure = Exposure.draw(rng, blur, SIZE, (*corner, SIDE, SIDE)) if n % 3 == 2 else exposure
        patches.append(Patch(numbers, SIZE, corner, exposure, n % 4, n % 8 < 4))
    expected = render(patches, SIDE, blur.margin, cutter(images))
    cut = cutter(images.to(DEVICE))
    first = render(patches, SIDE, blur.margin, cut)  # sends what never changes
    torch.cuda.set_sync_debug_mode("error")  # the host waits for nothing
    try:
        found = render(patches, SIDE, blur.margin, cut)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(one, other) for one, other in zip(first, found, strict=True))
    for made, wanted in zip(found, expected, strict=True):
        difference = (made.cpu().int() - wanted.int()).abs()
        assert (difference > 0).float().mean() < 1e-3  # rounded to the other side: by 1 or, in JPEG, by a coefficient
    assert (expected[0].int() - expected[1].int()).abs().float().mean() > 5
    assert found[0].device.type == DEVICE
