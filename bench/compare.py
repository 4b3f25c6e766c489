"""Compare two files of rows, or two commits, and tell differences from noise: `python -m bench compare A B`.

Commits are measured alternately, A B A B, each by its own benchmark in its own worktree, so that drift of the machine
affects both alike.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.parts import ROOT
from bench.rows import Key, Row, read
from bench.tables import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="a file of rows, or a commit")
    parser.add_argument("b", help="likewise")
    parser.add_argument("--run", default="ops", help='for commits: what to measure, e.g. "ops --op rfdb --mode full"')
    parser.add_argument("--turns", type=int, default=3, help="for commits: how often to measure each")


def run(options: argparse.Namespace) -> int:
    files = [Path(name).is_file() for name in (options.a, options.b)]
    if any(files) and not all(files):
        raise ValueError(
            f"{options.a} and {options.b}: one is a file of rows and the other is not; give two files or two commits"
        )
    if all(files):
        a, b = ({row.key: row for row in read(Path(name))} for name in (options.a, options.b))
    else:
        a, b = measured((options.a, options.b), shlex.split(options.run), options.turns)
    print(compared(a, b))
    return 0


def compared(a: dict[Key, Row], b: dict[Key, Row]) -> str:
    """A table of the measurements that are in both.

    A difference counts as noise if the ranges from p20 to p80 overlap.
    """
    both = [key for key in a if key in b]
    if not both:
        raise ValueError(
            "A and B have no measurement in common: op, mode, type, shape, L2, provider, device, threads; measure both "
            "with the same arguments on the same device"
        )
    found = []
    for key in both:
        x, y = a[key], b[key]
        apart = x.p80 < y.p20 or y.p80 < x.p20
        verdict = "noise" if not apart else "B is faster" if y.p50 < x.p50 else "B is slower"
        memory = "" if x.peak_bytes == y.peak_bytes else f"{(y.peak_bytes - x.peak_bytes) / 2**20:+.1f}"
        ranges = [f"{row.p50:.4g} ({row.p20:.4g} to {row.p80:.4g})" for row in (x, y)]
        what = [key.op, key.mode, key.dtype, str(key.shape), key.l2, key.provider]
        found.append([*what, *ranges, f"{x.p50 / y.p50:.2f}", memory, verdict])
    heads = ["op", "mode", "type", "shape", "L2", "by", "A, ms", "B, ms", "A over B", "peak, MiB", "verdict"]
    left = f"\n\nOnly in A: {len(a) - len(both)} rows, only in B: {len(b) - len(both)}"
    return table(heads, found) + left


def measured(commits: tuple[str, str], arguments: list[str], turns: int) -> tuple[dict[Key, Row], dict[Key, Row]]:
    """Rows of both commits; of a measurement's turns, the one with the median p50."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trees = [stack.enter_context(Worktree(folder / f"tree{i}", commit)) for i, commit in enumerate(commits)]
        turned: list[dict[Key, list[Row]]] = [{}, {}]
        for turn in range(turns):
            for i, tree in enumerate(trees):
                out = folder / f"rows{i}-{turn}"
                command = [sys.executable, "-m", "bench", *arguments, "--out", str(out)]
                done = subprocess.run(command, cwd=tree, check=False, stdout=subprocess.DEVNULL)
                path = out / f"{arguments[0]}.jsonl"
                if not path.is_file():
                    raise RuntimeError(
                        f"commit {commits[i]}: `{shlex.join(command)}` ended with {done.returncode} and no rows; "
                        "a commit from before this benchmark cannot be compared"
                    )
                for row in read(path):
                    turned[i].setdefault(row.key, []).append(row)
    a, b = ({key: sorted(rows, key=lambda r: r.p50)[len(rows) // 2] for key, rows in one.items()} for one in turned)
    return a, b


class Worktree:
    """A context: the files of a commit in a temporary worktree."""

    def __init__(self, path: Path, commit: str) -> None:
        self.path, self.commit = path, commit

    def __enter__(self) -> Path:
        made = ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(self.path), self.commit]
        done = subprocess.run(made, check=False, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{self.commit} is neither a file of rows nor a commit: {done.stderr.strip()}")
        return self.path

    def __exit__(self, *_: object) -> None:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(self.path)], check=False)
