"""From calls to rows: each call is checked against the float64 reference, then timed interleaved with the others."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.devices import Call, Device, Times
from bench.parts import TIMED, WAITING
from bench.predictions import prediction
from bench.providers import PROVIDERS, Provider
from bench.registry import WorkEstimate
from bench.rows import OURS, Kernel, Machine, Row, RowFile, Shape
from lmfn_kernels import testing
from lmfn_kernels.runtime.configs import short
from lmfn_kernels.testing import Reference


@dataclass
class Session:
    """A benchmark run: its device, the file of its rows, and its time limit."""

    on: Device
    file: RowFile | None = None
    rounds: int = 20
    end: float = float("inf")
    """In `time.monotonic`: no new measurement starts after it."""
    turns: bool = False
    """Whether to wait for permission before timing anything."""
    wrong: int = 0
    """The number of wrong results and of failures of this package's own calls."""
    rows: list[Row] = field(default_factory=list)
    """The rows made so far."""
    _machines: dict[torch.dtype, Machine] = field(default_factory=dict)

    def out_of_time(self, left: int) -> bool:
        """Whether time is up; if so, prints the number of measurements that are left."""
        out = time.monotonic() > self.end
        if out:
            print(f"out of time: {left} measurements were not started", file=sys.stderr)
        return out

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other command is being timed, if this one runs in the background (`bench/parts.py`)."""
        if not self.turns:
            yield
            return
        print(WAITING, flush=True)
        if not sys.stdin.readline():
            raise RuntimeError("the process that grants turns has ended")
        try:
            yield
        finally:
            print(TIMED, flush=True)

    def machine(self, dtype: torch.dtype) -> Machine:
        if dtype not in self._machines:
            self._machines[dtype] = self.on.machine(dtype)
        return self._machines[dtype]

    def running_here(self, names: Sequence[str], providers: Mapping[str, Provider] = PROVIDERS) -> list[str]:
        """The `providers` that run on this device."""
        here = [name for name in names if self.on.kind in providers[name].devices]
        for name in names:
            if name not in here:
                self.left_out(name, f"it is not measured on {self.on.kind}")
        return here

    def left_out(self, what: str, why: object) -> None:
        print(f"left out: {what}: {first_line(why)}", file=sys.stderr)

    @contextmanager
    def if_it_fits(self, what: str) -> Iterator[None]:
        """Leave out what needs more memory than the device has, for its reference in float64, and go on."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self.left_out(what, error)

    @contextmanager
    def counting_failures(self, subject: "Measurement", provider: str) -> Iterator[None]:
        """Count wrong results and failures of this package's code within the context; ignore failures of others."""
        what = f"{subject}, {provider}"
        try:
            yield
        except Exception as error:
            if "CUDA error" in str(error):  # no later result could be trusted
                raise
            refused = isinstance(error, (ValueError, torch.OutOfMemoryError)) or provider not in OURS
            if refused and not isinstance(error, AssertionError):
                self.left_out(what, error)
            else:
                self.wrong += 1
                print(f"WRONG, so no row: {what}: {first_line(error)}", file=sys.stderr)


def first_line(why: object) -> str:
    return (str(why).strip() or repr(why)).splitlines()[0]


@dataclass(frozen=True)
class Measurement:
    """What is measured, and the command that reproduces its rows."""

    op: str
    mode: str
    dtype: torch.dtype
    shape: Shape
    work: WorkEstimate
    command: str

    def __str__(self) -> str:
        return f"{self.op} {self.mode} {self.shape} {short(self.dtype)}"


@dataclass(frozen=True)
class Candidate:
    """A provider with a correct result, ready to be timed, and the observations of its check."""

    call: Call
    errors: tuple[float, float]
    """RMS and maximum, as in `Row`."""
    peak_bytes: int
    """As in `Row`."""
    saved_bytes: int = 0
    config: dict[str, str] = field(default_factory=dict)
    kernels: tuple[Kernel, ...] = ()


def reference(*arguments: Any, **options: Any) -> tuple[list[Reference], list[Reference | None]]:
    """`testing.reference_with_bounds`, without cuDNN's search for the fastest algorithm: it would run up to ten of them
    for each convolution in float64, which a reference needs three to nine times."""
    searches, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        return testing.reference_with_bounds(*arguments, **options)
    finally:
        torch.backends.cudnn.benchmark = searches


def candidate(
    on: Device, call: Call, exact: Sequence[Reference], *, watch: bool, config: dict[str, str], peak_of: int = 1
) -> Candidate:
    """A provider whose `call` returns the results that belong to `exact`, several times; raises AssertionError if one
    is wrong.

    On a GPU a later call may run differently from the first: it is captured as a CUDA graph, replayed, or launched
    without Triton's own checks. `watch`: note the kernels of the first one. `peak_of`: the number of the call whose
    memory counts, that which captures, as a replay allocates nothing of what its graph keeps; -1 for none.
    """
    peak, errors, kernels = 0, (0.0, 0.0), list[Kernel]()
    for number in range(4 if on.kind == "cuda" else 2):
        results: list[Tensor] = []

        def kept(made: Any, results: list[Tensor] = results) -> None:
            results.extend(call.timed(made))

        with launches(watch and number == 0) as launched:
            if number == peak_of:
                peak = on.peak(Call(call.before, kept))
            else:
                kept(call.before(0))
        kernels += launched
        rms, largest = check_results(results, exact)
        errors = max(errors[0], rms), max(errors[1], largest)
    return Candidate(call, errors, peak, config=config, kernels=tuple(kernels))


