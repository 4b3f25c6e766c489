"""The tables of `python -m bench report`, each from the rows of one device."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.rows import OURS, Machine, Row, Shape
from bench.units import SIZE, UNITS

UNSEEN = ("ONNX Runtime", "OpenVINO")
"""Prefixes of the names of providers whose memory is not counted, since they do not use PyTorch's allocator."""


def machine(rows: Sequence[Row]) -> str:
    """Where the rows of one device were measured: all versions and commits, and the ceilings of the first."""
    m = rows[0].machine
    threads = f", {m.threads} thread{'s' * (m.threads > 1)}" if m.threads else f", driver {m.driver}, CUDA {m.cuda}"
    ceilings = f"ceilings: {m.copy_gbps:.4g} GB/s copied, {m.matrix_tflops:.3g} TFLOP/s in {rows[0].dtype}"
    versions = (
        " and ".join(dict.fromkeys(f"{name} {version(row.machine)}" for row in rows))
        for name, version in (
            ("torch", lambda m: m.torch),
            ("Triton", lambda m: m.triton),
            ("Python", lambda m: m.python),
            ("commit", commit),
        )
    )
    return f"**{m.device}**{threads}, {', '.join(versions)}; {ceilings}."


def commit(m: Machine) -> str:
    return m.commit[:10] + (" with changes" if m.dirty else "")


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])


def digits(number: float) -> str:
    """A number with three significant digits, or as an integer from 100 on; empty for NaN."""
    if math.isnan(number):
        return ""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def milliseconds(row: Row) -> str:
    return f"{digits(row.p50)} ({digits(row.p20)} to {digits(row.p80)})"


def mebibytes(row: Row) -> str:
    return "not counted" if row.provider.startswith(UNSEEN) or not row.peak_bytes else f"{row.peak_bytes / 2**20:.1f}"


@dataclass(frozen=True)
class Group:
    """Rows that differ only in their provider: this package's, and the others, fastest first."""

    ours: Row
    others: list[Row]
    warm: Row | None

    @property
    def faster(self) -> float:
        """Speedup of `ours` over the fastest other provider; NaN if there is none."""
        return self.others[0].p50 / self.ours.p50 if self.others else math.nan


def groups(rows: Iterable[Row]) -> list[Group]:
    """Groups in the order of the rows, with a cold L2 cache where that applies."""
    by: dict[tuple[object, ...], dict[str, Row]] = defaultdict(dict)
    warm: dict[tuple[object, ...], Row] = {}
    for row in rows:
        key = (row.op, row.mode, row.dtype, row.shape, row.machine.device, row.machine.threads)
        if row.l2 == "warm":
            warm[(*key, row.provider)] = row
        else:
            by[key][row.provider] = row
    found = []
    for what, providers in by.items():
        mine = next((name for name in OURS if name in providers), None)
        if mine is not None:
            others = sorted((r for name, r in providers.items() if name not in OURS), key=lambda row: row.p50)
            found.append(Group(providers[mine], others, warm.get((*what, mine))))
    return found


def ops(verbs: dict[str, list[Row]], _link: Path) -> str:
    rows = verbs.get("ops", [])
    if not rows:
        return ""
    heads = ["op", "mode", "dtype", "shape", "ours, ms", "warm, ms", "fastest other, ms", "speedup"]
    heads += ["of the roofline", "our peak, MiB", "its peak, MiB", "reproduce with"]
    lines = []
    for group in groups(rows):
        row, other = group.ours, group.others[0] if group.others else None
        lines.append(
            [
                f"`{row.op}`",
                row.mode,
                row.dtype,
                str(row.shape),
                milliseconds(row),
                milliseconds(group.warm) if group.warm else "",
                f"{other.provider} {milliseconds(other)}" if other else "none",
                f"{group.faster:.2f}" if other else "",
                f"{row.roofline:.0%}",
                mebibytes(row),
                mebibytes(other) if other else "",
                f"`{row.command}`",
            ]
        )
    return f"{machine(rows)}\n\n{table(heads, lines)}"


def whole(verb: str) -> Callable[[dict[str, list[Row]], Path], str]:
    """The table of the whole network with every provider, fastest first."""

    def made(verbs: dict[str, list[Row]], _link: Path) -> str:
        rows = [row for row in verbs.get(verb, []) if row.op == "lmfn"]
        if not rows:
            return ""
        heads = ["shape", "dtype", "provider", "ms", "ms per image", "peak, MiB", "saved, MiB"]
        heads += ["of the matrix rate", "reproduce with"]
        lines = [
            [
                str(row.shape),
                row.dtype,
                row.provider + (f" {row.config['version']}" if "version" in row.config else ""),
                milliseconds(row),
                digits(row.p50 / row.shape.b),
                mebibytes(row),
                f"{row.saved_bytes / 2**20:.1f}",
                f"{row.tflops / row.machine.matrix_tflops:.1%}",
                f"`{row.command}`",
            ]
            for row in sorted(rows, key=lambda row: (row.shape, row.dtype, row.p50))
        ]
        return f"{machine(rows)}\n\n{table(heads, lines)}"

    return made


