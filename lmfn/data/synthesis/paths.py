"""Motion during an exposure, drawn once before any pixel is computed."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmfn.options import BlurKind, BlurOptions

Box = tuple[int, int, int, int]
"""Top, left, height and width of a crop of a photograph, in pixels."""
Array = NDArray[np.float64]
Path = NDArray[np.complex128]

INSTANTS = 256  # resolution of a path in time; positions are then taken at equal distances along it
TIMES = np.linspace(0, 1, INSTANTS)


@dataclass(frozen=True)
class Motion:
    """The positions of an object at n moments of an exposure, with their shares of the exposure.

    `x`, `y` in pixels, `angle` in radians and `zoom`, the logarithm of a factor, float64 `[n]`, each with a weighted
    mean of zero, so that the blurred image is aligned with the sharp one; `weight` `[n]` sums to 1.
    """

    x: Array
    y: Array
    angle: Array
    zoom: Array
    weight: Array
    pivot: tuple[float, float]
    """Row and column of the centre of rotation and zoom."""


@dataclass(frozen=True)
class Depth:
    """The share of a motion by position: 1 on one side of a wavy edge, `far` on the other."""

    through: tuple[float, float]
    """A point (row, column) on the edge."""
    direction: float
    """Direction of the near side, in radians."""
    wave: tuple[float, float, float]
    """Height in pixels, radians per pixel and phase of the edge's wave."""
    softness: float
    """Half of the width, in pixels, over which the share changes."""
    far: float


@dataclass(frozen=True)
class Outline:
    """The outline of a moving object: a circle with dents. Lengths in pixels."""

    centre: tuple[float, float]
    """Row and column."""
    radius: float
    dents: tuple[tuple[float, float], ...]
    """For 2, 3, ... dents around the outline: height relative to the radius, and phase."""
    texture: tuple[int, int]
    """Offset (down, right) from the object to the source of its pixels in the photograph."""


def uniform(rng: np.random.Generator, span: tuple[float, float]) -> float:
    """Draw a number from the span."""
    return float(rng.uniform(*span))


def _place(rng: np.random.Generator, area: Box, inset: float) -> tuple[float, float]:
    """Draw a point (row, column) in an area, at least that share of its sides away from its edges."""
    row, column = rng.uniform(inset, 1 - inset, 2)
    return area[0] + (area[2] - 1) * float(row), area[1] + (area[3] - 1) * float(column)


def _wander(rng: np.random.Generator) -> Array:
    """A smooth random function of TIMES, from 0 to 1: slow waves, the slower the larger."""
    waves = sum(rng.normal() / k * np.cos(np.pi * k * TIMES + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3))
    waves = np.asarray(waves) - np.min(waves)
    return waves / np.max(waves)


def _travelled(steps: Array) -> Array:
    """Cumulative sums of the steps at TIMES."""
    return np.concatenate([[0], np.cumsum(steps)])


def _shift(rng: np.random.Generator, length: float, curvature: float, uneven: bool = False) -> Path:
    """A path of that length in the complex plane at TIMES, at varying speed, turning by `curvature` degrees."""
    heading = rng.uniform(0, 2 * np.pi) + np.radians(curvature) * _wander(rng)
    speed = np.exp(_wander(rng))
    if uneven:
        speed **= 2
        for _ in range(rng.integers(1, 4)):
            middle, width = rng.uniform(0, 1), rng.uniform(0.03, 0.25)
            speed *= 1 - np.exp(-(((TIMES - middle) / width) ** 2))
        for _ in range(rng.integers(1, 3)):
            jerk = rng.uniform(0.1, 0.9)
            heading[jerk < TIMES] += rng.uniform(-0.8 * np.pi, 0.8 * np.pi)
    velocity = speed * np.exp(1j * heading)
    shift = np.concatenate([[0], np.cumsum((velocity[1:] + velocity[:-1]) / 2)])
    shift *= length / np.abs(np.diff(shift)).sum()
    return shift


def _turn(rng: np.random.Generator, travel: float) -> Array:
    """A function of TIMES that moves back and forth by `travel` in total."""
    values = _wander(rng)
    values *= travel / np.abs(np.diff(values)).sum()
    return values


