"""`lmfn VERB`: the command line. Arguments in, calls out; what the verbs do is in the modules that they call.

Those are imported in `run`: PyTorch takes seconds, and nobody waits for it to read the help.
"""

import contextlib
import difflib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro
from tyro.conf import OmitSubcommandPrefixes, Positional, arg

import lmfn
from lmfn import checkout
from lmfn.extras import require
from lmfn.options import BlurKind, BlurKinds, BlurOptions, ExportType, Frames, Guard, Precision, Variant

Output = Annotated[Path, arg(aliases=["-o"])]
WEIGHTS = (
    "lmfn or lmfn-released, which come with the package; what save_pretrained or train.py wrote (a folder, a "
    ".safetensors file); or owner/model on the Hugging Face Hub."
)


@dataclass(frozen=True)
class Deblur:
    """Sharpen photographs: files, and folders with all that is below them; and video clips, frame by frame. The inputs
    stay as they are."""

    paths: Positional[tuple[Path, ...]]
    """Files and folders. (In a folder, clips are left out.)"""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Folder (trees are kept) or, for one file, file to write. Default: NAME_deblurred beside the input."""
    weights: Annotated[str, arg(aliases=["-w"], help=WEIGHTS)] = "lmfn"
    suffix: str = "_deblurred"
    """What is put behind the name of an output beside its input."""
    ext: str | None = None
    """Write this format instead of the input's: png, jpg, webp, tiff."""
    overwrite: bool = False
    """Replace outputs that are there already. Otherwise they are left as they are, and the status is 1."""
    skip_existing: bool = False
    """Outputs that are there already are as they should be: the status is 0."""
    frames: Frames | None = None
    """Of files with several images (pages, animations), which are an error otherwise: write all (TIFF, WebP), or the
    first alone."""
    dry_run: bool = False
    """Say what would become what, and do nothing."""
    device: str | None = None
    """A torch device; default: a GPU where there is one."""
    precision: Precision = "fp32"
    guard: Guard = "warn"
    """What becomes of an output, or of those parts of it, that look broken: written with a warning, replaced by the
    input, or not looked for."""
    strength: float = 1.0
    """How much of the change to apply: 0 is the input, 1 the network's output; more exaggerates."""
    crf: float | None = None
    """Quality of a clip on its codec's scale, lower being better (default: 16)."""
    codec: str | None = None
    """Encoder of a clip, such as libx264, libx265, libvpx-vp9, libsvtav1. Default: VP9 in WebM, elsewhere H.264 for 8
    bits and HEVC for more."""
    deinterlace: bool = False
    """Make whole frames of an interlaced clip's, which is refused otherwise."""
    resume: bool = False
    """Go on with clips where a run that was cut off has stopped. (Images: --manifest.)"""
    manifest: Path | None = None
    """Write a line of JSON for each image: path, output, status, reason, seconds, sizes, the weights' digest. What it
    says is done is not done again, so the same command goes on where a run was cut off."""
    shard: str | None = None
    """Do a share of the files: 3/8 is the third of eight. Default: that of torchrun's process, or all."""

    def run(self) -> bool:
        from lmfn.video import is_clip

        if not self.paths:
            raise ValueError("no file or folder was given; see lmfn deblur --help")
        clips = tuple(path for path in self.paths if is_clip(path) and not path.is_dir())
        others = tuple(path for path in self.paths if path not in clips)
        done = self._deblur_clips(clips) if clips else True
        return (replace(self, paths=others)._deblur_photos() if others else True) and done

    def _deblur_clips(self, paths: Sequence[Path]) -> bool:
        require("av", "lmfn deblur of a clip", "video")
        from lmfn.video import VideoError, clip_target

        targets = [clip_target(path, self.out, self.suffix, self.ext) for path in paths]
        if twice := {str(target) for target in targets if targets.count(target) > 1}:
            raise ValueError(f"more than one clip would become {', '.join(twice)}; run them apart")
        if self.dry_run:
            print("\n".join(f"{path} -> {target}" for path, target in zip(paths, targets, strict=True)))
            return True

        from lmfn.network.fingerprint import fingerprint
        from lmfn.video import deblur_clip

        deblurrer = self._deblurrer()
        weights = f"{fingerprint(deblurrer.model)} {self.precision} {self.guard} {self.strength:g}"
        ok = True
        for path, target in zip(paths, targets, strict=True):
            if target.exists() and not self.overwrite:
                print(f"{target} is there already (--overwrite replaces it)", file=sys.stderr)
                ok &= self.skip_existing
                continue
            try:
                summary = deblur_clip(
                    path,
                    target,
                    deblurrer,
                    weights=weights,
                    codec=self.codec,
                    crf=self.crf,
                    deinterlace=self.deinterlace,
                    resume=self.resume,
                    overwrite=self.overwrite,
                )
            except VideoError as error:
                print(f"lmfn: {error}", file=sys.stderr)
                ok = False
            else:
                print(summary, file=sys.stderr)
        return ok

    def _deblurrer(self) -> Any:
        import torch

        from lmfn.deblur import Deblurrer

        device = self.device
        if device is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        return Deblurrer(
            self.weights, device=device, precision=self.precision, guard=self.guard, strength=self.strength
        )

    def _deblur_photos(self) -> bool:
        from lmfn.files import carry_out, parse_shard, plan

        shard = parse_shard(self.shard, os.environ)
        planned = plan(self.paths, self.out, suffix=self.suffix, extension=self.ext, overwrite=self.overwrite)
        planned = planned.part(shard)
        if self.dry_run:
            print(planned)
            return not planned.failed

        from lmfn.manifest import Manifest
        from lmfn.network.fingerprint import fingerprint

        deblurrer = self._deblurrer()
        with contextlib.ExitStack() as stack:
            report: Callable[[Any], object] = lambda _: None  # noqa: E731
            if self.manifest is not None:
                manifest = stack.enter_context(Manifest(self.manifest, fingerprint(deblurrer.model), shard))
                before = len(planned.jobs) + len(planned.existing)
                planned = planned.without(manifest.is_done)
                if done := before - len(planned.jobs) - len(planned.existing):
                    print(f"{done} done by an earlier run, as {self.manifest} says", file=sys.stderr)
                report = manifest.add
            summary = carry_out(planned, deblurrer, self.frames, overwrite=self.overwrite, report=report)
        print(summary, file=sys.stderr)
        return not summary.failed and (self.skip_existing or not summary.skipped)


