"""Images side by side, for the eye."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def middle(image: Tensor) -> Tensor:
    """The middle of `[C, H, W]`, at most 320 x 320."""
    top, left = (max(0, length - 320) // 2 for length in image.shape[1:])
    return image[:, top : top + 320, left : left + 320]


def strip(tensors: tuple[Tensor, ...]) -> np.ndarray:
    """Images `[3, H, W]` in [0, 1] side by side, their middles on black of 320 x 320, as uint8 `[320, W', 3]`."""
    cells = []
    for tensor in tensors:
        part = middle(tensor.detach()).float().clamp(0, 1).mul(255).round().byte().cpu()
        cells.append(F.pad(part, (0, 320 - part.shape[2], 0, 320 - part.shape[1])))
    return torch.cat(cells, dim=2).movedim(0, 2).numpy()
