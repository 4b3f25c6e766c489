"""The formula of the op in plain PyTorch. Shapes as in `op.py`."""

import torch.nn.functional as F
from torch import Tensor


def conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: int, padding: int, slope: float
) -> Tensor:
    """`slope` is the slope for negative values: 1 is no activation, 0 is ReLU."""
    y = F.conv2d(x, weight, bias, stride, padding)
    y = y if residual is None else y + residual
    return F.relu(y) if slope == 0 else F.leaky_relu(y, slope)
