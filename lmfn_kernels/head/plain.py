"""The op's piece in plain PyTorch, for CPUs, for MPS, and where there is no kernel. The same piece as `launch.py`."""

import torch.nn.functional as F
from torch import Tensor

from lmfn_kernels.conv.plain import conv, layout
from lmfn_kernels.head.fold import PARTS

__all__ = ["layout", "upsampled_conv"]


def upsampled_conv(x: Tensor, folded: Tensor, bias: Tensor) -> Tensor:
    """The convolution of the upsampled `x`, from the weights that `fold` gives."""
    y = conv(x, folded[0], bias.repeat_interleave(4), padding=1)
    for (rows, columns), weight in zip(PARTS[1:], folded[1:], strict=True):
        y[:, :, rows, columns] += conv(layout(x[:, :, rows, columns]), weight, None, padding=1)
    return F.pixel_shuffle(y, 2)
