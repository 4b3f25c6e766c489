"""The plain body beside the written formula on a CPU: `python -m bench cpu`."""

import statistics
import time

import torch

from bench import cases
from lmfn_kernels import backend


def run(rounds: int) -> None:
    """Medians of interleaved calls of the block, forward without gradients, and forward and backward to all inputs."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, milliseconds")
    for dtype in (torch.float32, torch.bfloat16):
        for b, h, w in ((1, 180, 320), (4, 64, 64)):
            torch.manual_seed(0)
            leaves = [t.requires_grad_() for t in cases.rfdb_case(b, 50, 25, 12, h, w, dtype)]
            gradient = torch.randn_like(leaves[0])
            times: dict[tuple[str, str], list[float]] = {}
            for _ in range(rounds + 1):
                for name in ("reference", "torch"):
                    with backend(name):
                        start = time.perf_counter()
                        with torch.no_grad():
                            cases.rfdb_flat(*leaves)
                        middle = time.perf_counter()
                        torch.autograd.grad(cases.rfdb_flat(*leaves), leaves, gradient)
                        times.setdefault((name, "fwd"), []).append(middle - start)
                        times.setdefault((name, "full"), []).append(time.perf_counter() - middle)
            for mode in ("fwd", "full"):
                plain, ours = (1e3 * statistics.median(times[name, mode][1:]) for name in ("reference", "torch"))
                size = f"{str(dtype).removeprefix('torch.'):8} {b}x50x{h}x{w}"
                print(
                    f"rfdb {mode:4} {size}: reference {plain:8.1f}, torch {ours:8.1f}, {plain / ours:.2f} times as fast"
                )
