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
from typing import Any, NamedTuple, Self, cast, get_args

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
from lmfn.device import constant, sent_together
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
        outline = draw_outline(rng, size, area) if kind == "object" else None
        depth = draw_depth(rng, area) if kind == "depth" else None
        gain = uniform(rng, blur.highlights)
        return cls(
            kind,
            label,
            motion=motion,
            outline=outline,
            object_motion=object_motion,
            depth=depth,
            gain=1.0 if label else gain,  # white paper is no lamp: its light would drown the text
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
            photograph = Photographs(window(*tile), texture, [drawn], [tile])
            for which, pixels in enumerate(synthesise(None, photograph)):
                made[which, y : y + height, x : x + width] = pixels[0, REACH:-REACH, REACH:-REACH].numpy()
    return made[0], made[1]


def mirrored(index: Any, size: Any) -> Any:
    """Positions on an axis of that length for any integers, mirrored beyond its ends (which are repeated).

    Arrays or tensors of whole numbers, which broadcast.
    """
    return (2 * size - 1 - abs(2 * (index % (2 * size)) - (2 * size - 1))) // 2


class Photographs(NamedTuple):
    """Crops of photographs to be exposed."""

    windows: Tensor
    """Their surroundings, uint8 `[B, height + 2 margin, width + 2 margin, 3]`, with margin `BlurOptions.margin`."""
    textures: Tensor | None
    """Of the same size, one for each exposure with an outline, in their order: the surroundings of the crops moved by
    the outline's `texture`."""
    drawn: Sequence[Exposure]
    boxes: Sequence[Box]
    """The crops, of equal height and width."""


class Runs(NamedTuple):
    """Crops of runs of frames to be averaged."""

    frames: Tensor
    """uint8 `[F, height, width, 3]`, run by run."""
    counts: Sequence[int]
    """Frames of each run."""
    drawn: Sequence[Mean]
    boxes: Sequence[Box]


def synthesise(runs: Runs | None, photographs: Photographs | None) -> tuple[Tensor, Tensor]:
    """Blurred and sharp crops, uint8 `[B, height, width, 3]`, on the images' device: those of the runs, then those of
    the photographs. All crops have the same height and width.

    Every pixel is computed independently of threads and of the other crops. What is done to several of them is done to
    all of these at once, and the host waits for nothing.
    """
    sharp: list[Tensor] = []
    light: list[Tensor] = []
    boxes: list[Box] = []
    seen: list[tuple[int, Camera, float]] = []  # number, camera and contrast of each image that is exposed
    if runs:
        encoded, middle = _averages(runs)
        sharp.append(middle)
        light.append(to_linear(encoded))
        boxes += runs.boxes
        seen += [(n, mean.camera, 0.0) for n, mean in enumerate(runs.drawn)]
    packed: list[tuple[int, int]] = []  # number and quality of what is compressed: first what is to be left alone
    if photographs:
        first = len(boxes)
        scenes, exposed = _scenes(photographs)
        sharp.append(scenes)
        light += [exposed] if exposed is not None else []
        boxes += photographs.boxes
        for n, exposure in enumerate(photographs.drawn, first):
            seen += [(n, cast(Camera, exposure.camera), exposure.contrast)] if exposure.motion else []
            packed += [(n, exposure.quality)] if exposure.quality else []
    images = torch.cat(sharp)
    alone = len(packed)
    packed += [(n, camera.quality) for n, camera, _ in seen if camera.quality]

    kept = [n for n, camera, _ in seen[: len(runs.boxes) if runs else 0] if not camera.changes_light]
    numbers, contrasts = torch.tensor([n for n, *_ in seen]), torch.tensor([contrast for *_, contrast in seen])
    numbers, contrasts, places, kept_places = sent_together(
        [numbers, contrasts.view(-1, 1, 1, 1), torch.tensor([n for n, _ in packed]), torch.tensor(kept)], images.device
    )
    blurred = images
    if seen:
        sensed = sense(torch.cat(light), [camera for _, camera, _ in seen], [boxes[n] for n, *_ in seen])
        values = with_contrast(from_linear(sensed), contrasts)
        if kept:  # without the curve and its inverse, which could round half a level either way
            values[kept_places] = encoded[kept_places]
        codes = (values.clamp_(0, 1) * 255).round_().to(torch.uint8).permute(0, 2, 3, 1)
        blurred = images.index_copy(0, numbers, codes)
    if packed:
        made = jpeg(blurred[places], [quality for _, quality in packed], [boxes[n] for n, _ in packed])
        blurred = blurred.index_copy(0, places, made)
        images = images.index_copy(0, places[:alone], made[:alone]) if alone else images
    return blurred, images


_CURVES = torch.cat([CODES, CODES**GAMMA])


def _averages(runs: Runs) -> tuple[Tensor, Tensor]:
    """The mean of each run, with values in [0, 1], `[B, 3, height, width]`, and its middle frame, uint8
    `[B, height, width, 3]`."""
    device, counts = runs.frames.device, runs.counts
    firsts = [sum(counts[:n]) for n in range(len(counts))]
    # Added up frame by frame: the first frames of all runs, then the second ones, until the longest runs are left.
    longest = sorted(range(len(counts)), key=lambda n: -counts[n])
    added = [[n for n in longest if counts[n] > frame] for frame in range(max(counts))]
    linear = [mean.linear_light for mean in runs.drawn]
    tables = [
        torch.tensor([firsts[n] + frame for frame, some in enumerate(added) for n in some]),
        torch.tensor([256 * linear[n] for some in added for n in some], dtype=torch.int32).view(-1, 1, 1, 1),
        torch.tensor([first + count // 2 for first, count in zip(firsts, counts, strict=True)]),
        torch.tensor([longest.index(n) for n in range(len(counts))]),
        torch.tensor(counts).view(-1, 1, 1, 1),
        torch.tensor(linear).view(-1, 1, 1, 1),
    ]
    order, curve, middle, back, lengths, is_linear = sent_together(tables, device)
    values = constant(_CURVES, device)[runs.frames[order] + curve].split([len(some) for some in added])
    total = values[0].clone()
    for value in values[1:]:
        total[: len(value)].add_(value)
    mean = total[back] / lengths
    return torch.where(is_linear, mean ** (1 / GAMMA), mean).permute(0, 3, 1, 2), runs.frames[middle]


def _scenes(photographs: Photographs) -> tuple[Tensor, Tensor | None]:
    """The crops with what is drawn on them, uint8 `[B, height, width, 3]`, and the light of those that move,
    `[M, 3, height, width]`."""
    windows, textures, drawn, boxes = photographs
    device = windows.device
    height, width = boxes[0][2:]
    margin = (windows.shape[1] - height) // 2
    inside = slice(margin, margin + height), slice(margin, margin + width)
    corners = [(box[0] - margin, box[1] - margin) for box in boxes]
    moving = [n for n, exposure in enumerate(drawn) if exposure.motion]
    outlined = [n for n, exposure in enumerate(drawn) if exposure.outline]
    numbers = [torch.tensor(moving), torch.tensor(outlined)]
    tables = [light_of_codes(drawn[n].contrast, drawn[n].gain) for n in moving + outlined]
    first = 256 * torch.arange(len(tables)).view(-1, 1, 1, 1)
    outlines = _outlines([cast(Outline, drawn[n].outline) for n in outlined], [corners[n] for n in outlined], windows)
    sending = [*numbers, torch.stack(tables).flatten() if tables else first, first, *outlines]
    chosen, behind, curves, first, *outlines = sent_together(sending, device)

    scenes = soften(windows, [exposure.softness for exposure in drawn])
    scenes = paint(scenes, [exposure.overlay for exposure in drawn], corners)
    sharp = scenes[:, inside[0], inside[1]].contiguous()
    if not moving:
        return sharp, None
    shown, objects = scenes[chosen], None
    if textures is not None:
        covers = _cover(*outlines)
        over, texture, ground = (
            covers[(..., *inside)][..., None],
            textures[:, inside[0], inside[1]].float(),
            sharp[behind],
        )
        sharp = sharp.index_copy(0, behind, (ground + over * (texture - ground)).round().to(torch.uint8))
        shown = torch.cat([shown, textures])
    light = curves[shown + first].permute(0, 3, 1, 2).contiguous()
    if textures is not None:
        light, thing = light.split([len(moving), len(outlined)])
        objects = torch.cat([thing * covers[:, None], covers[:, None]], dim=1)
    things = [moving.index(n) for n in outlined]
    return sharp, _integrate(light, objects, things, [drawn[n] for n in moving], [boxes[n] for n in moving])


AT_ONCE, PIXELS_AT_ONCE = 16, 1 << 25
"""Moments that a GPU computes at once, and pixels at these moments. (A CPU computes one at a time, in its cache.)"""


def _integrate(
    ground: Tensor, objects: Tensor | None, things: list[int], drawn: Sequence[Exposure], boxes: Sequence[Box]
) -> Tensor:
    """The light of moving scenes, `[B, 3, height, width]`: the weighted sum over the moments, in their order.

    `ground` is the light in the windows; `objects` `[len(things), 4, H, W]` is the light of objects times their
    coverage, and the coverage; `things` are the numbers of their scenes.
    """
    device, (high, wide) = ground.device, ground.shape[2:]
    height, width = boxes[0][2:]
    moments = max(len(cast(Motion, exposure.motion).weight) for exposure in drawn)
    # Coordinates relative to the centre of the window, in grid_sample's units: the window is [-1, 1].
    unit = torch.tensor([2 / wide, 2 / high])
    u = (torch.arange(width) - (width - 1) / 2)[:, None]
    v = (torch.arange(height) - (height - 1) / 2)[:, None]
    home = torch.stack(torch.broadcast_tensors(u.T * unit[0], v * unit[1]), dim=-1)
    weights, moves = _moves([cast(Motion, exposure.motion) for exposure in drawn], boxes, moments)
    motions = [cast(Motion, drawn[n].object_motion) for n in things]
    _, moves_of_objects = _moves(motions, [boxes[n] for n in things], moments)
    depths = {n: exposure.depth for n, exposure in enumerate(drawn) if exposure.depth}
    shares = _shares([*depths.values()], [boxes[n] for n in depths], height, width)
    tables = [u, v, home, weights, moves * unit, moves_of_objects * unit, torch.tensor(things)]
    tables += [shares, torch.tensor([*depths])]
    u, v, home, weights, moves, moves_of_objects, places, shares, deep = sent_together(tables, device)
    share = torch.ones(len(drawn), 1, height, width, 1, device=device) if depths else torch.ones(1, device=device)
    if depths:
        share.index_copy_(0, deep, shares)

    def displaced(moves: Tensor) -> tuple[Tensor, Tensor]:
        """What a column and a row add to the displacement at each moment, `[B, moments, width or height, 2]`."""
        by_u, by_v, shift = moves.unbind(2)
        return torch.addcmul(shift, by_u, u), by_v * v

    def sample(light: Tensor, at: Tensor) -> Tensor:
        """Light `[B, C, H, W]` at positions `[B, moments, height, width, 2]`: `[B, C, moments, height, width]`."""
        found = F.grid_sample(light, at.flatten(1, 2), mode="bilinear", padding_mode="border", align_corners=False)
        made: Tensor = found.unflatten(2, at.shape[1:3])
        return made

    columns, rows = displaced(moves)
    if objects is not None:
        columns_of_objects, rows_of_objects = displaced(moves_of_objects)
    total = torch.zeros(len(drawn), 3, height, width, device=device)
    most = 1 if device.type == "cpu" else max(1, min(AT_ONCE, PIXELS_AT_ONCE // (len(drawn) * height * width)))
    for first in range(0, moments, most):
        some = slice(first, first + most)
        # Pixels are displaced by the motion, or by the share of it at their position.
        away = columns[:, some, None] + rows[:, some, :, None]
        seen = sample(ground, torch.addcmul(home, share, away))
        if objects is not None:
            away = columns_of_objects[:, some, None] + rows_of_objects[:, some, :, None]
            thing = sample(objects, away.add_(home))
            seen[places] = seen[places] * (1 - thing[:, 3:]) + thing[:, :3]
        if most == 1:
            total.addcmul_(seen[:, :, 0], weights[:, first, :, None, None])
        else:
            total += seen.mul_(weights[:, None, some, :, None]).sum(2)
    return total


def _moves(motions: Sequence[Motion], boxes: Sequence[Box], moments: int) -> tuple[Tensor, Tensor]:
    """The weight of each moment, float32 `[B, moments, 1]`, and how the light of a box is displaced then,
    `[B, moments, 3, 1, 2]`.

    At (u, v) relative to the centre of the box it is displaced by (cos - 1) u + sin v + dx to the right, and by
    (cos - 1) v - sin u + dy down, with the zoom in the cosine and sine: by the first times u, the second times v, and
    the third.
    """
    weights = np.zeros((len(motions), moments, 1), np.float32)
    moves = np.zeros((len(motions), moments, 3, 1, 2), np.float32)
    for n, (motion, box) in enumerate(zip(motions, boxes, strict=True)):
        # The centre of the box relative to the pivot, which rotates and is then displaced.
        y, x = (box[axis] + (box[2 + axis] - 1) / 2 - motion.pivot[axis] for axis in (0, 1))
        cos, sin = (np.exp(-motion.zoom) * f(motion.angle) for f in (np.cos, np.sin))
        dx = cos * (x - motion.x) + sin * (y - motion.y) - x
        dy = cos * (y - motion.y) - sin * (x - motion.x) - y
        count = len(motion.weight)
        weights[n, :count, 0] = motion.weight
        moves[n, :count, :, 0] = np.stack([cos - 1, -sin, sin, cos - 1, dx, dy], axis=1).reshape(count, 3, 2)
    return torch.from_numpy(weights), torch.from_numpy(moves)


def _shares(depths: Sequence[Depth], boxes: Sequence[Box], height: int, width: int) -> Tensor:
    """The share of the motion at each position, `[B, 1, height, width, 1]`."""
    shares = torch.empty(len(depths), 1, height, width, 1)
    for share, depth, box in zip(shares, depths, boxes, strict=True):
        y = (box[0] + torch.arange(height))[:, None] - depth.through[0]
        x = box[1] + torch.arange(width) - depth.through[1]
        cos, sin = np.cos(depth.direction), np.sin(depth.direction)
        wave, frequency, phase = depth.wave
        above = cos * x + sin * y + wave * torch.sin(frequency * (cos * y - sin * x) + phase)
        share[0, ..., 0] = depth.far + (1 - depth.far) * torch.sigmoid(2 * above / depth.softness)
    return shares


def _outlines(outlines: Sequence[Outline], corners: Sequence[tuple[int, int]], windows: Tensor) -> list[Tensor]:
    """What `_cover` needs: rows `[B, H, 1]` and columns `[B, 1, W]` relative to the centre, radii, and dents."""
    numbers = range(len(outlines))
    centres = [(corners[n][0] - outlines[n].centre[0], corners[n][1] - outlines[n].centre[1]) for n in numbers]
    down, right = torch.tensor(centres, dtype=torch.float32).view(-1, 2).T[..., None]
    y, x = torch.arange(windows.shape[1]) + down, torch.arange(windows.shape[2]) + right
    radii = torch.tensor([outline.radius for outline in outlines], dtype=torch.float32).view(-1, 1, 1)
    dents = torch.tensor([outline.dents for outline in outlines], dtype=torch.float32)
    return [y[:, :, None], x[:, None], radii, dents]


def _cover(y: Tensor, x: Tensor, radius: Tensor, dents: Tensor) -> Tensor:
    """The fraction of each pixel of a window that an object covers, `[B, H, W]`."""
    height, phase = dents[..., None, None].unbind(2)  # [B, dents, 1, 1]
    waves = torch.arange(2, 2 + dents.shape[1], device=y.device).view(-1, 1, 1)
    bumps = (height * torch.cos(waves * torch.atan2(y, x)[:, None] + phase)).sum(1)
    return (0.5 + radius * (1 + bumps) - torch.hypot(x, y)).clamp_(0, 1)


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
    stack = torch.from_numpy(np.stack(frames))
    made, _ = synthesise(Runs(stack, [len(frames)], [drawn], [(0, 0, *middle.shape[:2])]), None)
    return made[0].numpy(), middle.copy()
