"""What attention in windows costs: one photograph through `for_inference`, in windows and as a whole.

    chrt -r 10 python -m bench windows --device cpu --threads 1

Both networks have the shipped weights and run alternately in one process. The ratio is the median of the ratios of
neighbouring calls, which differ less than their times on a machine that does other work. (`chrt -r 10` keeps other
processes off the core.)
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bench.devices import device
from bench.predictions import prediction
from lmfn.network.model import Network


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's")
    parser.add_argument("--weights", default="lmfn")
    parser.add_argument("--window", type=int, default=384, help="pixels of the image")
    parser.add_argument("--shape", default="1x720x1280", help="BxHxW of the image")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=20)


def run(options: argparse.Namespace) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    on, dtype = device(options.device), getattr(torch, options.dtype)
    of = f"windows of {options.window}"
    expected = prediction(on.name, f"windows {options.shape} {options.dtype}", f"{of} less whole")
    sizes = options.shape.split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
        raise ValueError(f"--shape {options.shape}: expected three numbers, BxHxW")
    batch, height, width = map(int, sizes)
    image = torch.rand(batch, 3, height, width, device=on.torch_device)
    runs = [network(options.weights, window).for_inference(on.torch_device, dtype) for window in (None, options.window)]

    def timed(run: Callable[[Tensor], Tensor]) -> float:
        on.synchronize()
        start = time.perf_counter()
        run(image)
        on.synchronize()
        return 1e3 * (time.perf_counter() - start)

    for run in 3 * runs:  # on CUDA the third call replays a graph
        run(image)
    times = [[timed(run) for run in runs] for _ in range(options.rounds)]
    whole, windows = (statistics.median(column) for column in zip(*times, strict=True))
    more, ratios = 1e3 * (windows - whole), sorted(second / first for first, second in times)
    low, high = ratios[len(ratios) // 5], ratios[len(ratios) * 4 // 5]
    print(
        f"{options.shape} {options.dtype} on {on.name}: whole {whole:.4g} ms, {of} "
        f"{windows:.4g} ms, ratio {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f}) of {len(ratios)}"
        f"{f', {more:.0f} us more, {expected.beside(more)}' if expected else ''}"
    )
    return 0


def network(weights: str, window: int | None) -> Network:
    """The network with these weights and this window, or none."""
    from lmfn.network import LMFN  # needs huggingface_hub, which the other verbs do without

    trained = LMFN.from_pretrained(weights)
    made = Network(replace(trained.config, alfm_window=window))
    made.load_state_dict(trained.state_dict())
    return made.eval()
