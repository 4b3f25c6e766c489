"""`lmfn VERB`: the command line. It parses arguments and calls the modules that do the work.

These are imported in `run`, because PyTorch takes seconds and the help should be quick.
"""

import contextlib
import difflib
import itertools
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro
from tyro.conf import OmitSubcommandPrefixes, Positional, arg

import lmfn
from lmfn import checkout
from lmfn.extras import require
from lmfn.options import (
    BlurKind,
    BlurKinds,
    BlurOptions,
    ExportFormat,
    ExportType,
    Frames,
    Guard,
    InferencePrecision,
    Variant,
    parse_bytes,
)

Output = Annotated[Path, arg(aliases=["-o"])]
WEIGHTS = (
    "lmfn or lmfn-released (included in the package); the output of save_pretrained or lmfn train (a folder or "
    "a .safetensors file); or owner/model on the Hugging Face Hub."
)


@dataclass(frozen=True)
class Deblur:
    """Sharpen photographs: files and folders with their subfolders; and video clips, frame by frame. The inputs are not
    changed."""

    paths: Positional[tuple[Path, ...]]
    """Files and folders of images and clips."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Output folder (subfolders are kept) or, for one file, output file. Default: NAME_deblurred next to the input."""
    weights: Annotated[str, arg(aliases=["-w"], help=WEIGHTS)] = "lmfn"
    suffix: str = "_deblurred"
    """Suffix of the names of outputs next to their inputs."""
    ext: str | None = None
    """Output format, if not the input's: png, jpg, webp, tiff; for clips mp4, m4v, mov, mkv, webm."""
    overwrite: bool = False
    """Replace existing outputs. Otherwise they are left unchanged, and the exit status is 1."""
    skip_existing: bool = False
    """Existing outputs are expected: the exit status is 0."""
    frames: Frames | None = None
    """For files with several images (pages, animations), which are an error otherwise: write all (TIFF, WebP), or only
    the first."""
    dry_run: bool = False
    """Print the planned outputs, and do nothing."""
    device: str | None = None
    """A torch device; default: a GPU if available."""
    precision: InferencePrecision = "fp32"
    """fp8 is for Hopper GPUs, and is simulated on other devices, which is slow."""
    memory: str | None = None
    """Limit the memory, as in 2GB or 800MB; default: what is free. Images that need more are processed in strips, if
    necessary with a scratch file; the result is the same."""
    guard: Guard = "warn"
    """Implausible outputs, or parts of them, are written with a warning, replaced by the input, or not looked for."""
    strength: float = 1.0
    """Fraction of the change to apply: 0 is the input, 1 the network's output; more exaggerates."""
    crf: float | None = None
    """Quality of a clip on its codec's scale, lower being better (default: 16)."""
    codec: str | None = None
    """Encoder of a clip, such as libx264, libx265, libvpx-vp9, libsvtav1. Default: VP9 in WebM, elsewhere H.264 for 8
    bits and HEVC for more."""
    deinterlace: bool = False
    """Deinterlace interlaced clips, which are refused otherwise."""
    resume: bool = False
    """Resume clips where an interrupted run stopped; --manifest includes it."""
    manifest: Path | None = None
    """Write one line of JSON per file: path, output, status, reason, seconds, sizes, the digest of the weights. Files
    listed as done are skipped, so the same command resumes an interrupted run."""
    shard: str | None = None
    """Process only a share of the files: 3/8 is the third of eight. Default: the share of torchrun's process, or
    all."""

    def run(self) -> bool:
        from lmfn.files import carry_out, parse_shard, plan

        if not self.paths:
            raise ValueError("no file or folder given; see lmfn deblur --help")
        shard = parse_shard(self.shard, os.environ)
        planned = plan(self.paths, self.out, suffix=self.suffix, extension=self.ext, overwrite=self.overwrite)
        planned = planned.part(shard)
        if self.dry_run:
            print(planned)
            return not planned.failed

        from lmfn.manifest import Manifest
        from lmfn.network.fingerprint import fingerprint

        deblurrer = self._deblurrer()
        digest = fingerprint(deblurrer.model)
        settings = {"precision": self.precision, "guard": self.guard, "strength": self.strength, "frames": self.frames}
        encoding = {"codec": self.codec, "crf": self.crf, "deinterlace": self.deinterlace}
        clip_options = {
            "weights": f"{digest} {self.precision} {self.guard} {self.strength:g}",
            **encoding,
            "resume": self.resume or self.manifest is not None,
        }
        with interrupted_by_signals(), contextlib.ExitStack() as stack:
            report: Callable[[Any], object] = lambda _: None  # noqa: E731
            if self.manifest is not None:
                manifest = stack.enter_context(Manifest(self.manifest, digest, settings | encoding, shard))
                before = len(planned.jobs) + len(planned.existing)
                planned = planned.without(manifest.is_done)
                if done := before - len(planned.jobs) - len(planned.existing):
                    print(f"{done} done by an earlier run, as {self.manifest} says", file=sys.stderr)
                report = manifest.add
            summary = carry_out(
                planned,
                deblurrer,
                self.frames,
                overwrite=self.overwrite,
                report=report,
                clip_options=clip_options,
            )
        print(summary, file=sys.stderr)
        return not summary.failed and (self.skip_existing or not summary.skipped)

    def _deblurrer(self) -> Any:
        import torch

        from lmfn.deblur import Deblurrer

        device = self.device
        if device is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        return Deblurrer(
            self.weights,
            device=device,
            precision=self.precision,
            guard=self.guard,
            strength=self.strength,
            memory=None if self.memory is None else parse_bytes(self.memory),
        )


