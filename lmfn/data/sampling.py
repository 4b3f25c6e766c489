"""Training patches from pairs, frames and photographs: patch n of a seed is always the same."""

import math
from collections import OrderedDict
from collections.abc import Container, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lmfn import images
from lmfn.data.frames import FrameSequence, find_runs, without_fragments
from lmfn.data.layouts import DataError, find_pairs, index, split_pair
from lmfn.data.packed import open_pack, read_rgb
from lmfn.data.rendering import Part, Patch, render
from lmfn.data.synthesis import Exposure, Image, Mean, draw_frame_count, mirrored
from lmfn.data.synthesis.paths import Box
from lmfn.options import BlurOptions, Variant

Kind = Literal["pairs", "frames", "photos", "packs"]
Item = Sequence[int]
"""Image numbers: blurred and sharp; consecutive frames; or one photograph."""


@dataclass(frozen=True)
class Source:
    """A source of training patches. Raises ValueError for an unknown kind or a weight not above 0."""

    kind: Kind
    """`pairs`: blurred and sharp images in a layout known to `find_pairs` (the train split, if there is one). `frames`:
    consecutive sharp frames, whose mean is a blurred image: a folder of frames, a tree of such folders, a video file,
    or a folder of videos. `photos`: sharp photographs, for the kinds of `BlurKinds`. `packs`: a file of `lmfn data
    pack`, which contains sources of these kinds with their weights."""
    path: str | Path
    weight: float = 1.0
    """The share of patches from this source, relative to the weights of the others."""
    sharp: str | Path | None = None
    """For pairs in two folders: the folder of the sharp images; `path` is that of the blurred images."""
    variant: Variant = "blur"
    """For GoPro's pairs: `blur` or `blur_gamma`."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"Source.kind is {self.kind!r}; it must be one of {', '.join(get_args(Kind))}")
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(f"Source.weight of {self.path} is {self.weight}; it must be greater than 0")
        if self.sharp is not None and self.kind != "pairs":
            raise ValueError(f"Source.sharp of {self.path} is for pairs; a source of {self.kind} has none")

    @classmethod
    def parse(cls, kind: Kind, text: str, variant: Variant = "blur") -> Self:
        """Parse PATH or, for pairs, BLURRED,SHARP; =WEIGHT may follow. An existing path is never split."""
        weight: float = 1.0
        if not Path(text).exists():
            path, equals, number = text.rpartition("=")
            if equals:
                try:
                    text, weight = path, float(number)
                except ValueError:
                    raise ValueError(
                        f"--{kind} {text}: {number!r} is not a weight, and there is no such folder"
                    ) from None
        path, sharp = split_pair(text) if kind == "pairs" else (text, None)
        return cls(kind, path, weight, sharp, variant)


class TrainingSet(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of patches (blurred, sharp), uint8 `[3, patch, patch]` each, RGB; `set[n]` for any whole number n >= 0.

    A patch is a pure function of the seed and n: the source (by weight), the item, the crop, the flips and quarter
    turns, the blur. The set is therefore unbounded, and its samples do not depend on workers, threads or the cache;
    give a DataLoader a sampler of the wanted n. Up to `cache_gib` GiB of decoded images are kept in every process (each
    worker of a DataLoader is one).

    All headers are read first. Raises ValueError (including DataError and ImageError) naming a file that is missing,
    unreadable, without a partner, of another size than its partner or smaller than the patch, and sequences with fewer
    frames than `blur.frames` needs.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        patch: int,
        seed: int,
        blur: BlurOptions | None = None,
        cache_gib: float = 4.0,
    ) -> None:
        if patch < 1:
            raise ValueError(f"patch is {patch}; it must be at least 1")
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must not be negative")
        if not cache_gib >= 0:
            raise ValueError(f"cache_gib is {cache_gib}; it must not be negative")
        if not sources:
            raise ValueError("no source of training patches given")
        self.patch, self.seed = patch, seed
        self.blur = blur or BlurOptions()
        self.images = Images(int(cache_gib * 2**30))
        self._sources: list[_Pairs] = []
        shares = []
        for source in sources:
            for kind, share, found in self._parts_of(source):
                self._sources.append(_KINDS[kind]([self._checked(kind, *one) for one in found], self.blur))
                shares.append(share)
        weights = np.array(shares)
        self._ends = np.cumsum(weights / weights.sum())[:-1]

    def _parts_of(self, source: Source) -> Iterator[tuple[str, float, Iterable[tuple[Path, Item]]]]:
        """Kind, weight, and items with their paths; for a pack those of all its sources."""
        if source.kind != "packs":
            yield source.kind, source.weight, find_items(source, self.images, self.blur.frames[1])
            return
        path = Path(source.path)
        packed = open_pack(path)
        numbers = [self.images.add(path / str(n), size) for n, size in enumerate(packed.sizes)]
        total = sum(part.weight for part in packed.sources)
        for part in packed.sources:
            items = [(path / str(item[0]), [numbers[n] for n in item]) for item in part.items]
            yield part.kind, source.weight * part.weight / total, items

    def _checked(self, kind: str, path: Path, item: Item) -> Item:
        size = self.images.sizes[item[0]]
        if min(size) < self.patch:
            raise DataError(
                f"{path} is {size[1]}x{size[0]}, smaller than the patch, {self.patch}x{self.patch}; remove it or take "
                "smaller patches"
            )
        if kind == "frames" and len(item) < self.blur.frames[1]:
            raise DataError(
                f"{path} has {len(item)} frames, and {self.blur.frames[1]} (BlurOptions.frames) may be averaged; "
                "remove it or average fewer"
            )
        return item

    def groups(self) -> list[list[int]]:
        """All image numbers in groups; the images of any patch are in one group."""
        heads = list(range(len(self.images.sizes)))

        def head(number: int) -> int:
            while heads[number] != number:
                heads[number] = number = heads[heads[number]]
            return number

        for source in self._sources:
            for item in source.items:
                for number in item:
                    heads[head(number)] = head(item[0])
        groups: dict[int, list[int]] = {}
        for number in range(len(heads)):
            groups.setdefault(head(number), []).append(number)
        return list(groups.values())

    def plan(self, n: int) -> Patch:
        """The plan of patch n: everything random is drawn here, and no file is read."""
        if n < 0:
            raise IndexError(f"patch {n} of a training set; they are counted from 0")
        rng = np.random.default_rng((self.seed, n))
        source = self._sources[np.searchsorted(self._ends, rng.random(), side="right")]
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        numbers = source.choose(rng)
        size = self.images.sizes[numbers[0]]
        corner = int(rng.integers(size[0] - self.patch + 1)), int(rng.integers(size[1] - self.patch + 1))
        exposure = source.expose(rng, size, (*corner, self.patch, self.patch))
        return Patch(numbers, size, corner, exposure, turns, flip)

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        patch = self.plan(n)
        held = self.images.read(patch.images)

        def cut(parts: Sequence[Part], side: int) -> Tensor:
            crops = []
            for number, top, left in parts:
                image = held[number]
                rows, columns = image.shape[:2]
                above = mirrored(np.arange(top, top + side), rows)
                crops.append(image[above][:, mirrored(np.arange(left, left + side), columns)])
            return torch.from_numpy(np.stack(crops))

        blurred, sharp = render([patch], self.patch, self.blur.margin, cut)
        return blurred[0].contiguous(), sharp[0].contiguous()


class Images:
    """The images for patches, numbered from 0; up to `limit` bytes of decoded images are kept.

    An image named by several sources has one number.
    """

    def __init__(self, limit: int) -> None:
        self.sizes: list[tuple[int, int]] = []
        """Height and width of every image, from its header."""
        self._places: list[Path | tuple[FrameSequence, int]] = []
        """A file, or a frame of a run."""
        self._numbers: dict[Path, int] = {}
        self._cache = ImageCache(limit)

    @property
    def bytes(self) -> int:
        """Total bytes of all decoded images."""
        return sum(3 * height * width for height, width in self.sizes)

    def add(self, path: Path, size: tuple[int, int]) -> int:
        """The number of a file."""
        if path not in self._numbers:
            self._numbers[path] = len(self.sizes)
            self._places.append(path)
            self.sizes.append(size)
        return self._numbers[path]

    def add_run(self, run: FrameSequence) -> int:
        """The number of a run's first frame; the others follow."""
        if run.path not in self._numbers:
            self._numbers[run.path] = len(self.sizes)
            self._places += [(run, n) for n in range(len(run))]
            self.sizes += [run.size] * len(run)
        return self._numbers[run.path]

    def read(self, numbers: Sequence[int]) -> dict[int, Image]:
        """Images by number, uint8 `[H, W, 3]`: files, or consecutive frames of one run. Raises ImageError, or DataError
        for a video."""
        held = {number: self._cache.get(number) for number in numbers}
        missing = [number for number, image in held.items() if image is None]
        if missing:
            for number, image in self._decode(missing):
                self._cache.put(number, image)
                if number in held:
                    held[number] = image
        return cast(dict[int, Image], held)

    def _decode(self, numbers: Sequence[int]) -> Iterator[tuple[int, Image]]:
        """These images, and for a run all frames between them."""
        place = self._places[numbers[0]]
        if isinstance(place, Path):
            for number in numbers:
                yield number, read_rgb(cast(Path, self._places[number]))
        else:
            run, first = place
            for n, frame in run.decode(first, first + numbers[-1] - numbers[0] + 1):
                yield numbers[0] - first + n, frame

    def decode(self, wanted: Container[int]) -> Iterator[tuple[int, Image]]:
        """The wanted images with their numbers, without caching any; of a run all or none."""
        files = [n for n, place in enumerate(self._places) if isinstance(place, Path) and n in wanted]
        with ThreadPoolExecutor() as pool:  # decoding releases the GIL
            for start in range(0, len(files), 64):  # a few at a time: together they may exceed the memory
                some = files[start : start + 64]
                yield from zip(some, pool.map(lambda n: read_rgb(cast(Path, self._places[n])), some), strict=True)
        for first, place in enumerate(self._places):
            if not isinstance(place, Path) and place[1] == 0 and first in wanted:
                yield from self._decode(range(first, first + len(place[0])))


