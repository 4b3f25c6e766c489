"""Collect a folder of rows in one file for a pull request: `python -m bench submit OUT`.

Every row is checked: device and versions must be recorded, the commit known and unmodified, and the figures plausible.
The file is bench/results/<device>.jsonl; each line contains a row and the verb that measured it. `python -m bench
report` makes tables from it as from a folder of rows.
"""

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path

from bench import rows
from bench.rows import Row
from lmfn import atomic

RESULTS = Path(__file__).parent / "results"
FASTEST, SLOWEST = 1e-4, 1e6
"""Bounds of the milliseconds of a call."""
MOST_OF_A_CEILING = 1.3
"""Bound relative to the ceiling measured in the same run, if inputs are not cached; a warm L2 has several times the
bandwidth."""
MOST_OF_A_CEILING_WARM = 5.0
MOST_OF_FLOAT32 = 2.6
"""Bound relative to the rate of float32 products: a convolution may need fewer of them (Winograd)."""
LARGEST_ERROR = {"float32": 0.01, "float16": 0.1, "bfloat16": 0.3}
"""Bound of the RMS error relative to the RMS of the exact result."""
MOST_MEMORY = 2**40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the --out of a measuring verb, or the OUT of make gpu")
    parser.add_argument("--to", type=Path, default=RESULTS, help="the folder of the new file; default: bench/results")


def run(options: argparse.Namespace) -> int:
    from bench.devices import folder_name

    found = {path.stem: rows.read(path) for path in sorted(options.folder.glob("*.jsonl"))}
    every = [row for verb in found.values() for row in verb]
    if not every:
        raise ValueError(f"{options.folder} contains no rows; --out writes them as VERB.jsonl")
    faults = [f"{verb}.jsonl, {row.key}: {fault}" for verb in found for row in found[verb] for fault in faults_of(row)]
    for what in ("device", "commit", "torch", "triton"):
        values = sorted({getattr(row.machine, what) for row in every})
        if len(values) > 1:
            faults.append(f"{what}: {', '.join(values)}; a file needs a single one; measure all of it in one run")
    if faults:
        raise ValueError("\n".join(faults))
    path = options.to / f"{folder_name(every[0].machine.device)}.jsonl"
    lines = (json.dumps({"verb": verb, "row": asdict(row)}) for verb in found for row in found[verb])
    atomic.write(path, "".join(f"{line}\n" for line in lines).encode())
    print(f"{len(every)} rows are in {path}: add this file in a pull request")
    return 0


def faults_of(row: Row) -> list[str]:
    """The values of a row that are implausible, or that others cannot check."""
    m, gpu = row.machine, row.machine.threads == 0
    used = ["device", "torch", "python", *(["driver", "cuda", "cudnn", "triton"] if gpu else [])]
    unnamed = [name for name in used if getattr(m, name) in ("", "none", "unknown")]
    ceiling = MOST_OF_A_CEILING_WARM if row.l2 == "warm" else MOST_OF_A_CEILING
    rate = MOST_OF_FLOAT32 if row.dtype == "float32" else MOST_OF_A_CEILING
    found = {
        f"{', '.join(unnamed)} not known": bool(unnamed),
        f"commit {m.commit!r}: measure in a checkout, or set COMMIT=...": not re.fullmatch("[0-9a-f]{40}", m.commit),
        "measured with uncommitted changes": m.dirty,
        f"shape {row.shape}": min(row.shape.all()) < 1,
        f"dtype {row.dtype}": row.dtype not in LARGEST_ERROR,
        f"p50 of {row.p50} ms": not FASTEST <= row.p50 <= SLOWEST,
        f"{row.gbps:.0f} GB/s, while copies reach {m.copy_gbps:.0f}": row.gbps > ceiling * m.copy_gbps,
        f"{row.tflops:.3g} TFLOP/s, while products reach {m.matrix_tflops:.3g}": row.tflops > rate * m.matrix_tflops,
        f"an RMS error of {row.rms_error:.2g}": not row.rms_error <= LARGEST_ERROR.get(row.dtype, 0),
        f"a peak of {row.peak_bytes} bytes": row.peak_bytes > MOST_MEMORY,
        f"command {row.command!r}": not row.command.startswith("python -m bench "),
    }
    return [fault for fault, holds in found.items() if holds]
