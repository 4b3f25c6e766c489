"""Blur made from sharp pictures: the camera's shake from one photograph, or the mean of neighbouring frames.

Every function here is a pure function of its arguments: all that is random comes from the numpy Generator passed in, so
the same generator gives the same pixels on any number of threads, workers and processes.

Light adds up linearly, pixel values do not. Photographs are taken out of the sRGB curve (IEC 61966-2-1) before they are
integrated, and noise is added there too. Frames are averaged as the GoPro data set was made (Nah et al., CVPR 2017,
section 3): either as they are, or with a gamma of 2.2 undone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]
"""Top, left, height, width of a part of a photograph, in pixels."""

GAMMA = 2.2
TILE = 512  # working memory is some 30 bytes a pixel of a tile, however large the photograph
MOMENTS = 256  # resolution of a camera path in time; positions are then taken at equal distances along it


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


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def to_linear(encoded: Floats) -> Floats:
    """sRGB values in [0, 1] to linear light in [0, 1] (IEC 61966-2-1), float32, any shape."""
    x = np.asarray(encoded, np.float32)
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype(np.float32)


def from_linear(light: Floats) -> Floats:
    """Linear light in [0, 1], clipped to it, to sRGB values in [0, 1] (IEC 61966-2-1), float32, any shape."""
    x = np.clip(np.asarray(light, np.float32), 0, 1)
    return np.where(x <= 0.0031308, x * 12.92, 1.055 * x ** (1 / 2.4) - 0.055).astype(np.float32)


CODES: Floats = np.linspace(0, 1, 256, dtype=np.float32)
LINEAR = to_linear(CODES)
POWER: Floats = (CODES**GAMMA).astype(np.float32)
CLIPPED: Floats = (np.clip(CODES * 10 - 9, 0, 1) ** 2).astype(
    np.float32
)  # how far each 8-bit code is clipped: 0 below 230, 1 at 255


@dataclass(frozen=True)
class CameraPath:
    """Where the picture is at n moments of an exposure, and for what part of it.

    `x`, `y` in pixels and `angle` in radians, float64 `[n]`, each with a weighted mean of zero, so that what is blurred
    lies on what is sharp; `weight` `[n]` sums to 1.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    angle: NDArray[np.float64]
    weight: NDArray[np.float64]


def _uniform(rng: np.random.Generator, span: tuple[float, float]) -> float:
    return float(rng.uniform(*span))


