"""Measure weights, and ship them with their model card.

    python -m experiments.weights.card runs/first --val data/GoPro      # measure, and print the card
    python -m experiments.weights.card runs/first --val data/GoPro -o lmfn/weights --name lmfn      # ship them in lmfn

Measures pairs with real blur, synthetic blur on photographs that were never trained on, and how much the network
changes sharp photographs.
"""

import json
import logging
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from tyro.conf import Positional, arg

from lmfn import LMFN, atomic, images, weights
from lmfn.data import BlurKinds, BlurOptions, Pair, PairSet, Source, find_pairs, synth
from lmfn.device import choose_device
from lmfn.evaluation import Evaluation, evaluate
from lmfn.evaluation.pictures import pixels, side_by_side
from lmfn.network import checkpoint
from lmfn.training.settings import Settings

BLUR = BlurOptions(BlurKinds.only("shake"), length=(2, 16), contrast=(0, 0), labels=0, mosaic=0, jpeg=0)
HELD_OUT = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
"""scikit-image's colour photographs, on which no shipped weights were trained."""
ORIGINS = {
    "gopro": "GoPro (Nah, Kim and Lee, CVPR 2017), CC BY 4.0",
    "frames_240fps": "GoPro's frames at 240 per second (Nah, Kim and Lee, CVPR 2017), CC BY 4.0",
    "reds": "REDS (Nah et al., NTIRE 2019), CC BY 4.0",
    "photos": "photographs of CID22 (CC BY-SA 4.0) and CLIC 2025 (Unsplash licence)",
}
"""Origin and licence of training data, by the name of its folder."""
FAILURES = Path(__file__).with_name("failures.md")
"""Known failures of the shipped weights only."""


@dataclass(frozen=True)
class Measures:
    """The measurements of a model card."""

    real: Evaluation
    """Pairs with real blur."""
    synthetic: Evaluation
    """Unseen photographs, each blurred three times by random camera paths."""
    sharp: Evaluation
    """The same photographs without blur, compared with their output."""

    def table(self) -> str:
        """The rows of a Markdown table."""
        lines = ["| on | metric | blurred | deblurred | gain |", "|---|---|---|---|---|"]
        for name, evaluation in (("real blur", self.real), ("synthetic blur, unseen photographs", self.synthetic)):
            for metric, digits in (("psnr", 2), ("ssim_gauss2d", 4), ("ssim_matlab3d", 4)):
                before, after = evaluation.blurred[metric], evaluation.deblurred[metric]
                row = f"{before:.{digits}f} | {after:.{digits}f} | {after - before:+.{digits}f}"
                lines.append(f"| {name}: {evaluation.data} ({len(evaluation.rows)} pairs) | {metric} | {row} |")
        kept = [row.deblurred["psnr"] for row in self.sharp.rows]
        lines.append(
            f"| {len(kept)} sharp photographs against themselves | psnr | | {statistics.fmean(kept):.2f} "
            f"(least {min(kept):.2f}) | |"
        )
        return "\n".join(lines)


def measure(model: LMFN, real: PairSet, photos: Path | None, folder: Path) -> Measures:
    """Measure a network on real pairs and on sharp photographs (default: `HELD_OUT` of scikit-image).

    The blurred photographs are written to `folder`, which must be empty. Raises what `find_pairs`, `synth` and
    `evaluate` raise, and ModuleNotFoundError without photographs and scikit-image.
    """
    if photos is None:
        import skimage.data

        photos = folder / "photos"
        photos.mkdir(parents=True)
        for name in HELD_OUT:
            shutil.copy(Path(skimage.data.__file__).parent / name, photos)
    report = synth(photos, folder / "unseen", seed=1, count=3, blur=BLUR)
    if not report.ok:
        raise ValueError(report.text())
    blurred = find_pairs(folder / "unseen")
    sharp = {pair.sharp.parent: Pair(pair.sharp.parent.name, pair.sharp, pair.sharp) for pair in blurred}
    device = choose_device()
    return Measures(
        evaluate(model, real, protocol="gopro", device=device),
        evaluate(model, blurred, protocol="plain", device=device),
        evaluate(model, replace(blurred, pairs=tuple(sharp.values())), protocol="plain", device=device),
    )


