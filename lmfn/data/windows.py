"""Cut pairs into windows on disk, so that a training patch costs the decoding of a window instead of an image.

A data set larger than the memory is decoded again for every patch. A patch of 256x256 pixels from images of 1920x1200
(RSBlur) then decodes 35 times its pixels, from windows of 512x512 four times.
"""

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from lmfn import images
from lmfn.data.layouts import DataError, Pair, PairSet


def cut(pairs: PairSet, out: str | Path, *, side: int = 512, overlap: int = 128) -> int:
    """Write pairs as windows OUT/blur/NAME/TOP_LEFT.png and OUT/sharp/NAME/TOP_LEFT.png, for `find_pairs(out)` to read.

    Windows are `side` pixels high and wide, or as large as a smaller image, at equal distances, and share at least
    `overlap` pixels with their neighbours, so that patches fit across a border. Returns the number of pairs written.

    Raises ValueError for a side below 1 or an overlap that is negative or not below the side, DataError for an OUT that
    is not empty and for partners of different sizes, ImageError for an image that cannot be read or written.
    """
    out = Path(out)
    if side < 1 or not 0 <= overlap < side:
        raise ValueError(f"side is {side} and overlap {overlap}; an overlap must be from 0 to below the side")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder; remove it or name another one")

    def write(pair: Pair) -> int:
        blurred, sharp = images.read_rgb(pair.blurred), images.read_rgb(pair.sharp)
        if blurred.shape != sharp.shape:
            raise DataError(f"{pair.blurred} and its partner {pair.sharp} must have the same size")
        places = list(_windows(sharp.shape[:2], side, overlap))
        for top, left in places:
            for kind, image in (("blur", blurred), ("sharp", sharp)):
                window = image[top : top + side, left : left + side]
                photo = images.Photo(window)
                images.write(out / kind / pair.name / f"{top:05d}_{left:05d}.png", photo)
        return len(places)

    with ThreadPoolExecutor() as pool:  # decoding and encoding release the GIL
        return sum(tqdm(pool.map(write, pairs), desc="cut", total=len(pairs), unit="pair", disable=None))


def _windows(size: tuple[int, ...], side: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Tops and lefts of the windows of an image of that height and width."""

    def starts(length: int) -> list[int]:
        count = max(1, math.ceil((length - overlap) / (side - overlap)))
        return [round(n * max(0, length - side) / max(1, count - 1)) for n in range(count)]

    return itertools.product(starts(size[0]), starts(size[1]))
