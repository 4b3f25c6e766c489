"""Growth of memory and time with the image, the batch, and the number of maps and channels: `python -m bench memory`.

Rows are like those of `ops`; `report` fits the exponents. Sizes are those of the image: the decoder's ops run on maps
of a quarter of its height and width.
"""

import argparse
from collections.abc import Iterator

import torch

from bench.measure import Session
from bench.ops import DTYPES, Request, measure
from bench.registry import OPS
from bench.rows import Shape

SIZES = {
    "cpu": [(128, 128), (192, 192), (256, 256), (360, 640), (544, 960), (720, 1280)],
    "cuda": [(256, 256), (720, 1280), (1088, 1920), (2160, 3840), (4320, 7680)],
}
OTHERS = {"b": (1, 2, 4), "n": (1, 2, 4), "c": (16, 32, 64)}
"""Batches, maps and channels at 256x256; these channels need no padding, which would distort the growth."""
PROVIDERS = {"cpu": ["eager-channels-last", "torch"], "cuda": ["eager-channels-last", "triton"]}
GROWING = ("layer_attention", "rfdb", "lmfn")
LARGEST_WITH_GRADIENTS = {"cpu": 256 * 256, "cuda": 1088 * 1920}
"""Pixels of the largest image for which the whole network is measured with gradients."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", nargs="+", choices=GROWING, default=list(GROWING), help="default: all")
    parser.add_argument("--largest", type=int, default=4320, help="largest image height; default: all sizes")


def shapes(op: str, device: str, largest: int) -> Iterator[Shape]:
    """By image size, then by batch, maps and channels."""
    by, widths = (1 if op == "lmfn" else 4), OPS[op].widths
    for h, w in SIZES[device]:
        if h <= largest:
            yield Shape(1, *widths, h // by, w // by)
    for axis, values in OTHERS.items():
        if axis != "n" or widths[0] > 1:
            for value in values:
                sizes = {"b": 1, "n": widths[0], "c": widths[1], "h": 256 // by, "w": 256 // by} | {axis: value}
                yield Shape(**sizes)


def run(session: Session, options: argparse.Namespace) -> None:
    device = session.on.kind
    dtype = getattr(torch, DTYPES[device][0])
    for op in options.op:
        for place, shape in enumerate(found := list(dict.fromkeys(shapes(op, device, options.largest)))):
            if session.out_of_time(len(found) - place):
                return
            small = op != "lmfn" or shape.h * shape.w <= LARGEST_WITH_GRADIENTS[device]
            modes = ("infer", "full") if small else ("infer",)
            with session.if_it_fits(f"{op} {shape}"):
                measure(session, Request(OPS[op], shape, dtype, modes, PROVIDERS[device]))
