"""The results of `python -m bench all` in about ten lines, rewritten after every part."""

import csv
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.parts import Outcome
from bench.rows import Row, read
from bench.tables import digits, groups, machine
from lmfn import atomic

MOST_NAMES = 6
ON_TRIAL_FOLDER, ON_TRIAL_LINE = "on-trial", "on trial: "
"""Where `bench/trial.py` writes what it measures, and how its lines for the summary begin."""


class Summary:
    """OUT/summary.txt. `hear` receives the output of the parts, `write` their outcomes."""

    def __init__(self, out: Path, device: str, minutes: float) -> None:
        self.path = out / "summary.txt"
        self._out, self._device, self._minutes, self._began = out, device, minutes, time.monotonic()
        self._counts: dict[str, Counter[str]] = {}
        self._faults: list[str] = []
        self._left_out: dict[str, None] = {}
        self._said: list[str] = []

    def hear(self, part: str, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word in ("PASSED", "FAILED", "SKIPPED"):
            self._counts.setdefault(part, Counter())[word.lower()] += 1
        if word == "FAILED" or line.startswith("WRONG"):
            self._faults.append(f"{part}: {rest}")
        if line.startswith("left out: "):
            self._left_out[f"{part}: {line.removeprefix('left out: ')}"] = None
        if line.startswith(ON_TRIAL_LINE):
            self._said.append(line)
        elif " predictions held within " in line or " us, which " in line:
            self._said.append(f"{part}: {line}")

    def failed(self, outcomes: Iterable[Outcome]) -> bool:
        return bool(self._faults) or any(outcome.failed for outcome in outcomes)

    def write(self, outcomes: list[Outcome]) -> None:
        atomic.write(self.path, "".join(f"{line}\n" for line in self.lines(outcomes)).encode())

    def lines(self, outcomes: list[Outcome]) -> Iterator[str]:
        minutes = (time.monotonic() - self._began) / 60
        yield f"{self._device}: {minutes:.1f} of {self._minutes:g} minutes"
        for make in (self._machine, self._pieces, self._measured, lambda: self._said, self._ops, self._more):
            try:
                yield from make()
            except (ValueError, OSError) as error:
                yield f"unreadable: {error}"
        ended = {status: [o.name for o in outcomes if o.status == status] for _, status, _ in outcomes}
        yield "; ".join(f"{status}: {', '.join(names)}" for status, names in ended.items())
        if self._left_out:
            yield f"left out: {some(list(self._left_out))}"
        yield f"faults: {some(self._faults)}" if self._faults else "no faults"

    def _rows(self, verb: str, folder: str = "") -> list[Row]:
        path = self._out / folder / f"{verb}.jsonl"
        return read(path) if path.exists() else []

    def _machine(self) -> Iterator[str]:
        rows = self._rows("model") or self._rows("train") or self._rows("ops")
        if rows:
            yield machine(rows)

    def _pieces(self) -> Iterator[str]:
        for part, counts in self._counts.items():
            yield f"{part}: " + ", ".join(f"{number} {end}" for end, number in counts.items())

    def _measured(self) -> Iterator[str]:
        for folder, before in (("", ""), (ON_TRIAL_FOLDER, ON_TRIAL_LINE)):
            for line in (*self._whole(folder), *self._kernels(folder)):
                yield before + line

    def _whole(self, folder: str) -> Iterator[str]:
        for verb, what in (("model", "frame"), ("train", "step")):
            by: dict[str, list[Row]] = defaultdict(list)
            for row in self._rows(verb, folder):
                if row.op == "lmfn" and row.l2 == "host":
                    by[f"{row.shape} {row.dtype}"].append(row)
            if by:
                most = max(by, key=lambda of: len(by[of]))  # the dtype with the most providers
                times = (f"{row.provider} {digits(row.p50)}" for row in sorted(by[most], key=lambda row: row.p50))
                yield f"{what} {most}, ms: {', '.join(times)}"

    def _kernels(self, folder: str) -> Iterator[str]:
        path = self._out / folder / "profile.tsv"
        if not path.exists():
            return
        by: dict[str, list[dict[str, str]]] = {}
        with path.open(encoding="utf-8", newline="") as file:
            next(file)
            for row in csv.DictReader(file, delimiter="\t"):
                by.setdefault(row["of"], []).append(row)
        for of, rows in by.items():
            us = sum(float(row["us"]) for row in rows)
            by_kernel: dict[str, float] = defaultdict(float)
            for row in rows:
                by_kernel[row["kernel"][:40]] += float(row["us"])
            most = sorted(by_kernel.items(), key=lambda item: -item[1])[:4]
            parts = ", ".join(f"{kernel} {time:.0f}" for kernel, time in most)
            launches = sum(int(row["launches"]) for row in rows)
            share = sum(float(row["floor_us"]) for row in rows) / us
            yield f"{of}, kernels alone: {us:.0f} us, {launches} launches, {share:.0%} of the roofline; most: {parts}"

    def _ops(self) -> Iterator[str]:
        found = [g for g in groups(self._rows("ops")) if g.others]
        if found:
            times = (f"{g.ours.op} {g.ours.mode} {g.ours.shape} {g.faster:.2f}" for g in found[:8])
            yield f"ops, speedup over the fastest other provider: {', '.join(times)}"

    def _more(self) -> Iterator[str]:
        counts = {verb: len(self._rows(verb)) for verb in ("model", "train", "ops", "memory")}
        yield "rows: " + ", ".join(f"{number} {verb}" for verb, number in counts.items())


def some(names: list[str]) -> str:
    left = len(names) - MOST_NAMES
    return "; ".join(names[:MOST_NAMES]) + (f"; and {left} more" if left > 0 else "")
