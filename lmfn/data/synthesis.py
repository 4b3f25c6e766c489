"""Blur made from sharp pictures: the camera's shake from one photograph, or the mean of neighbouring frames.

Every function here is a pure function of its arguments: all that is random comes from the numpy Generator passed in, so
the same generator gives the same pixels on any number of threads, workers and processes. What is drawn (`Shake` and
`Mean`) is apart from the pixels: these are made on whatever device they are on, of many pictures at a time.

Light adds up linearly, pixel values do not. Photographs are taken out of the sRGB curve (IEC 61966-2-1) before they are
integrated, and noise is added there too. Frames are averaged as the GoPro data set was made (Nah et al., CVPR 2017,
section 3): either as they are, or with a gamma of 2.2 undone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lmfn.options import BlurOptions

Image = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Top, left, height, width of a part of a photograph, in pixels."""

GAMMA = 2.2
TILE = 512  # working memory is some 30 bytes a pixel of a tile, however large the photograph
MOMENTS = 256  # resolution of a camera path in time; positions are then taken at equal distances along it


def to_linear(encoded: Tensor) -> Tensor:
    """sRGB values in [0, 1] to linear light in [0, 1] (IEC 61966-2-1), any shape."""
    return torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def from_linear(light: Tensor) -> Tensor:
    """Linear light in [0, 1], clipped to it, to sRGB values in [0, 1] (IEC 61966-2-1), any shape."""
    light = light.clamp(0, 1)
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


# By 8-bit code: its value, the light it stands for, and how far it is clipped (0 below 230, 1 at 255).
CODES = torch.linspace(0, 1, 256)
LINEAR = to_linear(CODES)
POWER = CODES**GAMMA
CLIPPED = (CODES * 10 - 9).clamp(0, 1) ** 2


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


@dataclass(frozen=True)
class Noise:
    """The noise of one picture, in linear light."""

    shot: float
    read: float
    key: int
    """From 0 to 2^63 - 1. With a pixel's place it decides the pixel's noise."""

    @classmethod
    def draw(cls, rng: np.random.Generator, blur: BlurOptions) -> Self:
        return cls(_uniform(rng, blur.shot_noise), _uniform(rng, blur.read_noise), int(rng.integers(2**63)))


@dataclass(frozen=True)
class Shake:
    """All that is random about a photograph's shake."""

    path: CameraPath
    gain: float
    """How many times brighter than white a clipped pixel is."""
    noise: Noise

    @classmethod
    def draw(cls, rng: np.random.Generator, blur: BlurOptions, size: tuple[int, int]) -> Self:
        """For a photograph of that height and width."""
        path = camera_path(rng, blur, radius=math.hypot(*size) / 2)
        return cls(path, _uniform(rng, blur.highlights), Noise.draw(rng, blur))


@dataclass(frozen=True)
class Mean:
    """All that is random about the mean of neighbouring frames, but which they are."""

    linear_light: bool
    noise: Noise

    @classmethod
    def draw(cls, rng: np.random.Generator, blur: BlurOptions) -> Self:
        return cls(bool(rng.random() < blur.linear_light), Noise.draw(rng, blur))


