"""How much a clip flickers: what changes from frame to frame where the input stands still."""

from dataclasses import dataclass

import numpy as np

STILL = 2 / 255
"""A pixel of the input stands still where two steps from frame to frame differ by less than this."""
EVERY = 2  # rows and columns of which one is looked at


@dataclass
class Flicker:
    """Sums over pixels that stand still, of the squared second difference in time: f[t-1] - 2 f[t] + f[t+1], zero
    where brightness is constant or changes steadily."""

    pixels: int = 0
    blurred: float = 0.0
    sharp: float = 0.0

    def __add__(self, other: "Flicker") -> "Flicker":
        return Flicker(self.pixels + other.pixels, self.blurred + other.blurred, self.sharp + other.sharp)

    def levels(self) -> tuple[float, float] | None:
        """Root mean square of the input and of the output, in levels of 8 bits; None where nothing stood still."""
        if not self.pixels:
            return None
        return 255 * (self.blurred / self.pixels) ** 0.5, 255 * (self.sharp / self.pixels) ** 0.5


class FlickerMeter:
    """Adds up the flicker of frames as they come, each the input's and the output's, float `[H, W, 3]` in [0, 1]."""

    def __init__(self) -> None:
        self.total = Flicker()
        self._last: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, blurred: np.ndarray, sharp: np.ndarray) -> None:
        """The next frame."""
        pair = tuple(image[::EVERY, ::EVERY].mean(axis=2) for image in (blurred, sharp))
        self._last = [*self._last[-2:], (pair[0], pair[1])]
        if len(self._last) == 3:
            of_input, of_output = (a - 2 * b + c for a, b, c in zip(*self._last, strict=True))
            still = np.abs(of_input) < STILL
            self.total += Flicker(
                int(still.sum()), float((of_input[still] ** 2).sum()), float((of_output[still] ** 2).sum())
            )
