"""Model the cost of a million files on N machines from the measured parts of one file.

python experiments/many-files/cost.py parts.json

Machines without a GPU are bound by the sum of the parts, divided by their cores. With a GPU, reading and writing
overlap with the network (`lmfn.jobs`): a process is bound by the longest of the three, and `--processes` share one GPU.
The network's time on a GPU has to be given (`--gpu-seconds`); none is assumed.
"""

import argparse
import json
from pathlib import Path

FILES = 1_000_000


def hours_on_cpus(parts: dict[str, float], files: int, machines: int, cores: int) -> float:
    """Hours until the last machine is done, with all parts competing for the cores."""
    per_file = parts["read"] + parts["network"] + parts["write"]
    return -(-files // machines) * per_file / cores / 3600


def hours_on_gpus(
    parts: dict[str, float], files: int, machines: int, cores: int, processes: int, gpu_seconds: float
) -> float:
    """The same with one GPU per machine and its seconds per image; bounded by the GPU, the two threads of each process,
    and the cores."""
    own = max(parts["read"], parts["write"]) / processes
    per_file = max(gpu_seconds, own, (parts["read"] + parts["write"]) / cores)
    return -(-files // machines) * per_file / 3600


def terabytes(parts: dict[str, float], files: int) -> tuple[float, float]:
    """Bytes read and written."""
    return parts["bytes_in"] * files / 1e12, parts["bytes_out"] * files / 1e12


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--gpu-seconds", type=float)
    options = parser.parse_args()
    parts = json.loads(options.parts.read_text())
    print("{:.1f} TB are read and {:.1f} TB written".format(*terabytes(parts, options.files)))
    for machines in (1, 10, 100, 1000):
        hours = hours_on_cpus(parts, options.files, machines, options.cores)
        line = f"{machines:5} machines of {options.cores} cores: {hours:10,.1f} h"
        if options.gpu_seconds is not None:
            asked = (machines, options.cores, options.processes, options.gpu_seconds)
            line += f"; with a GPU each: {hours_on_gpus(parts, options.files, *asked):10,.1f} h"
        print(line)


if __name__ == "__main__":
    main()