Clock = Callable[[dict[str, Call], int], Times]
"""Times calls in so many rounds."""


def add_rows(
    session: Session, subject: Measurement, candidates: dict[str, Candidate], clocks: Mapping[str, Clock]
) -> None:
    """In its turn, time all candidates, interleaved, by each of the `clocks`, and add a row for each.

    `clocks` are by their `l2`, as in `Row`.
    """
    if candidates:
        with session.turn():
            for l2, clock in clocks.items():
                _add_rows(session, subject, candidates, l2, clock)


def add_rows_before(
    session: Session, subject: Measurement, candidates: dict[str, Candidate], clocks: Mapping[str, Clock]
) -> None:
    """`add_rows` before something that may take all the time that is left, such as compiling.

    In the background, where compiling would wait for the turn, only of what has been compiled: parts time the others.
    """
    if not session.turns or any(name in PROVIDERS and PROVIDERS[name].compiled for name in candidates):
        add_rows(session, subject, candidates, clocks)


def _add_rows(session: Session, subject: Measurement, candidates: dict[str, Candidate], l2: str, clock: Clock) -> None:
    expected = {name: prediction(session.on.name, str(subject), name) for name in candidates}
    before = session.on.clocks()
    times = clock({name: candidate.call for name, candidate in candidates.items()}, session.rounds)
    after = session.on.clocks()
    machine = session.machine(subject.dtype)
    for name, candidate in candidates.items():
        found, n = times[name], len(times[name])
        seconds = 1e-3 * found[n // 2]
        tflops = subject.work.flop / seconds / 1e12
        gbps = subject.work.values * subject.dtype.itemsize / seconds / 1e9
        row = Row(
            op=subject.op,
            provider=name,
            mode=subject.mode,  # type: ignore[arg-type]
            dtype=short(subject.dtype),
            shape=subject.shape,
            l2=l2,  # type: ignore[arg-type]
            p20=found[n // 5],
            p50=found[n // 2],
            p80=found[n * 4 // 5],
            n=n,
            peak_bytes=candidate.peak_bytes,
            saved_bytes=candidate.saved_bytes,
            tflops=tflops,
            gbps=gbps,
            roofline=max(tflops / machine.matrix_tflops, gbps / machine.copy_gbps),
            rms_error=candidate.errors[0],
            max_error=candidate.errors[1],
            clocks_before=before,
            clocks_after=after,
            config=candidate.config,
            kernels=candidate.kernels,
            machine=machine,
            command=subject.command,
        )
        predicted = expected[name]
        print(
            f"{subject!s:45} {l2:4} {name:20} {row.p50:9.4g} ms ({row.p20:.4g} to {row.p80:.4g}), "
            f"{f'{predicted.beside(1e3 * row.p50)}, ' if predicted else ''}"
            f"{row.roofline:6.1%} of the roofline, peak {row.peak_bytes / 2**20:.1f} MiB, "
            f"saved {row.saved_bytes / 2**20:.1f} MiB",
            flush=True,
        )
        session.rows.append(row)
        if session.file is not None:
            session.file.add(row)


def check_results(results: Sequence[Tensor], exact: Sequence[Reference]) -> tuple[float, float]:
    """Check results against the bound of `lmfn_kernels/testing.py`; raises AssertionError if one exceeds it.

    Returns the largest RMS error relative to the RMS of the exact value, and the largest error likewise.
    """
    rms = largest = 0.0
    for i, (result, e) in enumerate(zip(results, exact, strict=True)):
        testing.assert_within_rounding(f"result or gradient {i}", result, e)
        error, tiny = result.double() - e.value, torch.finfo(torch.float64).tiny
        rms = max(rms, (error.square().mean() / e.value.square().mean().clamp_min(tiny)).sqrt().item())
        largest = max(largest, (error.abs().max() / e.value.abs().max().clamp_min(tiny)).item())
    return rms, largest


@contextmanager
def launches(any_are: bool) -> Iterator[list[Kernel]]:
    """The distinct kernels launched within the context, in order; empty unless `any_are`."""
    found: list[Kernel] = []
    if not any_are:
        yield found
        return
    from lmfn_kernels.runtime import launch

    def noted(launch: Any, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        made = launch(kernel, grid, arguments)
        names: tuple[str, ...] = ("BLOCK_H", "BLOCK_W", "num_warps", "STAGES")
        config = {name: int(arguments[name]) for name in names if name in arguments}
        # An interpreted kernel is not compiled and has none of these.
        registers, spills = (int(getattr(made, name, 0) or 0) for name in ("n_regs", "n_spills"))
        shared = int(made.metadata.shared) if hasattr(made, "metadata") else 0
        one = Kernel(kernel.__name__.removesuffix("_kernel"), config, registers, spills, shared)
        if one not in found:
            found.append(one)

    with launch.intercepting(noted):
        yield found
