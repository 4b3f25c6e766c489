"""`lmfn VERB`: the command line. Arguments in, calls out; what the verbs do is in the modules that they call."""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitSubcommandPrefixes, Positional, arg, subcommand

from lmfn import data
from lmfn.data.layouts import Variant
from lmfn.deblur import Deblurrer, deblur_files
from lmfn.device import Precision
from lmfn.evaluate import evaluate

Output = Annotated[Path, arg(aliases=["-o"])]
WEIGHTS = (
    "What save_pretrained or train.py wrote (a folder, a .safetensors file), or owner/model on the Hugging Face Hub."
)


@dataclass(frozen=True)
class Deblur:
    """Sharpen photographs: files, and folders with all that is below them. The inputs stay as they are."""

    paths: Positional[tuple[Path, ...]]
    """Files and folders."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Folder (trees are kept) or, for one file, file to write. Default: NAME_deblurred beside the input."""
    weights: Annotated[str | None, arg(aliases=["-w"], help=WEIGHTS)] = None
    suffix: str = "_deblurred"
    """What is put behind the name of an output beside its input."""
    ext: str | None = None
    """Write this format instead of the input's: png, jpg, webp, tiff."""
    skip_existing: bool = False
    """Leave out files whose output is there already."""
    device: str | None = None
    """A torch device; default: a GPU where there is one."""
    precision: Precision = "fp32"

    def run(self) -> bool:
        if not self.paths:
            raise ValueError("no file or folder was given; see lmfn deblur --help")
        deblurrer = Deblurrer(self.weights, device=self.device, precision=self.precision)
        result = deblur_files(
            self.paths,
            self.out,
            deblurrer=deblurrer,
            suffix=self.suffix,
            extension=self.ext,
            skip_existing=self.skip_existing,
        )
        print(result.summary(), file=sys.stderr)
        return not result.failed


@dataclass(frozen=True)
class Evaluate:
    """Measure weights on pairs by a named protocol, beside the blurred input's own figures."""

    data: Path
    """Pairs in a layout that is known (GoPro, HIDE, RealBlur, REDS, flat pairs), or the folder of the blurred ones."""
    sharp: Path | None = None
    """The folder of the sharp ones, where the layout is just two folders with equal names."""
    weights: Annotated[str | None, arg(aliases=["-w"], help=WEIGHTS)] = None
    protocol: Literal["gopro", "plain"] = "plain"
    split: Literal["train", "val", "test"] = "test"
    """The part to measure on, where the data set has parts."""
    variant: Variant = "blur"
    """Which of GoPro's two kinds of blurred images."""
    json: Path | None = None
    """Write everything, image by image, to this file."""
    device: str | None = None
    """A torch device; default: a GPU where there is one."""
    precision: Precision = "fp32"

    def run(self) -> bool:
        deblurrer = Deblurrer(self.weights, device=self.device)
        evaluation = evaluate(
            deblurrer.model,
            data.find_pairs(self.data, sharp=self.sharp, split=self.split, variant=self.variant),
            protocol=self.protocol,
            device=deblurrer.device,
            precision=self.precision,
            weights=str(self.weights),
        )
        if self.json is not None:
            evaluation.write(self.json)
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
        report = data.check(self.path, sharp=self.sharp, split=self.split, variant=self.variant, sample=self.sample)
        print(report.text())
        return report.ok


@dataclass(frozen=True)
class Synth:
    """Make pairs from sharp photographs (random camera paths) or from frames (means of neighbours)."""

    source: Positional[Path]
    """Folder of photographs; with --frames: a folder of frames, a tree of such folders, or videos."""
    out: Output
    """Folder for OUT/blur and OUT/sharp; it must be new or empty."""
    seed: int = 0
    count: int = 1
    """Pairs from each photograph."""
    frames: bool = False
    """Make pairs from neighbouring frames."""
    blur: data.BlurOptions = field(default_factory=data.BlurOptions)

    def run(self) -> bool:
        report = data.synth(self.source, self.out, seed=self.seed, count=self.count, frames=self.frames, blur=self.blur)
        print(report.text())
        return report.ok


@dataclass(frozen=True)
class Data:
    """Look at data sets, and make them."""

    action: Annotated[Check, subcommand("check")] | Annotated[Synth, subcommand("synth")]

    def run(self) -> bool:
        return self.action.run()


Verb = (
    Annotated[Deblur, subcommand("deblur")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Data, subcommand("data")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run `lmfn` with these arguments (default: the process's): 0, or 1 where something went wrong and was said."""
    verb: Deblur | Evaluate | Data = tyro.cli(
        Verb,
        config=(OmitSubcommandPrefixes,),
        prog="lmfn",
        description="Sharpen photographs blurred by motion. To train: python train.py --help",
        args=arguments,
    )
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lmfn").setLevel(logging.INFO)
    try:
        return 0 if verb.run() else 1
    except (ValueError, OSError, MemoryError, ArithmeticError) as error:
        print(f"lmfn: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("lmfn: stopped; what was written before is whole", file=sys.stderr)
    return 1
