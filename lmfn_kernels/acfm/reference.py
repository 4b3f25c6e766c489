"""The formula of the op in plain PyTorch. Shapes as in `op.py`."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lmfn_kernels.weights import Gate, Pseudo3D


def channel_gate(x: Tensor, gate: Gate, alpha: Tensor, add: Tensor | None) -> Tensor:
    volume = rearrange(x, "b c h w -> b 1 c h w")  # one channel; its depth is x's channels
    if isinstance(gate, Pseudo3D):
        spatial = rearrange(gate.spatial_weight, "h w -> 1 1 1 h w")
        channel = rearrange(gate.channel_weight, "c -> 1 1 c 1 1")
        s = F.relu(F.conv3d(volume, spatial, gate.spatial_bias, padding=(0, 1, 1)))
        q = F.relu(F.conv3d(s, channel, gate.channel_bias, padding=(1, 0, 0)))
    else:
        q = F.conv3d(volume, rearrange(gate.weight, "c h w -> 1 1 c h w"), gate.bias, padding=1)
    y = x + alpha * torch.sigmoid(rearrange(q, "b 1 c h w -> b c h w")) * x
    return y if add is None else y + add
