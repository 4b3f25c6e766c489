"""How much a clip flickers: changes from frame to frame where the input is static."""

from dataclasses import dataclass

import numpy as np

STILL = 2 / 255
"""A pixel of the input is static if the magnitude of its second difference in time is less than this."""
EVERY = 2  # only every second row and column is measured


@dataclass
class Flicker:
    """Sums over static pixels of the squared second difference in time, f[t-1] - 2 f[t] + f[t+1], which is zero where
    brightness is constant or changes linearly."""

    pixels: int = 0
    """Number of static pixels."""
    blurred: float = 0.0
    """The input's sum."""
    sharp: float = 0.0
    """The output's sum."""

    def __add__(self, other: "Flicker") -> "Flicker":
        return Flicker(self.pixels + other.pixels, self.blurred + other.blurred, self.sharp + other.sharp)

    def levels(self) -> tuple[float, float] | None:
        """Root mean square of the input and of the output, in levels of 255; None if no pixel was static."""
        if not self.pixels:
            return None
        return 255 * (self.blurred / self.pixels) ** 0.5, 255 * (self.sharp / self.pixels) ** 0.5


class FlickerMeter:
    """Accumulates the flicker of a sequence of frames; input and output are float `[H, W, 3]` in [0, 1]."""

    def __init__(self) -> None:
        self.total = Flicker()
        self._last: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, blurred: np.ndarray, sharp: np.ndarray) -> None:
        """Add the next frame."""
        pair = tuple(image[::EVERY, ::EVERY].mean(axis=2) for image in (blurred, sharp))
        self._last = [*self._last[-2:], (pair[0], pair[1])]
        if len(self._last) == 3:
            of_input, of_output = (a - 2 * b + c for a, b, c in zip(*self._last, strict=True))
            still = np.abs(of_input) < STILL
            self.total += Flicker(
                int(still.sum()), float((of_input[still] ** 2).sum()), float((of_output[still] ** 2).sum())
            )
