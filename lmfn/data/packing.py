"""Pack as much of the sources as fits into one file (`lmfn data pack`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmfn import atomic
from lmfn.cells import one_line
from lmfn.data.layouts import DataError
from lmfn.data.packed import SUFFIX, Pack, PackedSource, PackWriter
from lmfn.data.sampling import Images, Item, Source, find_items
from lmfn.data.synthesis import Image
from lmfn.options import BlurOptions


@dataclass(frozen=True)
class PackReport:
    """The content of a pack, and what was left out."""

    path: Path
    bytes: int
    sha256: str
    """SHA-256 of the images."""
    kept: tuple[tuple[Source, int, int], ...]
    """Per source: items in the pack, and in total."""

    def text(self) -> str:
        lines = [f"{self.path}: {self.bytes / 1e6:.1f} MB, SHA-256 of the images {self.sha256}"]
        for source, kept, total in self.kept:
            left = f"; {total - kept:,} left out" if kept < total else ""
            what = "runs of frames" if source.kind == "frames" else source.kind
            lines.append(f"  {source.path}: {kept:,} of {total:,} {what}{left}")
        return "\n".join(map(one_line, lines))


def pack(
    sources: Sequence[Source],
    out: str | Path,
    *,
    max_bytes: float = 60e6,
    side: int | None = None,
    seed: int = 0,
    blur: BlurOptions | None = None,
) -> PackReport:
    """Write as much of the sources as fits into a file of `max_bytes`, divided in proportion to their weights.

    The seed selects the items; a run of frames is cut into stretches of twice the maximum of `blur.frames`. With
    `side`, each item is one window of that height and width at a random position, so that more scenes fit.

    An existing pack is replaced. Raises DataError for a source that cannot be read or of which nothing fits, for a
    suffix other than .npz, and for a file of that name that is no pack; ValueError for numbers out of their range.
    """
    out = Path(out)
    if side is not None and side < 1:
        raise ValueError(f"side is {side}; it must be at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must not be negative")
    if not 0 < max_bytes < math.inf:
        raise ValueError(f"max_bytes is {max_bytes}; it must be a finite number above 0")
    if out.suffix != SUFFIX:
        raise DataError(f"{out}: the name of a pack must be NAME{SUFFIX}")
    if out.exists():
        try:
            Pack(out)
        except DataError as error:
            raise DataError(f"{out} is there already, and no pack; remove it or choose another name") from error
    files, rng = Images(0), np.random.default_rng(seed)
    most_frames = (blur or BlurOptions()).frames[1]
    queues = []
    for source in sources:
        found = find_items(source, files, most_frames)
        items = [part for _, item in found for part in _stretches(source, item, 2 * most_frames)]
        queues.append([items[n] for n in rng.permutation(len(items))])
    totals = [len(queue) for queue in queues]
    packed = [PackedSource(source.kind, str(source.path), source.weight) for source in sources]
    writer, used = PackWriter(max_bytes), [0] * len(sources)
    while open_queues := [n for n, queue in enumerate(queues) if queue]:
        n = min(open_queues, key=lambda n: used[n] / sources[n].weight)
        item, before = queues[n].pop(), writer.bytes
        unique = list(dict.fromkeys(item))  # a pair may be a photograph with itself
        numbers = writer.add(_windows(files, unique, side, rng))
        if numbers is None:
            queues[n].clear()  # this source is done; smaller items of others may still fit
            continue
        used[n] += writer.bytes - before
        packed[n].items.append([numbers[unique.index(number)] for number in item])
    for source, part in zip(sources, packed, strict=True):
        if not part.items:
            raise DataError(f"{source.path}: nothing fits into {max_bytes / 1e6:.3g} MB; raise --max-bytes")
    content = writer.content(packed)
    atomic.write(out, content)
    kept = tuple(zip(sources, (len(part.items) for part in packed), totals, strict=True))
    return PackReport(out, len(content), Pack(out).sha256, kept)


def _stretches(source: Source, item: Item, length: int) -> list[Item]:
    """A run of frames in parts of that length, the last up to twice as long; other items unchanged."""
    if source.kind != "frames" or len(item) < 2 * length:
        return [item]
    starts = range(0, len(item) - length + 1, length)
    return [item[start : start + length if start != starts[-1] else len(item)] for start in starts]


def _windows(files: Images, item: Item, side: int | None, rng: np.random.Generator) -> list[Image]:
    """The images of an item, or the same window of each."""
    decoded = files.read(item)
    height, width = files.sizes[item[0]]
    window = slice(None), slice(None)
    if side is not None:
        top, left = (int(rng.integers(max(1, length - side + 1))) for length in (height, width))
        window = slice(top, top + side), slice(left, left + side)
    return [decoded[number][window] for number in item]
