"""The formulas of the ops in plain PyTorch. Shapes as in `op.py`."""

import torch.nn.functional as F
from torch import Tensor


def centred(x: Tensor, mean: Tensor | None) -> Tensor:
    return x if mean is None else x - mean[:, None, None]


def stem(
    x: Tensor,
    mean: Tensor | None,
    conv0: Tensor,
    bias0: Tensor,
    down: Tensor,
    bias: Tensor,
    padding: int,
    slope: float,
) -> Tensor:
    f0 = F.leaky_relu(F.conv2d(centred(x, mean), conv0, bias0, padding=padding), slope)
    return F.leaky_relu(F.conv2d(f0, down, bias, stride=2, padding=1), slope)


def residual_block(x: Tensor, conv1: Tensor, bias1: Tensor, conv2: Tensor, bias2: Tensor, upsample: bool) -> Tensor:
    if upsample:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return x + F.conv2d(F.relu(F.conv2d(x, conv1, bias1, padding=1)), conv2, bias2, padding=1)
