"""Sharpen files and folders: `plan` finds images and the places of their results, `carry_out` does the work."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lmfn import images
from lmfn.atomic import LONGEST_NAME
from lmfn.images import ImageError, heif
from lmfn.jobs import Outcome, run_jobs
from lmfn.options import Frames

INSTEAD = ".jpg"  # of HEIC and AVIF, which are not written
FORMAT_LIKE = re.compile(r"\.[A-Za-z]\w{1,3}")  # a suffix that was meant as a format, unlike those of trip.2024 or v1.2


@dataclass
class Plan:
    """Which image becomes which file, and what does not become one."""

    jobs: list[tuple[Path, Path]] = field(default_factory=list)
    """Each image with the file for its result."""
    existing: list[tuple[Path, Path]] = field(default_factory=list)
    """The same, where that file is there already and is not to be replaced."""
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """What cannot give a result, each with a message that names it and the reason."""
    results: list[Path] = field(default_factory=list)
    """Results of earlier runs among what was given."""
    others: list[Path] = field(default_factory=list)
    """Files in the folders that are no images to us, and links to folders."""

    def part(self, shard: tuple[int, int]) -> "Plan":
        """The share of the k-th of n processes, all of which have the same plan: each n-th file. What is not about one
        file's result is the first's."""
        k, n = shard
        first = k == 1
        return Plan(
            self.jobs[k - 1 :: n],
            self.existing[k - 1 :: n],
            self.failed if first else [],
            self.results if first else [],
            self.others if first else [],
        )

    def without(self, is_done: Callable[[Path, Path], bool]) -> "Plan":
        """The same without the sources whose result is done."""
        jobs, existing = ([job for job in part if not is_done(*job)] for part in (self.jobs, self.existing))
        return replace(self, jobs=jobs, existing=existing)

    def left_out(self) -> list[str]:
        """A line for the results of earlier runs and one for the other files, if there are any."""
        lines = []
        if self.results:
            lines.append(f"{len(self.results)} left out: results of earlier runs")
        if self.others:
            kinds = Counter("links" if p.is_dir() else p.suffix.lower() or "without suffix" for p in self.others)
            counts = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common())
            remedy = " (to read HEIC and AVIF: pip install pillow-heif)" if kinds.keys() & set(heif.SUFFIXES) else ""
            lines.append(f"{counts} left out{remedy}")
        return lines

    def __str__(self) -> str:
        """One line for each image: what it becomes, or why it becomes nothing."""
        lines = [f"{source} -> {target}" for source, target in self.jobs]
        lines += [f"{source} -> {target} (already there)" for source, target in self.existing]
        return "\n".join([*lines, *(message for _, message in self.failed), *self.left_out()])


@dataclass
class DeblurSummary:
    """What became of the files that were given to `deblur_files`."""

    done: list[Path] = field(default_factory=list)
    """Files written."""
    skipped: list[Path] = field(default_factory=list)
    """Files that were there already, and were left as they are."""
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Images that gave no result, each with a message that names the file and the reason."""
    doubtful: list[tuple[Path, str]] = field(default_factory=list)
    """Images among those done whose output looks broken, each with a message that names the file and the reason."""
    notes: list[str] = field(default_factory=list)
    """What could not be kept of an image that was done, and what was left out; each names the files or their kinds."""

    def add(self, outcome: Outcome) -> None:
        """Count what became of a file."""
        if outcome.status == "done":
            self.done.append(outcome.target)
        elif outcome.status == "there":
            self.skipped.append(outcome.target)
        else:
            self.failed.append((outcome.source, outcome.reason))
        self.doubtful += [(outcome.source, doubt) for doubt in outcome.doubts]
        self.notes += outcome.notes

    def __str__(self) -> str:
        """One line of counts, and one for each failure, doubt and note."""
        counts = [f"{len(self.done)} deblurred"]
        if self.skipped:
            counts.append(f"{len(self.skipped)} already there and not replaced (--overwrite does it)")
        if self.failed:
            counts.append(f"{len(self.failed)} failed")
        if self.doubtful:
            counts.append(f"{len(self.doubtful)} of the deblurred doubtful")
        lines = [*(message for _, message in self.failed + self.doubtful), *self.notes]
        return "\n  ".join([", ".join(counts) + (":" if lines else ""), *lines])


