"""How far tiles as darktable and as `lmfn web` cut them are from the whole image, in levels of 255.

The page's tiles are joined in the middle of their overlap, without blending.

python experiments/cpu-inference/tiles.py IMAGE
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from tyro.conf import Positional

from lmfn import LMFN, images
from lmfn.cuda_graphs import ImageFunction
from lmfn.export.darktable import OVERLAP
from lmfn.inference import for_inference, with_border

PAGE, BLOCK = 1152, 192
"""Side of the page's tiles, and half of their overlap (lmfn/web/page/tiles.js)."""


@dataclass(frozen=True)
class Arguments:
    image: Positional[Path]
    tiles: tuple[int, ...] = (512, 768, 1024)
    weights: tuple[str, ...] = ("lmfn", "lmfn-released")


def main(arguments: Arguments) -> None:
    x = torch.from_numpy(images.read(arguments.image).pixels[:, :, :3].copy()).permute(2, 0, 1)[None]
    for name in arguments.weights:
        run = with_border(for_inference(LMFN.from_pretrained(name), "cpu", torch.float32))
        whole = run(x).clamp(0, 1)
        made = {f"darktable's tiles of {tile}": tiled(run, x, tile) for tile in arguments.tiles}
        made |= {f"the page's tiles of {PAGE}": page_tiled(run, x), "the blurred image": x}
        for tiles, image in made.items():
            difference = 255 * (whole - image.clamp(0, 1)).abs()
            rms, most = difference.square().mean().sqrt(), np.quantile(difference.numpy(), 0.999)
            print(f"{name}, {tiles}: {difference.max():.1f} at most, 0.1 % above {most:.1f}, RMS {rms:.2f}", flush=True)


def tiled(run: ImageFunction, x: Tensor, tile: int) -> Tensor:
    step, (height, width) = tile - 2 * OVERLAP, x.shape[2:]
    rows, columns = -(-height // step), -(-width // step)
    sharp = x.new_zeros(1, 3, rows * step, columns * step)
    # Mirrored as darktable does it, as often as is needed.
    down, across = (mirrored(size, count * step + 2 * OVERLAP) for size, count in ((height, rows), (width, columns)))
    padded = x[:, :, down][..., across]
    for i in range(0, rows * step, step):
        for j in range(0, columns * step, step):
            part = run(padded[..., i : i + tile, j : j + tile])
            sharp[..., i : i + step, j : j + step] = F.pad(part, (-OVERLAP,) * 4)
    return sharp[..., :height, :width]


def page_tiled(run: ImageFunction, x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    sharp = torch.empty_like(x)
    for top in starts(height):
        for left in starts(width):
            part = run(x[..., top : top + PAGE, left : left + PAGE])
            down, across = (BLOCK * (start > 0) for start in (top, left))
            sharp[..., top + down : top + PAGE, left + across : left + PAGE] = part[..., down:, across:]
    return sharp


def starts(length: int) -> range:
    return range(0, max(length - 2 * BLOCK, 1), PAGE - 2 * BLOCK)


def mirrored(size: int, padded: int) -> Tensor:
    """The pixels along an axis that a tile's margins repeat."""
    place = (torch.arange(padded) - OVERLAP).abs() % (2 * size - 2)
    return torch.where(place < size, place, 2 * size - 2 - place)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
