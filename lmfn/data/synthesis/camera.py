"""The camera model: noise on a Bayer mosaic, colours, tone, JPEG. On any device, in batches.

All randomness of a pixel is a function of a key and of its position in the photograph, so that a crop equals the same
part of the full image.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmfn.data.synthesis.paths import Box, uniform
from lmfn.device import constant, sent, sent_together
from lmfn.options import BlurOptions

REACH = 18  # pixels around a crop that affect it, by chroma blocks in JPEG and the mosaic's filters


def to_linear(encoded: Tensor) -> Tensor:
    """sRGB values in [0, 1] to linear light in [0, 1] (IEC 61966-2-1), any shape."""
    return torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def from_linear(light: Tensor) -> Tensor:
    """Linear light in [0, 1], clipped to it, to sRGB values in [0, 1] (IEC 61966-2-1), any shape."""
    light = light.clamp(0, 1)
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


CODES = torch.linspace(0, 1, 256)
"""The value of each 8-bit code."""


def with_contrast(encoded: Tensor, contrast: Tensor | float) -> Tensor:
    """Apply a tone curve to values in [0, 1], with this share of the S-curve 3 x^2 - 2 x^3; arguments broadcast."""
    return encoded + contrast * (encoded * encoded * (3 - 2 * encoded) - encoded)


def light_of_codes(contrast: float, gain: float) -> Tensor:
    """The linear light of each 8-bit code, `[256]`, under that tone curve; the code 255, which alone may be clipped,
    maps to `gain`."""
    grid = np.linspace(0, 1, 8193)
    curve = grid + contrast * (grid**2 * (3 - 2 * grid) - grid)
    encoded = torch.from_numpy(np.interp(np.linspace(0, 1, 256), curve, grid)).float() if contrast else CODES
    light = to_linear(encoded)
    light[-1] *= gain
    return light


@dataclass(frozen=True)
class Noise:
    """The noise of one image, in linear light."""

    shot: float
    read: float
    key: int
    """From 0 to 2^63 - 1. Together with its position it determines the noise of a pixel."""

    @classmethod
    def draw(cls, rng: np.random.Generator, blur: BlurOptions) -> Self:
        """Draw from the ranges of the options."""
        return cls(uniform(rng, blur.shot_noise), uniform(rng, blur.read_noise), int(rng.integers(2**63)))


@dataclass(frozen=True)
class Mosaic:
    """A sensor with a Bayer mosaic, and the conversion of its raw values to linear sRGB."""

    gains: tuple[float, float, float]
    """White balance: raw red, green and blue are multiplied by these, 1 or more."""
    matrix: tuple[tuple[float, float, float], ...]
    """From white-balanced to sRGB; each row sums to 1, so that white stays white."""
    phase: tuple[int, int]
    """Row and column, 0 or 1, of the red pixels."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw gains and matrices like those of cameras in daylight and indoors."""
        crosstalk = rng.uniform([[-0.7, -0.2], [-0.3, -0.4], [-0.05, -0.7]], [[-0.2, 0.1], [-0.05, -0.1], [0.1, -0.2]])
        (rg, rb), (gr, gb), (br, bg) = crosstalk.tolist()
        matrix = (1 - rg - rb, rg, rb), (gr, 1 - gr - gb, gb), (br, bg, 1 - br - bg)
        red, blue = uniform(rng, (1.2, 2.4)), uniform(rng, (1.2, 2.4))
        return cls((red, 1.0, blue), matrix, (int(rng.integers(2)), int(rng.integers(2))))


@dataclass(frozen=True)
class Camera:
    """The random parameters of a camera: its noise, where the noise is added, and the compression."""

    noise: Noise
    mosaic: Mosaic | None = None
    """None: the noise is added to each channel of linear sRGB."""
    quality: int | None = None
    """JPEG quality; None: not compressed."""

    @classmethod
    def draw(cls, rng: np.random.Generator, blur: BlurOptions) -> Self:
        """Draw from the ranges and probabilities of the options."""
        noise = Noise.draw(rng, blur)
        mosaic = Mosaic.draw(rng) if rng.random() < blur.mosaic else None
        return cls(noise, mosaic, draw_quality(rng, blur) if rng.random() < blur.jpeg else None)

    @property
    def changes_light(self) -> bool:
        """Whether the sensor changes the light."""
        return bool(self.noise.shot or self.noise.read or self.mosaic)


def draw_quality(rng: np.random.Generator, blur: BlurOptions) -> int:
    """Draw a JPEG quality."""
    return int(rng.integers(blur.jpeg_quality[0], blur.jpeg_quality[1] + 1))