def deblur_files(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    deblurrer: Callable[[np.ndarray], np.ndarray],
    suffix: str = "_deblurred",
    extension: str | None = None,
    overwrite: bool = False,
    frames: Frames | None = None,
) -> DeblurSummary:
    """Sharpen image files, and all that are in folders and below (hidden ones left out); the inputs stay as they are.

    The results go to `out`: a folder, in which the trees below given folders are kept, or, for one file, a file with
    the suffix of an image. Without `out`, the result of `photo.jpg` is `photo_deblurred.jpg` beside it, and that of the
    folder `album` the folder `album_deblurred`; `suffix` replaces `_deblurred`. `extension` (such as ".png") changes
    the format; otherwise it stays, and with it bit depth, alpha, EXIF, XMP and ICC profile as far as `images.write`
    can. HEIC and AVIF, which are not written, become JPEG.

    Results that are there already are left as they are, unless `overwrite` is set. Those of earlier runs are no inputs:
    what is in `out`, and what is named like the result of another input.

    A file of several images (pages, frames) is an error for this file unless `frames` says to take "all" (into a TIFF
    or WebP) or the "first". An image that cannot be read, sharpened or written is in the summary's `failed`, as is a
    path that is not there, and the others are done; one whose output looks broken (a `DoubtfulOutput` warning of the
    deblurrer's) is in its `doubtful`, too. More than one file shows a progress bar on stderr.

    Raises ValueError, before any work, where there is nothing to do, where a result would overwrite an input or another
    result, and where `out` or `extension` cannot be used.
    """
    planned = plan(paths, out, suffix=suffix, extension=extension, overwrite=overwrite)
    return carry_out(planned, deblurrer, frames, overwrite=overwrite)


def parse_shard(text: str | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """`3/8` as (3, 8); without a text what torchrun says of this process, or else (1, 1), all of it. Raises ValueError
    for another text."""
    if text is None:
        return int(environment.get("RANK", 0)) + 1, int(environment.get("WORLD_SIZE", 1))
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"the shard is {text!r}; the third of eight is 3/8")
    return int(found[1]), int(found[2])


def carry_out(
    planned: Plan,
    deblurrer: Callable[[np.ndarray], np.ndarray],
    frames: Frames | None,
    *,
    overwrite: bool = False,
    report: Callable[[Outcome], object] = lambda _: None,
) -> DeblurSummary:
    """Do what was planned; see `deblur_files`. `report` gets each outcome as soon as it is there, also of what the plan
    has found to be there or impossible."""
    summary = DeblurSummary(
        skipped=[target for _, target in planned.existing], failed=list(planned.failed), notes=planned.left_out()
    )
    for source, target in planned.existing:
        report(Outcome(source, target, "there"))
    for source, reason in planned.failed:
        report(Outcome(source, Path(), "failed", reason))
    jobs = run_jobs(planned.jobs, deblurrer, frames, overwrite=overwrite)
    for outcome in tqdm(jobs, total=len(planned.jobs), disable=len(planned.jobs) < 2, unit="image"):
        report(outcome)
        summary.add(outcome)
    return summary


def plan(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    suffix: str = "_deblurred",
    extension: str | None = None,
    overwrite: bool = False,
) -> Plan:
    """Find the images, and the file for the result of each; `deblur_files` says where that is and what is raised."""
    given, out = [Path(path) for path in paths], None if out is None else Path(out)
    if extension is not None:
        extension = "." + extension.lower().lstrip(".")
        if extension not in images.WRITABLE:
            raise ValueError(f"the extension is {extension}; it must be one of {', '.join(images.WRITABLE)}")
    if Path(suffix).name != suffix:
        raise ValueError(f"the suffix is {suffix!r}; it is a part of a file's name and has no {os.sep}")
    into_file = out is not None and _is_file(out, given, extension)
    planned = Plan()
    found = list(_find(given, planned))
    earlier = _earlier_results(found, out, suffix)
    targets: dict[Path, Path] = {}  # from the result to its source
    for source, folder in found:
        if source in earlier:
            planned.results.append(source)
            continue
        target = out if into_file and out is not None else _target(source, folder, out, suffix, extension)
        try:
            _check(source, target)
        except ImageError as error:
            planned.failed.append((source, str(error)))
            continue
        other = targets.setdefault(target, source)
        if other is not source and os.path.realpath(source) != os.path.realpath(other):
            raise ValueError(f"{targets[target]} and {source} would both become {target}; run them apart")
    sources = {os.path.realpath(source): source for source in targets.values()}
    for target, source in targets.items():
        if (overwritten := sources.get(os.path.realpath(target))) is not None:
            raise ValueError(f"the result of {source} would overwrite {overwritten}; choose another output")
        (planned.existing if not overwrite and os.path.lexists(target) else planned.jobs).append((source, target))
    if not targets:
        where = ", ".join(str(path) for path in given) or "nothing: no path was given"
        reasons = [message for _, message in planned.failed] or [f"no image ({', '.join(images.SUFFIXES)}) in {where}"]
        raise ValueError("\n".join(reasons + planned.left_out()))
    return planned


