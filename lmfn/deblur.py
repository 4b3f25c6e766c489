"""Sharpen image arrays: `Deblurrer`. For files and folders see `lmfn.files`."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from numbers import Real
from pathlib import Path
from typing import NamedTuple, Self, TypeVar, cast, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lmfn.device import DTYPES, check_precision, choose_device
from lmfn.inference import BORDER, engine, with_border
from lmfn.memory import available, available_memory, resident, scratch_folder
from lmfn.network.blocks import MULTIPLE, SMALLEST
from lmfn.network.model import Network
from lmfn.network.pretrained import LMFN
from lmfn.options import Guard, InferencePrecision
from lmfn.plausibility import Check, DoubtfulOutput
from lmfn.scratch import Pixels, StoredPixels
from lmfn.strips import Plan, Strips

AnyPixels = TypeVar("AnyPixels", np.ndarray, StoredPixels)

REMEDY = "make the image smaller"
USED_OF_BUDGET = 0.93
"""Share of a given budget that is planned with: a large image takes up to 6 % more than is estimated."""
STRIP_PIXELS = 1 << 19
"""Pixels of the output that are looked at, or written, at a time."""
LOWEST = 48
"""Rows of a strip at 1/4 below which a scratch file is the better way: halos would cost more than it does."""


class Deblurrer:
    """A trained network that sharpens one image at a time.

    `weights` is an argument for `LMFN.from_pretrained` (`lmfn` and `lmfn-released` are included in the package; a
    folder or file written by train.py; `owner/model` on the Hugging Face Hub), or a network (which is copied). `device`
    is a torch device; by default `cuda` if available, else `mps`, else `cpu`. `precision` is that of the convolutions;
    bf16 and fp16 run under autocast. `guard` is the treatment of implausible outputs or parts of them
    (`lmfn.plausibility`). `strength` scales the change: 0 returns the input, 1 the network's output; more exaggerates
    the change and its errors, and is a UserWarning. `memory` is the number of bytes that the process (on a GPU, PyTorch
    there) may hold, by default what is free. An image that needs more is processed in strips, the maps between stages
    in memory or, if they do not fit, in a scratch file; the result is the same to rounding.

    Raises ValueError for unusable weights, an unavailable device, an unknown precision or guard, fp16 on a CPU, and a
    strength below 0; FileNotFoundError if the weights do not exist.
    """

    def __init__(
        self,
        weights: str | Path | Network = "lmfn",
        *,
        device: str | None = None,
        precision: InferencePrecision = "fp32",
        guard: Guard = "warn",
        strength: float = 1.0,
        memory: int | None = None,
    ) -> None:
        if memory is not None and not (isinstance(memory, Real) and memory > 0):
            raise ValueError(f"memory is {memory!r}; it must be a number of bytes above 0")
        if not 0 <= strength < float("inf"):
            raise ValueError(f"strength is {strength}; it must be 0 or more, and 1 is what the network does")
        if strength > 1:
            warnings.warn(f"a strength of {strength:g} exaggerates the change, and its errors", stacklevel=2)
        self.strength = strength
        if guard not in get_args(Guard):
            raise ValueError(f"guard is {guard!r}; it must be one of {', '.join(get_args(Guard))}")
        self.guard = guard
        self.device = choose_device(device)
        check_precision(self.device, precision)
        self.precision = precision
        model = copy.deepcopy(weights) if isinstance(weights, Network) else LMFN.from_pretrained(weights)
        self.model: Network = model.eval().to(self.device)
        self.engine = engine(self.model, self.device, DTYPES[precision])
        self.run = with_border(self.engine.run)
        self.memory: int | None = memory

    def __reduce__(self) -> tuple[Callable[[Network], Self], tuple[Network]]:
        """Pickled and copied as its network and its options; the prepared engine is made anew."""
        options = {name: getattr(self, name) for name in ("precision", "guard", "strength", "memory")}
        return partial(type(self), device=str(self.device), **options), (self.model,)

    as_stored = True
    """It takes samples as files have them: of 8 and 16 bits, and those of large images in a scratch file."""

    def __call__(self, image: AnyPixels) -> AnyPixels:
        """Sharpen `[H, W, C]` of any size, float32 or float64 in [0, 1], uint8 or uint16: gray, gray + alpha, RGB or
        RGBA for C = 1 to 4; an array, or `lmfn.scratch.StoredPixels`.

        The result is of the same kind, shape and dtype and is clipped to its range. Alpha is unchanged. Gray passes
        through the network as three equal channels, of which the mean is returned. The network computes in at most
        float32. An implausible output is a `DoubtfulOutput` warning with the reason and, for parts of the image, their
        position.

        Raises TypeError for another dtype, ValueError for another shape or values outside [0, 1], MemoryError for an
        image that needs more memory than available (before any work, if this can be known), and FloatingPointError if
        the network's output is not finite (unless `guard` is "input").
        """
        check(image)
        height, width, channels = image.shape
        colours = 3 if channels > 2 else 1
        way = self.way(image)
        result = np.empty_like(image) if isinstance(image, np.ndarray) else image.empty_like()
        try:
            output = self._sharpen(image, way)
            rows = [(first, min(first + way.rows, height)) for first in range(0, height, way.rows)]
            reason, regions = None, None
            if self.guard != "off":
                looked_at = Check(height, width)
                for first, last in rows:
                    looked_at.add(as_float(image[first:last][:, :, :colours]).to(self.device), output(first, last))
                reason = looked_at.implausibility()
                regions = looked_at.implausible_regions() if reason is None else None
            if reason is not None and self.guard == "input":
                warnings.warn(f"the output {reason}; the input was kept", DoubtfulOutput, stacklevel=2)
                for first, last in rows:
                    result[first:last] = image[first:last]
                return result
            for first, last in rows:
                pixels = image[first:last].copy()
                blurred = as_float(pixels[:, :, :colours]).to(self.device)
                strength = torch.full_like(blurred, self.strength)
                if regions is not None and self.guard == "input":
                    strength *= 1 - regions.weight(first, last)
                sharp = torch.lerp(blurred.expand(-1, -1, 3), output(first, last), strength.expand(-1, -1, 3))
                if colours == 1:
                    sharp = sharp.mean(2, keepdim=True)
                if not sharp.isfinite().all():
                    raise FloatingPointError(
                        "the network's output is not finite: its weights are broken, or fp16 is too narrow for it; "
                        "try fp32"
                    )
                put(sharp.clamp_(0, 1).cpu().numpy(), pixels[:, :, :colours])
                result[first:last] = pixels
        except RuntimeError as error:
            if any(words in str(error) for words in ("out of memory", "allocate memory")):  # of CUDA and MPS; of a CPU
                raise MemoryError(f"out of memory on {self.device} with an {size(height, width)}; {REMEDY}") from error
            raise
        if reason is not None:
            warnings.warn(f"the output {reason}; look at it", DoubtfulOutput, stacklevel=2)
        if regions is not None:
            outcome = "the input was kept there" if self.guard == "input" else "look at it"
            warnings.warn(f"the output {regions}; {outcome}", DoubtfulOutput, stacklevel=2)
        return result

    def _sharpen(self, image: Pixels, way: "Way") -> Callable[[int, int], Tensor]:
        """The network's output of `[H, W, C]`: a function from first and last row to `[rows, W, 3]` float32."""
        height, width, channels = image.shape
        colours = 3 if channels > 2 else 1
        if way.plan is None:
            whole = as_float(image[:][:, :, :colours]).to(self.device).expand(-1, -1, 3).permute(2, 0, 1)[None]
            sharp = self.run(whole)[0].permute(1, 2, 0)
            return lambda first, last: sharp[first:last]
        down, across = (padded(n, min(height, width) > BORDER) for n in (height, width))

        def read(first: int, last: int) -> Tensor:
            rows = down[first:last]
            top = rows.min()
            part = image[top : rows.max() + 1][rows - top]
            left, right = across[:BORDER], across[BORDER + width :]
            part = as_float(np.concatenate([part[:, left], part, part[:, right]], 1)[:, :, :colours])
            return part.expand(-1, -1, 3).permute(2, 0, 1)[None]

        folder = scratch_folder(way.plan.map_bytes) if way.in_file else None
        strips = cast(Strips, self.engine.strips)
        with tqdm(total=way.plan.strips, unit="strip", leave=False, disable=None) as bar:
            found = strips(read, (len(down), len(across)), way.plan, folder, bar.update)

        def rows(first: int, last: int) -> Tensor:
            place = torch.empty(1, last - first, len(across), 3).permute(0, 3, 1, 2)
            found.read(first + BORDER, last + BORDER, place)
            return place[0].permute(1, 2, 0)[:, BORDER : BORDER + width].to(self.device)

        return rows

    def way(self, image: Pixels) -> "Way":
        """How the image would go through the network now. Raises MemoryError where the memory is too little."""
        height, width = image.shape[:2]
        free, held = self._available()
        rows = max(1, STRIP_PIXELS // (64 * width)) * 64
        of_result = image.nbytes if isinstance(image, np.ndarray) and self.device.type == "cpu" else 0
        tall, wide = (len(padded(n, True)) for n in (height, width))
        # The last term is the rows of the image that the lowest strip of the encoder reads.
        beside = of_result + min(rows, height) * width * 120 + 43 * min(96, tall) * width
        needed = self.estimated_bytes(height, width) + beside
        if free is None or needed <= free:
            return Way(rows, None, False, needed)
        if self.engine.strips is None:
            raise MemoryError(self._short(image, needed, free, held))
        floor = self.engine.strips.plan(tall, wide, 0)
        on_cpu = self.device.type == "cpu"
        # Maps are in the machine's own memory.
        must_be_in_file = not on_cpu and available() < 1.2 * floor.map_bytes
        for in_file in (True,) if must_be_in_file else (False, True):
            plan = self.engine.strips.plan(tall, wide, free - beside, with_maps=on_cpu and not in_file)
            enough = in_file or min(plan.rows.values()) >= min(LOWEST, tall // 4)
            if plan.needed <= free - beside and enough:
                return Way(rows, plan, in_file, plan.needed + beside)
        raise MemoryError(self._short(image, floor.needed + beside, free, held))

    def _available(self) -> tuple[int | None, int]:
        """Bytes that may be taken, None where that is not known, and those of the budget that are taken already."""
        kept = self.engine.kept()
        if self.memory is None:
            free = available_memory(self.device)
            return None if free is None else free + kept, 0
        held = torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else resident() - kept
        return max(int(self.memory * USED_OF_BUDGET) - held, 0), held

    def _short(self, image: Pixels, needed: int, available: int, held: int) -> str:
        least = (needed + held) / (1 if self.memory is None else USED_OF_BUDGET)
        what = f"an {size(*image.shape[:2])} needs at least {least / 1e9:.2f} GB on {self.device}"
        if self.memory is None:
            return f"{what}, and {available / 1e9:.2f} GB are available; {REMEDY}"
        return f"{what}, and the budget is {self.memory / 1e9:.2f} GB; raise it, or {REMEDY}"

    def estimated_bytes(self, height: int, width: int) -> int:
        """About how many bytes an image takes beside itself where it goes through the network as a whole."""
        config = self.model.config
        height, width = (len(padded(n, True)) for n in (height, width))
        size = 4 if self.precision == "fp32" else 2
        if not self.engine.packed:
            return int((size * 1.5 * max(config.channels, config.features) + 4 * 20) * height * width) + 2**26
        c, n = config.channels, config.features
        at_half = 4 * max(c, n * (config.head == "bilinear")) + 4 * n * (config.head == "bilinear")
        at_4th = max(2 * c, 2 * n) + c * 5 / 16 + (config.rfdbs + 1) * n + config.esa
        return int(height * width / 16 * (size * (48 + at_half + at_4th) + 4 * 48 * 4)) + 2**25


class Way(NamedTuple):
    """How an image goes through the network, and how many rows at a time what comes of it is looked at."""

    rows: int
    plan: Plan | None
    """None: as a whole."""
    in_file: bool
    """Whether the maps lie in a file."""
    needed: int
    """About how many bytes of memory it takes beside the image."""

    def __str__(self) -> str:
        return "whole" if self.plan is None else f"strips, maps in {'a file' if self.in_file else 'memory'}"


def padded(length: int, reflect: bool) -> np.ndarray:
    """Along one axis, from which pixel each one of the padded image comes: the border, then what the network adds."""
    places = np.pad(np.arange(length), BORDER, mode="reflect" if reflect and length > BORDER else "edge")
    more = max(SMALLEST, -(-len(places) // MULTIPLE) * MULTIPLE) - len(places)
    return np.pad(places, (0, more), mode="reflect" if more < len(places) else "edge")


def as_float(pixels: np.ndarray) -> Tensor:
    """Pixels as a float32 tensor in [0, 1]."""
    floats = pixels.astype(np.float32)
    if pixels.dtype.kind == "u":
        floats /= np.float32(np.iinfo(pixels.dtype).max)
    return torch.from_numpy(floats)


def put(floats: np.ndarray, place: np.ndarray) -> None:
    """Floats in [0, 1] into pixels of any type."""
    place[:] = np.rint(floats * np.float32(np.iinfo(place.dtype).max)) if place.dtype.kind == "u" else floats


def size(height: int, width: int) -> str:
    return f"image of {width} x {height} pixels ({height * width / 1e6:.1f} megapixels)"


def check(image: Pixels) -> None:
    """Raise TypeError or ValueError unless this is a valid image for `Deblurrer`."""
    if isinstance(image, np.ma.MaskedArray):
        raise TypeError("the image is a masked array; fill it first (image.filled(value))")
    if not isinstance(image, Pixels):
        raise TypeError(f"the image is a {type(image).__name__}; it must be a numpy array [H, W, C], float in [0, 1]")
    if image.dtype not in (np.float32, np.float64, np.uint8, np.uint16):
        raise TypeError(f"the image is {image.dtype}; it must be float32 or float64 in [0, 1], uint8 or uint16")
    if len(image.shape) != 3 or not 1 <= image.shape[2] <= 4 or 0 in image.shape:
        raise ValueError(f"the image has shape {image.shape}; it must be [H, W, C] with H, W >= 1 and C from 1 to 4")
    if image.dtype.kind == "u":
        return
    low, high = np.inf, -np.inf
    rows = max(1, STRIP_PIXELS // image.shape[1])
    for first in range(0, image.shape[0], rows):
        part = image[first : first + rows]
        low, high = np.minimum(low, part.min()), np.maximum(high, part.max())  # NaN if one is
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise ValueError(f"the image's values are from {low:.6g} to {high:.6g}; they must be in [0, 1]")
