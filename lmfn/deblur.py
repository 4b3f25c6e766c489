"""Sharpen images: `Deblurrer` takes and gives arrays, `deblur_files` files and folders."""

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lmfn import images, memory
from lmfn.device import DTYPES, check_precision, choose_device
from lmfn.guard import DoubtfulOutput, doubt
from lmfn.images import ImageError
from lmfn.inference import for_inference
from lmfn.model import LMFN
from lmfn.options import Guard, Precision

REMEDY = "make the image smaller, or split it into parts"


class Deblurrer:
    """A trained network that sharpens one image at a time.

    `weights` is what `LMFN.from_pretrained` takes (`lmfn` and `lmfn-released` come with the package; a folder or file
    that train.py wrote; `owner/model` on the Hugging Face Hub), or a network (which is copied). `device` is a
    torch device; by default `cuda` where there is one, else `mps`, else `cpu`. `precision` is that of the convolutions;
    bf16 and fp16 run under autocast. `guard` says what becomes of an output that looks broken (see `lmfn.guard`).

    Raises ValueError for weights that cannot be used, for a device that is not there, and for an unknown precision or
    guard or fp16 on a CPU; FileNotFoundError where there are no such weights.
    """

    def __init__(
        self,
        weights: str | Path | LMFN = "lmfn",
        *,
        device: str | None = None,
        precision: Precision = "fp32",
        guard: Guard = "warn",
    ) -> None:
        if guard not in get_args(Guard):
            raise ValueError(f"guard is {guard!r}; it must be one of {', '.join(get_args(Guard))}")
        self.guard = guard
        self.device = choose_device(device)
        check_precision(self.device, precision)
        self.precision = precision
        model = copy.deepcopy(weights) if isinstance(weights, LMFN) else LMFN.from_pretrained(weights)
        self.model: LMFN = model.eval().to(self.device)
        self.run = for_inference(self.model, self.device, DTYPES[precision])

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Sharpen `[H, W, C]`, float32 or float64 in [0, 1]: gray, gray + alpha, RGB or RGBA for C = 1 to 4; any size.

        The result has the same shape and type and is clipped to [0, 1]. Alpha comes back as it was. Gray goes through
        the network as three equal channels and comes back as their mean. The network computes with float32 at most.
        A doubtful output is a `DoubtfulOutput` warning.

        Raises TypeError for another type, ValueError for another shape or values that are not in [0, 1], MemoryError
        for an image that needs more memory than there is (before it starts, where that can be known), and
        FloatingPointError where the network's output is not finite (unless `guard` is "input").
        """
        check(image)
        channels = image.shape[2]
        colours = 3 if channels > 2 else 1
        self._check_memory(*image.shape[:2])
        try:
            blurred = torch.from_numpy(image[:, :, :colours].astype(np.float32)).to(self.device)
            output = self._sharpen(blurred.expand(-1, -1, 3))
            reason = doubt(blurred, output) if self.guard != "off" else None
            sharp = output.cpu().numpy()
        except RuntimeError as error:
            if any(words in str(error) for words in ("out of memory", "allocate memory")):  # of CUDA and MPS; of a CPU
                raise MemoryError(
                    f"out of memory on {self.device} with an {size(*image.shape[:2])}; {REMEDY}"
                ) from error
            raise
        if colours == 1:
            sharp = sharp.mean(axis=2, keepdims=True)
        if reason is not None and self.guard == "input":
            warnings.warn(f"the output {reason}; the input was kept", DoubtfulOutput, stacklevel=2)
            return image.copy()
        if not np.isfinite(sharp).all():
            raise FloatingPointError(
                "the network's output is not finite: its weights are broken, or fp16 is too narrow for it; try fp32"
            )
        if reason is not None:
            warnings.warn(f"the output {reason}; look at it", DoubtfulOutput, stacklevel=2)
        result = image.copy()
        result[:, :, :colours] = sharp.clip(0, 1)
        return result

    def _sharpen(self, blurred: Tensor) -> Tensor:
        """`[H, W, 3]` float32 to the same."""
        return self.run(blurred.permute(2, 0, 1)[None])[0].permute(1, 2, 0)

    def _check_memory(self, height: int, width: int) -> None:
        """Raise MemoryError where an image of this size surely needs more than there is."""
        available = available_memory(self.device)
        needed = self.memory(height, width)
        if available is not None and needed > available:
            raise MemoryError(
                f"an {size(height, width)} needs about {needed / 1e9:.1f} GB on {self.device}, and "
                f"{available / 1e9:.1f} GB are available; {REMEDY}"
            )

    def memory(self, height: int, width: int) -> int:
        """About how many bytes the network needs beside the image.

        The most is held at the image's full size: right after the first convolution (`channels`) or in the head
        (`features`), and half as much again in what goes in or comes out, and some RGB images. Set against the peak of
        both presets and two narrow networks as written on a CPU, at 0.3 to 1.4 megapixels: 1.04 to 2 times what was
        measured; of the packed default network (`lmfn.packed`) in float32, 1.7 to 1.9 times.
        """
        config = self.model.config
        return int(4 * (1.5 * max(config.channels, config.features) + 20) * height * width) + 2**26


def size(height: int, width: int) -> str:
    return f"image of {width} x {height} pixels ({height * width / 1e6:.1f} megapixels)"


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be used on the device; None where that is not known (mps)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds and does not use is free too.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return memory.available() if device.type == "cpu" else None


def check(image: np.ndarray) -> None:
    """Raise TypeError or ValueError unless this is an image that `Deblurrer` takes."""
    if not isinstance(image, np.ndarray):
        raise TypeError(f"the image is a {type(image).__name__}; it must be a numpy array [H, W, C], float in [0, 1]")
    if image.dtype not in (np.float32, np.float64):
        remedy = f"divide it by {np.iinfo(image.dtype).max}" if image.dtype in (np.uint8, np.uint16) else "convert it"
        raise TypeError(f"the image is {image.dtype}; it must be float32 or float64 in [0, 1]: {remedy}")
    if image.ndim != 3 or not 1 <= image.shape[2] <= 4 or image.size == 0:
        raise ValueError(f"the image has shape {image.shape}; it must be [H, W, C] with H, W >= 1 and C from 1 to 4")
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= 1):  # also where they are NaN
        raise ValueError(f"the image's values are from {low:.6g} to {high:.6g}; they must be in [0, 1]")


@dataclass
class Result:
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
) -> Result:
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
    result = Result()
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
