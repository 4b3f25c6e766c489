"""ALFM's and ACFM's plain bodies beside their written formulas, in both memory layouts: `python -m bench.layouts`.

Seconds of the processor for one thread, forward without gradients and forward with backward to all inputs; medians of
interleaved calls after one to warm up. Contiguous inputs are what the formulas like best, channels-last ones are what
the network has.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lmfn_kernels import backend, testing

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(name: str, function: Callable[..., Tensor], tensors: list[Tensor], rounds: int) -> None:
    """Print a line for each layout and pass: the formula's time, ours, and how many times as fast that is."""
    times: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(rounds + 1):
        for layout, order in LAYOUTS.items():
            leaves = [
                (t.contiguous(memory_format=order) if t.ndim == 4 else t).detach().requires_grad_() for t in tensors
            ]
            gradient = torch.randn(leaves[0].shape).contiguous(memory_format=order)

            def infer(leaves: list[Tensor] = leaves) -> None:
                with torch.no_grad():
                    function(*leaves)

            def train(leaves: list[Tensor] = leaves, gradient: Tensor = gradient) -> None:
                torch.autograd.grad(function(*leaves), leaves, gradient)

            for body in ("reference", "torch"):
                with backend(body):
                    for mode, call in (("forward", infer), ("forward and backward", train)):
                        times.setdefault((layout, mode, body), []).append(seconds(call))
    found = {key: statistics.median(values[1:]) for key, values in times.items()}
    for layout, mode, body in found:
        if body == "torch":
            formula, ours = found[layout, mode, "reference"], found[layout, mode, "torch"]
            print(f"{name} {layout}, {mode}: {formula:.2f}, {ours:.2f}, {formula / ours:.2f} times as fast", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.layouts", description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(720, 1280), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    h, w = options.size
    attention = testing.attention_case(1, 4, 50, 50, h, w, torch.float32)
    compare(f"layer_attention 4x50x{h}x{w}", testing.attention_flat(), attention, options.rounds)
    gate = testing.channel_gate_case(1, 50, h, w, torch.float32)
    compare(f"channel_gate 50x{h}x{w}", testing.channel_gate_flat(), gate, options.rounds)


if __name__ == "__main__":
    main()
