"""Gain in dB of the included weights with ESA's small branch stretched, as trained, and on a fixed grid.

python experiments/attention/esa_grid.py DATA
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmfn import LMFN, data, images
from lmfn.deblur import Deblurrer
from lmfn.weights import NAMES


def psnr(image: np.ndarray, sharp: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((np.rint(image * 255) / 255 - sharp) ** 2, dtype=np.float64)))


def main() -> None:
    pairs = data.find_pairs(Path(sys.argv[1]))
    for name in NAMES:
        trained = LMFN.from_pretrained(name)
        networks = [LMFN(replace(trained.config, esa_grid=grid)) for grid in ("stretched", "fixed")]
        gains = []
        for network in networks:
            network.load_state_dict(trained.state_dict())
            deblurrer = Deblurrer(network, device="cpu", guard="off")
            for pair in pairs:
                blurred, sharp = (images.read_rgb(path).astype(np.float32) / 255 for path in (pair.blurred, pair.sharp))
                gains.append(psnr(deblurrer(blurred), sharp) - psnr(blurred, sharp))
        stretched, fixed = np.array(gains).reshape(2, -1)
        change = fixed - stretched
        print(
            f"{name}, {len(pairs)} pairs: stretched {stretched.mean():+.4f}, fixed {fixed.mean():+.4f}, "
            f"per image {change.min():+.3f} to {change.max():+.3f}"
        )


if __name__ == "__main__":
    main()
