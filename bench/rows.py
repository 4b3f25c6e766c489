"""Measurements as lines of JSON: what a row holds, how rows are written, and a reader that refuses half a row."""

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
"""Forward without gradients; forward that keeps what backward needs; backward alone; both; both and the optimizer."""
L2 = Literal["cold", "warm", "host"]
"""Inputs that the GPU's L2 cannot hold any more; inputs of the call before; not a GPU's matter: wall clock."""

OURS = ("triton-graph", "triton", "for_inference", "torch", "torch-contiguous")
"""The providers that are ours; the first that there is stands for us."""


@dataclass(frozen=True, order=True)
class Shape:
    """Images, maps per image (1 but for attention between layers; RFDBs of a network), channels, height, width."""

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
    """A Triton kernel that a call launched, as its compiler left it."""

    name: str
    config: dict[str, int]
    """Rows and columns of its tile, warps, pipeline stages."""
    registers: int
    spills: int
    shared: int
    """Bytes of shared memory."""


@dataclass(frozen=True)
class Machine:
    """Where a row was measured, and with what."""

    device: str
    threads: int
    """Of the CPU; 0 for a GPU."""
    driver: str
    cuda: str
    cudnn: str
    torch: str
    triton: str
    python: str
    commit: str
    dirty: bool
    """Whether files differed from the commit, or nobody could tell."""
    copy_gbps: float
    """The device's own copy bandwidth, bytes read and written, measured in the same run."""
    matrix_tflops: float
    """Its rate in a large product or 3x3 convolution, the faster, in the row's dtype, measured in the same run."""


@dataclass(frozen=True)
class Row:
    """One provider of one op in one mode, dtype and shape. It passed its check against the exact result."""

    op: str
    provider: str
    mode: Mode
    dtype: str
    shape: Shape
    l2: L2
    p20: float
    """Milliseconds, as p50 and p80."""
    p50: float
    p80: float
    n: int
    """Timed calls."""
    peak_bytes: int
    """Most that a call holds at once beside its inputs, its results included."""
    saved_bytes: int
    """What autograd holds after the forward pass, inputs included, weights not; 0 without gradients."""
    tflops: float
    """Least arithmetic of the op over p50."""
    gbps: float
    """Least traffic of the op over p50."""
    roofline: float
    """The time that the ceilings allow over p50; with inputs in the L2 it may pass 1."""
    rms_error: float
    """RMS of the error as part of the RMS of the exact result, the largest of all results and gradients."""
    max_error: float
    """Largest error as part of the largest exact value, likewise."""
    clocks_before: str
    clocks_after: str
    config: dict[str, str]
    """What else sets this provider apart: the versions of a runtime, settings."""
    kernels: tuple[Kernel, ...]
    machine: Machine
    command: str
    """What makes this row again."""

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
    """What two rows of the same measurement have in common."""

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
    """Adds rows to a file, each on the disk before the next is measured. What is there already is checked first; a last
    line that was cut off, as by a kill, is taken out."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            whole, _, cut = self.path.read_bytes().rpartition(b"\n")
            if cut:
                print(f"{self.path}: the last line was cut off, and is taken out: {cut[:60]!r}...", file=sys.stderr)
                os.truncate(self.path, len(whole) + 1 if whole else 0)
            read(self.path)
        self._file = self.path.open("ab", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, row: Row) -> None:
        self._file.write(f"{text(row)}\n".encode())  # in one piece: a kill cuts none in two


def read(path: Path) -> list[Row]:
    """The rows of a file, of those measured more than once the last.

    Raises ValueError, naming file, line and field, for a row that lacks a field, has one too many, or has one that
    cannot be; FileNotFoundError where there is no file.
    """
    return last(parse(value, where) for value, where in _lines(path))


def read_submitted(path: Path) -> dict[str, list[Row]]:
    """The rows of a file of `python -m bench submit`, by the verb that measured them. Raises as `read` does."""
    found: dict[str, list[Row]] = {}
    for value, where in _lines(path):
        if not isinstance(value, Mapping) or set(value) != {"verb", "row"} or not isinstance(value["verb"], str):
            raise ValueError(f"{where}: it must hold a verb and its row; make the file by python -m bench submit")
        found.setdefault(value["verb"], []).append(parse(value["row"], where))
    return {verb: last(rows) for verb, rows in found.items()}


def parse(value: Any, where: str) -> Row:
    """A row out of JSON. Raises ValueError, with `where` it stands, as `read` does."""
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
            raise ValueError(f"{where}: this is no JSON ({error}); take the line out and measure it again") from error


def last(rows: Iterable[Row]) -> list[Row]:
    """Of the rows of the same measurement the last, in the order of these."""
    found: dict[Key, Row] = {}
    for row in rows:
        found.pop(row.key, None)
        found[row.key] = row
    return list(found.values())


def _parsed(kind: Any, value: Any, where: str, field: str = "the row") -> Any:
    """`value` of JSON as `kind`: a dataclass, number, text, or tuple or dict of these."""
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
    # A whole number is a float, too; true is no number.
    if kind is float and type(value) in (int, float) and math.isfinite(value) and value >= 0:
        return float(value)
    if (kind in (str, bool) and type(value) is kind) or (kind is int and type(value) is int and value >= 0):
        return value
    raise ValueError(f"{where}: the field {field!r} is {value!r}, which it cannot be; measure the row again")
