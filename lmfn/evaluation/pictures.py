"""Images side by side for visual comparison, uint8 `[H, W, 3]`."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def pixels(image: Tensor) -> np.ndarray:
    """From `[3, H, W]` of any float dtype, clipped to [0, 1] and rounded to the nearest of 256 levels."""
    values: np.ndarray = image.detach().float().clamp(0, 1).mul(255).round().byte().movedim(0, 2).cpu().numpy()
    return values


def middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The central crop of an image, of at most this height and width."""
    top, left = (max(0, length - part) // 2 for length, part in zip(image.shape, (height, width), strict=False))
    return image[top : top + height, left : left + width]


def side_by_side(images: Sequence[np.ndarray], side: int = 0) -> np.ndarray:
    """Images of one size in a row; with `side`, each in the top left corner of a black square with that side."""
    cells = [
        np.pad(image, ((0, max(0, side - image.shape[0])), (0, max(0, side - image.shape[1])), (0, 0)))
        for image in images
    ]
    return np.concatenate(cells, axis=1)