def shake(
    photo: Image, rng: np.random.Generator, blur: BlurOptions | None = None, box: Box | None = None
) -> tuple[Image, Image]:
    """Blur one photograph by the shake of the camera; `[H, W, 3]` uint8 to (blurred, sharp), both uint8.

    A random camera path (shift, and rotation about the photograph's centre) is integrated in linear light with clipped
    highlights made brighter, clipped again, given shot and read noise and rounded to 8 bits. `sharp` is the photograph
    itself, and the blurred one lies on it: the path's mean is zero. With `box` only that part `[height, width, 3]` is
    made, at its own cost; it equals that part of the whole. Beyond its border a photograph is mirrored.
    """
    blur = blur or BlurOptions()
    rows, columns = photo.shape[:2]
    top, left, height, width = box or (0, 0, rows, columns)
    drawn = Shake.draw(rng, blur, (rows, columns))
    margin = blur.margin
    blurred = np.empty((height, width, 3), np.uint8)
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            tile = (top + y, left + x, min(TILE, height - y), min(TILE, width - x))
            above = mirrored(np.arange(tile[0] - margin, tile[0] + tile[2] + margin), rows)
            beside = mirrored(np.arange(tile[1] - margin, tile[1] + tile[3] + margin), columns)
            window = torch.from_numpy(photo[above][:, beside])[None]
            made = shake_windows(window, [drawn], [tile], [(rows, columns)])
            blurred[y : y + TILE, x : x + TILE] = made[0].numpy()
    return blurred, photo[top : top + height, left : left + width].copy()


def mirrored(index: Any, size: Any) -> Any:
    """Places on an axis of that length for any whole numbers: beyond its ends it is mirrored (the ends come twice).

    Arrays or tensors of whole numbers, which broadcast.
    """
    return (2 * size - 1 - abs(2 * (index % (2 * size)) - (2 * size - 1))) // 2


