"""Write pairs of blurred and sharp images made from photographs or from consecutive frames."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lmfn import images
from lmfn.cells import one_line
from lmfn.data.frames import FrameSequence, find_runs, without_fragments
from lmfn.data.layouts import DataError, index
from lmfn.data.synthesis import Image, blur_photo, draw_frame_count, mean_of_frames
from lmfn.options import BlurKinds, BlurOptions

PairStream = Iterator[tuple[str, Image, Image]]
"""Name, blurred, sharp."""


@dataclass(frozen=True)
class SynthReport:
    """The result of `synth`."""

    out: Path
    written: int
    """Number of pairs."""
    failed: tuple[str, ...]
    """A sentence for every unusable input, naming it."""

    @property
    def ok(self) -> bool:
        """Whether all inputs were usable."""
        return not self.failed

    def text(self) -> str:
        """The report in lines of plain text."""
        failed = [f"could not be used: {len(self.failed)}"] if self.failed else []
        lines = [f"{self.out}: {self.written} pairs", *failed, *(f"  {reason}" for reason in self.failed)]
        return "\n".join(map(one_line, lines))


def synth(
    source: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    count: int = 1,
    frames: bool = False,
    blur: BlurOptions | None = None,
) -> SynthReport:
    """Write pairs OUT/blur/NAME.png and OUT/sharp/NAME.png, to be read back by `find_pairs(out)`.

    Every photograph below `source` yields `count` pairs of its full size, of the kinds in `blur.kinds` (default: all
    that blur). NAME is its path below `source` without the suffix, followed by /0, /1, ... if count is above 1. With
    `frames`, `source` is an argument for `find_runs`, and each run is cut into consecutive stretches of `blur.frames`
    frames, one pair each, named after the run and the middle frame. Every pixel depends only on the seed and the order
    of names.

    A broken photograph or run is reported and does not stop the others. Raises DataError if `source` contains no input
    or OUT is not empty; ValueError for a negative seed, a count below 1, and a count with `frames`; OSError if a file
    cannot be written.
    """
    source, out, blur = Path(source), Path(out), blur or BlurOptions(kinds=BlurKinds.moving())
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must not be negative")
    if count < 1 or (frames and count != 1):
        raise ValueError(f"count is {count}; it must be at least 1, and exactly 1 for pairs made from frames")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder; remove it or name another one")
    if frames:
        runs = without_fragments(find_runs(source), blur.frames[1])
        jobs = [_from_frames(run, source, (seed, n), blur) for n, run in enumerate(runs)]
    else:
        photos = enumerate(index(source).items())
        jobs = [_from_photo(name, path, (seed, n), count, blur) for n, (name, path) in photos]
    written, failed = 0, []
    for job in tqdm(jobs, desc="synth", unit="run" if frames else "photo", disable=None):
        try:
            for name, blurred, sharp in job:
                _write(out, name, blurred, sharp)
                written += 1
        except (images.ImageError, DataError) as error:
            failed.append(str(error))
    return SynthReport(out, written, tuple(failed))


def _from_photo(name: str, path: Path, seed: tuple[int, int], count: int, blur: BlurOptions) -> PairStream:
    photo = images.read_rgb(path)
    for n in range(count):
        yield f"{name}/{n}" if count > 1 else name, *blur_photo(photo, np.random.default_rng((*seed, n)), blur)


def _from_frames(run: FrameSequence, source: Path, seed: tuple[int, int], blur: BlurOptions) -> PairStream:
    if len(run) < blur.frames[1]:
        raise DataError(f"{run.path} has {len(run)} frames, and {blur.frames[1]} (BlurOptions.frames) may be averaged")
    folder = run.path.relative_to(source).with_suffix("") if run.path != source else Path()
    made = 0
    rng = np.random.default_rng((*seed, made))
    count = draw_frame_count(rng, blur)
    held: list[Image] = []
    for n, frame in run.decode(0, len(run)):
        held.append(frame)
        if len(held) == count:
            yield (folder / run.name(n - count // 2)).as_posix(), *mean_of_frames(held, rng, blur)
            made += 1
            rng = np.random.default_rng((*seed, made))
            count = draw_frame_count(rng, blur)
            held = []


def _write(out: Path, name: str, blurred: Image, sharp: Image) -> None:
    files = {out / "blur" / f"{name}.png": blurred, out / "sharp" / f"{name}.png": sharp}
    for file in files:
        if file.exists():
            raise DataError(f"{name} is the name of two inputs; rename one of them")
    try:
        for file, pixels in files.items():
            images.write(file, images.Photo(pixels))
    except BaseException as error:  # an interrupt, too, must not leave half a pair
        for file in files:
            file.unlink(missing_ok=True)
        if isinstance(error, images.ImageError):
            raise OSError(str(error)) from error
        raise