def draw_motion(
    rng: np.random.Generator, blur: BlurOptions, kind: BlurKind, size: tuple[int, int], area: Box
) -> tuple[Motion, Motion | None]:
    """Draw the motion of a photograph of `size` (height, width), and of an object for the kind `object`.

    `area` is the crop that will be rendered, which contains the centre of zoom. Both motions have the same moments.
    Consecutive positions are at most a pixel apart anywhere in the photograph (for `zoom`, in the area), so that copies
    are indistinguishable, except for a `comb`, where they should be visible.
    """
    length, turned = uniform(rng, blur.length), uniform(rng, blur.rotation)
    curvature = uniform(rng, (180, 540) if kind == "curve" else blur.curvature)
    pivot = (size[0] - 1) / 2, (size[1] - 1) / 2
    still = np.zeros(INSTANTS)
    ground, angle, zoom, thing = still + 0j, still, still, still + 0j
    radius = math.hypot(*size) / 2
    if kind == "zoom":
        pivot = _place(rng, area, 0)
        top, left, height, width = area
        far = [max(pivot[0] - top, top + height - 1 - pivot[0]), max(pivot[1] - left, left + width - 1 - pivot[1])]
        radius, direction = max(math.hypot(*far), 1.0), rng.uniform(0, 2 * np.pi)
        progress = _travelled(np.exp(_wander(rng))[1:])
        progress *= length / (progress[-1] * radius)
        angle, zoom = np.cos(direction) * progress, np.sin(direction) * progress
    elif kind == "object":
        # The background stands still in half of the images, and moves by less than the object in the others.
        thing = _shift(rng, length, curvature, uneven=rng.random() < 0.3)
        if rng.random() < 0.5:
            ground = _shift(rng, uniform(rng, (0, length / 2)), curvature)
    else:
        ground = _shift(rng, length, curvature, uneven=kind == "uneven")
        angle = _turn(rng, turned) / radius

    # A small share of time lets the distance grow even while everything rests.
    steps = np.abs(np.diff(np.stack([ground, thing, radius * angle, radius * zoom]))).sum(axis=0)
    distance = 1e-6 * TIMES + _travelled(steps)
    if kind == "comb":
        n = int(rng.integers(blur.teeth[0], blur.teeth[1] + 1))
        moments, weight = (np.arange(n) + 0.5) / n, np.full(n, 1 / n)
    else:
        n = math.ceil(distance[-1]) + 1
        edges = np.linspace(0, distance[-1], n + 1)
        moments = np.interp((edges[1:] + edges[:-1]) / 2, distance, TIMES)
        weight = np.diff(np.interp(edges, distance, TIMES))

    def centred(values: NDArray[Any]) -> Array:
        at: Array = np.interp(moments, TIMES, values)
        return at - float(weight @ at)

    def motion(shift: NDArray[Any], angle: Array, zoom: Array) -> Motion:
        return Motion(centred(np.real(shift)), centred(np.imag(shift)), centred(angle), centred(zoom), weight, pivot)

    return motion(ground, angle, zoom), motion(thing, still, still) if kind == "object" else None


def draw_depth(rng: np.random.Generator, area: Box) -> Depth:
    """Draw an edge between near and far through the middle of an area."""
    side = min(area[2:])
    through = _place(rng, area, 0.25)
    wave = rng.uniform(0, side / 8), rng.uniform(1, 4) * 2 * np.pi / side, rng.uniform(0, 2 * np.pi)
    softness = float(np.exp(rng.uniform(np.log(1.5), np.log(max(side / 4, 2)))))
    return Depth(through, rng.uniform(0, 2 * np.pi), wave, softness, rng.uniform(0, 0.5))


def draw_outline(rng: np.random.Generator, size: tuple[int, int], area: Box) -> Outline:
    """Draw an object in an area of a photograph of `size`, with pixels from elsewhere in the photograph."""
    centre = _place(rng, area, 0.1)
    radius = min(area[2:]) * rng.uniform(0.15, 0.45)
    dents = tuple((float(rng.uniform(0, 0.5 / k)), float(rng.uniform(0, 2 * np.pi))) for k in (2, 3, 4))
    # A quarter of the photograph away, or more, unless the object would cross a border: beyond it pixels are mirrored.
    away = [int(rng.integers(extent // 4, extent - extent // 4 + 1)) for extent in size]
    source = [
        np.clip((at + by) % extent, radius, extent - radius) for at, by, extent in zip(centre, away, size, strict=True)
    ]
    below, right = (round(there - here) for there, here in zip(source, centre, strict=True))
    return Outline(centre, radius, dents, (below, right))