@dataclass(frozen=True)
class Stage:
    """One training run that led to weights."""

    settings: Settings
    steps: int
    lr: float
    """The last recorded learning rate: the end of the cosine, unless the run was stopped."""
    torch: str
    device: str
    """The kind of device, without a number."""
    processes: int
    hours: float
    """Training time, summed over CPU threads or GPUs."""

    def text(self) -> str:
        """The run as an item of a Markdown list, with only the last component of paths."""
        s = self.settings
        data = ", ".join(f"{source_name(source)} ({source.kind}, {source.weight:g})" for source in s.sources)
        before = f"from random weights, seed {s.seed}"
        if s.start_from:
            fitting = " that fit another network" if s.preset or s.network else ""
            before = f"from the weights of `{run_folder(s.start_from).name}`{fitting}"
        loss = f"{s.loss} + {s.fft:g} fft" if s.fft else s.loss
        clipped = f"gradients clipped at {s.clip:g}, " if s.clip else ""
        return (
            f"- `{s.name}`, {before}: {self.steps:,} steps of {self.processes * s.batch * s.accumulate} patches of "
            f"{s.patch}x{s.patch}: {data}; paths of {s.blur.length[0]:g} to {s.blur.length[1]:g} pixels; loss {loss}, "
            f"Adam, rate {s.lr:g} to {self.lr:.2g} by a cosine after {s.warmup} steps of warm-up, {clipped}EMA "
            f"{s.ema:g}, {s.precision}; torch {self.torch} on {self.device}, {self.hours:.2g} {self.unit}"
        )

    @property
    def unit(self) -> str:
        """The unit of its hours."""
        return "core-hours" if self.device == "cpu" else "GPU-hours"


def source_name(source: Source) -> str:
    """The end of a source's path, without the part that is specific to the machine."""
    path = Path(source.path)
    last = f"{path.parent.name}/{path.name}" if path.name in ("blur", "sharp") else path.name
    return last + (" unblurred" if source.sharp == source.path else "")


def origin(source: Source) -> str:
    """Origin and licence of a source's data, by the names in its path."""
    known = [ORIGINS[part] for part in reversed(Path(source.path).parts) if part in ORIGINS]
    return known[0] if known else f"{source_name(source)}, of their own"


def stages(run: Path) -> list[Stage]:
    """The runs that led to a run's weights, oldest first, as far as their folders still exist."""
    if not (run / "config.yaml").is_file():
        return []
    settings = Settings.read(run / "config.yaml")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    earlier = stages(run_folder(settings.start_from)) if settings.start_from else []
    lr = next((record["lr"] for record in reversed(records) if "lr" in record), settings.lr)
    hours = seconds = 0.0
    for record in records:
        if record.get("event") == "start":  # one for each part of a resumed run
            start = {**record, "device": record["device"].partition(":")[0]}
        if "seconds" in record:
            units = start["processes"] * (start["threads"] if start["device"] == "cpu" else 1)
            hours += units * (record["seconds"] - seconds) / 3600
            seconds = record["seconds"]
    stage = Stage(settings, records[-1]["step"], lr, start["torch"], start["device"], start["processes"], hours)
    return [*earlier, stage]


def run_folder(start: Path) -> Path:
    """The folder of a run, given that folder or a file in it."""
    return start.parent if start.suffix == ".safetensors" else start


def weights_file(run: Path) -> Path:
    """A run's averaged weights, or the file itself."""
    return run / "ema.safetensors" if (run / "ema.safetensors").is_file() else run


def averaged(model: LMFN, earlier: Path, share: float) -> LMFN:
    """The network averaged with `share` of an earlier run's weights. Raises ValueError if the networks differ."""
    other = LMFN.from_pretrained(weights_file(earlier))
    if other.config != model.config or not 0 < share < 1:
        raise ValueError(f"--average {earlier} {share:g}: it must be the same network, with a share between 0 and 1")
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        mine.data.lerp_(its.data, share)
    return model


def card(
    name: str,
    model: LMFN,
    measures: Measures,
    history: list[Stage],
    average: tuple[Path, float] | None,
    digest: str,
) -> str:
    """The model card, in Markdown."""
    shipped = name in weights.NAMES
    choice = "" if name == "lmfn" else f" --weights {name if shipped else f'{name}.safetensors'}"
    failures = FAILURES.read_text(encoding="utf-8") if shipped else "Not known: they have not been looked for.\n"
    config = ", ".join(f"{key}={value}" for key, value in asdict(model.config).items())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    recipe = "\n".join(stage.text() for stage in history) or "Not known: the run's folder was not given."
    if average is not None:
        recipe += (
            f"\n- shipped: {1 - average[1]:.0%} of these weights and {average[1]:.0%} of those of `{average[0].name}`"
        )
    if history:
        units = sorted({stage.unit for stage in history})
        spent = (f"{sum(stage.hours for stage in history if stage.unit == unit):.1f} {unit}" for unit in units)
        recipe += f"\n\nTogether {' and '.join(spent)}."
    origins = {origin(source) for stage in history for source in stage.settings.sources}
    data = "\n".join(f"- {text}" for text in sorted(origins))
    return f"""---
license: apache-2.0
library_name: lmfn
tags: [image-deblurring, image-to-image]
training_data:
{data or "- not known"}
---
# {name}.safetensors

Weights of LMFN for photographs blurred by motion. SHA-256 `{digest}`.

    lmfn deblur photo.jpg{choice}

{parameters:,} parameters, stored as float16, used as float32. This card was made by experiments/weights/card.py.

## Measured

{measures.table()}

Real blur is measured by protocol `gopro`, the other sets by `plain` (the same rules), in float32 with torch
{torch.__version__}.

## Known failures

{failures}
## Training

{recipe}

In parentheses: the kind of source and its share. Training data:

{data or "- not known"}

## Network

`LMFNConfig`: {config}
"""


