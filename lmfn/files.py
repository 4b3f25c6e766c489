"""Sharpen files and folders: `plan` finds images, clips and the paths of their results, `carry_out` does the work."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lmfn import images, video
from lmfn.atomic import LONGEST_NAME
from lmfn.cells import one_line
from lmfn.extras import require
from lmfn.images import ImageError, heif
from lmfn.jobs import Outcome, run_jobs, run_whole
from lmfn.options import Frames

WRITABLE = (*images.WRITABLE, *video.WRITABLE)
INSTEAD = ".jpg"  # of HEIC and AVIF, which are not written
FORMAT_LIKE = re.compile(r"\.[A-Za-z]\w{1,3}")  # a suffix that was meant as a format, unlike those of trip.2024 or v1.2


@dataclass
class Plan:
    """The planned result of every image, and the files without one."""

    jobs: list[tuple[Path, Path]] = field(default_factory=list)
    """Images and clips with the files for their results."""
    existing: list[tuple[Path, Path]] = field(default_factory=list)
    """The same for files that exist already and are not to be replaced."""
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Inputs that cannot yield a result, each with a message that names it and the reason."""
    results: list[Path] = field(default_factory=list)
    """Results of earlier runs among the inputs."""
    others: list[Path] = field(default_factory=list)
    """Other files in the folders, and links to folders."""

    def part(self, shard: tuple[int, int]) -> "Plan":
        """The share of the k-th of n processes for the same inputs: every n-th file, images before clips. A file's
        place does not depend on whether its result exists, as the others may have written results before this plan was
        made. Everything that does not concern a single result belongs to the first."""
        k, n = shard
        first = k == 1
        own = set(sorted(self.jobs + self.existing, key=lambda job: (video.is_clip(job[0]), job))[k - 1 :: n])
        return Plan(
            [job for job in self.jobs if job in own],
            [job for job in self.existing if job in own],
            self.failed if first else [],
            self.results if first else [],
            self.others if first else [],
        )

    def without(self, is_done: Callable[[Path, Path], bool]) -> "Plan":
        """The plan without the sources whose results are done."""
        jobs, existing = ([job for job in part if not is_done(*job)] for part in (self.jobs, self.existing))
        return replace(self, jobs=jobs, existing=existing)

    def left_out(self) -> list[str]:
        """One line each for results of earlier runs and for other files, if any."""
        lines = []
        if self.results:
            lines.append(f"{len(self.results)} left out: results of earlier runs")
        if self.others:
            kinds = Counter("links" if p.is_dir() else p.suffix.lower() or "without suffix" for p in self.others)
            counts = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common())
            remedies = []
            if kinds.keys() & set(heif.SUFFIXES):
                remedies.append("to read HEIC and AVIF: pip install pillow-heif")
            if kinds.keys() & set(video.READABLE):
                remedies.append('for clips: pip install "lmfn-deblur[video]"')
            lines.append(f"{counts} left out" + (f" ({'; '.join(remedies)})" if remedies else ""))
        return lines

    def __str__(self) -> str:
        """One line per image: its result, or the reason why it has none."""
        lines = [f"{source} -> {target}" for source, target in self.jobs]
        lines += [f"{source} -> {target} (already there)" for source, target in self.existing]
        return "\n".join(map(one_line, [*lines, *(message for _, message in self.failed), *self.left_out()]))