@dataclass(frozen=True)
class Evaluate:
    """Measure weights on pairs by a named protocol, beside the blurred input's own figures. With torchrun, the images
    are shared out among its processes."""

    data: Path
    """Pairs in a layout that is known (GoPro, HIDE, RealBlur, RSBlur, Koehler, REDS, flat pairs), or the folder of
    the blurred ones."""
    sharp: Path | None = None
    """The folder of the sharp ones, where the layout is just two folders with equal names."""
    weights: Annotated[str, arg(aliases=["-w"], help=WEIGHTS)] = "lmfn"
    protocol: Literal["plain", "gopro", "hide", "realblur", "rsblur", "koehler"] = "plain"
    metrics: tuple[str, ...] | None = None
    """Measure these instead of all that the protocol has; lpips is measured only where it is named here."""
    split: Literal["train", "val", "test"] = "test"
    """The part to measure on, where the data set has parts."""
    variant: Variant = "blur"
    """Which of GoPro's two kinds of blurred images."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Folder for images.csv (an evaluation that was cut off goes on from it), summary.json, report.html, strips."""
    worst: int = 4
    """This many images that gained least, and as many that gained most, become strips and sliders in OUT."""
    batch: int = 1
    """Run the network on up to this many images of the same size at once."""
    device: str | None = None
    """A torch device; default: a GPU where there is one, one each for torchrun's processes."""
    precision: Precision = "fp32"

    def run(self) -> bool:
        import torch

        from lmfn import LMFN, data
        from lmfn.device import choose_device
        from lmfn.evaluation import evaluate

        local = os.environ.get("LOCAL_RANK") if torch.cuda.is_available() else None
        evaluation = evaluate(
            LMFN.from_pretrained(self.weights),
            data.find_pairs(self.data, sharp=self.sharp, split=self.split, variant=self.variant),
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
    """Look at a data set: counts, sizes, PSNR of the blurred images, and what does not fit."""

    path: Positional[Path]
    """Pairs in any layout that is known, or a folder of photographs or frames."""
    sharp: Path | None = None
    """The folder of the sharp ones, where the layout is just two folders with equal names."""
    split: Literal["train", "val", "test"] | None = None
    variant: Variant = "blur"
    sample: int = 100
    """Decode this many, spread evenly; of the others only the headers are read."""

    def run(self) -> bool:
        from lmfn import data

        report = data.check(self.path, sharp=self.sharp, split=self.split, variant=self.variant, sample=self.sample)
        print(report.text())
        return report.ok


@dataclass(frozen=True)
class Synth:
    """Make pairs from sharp photographs (motion of many kinds) or from frames (means of neighbours)."""

    source: Positional[Path]
    """Folder of photographs; with --frames: a folder of frames, a tree of such folders, or videos."""
    out: Output
    """Folder for OUT/blur and OUT/sharp; it must be new or empty."""
    seed: int = 0
    count: int = 1
    """Pairs from each photograph."""
    frames: bool = False
    """Make pairs from neighbouring frames."""
    kind: tuple[BlurKind, ...] = ()
    """Of photographs, make these kinds alone, in equal shares; otherwise the shares are those of --blur.kinds."""
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
    """Cut pairs into windows: a data set that is larger than the memory then trains several times as fast."""

    path: Positional[Path]
    """Pairs in any layout that is known."""
    out: Output
    """Folder for OUT/blur and OUT/sharp; it must be new or empty."""
    sharp: Path | None = None
    """The folder of the sharp ones, where the layout is just two folders with equal names."""
    split: Literal["train", "val", "test"] = "train"
    """The part to cut, where the data set has parts."""
    variant: Variant = "blur"
    side: int = 512
    """Height and width of a window, in pixels."""
    overlap: int = 128
    """Pixels that neighbouring windows share, at least."""

    def run(self) -> bool:
        from lmfn import data

        pairs = data.find_pairs(self.path, sharp=self.sharp, split=self.split, variant=self.variant)
        count = data.cut(pairs, self.out, side=self.side, overlap=self.overlap)
        print(f"{self.out}: {count:,} windows of {len(pairs):,} pairs")
        return True


@dataclass(frozen=True)
class Prepare:
    """See whether a data set that was downloaded is whole, and list its pairs in an index that all verbs take."""

    name: Positional[Literal["gopro", "hide", "realblur-j", "realblur-r", "rsblur", "koehler", "reds"]]
    path: Positional[Path]
    """Its folder, or the archive (zip, tar) as it was downloaded."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Unpack an archive into this new folder; without it, archives are only looked into."""

    def run(self) -> bool:
        from lmfn import data

        report = data.prepare(self.name, self.path, self.out)
        print(report.text())
        return report.ok


@dataclass(frozen=True)
class Pack:
    """Put training images into one file, for a machine that has no image library, or not the data."""

    out: Positional[Path]
    """The file, NAME.npz. lmfn train --packs takes it."""
    pairs: tuple[str, ...] = ()
    """As for lmfn train: FOLDER, or BLURRED,SHARP. =WEIGHT may follow, here and below; bytes are shared out by it."""
    frames: tuple[str, ...] = ()
    """Folders of neighbouring sharp frames, or videos."""
    photos: tuple[str, ...] = ()
    """Folders of sharp photographs."""
    variant: Variant = "blur"
    max_bytes: float = 60e6
    """The file's size at most; what does not fit is left out, and counted."""
    side: int | None = None
    """Keep a window of this height and width of each image, at a random place: more scenes fit in."""
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
    """Look at data sets, and make them."""

    action: Check | Prepare | Synth | Cut | Pack

    def run(self) -> bool:
        return self.action.run()


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
    """Write the network as a file for other programs: NAME.onnx, or for ncnn NAME.param and NAME.bin."""

    out: Positional[Path]
    """The file, by its suffix .onnx or .param. One that is there is replaced."""
    weights: Annotated[str, arg(aliases=["-w"], help=WEIGHTS)] = "lmfn"
    dtype: ExportType = "float32"
    """Type of the weights and, in ONNX, of the convolutions; images are float32 in any case."""
    opset: int | None = None
    """Version of ONNX's operators, 13 or newer; default: 17."""
    tile_size: int | None = None
    """Take square images with sides of this length alone, one at a time. ONNX takes any size without it; for ncnn it is
    256 by default."""

    def run(self) -> bool:
        from lmfn.export import OPSET, export_onnx
        from lmfn.export.ncnn import export_ncnn

        if self.out.suffix == ".onnx":
            opset = OPSET if self.opset is None else self.opset
            export_onnx(self.weights, self.out, dtype=self.dtype, opset=opset, tile_size=self.tile_size)
        elif self.out.suffix == ".param":
            if self.opset is not None:
                raise ValueError("--opset is for ONNX; ncnn has none")
            tile_size = 256 if self.tile_size is None else self.tile_size
            export_ncnn(self.weights, self.out, dtype=self.dtype, tile_size=tile_size)
        else:
            raise ValueError(f"{self.out} names no known kind of file; let it end in .onnx, or for ncnn in .param")
        return True


@dataclass(frozen=True)
class Web:
    """Sharpen photographs in a browser, on a page that this computer serves to itself. Nothing is uploaded."""

    weights: Annotated[str, arg(aliases=["-w"], help=WEIGHTS)] = "lmfn"
    port: int = 8650
    """Where the page is: http://127.0.0.1:PORT/. 0 takes any free port."""
    open: bool = True
    """Open the page in the default browser."""

    def run(self) -> bool:
        from lmfn.web import serve

        serve(self.weights, self.port, self.open)
        return True


@dataclass(frozen=True)
class Doctor:
    """Report versions, devices and limits, and check the ops and the weights: text for an issue.

    The status is 1 where something is wrong; the report says what, and the remedy.
    """

    json: bool = False
    """Print a JSON object instead."""
    weights: Annotated[str | None, arg(aliases=["-w"], help=f"Look into this network, too: {WEIGHTS}")] = None

    def run(self) -> bool:
        from lmfn.doctor import examine

        report = examine(self.weights)
        print(report.json() if self.json else report.text())
        return report.ok


Verb = Deblur | Evaluate | Data | Train | Ablate | Export | Web | Doctor
"""Each is called as its class, in lower case."""
OWN_OPTIONS = (Train, Ablate)
"""Verbs that read their arguments themselves, and end the process with their own status."""


def main(arguments: list[str] | None = None) -> int:
    """Run `lmfn` with these arguments (default: the process's).

    Returns 0, or 1 where something went wrong and was reported. Wrong arguments end the process with status 2.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"lmfn {lmfn.__version__}")
        return 0
    _check_verb(arguments)
    if own := [verb for verb in OWN_OPTIONS if arguments[:1] == [verb.__name__.lower()]]:
        verb: Verb = own[0](tuple(arguments[1:]))
    else:
        verb = tyro.cli(
            Verb,
            config=(OmitSubcommandPrefixes,),
            prog="lmfn",
            description="Sharpen photographs blurred by motion (lmfn --version prints the version).",
            args=arguments,
        )
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lmfn").setLevel(logging.INFO)
    try:
        return 0 if verb.run() else 1
    except (ValueError, OSError, MemoryError, ArithmeticError) as error:
        print(f"lmfn: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("lmfn: interrupted; files already written are complete", file=sys.stderr)
    return 1


def _check_verb(arguments: Sequence[str], verbs: Any = Verb) -> None:
    """End the process for a verb that does not exist: with --help behind it, tyro would print another's help."""
    known = {verb.__name__.lower(): verb for verb in get_args(verbs)}
    if not arguments or arguments[0].startswith("-"):
        return
    verb = known.get(arguments[0])
    if verb is None:
        near = difflib.get_close_matches(arguments[0], known, n=1)
        meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        print(f"lmfn: there is no verb {arguments[0]!r}{meant}", file=sys.stderr)
        raise SystemExit(2)
    if verb is Data:
        _check_verb(arguments[1:], get_type_hints(Data)["action"])