def ship(model: LMFN, out: Path, name: str) -> str:
    """Write the weights as float16 and add their checksum to the folder's list; the checksum."""
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"the weights' {key} has values outside the range of float16; they cannot be shipped")
    file = out / f"{name}.safetensors"
    checkpoint.write(file, tensors, {"config": asdict(model.config)})
    digests = weights.checksums(out) | {file.name: weights.sha256(file)}
    lines = [f"{digest}  {file_name}\n" for file_name, digest in sorted(digests.items())]
    atomic.write(out / "SHA256SUMS", "".join(lines).encode())
    return digests[file.name]


SIDE = 192


def crops(model: LMFN, evaluations: Sequence[tuple[Evaluation, PairSet]]) -> np.ndarray:
    """Blurred, deblurred and sharp crops side by side, uint8, one column per set: the images with the largest, the
    median and the smallest gain, each at its most improved crop, the last at its least improved one."""
    columns = []
    for evaluation, pairs in evaluations:
        gains = sorted(evaluation.rows, key=lambda row: row.blurred["psnr"] - row.deblurred["psnr"])
        by_name = {pair.name: pair for pair in pairs}
        chosen = [by_name[row.name] for row in (gains[0], gains[len(gains) // 2], gains[-1])]
        rows = [triple(model, pair, best=pair != chosen[-1]) for pair in chosen]
        columns.append(np.concatenate([np.pad(row, ((4, 4), (4, 4), (0, 0)), constant_values=255) for row in rows]))
    return np.concatenate(columns, axis=1)


@torch.inference_mode()
def triple(model: LMFN, pair: Pair, best: bool) -> np.ndarray:
    """A crop of one pair and its output, where the squared error falls most (or grows most)."""
    blurred, sharp = (
        torch.from_numpy(images.read_rgb(path)).movedim(2, 0)[None] / 255 for path in (pair.blurred, pair.sharp)
    )
    device = next(model.parameters()).device
    output = model(blurred.to(device)).clamp(0, 1).cpu()
    gain = ((blurred - sharp).square() - (output - sharp).square()).mean(1, keepdim=True)
    side = min(SIDE, *gain.shape[2:])
    felt = F.avg_pool2d(gain, side, stride=8)[0, 0]
    place = int(felt.argmax() if best else felt.argmin())
    top, left = 8 * (place // felt.shape[1]), 8 * (place % felt.shape[1])
    parts = [pixels(image[0, :, top : top + side, left : left + side]) for image in (blurred, output, sharp)]
    return side_by_side(parts, SIDE)


@dataclass(frozen=True)
class Arguments:
    """Measure weights and print their model card; ship them with --out."""

    run: Positional[Path]
    """A run's folder (its averaged weights are used), or a weights file."""
    val: Path
    """Pairs with real blur that were never trained on."""
    photos: Path | None = None
    """Sharp photographs that were never trained on (default: five from scikit-image)."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Write NAME.safetensors (float16), NAME.md (the card) and a line of SHA256SUMS into this folder."""
    name: str | None = None
    """Their name (default: that of the run or the file)."""
    average: tuple[Path, float] | None = None
    """An earlier run's folder or weights, and its share in the shipped average: the average of a run and the run it
    started from can be better on new scenes than either (arXiv 2203.05482)."""
    crops: Path | None = None
    """Write six crops, blurred, deblurred and sharp, including failures, to this image."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's): 0, or 1 for an error, which is printed."""
    a = tyro.cli(Arguments, prog="card", args=arguments)
    logging.basicConfig(format="%(message)s")
    name = a.name or a.run.stem
    try:
        file = checkpoint.find_weights(weights_file(a.run))
        history = stages(a.run) if a.run.is_dir() else []
        real = find_pairs(a.val, split="test")
        with tempfile.TemporaryDirectory() as folder:
            rounded = Path(folder) / "weights"
            model = LMFN.from_pretrained(file)
            if a.average is not None:
                model = averaged(model, *a.average)
            ship(model, rounded, name)  # what is measured is what is shipped
            model = LMFN.from_pretrained(rounded / f"{name}.safetensors")
            measures = measure(model, real, a.photos, Path(folder))
            if a.crops is not None:
                unseen = find_pairs(Path(folder) / "unseen")
                picture = crops(model, [(measures.real, real), (measures.synthetic, unseen)])
                images.write(a.crops, images.Photo(picture))
        digest = weights.sha256(file) if a.out is None else ship(model, a.out, name)
        text = card(name, model, measures, history, a.average, digest)
        if a.out is not None:
            atomic.write(a.out / f"{name}.md", text.encode())
        print(text)
    except (ValueError, OSError, ModuleNotFoundError, ArithmeticError) as error:
        print(f"card: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
