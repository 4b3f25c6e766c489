"""Measure the error that networks leave, by frequency.

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
        before, after = torch.zeros(len(edges)), torch.zeros(len(edges))
        for pair in find_pairs(sys.argv[1]).pairs:
            files = pair.blurred, pair.sharp
            blurred, sharp = (torch.from_numpy(images.read_rgb(file)).movedim(2, 0) / 255 for file in files)
            with torch.inference_mode():
                output = net(blurred[None])[0]
            h, w = sharp.shape[1:]
            window = torch.hann_window(h)[:, None] * torch.hann_window(w)
            band = torch.bucketize(torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(w)), edges).flatten()
            power = [
                torch.bincount(band, (torch.fft.rfft2((x - sharp) * window).abs() ** 2).sum(0).flatten(), len(edges))
                for x in (blurred, output)
            ]
            before, after = before + power[0] / power[0].sum(), after + power[1] / power[0].sum()
        print((before / before.sum()).numpy().round(2), weights, (after / before).numpy().round(2))


if __name__ == "__main__":
    main()
