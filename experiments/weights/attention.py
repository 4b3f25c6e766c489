"""What the included weights gain with each form of attention: its window, and ESA's grid.

    python experiments/weights/attention.py DATA

DATA holds pairs of blurred and sharp photographs. Beside them, scikit-image's photographs (`HELD_OUT` of
experiments/weights/card.py): blurred as in a model card, sharp, and as charts (text, regular patterns, flat areas). The
last two are to be left alone; their PSNR is that of the output against the input. `seams` is the step across the lines
between the blocks of a window of 384, relative to that of all other neighbouring rows and columns, of the difference
between output and input.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from card import BLUR, HELD_OUT
from kinds import pictures, psnr

from lmfn import LMFN, data, images
from lmfn.deblur import Deblurrer
from lmfn.weights import NAMES

WINDOW = 384
ROWS: tuple[tuple[int | None, Literal["stretched", "fixed"]], ...] = ((None, "stretched"), (WINDOW, "fixed"))
"""Windows and grids: those of training, and those that are shipped."""


def photographs(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blurred and sharp, as in a model card."""
    import skimage.data

    source = Path(skimage.data.__file__).parent
    (folder / "photos").mkdir()
    for name in HELD_OUT:
        (folder / "photos" / name).write_bytes((source / name).read_bytes())
    data.synth(folder / "photos", folder / "unseen", seed=1, count=3, blur=BLUR)
    for pair in data.find_pairs(folder / "unseen"):
        yield images.read_rgb(pair.blurred), images.read_rgb(pair.sharp)


def steps(change: np.ndarray) -> tuple[float, float]:
    """Mean step of a change `[H, W, 3]` across the lines between blocks, and across all others."""
    across, others = [], []
    for axis in (0, 1):
        step = np.abs(np.diff(change, axis=axis)).mean(axis=(1 - axis, 2))
        line = np.zeros(len(step), bool)
        # The image begins after a border of 16 pixels.
        line[WINDOW // 2 - 16 - 1 :: WINDOW // 2] = True
        across.append(step[line])
        others.append(step[~line])
    return float(np.concatenate(across).mean()), float(np.concatenate(others).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", nargs="+", default=list(NAMES))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        synthetic = list(photographs(Path(folder)))
    real = [(images.read_rgb(p.blurred), images.read_rgb(p.sharp)) for p in data.find_pairs(given.data)]
    sharp = list({s.tobytes(): (s, s) for _, s in synthetic}.values())
    charts = [pair for kind in ("text", "pattern", "flat") for pair in pictures(kind)]
    print("| weights | window | grid | real | synthetic | sharp, mean and least | charts | seams |")
    print("|---" * 8 + "|", flush=True)
    for name in given.weights:
        trained = LMFN.from_pretrained(name)
        for window, grid in ROWS:
            network = LMFN(replace(trained.config, esa_grid=grid, alfm_window=window))
            network.load_state_dict(trained.state_dict())
            deblurrer, across, cells = Deblurrer(network, device="cpu", guard="off"), [], []
            for pairs in (real, synthetic, sharp, charts):
                before, after = [], []
                for blurred, target in pairs:
                    found = deblurrer(blurred)
                    before.append(psnr(blurred, target))
                    after.append(psnr(found, target))
                    if pairs is real:
                        across.append(steps(found.astype(np.float32) - blurred))
                same = min(before) == 99
                cells.append(
                    f"{np.mean(after):.2f}, {min(after):.2f}" if same else f"{np.mean(after) - np.mean(before):+.3f}"
                )
            at, elsewhere = np.mean(across, axis=0)
            cells.append(f"{at / elsewhere:.3f}")
            print(f"| {name} | {window} | {grid} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
