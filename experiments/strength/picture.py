"""Write docs/strength.png: a photograph blurred by a path of 9 pixels, at strengths 0, 0.5, 1 and 1.5.

    python experiments/strength/picture.py docs/strength.png

The photograph is scikit-image's `astronaut` (NASA, public domain).
"""

import sys
import warnings

import numpy as np
from skimage import data

from lmfn import Deblurrer, images


def main() -> None:
    photograph: np.ndarray = data.astronaut()  # type: ignore[no-untyped-call]
    sharp = photograph[:320, 60:380].astype(np.float32) / 255
    blurred = np.stack([np.roll(sharp, (i // 2, i), (0, 1)) for i in range(-4, 5)]).mean(axis=0)
    crops = []
    for strength in (0.0, 0.5, 1.0, 1.5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            deblurrer = Deblurrer(device="cpu", strength=strength)
            crops.append(deblurrer(blurred)[60:220, 80:240])
    images.write(sys.argv[1], images.Photo(np.concatenate(crops, axis=1)))


if __name__ == "__main__":
    main()
