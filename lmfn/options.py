"""The values that a command line can name, without PyTorch, which takes seconds to import: `lmfn --help` is quick."""

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]
"""fp32, or autocast to one of the 16-bit types."""

Guard = Literal["warn", "input", "off"]
"""What becomes of a doubtful output: `warn` keeps it, `input` gives the input back instead, each with a warning; `off`
does not look."""

Variant = Literal["blur", "blur_gamma"]
"""Which of GoPro's two kinds of blurred images: the mean of the frames, or with a gamma of 2.2 undone."""


@dataclass(frozen=True)
class BlurOptions:
    """The ranges that synthetic blur is drawn from, each (least, most); equal ends fix a value.

    Raises ValueError for a range that is not one, naming the field.
    """

    length: tuple[float, float] = (2.0, 24.0)
    """Length, in pixels, of the path that the whole picture travels during the exposure."""
    curvature: tuple[float, float] = (0.0, 180.0)
    """Degrees between the extreme directions of that path: 0 is a straight line, 180 a hook or a wave."""
    rotation: tuple[float, float] = (0.0, 8.0)
    """Pixels that a corner of the photograph travels because the camera turns about the photograph's centre."""
    highlights: tuple[float, float] = (1.0, 2.0)
    """How many times brighter than white a clipped pixel (255) really was. Its streak then stays white."""
    frames: tuple[int, int] = (7, 13)
    """Number of neighbouring frames whose mean is a blurred picture; odd, so that there is a middle one."""
    linear_light: float = 0.5
    """Probability that frames are averaged with a gamma of 2.2 undone (as GoPro's `blur_gamma`), not as they are."""
    shot_noise: tuple[float, float] = (0.0, 3e-4)
    """Variance of the noise in linear light that grows with the light: at value x in [0, 1] it is shot_noise * x."""
    read_noise: tuple[float, float] = (0.0, 5e-4)
    """Standard deviation of the noise in linear light that does not depend on the light."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "linear_light":
                if not _is_number(value) or not 0 <= value <= 1:
                    raise ValueError(f"BlurOptions.linear_light is {value!r}; it must be a probability from 0 to 1")
                continue
            if not isinstance(value, tuple | list) or len(value) != 2 or not all(map(_is_number, value)):
                raise ValueError(f"BlurOptions.{field.name} is {value!r}; it must be two numbers (least, most)")
            floor = {"highlights": 1, "frames": 1}.get(field.name, 0)
            if not floor <= value[0] <= value[1]:
                raise ValueError(
                    f"BlurOptions.{field.name} is {value!r}; it must rise from its least to its most, from {floor} on"
                )
        if any(not isinstance(n, Integral) or n % 2 == 0 for n in self.frames):
            raise ValueError(f"BlurOptions.frames is {self.frames!r}; both ends must be odd whole numbers")

    @property
    def margin(self) -> int:
        """Pixels around a part of a photograph that the longest path may bring into it."""
        return math.ceil(self.length[1] + self.rotation[1]) + 2


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
