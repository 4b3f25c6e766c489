"""Additions to photographs before exposure: text, regular patterns, areas of one colour, softness."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmfn.data.synthesis.camera import hashed
from lmfn.data.synthesis.paths import Box
from lmfn.device import constant, sent_together

Pattern = Literal["checks", "bars", "sine", "dots", "lines", "zone", "star", "text", "flat"]
SOFT_REACH = 5  # reach of softness in pixels


@dataclass(frozen=True)
class Overlay:
    """A drawing over part of a photograph: ink on paper."""

    pattern: Pattern
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]
    area: Box
    """The area of the photograph that it covers."""
    cell: float
    """Size of the pattern's cell, or of a dot of its letters, in pixels."""
    angle: float
    """Rotation about the corner of the area, in radians."""
    key: int
    """Seed of the letters."""

    @classmethod
    def draw(cls, rng: np.random.Generator, pattern: Pattern, area: Box) -> Self:
        """Draw an overlay over an entire area of a photograph in half of the cases, otherwise over part of it."""
        top, left, height, width = area
        if pattern == "flat" and rng.random() < 0.5:  # a bar along an edge
            thickness = int(rng.integers(2, max(3, min(height, width) // 3)))
            edge = int(rng.integers(4))
            covered = [
                (top, left, thickness, width),
                (top + height - thickness, left, thickness, width),
                (top, left, height, thickness),
                (top, left + width - thickness, height, thickness),
            ][edge]
        elif pattern == "flat" or rng.random() < 0.5:
            h, w = (int(rng.integers(max(1, n // 4), n + 1)) for n in (height, width))
            covered = top + int(rng.integers(height - h + 1)), left + int(rng.integers(width - w + 1)), h, w
        else:
            covered = area
        if pattern == "text":
            cell = float(np.exp(rng.uniform(np.log(1.0), np.log(4.0))))
        else:
            cell = float(np.exp(rng.uniform(np.log(2.0), np.log(24.0))))
        if rng.random() < 0.7:  # as on screens and charts
            cell, angle = max(1.0, round(cell)), 0.0
        else:
            angle = float(rng.uniform(-math.pi, math.pi)) if pattern != "text" else float(rng.normal() * 0.1)
        return cls(pattern, *_colours(rng, pattern), covered, cell, angle, int(rng.integers(2**62)))


def _colours(rng: np.random.Generator, pattern: Pattern) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Ink and paper: mostly black, white and greys."""
    colours = rng.integers(0, 256, (2, 3))
    if rng.random() < 0.8:
        colours[:] = colours[:, :1]
    if rng.random() < 0.6:
        colours[0], colours[1] = (0, 255) if pattern != "flat" else (255, 0)
        if rng.random() < 0.3:
            colours = colours[::-1]
    ink, paper = (cast(tuple[int, int, int], tuple(int(x) for x in colour)) for colour in colours)
    return ink, paper


def paint(windows: Tensor, overlays: Sequence[Overlay | None], corners: Sequence[tuple[int, int]]) -> Tensor:
    """Crops `[B, height, width, 3]`, uint8, of photographs at row and column `corners`, with their overlays.

    A pixel is the mean of the pattern at four points.
    """
    found = [(overlay, *corners[n], n) for n, overlay in enumerate(overlays) if overlay]
    if not found:
        return windows
    drawn = sorted(found, key=lambda one: get_args(Pattern).index(one[0].pattern))
    areas = torch.tensor([overlay.area for overlay, *_ in drawn])[..., None]
    y, x = (
        torch.arange(extent) + (torch.tensor([corner[axis] for _, *corner, _ in drawn])[:, None] - areas[:, axis])
        for axis, extent in enumerate(windows.shape[1:3])
    )
    inside = [(along >= 0) & (along < areas[:, 2 + axis]) for axis, along in enumerate((y, x))]
    turn = torch.tensor(
        [[math.cos(o.angle) / o.cell, math.sin(o.angle) / o.cell] for o, *_ in drawn], dtype=torch.double
    )
    centre = torch.stack([_turned(turn, areas[:, 3], areas[:, 2], 1), _turned(turn, areas[:, 2], areas[:, 3], -1)])
    cos, sin = turn.float().T[..., None, None]
    # At points a quarter of a pixel from the edges of a pixel, in rows; and the same in columns.
    y, x = (along[:, None] + torch.tensor(points)[:, None] for along, points in ((y, _DOWN), (x, _RIGHT)))
    tables = [cos * x, sin * x, cos * y, sin * y, *inside, (centre / 2).float()]
    tables += [torch.tensor([o.key for o, *_ in drawn]), torch.tensor([[o.paper, o.ink] for o, *_ in drawn]).float()]
    tables += [torch.tensor([n for *_, n in drawn])]
    cx, sx, cy, sy, rows, columns, centre, keys, colours, places = sent_together(tables, windows.device)

    u, v = cx[:, :, None, :] + sy[..., None], cy[..., None] - sx[:, :, None, :]
    shares, first = [], 0
    for pattern, group in itertools.groupby(overlay.pattern for overlay, *_ in drawn):
        some = slice(first, first := first + len(list(group)))
        at_u, at_v = u[some], v[some]
        if pattern in ("zone", "star"):  # about the centre of the area
            at_u, at_v = (at - middle for at, middle in zip((at_u, at_v), centre[:, some, :, None, None], strict=True))
        shares.append(PATTERNS[pattern](at_u, at_v, keys[some, None, None, None]))
    share = (torch.cat(shares) / 4).sum(1)[..., None]
    paper, ink = colours[:, :, None, None].unbind(1)
    made = (paper + share * (ink - paper)).round().to(torch.uint8)
    covered = (rows[:, :, None] & columns[:, None, :])[..., None]
    return windows.index_copy(0, places, torch.where(covered, made, windows[places]))


_DOWN, _RIGHT = (0.25, 0.25, 0.75, 0.75), (0.25, 0.75, 0.25, 0.75)
"""The four points of a pixel."""


def _turned(turn: Tensor, along: Tensor, across: Tensor, sign: int) -> Tensor:
    """A coordinate `[B, 1]` after a rotation by cosines and sines `[B, 2]`, in double precision."""
    return turn[:, :1] * along + sign * turn[:, 1:] * across


def _zone(u: Tensor, v: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
    """Rings that become finer with distance: as wide as a cell at a distance of eight cells."""
    return 0.5 + 0.5 * torch.cos(math.pi / 16 * (u * u + v * v))


def _star(u: Tensor, v: Tensor, key: Tensor) -> Tensor:
    return (torch.sin((8 + key % 24) * torch.atan2(v, u)) > 0).float()


# Capital letters and digits as dots: one byte for each of a letter's 7 rows, with dots in the 5 lowest bits.
_LETTERS = bytes.fromhex("""
    0E11111F111111 1E11111E11111E 0E11101010110E 1E11111111111E 1F10101E10101F 1F10101E101010 0E11101711110F
    1111111F111111 0E04040404040E 0101010111110E 11121418141211 1010101010101F 111B1515111111 11191513111111
    0E11111111110E 1E11111E101010 1E11111E141211 0F10100E01011E 1F040404040404 1111111111110E 11111111110A04
    11111115151B11 11110A040A1111 11110A04040404 1F01020408101F 0E11131519110E 040C040404040E 0E11010608101F
    1F02040601110E 02060A121F0202 1F101E0101110E 0608101E11110E 1F010204040404 0E11110E11110E 0E11110F01020C
""")
_DOTS = np.unpackbits(np.frombuffer(_LETTERS, np.uint8).reshape(-1, 7, 1), axis=2)[:, :, 3:]
FONT = torch.from_numpy(np.pad(_DOTS, ((0, 1), (0, 2), (0, 1)))).float()
"""`[letter, row, column]`, with a space as the last letter; one column between letters, two rows between lines."""


def _text(u: Tensor, v: Tensor, key: Tensor) -> Tensor:
    column, row = (u / 6).floor().long(), (v / 9).floor().long()
    bits = (hashed(key, (row << 24) + column) >> 20) & 0xFFFF
    letter = torch.where(bits % 6 == 0, len(FONT) - 1, bits // 6 % (len(FONT) - 1))
    return constant(FONT, u.device)[letter, v.floor().long() - 9 * row, u.floor().long() - 6 * column]


PATTERNS: dict[Pattern, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "checks": lambda u, v, _: (u.floor() + v.floor()) % 2,
    "bars": lambda u, v, _: (u.floor() + 0 * v) % 2,
    "sine": lambda u, v, _: 0.5 + 0.5 * torch.sin(math.pi * (u + 0 * v)),
    "dots": lambda u, v, _: ((u % 2 - 1) ** 2 + (v % 2 - 1) ** 2 < 0.5).float(),
    "lines": lambda u, v, _: ((u % 4 < 1) | (v % 4 < 1)).float(),
    "zone": _zone,
    "star": _star,
    "text": _text,
    "flat": lambda u, v, _: torch.ones_like(u + v),
}
"""The amount of ink at points, by coordinates in cells, `[B, 4, H, W]`; the last argument is the overlays' keys."""
REGULAR = tuple(pattern for pattern in get_args(Pattern) if pattern not in ("text", "flat"))


def soften(windows: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Windows `[B, H, W, 3]`, uint8, each blurred by a Gaussian of that standard deviation in pixels, or by none."""
    soft = [n for n, sigma in enumerate(sigmas) if sigma]
    if not soft:
        return windows
    at = torch.arange(-SOFT_REACH, SOFT_REACH + 1)
    weights = torch.exp(-0.5 * (at / torch.tensor([sigmas[n] for n in soft])[:, None]) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(3, 0)
    weights, places = sent_together([weights, torch.tensor(soft)], windows.device)
    sharp = windows[places].permute(0, 3, 1, 2).float()
    planes = F.pad(sharp, (SOFT_REACH,) * 4, mode="replicate").flatten(0, 1)[None]
    planes = F.conv2d(planes, weights[:, None, :, None], groups=planes.shape[1])
    planes = F.conv2d(planes, weights[:, None, None, :], groups=planes.shape[1])
    return windows.index_copy(0, places, planes.view_as(sharp).round().to(torch.uint8).permute(0, 2, 3, 1))