def frame(verbs: dict[str, list[Row]], _link: Path) -> str:
    """One 1280x720 photograph with every provider, fastest first, one column per dtype."""
    rows = [row for row in verbs.get("model", []) if row.op == "lmfn"]
    rows = [row for row in rows if (row.shape.b, row.shape.h, row.shape.w) == (1, *SIZE)]
    if not rows:
        return ""
    times = {(row.provider, row.dtype): row.p50 for row in rows}
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    providers = dict.fromkeys(row.provider for row in sorted(rows, key=lambda row: row.p50))
    lines = [[name, *(digits(times[name, d]) if (name, d) in times else "" for d in dtypes)] for name in providers]
    m = rows[0].machine
    where = f"{m.device}, {m.threads} thread{'s' * (m.threads > 1)}" if m.threads else m.device
    command = f"`python -m bench model --device {'cpu' if m.threads else 'cuda'}`"
    commits = " and ".join(dict.fromkeys(f"commit {commit(row.machine)}" for row in rows))
    return f"{table([f'{where}: ms', *dtypes], lines)}\n\nMeasured at {commits}. Reproduce with {command}."


def units(verbs: dict[str, list[Row]], _link: Path) -> str:
    """The parts of the network in one 1280x720 photograph: time of each, measured and at the roofline."""
    found: dict[str, dict[tuple[str, Shape], Group]] = defaultdict(dict)
    for group in groups(row for row in verbs.get("model", []) if row.op != "lmfn"):
        found[group.ours.dtype][group.ours.op, group.ours.shape] = group
    made = []
    for by in found.values():
        rows = [(unit, by[unit.op, unit.shape]) for unit in UNITS if (unit.op, unit.shape) in by]
        if not rows:
            continue
        mine = [unit.times * group.ours.p50 for unit, group in rows]
        least = [unit.times * group.ours.p50 * group.ours.roofline for unit, group in rows]
        other = [unit.times * group.others[0].p50 if group.others else math.nan for unit, group in rows]
        heads = ["part", "op", "shape", "count", "ours, ms", "share", "at the roofline, ms", "of the roofline"]
        lines = [
            [
                unit.name,
                f"`{unit.op}`",
                str(unit.shape),
                str(unit.times),
                digits(ms),
                f"{ms / sum(mine):.1%}",
                digits(floor),
                f"{floor / ms:.0%}",
                digits(formula),
            ]
            for (unit, _), ms, floor, formula in zip(rows, mine, least, other, strict=True)
        ]
        whole = [digits(sum(mine)), "100%", digits(sum(least)), f"{sum(least) / sum(mine):.0%}", digits(sum(other))]
        row = rows[0][1].ours
        title = f"{machine([group.ours for _, group in rows])} Backend: `{row.provider}`."
        made.append(f"{title}\n\n{table([*heads, 'the formula, ms'], [*lines, ['total', '', '', '', *whole]])}")
    return "\n\n".join([*made, "Reproduce with `python -m bench model --units`."]) if made else ""


@dataclass(frozen=True)
class Line:
    """Rows that differ in one size only, sorted by it."""

    axis: str
    sizes: list[int]
    rows: list[Row]

    def exponent(self, value: Callable[[Row], float]) -> float:
        """Exponent of the power law that fits the values best; NaN if a value is zero."""
        values = [value(row) for row in self.rows]
        return float(np.polyfit(np.log(self.sizes), np.log(values), 1)[0]) if min(values) > 0 else math.nan

    def slope(self, value: Callable[[Row], float]) -> float:
        """Slope of the straight line that fits the values best."""
        return float(np.polyfit(self.sizes, [value(row) for row in self.rows], 1)[0])


AXES: dict[str, Callable[[Row], int]] = {
    "pixels": lambda row: row.shape.h * row.shape.w,
    "images": lambda row: row.shape.b,
    "maps": lambda row: row.shape.n,
    "channels": lambda row: row.shape.c,
}


def lines(rows: Iterable[Row]) -> list[Line]:
    """Lines of at least three rows; if there are several along one axis, the one with the most rows."""
    by: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row.l2 != "warm":
            for along in AXES:
                rest = tuple(size(row) for name, size in AXES.items() if name != along)
                by[(row.op, row.mode, row.dtype, row.provider, along, rest)].append(row)
    found: dict[tuple[object, ...], Line] = {}
    for (*what, axis, _), members in by.items():
        members = sorted(members, key=AXES[str(axis)])
        best = found.get((*what, axis))
        if len(members) >= 3 and (best is None or len(members) > len(best.rows)):
            found[(*what, axis)] = Line(str(axis), [AXES[str(axis)](row) for row in members], members)
    return list(found.values())


def growth(verbs: dict[str, list[Row]], _link: Path) -> str:
    rows = verbs.get("memory", [])
    if not rows:
        return ""
    heads = ["op", "mode", "dtype", "provider", "axis", "from", "to", "time", "peak", "saved", "bytes per unit"]
    found = []
    for line in lines(rows):
        row = line.rows[0]
        exponents = [
            line.exponent(value) for value in (lambda r: r.p50, lambda r: r.peak_bytes, lambda r: r.saved_bytes)
        ]
        found.append(
            [
                f"`{row.op}`",
                row.mode,
                row.dtype,
                row.provider,
                line.axis,
                str(row.shape),
                str(line.rows[-1].shape),
                *("" if math.isnan(e) else f"{e:.2f}" for e in exponents),
                f"{line.slope(lambda r: r.peak_bytes):,.0f}",
            ]
        )
    return f"{machine(rows)}\n\n{table(heads, found)}\n\nReproduce with `python -m bench memory`."


def plots(verbs: dict[str, list[Row]], link: Path) -> str:
    made = {"roofline": "ops", "speedup": "ops", "memory": "memory", "time": "memory"}
    return "\n".join(
        f"![{name}, {link.name}]({link / f'{name}.png'})" for name, verb in made.items() if verbs.get(verb)
    )


TABLES: dict[str, Callable[[dict[str, list[Row]], Path], str]] = {
    "ops": ops,
    "frame": frame,
    "model": whole("model"),
    "units": units,
    "train": whole("train"),
    "growth": growth,
    "plots": plots,
}