def _wander(rng: np.random.Generator, t: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth random function of the times t in [0, 1], from 0 to 1: slow waves, the slower the larger."""
    waves = sum(rng.normal() / k * np.cos(np.pi * k * t + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3))
    waves = np.asarray(waves) - np.min(waves)
    return waves / np.max(waves)


def camera_path(rng: np.random.Generator, blur: BlurOptions, radius: float) -> CameraPath:
    """Draw a smooth path of a camera held by hand, for a photograph whose corners are `radius` pixels from its centre.

    The camera moves at a changing speed in a changing direction and turns at the same time. Neighbouring positions are
    at most a pixel apart anywhere in the photograph, so that no copies can be told apart in the blur.
    """
    t = np.linspace(0, 1, MOMENTS)
    length, turned = _uniform(rng, blur.length), _uniform(rng, blur.rotation)
    heading = rng.uniform(0, 2 * np.pi) + np.radians(_uniform(rng, blur.curvature)) * _wander(rng, t)
    speed = np.exp(_wander(rng, t))
    velocity = speed * np.exp(1j * heading)
    shift = np.concatenate([[0], np.cumsum((velocity[1:] + velocity[:-1]) / 2)])
    shift *= length / np.abs(np.diff(shift)).sum()
    corner = _wander(rng, t)
    corner *= turned / np.abs(np.diff(corner)).sum()

    # The little of time in it lets the distance grow even where the camera rests.
    distance = 1e-6 * t + np.concatenate([[0], np.cumsum(np.abs(np.diff(shift)) + np.abs(np.diff(corner)))])
    n = math.ceil(length + turned) + 1
    edges = np.linspace(0, distance[-1], n + 1)
    moments = np.interp((edges[1:] + edges[:-1]) / 2, distance, t)
    weight = np.diff(np.interp(edges, distance, t))

    def centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
        at = np.interp(moments, t, values)
        return at - weight @ at

    return CameraPath(centred(shift.real), centred(shift.imag), centred(corner) / radius, weight)


def shake(
    photo: Image, rng: np.random.Generator, blur: BlurOptions | None = None, box: Box | None = None
) -> tuple[Image, Image]:
    """Blur one photograph by the shake of the camera; `[H, W, 3]` uint8 to (blurred, sharp), both uint8.

    A random camera path (shift, and rotation about the photograph's centre) is integrated in linear light with clipped
    highlights made brighter, clipped again, given shot and read noise and rounded to 8 bits. `sharp` is the photograph
    itself, and the blurred one lies on it: the path's mean is zero. With `box` only that part `[height, width, 3]` is
    made, at its own cost; but for the noise it equals that part of the whole. Beyond its border a photograph is
    mirrored.
    """
    blur = blur or BlurOptions()
    rows, columns = photo.shape[:2]
    top, left, height, width = box or (0, 0, rows, columns)
    path = camera_path(rng, blur, radius=math.hypot(rows, columns) / 2)
    gain = _uniform(rng, blur.highlights)
    noise = _uniform(rng, blur.shot_noise), _uniform(rng, blur.read_noise)
    light = (LINEAR * (1 + (gain - 1) * CLIPPED)).astype(np.float32)
    blurred = np.empty((height, width, 3), np.uint8)
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            tile = (top + y, left + x, min(TILE, height - y), min(TILE, width - x))
            exposed = _integrate(photo, light, path, tile)
            blurred[y : y + TILE, x : x + TILE] = _develop(exposed, rng, noise)
    return blurred, photo[top : top + height, left : left + width].copy()


def _integrate(photo: Image, light: Floats, path: CameraPath, box: Box) -> Floats:
    """The light that falls on one box during the exposure, `[height, width, 3]` float32.

    Only a window around the box, as wide as the path, is looked at. The weighted sum is taken in the path's order and
    each pixel by itself, so that the number of threads cannot change it.
    """
    rows, columns = photo.shape[:2]
    top, left, height, width = box
    cos, sin = np.cos(path.angle), np.sin(path.angle)
    # Pixel coordinates relative to the photograph's centre; a pixel of the box looks at R(-angle) (p - shift).
    ys = np.arange(top, top + height) - (rows - 1) / 2
    xs = np.arange(left, left + width) - (columns - 1) / 2
    reach = np.hypot(path.x, path.y) + np.abs(path.angle) * math.hypot(np.abs(ys).max(), np.abs(xs).max())
    margin = math.ceil(reach.max()) + 2
    first_y, last_y = max(0, top - margin), min(rows, top + height + margin)
    first_x, last_x = max(0, left - margin), min(columns, left + width + margin)
    window = light[photo[first_y:last_y, first_x:last_x]]
    source = torch.from_numpy(window).permute(2, 0, 1).contiguous()[None]

    to_x, to_y = 2 / window.shape[1], 2 / window.shape[0]  # grid_sample's units: the window is [-1, 1]
    middle_x, middle_y = (columns - 1) / 2 - first_x + 0.5, (rows - 1) / 2 - first_y + 0.5
    grid = torch.empty(1, height, width, 2)
    total = torch.zeros(1, 3, height, width)
    for c, s, x, y, weight in zip(cos, sin, path.x, path.y, path.weight, strict=True):
        # Each coordinate is affine in p: a row of float32 numbers plus a column of them.
        along_x, along_y = xs - x, ys - y
        for axis, row, column, scale, middle in (
            (0, c * along_x, s * along_y, to_x, middle_x),
            (1, -s * along_x, c * along_y, to_y, middle_y),
        ):
            row32 = torch.from_numpy((row * scale).astype(np.float32))
            column32 = torch.from_numpy(((column + middle) * scale - 1).astype(np.float32))
            torch.add(row32, column32[:, None], out=grid[0, :, :, axis])
        sample = F.grid_sample(source, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        total.add_(sample, alpha=float(weight))
    return total[0].permute(1, 2, 0).numpy()


def draw_frame_count(rng: np.random.Generator, blur: BlurOptions) -> int:
    """How many frames to average: an odd number in `blur.frames`."""
    least, most = blur.frames
    return int(least + 2 * rng.integers((most - least) // 2 + 1))


def mean_of_frames(
    frames: Sequence[Image], rng: np.random.Generator, blur: BlurOptions | None = None
) -> tuple[Image, Image]:
    """Neighbouring sharp frames, `[H, W, 3]` uint8 each, to (blurred, sharp): their mean, and the middle one.

    The mean is taken with a gamma of 2.2 undone with the probability `blur.linear_light`; noise comes after.
    Raises ValueError for an even number of frames.
    """
    blur = blur or BlurOptions()
    if len(frames) % 2 == 0:
        raise ValueError(f"{len(frames)} frames have no middle one; give an odd number")
    in_linear_light = rng.random() < blur.linear_light
    noise = _uniform(rng, blur.shot_noise), _uniform(rng, blur.read_noise)
    table = POWER if in_linear_light else CODES
    mean = np.zeros(frames[0].shape, np.float32)
    for frame in frames:
        mean += table[frame]
    mean /= len(frames)
    if in_linear_light:
        mean **= 1 / GAMMA
    blurred = _develop(to_linear(mean), rng, noise) if any(noise) else _round(mean)
    return blurred, frames[len(frames) // 2].copy()


def _develop(light: Floats, rng: np.random.Generator, noise: tuple[float, float]) -> Image:
    """Clip what the sensor saw, add shot and read noise, and make 8-bit sRGB of it."""
    light = np.clip(light, 0, 1)
    shot, read = noise
    if shot or read:
        light = light + np.sqrt(shot * light + read**2) * rng.standard_normal(light.shape, np.float32)
    return _round(from_linear(light))


def _round(encoded: Floats) -> Image:
    return np.rint(np.clip(encoded, 0, 1) * 255).astype(np.uint8)
