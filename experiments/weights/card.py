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
import yaml
from huggingface_hub import ModelCard
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
    "photos_open": "open photographs: CID22's validation set, ubuntu-mate-artwork (CC BY-SA), unsplash.com (Unsplash "
    "licence), budgie-backgrounds, elementary (CC0)",
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
        lines = [
            "| on | metric | blurred | deblurred | gain | median gain | least gain |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, evaluation in (("real blur", self.real), ("synthetic blur, unseen photographs", self.synthetic)):
            for metric, digits in (("psnr", 2), ("ssim_gauss2d", 4), ("ssim_matlab3d", 4)):
                gains = [row.deblurred[metric] - row.blurred[metric] for row in evaluation.rows]
                cells = [f"{mean[metric]:.{digits}f}" for mean in (evaluation.blurred, evaluation.deblurred)]
                cells += [f"{of(gains):+.{digits}f}" for of in (statistics.fmean, statistics.median, min)]
                of_pairs = f"{name}: {evaluation.data} ({len(gains)} pairs)"
                lines.append(f"| {' | '.join([of_pairs, metric, *cells])} |")
        kept = [row.deblurred["psnr"] for row in self.sharp.rows]
        lines.append(
            f"| {len(kept)} sharp photographs against themselves | psnr | | {statistics.fmean(kept):.2f}, "
            f"median {statistics.median(kept):.2f}, least {min(kept):.2f} | | | |"
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
    """One training run that led to weights. A card's header keeps them, for the cards of weights that start from its
    own."""

    text: str
    """Its settings, an item of a Markdown list."""
    pixels: int
    """Of all patches that it was trained on."""
    shares: dict[str, float]
    """Each data set's share of these patches."""
    hours: float
    """Training time, summed over CPU threads or GPUs."""
    unit: str
    """Of its hours: core-hours or GPU-hours."""


def stage(
    settings: Settings, steps: int, lr: float, torch_version: str, device: str, processes: int, hours: float
) -> Stage:
    """A run of `steps` steps, of which `lr` is the last recorded learning rate: the end of the cosine, unless it was
    stopped. `device` is its kind, without a number, and of paths the text has only the last component."""
    s = settings
    before = f"from random weights, seed {s.seed}"
    if s.start_from:
        fitting = " that fit another network" if s.preset or s.network else ""
        before = f"from the weights of `{run_folder(s.start_from).name}`{fitting}"
    data = ", ".join(f"{source_name(source)} ({source.kind}, {source.weight:g})" for source in s.sources)
    kinds = ", ".join(f"{kind} {share:g}" for kind, share in asdict(s.blur.kinds).items() if share)
    loss = f"{s.loss} + {s.fft:g} fft" if s.fft else s.loss
    frozen = f"{', '.join(s.freeze)} frozen; " if s.freeze else ""
    decay = f"weight decay {s.weight_decay:g}, " if s.weight_decay else ""
    clipped = f"gradients clipped at {s.clip:g}, " if s.clip else ""
    patches, unit = processes * s.batch * s.accumulate, "core-hours" if device == "cpu" else "GPU-hours"
    text = (
        f"`{s.name}`, {before}: {steps:,} steps of {patches} patches of {s.patch}x{s.patch}: {data}; paths of "
        f"{s.blur.length[0]:g} to {s.blur.length[1]:g} pixels ({kinds}); {frozen}loss {loss}, Adam ({s.betas[0]:g}, "
        f"{s.betas[1]:g}), rate {s.lr:g} to {lr:.2g} by a cosine after {s.warmup} steps of warm-up, {decay}{clipped}"
        f"EMA {s.ema:g}, {s.precision}; torch {torch_version} on {device}, {hours:.2g} {unit}"
    )
    weight = sum(source.weight for source in s.sources)
    shares: dict[str, float] = {}
    for source in s.sources:
        shares[data_set(source)] = round(shares.get(data_set(source), 0) + source.weight / weight, 4)
    return Stage(text, steps * patches * s.patch**2, shares, hours, unit)


def untrained(text: str) -> Stage:
    """What was done to weights after their training."""
    return Stage(text, 0, {}, 0, "core-hours")


def source_name(source: Source) -> str:
    """The end of a source's path, without the part that is specific to the machine."""
    path = Path(source.path)
    last = f"{path.parent.name}/{path.name}" if path.name in ("blur", "sharp") else path.name
    return last + (" unblurred" if source.sharp == source.path else "")


def data_set(source: Source) -> str:
    """The name in `ORIGINS` that a source's path has, or its own."""
    known = [part for part in reversed(Path(source.path).parts) if part in ORIGINS]
    return known[0] if known else source_name(source)


def origin(name: str) -> str:
    """Origin and licence of a data set."""
    return ORIGINS.get(name, f"{name}, of their own")


def stages(run: Path) -> list[Stage]:
    """The runs that led to a run's weights, oldest first, as far as their folders still exist, or the card of shipped
    weights from which the first of them started."""
    if str(run) in weights.NAMES:
        header = ModelCard.load(weights.FOLDER / f"{run}.md").data.to_dict()
        return [Stage(**known) for known in header["training"]]
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
    last = stage(settings, records[-1]["step"], lr, start["torch"], start["device"], start["processes"], hours)
    return [*earlier, last]


def run_folder(start: Path) -> Path:
    """The folder of a run, given that folder or a file in it."""
    return start.parent if start.suffix == ".safetensors" else start


def weights_file(run: Path) -> Path:
    """A run's averaged weights, or the file itself."""
    return run / "ema.safetensors" if (run / "ema.safetensors").is_file() else run


def averaged(model: LMFN, earlier: Path, share: float) -> LMFN:
    """The network averaged with `share` of the weights of an earlier run, or of shipped ones by their name. Raises
    ValueError if the networks differ."""
    other = LMFN.from_pretrained(weights_file(earlier))
    if other.config != model.config or not 0 < share < 1:
        raise ValueError(f"--average {earlier} {share:g}: it must be the same network, with a share between 0 and 1")
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        mine.data.lerp_(its.data, share)
    return model


def heat(model: LMFN, factor: float) -> None:
    """Multiply ALFM's temperature. Raises ValueError if the network has none."""
    temperature = model.state_dict().get("alfm.temperature")
    if temperature is None:
        raise ValueError(f"--temperature {factor:g}: only ALFM with cosines has a temperature (similarity=cosine)")
    temperature.mul_(factor)


def card(
    name: str,
    model: LMFN,
    measures: Measures,
    history: list[Stage],
    digest: str,
) -> str:
    """The model card, in Markdown."""
    shipped = name in weights.NAMES
    choice = "" if name == "lmfn" else f" --weights {name if shipped else f'{name}.safetensors'}"
    failures = FAILURES.read_text(encoding="utf-8") if shipped else "Not known: they have not been looked for.\n"
    config = ", ".join(f"{key}={value}" for key, value in asdict(model.config).items())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = [stage for stage in history if stage.pixels]
    paragraphs = [] if trained else ["Not known: the run's folder was not given."]
    if history:
        paragraphs.append("\n".join(f"- {stage.text}" for stage in history))
    if trained:
        units = sorted({stage.unit for stage in trained})
        spent = (f"{sum(stage.hours for stage in trained if stage.unit == unit):.1f} {unit}" for unit in units)
        paragraphs.append(f"Together {' and '.join(spent)}.")
    recipe = "\n\n".join(paragraphs)
    shares = shares_of(history)
    sources = "\n".join(f"| {source} | {share:.1%} |" for source, share in shares.items())
    header = {
        "license": "apache-2.0",
        "library_name": "lmfn",
        "tags": ["image-deblurring", "image-to-image"],
        "training_data": list(shares) or ["not known"],
        "training": [asdict(stage) for stage in history],
    }
    return f"""---
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)}---
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

In parentheses: the kind of source and its weight. Of the pixels of all patches:

| source, licence | share |
|---|---|
{sources or "| not known | |"}

## Network

`LMFNConfig`: {config}
"""


def shares_of(history: list[Stage]) -> dict[str, float]:
    """The origin of each data set, with its share of the pixels of all patches, the largest first."""
    pixels: dict[str, float] = {}
    for stage in history:
        for name, share in stage.shares.items():
            pixels[name] = pixels.get(name, 0) + stage.pixels * share
    found = sorted(pixels.items(), key=lambda item: -item[1])
    return {origin(name): count / sum(pixels.values()) for name, count in found}


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
    temperature: float | None = None
    """Factor for ALFM's temperature, which may be better on whole photographs than the one learned on patches."""
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
                share, other = a.average[1], a.average[0].name
                text = f"shipped: {1 - share:.0%} of these weights and {share:.0%} of those of `{other}`"
                history.append(untrained(text))
            if a.temperature is not None:
                heat(model, a.temperature)
                history.append(untrained(f"ALFM's temperature times {a.temperature:g}"))
            ship(model, rounded, name)  # what is measured is what is shipped
            model = LMFN.from_pretrained(rounded / f"{name}.safetensors")
            measures = measure(model, real, a.photos, Path(folder))
            if a.crops is not None:
                unseen = find_pairs(Path(folder) / "unseen")
                picture = crops(model, [(measures.real, real), (measures.synthetic, unseen)])
                images.write(a.crops, images.Photo(picture))
        digest = weights.sha256(file) if a.out is None else ship(model, a.out, name)
        text = card(name, model, measures, history, digest)
        if a.out is not None:
            atomic.write(a.out / f"{name}.md", text.encode())
        print(text)
    except (ValueError, OSError, ModuleNotFoundError, ArithmeticError) as error:
        print(f"card: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
