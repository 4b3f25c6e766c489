"""Measure networks on frames cut into parts of several sizes.

python experiments/weights/parts.py DATA/val/gopro WEIGHTS ...
"""

import sys

import torch

from lmfn import LMFN, images
from lmfn.data import find_pairs


def main() -> None:
    for weights in sys.argv[2:]:
        net = LMFN.from_pretrained(weights).eval()
        for h, w in ((144, 128), (240, 256), (360, 640), (720, 1280)):
            gains = []
            for pair in find_pairs(sys.argv[1]).pairs:
                files = pair.blurred, pair.sharp
                blurred, sharp = (torch.from_numpy(images.read_rgb(file)).movedim(2, 0) / 255 for file in files)
                parts = blurred.unfold(1, h, h).unfold(2, w, w).permute(1, 2, 0, 3, 4)
                with torch.inference_mode():
                    out = torch.cat([net(part) for part in parts.flatten(0, 1).split(4)]).clamp(0, 1)
                out = out.unflatten(0, parts.shape[:2]).permute(2, 0, 3, 1, 4).reshape(blurred.shape)
                gains.append(10 * ((blurred - sharp).square().mean() / (out - sharp).square().mean()).log10())
            print(weights, f"{w}x{h}", f"{sum(gains) / len(gains):+.2f}")


if __name__ == "__main__":
    main()
