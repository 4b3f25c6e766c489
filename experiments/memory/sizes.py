"""Time and peak memory of the default network by the size of the image, each in a process of its own.

    python experiments/memory/sizes.py 12 24 48 100 --memory 2GiB

sharpens an 8-bit file into a file, and prints a table: the peak is the operating system's account (VmHWM, and what was
swapped out meanwhile), the estimate what `Deblurrer` reckons with, for the way that the image went, beside what the
process held before.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def held(*names: str) -> int:
    """Bytes, from /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    return 1024 * sum(int(status.split(f"{name}:")[1].split()[0]) for name in names)


@contextmanager
def peak() -> Iterator[list[int]]:
    """The most bytes that this process holds within the context.

    Short of memory, a system drops pages of files, which it can read again, and moves others to the disk: VmHWM counts
    neither. So what is in no file is looked at all the time as well, wherever it is.
    """
    found, over, files = [0], threading.Event(), held("RssFile")

    def look() -> None:
        while not over.wait(0.01):
            found[0] = max(found[0], files + held("RssAnon", "RssShmem", "VmSwap"))

    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        over.set()
        looking.join()
        found[0] = max(found[0], held("VmHWM"))


def write_photograph(path: Path, height: int, width: int) -> None:
    """Squares of 16 x 16 pixels, 8 bits; written row by row, so that this process holds none of it."""
    from lmfn import images
    from lmfn.images import Photo
    from lmfn.scratch import StoredPixels

    pixels = StoredPixels(path.parent, (height, width, 3), np.uint8)
    random = np.random.default_rng(0)
    for first in range(0, height, 16):
        row = random.integers(0, 256, (width // 16 + 1, 3), np.uint8).repeat(16, 0)[:width]
        pixels[first : first + 16] = np.broadcast_to(row, (min(16, height - first), width, 3))
    images.write(path, Photo(pixels))


def one(height: int, width: int, weights: str, memory: str) -> None:
    """Sharpen one image of this size, and print a row of the table."""
    from lmfn import images
    from lmfn.deblur import Deblurrer, Way
    from lmfn.files import deblur_files
    from lmfn.options import parse_bytes
    from lmfn.scratch import Pixels

    class Noting(Deblurrer):
        def way(self, image: Pixels) -> Way:
            self.taken = super().way(image)
            return self.taken

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "a.tif")
        write_photograph(source, height, width)
        deblurrer = Noting(weights, device="cpu")
        deblurrer(np.full((64, 64, 3), 128, np.uint8))
        if memory != "free":
            deblurrer.memory = parse_bytes(memory.removeprefix("+")) + held("VmRSS") * memory.startswith("+")
        images.read(source, whole_numbers=True, stored=True)  # loads what reads a file
        before = held("VmRSS", "VmSwap")
        began, used = time.perf_counter(), time.process_time()
        with peak() as most:
            summary = deblur_files([source], Path(folder, "b.tif"), deblurrer=deblurrer)
        if not summary.done:
            raise SystemExit(str(summary))
    estimate = before + deblurrer.taken.needed
    wall, processor = time.perf_counter() - began, time.process_time() - used
    print(
        f"| {height * width / 1e6:.1f} | {width} x {height} | {weights} | {memory} | {deblurrer.taken} | "
        f"{most[0] / 2**30:.2f} | {estimate / 2**30:.2f} | {estimate / most[0]:.2f} | {wall:.0f} | {processor:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="+", help="megapixels (3 to 2), or WIDTHxHEIGHT")
    parser.add_argument("--memory", nargs="+", default=["free"], help="free, 2GB, or +100MB beside what is held before")
    parser.add_argument("--weights", default="lmfn")
    given = parser.parse_args()
    print("| megapixels | size | weights | budget | way | peak GiB | estimate GiB | ratio | s | s of the processor |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for size in given.sizes:
        if "x" in size:
            width, height = map(int, size.split("x"))
        else:
            height = round((float(size) * 1e6 / 1.5) ** 0.5)
            width = round(1.5 * height)
        for memory in given.memory:
            call = f"import sizes; sizes.one({height}, {width}, {given.weights!r}, {memory!r})"
            subprocess.run([sys.executable, "-c", call], cwd=Path(__file__).parent, check=False)


if __name__ == "__main__":
    main()