@dataclass(frozen=True)
class Evaluate:
    """Measure weights on pairs by a named protocol, together with the blurred input. With torchrun, the images are
    distributed over its processes."""

    data: Path
    """Pairs in a known layout (GoPro, HIDE, RealBlur, RSBlur, Koehler, REDS, flat pairs), or BLURRED,SHARP: two folders
    with equal names, or two templates, as in my/{}_blur.png,my/{}_sharp.png."""
    weights: Annotated[str, arg(aliases=["-w"], help=WEIGHTS)] = "lmfn"
    protocol: Literal["plain", "gopro", "hide", "realblur", "rsblur", "koehler"] = "plain"
    metrics: tuple[str, ...] | None = None
    """Measure these instead of all metrics of the protocol; lpips is measured only if named here."""
    split: Literal["train", "val", "test"] = "test"
    """The split to measure on, if the data set has splits."""
    variant: Variant = "blur"
    """Which of GoPro's two kinds of blurred images."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Folder for images.csv (from which an interrupted evaluation resumes), summary.json, report.html, strips."""
    worst: int = 4
    """Number of best and of worst images shown in the report."""
    batch: int = 1
    """Run the network on up to this many images of one size at once."""
    device: str | None = None
    """A torch device; default: a GPU if available, one for each of torchrun's processes."""
    precision: InferencePrecision = "fp32"
    """fp8 is for Hopper GPUs, and is simulated on other devices, which is slow."""

    def run(self) -> bool:
        import torch

        from lmfn import LMFN, data
        from lmfn.device import choose_device
        from lmfn.evaluation import evaluate

        local = os.environ.get("LOCAL_RANK") if torch.cuda.is_available() else None
        evaluation = evaluate(
            LMFN.from_pretrained(self.weights),
            data.find_pairs(self.data, split=self.split, variant=self.variant),
            protocol=self.protocol,
            metrics=self.metrics,
            device=choose_device(self.device or (f"cuda:{local}" if local else None)),
            precision=self.precision,
            batch=self.batch,
            weights=self.weights,
            out=self.out,
            worst=self.worst,
        )
        if os.environ.get("RANK", "0") == "0":
            print(evaluation.table())
        return True


@dataclass(frozen=True)
class Check:
    """Check a data set: counts, sizes, PSNR of the blurred images, and inconsistencies."""

    path: Positional[Path]
    """Pairs in any known layout, or as BLURRED,SHARP (two folders, or templates as in my/{}_blur.png,my/{}_sharp.png);
    or a folder of photographs or frames."""
    split: Literal["train", "val", "test"] | None = None
    variant: Variant = "blur"
    sample: int = 100
    """Decode this many images, spread evenly; of the others only read the headers."""

    def run(self) -> bool:
        from lmfn import data

        report = data.check(self.path, split=self.split, variant=self.variant, sample=self.sample)
        print(report.text())
        return report.ok


@dataclass(frozen=True)
class Synth:
    """Make pairs from sharp photographs (motion of many kinds) or from frames (means of consecutive ones)."""

    source: Positional[Path]
    """Folder of photographs; with --frames: a folder of frames, a tree of such folders, or videos."""
    out: Output
    """Folder for OUT/blur and OUT/sharp; it must be new or empty."""
    seed: int = 0
    count: int = 1
    """Number of pairs per photograph."""
    frames: bool = False
    """Make pairs from consecutive frames."""
    kind: tuple[BlurKind, ...] = ()
    """Make only these kinds from photographs, in equal shares; otherwise the shares of --blur.kinds apply."""
    blur: BlurOptions = field(default_factory=lambda: BlurOptions(kinds=BlurKinds.moving()))

    def run(self) -> bool:
        from lmfn import data

        if self.kind and self.frames:
            raise ValueError("--kind is for photographs; frames are averaged as they are")
        blur = replace(self.blur, kinds=BlurKinds.only(*self.kind)) if self.kind else self.blur
        report = data.synth(self.source, self.out, seed=self.seed, count=self.count, frames=self.frames, blur=blur)
        print(report.text())
        return report.ok


