"""LMFN in two minutes: `make demo`.

Sharpens a photograph with the included weights, measures these on photographs they have never seen, and fine-tunes them
for a minute to one kind of blur, straight motion. The photographs are scikit-image's. The results are in runs/demo:
report.json, before-after.png.
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import skimage.data

from lmfn import LMFN, atomic, cli, images
from lmfn.data import BlurKinds, BlurOptions, find_pairs, synth
from lmfn.device import choose_device, has_fast_bf16
from lmfn.evaluation import Evaluation, evaluate
from lmfn.evaluation.pictures import middle, side_by_side

RUN = Path("runs/demo")
MARK = "made-by-demo"  # an empty file: a folder without it belongs to the user and is left alone
MINUTES = 1.0
PATCH = 256
BLUR = BlurOptions(
    BlurKinds.only("shake"), length=(8, 12), curvature=(0, 0), rotation=(0, 0), highlights=(1, 1), labels=0, jpeg=0
)
FINE_TUNED_ON = (
    *("astronaut.png", "camera.png", "motorcycle_left.png", "motorcycle_right.png", "coins.png", "moon.png"),
    *("hubble_deep_field.jpg", "retina.jpg", "ihc.png", "brick.png", "grass.png", "gravel.png"),
)
NEVER_SEEN = ("chelsea.png", "coffee.png", "rocket.jpg")
SHOWN = "coffee/2"  # the most blurred of the nine


def prepare() -> None:
    """Prepare photographs to fine-tune on, and blurred pairs of the others."""
    if RUN.exists():
        if not (RUN / MARK).exists():
            sys.exit(f"{RUN} was not made by this demo: move or rename it")
        shutil.rmtree(RUN)
    RUN.mkdir(parents=True)
    (RUN / MARK).touch()
    shipped = Path(skimage.data.__file__).parent
    for folder, names in (("photos", FINE_TUNED_ON), ("unseen", NEVER_SEEN)):
        (RUN / "data" / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(shipped / name, RUN / "data" / folder)
    synth(RUN / "data" / "unseen", RUN / "data" / "pairs", seed=1, count=3, blur=BLUR)


def sharpen() -> None:
    """Sharpen a blurred photograph by the command line, and save an image of before, after and the sharp original."""
    blurred, sharp = (RUN / "data" / "pairs" / kind / f"{SHOWN}.png" for kind in ("blur", "sharp"))
    out = RUN / "deblurred.png"
    command = ["deblur", str(blurred), "-o", str(out)]
    print(f"\n$ lmfn {' '.join(command)}")
    start = time.perf_counter()
    if cli.main(command):
        sys.exit("the command failed")
    print(f"{time.perf_counter() - start:.1f} s")
    shown = [images.read_rgb(path) for path in (blurred, out, sharp)]
    picture = side_by_side([middle(image, 300, 300) for image in shown]).repeat(2, axis=0).repeat(2, axis=1)
    images.write(RUN / "before-after.png", images.Photo(picture))


def measure(weights: str) -> Evaluation:
    pairs = find_pairs(RUN / "data" / "pairs")
    return evaluate(
        LMFN.from_pretrained(weights),
        pairs,
        protocol="plain",
        metrics=("psnr", "ssim_gauss2d"),
        device=choose_device(),
        weights=weights,
        progress=False,
    )


def tune() -> None:
    """Fine-tune as docs/training.md recommends, with a settings file."""
    settings = {
        "name": RUN.name,
        "runs": str(RUN.parent),
        "start_from": "lmfn",
        "photos": str(RUN / "data" / "photos"),
        "blur": dataclasses.asdict(BLUR),
        "minutes": MINUTES,
        "precision": "bf16" if has_fast_bf16(choose_device()) else "fp32",
        "patch": PATCH,
        "batch": 2,
        "lr": 1e-4,
        "warmup": 20,
        "clip": 1.0,
        "loss": "l1",
        "fft": 1.0,
        "ema": 0.98,
        "save_every": 1_000_000,
        "val_every": 1_000_000,
    }
    file = RUN / "settings.yaml"
    atomic.write(file, json.dumps(settings, indent=2).encode())  # JSON is YAML
    script = Path(__file__).with_name("train.py")
    subprocess.run([sys.executable, str(script), "--config", str(file)], check=True)


def report(shipped: Evaluation, tuned: Evaluation, seconds: float) -> None:
    """Print the figures and write report.json."""
    content = {
        "psnr_blurred": shipped.blurred["psnr"],
        "psnr_deblurred": shipped.deblurred["psnr"],
        "psnr_tuned": tuned.deblurred["psnr"],
        "ssim_blurred": shipped.blurred["ssim_gauss2d"],
        "ssim_deblurred": shipped.deblurred["ssim_gauss2d"],
        "ssim_tuned": tuned.deblurred["ssim_gauss2d"],
        "seconds": seconds,
        "minutes_trained": MINUTES,
        "evaluation": shipped.to_dict(),
        "evaluation_tuned": tuned.to_dict(),
    }
    atomic.write(RUN / "report.json", (json.dumps(content, indent=2) + "\n").encode())
    print(f"\nOn {len(NEVER_SEEN)} photographs that no weights have seen, each blurred three times:\n")
    print(f"{'':<15}{'blurred':>10}{'shipped':>10}{f'tuned {MINUTES:g} min':>14}")
    for label, metric, digits in (("PSNR (dB)", "psnr", 2), ("SSIM gauss2d", "ssim_gauss2d", 4)):
        figures = (shipped.blurred[metric], shipped.deblurred[metric], tuned.deblurred[metric])
        print(f"{label:<15}" + "".join(f"{f:>{w}.{digits}f}" for f, w in zip(figures, (10, 10, 14), strict=True)))
    print(f"\nTotal: {seconds:.0f} s. Blurred, deblurred and sharp, side by side: {RUN / 'before-after.png'}")


def main() -> None:
    start = time.perf_counter()
    prepare()
    sharpen()
    shipped = measure("lmfn")
    print(f"\nFine-tuning the shipped weights to this kind of blur for {60 * MINUTES:.0f} s:\n")
    tune()
    report(shipped, measure(str(RUN / "ema.safetensors")), time.perf_counter() - start)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
