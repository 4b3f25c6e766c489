"""Time of a 3x3 convolution on this CPU by its channels, one thread: the least of 41 interleaved rounds, in ms.

    python experiments/cpu-inference/registers.py

With `ONEDNN_MAX_CPU_ISA=AVX2`, as on a processor without AVX-512.
"""

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro


@dataclass(frozen=True)
class Arguments:
    inputs: tuple[int, ...] = (50, 64)
    outputs: tuple[int, ...] = (25, 32, 48, 50, 56, 64)
    rounds: int = 41


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    least: dict[tuple[int, int], float] = {}
    maps = {c: torch.rand(1, c, 67, 320).to(memory_format=torch.channels_last) for c in arguments.inputs}
    weights = {
        (c, k): torch.rand(k, c, 3, 3).to(memory_format=torch.channels_last)
        for c in arguments.inputs
        for k in arguments.outputs
    }
    with torch.inference_mode():
        for _ in range(arguments.rounds):
            for (c, k), weight in weights.items():
                start = time.process_time()
                F.conv2d(maps[c], weight, padding=(0, 1))
                least[c, k] = min(least.get((c, k), 1e9), time.process_time() - start)
    for (c, k), seconds in least.items():
        print(f"from {c} to {k} channels: {1e3 * seconds:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
