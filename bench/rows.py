"""Measurements as lines of JSON: the fields of a row, a writer, and a reader that rejects incomplete rows."""

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin, get_type_hints

Mode = Literal["infer", "fwd", "bwd", "full", "step"]
"""Forward without gradients; forward that saves for backward; backward alone; both; both and the optimizer."""
L2 = Literal["cold", "warm", "host"]
"""`cold`: inputs not in the GPU's L2; `warm`: the inputs of the previous call; `host`: timed by wall clock."""

OURS = ("triton-graph", "triton", "for_inference", "for_inference-fp8", "torch", "torch-contiguous")
"""This package's providers; the first one with a row represents the package in tables."""


@dataclass(frozen=True, order=True)
class Shape:
    """Images, maps per image (1 except for attention between layers; for a network its RFDBs), channels, height,
    width."""

    b: int
    n: int
    c: int
    h: int
    w: int

    def __str__(self) -> str:
        return "x".join(str(size) for size in ((self.b, self.c, self.h, self.w) if self.n == 1 else self.all()))

    def all(self) -> tuple[int, ...]:
        return self.b, self.n, self.c, self.h, self.w


@dataclass(frozen=True)
class Kernel:
    """A compiled Triton kernel that a call launched."""

    name: str
    config: dict[str, int]
    """Rows and columns of the tile, warps, pipeline stages."""
    registers: int
    spills: int
    shared: int
    """Bytes of shared memory."""


@dataclass(frozen=True)
class Machine:
    """The machine and software on which a row was measured, and the device's ceilings."""

    device: str
    threads: int
    """CPU threads; 0 for a GPU."""
    driver: str
    cuda: str
    cudnn: str
    torch: str
    triton: str
    python: str
    commit: str
    dirty: bool
    """Whether files differed from the commit, or may have."""
    copy_gbps: float
    """Copy bandwidth of the device, bytes read plus written, measured in the same run."""
    matrix_tflops: float
    """The device's rate in a large matrix product or 3x3 convolution, whichever is faster, in the row's dtype, measured
    in the same run."""


@dataclass(frozen=True)
class Row:
    """A measurement of one provider of one op in one mode, dtype and shape, whose results passed the check."""

    op: str
    provider: str
    mode: Mode
    dtype: str
    shape: Shape
    l2: L2
    p20: float
    """Milliseconds, as are p50 and p80."""
    p50: float
    p80: float
    n: int
    """The number of timed calls."""
    peak_bytes: int
    """Peak bytes of a call in addition to its inputs, including results; 0 if not counted."""
    saved_bytes: int
    """Bytes that autograd holds after forward, including inputs but not weights; 0 without gradients."""
    tflops: float
    """Minimum arithmetic of the op divided by p50."""
    gbps: float
    """Minimum traffic of the op divided by p50."""
    roofline: float
    """The time at the ceilings, divided by p50; may exceed 1 if inputs are in the L2."""
    rms_error: float
    """RMS error relative to the RMS of the exact result; the largest of all results and gradients."""
    max_error: float
    """Largest error relative to the largest exact value; the largest of all results and gradients."""
    clocks_before: str
    clocks_after: str
    config: dict[str, str]
    """Further settings of the provider, e.g. the version of a runtime."""
    kernels: tuple[Kernel, ...]
    machine: Machine
    command: str
    """The command that reproduces this row."""

    @property
    def key(self) -> "Key":
        return Key(
            self.op,
            self.mode,
            self.dtype,
            self.shape,
            self.l2,
            self.provider,
            self.machine.device,
            self.machine.threads,
        )


class Key(NamedTuple):
    """Identifies a measurement: of rows with the same key, the last one counts."""

    op: str
    mode: str
    dtype: str
    shape: Shape
    l2: str
    provider: str
    device: str
    threads: int


def text(row: Row) -> str:
    return json.dumps(asdict(row))


class RowFile:
    """Appends rows to a file, each written before the next is measured. Existing rows are checked first; an incomplete
    last line, left by a kill, is removed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            whole, _, cut = self.path.read_bytes().rpartition(b"\n")
            if cut:
                print(f"{self.path}: the last line is incomplete and was removed: {cut[:60]!r}...", file=sys.stderr)
                os.truncate(self.path, len(whole) + 1 if whole else 0)
            read(self.path)
        self._file = self.path.open("ab", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, row: Row) -> None:
        self._file.write(f"{text(row)}\n".encode())  # in one piece, so that a kill leaves no half row


def read(path: Path) -> list[Row]:
    """The rows of a file; of repeated measurements the last.

    Raises ValueError, naming file, line and field, for a missing, superfluous or invalid field; FileNotFoundError if
    the file does not exist.
    """
    return last(parse(value, where) for value, where in _lines(path))


def read_submitted(path: Path) -> dict[str, list[Row]]:
    """The rows of a file of `python -m bench submit`, by the verb that measured them. Raises as `read` does."""
    found: dict[str, list[Row]] = {}
    for value, where in _lines(path):
        if not isinstance(value, Mapping) or set(value) != {"verb", "row"} or not isinstance(value["verb"], str):
            raise ValueError(f"{where}: it must contain a verb and its row; make the file with python -m bench submit")
        found.setdefault(value["verb"], []).append(parse(value["row"], where))
    return {verb: last(rows) for verb, rows in found.items()}


def parse(value: Any, where: str) -> Row:
    """A row from JSON. Raises ValueError as `read` does; `where` names the line."""
    row: Row = _parsed(Row, value, where)
    if not 0 <= row.p20 <= row.p50 <= row.p80 or row.n < 1:
        raise ValueError(f"{where}: p20, p50, p80, n are {row.p20}, {row.p50}, {row.p80}, {row.n}; out of order")
    return row


def _lines(path: Path) -> Iterator[tuple[Any, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            yield json.loads(line), where
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not valid JSON ({error}); remove the line and measure it again") from error


def last(rows: Iterable[Row]) -> list[Row]:
    """The last row of each measurement, in the order of first rows."""
    found: dict[Key, Row] = {}
    for row in rows:
        found.pop(row.key, None)
        found[row.key] = row
    return list(found.values())


def _parsed(kind: Any, value: Any, where: str, field: str = "the row") -> Any:
    """The JSON `value` as `kind`: a dataclass, number, string, or tuple or dict of these."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: {field} is {value!r}; it must be an object")
        hints = get_type_hints(kind)
        names = [f.name for f in fields(kind)]
        for name in [*names, *value]:
            if name not in value or name not in names:
                wrong = "is missing" if name in names else "is unknown"
                raise ValueError(f"{where}: the field {name!r} of {field} {wrong}; measure the row again")
        return kind(**{name: _parsed(hints[name], value[name], where, name) for name in names})  # type: ignore[operator]
    if origin is tuple and isinstance(value, list):
        return tuple(_parsed(inner[0], v, where, field) for v in value)
    if origin is dict and isinstance(value, Mapping):
        return {key: _parsed(inner[1], v, where, field) for key, v in value.items()}
    if origin is Literal and value in inner:
        return value
    # An integer is accepted as a float; true is not a number.
    if kind is float and type(value) in (int, float) and math.isfinite(value) and value >= 0:
        return float(value)
    if (kind in (str, bool) and type(value) is kind) or (kind is int and type(value) is int and value >= 0):
        return value
    raise ValueError(f"{where}: the field {field!r} is {value!r}, which is invalid; measure the row again")