class ImageCache:
    """Decoded images by key; the least recently used are dropped beyond `limit` bytes."""

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

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}  # a spawned worker fills a cache of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.limit = state["limit"]
        self._clear()


def find_items(source: Source, files: Images, least: int) -> Iterator[tuple[Path, Item]]:
    """The items of a source other than a pack, each with the path that errors name; registers their images. Of a video
    with gaps, stretches of fewer frames than `least` are left out."""
    if source.kind == "pairs":
        for pair in find_pairs(source.path, sharp=source.sharp, split="train", variant=source.variant).pairs:
            blurred, sharp = images.read_size(pair.blurred), images.read_size(pair.sharp)
            if blurred != sharp:
                raise DataError(
                    f"{pair.blurred} is {blurred[1]}x{blurred[0]}, but its partner {pair.sharp} is "
                    f"{sharp[1]}x{sharp[0]}; both must have the same size"
                )
            yield pair.blurred, (files.add(pair.blurred, blurred), files.add(pair.sharp, sharp))
    elif source.kind == "photos":
        for photo in index(Path(source.path)).values():
            yield photo, (files.add(photo, images.read_size(photo)),)
    else:
        for run in without_fragments(find_runs(source.path), least):
            first = files.add_run(run)
            yield run.path, range(first, first + len(run))