@dataclass
class DeblurSummary:
    """The outcome of `deblur_files`."""

    done: list[Path] = field(default_factory=list)
    """Files written."""
    skipped: list[Path] = field(default_factory=list)
    """Existing files that were left unchanged."""
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Images without a result, each with a message that names the file and the reason."""
    doubtful: list[tuple[Path, str]] = field(default_factory=list)
    """Written images with an implausible output, each with a message that names the file and the reason."""
    notes: list[str] = field(default_factory=list)
    """Metadata that could not be kept, and inputs that were skipped; each names the files or their kinds."""

    def add(self, outcome: Outcome) -> None:
        """Record the outcome of a file."""
        if outcome.status == "done":
            self.done.append(outcome.target)
        elif outcome.status == "there":
            self.skipped.append(outcome.target)
        else:
            self.failed.append((outcome.source, outcome.reason))
        self.doubtful += [(outcome.source, doubt) for doubt in outcome.doubts]
        self.notes += outcome.notes

    def __str__(self) -> str:
        """A line of counts, and one line per failure, doubt and note."""
        counts = [f"{len(self.done)} deblurred"]
        if self.skipped:
            counts.append(f"{len(self.skipped)} already there and not replaced (--overwrite does it)")
        if self.failed:
            counts.append(f"{len(self.failed)} failed")
        if self.doubtful:
            counts.append(f"{len(self.doubtful)} of the deblurred doubtful")
        lines = [*(message for _, message in self.failed + self.doubtful), *self.notes]
        return "\n  ".join([", ".join(counts) + (":" if lines else ""), *map(one_line, lines)])


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
    """Sharpen image files and clips, also those in folders and their subfolders (except hidden ones); inputs are not
    changed. Clips need the extra `video`; without it, those in folders are left out.

    `out` is a folder, in which the subfolders of given folders are kept, or, for one file, a file with the suffix of an
    image. Without `out`, the result of `photo.jpg` is `photo_deblurred.jpg` next to it, and that of the folder `album`
    is the folder `album_deblurred`; `suffix` replaces `_deblurred`. `extension` (such as ".png") changes the format;
    otherwise it is kept, with bit depth, alpha, EXIF, XMP and ICC profile as far as `images.write` can. HEIC and AVIF,
    which cannot be written, become JPEG.

    Existing results are left unchanged unless `overwrite` is set. Results of earlier runs are not inputs: files in
    `out`, and files named like the result of another input.

    A file with several images (pages, frames) is an error unless `frames` is "all" (as a TIFF or WebP) or "first". An
    image that cannot be read, sharpened or written, and a missing path, are listed in the summary's `failed` and do not
    stop the others; an image with an implausible output (a `DoubtfulOutput` warning of the deblurrer) is also listed in
    `doubtful`. A deblurrer whose `as_stored` is true gets samples as in the file, those of large images as
    `lmfn.scratch.StoredPixels`. More than one file shows a progress bar on stderr.

    Raises ValueError, before any work, if there is nothing to do, if a result would overwrite an input or another
    result, and if `out` or `extension` is unusable.
    """
    planned = plan(paths, out, suffix=suffix, extension=extension, overwrite=overwrite)
    return carry_out(planned, deblurrer, frames, overwrite=overwrite)


def parse_shard(text: str | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """`3/8` as (3, 8); without a text, the share of this process under torchrun, or else (1, 1). Raises ValueError for
    an invalid text."""
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
    clip_options: Mapping[str, Any] | None = None,
) -> DeblurSummary:
    """Carry out a plan, images before clips; see `deblur_files`. `report` receives each outcome as soon as it is known,
    including existing and impossible results of the plan. `clip_options` are those of `lmfn.video.deblur_clip`."""
    summary = DeblurSummary(
        skipped=[target for _, target in planned.existing], failed=list(planned.failed), notes=planned.left_out()
    )
    for source, target in planned.existing:
        report(Outcome(source, target, "there"))
    for source, reason in planned.failed:
        report(Outcome(source, Path(), "failed", reason))

    def whole(outcome: Outcome, went_on: Callable[[], None]) -> None:
        _deblur_clip(outcome, went_on, deblurrer, {"overwrite": overwrite, **(clip_options or {})})

    clips = [job for job in planned.jobs if video.is_clip(job[0])]
    photos = [job for job in planned.jobs if not video.is_clip(job[0])]
    outcomes = chain(
        run_jobs(photos, deblurrer, frames, overwrite=overwrite), run_whole(clips, whole, overwrite=overwrite)
    )
    for outcome in tqdm(outcomes, total=len(planned.jobs), disable=len(planned.jobs) < 2, unit="file"):
        report(outcome)
        summary.add(outcome)
    return summary


def _deblur_clip(
    outcome: Outcome,
    went_on: Callable[[], None],
    deblurrer: Callable[[np.ndarray], np.ndarray],
    options: Mapping[str, Any],
) -> None:
    from lmfn.video.segments import FRAMES

    frames = 0

    def sharpen(image: np.ndarray) -> np.ndarray:
        nonlocal frames
        frames += 1
        if frames % options.get("frames", FRAMES) == 0:  # a kill costs no more than a segment
            went_on()
        return deblurrer(image)

    try:
        summary = video.deblur_clip(outcome.source, outcome.target, sharpen, **options)
    except video.VideoError as error:
        raise ImageError(str(error)) from error
    outcome.size = summary.size
    first, *others = (line.strip() for line in str(summary).splitlines())
    outcome.notes = [first, *(line if str(outcome.source) in line else f"{outcome.source}: {line}" for line in others)]
    outcome.doubts = [f"{outcome.source}: broken frame at {second:.2f} s: {why}" for second, why in summary.doubts[:1]]


def plan(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    suffix: str = "_deblurred",
    extension: str | None = None,
    overwrite: bool = False,
) -> Plan:
    """Find the images and clips, and the files for their results; paths and errors as in `deblur_files`."""
    given, out = [Path(path) for path in paths], None if out is None else Path(out)
    extension = checked_extension(extension)
    check_suffix(suffix)
    into_file = out is not None and _is_file(out, given, extension)
    planned = Plan()
    found = list(_find(given, planned))
    kinds = {video.is_clip(source) for source, _ in found}
    if found and extension is not None and (extension in video.WRITABLE) not in kinds:
        kind = "clip" if extension in video.WRITABLE else "image"
        raise ValueError(f"the extension is {extension}, and there is no {kind} to write")
    earlier = _earlier_results(found, out, suffix)
    targets: dict[Path, Path] = {}  # from the result to its source
    for source, folder in found:
        if source in earlier:
            planned.results.append(source)
            continue
        target = out if into_file and out is not None else _target(source, folder, out, suffix, extension)
        if video.is_clip(source) != video.is_clip(target):
            kind, known = ("a clip", video.WRITABLE) if video.is_clip(source) else ("an image", images.WRITABLE)
            raise ValueError(f"{target}: {source} is written as one of {', '.join(known)}, since it is {kind}")
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
        nothing = f"no image ({', '.join(images.SUFFIXES)}) and no clip ({', '.join(video.READABLE)}) in {where}"
        reasons = [message for _, message in planned.failed] or [nothing]
        raise ValueError("\n".join(reasons + planned.left_out()))
    return planned


def checked_extension(extension: str | None) -> str | None:
    """The extension in lower case, with its dot. Raises ValueError if files with it are not written."""
    if extension is None:
        return None
    extension = "." + extension.lower().lstrip(".")
    if extension not in WRITABLE:
        raise ValueError(f"the extension is {extension}; it must be one of {', '.join(WRITABLE)}")
    return extension


def check_suffix(suffix: str) -> None:
    """Raise ValueError if this is no part of a file's name."""
    if Path(suffix).name != suffix:
        raise ValueError(f"the suffix is {suffix!r}; it is a part of a file's name and has no {os.sep}")


