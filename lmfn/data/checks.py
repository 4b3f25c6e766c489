"""Check data before training: layout, sizes, and pairs that do not match."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmfn import images
from lmfn.cells import one_line
from lmfn.data.layouts import ANY_NAMES, UnknownLayoutError, find_pairs, spread
from lmfn.data.synthesis import Image
from lmfn.options import Variant

SAMPLE = 100
DIFFERENT = 12.0
"""PSNR in dB below which two images are considered different pictures: blur seldom costs as much."""

Size = tuple[int, int]


@dataclass(frozen=True)
class CheckReport:
    """The result of `check`; print its `text()`."""

    root: Path
    layout: str
    """`PairSet.layout`, or `images` for a folder without pairs."""
    split: str | None
    count: int
    """The number of pairs, or of images if there are no pairs."""
    sizes: Counter[Size]
    """The number of sharp images of each (height, width)."""
    psnr: dict[str, float]
    """PSNR in dB of the blurred image, 8 bits, RGB, by name of the decoded pairs."""
    decoded: int
    """How many pairs or images were decoded, spread evenly; of the others only the headers were read."""
    problems: tuple[str, ...]
    """A sentence for everything that is wrong, naming the file."""

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def text(self) -> str:
        """The report in lines of plain text."""
        part = f", {self.split}" if self.split else ""
        what = "images" if self.layout == "images" else f"pairs ({self.layout}{part})"
        lines = [f"{self.root}: {self.count} {what}"]
        if self.layout == "images":
            lines.append(f"no pairs were recognised. {ANY_NAMES}")
        if self.sizes:
            [(common, times)] = self.sizes.most_common(1)
            line = f"sizes: {common[1]}x{common[0]} ({times} of {self.sizes.total()})"
            if len(self.sizes) > 1:
                least, most = min(self.sizes, key=math.prod), max(self.sizes, key=math.prod)
                line += f", from {least[1]}x{least[0]} to {most[1]}x{most[0]}"
            lines.append(line)
        if self.psnr:
            low, high = min(self.psnr, key=self.psnr.__getitem__), max(self.psnr, key=self.psnr.__getitem__)
            lines.append(
                f"PSNR of the blurred images: mean {np.mean(list(self.psnr.values())):.2f} dB, "
                f"from {self.psnr[low]:.2f} ({low}) to {self.psnr[high]:.2f} ({high})"
            )
        lines.append(f"decoded {self.decoded} of {self.count}" + ", spread evenly" * (self.decoded < self.count))
        lines.append(f"problems: {len(self.problems)}" if self.problems else "no problems")
        return "\n".join(map(one_line, [*lines, *(f"  {problem}" for problem in self.problems)]))


def check(
    path: str | Path,
    *,
    sharp: str | Path | None = None,
    split: str | None = None,
    variant: Variant = "blur",
    sample: int = SAMPLE,
) -> CheckReport:
    """Check pairs (arguments as for `find_pairs`), or a folder of photographs or frames.

    Reads every header, and the pixels of `sample` pairs or images, spread evenly. Problems are unreadable images,
    partners of different sizes or of different pictures (PSNR below 12 dB), identical partners, and anything that
    prevents `find_pairs` from matching. Raises DataError if there is nothing to check, ValueError for sample < 1.
    """
    if sample < 1:
        raise ValueError(f"sample is {sample}; it must be at least 1")
    root = Path(path)
    try:
        found = find_pairs(root, sharp=sharp, split=split, variant=variant)
    except UnknownLayoutError:
        return _check_images(root, sample)
    problems: list[str] = []
    sizes: Counter[Size] = Counter()
    fitting = []
    for pair in found.pairs:
        try:
            blurred, size = images.read_size(pair.blurred), images.read_size(pair.sharp)
        except images.ImageError as error:
            problems.append(str(error))
            continue
        sizes[size] += 1
        if blurred == size:
            fitting.append(pair)
        else:
            problems.append(
                f"{pair.blurred} is {blurred[1]}x{blurred[0]}, but its partner {pair.sharp} is {size[1]}x{size[0]}"
            )
    chosen = spread(fitting, sample)
    psnr = {}
    for pair in chosen:
        try:
            value = psnr[pair.name] = _psnr(images.read_rgb(pair.blurred), images.read_rgb(pair.sharp))
        except images.ImageError as error:
            problems.append(str(error))
            continue
        if value == math.inf:
            problems.append(f"{pair.blurred} is the same image as {pair.sharp}")
        elif value < DIFFERENT:
            problems.append(f"{pair.blurred} and {pair.sharp} show different pictures (PSNR {value:.1f} dB)")
    return CheckReport(root, found.layout, found.split, len(found), sizes, psnr, len(chosen), tuple(problems))


def _check_images(root: Path, sample: int) -> CheckReport:
    problems: list[str] = []
    sizes: Counter[Size] = Counter()
    files = images.find_images(root)
    readable = []
    for file in files:
        try:
            sizes[images.read_size(file)] += 1
            readable.append(file)
        except images.ImageError as error:
            problems.append(str(error))
    chosen = spread(readable, sample)
    for file in chosen:
        try:
            images.read_rgb(file)
        except images.ImageError as error:
            problems.append(str(error))
    return CheckReport(root, "images", None, len(files), sizes, {}, len(chosen), tuple(problems))


def _psnr(image: Image, other: Image) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit images: 10 log10(255^2 / mean squared difference)."""
    error = np.mean(np.square(image.astype(np.float32) - other), dtype=np.float64)
    return 10 * math.log10(255**2 / error) if error else math.inf
