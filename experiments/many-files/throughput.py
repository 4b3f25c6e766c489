"""Measure the CPU seconds of one image by part, batches against single images, and overlap against none.

python experiments/many-files/throughput.py parts 4000 3000 > parts.json
python experiments/many-files/throughput.py batches
python experiments/many-files/throughput.py overlap 4000 3000
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import skimage.data
import torch

from lmfn import LMFN, Deblurrer, images
from lmfn.inference import for_inference, with_border
from lmfn.jobs import run_jobs

STRIP = 768
"""Rows on which the network is measured, at full width, since its time is proportional to the pixels."""


def photograph(width: int, height: int) -> images.Photo:
    """A photograph of that size, tiled from a small one by mirroring."""
    scene = skimage.data.astronaut()  # type: ignore[no-untyped-call]
    repeats = height // len(scene) + 1, width // scene.shape[1] + 1
    rows = np.concatenate([scene[:: (-1) ** n] for n in range(repeats[0])])
    return images.Photo(np.concatenate([rows[:, :: (-1) ** n] for n in range(repeats[1])], axis=1)[:height, :width])


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of all threads of this process, independent of other processes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def parts(width: int, height: int) -> dict[str, float]:
    """CPU seconds and bytes per image, from JPEG to JPEG."""
    deblurrer = Deblurrer(device="cpu", guard="warn")
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "in.jpg"), Path(folder, "out.jpg")
        images.write(path, photograph(width, height))
        photo = images.read(path)
        strip = replace(photo, pixels=photo.pixels[:STRIP])
        deblurrer(strip.pixels[:64, :64])
        share = height / len(strip.pixels)
        return {
            "width": width,
            "height": height,
            "read": cpu_seconds(lambda: images.read(path)),
            "network": share * cpu_seconds(lambda: deblurrer(strip.pixels)),
            "write": cpu_seconds(lambda: images.write(out, photo)),
            "bytes_in": path.stat().st_size,
            "bytes_out": out.stat().st_size,
        }


def batches(side: int, count: int) -> str:
    """CPU milliseconds per image, in a batch and alone, interleaved."""
    run = with_border(for_inference(LMFN.from_pretrained(), "cpu", torch.float32))
    batch = torch.rand(count, 3, side, side)
    run(batch), run(batch[:1])
    together, alone = [], []
    for _ in range(3):
        together.append(1e3 * cpu_seconds(lambda: run(batch)) / count)
        alone.append(1e3 * cpu_seconds(lambda: [run(image[None]) for image in batch]) / count)
    return f"{side}x{side}: {min(together):.1f} ms in a batch of {count}, {min(alone):.1f} ms alone"


def overlap(width: int, height: int, count: int = 3, rounds: int = 2) -> None:
    """Wall-clock seconds, interleaved, of sequential and overlapped files. The network is replaced by a wait as long as
    reading and writing take, as for another device."""
    with tempfile.TemporaryDirectory() as folder:
        sources = [Path(folder, f"{n}.jpg") for n in range(count)]
        for source in sources:
            images.write(source, photograph(width, height))
        target = Path(folder, "out.jpg")
        began = time.perf_counter()
        images.write(target, images.read(sources[0]))
        device = time.perf_counter() - began

        def sharpen(pixels: np.ndarray) -> np.ndarray:
            time.sleep(device)
            return pixels

        jobs = [(source, source.with_suffix(".out.jpg")) for source in sources]
        ratios = []
        for _ in range(rounds):
            began = time.perf_counter()
            for source, out in jobs:
                photo = images.read(source)
                images.write(out, replace(photo, pixels=sharpen(photo.pixels)))
            middle = time.perf_counter()
            assert all(outcome.status == "done" for outcome in run_jobs(jobs, sharpen, overwrite=True))
            ratios.append((middle - began) / (time.perf_counter() - middle))
        print(f"{count} of {width}x{height}: overlapped {statistics.median(ratios):.2f} times as fast ({ratios})")


if __name__ == "__main__":
    what, *size = sys.argv[1:]
    if what == "parts":
        print(json.dumps(parts(*map(int, size))))
    elif what == "batches":
        for side, count in ((64, 8), (128, 8), (256, 4)):
            print(batches(side, count))
    else:
        overlap(*map(int, size))