def _is_file(out: Path, given: Sequence[Path], extension: str | None) -> bool:
    """Whether `out` is the file for one result instead of a folder."""
    suffix = out.suffix.lower()
    if os.path.isdir(out):
        return False
    if suffix not in WRITABLE:
        if os.path.lexists(out):
            raise ValueError(f"{out} is a file, and no image; give a folder, or an image file")
        if FORMAT_LIKE.fullmatch(suffix):
            raise ValueError(
                f"{out}: a file must end in one of {', '.join(WRITABLE)}; make a folder of this name first"
            )
        return False
    if len(given) != 1 or os.path.isdir(given[0]):
        raise ValueError(f"{out} is one file, and there is more than one image to write; give a folder")
    if extension not in (None, suffix):
        raise ValueError(f"{out} does not end in {extension}; leave the extension out")
    return True


def _find(given: Sequence[Path], planned: Plan) -> Iterator[tuple[Path, Path | None]]:
    """Images and clips with the given folder that contains them, if any; everything else is added to the plan."""
    has_video = find_spec("av") is not None
    for path in given:
        if os.path.isdir(path):
            tree = images.walk(path)
            planned.failed += tree.unreadable
            clips = [other for other in tree.others if has_video and video.is_clip(other) and not os.path.isdir(other)]
            planned.others += [other for other in tree.others if other not in set(clips)]
            yield from ((source, path) for source in chain(tree.images, clips))
        elif os.path.lexists(path):
            if video.is_clip(path):
                require("av", f"{path}: a clip", "video")
            yield path, None
        else:
            planned.failed.append((path, f"{path}: there is no such file or folder"))


