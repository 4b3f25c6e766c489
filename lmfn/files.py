"""Sharpen files and folders: `deblur_files`."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lmfn import images
from lmfn.images import ImageError
from lmfn.plausibility import DoubtfulOutput


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

    def summary(self) -> str:
        """One line of counts, and one for each failure and each doubt."""
        counts = [f"{len(self.done)} deblurred"]
        if self.skipped:
            counts.append(f"{len(self.skipped)} skipped (already there)")
        if self.failed:
            counts.append(f"{len(self.failed)} failed:")
        if self.doubtful:
            counts.append(f"{len(self.doubtful)} of the deblurred doubtful:")
        return "\n  ".join([", ".join(counts), *(message for _, message in self.failed + self.doubtful)])


def deblur_files(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    deblurrer: Callable[[np.ndarray], np.ndarray],
    suffix: str = "_deblurred",
    extension: str | None = None,
    skip_existing: bool = False,
) -> DeblurSummary:
    """Sharpen image files, and all that are in folders and below (hidden ones left out); the inputs stay as they are.

    The results go to `out`: a folder, in which the trees below given folders are kept, or, for one file, a file with
    the suffix of an image. Without `out`, the result of `photo.jpg` is `photo_deblurred.jpg` beside it, and that of the
    folder `album` the folder `album_deblurred`; `suffix` replaces `_deblurred`. `extension` (such as ".png") changes
    the format; otherwise it stays, and with it bit depth, alpha, EXIF and ICC profile as far as `images.write` can.
    What is there already is overwritten, or skipped with `skip_existing`. Of an `out` inside a given folder, nothing is
    read.

    An image that cannot be read, sharpened or written is in the result's `failed`, and the others are done; one whose
    output looks broken (a `DoubtfulOutput` warning of the deblurrer's) is in its `doubtful`, too. More than one file
    shows a progress bar on stderr.

    Raises, before any work: FileNotFoundError for a path that is not there; ValueError where there is no image, where a
    result would overwrite an input or another result, and where `out` or `extension` cannot be used; ImageError for a
    folder that cannot be read.
    """
    jobs = plan([Path(path) for path in paths], None if out is None else Path(out), suffix, extension)
    result = DeblurSummary()
    for source, target in tqdm(jobs, disable=len(jobs) < 2, unit="image"):
        if skip_existing and target.exists():
            result.skipped.append(target)
            continue
        try:
            photo = images.read(source)
            with warnings.catch_warnings(record=True) as raised:
                warnings.simplefilter("always", DoubtfulOutput)  # one a file, not one a process
                pixels = deblurrer(photo.pixels)
            images.write(target, replace(photo, pixels=pixels))
        except ImageError as error:
            result.failed.append((source, str(error)))
        except (OSError, MemoryError, ArithmeticError, RuntimeError) as error:
            result.failed.append((source, f"{source}: {str(error) or type(error).__name__}"))
        else:
            result.done.append(target)
            for warning in raised:
                if issubclass(warning.category, DoubtfulOutput):
                    result.doubtful.append((source, f"{source}: {warning.message}"))
                else:
                    warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    return result


def plan(paths: Sequence[Path], out: Path | None, suffix: str, extension: str | None) -> list[tuple[Path, Path]]:
    """Every image with the file for its result; `deblur_files` says where that is and what is raised."""
    missing = [str(path) for path in paths if not os.path.exists(path)]
    if missing:
        raise FileNotFoundError(f"there is no file or folder {', '.join(missing)}")
    if extension is not None:
        extension = "." + extension.lower().lstrip(".")
        if extension not in images.SUFFIXES:
            raise ValueError(f"the extension is {extension}; it must be one of {', '.join(images.SUFFIXES)}")
    jobs: dict[Path, Path] = {}  # from the result to its source

    def add(source: Path, target: Path) -> None:
        if os.path.realpath(source) != os.path.realpath(jobs.setdefault(target, source)):
            raise ValueError(f"{jobs[target]} and {source} would both become {target}; run them apart")

    if out is not None and not out.is_dir() and (out.exists() or out.suffix.lower() in images.SUFFIXES):
        if out.suffix.lower() not in images.SUFFIXES:
            raise ValueError(f"{out} is a file, and no image; give a folder, or an image file")
        if len(paths) != 1 or paths[0].is_dir():
            raise ValueError(f"{out} is one file, and there is more than one image to write; give a folder")
        if extension not in (None, out.suffix.lower()):
            raise ValueError(f"{out} does not end in {extension}; leave the extension out")
        add(paths[0], out)
    else:
        for path in paths:
            if not path.is_dir():
                target = path.with_stem(path.stem + suffix) if out is None else out / path.name
                add(path, target.with_suffix(extension or target.suffix))
                continue
            root = Path(os.path.abspath(path) + suffix) if out is None else out
            # Results of an earlier run inside the folder are no inputs. (A root that is the folder itself fails below.)
            own = root.resolve() if path.resolve() in root.resolve().parents else None
            for source in images.find_images(path):
                if own not in source.resolve().parents:
                    target = root / source.relative_to(path)
                    add(source, target.with_suffix(extension or target.suffix))

    if not jobs:
        where = ", ".join(str(path) for path in paths) or "nothing: no path was given"
        raise ValueError(f"no image ({', '.join(images.SUFFIXES)}) in {where}")
    sources = {os.path.realpath(source): source for source in jobs.values()}
    for target, source in jobs.items():
        if (overwritten := sources.get(os.path.realpath(target))) is not None:
            raise ValueError(f"the result of {source} would overwrite {overwritten}; choose another output")
    return [(source, target) for target, source in jobs.items()]
