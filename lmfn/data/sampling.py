"""Training patches out of pairs, frames and photographs: patch n of a seed is always the same patch."""

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lmfn import images
from lmfn.data.frames import find_runs
from lmfn.data.layouts import DataError, Variant, find_pairs, index
from lmfn.data.synthesis import BlurOptions, Image, draw_frame_count, mean_of_frames, shake

Kind = Literal["pairs", "frames", "photos"]


@dataclass(frozen=True)
class Source:
    """One place that training patches come from. Raises ValueError for an unknown kind or a weight not above 0."""

    kind: Kind
    """`pairs`: blurred and sharp images, in a layout that `find_pairs` knows (its train split where it has one).
    `frames`: neighbouring sharp frames, a blurred image being the mean of some: a folder of frames, a tree of such
    folders, a video file, or a folder of videos. `photos`: sharp photographs, blurred by a random camera path."""
    path: str | Path
    weight: float = 1.0
    """The share of patches from here, relative to the other sources' weights."""
    sharp: str | Path | None = None
    """For pairs in two folders with equal names: the folder of the sharp ones, `path` holding the blurred ones."""
    variant: Variant = "blur"
    """For GoPro's pairs: `blur` or `blur_gamma`."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"Source.kind is {self.kind!r}; it must be one of {', '.join(get_args(Kind))}")
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(f"Source.weight of {self.path} is {self.weight}; it must be greater than 0")
        if self.sharp is not None and self.kind != "pairs":
            raise ValueError(f"Source.sharp of {self.path} is for pairs; a source of {self.kind} has none")


class TrainingSet(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of patches (blurred, sharp), uint8 `[3, patch, patch]` each, RGB; `set[n]` for any whole number n >= 0.

    A patch is a pure function of the seed and n: the source (by weight), the item, the crop, the flips and quarter
    turns (with `augment`), the blur. So there is no length, and workers, threads and the cache make no difference; give
    a DataLoader a sampler that says which n are wanted. Decoded images are kept, up to `cache_gib` GiB in every process
    (each worker of a DataLoader is one).

    All files are looked at first, by their headers alone. Raises ValueError (DataError and ImageError are such) naming
    the file that is missing, unreadable, without a partner, of another size than its partner or smaller than the patch,
    and sequences with fewer frames than `blur.frames` asks for.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        patch: int,
        seed: int,
        blur: BlurOptions | None = None,
        augment: bool = True,
        cache_gib: float = 4.0,
    ) -> None:
        if patch < 1:
            raise ValueError(f"patch is {patch}; it must be at least 1")
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must not be negative")
        if not cache_gib >= 0:
            raise ValueError(f"cache_gib is {cache_gib}; it must not be negative")
        if not sources:
            raise ValueError("there is no source of training patches")
        self.patch, self.seed, self.augment = patch, seed, augment
        cache, blur = _Cache(int(cache_gib * 2**30)), blur or BlurOptions()
        self._sources = [_KINDS[source.kind](source, patch, blur, cache) for source in sources]
        weights = np.array([source.weight for source in sources])
        self._ends = np.cumsum(weights / weights.sum())[:-1]

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        if n < 0:
            raise IndexError(f"patch {n} of a training set; they are counted from 0")
        rng = np.random.default_rng((self.seed, n))
        source = self._sources[np.searchsorted(self._ends, rng.random(), side="right")]
        turns, flip = int(rng.integers(4)), rng.integers(2)  # drawn in any case: augment changes nothing else
        blurred, sharp = source.draw(rng)

        def tensor(image: Image) -> Tensor:
            if self.augment:
                image = np.rot90(image[:, ::-1] if flip else image, turns)
            return torch.from_numpy(image.transpose(2, 0, 1).copy())

        return tensor(blurred), tensor(sharp)


class _Cache:
    """Decoded images by key, the least recently used ones dropped where they pass `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._clear()

    def _clear(self) -> None:
        self._held: OrderedDict[Hashable, Image] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable) -> Image | None:
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: Hashable, image: Image) -> None:
        if key in self._held or image.nbytes > self.limit:
            return
        self._held[key] = image
        self._bytes += image.nbytes
        while self._bytes > self.limit:
            self._bytes -= self._held.popitem(last=False)[1].nbytes

    def read(self, path: Path) -> Image:
        image = self.get(path)
        if image is None:
            image = images.read_rgb(path)
            self.put(path, image)
        return image

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}  # a worker that is started afresh fills a cache of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.limit = state["limit"]
        self._clear()


def _check_size(path: Path, size: tuple[int, int], patch: int) -> None:
    if min(size) < patch:
        raise DataError(
            f"{path} is {size[1]}x{size[0]}, smaller than the patch, {patch}x{patch}; remove it or take smaller patches"
        )


class _Pairs:
    def __init__(self, source: Source, patch: int, blur: BlurOptions, cache: _Cache) -> None:  # noqa: ARG002
        self.patch, self.cache = patch, cache
        self.pairs = find_pairs(source.path, sharp=source.sharp, split="train", variant=source.variant).pairs
        for pair in self.pairs:
            blurred, sharp = images.read_size(pair.blurred), images.read_size(pair.sharp)
            if blurred != sharp:
                raise DataError(
                    f"{pair.blurred} is {blurred[1]}x{blurred[0]}, but its partner {pair.sharp} is "
                    f"{sharp[1]}x{sharp[0]}; the two must be of one size"
                )
            _check_size(pair.blurred, blurred, patch)

    def draw(self, rng: np.random.Generator) -> tuple[Image, Image]:
        pair = self.pairs[rng.integers(len(self.pairs))]
        blurred, sharp = self.cache.read(pair.blurred), self.cache.read(pair.sharp)
        crop = _crop(rng, blurred, self.patch)
        return blurred[crop], sharp[crop]


class _Photos:
    def __init__(self, source: Source, patch: int, blur: BlurOptions, cache: _Cache) -> None:
        self.patch, self.blur, self.cache = patch, blur, cache
        self.photos = list(index(Path(source.path)).values())
        for photo in self.photos:
            _check_size(photo, images.read_size(photo), patch)

    def draw(self, rng: np.random.Generator) -> tuple[Image, Image]:
        photo = self.cache.read(self.photos[rng.integers(len(self.photos))])
        rows, columns = _crop(rng, photo, self.patch)
        return shake(photo, rng, self.blur, (rows.start, columns.start, self.patch, self.patch))


class _Frames:
    def __init__(self, source: Source, patch: int, blur: BlurOptions, cache: _Cache) -> None:
        self.patch, self.blur, self.cache = patch, blur, cache
        self.runs = find_runs(source.path)
        for run in self.runs:
            _check_size(run.path, run.size, patch)
            if len(run) < blur.frames[1]:
                raise DataError(
                    f"{run.path} has {len(run)} frames, and {blur.frames[1]} (BlurOptions.frames) may be averaged; "
                    "remove it or average fewer"
                )

    def draw(self, rng: np.random.Generator) -> tuple[Image, Image]:
        count = draw_frame_count(rng, self.blur)
        ends = np.cumsum([len(run) - count + 1 for run in self.runs])  # all places in all runs are equally likely
        place = int(rng.integers(ends[-1]))
        which = int(np.searchsorted(ends, place, side="right"))
        frames = self._read(which, int(ends[which]) - 1 - place, count)
        crop = _crop(rng, frames[0], self.patch)
        return mean_of_frames([frame[crop] for frame in frames], rng, self.blur)

    def _read(self, which: int, first: int, count: int) -> list[Image]:
        run = self.runs[which]
        wanted = {n: self.cache.get((run.path, n)) for n in range(first, first + count)}
        missing = [n for n, frame in wanted.items() if frame is None]
        if missing:
            for n, frame in run.decode(missing[0], missing[-1] + 1):
                self.cache.put((run.path, n), frame)
                if n in wanted:
                    wanted[n] = frame
        return [frame for frame in wanted.values() if frame is not None]


_KINDS: dict[Kind, type[_Pairs | _Photos | _Frames]] = {"pairs": _Pairs, "frames": _Frames, "photos": _Photos}


def _crop(rng: np.random.Generator, image: Image, patch: int) -> tuple[slice, slice]:
    top, left = (int(rng.integers(size - patch + 1)) for size in image.shape[:2])
    return slice(top, top + patch), slice(left, left + patch)