def sense(light: Tensor, cameras: Sequence[Camera], boxes: Sequence[Box]) -> Tensor:
    """Pass linear light through sensors, `[B, 3, height, width]` with sRGB primaries to the same: clipped to [0, 1],
    noisy.

    The light is clipped as the photograph was, in sRGB, so that what stands still keeps its colour. With a mosaic it is
    then converted to the sensor's colours, each pixel keeps one of its three values, and the others are interpolated
    from noisy, white-balanced neighbours (mirrored at the border of the crop).
    """
    some = [n for n, camera in enumerate(cameras) if camera.mosaic]
    found = [camera.mosaic for camera in cameras if camera.mosaic]
    gains = torch.tensor([mosaic.gains for mosaic in found])
    matrices = torch.tensor([mosaic.matrix for mosaic in found])
    to_sensor = torch.linalg.inv(matrices.double()).float() / gains[:, :, None] if some else matrices
    corners = [(boxes[n][0] - m.phase[0], boxes[n][1] - m.phase[1]) for n, m in zip(some, found, strict=True)]
    noise = torch.tensor([(camera.noise.shot, camera.noise.read**2) for camera in cameras], dtype=torch.float32)
    places = _places([camera.noise.key for camera in cameras], boxes)
    tables = [noise, places, torch.tensor(some), gains, matrices, to_sensor, _odd(corners, *boxes[0][2:])]
    strength, places, chosen, gains, to_srgb, to_sensor, odd = sent_together(tables, light.device)

    raw = light.clamp(0, 1)
    if some:
        raw[chosen] = _mix(to_sensor, raw[chosen]).clamp(0, 1)
    if noise.any():
        shot, read = strength.view(-1, 2, 1, 1, 1).unbind(1)
        raw = raw + (shot * raw + read).sqrt() * _normal(places, *boxes[0][2:])
    if some:
        # Balanced before the other colours are found, since the filters take detail of one colour for that of all.
        found_light = _demosaic(gains[..., None, None] * raw[chosen].clamp(0, 1), odd)
        # Clipped before the colours are mixed: otherwise white would turn pink where only green is saturated.
        raw[chosen] = _mix(to_srgb, found_light.clamp(max=1))
    return raw


def _mix(matrices: Tensor, images: Tensor) -> Tensor:
    """Multiply the colours `[B, 3, H, W]` of each pixel by matrices `[B, 3, 3]`."""
    red, green, blue = (matrices[:, :, c, None, None] for c in range(3))
    mixed = red * images[:, None, 0]
    return mixed.addcmul_(green, images[:, None, 1]).addcmul_(blue, images[:, None, 2])


# Malvar, He and Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color images", ICASSP
# 2004, figure 2, in eighths: green at red and blue; a colour whose neighbours are beside; above and below; diagonal.
_CROSS = [[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]
_BESIDE = [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]
_DIAGONAL = [[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]]
_FILTERS = torch.tensor([_CROSS, _BESIDE, [list(row) for row in zip(*_BESIDE, strict=True)], _DIAGONAL])[:, None] / 8


# By the parity of row and column (even-even, even-odd, odd-even, odd-odd) and colour: the mosaic's own value (0) or the
# filter (1 to 4) that finds it. At a green pixel, red is beside in the rows of red, and above and below in the others;
# blue the other way round.
_FOUND_BY = torch.tensor([[0, 1, 4], [2, 0, 3], [3, 0, 2], [4, 1, 0]])
_PASSES = torch.tensor([0, 1, 1, 2])
"""The colour that the mosaic passes, by parity."""


def demosaic(images: Tensor, corners: Sequence[tuple[int, int]]) -> Tensor:
    """Keep the colour that a Bayer mosaic passes at each pixel of `[B, 3, H, W]`, and interpolate the others.

    Pixels whose row and column are even, counted from `corners`, are red, those whose row and column are odd, blue.
    """
    return _demosaic(images, sent(_odd(corners, *images.shape[2:]), images.device))


def _odd(corners: Sequence[tuple[int, int]], height: int, width: int) -> Tensor:
    """Twice the parity of each row, then that of each column, counted from the corners: int64 `[B, height + width]`."""
    top, left = torch.tensor(corners, dtype=torch.int64).view(-1, 2).T[..., None]
    return torch.cat([(top + torch.arange(height)) % 2 * 2, (left + torch.arange(width)) % 2], dim=1)


def _demosaic(images: Tensor, odd: Tensor) -> Tensor:
    device, height = images.device, images.shape[2]
    parity = odd[:, :height, None] + odd[:, None, height:]
    mosaic = images.gather(1, constant(_PASSES, device)[parity][:, None])
    padded = F.pad(mosaic, (2, 2, 2, 2), mode="reflect")  # without the edge twice: the colours stay in step
    planes = torch.cat([mosaic, F.conv2d(padded, constant(_FILTERS, device))], dim=1)
    return planes.gather(1, constant(_FOUND_BY, device)[parity].permute(0, 3, 1, 2))


def normal(keys: Sequence[int], boxes: Sequence[Box], device: torch.device) -> Tensor:
    """Standard normal numbers, float32 `[B, 3, height, width]`, each a function of its key and its position on any
    device.

    The Box-Muller transform of two parts of a hash.
    """
    return _normal(sent(_places(keys, boxes), device), *boxes[0][2:])


def _places(keys: Sequence[int], boxes: Sequence[Box]) -> Tensor:
    """A key, and the hash's number of the upper left pixel, int64 `[2, B]`."""
    numbers = [(key, (box[0] << 26) + (box[1] << 2)) for key, box in zip(keys, boxes, strict=True)]
    return torch.tensor(numbers).T.contiguous()


def _normal(places: Tensor, height: int, width: int) -> Tensor:
    key, first = places[..., None, None, None]
    x = hashed(key, first + _steps(height, width, places.device))
    one, other = (x >> 40) & 0xFFFFFF, x & 0xFFFFFF
    return torch.sqrt(-2 * ((one + 1) / 2**24).log()) * torch.cos(other * (2 * math.pi / 2**24))


@functools.lru_cache(4)
def _steps(height: int, width: int, device: torch.device) -> Tensor:
    """The hash's number of each value of an image relative to the first, int64 `[3, height, width]`."""
    rows, columns = torch.arange(height, device=device)[:, None] << 26, torch.arange(width, device=device) << 2
    return rows + columns + torch.arange(3, device=device).view(3, 1, 1)


def hashed(key: Tensor | int, place: Tensor) -> Tensor:
    """A 64-bit hash, int64, of each element, any shape: the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast
    splittable pseudorandom number generators", OOPSLA 2014)."""
    x = key + place * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * _signed(factor)
    return x ^ ((x >> 31) & (2**33 - 1))


def _signed(number: int) -> int:
    """The same 64 bits as a signed number, for tensors."""
    return number - 2**64 if number >= 2**63 else number


# ITU-T T.81, annex K, tables K.1 and K.2; and T.871's YCbCr.
_LUMA = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
_CHROMA = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    *[[99] * 8] * 4,
]
_TABLES = torch.tensor([_LUMA, _CHROMA])
_TO_YCBCR = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.299 / 1.772, -0.587 / 1.772, 0.5], [0.5, -0.587 / 1.402, -0.114 / 1.402]]
)
_FROM_YCBCR = torch.linalg.inv(_TO_YCBCR.double()).float()
_FREQUENCY = torch.arange(8)[:, None]
_DCT = torch.cos(math.pi / 8 * _FREQUENCY * (torch.arange(8) + 0.5)) / torch.where(_FREQUENCY == 0, 8**0.5, 2.0)


