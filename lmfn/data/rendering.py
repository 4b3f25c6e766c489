"""Render training patches on any device. Needs only PyTorch and NumPy."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lmfn.data.synthesis import Exposure, Mean, Photographs, Runs, synthesise
from lmfn.device import sent


@dataclass(frozen=True)
class Patch:
    """The complete description of a training patch, without pixels."""

    images: tuple[int, ...]
    """Image numbers: blurred and sharp, or consecutive frames, or one photograph."""
    size: tuple[int, int]
    """Height and width of these images."""
    corner: tuple[int, int]
    """Top and left of the crop."""
    exposure: Exposure | Mean | None
    """How to synthesise the blurred patch; None for a pair."""
    turns: int
    """Quarter turns of the finished patch, counter-clockwise."""
    flip: bool
    """Whether it is flipped horizontally before it is turned."""


SYMMETRIES = 8
"""Of a square: quarter turns, plus 4 if flipped first."""
Part = tuple[int, int, int]
"""A square crop: the number of the image, top and left; images are mirrored beyond their borders."""
Cut = Callable[[Sequence[Part], int], Tensor]
"""Crops of a given side: uint8 `[len(parts), side, side, 3]`, on the device of the images."""


def render(patches: Sequence[Patch], side: int, margin: int, cut: Cut) -> tuple[Tensor, Tensor]:
    """Render patches: blurred and sharp, uint8 `[B, 3, side, side]`, channels-last in memory.

    `margin` is `BlurOptions.margin` of the blur that the patches were drawn with. A patch does not depend on the rest
    of its batch, except for the last bit of a float32 before rounding to 8 bits.
    """
    kinds: dict[type, list[int]] = {type(None): [], Mean: [], Exposure: []}
    for n, patch in enumerate(patches):
        kinds[type(patch.exposure)].append(n)
    pairs, runs, photos = ([patches[n] for n in numbers] for numbers in kinds.values())
    parts = [(patch.images[which], *patch.corner) for which in (0, 1) for patch in pairs]
    parts += [(image, *patch.corner) for patch in runs for image in patch.images]
    crops = cut(parts, side) if parts else torch.empty(0)
    made = [(crops[: len(pairs)], crops[len(pairs) : 2 * len(pairs)])] if pairs else []
    averaged = _runs(runs, side, crops[2 * len(pairs) :]) if runs else None
    exposed = _photographs(photos, side, margin, cut) if photos else None
    if averaged or exposed:
        made.append(synthesise(averaged, exposed))

    images = torch.cat([image for which in zip(*made, strict=True) for image in which])
    order = [n for kind in kinds.values() for n in kind]
    finish = torch.tensor(
        [(order.index(n) + first, p.turns + 4 * p.flip) for first in (0, len(order)) for n, p in enumerate(patches)]
    )
    place, symmetry = sent(finish, images.device).T
    blurred, sharp = turned(images, place, symmetry).split(len(order))
    return blurred, sharp


def _runs(patches: Sequence[Patch], side: int, frames: Tensor) -> Runs:
    counts = [len(patch.images) for patch in patches]
    boxes = [(*patch.corner, side, side) for patch in patches]
    return Runs(frames, counts, [cast(Mean, patch.exposure) for patch in patches], boxes)


def _photographs(patches: Sequence[Patch], side: int, margin: int, cut: Cut) -> Photographs:
    exposures = [cast(Exposure, patch.exposure) for patch in patches]
    around = [(p.images[0], p.corner[0] - margin, p.corner[1] - margin) for p in patches]
    elsewhere = [
        (number, top + exposure.outline.texture[0], left + exposure.outline.texture[1])
        for (number, top, left), exposure in zip(around, exposures, strict=True)
        if exposure.outline
    ]
    windows = cut(around + elsewhere, side + 2 * margin)
    textures = windows[len(around) :] if elsewhere else None
    return Photographs(windows[: len(around)], textures, exposures, [(*patch.corner, side, side) for patch in patches])


def turned(images: Tensor, place: Tensor, symmetry: Tensor) -> Tensor:
    """Those of the square images `[N, side, side, 3]` with the numbers `place`, each in its `symmetry`, as
    `[B, 3, side, side]`, channels-last in memory."""
    side = images.shape[1]
    pixels = _permutations(side, images.device)[symmetry] + place[:, None] * side**2
    return images.reshape(-1, 3)[pixels].view(-1, side, side, 3).permute(0, 3, 1, 2)


@functools.cache
def _permutations(side: int, device: torch.device) -> Tensor:
    """Permutations of the pixels of a square, `[SYMMETRIES, side * side]`, by symmetry."""
    square = torch.arange(side * side, device=device).view(side, side)
    turned = [torch.rot90(s, turns) for s in (square, square.flip(1)) for turns in range(4)]
    return torch.stack(turned).flatten(1)
