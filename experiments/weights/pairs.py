"""Compare the blurred images of pairs with their sharp ones: brightness by code, amplitude by frequency, noise.

python experiments/weights/pairs.py PAIRS ...
"""

import sys

import numpy as np
from frequencies import edges

from lmfn import images
from lmfn.data import find_pairs

CODES = [0, 1, 32, 96, 160, 231, 255]
"""The first of each range of codes."""
WINDOW, BLOCK = 256, 16


def squares(image: np.ndarray, side: int) -> np.ndarray:
    """`[H, W, C]` without what is left over at the right and below, cut into `[N, side, side, C]`."""
    rows, columns = (length // side for length in image.shape[:2])
    cut = image[: rows * side, : columns * side].reshape(rows, side, columns, side, -1)
    return cut.swapaxes(1, 2).reshape(-1, side, side, image.shape[2])


def power(image: np.ndarray) -> np.ndarray:
    """The power of its windows by the bands of `frequencies.py`, in the mean of all channels."""
    windows, hann, along = squares(image, WINDOW), np.hanning(WINDOW), np.fft.fftfreq(WINDOW)
    tapered = (windows - windows.mean((1, 2), keepdims=True)) * (hann[:, None] * hann)[..., None]
    spectrum = (abs(np.fft.fft2(tapered, axes=(1, 2))) ** 2).sum((0, 3))
    band = np.searchsorted(edges.numpy(), np.hypot(along[:, None], along))
    return np.bincount(band.ravel(), spectrum.ravel(), len(edges))


def noise(image: np.ndarray, flat: np.ndarray) -> float:
    """The noise that would give its second differences, in the median of these blocks."""
    fine = np.diff(np.diff(np.pad(image, ((1, 1), (1, 1), (0, 0)), "edge"), 2, axis=0), 2, axis=1) / 6
    return float(np.median(squares(fine, BLOCK)[flat].std((1, 2))))


def main() -> None:
    for folder in sys.argv[1:]:
        changes, counts = np.zeros(len(CODES)), np.zeros(len(CODES))
        powers, noises = np.zeros((2, len(edges))), []
        for pair in find_pairs(folder):
            both = [images.read_rgb(file).astype(float) for file in (pair.blurred, pair.sharp)]
            code = np.searchsorted(CODES, both[0].ravel(), side="right") - 1
            changes += np.bincount(code, (both[0] - both[1]).ravel(), len(CODES))
            counts += np.bincount(code, minlength=len(CODES))
            powers += [power(image) for image in both]
            contrast = squares(both[0], BLOCK).std((1, 2)).max(1)
            clipped = (squares(both[0], BLOCK).max((1, 2, 3)) > 250) | (squares(both[0], BLOCK).min((1, 2, 3)) < 5)
            flat = contrast <= np.percentile(contrast[~clipped], 10)
            noises.append([noise(image, flat & ~clipped) for image in both])
        print(folder)
        print(
            "  blurred minus sharp from code", *(f"{c}: {x:+.1f}" for c, x in zip(CODES, changes / counts, strict=True))
        )
        print("  amplitude, blurred by sharp", np.sqrt(powers[0] / powers[1]).round(2))
        print("  noise, blurred and sharp", np.median(noises, axis=0).round(2))


if __name__ == "__main__":
    main()
