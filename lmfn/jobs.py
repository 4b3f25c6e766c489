"""Process image files: reading, network and writing in parallel, in bounded memory."""

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from lmfn import images
from lmfn.claims import MOST_DEATHS, Claim
from lmfn.images import ImageError, ImageWarning, Photo
from lmfn.options import Frames
from lmfn.overlap import ahead, heard, warnings_by_thread
from lmfn.plausibility import DoubtfulOutput

Sharpen = Callable[[Any], Any]
"""Sharpens `lmfn.scratch.Pixels`; arrays only, unless it has an attribute `as_stored` that is true."""
Whole = Callable[["Outcome", Callable[[], None]], None]
"""Makes the result of a file and completes its outcome; calls the function after each part that a next run need not
repeat."""
Status = Literal["done", "there", "failed"]
"""Outcome of a file: written, existing and left unchanged, or without a result."""

AHEAD = 2**28
"""Bytes of decoded images above which no further image is read ahead, and no further result waits to be written."""
LEAST = AHEAD / 32  # minimum weight of an image, which limits the number of small ones in flight
ERRORS = (OSError, MemoryError, ArithmeticError, RuntimeError)


@dataclass
class Outcome:
    """The outcome of an image file."""

    source: Path
    target: Path
    status: Status = "done"
    reason: str = ""
    """The reason of a failure; it names the file."""
    doubts: list[str] = field(default_factory=list)
    """Why the output is implausible; each names the file."""
    notes: list[str] = field(default_factory=list)
    """Metadata that could not be kept; each names the file."""
    seconds: float = 0.0
    """Seconds spent on reading, sharpening and writing it."""
    size: tuple[int, int] | None = None
    """Height and width."""


@dataclass
class _Work:
    """A file in flight."""

    outcome: Outcome
    claim: Claim
    photo: Photo | None = None
    messages: list[warnings.WarningMessage] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        return self.outcome.status == "done"

    def weight(self) -> float:
        return max(LEAST, 0 if self.photo is None else self.photo.pixels.nbytes)

    @contextmanager
    def step(self) -> Iterator[None]:
        """A step of the work: attributes its time, warnings and errors to the file."""
        outcome, began = self.outcome, time.perf_counter()
        try:
            with heard(self.messages):
                yield
        except ImageError as error:
            outcome.status, outcome.reason = "failed", str(error)
        except ERRORS as error:
            outcome.status, outcome.reason = "failed", f"{outcome.source}: {str(error) or type(error).__name__}"
        outcome.seconds += time.perf_counter() - began


def run_jobs(
    jobs: Iterable[tuple[Path, Path]], sharpen: Sharpen, frames: Frames | None = None, *, overwrite: bool = False
) -> Iterator[Outcome]:
    """Make the result of every source; yields an outcome for each, in the order of the jobs except for suspects.

    While the network processes one image, one thread reads the next and another writes the last; `sharpen` runs in the
    caller's thread. A result that has appeared in the meantime is left unchanged, unless `overwrite` is set.

    A file at which a process has died before (`lmfn.claims`) is processed last and alone, so that its neighbours are
    not blamed; one at which two have died fails.
    """
    line = _Line(sharpen, None, frames, overwrite)
    with warnings_by_thread(DoubtfulOutput, ImageWarning):
        try:
            with (
                ThreadPoolExecutor(1) as writer,
                closing(ahead(line.read(jobs), AHEAD, _Work.weight)) as works,
            ):
                finishing: deque[tuple[Future[Outcome], float]] = deque()
                for work in works:
                    line.sharpen(work)
                    finishing.append((writer.submit(line.finish, work), work.weight()))
                    while finishing and (finishing[0][0].done() or sum(weight for _, weight in finishing) > AHEAD):
                        yield finishing.popleft()[0].result()
                while finishing:
                    yield finishing.popleft()[0].result()
            yield from line.process_suspects()
        finally:
            line.release()