def _is_file(out: Path, given: Sequence[Path], extension: str | None) -> bool:
    """Whether `out` is the file for one result, and not a folder for all of them."""
    suffix = out.suffix.lower()
    if os.path.isdir(out):
        return False
    if suffix not in images.WRITABLE:
        if os.path.lexists(out):
            raise ValueError(f"{out} is a file, and no image; give a folder, or an image file")
        if FORMAT_LIKE.fullmatch(suffix):
            raise ValueError(
                f"{out}: a file must end in one of {', '.join(images.WRITABLE)}; make a folder of this name first"
            )
        return False
    if len(given) != 1 or os.path.isdir(given[0]):
        raise ValueError(f"{out} is one file, and there is more than one image to write; give a folder")
    if extension not in (None, suffix):
        raise ValueError(f"{out} does not end in {extension}; leave the extension out")
    return True


def _find(given: Sequence[Path], planned: Plan) -> Iterator[tuple[Path, Path | None]]:
    """Each image, with the given folder that it is in if it is in one; all else goes into the plan."""
    for path in given:
        if os.path.isdir(path):
            tree = images.walk(path)
            planned.failed += tree.unreadable
            planned.others += tree.others
            yield from ((source, path) for source in tree.images)
        elif os.path.lexists(path):
            yield path, None
        else:
            planned.failed.append((path, f"{path}: there is no such file or folder"))


def _earlier_results(found: Sequence[tuple[Path, Path | None]], out: Path | None, suffix: str) -> set[Path]:
    """Which of the images are results of earlier runs: those in an `out` that is in a given folder, and those that
    have the name of another's result or are in a folder that has it. All of them cannot be: then they are inputs."""
    places = {source: Path(os.path.abspath(source)) for source, _ in found}
    names = {str(name) for place in places.values() for name in (place.with_suffix(""), *place.parents)}

    def is_result(source: Path, folder: Path | None) -> bool:
        if folder is not None and out is not None and _is_below(out, folder) and _is_below(source, out):
            return True
        parts = (places[source].with_suffix(""), *places[source].parents)
        return any(str(part).removesuffix(suffix) in names for part in parts if suffix and part.name.endswith(suffix))

    results = {source for source, folder in found if is_result(source, folder)}
    return results if len(results) < len(places) else set()


def _is_below(path: Path, folder: Path) -> bool:
    """Whether it is the folder or in it, all links followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _target(source: Path, folder: Path | None, out: Path | None, suffix: str, extension: str | None) -> Path:
    """The file for the result of an image that was given itself or is in the given folder."""
    if folder is not None:
        root = Path(os.path.abspath(folder) + suffix) if out is None else out
        target = root / source.relative_to(folder)
    else:
        target = source.with_stem(source.stem + suffix) if out is None else out / source.name
    kept = INSTEAD if source.suffix.lower() in heif.SUFFIXES else source.suffix
    return target.with_suffix(extension or kept)


def checked_target(source: Path, root: Path | None, out: Path | None, suffix: str, extension: str | None) -> Path:
    """The file for one image's result, where the images of a run are not known together.

    It is below `out`, where the image is below `root`, or else in `out`, or beside the image. Raises ImageError where
    there can be no such file, or it would overwrite the image.
    """
    if root is not None and not source.is_relative_to(root):
        raise ImageError(f"{source}: it is not in {root}")
    target = _target(source, root, out, suffix, extension and "." + extension.lower().lstrip("."))
    if not os.path.lexists(source):
        raise ImageError(f"{source}: there is no such file")
    _check(source, target)
    if os.path.realpath(source) == os.path.realpath(target):
        raise ImageError(f"{source}: its result would overwrite it; choose another output")
    return target


def _check(source: Path, target: Path) -> None:
    """Raise ImageError where it is clear beforehand that there can be no such file."""
    if target.suffix.lower() not in images.WRITABLE:
        images.read_size(source)  # what is no image is told so first
        raise ImageError(f"{source}: {target.suffix or 'a name without a suffix'} is not written; choose with --ext")
    if (length := len(os.fsencode(target.name))) > LONGEST_NAME:
        raise ImageError(f"{source}: its result's name would have {length} bytes; {LONGEST_NAME} are the most")
    place = next(parent for parent in target.absolute().parents if os.path.lexists(parent))
    if not (os.path.isdir(place) and os.access(place, os.W_OK)):
        reason = "may not be written in" if os.path.isdir(place) else "is no folder"
        raise ImageError(f"{source}: {target} cannot be written ({place} {reason})")