class _Pairs:
    def __init__(self, items: Sequence[Item], blur: BlurOptions) -> None:
        self.items, self.blur = items, blur

    def choose(self, rng: np.random.Generator) -> tuple[int, ...]:
        return tuple(self.items[int(rng.integers(len(self.items)))])

    def expose(self, rng: np.random.Generator, size: tuple[int, int], area: Box) -> Exposure | Mean | None:  # noqa: ARG002
        """A pair needs no exposure."""
        return None


class _Photos(_Pairs):
    def expose(self, rng: np.random.Generator, size: tuple[int, int], area: Box) -> Exposure:
        return Exposure.draw(rng, self.blur, size, area)


class _Frames(_Pairs):
    def choose(self, rng: np.random.Generator) -> tuple[int, ...]:
        count = draw_frame_count(rng, self.blur)
        ends = np.cumsum([len(run) - count + 1 for run in self.items])  # all positions in all runs are equally likely
        place = int(rng.integers(ends[-1]))
        which = int(np.searchsorted(ends, place, side="right"))
        first = self.items[which][0] + int(ends[which]) - 1 - place
        return tuple(range(first, first + count))

    def expose(self, rng: np.random.Generator, size: tuple[int, int], area: Box) -> Mean:  # noqa: ARG002
        return Mean.draw(rng, self.blur)


_KINDS: dict[str, type[_Pairs]] = {"pairs": _Pairs, "frames": _Frames, "photos": _Photos}
