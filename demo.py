"""The whole of LMFN in five minutes: `make demo`.

Photographs that scikit-image ships are blurred by random camera paths, LMFN is trained on some of them, measured on the
others, and a blurred one is sharpened on the command line. Everything is in runs/demo: report.json, before-after.png.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import skimage.data

from lmfn import LMFN, checkpoint, cli, images
from lmfn.data import BlurOptions, find_pairs, synth
from lmfn.device import choose_device, has_fast_bf16
from lmfn.evaluate import Evaluation, evaluate

RUN = Path("runs/demo")
MINUTES = 3.75
BLUR = BlurOptions(length=(2, 10), rotation=(0, 2), highlights=(1, 1))
TRAINED_ON = (
    *("astronaut.png", "camera.png", "motorcycle_left.png", "motorcycle_right.png", "coins.png", "moon.png"),
    *("hubble_deep_field.jpg", "retina.jpg", "ihc.png", "brick.png", "grass.png", "gravel.png"),
)
NEVER_SEEN = ("chelsea.png", "coffee.png", "rocket.jpg")


def prepare() -> None:
    """Photographs to train on, and blurred pairs of the others."""
    if RUN.exists():
        shutil.rmtree(RUN)
    shipped = Path(skimage.data.__file__).parent
    for folder, names in (("photos", TRAINED_ON), ("unseen", NEVER_SEEN)):
        (RUN / "data" / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(shipped / name, RUN / "data" / folder)
    synth(RUN / "data" / "unseen", RUN / "data" / "pairs", seed=1, count=3, blur=BLUR)


def train() -> None:
    fast = has_fast_bf16(choose_device())
    settings = {
        "name": RUN.name,
        "runs": str(RUN.parent),
        "photos": str(RUN / "data" / "photos"),
        "blur": {name: list(getattr(BLUR, name)) for name in ("length", "rotation", "highlights")},
        "network": {"similarity": "cosine", "head": "pixelshuffle"},
        "minutes": MINUTES,
        "precision": "bf16" if fast else "fp32",
        "patch": 64,
        "batch": 8,
        "lr": 1e-3,
        "warmup": 50,
        "loss": "l1",
        "ema": 0.99,
        "workers": 1,
        "save_every": 1_000_000,
        "val_every": 1_000_000,
    }
    file = RUN / "settings.yaml"
    checkpoint.replace_file(file, json.dumps(settings, indent=2).encode())  # JSON is YAML
    script = Path(__file__).with_name("train.py")
    subprocess.run([sys.executable, str(script), "--config", str(file)], check=True)


def sharpen(name: str) -> None:
    """An unseen pair through the command line, and a picture of before, after and the truth."""
    blurred, sharp = (RUN / "data" / "pairs" / kind / f"{name}.png" for kind in ("blur", "sharp"))
    out = RUN / "deblurred.png"
    command = ["deblur", str(blurred), "-o", str(out), "--weights", str(RUN / "ema.safetensors")]
    print(f"\n$ lmfn {' '.join(command)}")
    if cli.main(command):
        sys.exit("the command failed")
    shown = [images.read_rgb(path) for path in (blurred, out, sharp)]
    height, width = (min(length, 300) for length in shown[0].shape[:2])
    top, left = ((length - part) // 2 for length, part in zip(shown[0].shape[:2], (height, width), strict=True))
    crops = [image[top : top + height, left : left + width] for image in shown]
    picture = np.concatenate(crops, axis=1).repeat(2, axis=0).repeat(2, axis=1)
    images.write(RUN / "before-after.png", images.Photo(picture.astype(np.float32) / 255))


def report(evaluation: Evaluation, seconds: float) -> None:
    """The figures on the screen and in report.json."""
    before, after = evaluation.blurred, evaluation.deblurred
    content = {
        "psnr_blurred": before["psnr"],
        "psnr_deblurred": after["psnr"],
        "ssim_blurred": before["ssim_gauss2d"],
        "ssim_deblurred": after["ssim_gauss2d"],
        "seconds": seconds,
        "minutes_trained": MINUTES,
        "evaluation": evaluation.to_dict(),
    }
    checkpoint.replace_file(RUN / "report.json", (json.dumps(content, indent=2) + "\n").encode())
    print(f"\nOn {len(NEVER_SEEN)} photographs it has never seen, each blurred three times:\n\n{evaluation.table()}")
    print(f"\nA {MINUTES:g}-minute model, in {seconds:.0f} s.")
    print(f"The one that gained most, blurred, deblurred and sharp: {RUN / 'before-after.png'}")


def main() -> None:
    start = time.perf_counter()
    prepare()
    train()
    model = LMFN.from_pretrained(RUN / "ema.safetensors")
    pairs = find_pairs(RUN / "data" / "pairs")
    evaluation = evaluate(model, pairs, protocol="plain", device=choose_device(), weights=str(RUN / "ema.safetensors"))
    sharpen(max(evaluation.rows, key=lambda row: row.deblurred["psnr"] - row.blurred["psnr"]).name)
    report(evaluation, time.perf_counter() - start)


if __name__ == "__main__":
    main()
