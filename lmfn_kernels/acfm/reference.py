"""What the op computes, in the shortest plain PyTorch. Shapes as in `op.py`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lmfn_kernels.weights import Gate


def channel_gate(x: Tensor, gate: Gate, alpha: Tensor, add: Tensor | None) -> Tensor:
    volume = x[:, None]  # channels are the depth
    if len(gate) == 4:
        s = F.relu(F.conv3d(volume, gate[0].view(1, 1, 1, 3, 3), gate[1], padding=(0, 1, 1)))
        q = F.relu(F.conv3d(s, gate[2].view(1, 1, 3, 1, 1), gate[3], padding=(1, 0, 0)))
    else:
        q = F.conv3d(volume, gate[0].view(1, 1, 3, 3, 3), gate[1], padding=1)
    y = x + alpha * torch.sigmoid(q[:, 0]) * x
    return y if add is None else y + add
