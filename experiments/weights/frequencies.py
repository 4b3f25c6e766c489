"""Measure the error that networks leave, by frequency, and the factor by which their change of the image would leave
least.

python experiments/weights/frequencies.py PAIRS WEIGHTS ...
"""

import sys

import torch

from lmfn import LMFN, images
from lmfn.data import find_pairs

edges = torch.tensor([0.04, 0.1, 0.14, 0.18, 0.22, 0.26, 0.3, 0.4, 1])


def main() -> None:
    for weights in sys.argv[2:]:
        net = LMFN.from_pretrained(weights)
        before, after, useful, changed = torch.zeros(4, len(edges)).unbind()
        for pair in find_pairs(sys.argv[1]).pairs:
            files = pair.blurred, pair.sharp
            blurred, sharp = (torch.from_numpy(images.read_rgb(file)).movedim(2, 0) / 255 for file in files)
            with torch.inference_mode():
                output = net(blurred[None])[0]
            h, w = sharp.shape[1:]
            window = torch.hann_window(h)[:, None] * torch.hann_window(w)
            band = torch.bucketize(torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(w)), edges).flatten()
            needed, change = (torch.fft.rfft2((x - blurred) * window) for x in (sharp, output))
            products = (
                needed.abs() ** 2,
                (change - needed).abs() ** 2,
                (change.conj() * needed).real,
                change.abs() ** 2,
            )
            of_band = torch.stack([torch.bincount(band, x.sum(0).flatten(), len(edges)) for x in products])
            before, after, useful, changed = torch.stack([before, after, useful, changed]) + of_band / of_band[0].sum()
        shares, left, factor = (x.numpy().round(2) for x in (before / before.sum(), after / before, useful / changed))
        print(shares, weights, left, factor)


if __name__ == "__main__":
    main()
