"""`python -m bench VERB`: `resources` and `cpu` need no GPU, `ops` does."""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    resources = verbs.add_parser("resources", help="registers, spills, shared memory and matrix units")
    resources.add_argument("--target", nargs="+", default=["sm_80", "sm_90", "sm_100", "gfx942"])
    resources.add_argument("--dtype", nargs="+", default=["bfloat16", "float16", "float32"])
    ops = verbs.add_parser("ops", help="times on a GPU beside eager and compiled PyTorch")
    ops.add_argument("--minutes", type=float, default=7, help="start nothing new after so long")
    ops.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    cpu = verbs.add_parser("cpu", help="the plain body beside the written formula")
    cpu.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    # Imported late: each verb needs something that another machine has not.
    if options.verb == "resources":
        from bench.resources import table

        return 1 if table(options.target, options.dtype) else 0
    if options.verb == "ops":
        from bench.ops import run

        return 1 if run(options.minutes, options.out) else 0
    from bench import cpu as on_cpu

    on_cpu.run(options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
