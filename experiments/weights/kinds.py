"""Measure weights on every kind of synthetic image, from photographs that no weights were trained on.

python experiments/weights/kinds.py lmfn runs/first/ema.safetensors
"""

import statistics
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import skimage.data
from card import HELD_OUT

from lmfn import Deblurrer, images
from lmfn.data.synthesis import Image, blur_photo
from lmfn.options import BlurKind, BlurKinds, BlurOptions

SIDE = 256
PER_PHOTO = 1


def pictures(kind: BlurKind) -> list[tuple[Image, Image]]:
    """Blurred and sharp images of the centre of each photograph, `PER_PHOTO` times."""
    made = []
    for n, name in enumerate(HELD_OUT):
        photo = images.read_rgb(Path(skimage.data.__file__).parent / name)
        top, left = ((length - SIDE) // 2 for length in photo.shape[:2])
        middle = photo[top : top + SIDE, left : left + SIDE]
        blur = BlurOptions(BlurKinds.only(kind), length=(4, 20))
        made += [blur_photo(middle, np.random.default_rng((1, n, m)), blur) for m in range(PER_PHOTO)]
    return made


def psnr(image: np.ndarray, sharp: Image) -> float:
    """PSNR in dB of 8-bit values; 99 if they are equal."""
    error = np.square(image.astype(np.float64) - sharp).mean()
    return float(10 * np.log10(255**2 / error)) if error else 99.0


def main(names: list[str]) -> None:
    deblurrers = [Deblurrer(name, guard="off") for name in names]
    print("| kind | blurred | " + " | ".join(names) + " |")
    print("|---" * (2 + len(names)) + "|")
    for kind in get_args(BlurKind):
        pairs = pictures(kind)
        before = [psnr(blurred, sharp) for blurred, sharp in pairs]
        cells = []
        for deblur in deblurrers:
            after = [psnr(np.rint(deblur(blurred / np.float32(255)) * 255), sharp) for blurred, sharp in pairs]
            if min(before) == 99:  # to be left alone
                cells.append(f"{statistics.fmean(after):.1f} (least {min(after):.1f})")
            else:
                cells.append(f"{statistics.fmean(after) - statistics.fmean(before):+.2f}")
        shown = "left alone" if min(before) == 99 else f"{statistics.fmean(before):.2f}"
        print(f"| {kind} | {shown} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