def run_whole(jobs: Iterable[tuple[Path, Path]], whole: Whole, *, overwrite: bool) -> Iterator[Outcome]:
    """As `run_jobs` for files that `whole` reads, sharpens and writes by itself, one after the other."""
    line = _Line(None, whole, None, overwrite)
    with warnings_by_thread(DoubtfulOutput, ImageWarning):
        try:
            for work in line.read(jobs):
                line.sharpen(work)
                yield line.finish(work)
            yield from line.process_suspects()
        finally:
            line.release()


class _Line:
    """The steps of the pipeline, each called in one thread."""

    def __init__(self, sharpen: Sharpen | None, whole: Whole | None, frames: Frames | None, overwrite: bool) -> None:
        self._sharpen, self._whole, self._frames, self._overwrite = sharpen, whole, frames, overwrite
        self._as_stored = getattr(sharpen, "as_stored", False)
        self.suspects: list[_Work] = []
        self._claimed: set[Claim] = set()

    def read(self, jobs: Iterable[tuple[Path, Path]]) -> Iterator[_Work]:
        """Claim and read the jobs; suspects are set aside."""
        for source, target in jobs:
            work = _Work(Outcome(source, target), Claim(target))
            with work.step():
                deaths = work.claim.deaths()
                if not self._overwrite and os.path.lexists(target):
                    work.outcome.status = "there"
                    if deaths:  # right after it was written
                        work.claim.release()
                elif deaths >= MOST_DEATHS:
                    raise ImageError(
                        f"{source}: given up, since {deaths} processes died at it; to try again, remove "
                        f"{work.claim.path}"
                    )
                elif deaths:
                    self.suspects.append(work)
                    continue
            if work.goes_on:
                self.begin(work)
            yield work

    def begin(self, work: _Work) -> None:
        """Claim the file and read it."""
        with work.step():
            self._claimed.add(work.claim)
            work.claim.take()
            if self._frames != "all" and self._whole is None:
                work.photo = images.read(
                    work.outcome.source,
                    first=self._frames == "first",
                    whole_numbers=self._as_stored,
                    stored=self._as_stored,
                )

    def sharpen(self, work: _Work) -> None:
        """Run the network. The images of a file with several are processed one after the other."""
        if not work.goes_on:
            return
        target = work.outcome.target
        with work.step():
            if self._whole is not None:
                self._whole(work.outcome, work.claim.renew)
            elif work.photo is not None:
                work.photo = self._sharpened(work.photo, target)
            else:
                photos = images.read_frames(work.outcome.source, whole_numbers=self._as_stored, stored=self._as_stored)
                first, *second = islice(photos, 2)
                if second:
                    frames = (self._sharpened(photo, target) for photo in chain([first], second, photos))
                    images.write_frames(target, frames)
                else:
                    work.photo = self._sharpened(first, target)

    def _sharpened(self, photo: Photo, target: Path) -> Photo:
        assert self._sharpen is not None
        images.check(target, photo)  # before the network's work
        return replace(photo, pixels=self._sharpen(photo.pixels))

    def process_suspects(self) -> Iterator[Outcome]:
        """All steps of the files at which a process has died before, one file after the other."""
        for work in self.suspects:
            self.begin(work)
            self.sharpen(work)
            yield self.finish(work)

    def finish(self, work: _Work) -> Outcome:
        """Write the result, and release the claim."""
        outcome = work.outcome
        if work.photo is not None and work.goes_on:
            outcome.size = work.photo.pixels.shape[0], work.photo.pixels.shape[1]
            with work.step():
                images.write(outcome.target, work.photo)
        work.photo = None
        if work.claim in self._claimed:
            work.claim.release()
            self._claimed.discard(work.claim)
        for warning in work.messages if outcome.status == "done" else ():
            if issubclass(warning.category, DoubtfulOutput):
                outcome.doubts.append(f"{outcome.source}: {warning.message}")
            elif issubclass(warning.category, ImageWarning):
                outcome.notes.append(str(warning.message))
            else:
                warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
        outcome.notes = list(dict.fromkeys(outcome.notes))  # pages have the same ones
        return outcome

    def release(self) -> None:
        """Release the claims in flight after an interruption, since no process has died."""
        for claim in self._claimed:
            claim.release()
