"""`deblur_clip`: from a clip to a sharp clip, in segments, so that an interrupted run can continue."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import av
from tqdm import tqdm

from lmfn import atomic
from lmfn.absent import absent
from lmfn.video.encoding import Encoding, choose_encoding
from lmfn.video.flicker import Flicker
from lmfn.video.joining import join, try_out
from lmfn.video.probing import probe
from lmfn.video.segments import FRAMES, Segment, Sharpen, interlaced, whole_segments, write_segments
from lmfn.video.suffixes import WRITABLE, UnusableClipError, VideoError

JOB = "job.json"
"""In the folder of segments: the job that they belong to. Only the same job continues from them."""


@dataclass
class ClipSummary:
    """The outcome of a clip."""

    source: Path
    target: Path
    frames: int = 0
    resumed: int = 0
    """Frames among them made by an earlier run."""
    size: tuple[int, int] | None = None
    """Height and width."""
    flicker: Flicker = field(default_factory=Flicker)
    doubts: list[tuple[float, str]] = field(default_factory=list)
    """Time in seconds and reason for each frame whose output looks broken."""
    notes: list[str] = field(default_factory=list)
    """Notes for the user, such as streams that are not preserved."""

    def __str__(self) -> str:
        """A summary in lines of plain text."""
        lines = [f"{self.source} -> {self.target}: {self.frames} frames, each sharpened independently"]
        if self.resumed:
            lines[0] += f" ({self.resumed} of them by an earlier run)"
        if (levels := self.flicker.levels()) is not None:
            lines.append(
                "flicker where the picture stands still, RMS in levels of 255: "
                f"{levels[0]:.2f} in the input, {levels[1]:.2f} in the output"
            )
        if self.doubts:
            second, reason = self.doubts[0]
            lines.append(f"{len(self.doubts)} frames look broken, the first at {second:.2f} s: {reason}")
        return "\n  ".join([*lines, *self.notes])


def deblur_clip(
    source: str | Path,
    target: str | Path,
    sharpen: Sharpen,
    *,
    weights: str = "",
    codec: str | None = None,
    crf: float | None = None,
    deinterlace: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    frames: int = FRAMES,
    progress: bool = True,
) -> ClipSummary:
    """Sharpen a clip, frame by frame, into a new file; the clip itself is not changed.

    Time stamps, sound, rotation, colours, chapters, tags and subtitles are preserved as far as the container allows,
    and so are bit depth, chroma sampling and HDR. `sharpen` maps float32 `[H, W, 3]` in [0, 1] to the same.

    The work is done in segments of `frames` frames, in a folder `.NAME.parts` next to the target that is removed at the
    end. An interrupted run continues with `resume` and produces the same frames, provided that the clip, `weights` (any
    text that identifies them), codec and quality are the same.

    Raises VideoError before any work for an unusable clip or target and for parts of an earlier run that would be lost;
    later if the clip cannot be read, or the result cannot be written, to the end.
    """
    source, target = Path(source), Path(target)
    _check_paths(source, target, overwrite)
    clip = probe(source)
    if clip.interlaced and not deinterlace:
        raise VideoError(interlaced(clip))
    encoding = choose_encoding(clip, target, codec, crf)
    job = _job(source, encoding, weights=weights, deinterlace=deinterlace, frames=frames)
    target.parent.mkdir(parents=True, exist_ok=True)
    segments: list[Segment] = []
    bar_format = "{l_bar}{bar}| {n:.1f}/{total:.1f} s [{elapsed}<{remaining}]"
    seconds = clip.end - clip.start
    with _parts(target, job, resume) as folder:
        try_out(clip, folder, target, encoding)
        summary = ClipSummary(source, target, size=(clip.height, clip.width), notes=list(clip.notes))
        summary.resumed = sum(segment.frames for segment in whole_segments(folder))
        atomic.write(folder / JOB, json.dumps(job).encode())
        with tqdm(total=seconds, desc=target.name, bar_format=bar_format, disable=not progress) as bar:
            for segment in write_segments(clip, folder, encoding, sharpen, deinterlace=deinterlace, frames=frames):
                segments.append(segment)
                bar.update(max(0.0, min(float(segment.end * clip.time_base) - clip.start, seconds) - bar.n))
        if not segments:
            raise VideoError(f"{source}: no frame can be decoded")
    for segment in segments:
        summary.frames += segment.frames
        summary.flicker += segment.flicker
        summary.doubts += segment.doubts
    summary.notes += join(clip, folder, segments, target, encoding)
    shutil.rmtree(folder)
    return summary


@contextmanager
def _parts(target: Path, job: dict[str, object], resume: bool) -> Iterator[Path]:
    """The folder of segments, which is left after an error if a later run can continue from them.

    Raises VideoError for parts of an earlier run that would be lost.
    """
    folder = atomic.beside(target, ".parts")
    _check_parts(folder, job, resume)
    folder.mkdir(exist_ok=True)
    for leftover in folder.glob(".*"):
        leftover.unlink()
    try:
        yield folder
    except UnusableClipError:
        shutil.rmtree(folder)
        raise
    finally:
        if folder.is_dir() and not whole_segments(folder):
            shutil.rmtree(folder)


def _check_paths(source: Path, target: Path, overwrite: bool) -> None:
    """Raise VideoError if the clip is missing or the target cannot be written."""
    if not source.is_file():
        raise VideoError(absent("file", source))
    if target.suffix.lower() not in WRITABLE:
        raise VideoError(f"{target}: a clip is written as one of {', '.join(WRITABLE)}")
    if (length := len(os.fsencode(target.name))) > atomic.LONGEST_NAME:
        raise VideoError(
            f"{source}: its result's name would have {length} bytes; {atomic.LONGEST_NAME} are the most. Name it by -o"
        )
    if os.path.realpath(source) == os.path.realpath(target):
        raise VideoError(f"the result of {source} would overwrite it; choose another output")
    if os.path.lexists(target) and not overwrite:
        raise VideoError(f"{target} is there already; --overwrite replaces it")


def _job(source: Path, encoding: Encoding, *, weights: str, deinterlace: bool, frames: int) -> dict[str, object]:
    """All that decides the result's frames: a run continues an earlier one only if it is equal."""
    return {
        "source": str(source.resolve()),
        "bytes": source.stat().st_size,
        "modified": source.stat().st_mtime_ns,
        "weights": weights,
        "deinterlace": deinterlace,
        "frames": frames,
        "codec": encoding.codec,
        "samples": encoding.pix_fmt,
        "options": dict(encoding.options),
        "libraries": {name: list(version) for name, version in av.library_versions.items()},
    }


def _check_parts(folder: Path, job: dict[str, object], resume: bool) -> None:
    """Raise VideoError if there are parts of an earlier run that this run does not continue; remove empty ones."""
    if not folder.is_dir():
        return
    if not whole_segments(folder):
        shutil.rmtree(folder)
    elif not resume:
        raise VideoError(f"an interrupted run left {folder}: add --resume to continue it, or remove the folder")
    else:
        try:
            before = dict(json.loads((folder / JOB).read_text()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise VideoError(f"{folder / JOB} is broken ({error}); remove {folder} to start again") from error
        if changed := [key for key in job if before.get(key) != job[key]]:
            raise VideoError(
                f"{folder} belongs to a run with another {', '.join(changed)}; remove the folder to start again, or "
                "use the same settings as before"
            )
