"""The plain body beside the written formula on a CPU: `python -m bench cpu`."""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import cases
from lmfn_kernels import backend

Case = tuple[str, Callable[..., Any], Callable[[torch.dtype], list[Tensor]]]

CASES: list[Case] = [
    ("rfdb 1x50x180x320", cases.rfdb_flat, lambda dtype: cases.rfdb_case(1, 50, 25, 12, 180, 320, dtype)),
    ("rfdb 4x50x64x64", cases.rfdb_flat, lambda dtype: cases.rfdb_case(4, 50, 25, 12, 64, 64, dtype)),
    (
        "layer_attention 1x4x50x360x640",
        cases.attention_flat(),
        lambda dtype: cases.attention_case(1, 4, 50, 50, 360, 640, dtype),
    ),
    (
        "channel_gate 1x50x360x640",
        cases.channel_gate_flat(),
        lambda dtype: cases.channel_gate_case(1, 50, 360, 640, dtype),
    ),
]
"""Name, call, and the tensors of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5)


def run(options: argparse.Namespace) -> int:
    """Medians of interleaved calls, forward without gradients, and forward and backward to all inputs.

    Images are channels-last.
    """
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, milliseconds")
    for case, call, make in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            leaves = [_channels_last(t).requires_grad_() for t in make(dtype)]
            gradient = torch.randn_like(call(*leaves))
            times: dict[tuple[str, str], list[float]] = {}
            for _ in range(options.rounds + 1):
                for name in ("reference", "torch"):
                    with backend(name):
                        start = time.perf_counter()
                        with torch.no_grad():
                            call(*leaves)
                        middle = time.perf_counter()
                        torch.autograd.grad(call(*leaves), leaves, gradient)
                        times.setdefault((name, "fwd"), []).append(middle - start)
                        times.setdefault((name, "full"), []).append(time.perf_counter() - middle)
            for mode in ("fwd", "full"):
                plain, ours = (1e3 * statistics.median(times[name, mode][1:]) for name in ("reference", "torch"))
                kind = f"{case:30} {str(dtype).removeprefix('torch.'):8} {mode:4}"
                print(
                    f"{kind}: reference {plain:8.1f}, torch {ours:8.1f}, {plain / ours:.2f} times as fast", flush=True
                )
    return 0


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t