def jpeg(pixels: Tensor, qualities: Sequence[int], boxes: Sequence[Box]) -> Tensor:
    """Images after JPEG compression with 4:2:0 chroma subsampling, uint8 `[B, height, width, 3]`, on their device.

    Blocks are aligned with the corner of the photograph; those cut by the border of a crop are padded by its edge.
    """
    device = pixels.device
    height, width = pixels.shape[1:3]
    quality = torch.tensor(qualities)
    scale = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = ((_TABLES * scale.view(-1, 1, 1, 1) + 50) // 100).clamp(1, 255).float()
    top, left = torch.tensor([(box[0] % 16, box[1] % 16) for box in boxes]).T[..., None]
    # A whole number of blocks of 16, the same for every crop, wherever it starts.
    high, wide = (-(-(n + 15) // 16) * 16 for n in (height, width))
    rows = (torch.arange(high) - top).clamp(0, height - 1) * width + torch.arange(len(boxes))[:, None] * height * width
    columns = (torch.arange(wide) - left).clamp(0, width - 1)
    back_rows = (top + torch.arange(height)) * wide + torch.arange(len(boxes))[:, None] * high * wide
    sending = [tables, rows, columns, back_rows, left + torch.arange(width)]
    tables, rows, columns, back_rows, back_columns = sent_together(sending, device)

    blocks = pixels.reshape(-1, 3)[rows[:, :, None] + columns[:, None, :]].float().permute(0, 3, 1, 2)
    ycc = _mix(constant(_TO_YCBCR, device)[None], blocks)
    luma, chroma = _quantised(ycc[:, :1] - 128, F.avg_pool2d(ycc[:, 1:], 2), tables)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear")
    rgb = _mix(constant(_FROM_YCBCR, device)[None], torch.cat([luma + 128, chroma], dim=1))
    codes = rgb.clamp_(0, 255).round_().to(torch.uint8).permute(0, 2, 3, 1).reshape(-1, 3)
    return codes[back_rows[:, :, None] + back_columns[:, None, :]]


def _quantised(luma: Tensor, chroma: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """Luma `[B, 1, H, W]` and chroma `[B, 2, H / 2, W / 2]` with the coefficients of their 8x8 blocks rounded to
    multiples of tables `[B, 2, 8, 8]`, the first one for luma."""
    dct = constant(_DCT, luma.device)
    parts = [planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4) for planes in (luma, chroma)]
    counts = [part[0, ..., 0, 0].numel() for part in parts]
    blocks = torch.cat([part.flatten(1, 3) for part in parts], dim=1)  # [B, blocks, 8, 8]
    steps = torch.cat([tables[:, n : n + 1].expand(-1, count, -1, -1) for n, count in enumerate(counts)], dim=1)
    rounded = (dct @ blocks @ dct.T / steps).round_() * steps
    made = [
        found.unflatten(1, part.shape[1:4]).transpose(3, 4).flatten(4, 5).flatten(2, 3)
        for part, found in zip(parts, (dct.T @ rounded @ dct).split(counts, dim=1), strict=True)
    ]
    return made[0], made[1]
