"""Synthesise blur: from one photograph by motion, or as the mean of consecutive frames.

Every function here is a pure function of its arguments: all randomness comes from the numpy Generator passed in, so the
same generator yields the same pixels for any number of threads, workers and processes. The random parameters
(`Exposure` and `Mean`) are separate from the pixels, which are computed in batches on the device that holds the images.

Light adds up linearly, pixel values do not. Photographs are converted to linear light before they are integrated and
clipped, and noise is added in linear light as well. Frames are averaged as the GoPro data set was made (Nah et
al., CVPR 2017, section 3): either as they are, or with a gamma of 2.2 undone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lmfn.data.synthesis.camera import (
    CODES,
    REACH,
    Camera,
    draw_quality,
    from_linear,
    jpeg,
    light_of_codes,
    sense,
    to_linear,
    with_contrast,
)
from lmfn.data.synthesis.paths import (
    Box,
    Depth,
    Motion,
    Outline,
    draw_depth,
    draw_motion,
    draw_outline,
    uniform,
)
from lmfn.data.synthesis.scenes import REGULAR, Overlay, paint, soften
from lmfn.options import BlurKind, BlurOptions

Image = NDArray[np.uint8]

GAMMA = 2.2
TILE = 512  # working memory is about 100 bytes per pixel of a tile, however large the photograph
STILL: tuple[BlurKind, ...] = ("sharp", "soft", "jpeg", "text", "pattern", "flat")
"""The kinds that are to be left alone: the blurred image equals the sharp one."""


@dataclass(frozen=True)
class Exposure:
    """The random parameters of an image made from a photograph."""

    kind: BlurKind
    overlay: Overlay | None = None
    """An overlay drawn on the photograph, also in the sharp image."""
    softness: float = 0.0
    """Standard deviation, in pixels, of a Gaussian over the photograph, also in the sharp image."""
    motion: Motion | None = None
    """None: the image is to be left alone."""
    outline: Outline | None = None
    """A moving object, also in the sharp image."""
    object_motion: Motion | None = None
    depth: Depth | None = None
    gain: float = 1.0
    """Brightness of a clipped pixel relative to white."""
    contrast: float = 0.0
    """Share of the S-curve in the tone curve of the photograph."""
    camera: Camera | None = None
    """None: the image is to be left alone, except for JPEG."""
    quality: int | None = None
    """Quality of JPEG compression applied to the sharp image as well."""

    @classmethod
    def draw(cls, rng: np.random.Generator, blur: BlurOptions, size: tuple[int, int], area: Box | None = None) -> Self:
        """Draw for a photograph of `size` (height, width), of which `area` is wanted (default: all)."""
        area = area or (0, 0, *size)
        shares = np.array(blur.kinds.shares)
        kind = get_args(BlurKind)[np.searchsorted(np.cumsum(shares), rng.uniform(0, shares.sum()), side="right")]
        if kind == "text" or kind == "flat":
            return cls(kind, Overlay.draw(rng, kind, area))
        if kind == "pattern":
            return cls(kind, Overlay.draw(rng, REGULAR[rng.integers(len(REGULAR))], area))
        if kind in STILL:
            softness = uniform(rng, (0.5, 1.6)) if kind == "soft" else 0.0
            return cls(kind, softness=softness, quality=draw_quality(rng, blur) if kind != "sharp" else None)
        label = Overlay.draw(rng, "text", area) if rng.random() < blur.labels else None
        motion, object_motion = draw_motion(rng, blur, kind, size, area)
        return cls(
            kind,
            label,
            motion=motion,
            outline=draw_outline(rng, size, area) if kind == "object" else None,
            object_motion=object_motion,
            depth=draw_depth(rng, area) if kind == "depth" else None,
            gain=uniform(rng, blur.highlights),
            contrast=uniform(rng, blur.contrast),
            camera=Camera.draw(rng, blur),
        )


@dataclass(frozen=True)
class Mean:
    """The random parameters of a mean of frames, other than the choice of frames."""

    linear_light: bool
    camera: Camera

    @classmethod
    def draw(cls, rng: np.random.Generator, blur: BlurOptions) -> Self:
        """Draw from the probabilities and ranges of the options."""
        return cls(bool(rng.random() < blur.linear_light), Camera.draw(rng, blur))


def blur_photo(photo: Image, rng: np.random.Generator, blur: BlurOptions | None = None) -> tuple[Image, Image]:
    """Make one of the kinds of `BlurKinds` from a photograph; `[H, W, 3]` uint8 to (blurred, sharp), both uint8.

    Motion is integrated in linear light with clipped highlights made brighter, clipped again, given shot and read noise
    and rounded to 8 bits. `sharp` is the photograph with its additions (text, a pattern, an object). The mean of the
    motion is zero, so that the blurred image is aligned with it. Photographs are mirrored beyond their borders.
    """
    blur = blur or BlurOptions()
    rows, columns = photo.shape[:2]
    drawn = Exposure.draw(rng, blur, (rows, columns))
    margin = blur.margin

    def window(top: int, left: int, height: int, width: int) -> Tensor:
        above = mirrored(np.arange(top - margin, top + height + margin), rows)
        beside = mirrored(np.arange(left - margin, left + width + margin), columns)
        return torch.from_numpy(photo[above][:, beside])[None]

    made = np.empty((2, rows, columns, 3), np.uint8)
    for y in range(0, rows, TILE):
        for x in range(0, columns, TILE):
            height, width = min(TILE, rows - y), min(TILE, columns - x)
            tile = (y - REACH, x - REACH, height + 2 * REACH, width + 2 * REACH)
            texture = None
            if drawn.outline:
                below, right = drawn.outline.texture
                texture = window(tile[0] + below, tile[1] + right, *tile[2:])
            for which, pixels in enumerate(expose(window(*tile), texture, [drawn], [tile])):
                made[which, y : y + height, x : x + width] = pixels[0, REACH:-REACH, REACH:-REACH].numpy()
    return made[0], made[1]


def mirrored(index: Any, size: Any) -> Any:
    """Positions on an axis of that length for any integers, mirrored beyond its ends (which are repeated).

    Arrays or tensors of whole numbers, which broadcast.
    """
    return (2 * size - 1 - abs(2 * (index % (2 * size)) - (2 * size - 1))) // 2


def expose(
    windows: Tensor, textures: Tensor | None, drawn: Sequence[Exposure], boxes: Sequence[Box]
) -> tuple[Tensor, Tensor]:
    """Crops of several photographs, blurred and sharp, uint8 `[B, height, width, 3]`, on the windows' device.

    `windows` `[B, height + 2 margin, width + 2 margin, 3]`, uint8, are the surroundings of the boxes (of equal height
    and width), with margin `BlurOptions.margin`; `textures`, of the same size, one for each exposure with an outline,
    in their order, are the surroundings of the boxes moved by the outline's `texture`. Every pixel is computed
    independently of threads and of the other photographs.
    """
    device = windows.device
    height, width = boxes[0][2:]
    margin = (windows.shape[1] - height) // 2
    inside = slice(margin, margin + height), slice(margin, margin + width)

    scenes = windows.clone()
    if soft := [n for n, exposure in enumerate(drawn) if exposure.softness]:
        scenes[soft] = soften(scenes[soft], [drawn[n].softness for n in soft])
    for n, (exposure, box) in enumerate(zip(drawn, boxes, strict=True)):
        if exposure.overlay:
            scenes[n] = paint(scenes[n], exposure.overlay, (box[0] - margin, box[1] - margin))
    sharp = scenes[:, inside[0], inside[1]].clone()
    outlined = [n for n, exposure in enumerate(drawn) if exposure.outline]
    if textures is not None:
        covers = torch.stack([_cover(cast(Outline, drawn[n].outline), boxes[n], margin, device) for n in outlined])
        over, texture, behind = (
            covers[(..., *inside)][..., None],
            textures[:, inside[0], inside[1]].float(),
            sharp[outlined],
        )
        sharp[outlined] = (behind + over * (texture - behind)).round().to(torch.uint8)
    if packed := [n for n, exposure in enumerate(drawn) if exposure.quality]:
        sharp[packed] = jpeg(sharp[packed], [cast(int, drawn[n].quality) for n in packed], [boxes[n] for n in packed])
    blurred = sharp.clone()
    moving = [n for n, exposure in enumerate(drawn) if exposure.motion]
    if not moving:
        return blurred, sharp

    exposures, places = [drawn[n] for n in moving], [boxes[n] for n in moving]
    tables = torch.stack([light_of_codes(e.contrast, e.gain) for e in exposures]).to(device, non_blocking=True)
    things, objects = [moving.index(n) for n in outlined], None
    if textures is not None:
        objects = torch.cat([_light(textures, tables[things]) * covers[:, None], covers[:, None]], dim=1)
    light = _integrate(_light(scenes[moving], tables), objects, things, exposures, places)
    cameras = [cast(Camera, exposure.camera) for exposure in exposures]
    contrast = torch.tensor([e.contrast for e in exposures]).to(device, non_blocking=True).view(-1, 1, 1, 1)
    codes = _round(with_contrast(from_linear(sense(light, cameras, places)), contrast)).permute(0, 2, 3, 1)
    blurred[moving] = _compressed(codes, cameras, places)
    return blurred, sharp


def _light(pixels: Tensor, tables: Tensor) -> Tensor:
    """Look up pixels `[B, H, W, 3]`, uint8, in tables `[B, 256]`; `[B, 3, H, W]`."""
    first = 256 * torch.arange(len(pixels), device=pixels.device).view(-1, 1, 1, 1)
    return tables.flatten()[pixels + first].permute(0, 3, 1, 2).contiguous()


def _integrate(
    ground: Tensor, objects: Tensor | None, things: list[int], drawn: Sequence[Exposure], boxes: Sequence[Box]
) -> Tensor:
    """The light of moving scenes, `[B, 3, height, width]`: the weighted sum over the moments, in their order.

    `ground` is the light in the windows; `objects` `[len(things), 4, H, W]` is the light of objects times their
    coverage, and the coverage; `things` are the numbers of their scenes.
    """
    device = ground.device
    height, width = boxes[0][2:]
    moments = max(len(cast(Motion, exposure.motion).weight) for exposure in drawn)
    moves = _moves([cast(Motion, e.motion) for e in drawn], boxes, moments).to(device, non_blocking=True)
    if objects is not None:
        motions = [cast(Motion, drawn[n].object_motion) for n in things]
        moves_of_objects = _moves(motions, [boxes[n] for n in things], moments).to(device, non_blocking=True)
    share = _shares(drawn, boxes).to(device, non_blocking=True) if any(e.depth for e in drawn) else None
    # Coordinates relative to the centre of the window, in grid_sample's units: the window is [-1, 1].
    u = torch.arange(width, device=device) - (width - 1) / 2
    v = (torch.arange(height, device=device) - (height - 1) / 2)[:, None]
    to_x, to_y = 2 / ground.shape[3], 2 / ground.shape[2]
    home = torch.stack([(u + 0 * v) * to_x, (v + 0 * u) * to_y], dim=-1)

    def sample(light: Tensor, move: Tensor, share: Tensor | None = None) -> Tensor:
        """The light that pixels see, displaced by the motion or the share of it at their position."""
        cos_less_one, sin, dx, dy = move[:4]
        away = torch.stack([(cos_less_one * u + dx + sin * v) * to_x, (dy - sin * u + cos_less_one * v) * to_y], dim=-1)
        at = home + (away if share is None else share * away)
        return F.grid_sample(light, at, mode="bilinear", padding_mode="border", align_corners=False)

    total = torch.zeros(len(drawn), 3, height, width, device=device)
    for moment in range(moments):
        seen = sample(ground, moves[moment], share)
        if objects is not None:
            thing = sample(objects, moves_of_objects[moment])
            seen[things] = seen[things] * (1 - thing[:, 3:]) + thing[:, :3]
        total.addcmul_(seen, moves[moment, 4, :, None])
    return total


def _moves(motions: Sequence[Motion], boxes: Sequence[Box], moments: int) -> Tensor:
    """The origin of the light of a box at each moment, float32 `[moments, 5, B, 1, 1]`.

    At (u, v) relative to the centre of the box the light is displaced by (cos - 1) u + sin v + dx and
    (cos - 1) v - sin u + dy. The values are these four coefficients, including the zoom, and the moment's weight.
    """
    moves = np.zeros((moments, 5, len(motions)), np.float32)
    for n, (motion, box) in enumerate(zip(motions, boxes, strict=True)):
        # The centre of the box relative to the pivot, which rotates and is then displaced.
        y, x = (box[axis] + (box[2 + axis] - 1) / 2 - motion.pivot[axis] for axis in (0, 1))
        cos, sin = (np.exp(-motion.zoom) * f(motion.angle) for f in (np.cos, np.sin))
        dx = cos * (x - motion.x) + sin * (y - motion.y) - x
        dy = cos * (y - motion.y) - sin * (x - motion.x) - y
        moves[: len(motion.weight), :, n] = np.stack([cos - 1, sin, dx, dy, motion.weight], axis=1)
    return torch.from_numpy(moves)[..., None, None]


def _shares(drawn: Sequence[Exposure], boxes: Sequence[Box]) -> Tensor:
    """The share of the motion at each position, `[B, height, width, 1]`; 1 without depth."""
    shares = torch.ones(len(drawn), *boxes[0][2:], 1)
    for share, exposure, box in zip(shares, drawn, boxes, strict=True):
        if depth := exposure.depth:
            y = (box[0] + torch.arange(box[2]))[:, None] - depth.through[0]
            x = box[1] + torch.arange(box[3]) - depth.through[1]
            cos, sin = np.cos(depth.direction), np.sin(depth.direction)
            height, frequency, phase = depth.wave
            above = cos * x + sin * y + height * torch.sin(frequency * (cos * y - sin * x) + phase)
            share[..., 0] = depth.far + (1 - depth.far) * torch.sigmoid(2 * above / depth.softness)
    return shares


def _cover(outline: Outline, box: Box, margin: int, device: torch.device) -> Tensor:
    """The fraction of each pixel of a window that an object covers, `[height + 2 margin, width + 2 margin]`."""
    y = torch.arange(box[2] + 2 * margin, device=device)[:, None] + (box[0] - margin - outline.centre[0])
    x = torch.arange(box[3] + 2 * margin, device=device) + (box[1] - margin - outline.centre[1])
    angle, radius = torch.atan2(y, x), outline.radius
    dents = sum(height * torch.cos(k * angle + phase) for k, (height, phase) in enumerate(outline.dents, 2))
    return (0.5 + radius * (1 + dents) - torch.hypot(x, y)).clamp(0, 1)


def _compressed(codes: Tensor, cameras: Sequence[Camera], boxes: Sequence[Box]) -> Tensor:
    """Images `[B, height, width, 3]`, compressed where the camera has a quality."""
    if packed := [n for n, camera in enumerate(cameras) if camera.quality]:
        qualities = [cast(int, cameras[n].quality) for n in packed]
        codes[packed] = jpeg(codes[packed], qualities, [boxes[n] for n in packed])
    return codes


def draw_frame_count(rng: np.random.Generator, blur: BlurOptions) -> int:
    """Draw the number of frames to average: an odd number in `blur.frames`."""
    least, most = blur.frames
    return int(least + 2 * rng.integers((most - least) // 2 + 1))


def mean_of_frames(
    frames: Sequence[Image], rng: np.random.Generator, blur: BlurOptions | None = None
) -> tuple[Image, Image]:
    """Consecutive sharp frames, `[H, W, 3]` uint8 each, to (blurred, sharp): their mean, and the middle one.

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

    A frame is a crop `[height, width, 3]`, uint8; `boxes` are its positions. Runs may have any length.
    """
    device = frames[0][0].device
    curves = torch.stack([CODES, CODES**GAMMA]).to(device, non_blocking=True)
    means = []
    for run, mean in zip(frames, drawn, strict=True):
        table = curves[int(mean.linear_light)]
        total = torch.zeros(run[0].shape, device=device)
        for frame in run:
            total += table[frame.int()]
        total /= len(run)
        means.append(total ** (1 / GAMMA) if mean.linear_light else total)
    encoded = torch.stack(means).permute(0, 3, 1, 2)
    cameras = [mean.camera for mean in drawn]
    sensed = from_linear(sense(to_linear(encoded), cameras, boxes))
    # Without a change of the light, skip the curve and its inverse, which could round half a level either way.
    changed = torch.tensor([camera.changes_light for camera in cameras]).to(device, non_blocking=True)
    codes = _round(torch.where(changed.view(-1, 1, 1, 1), sensed, encoded)).permute(0, 2, 3, 1)
    return _compressed(codes, cameras, boxes)


def _round(encoded: Tensor) -> Tensor:
    return (encoded.clamp(0, 1) * 255).round().to(torch.uint8)
