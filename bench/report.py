"""Make tables and plots from the rows in `bench/results`, and fill in the tables in the docs.

A table is put between `<!-- bench:NAME -->` and `<!-- /bench -->`; the names are those of `bench.tables.TABLES`.
"""

import argparse
import importlib.util
import os
import re
import sys
from pathlib import Path

from bench.parts import ROOT
from bench.rows import Row, last, read, read_submitted
from bench.tables import TABLES
from lmfn import atomic

RESULTS = ROOT / "bench" / "results"
BLOCK = re.compile(r"(<!-- bench:(\S+) -->\n).*?(<!-- /bench -->)", re.DOTALL)

Results = dict[str, dict[str, list[Row]]]
"""Rows by device (the name of the folder) and by verb."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with one folder per device")
    parser.add_argument("--docs", type=Path, nargs="+", default=documents(), help="default: README.md and docs/*.md")


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def run(options: argparse.Namespace) -> int:
    results = load(options.results)
    if importlib.util.find_spec("matplotlib"):
        from bench.plots import draw

        for folder, verbs in results.items():
            for path in draw(options.results / folder, verbs):
                print(path)
    else:
        print("no plots: they need matplotlib (pip install matplotlib)", file=sys.stderr)
    for path in options.docs:
        old = path.read_text(encoding="utf-8")
        new = filled(old, results, path.parent, options.results)
        if new != old:
            atomic.write(path, new.encode())
            print(path)
    return 0


def load(results: Path) -> Results:
    """The rows of results/DEVICE/VERB.jsonl and, from `python -m bench submit`, of results/DEVICE.jsonl.

    Raises ValueError, naming file, line and field, for a line that is not a row.
    """
    found: Results = {path.stem: read_submitted(path) for path in sorted(results.glob("*.jsonl"))}
    for path in sorted(results.glob("*/*.jsonl")):
        verbs = found.setdefault(path.parent.name, {})
        verbs[path.stem] = last([*verbs.get(path.stem, []), *read(path)])
    return found


def filled(text: str, results: Results, beside: Path, folder: Path) -> str:
    """`text` with its blocks regenerated; links are relative to the folder `beside`.

    Raises ValueError for an unknown block.
    """

    def block(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise ValueError(f"there is no table {match[2]!r} to put between markers; there are {', '.join(TABLES)}")
        link = Path(os.path.relpath(folder, beside))
        parts = [TABLES[match[2]](verbs, link / name) for name, verbs in results.items()]
        return match[1] + ("\n\n".join(filter(None, parts)) or "Nothing was measured yet.") + "\n" + match[3]

    return BLOCK.sub(block, text)