@dataclass(frozen=True)
class Cut:
    """Cut pairs into windows: a data set larger than the memory then loads several times as fast."""

    path: Positional[Path]
    """Pairs in any known layout, or as BLURRED,SHARP."""
    out: Output
    """Folder for OUT/blur and OUT/sharp; it must be new or empty."""
    split: Literal["train", "val", "test"] = "train"
    """The split to cut, if the data set has splits."""
    variant: Variant = "blur"
    side: int = 512
    """Height and width of a window, in pixels."""
    overlap: int = 128
    """Minimum overlap of neighbouring windows, in pixels."""

    def run(self) -> bool:
        from lmfn import data

        pairs = data.find_pairs(self.path, split=self.split, variant=self.variant)
        count = data.cut(pairs, self.out, side=self.side, overlap=self.overlap)
        print(f"{self.out}: {count:,} windows of {len(pairs):,} pairs")
        return True


@dataclass(frozen=True)
class Prepare:
    """Check that a downloaded data set is complete, and list its pairs in an index that all commands use."""

    name: Positional[Literal["gopro", "hide", "realblur-j", "realblur-r", "rsblur", "koehler", "reds"]]
    path: Positional[Path]
    """Its folder, or the downloaded archive (zip, tar)."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Unpack an archive into this new folder; without it, archives are only checked."""

    def run(self) -> bool:
        from lmfn import data

        report = data.prepare(self.name, self.path, self.out)
        print(report.text())
        return report.ok


@dataclass(frozen=True)
class Pack:
    """Pack training images into one file, for a machine without an image library or without the data."""

    out: Positional[Path]
    """Output file, NAME.npz, for lmfn train --packs."""
    pairs: tuple[str, ...] = ()
    """As for lmfn train: FOLDER, or BLURRED,SHARP. =WEIGHT may follow, here and below, and sets the share of the
    bytes."""
    frames: tuple[str, ...] = ()
    """Folders of consecutive sharp frames, or videos."""
    photos: tuple[str, ...] = ()
    """Folders of sharp photographs."""
    variant: Variant = "blur"
    max_bytes: float = 60e6
    """Maximum size of the file; what does not fit is left out and counted."""
    side: int | None = None
    """Keep one window of this height and width per image, at a random position, so that more scenes fit."""
    seed: int = 0

    def run(self) -> bool:
        from lmfn import data

        kinds: tuple[Literal["pairs", "frames", "photos"], ...] = ("pairs", "frames", "photos")
        sources = [data.Source.parse(kind, text, self.variant) for kind in kinds for text in getattr(self, kind)]
        if not sources:
            raise ValueError("nothing to pack: give at least one of --pairs, --frames, --photos")
        print(data.pack(sources, self.out, max_bytes=self.max_bytes, side=self.side, seed=self.seed).text())
        return True


@dataclass(frozen=True)
class Data:
    """Check data sets, and make them."""

    action: Check | Prepare | Synth | Cut | Pack


@dataclass(frozen=True)
class Train:
    """Train a network on your own pairs, frames or photographs: lmfn train --help lists the settings."""

    arguments: Positional[tuple[str, ...]] = ()

    def run(self) -> bool:
        for package in ("accelerate", "tensorboard", "yaml"):
            require(package, "lmfn train", "train")
        from lmfn.training.loop import main

        sys.exit(main(self.arguments))


@dataclass(frozen=True)
class Ablate:
    """Train and measure the networks of one of the paper's tables (in a checkout): lmfn ablate --help."""

    arguments: Positional[tuple[str, ...]] = ()

    def run(self) -> bool:
        checkout.run("experiments/ablations/ablate.py", self.arguments)
        return True


@dataclass(frozen=True)
class Export:
    """Write the network for other programs: NAME.onnx; for ncnn NAME.param and NAME.bin; or a folder for darktable."""

    out: Positional[Path]
    """The file or, for darktable, the folder, which must be new, empty, or one for darktable. Files that are there are
    replaced."""
    weights: Annotated[str, arg(aliases=["-w"], help=WEIGHTS)] = "lmfn"
    format: ExportFormat | None = None
    """Default: onnx for a file .onnx, ncnn for a file .param."""
    dtype: ExportType | None = None
    """Type of the weights and, in ONNX, of the convolutions, float32 by default; images are float32 in any case."""
    opset: int | None = None
    """Version of ONNX's operators, 13 or newer; 17 by default."""
    tile_size: int | None = None
    """Take square images with sides of this length alone, one at a time. ONNX takes any size without it; for ncnn it is
    256 by default."""

    def run(self) -> bool:
        from lmfn.export import export_onnx
        from lmfn.export.darktable import write_folder
        from lmfn.export.ncnn import export_ncnn

        suffixes: dict[str, ExportFormat] = {".onnx": "onnx", ".param": "ncnn"}
        suffix = self.out.suffix
        name = self.format or suffixes.get(suffix)
        if name is None or (name != "darktable" and suffixes.get(suffix) != name):
            raise ValueError(f"{self.out} names no known kind of file; let it end in .onnx, or for ncnn in .param")
        writers: dict[ExportFormat, tuple[Callable[..., None], tuple[str, ...]]] = {
            "onnx": (export_onnx, ("dtype", "opset", "tile_size")),
            "ncnn": (export_ncnn, ("dtype", "tile_size")),
            "darktable": (write_folder, ()),
        }
        write, options = writers[name]
        given = {key: value for key in ("dtype", "opset", "tile_size") if (value := getattr(self, key)) is not None}
        if wrong := [key for key in given if key not in options]:
            raise ValueError(f"--{wrong[0].replace('_', '-')} is not an option for {name}")
        write(self.weights, self.out, **given)
        return True