def _earlier_results(found: Sequence[tuple[Path, Path | None]], out: Path | None, suffix: str) -> set[Path]:
    """The images that are results of earlier runs: those in an `out` inside a given folder, and those that are named,
    or in a folder that is named, like the result of another. If this applies to all images, they are inputs."""
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
    """Whether a path is the folder or inside it, with links resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _target(source: Path, folder: Path | None, out: Path | None, suffix: str, extension: str | None) -> Path:
    """The file for the result of an image that was given directly or is in the given folder."""
    if folder is not None:
        root = Path(os.path.abspath(folder) + suffix) if out is None else out
        target = root / source.relative_to(folder)
    else:
        target = source.with_stem(source.stem + suffix) if out is None else out / source.name
    own = source.suffix.lower()
    if video.is_clip(source):
        kept, of_others = source.suffix if own in video.WRITABLE else ".mkv", tuple(images.WRITABLE)
    else:
        kept, of_others = INSTEAD if own in heif.SUFFIXES else source.suffix, video.WRITABLE
    return target.with_suffix(kept if extension is None or extension in of_others else extension)


def checked_target(source: Path, root: Path | None, out: Path | None, suffix: str, extension: str | None) -> Path:
    """The file for the result of a single image, without a plan; suffix and extension are checked already.

    It is below `out` as the image is below `root`, or otherwise in `out`, or next to the image. Raises ImageError if
    such a file is impossible or would overwrite the image.
    """
    if root is not None and not source.is_relative_to(root):
        raise ImageError(f"{source}: it is not in {root}")
    target = _target(source, root, out, suffix, extension)
    if not os.path.lexists(source):
        raise ImageError(f"{source}: there is no such file")
    _check(source, target)
    if os.path.realpath(source) == os.path.realpath(target):
        raise ImageError(f"{source}: its result would overwrite it; choose another output")
    return target


def _check(source: Path, target: Path) -> None:
    """Raise ImageError if it is certain beforehand that the file cannot be written."""
    if target.suffix.lower() not in WRITABLE:
        images.read_size(source)  # the error for a non-image has priority
        raise ImageError(f"{source}: {target.suffix or 'a name without a suffix'} is not written; choose with --ext")
    longest = max(target.parts, key=lambda part: len(os.fsencode(part)))
    if (length := len(os.fsencode(longest))) > LONGEST_NAME:
        what = "its result's name" if longest == target.name else "a folder in its result's path"
        raise ImageError(f"{source}: {what} would have {length} bytes; {LONGEST_NAME} are the most")
    place = next(parent for parent in target.absolute().parents if os.path.lexists(parent))
    if not (os.path.isdir(place) and os.access(place, os.W_OK)):
        reason = "may not be written in" if os.path.isdir(place) else "is no folder"
        raise ImageError(f"{source}: {target} cannot be written ({place} {reason})")
