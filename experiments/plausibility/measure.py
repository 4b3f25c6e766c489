"""Count the implausible windows of photographs and blurred frames, and of sharp regular patterns.

python experiments/plausibility/measure.py PHOTO_OR_FOLDER ...
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from lmfn import Deblurrer, images
from lmfn.plausibility import implausibility, implausible_regions


def patterns() -> Iterator[tuple[str, np.ndarray]]:
    """Sharp patterns of 256x256 pixels by name, gray from 0.1 to 0.9."""
    rows, columns = np.mgrid[:256, :256]
    for period in (2, 3, 4, 6, 8, 12, 16, 32):
        yield f"checks of {period} px", (rows // period + columns // period) % 2 * 0.8 + 0.1
        yield f"stripes of {period} px", columns // period % 2 * 0.8 + 0.1
    yield "zone plate", 0.5 + 0.4 * np.cos((rows**2 + columns**2) * math.pi / 512)


def main() -> None:
    deblur = Deblurrer("lmfn", guard="off")

    def report(name: str, image: np.ndarray) -> None:
        output = deblur(image)
        x, y = torch.from_numpy(image), torch.from_numpy(output)
        psnr = -10 * math.log10(max(float(((output - image) ** 2).mean()), 1e-10))
        found = implausibility(x, y) or implausible_regions(x, y) or "is plausible"
        print(f"{name}: comes back at {psnr:.1f} dB; {found}")

    for name, pattern in patterns():
        report(name, np.repeat(pattern[:, :, None], 3, axis=2).astype(np.float32))
    for path in map(Path, sys.argv[1:]):
        for photo in images.find_images(path) if path.is_dir() else [path]:
            report(photo.name, images.read(photo).pixels[:, :, :3].astype(np.float32))


if __name__ == "__main__":
    main()
