"""Activity of the hidden units of a network's residual blocks.

A hidden unit is a channel between the two convolutions of a residual block, and fires where it is positive; elsewhere
the ReLU sets it to zero, and it neither contributes nor learns. Too high a learning rate, or an exploding gradient, can
leave units that never fire again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmfn.network.blocks import RB

RARELY = 0.002
"""A unit that fires at a smaller share of the pixels than this is counted as dead."""


@dataclass(frozen=True)
class Activity:
    """The hidden units of one residual block, or of several together."""

    units: int
    firing: float
    """Share of the pixels at which a unit fires, averaged over the units."""
    dead: int
    """Units that fire at less than 0.2 % of the pixels."""
    silent: int
    """Units that fire at no pixel; they also count as dead."""

    @property
    def dying(self) -> bool:
        """Whether more than half of the units are dead."""
        return self.dead > self.units / 2

    @classmethod
    def of(cls, shares: Tensor) -> Self:
        """From the share of the pixels at which each unit fires, `[units]`."""
        dead, silent = (int((shares < bound).sum()) for bound in (RARELY, torch.finfo(shares.dtype).tiny))
        return cls(len(shares), float(shares.mean()), dead, silent)


@torch.no_grad()
def unit_activity(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """For each residual block of a network, by its name, the share of the pixels at which each hidden unit fires.

    `images` are `[B, 3, H, W]` in [0, 1] on the network's device; the shares are float32 `[channels]` on that device.
    The network runs once, in its current mode.
    """
    shares: dict[str, Tensor] = {}

    def measure(name: str, hidden: Tensor) -> None:
        shares[name] = (hidden > 0).float().mean(dim=(0, 2, 3))

    blocks = {name: block for name, block in model.named_modules() if isinstance(block, RB)}
    try:
        for name, block in blocks.items():
            block.watch = partial(measure, name)
        model(images)
    finally:
        for block in blocks.values():
            block.watch = None
    return shares


def summarise(shares: Mapping[str, Tensor]) -> dict[str, Activity]:
    """The result of `unit_activity` per block."""
    return {name: Activity.of(share) for name, share in shares.items()}


def sample_picture() -> Tensor:
    """A test image with structure at all scales, as in photographs, blurred horizontally by nine pixels; float32
    `[1, 3, 256, 256]` in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.zeros(1, 3, 256, 256)
    for octave in range(7):
        cells = 4 << octave
        grey, colour = (torch.rand(1, channels, cells, cells, generator=generator) for channels in (1, 3))
        picture += F.interpolate(0.7 * grey + 0.3 * colour, size=(256, 256), mode="bilinear") / 2**octave
    low, high = picture.aminmax()
    return F.avg_pool2d(F.pad((picture - low) / (high - low), (4, 4, 0, 0), mode="replicate"), (1, 9), 1)