def shake_windows(
    windows: Tensor, drawn: Sequence[Shake], boxes: Sequence[Box], sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """The shaken parts of several photographs, uint8 `[B, height, width, 3]`, on the windows' device.

    `windows` `[B, height + 2 margin, width + 2 margin, 3]`, uint8, are what is around the boxes (of one height and
    width), the margin being `BlurOptions.margin`; `sizes` are heights and widths of the photographs. The weighted sum
    is taken in the path's order and each pixel by itself, so that neither threads nor the other photographs change it.
    """
    device = windows.device
    height, width = boxes[0][2:]
    gains = torch.tensor([[shake.gain] for shake in drawn], dtype=torch.float32)
    tables = (LINEAR * (1 + (gains - 1) * CLIPPED)).to(device, non_blocking=True)
    first = 256 * torch.arange(len(drawn), device=device).view(-1, 1, 1, 1)
    light = tables.flatten()[windows + first].permute(0, 3, 1, 2).contiguous()

    moves = np.zeros((len(drawn), max(len(shake.path.weight) for shake in drawn), 5), np.float32)
    for move, shake, box, size in zip(moves, drawn, boxes, sizes, strict=True):
        # The middle of the box, from the photograph's: what is there turns by the angle, and moves on top of it.
        y, x = (box[axis] + (box[2 + axis] - 1) / 2 - (size[axis] - 1) / 2 for axis in (0, 1))
        path, n = shake.path, len(shake.path.weight)
        cos, sin = np.cos(path.angle), np.sin(path.angle)
        dx = cos * (x - path.x) + sin * (y - path.y) - x
        dy = -sin * (x - path.x) + cos * (y - path.y) - y
        move[:n] = np.stack([cos, sin, dx, dy, path.weight], axis=1)
    cos, sin, dx, dy, weight = torch.from_numpy(moves).to(device, non_blocking=True).permute(2, 1, 0)[..., None, None]
    # Coordinates from the middle of the window, in grid_sample's units: the window is [-1, 1].
    to_x, to_y = 2 / windows.shape[2], 2 / windows.shape[1]
    u = torch.arange(width, device=device) - (width - 1) / 2
    v = (torch.arange(height, device=device) - (height - 1) / 2)[:, None]
    of_u = (cos * u + dx) * to_x, (dy - sin * u) * to_y
    of_v = sin * v * to_x, cos * v * to_y
    grid = torch.empty(len(drawn), height, width, 2, device=device)
    total = torch.zeros(len(drawn), 3, height, width, device=device)
    for moment in range(moves.shape[1]):
        for axis in (0, 1):
            torch.add(of_u[axis][moment], of_v[axis][moment], out=grid[..., axis])
        sample = F.grid_sample(light, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        total.addcmul_(sample, weight[moment, :, None])
    return _round(from_linear(_with_noise(total, [shake.noise for shake in drawn], boxes))).permute(0, 2, 3, 1)


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
    if len(frames) % 2 == 0:
        raise ValueError(f"{len(frames)} frames have no middle one; give an odd number")
    drawn = Mean.draw(rng, blur or BlurOptions())
    middle = frames[len(frames) // 2]
    made = mean_of_windows([[torch.from_numpy(frame) for frame in frames]], [drawn], [(0, 0, *middle.shape[:2])])
    return made[0].numpy(), middle.copy()


def mean_of_windows(frames: Sequence[Sequence[Tensor]], drawn: Sequence[Mean], boxes: Sequence[Box]) -> Tensor:
    """The means of several runs of frames, uint8 `[B, height, width, 3]`, on the frames' device.

    A frame is a part `[height, width, 3]`, uint8; `boxes` say where it was cut from. A run may be of any length.
    """
    device = frames[0][0].device
    curves = torch.stack([CODES, POWER]).to(device, non_blocking=True)
    means = []
    for run, mean in zip(frames, drawn, strict=True):
        table = curves[int(mean.linear_light)]
        total = torch.zeros(run[0].shape, device=device)
        for frame in run:
            total += table[frame.int()]
        total /= len(run)
        means.append(total ** (1 / GAMMA) if mean.linear_light else total)
    encoded = torch.stack(means).permute(0, 3, 1, 2)
    noises = [mean.noise for mean in drawn]
    noisy = from_linear(_with_noise(to_linear(encoded), noises, boxes))
    # Without noise, not through the curve and back: half a level would fall to either side.
    silent = torch.tensor([not (noise.shot or noise.read) for noise in noises]).to(device, non_blocking=True)
    return _round(torch.where(silent.view(-1, 1, 1, 1), encoded, noisy)).permute(0, 2, 3, 1)


def _with_noise(light: Tensor, noises: Sequence[Noise], boxes: Sequence[Box]) -> Tensor:
    """What the sensor saw, `[B, 3, height, width]`, clipped, and then its shot and read noise added."""
    light = light.clamp(0, 1)
    parameters = torch.tensor([(noise.shot, noise.read**2) for noise in noises], dtype=torch.float32)
    if not parameters.any():
        return light
    shot, read = parameters.to(light.device, non_blocking=True).view(-1, 2, 1, 1, 1).unbind(1)
    return light + (shot * light + read).sqrt() * normal([noise.key for noise in noises], boxes, light.device)


def normal(keys: Sequence[int], boxes: Sequence[Box], device: torch.device) -> Tensor:
    """Standard normal numbers, float32 `[B, 3, height, width]`, on any device each a function of its key and its place.

    Box and Muller's transform of two parts of a hash: the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast
    splittable pseudorandom number generators", OOPSLA 2014).
    """
    height, width = boxes[0][2:]
    places = torch.tensor([(key, box[0], box[1]) for key, box in zip(keys, boxes, strict=True)])
    key, top, left = places.to(device, non_blocking=True).T[..., None, None, None]
    rows = top + torch.arange(height, device=device)[:, None]
    columns = left + torch.arange(width, device=device)
    place = (rows << 26) + (columns << 2) + torch.arange(3, device=device).view(3, 1, 1)
    x = key + place * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * _signed(factor)
    x ^= (x >> 31) & (2**33 - 1)
    one, other = (x >> 40) & 0xFFFFFF, x & 0xFFFFFF
    return torch.sqrt(-2 * ((one + 1) / 2**24).log()) * torch.cos(other * (2 * math.pi / 2**24))


def _signed(number: int) -> int:
    """The same 64 bits as a signed number, which is all that tensors know."""
    return number - 2**64 if number >= 2**63 else number


def _round(encoded: Tensor) -> Tensor:
    return (encoded.clamp(0, 1) * 255).round().to(torch.uint8)