@dataclass(frozen=True)
class Web:
    """Sharpen photographs in a browser, on a page that this computer serves to itself only. Nothing is uploaded."""

    weights: Annotated[str, arg(aliases=["-w"], help=WEIGHTS)] = "lmfn"
    port: int = 8650
    """Port of the page, http://127.0.0.1:PORT/. 0 takes any free port."""
    open: bool = True
    """Open the page in the default browser."""

    def run(self) -> bool:
        from lmfn.web import serve

        serve(self.weights, self.port, self.open)
        return True


@dataclass(frozen=True)
class Doctor:
    """Report versions, devices and limits, and check the ops and the weights: text for an issue.

    The exit status is 1 if something is wrong; the report names the problem and the remedy.
    """

    json: bool = False
    """Print a JSON object instead."""
    weights: Annotated[str | None, arg(aliases=["-w"], help=f"Also examine this network: {WEIGHTS}")] = None

    def run(self) -> bool:
        from lmfn.doctor import examine

        report = examine(self.weights)
        print(report.json() if self.json else report.text())
        return report.ok


Verb = Deblur | Evaluate | Data | Train | Ablate | Export | Web | Doctor
"""Each command is named after its class, in lower case."""
OWN_OPTIONS = (Train, Ablate)
"""Commands that parse their own arguments and set the exit status."""


def main(arguments: list[str] | None = None) -> int:
    """Run `lmfn` with these arguments (default: the process's).

    Returns 0, or 1 if an error was reported. Wrong arguments end the process with status 2.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"lmfn {lmfn.__version__}")
        return 0
    command, prog, options = _command(arguments)
    for before, argument in itertools.pairwise(arguments):
        if not argument and before != "--suffix":  # an unset variable of a shell; as a path it would be this folder
            print(f"lmfn: the argument after {before} is empty; this folder is .", file=sys.stderr)
            return 1
    if command in OWN_OPTIONS:
        verb = command(tuple(options))
    else:
        about = "Sharpen photographs blurred by motion (lmfn --version prints the version)."
        description = about if command is Verb else None
        verb = tyro.cli(command, config=(OmitSubcommandPrefixes,), prog=prog, description=description, args=options)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lmfn").setLevel(logging.INFO)
    try:
        with warnings_as_lines():
            return 0 if verb.run() else 1
    except (ValueError, OSError, MemoryError, ArithmeticError) as error:
        print(f"lmfn: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("lmfn: interrupted; files already written are complete", file=sys.stderr)
    return 1


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Within the context, a warning is one line, as an error is, without the code that it comes from."""

    def line(message: Warning | str, *_: Any, **__: Any) -> str:
        return f"lmfn: {message}\n"

    usual, warnings.formatwarning = warnings.formatwarning, line
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Within the context, a request to end (`kill`, a batch system's time limit, a closed terminal) is as Ctrl-C, so
    that no claim is left, as if a file had killed the process. Under nohup the terminal's is ignored as before."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _command(arguments: list[str], verbs: Any = Verb, prog: str = "lmfn") -> tuple[Any, str, list[str]]:
    """The class of a command, its name, and its own arguments; `verbs` themselves if none of them is named.

    Parsed by its class alone, an error in an option names it as the user does, and the help of its command. Ends the
    process for an unknown command.
    """
    known = {verb.__name__.lower(): verb for verb in get_args(verbs)}
    if not arguments or arguments[0].startswith("-"):
        return verbs, prog, arguments
    name, *options = arguments
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        print(f"lmfn: there is no command {name!r}{meant}", file=sys.stderr)
        raise SystemExit(2)
    if known[name] is Data and options and not options[0].startswith("-"):
        return _command(options, get_type_hints(Data)["action"], f"{prog} {name}")
    return known[name], f"{prog} {name}", options
