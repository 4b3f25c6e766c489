"""Print the PSNR of three frames, deblurred in float32 and in bfloat16 with the shipped weights.

python experiments/cpu-inference/precision.py DATA    # a folder with blur/ and sharp/
"""

import sys
from pathlib import Path

import numpy as np

from lmfn import Deblurrer, images


def main(folder: Path) -> None:
    for blurred in sorted((folder / "blur").glob("*"))[:13:6]:
        x, sharp = (images.read(folder / name / blurred.name).pixels.astype("float32") for name in ("blur", "sharp"))
        outputs = (Deblurrer(device="cpu", precision=precision)(x) for precision in ("fp32", "bf16"))
        print(blurred.name, *(f"{-10 * np.log10(np.mean((output - sharp) ** 2)):.3f}" for output in outputs))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
