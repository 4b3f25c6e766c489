"""What stands in the place of the paper's parts in its ablations, to show what those are worth."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Concat(nn.Module):
    """In ALFM's place: LR(conv1x1(concatenated layers)), no attention. N maps `[B, C, H, W]` to one."""

    def __init__(self, features: int = 50, layers: int = 4) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(layers * features, features, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return F.leaky_relu(self.fuse(torch.cat(list(maps), dim=1)), 0.05, inplace=True)
