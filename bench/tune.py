"""Time launch configs on this GPU and write lmfn_kernels/configs/<gpu>.json, in the format of `runtime/configs.py`.

For every kernel that an op launches, forward and backward, tiles, warps, stages and splits are tried in this order,
interleaved with the best config so far and by the time of the kernel alone. A candidate can win only if its results are
within the bound against float64 and bit-identical in ten runs; the winner's must be in a hundred. Then the backends of
each op are compared, and the table records where PyTorch's own kernels are faster.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from bench import ahead
from bench.devices import Call, Gpu, device
from bench.measure import check_results, first_line
from bench.ops import SIZES, shape_of
from bench.providers import PROVIDERS, call
from bench.registry import OPS, BenchOp
from bench.rows import Shape
from lmfn import atomic
from lmfn_kernels import testing
from lmfn_kernels.runtime import backend, configs
from lmfn_kernels.runtime.configs import Config, Table, short
from lmfn_kernels.runtime.torch_private import sleep_on_gpu

CONFIGS = Path(configs.__file__).parents[1] / "configs"
TILES = [(4, 8), (8, 8), (16, 8), (4, 16), (8, 16), (16, 16), (4, 32), (8, 32)]
GAIN = 0.98
"""A candidate wins if its median is below this fraction of the best so far; smaller gains are noise."""
ROUNDS = 15
AGAIN, WINNER_AGAIN = 10, 100
"""Repetitions of a candidate and of the winner, whose results must not change."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [op for op in OPS if op != "lmfn"]
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing new after this time")
    parser.add_argument("--op", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--shape", nargs="+", help="as for `ops`; default: the sizes of `ops`")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "float16", "bfloat16"), default=["bfloat16"])
    parser.add_argument("--out", type=Path, help="folder for a copy of the table, written first")


def run(options: argparse.Namespace) -> int:
    on = device("cuda")
    assert isinstance(on, Gpu)
    folders = [options.out, CONFIGS] if options.out else [CONFIGS]
    tuning = Tuning(on, time.monotonic() + 60 * options.minutes, folders)
    sizes = options.shape or ["x".join(map(str, size)) for size in SIZES["cuda"]]
    todo = [(OPS[op], shape_of(OPS[op], size), dtype) for dtype in options.dtype for size in sizes for op in options.op]
    for place, (op, shape, dtype) in enumerate(todo):
        if tuning.out_of_time:
            print(f"out of time: {len(todo) - place} of {len(todo)} ops and shapes were not started", file=sys.stderr)
            break
        tuning.tune(op, shape, getattr(torch, dtype))
        tuning.choose_backend(op, shape, getattr(torch, dtype))
    return 0


class Probe(dict[str, Config]):
    """A table of configs that records the last key a launcher looked up."""

    asked: str = ""

    def __contains__(self, key: object) -> bool:
        self.asked = str(key)
        return super().__contains__(key)

    def __bool__(self) -> bool:
        return True  # consulted even when empty


class Workload(NamedTuple):
    """Forward and backward pass of an op on the kernels, and the expected results."""

    call: Call
    exact: list[testing.Reference]


class Tuning:
    """The table of a device, as it grows; entries of its existing table are kept."""

    def __init__(self, on: Gpu, end: float, folders: Sequence[Path]) -> None:
        self.on, self.end, self.folders = on, end, folders
        self.device = configs.describe(torch.device(on.torch_device))
        found = configs.tuned(self.device.name)
        self.launch, self.backend = Probe(found.launch), dict(found.backend)
        self.pool: ProcessPoolExecutor | None = None

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() > self.end

    def tune(self, op: BenchOp, shape: Shape, dtype: torch.dtype) -> None:
        """Find configs for the kernels of an op that have none yet, the slowest first."""
        work = made(op, shape, dtype, self.on.torch_device)
        with self.using(self.launch):
            work.call()  # compile with the present table
            spent = {key: ms for key, ms in self.times(work, ROUNDS).items() if not dict.__contains__(self.launch, key)}
        best = {key: self.untuned(key, dtype) for key in spent}
        order = sorted(spent, key=lambda key: -spent[key])
        for step in (tiles, warps, stages, splits):
            if self.out_of_time:
                break
            candidates = {key: list(step(best[key])) for key in order}
            self.compile_ahead(op, shape, dtype, candidates)
            for key in order:
                if self.out_of_time:
                    break
                best[key] = self.fastest(work, key, best[key], candidates[key])
        for key in order:
            if best[key] != self.untuned(key, dtype):
                fault = self.fault(work, key, best[key], WINNER_AGAIN)
                print(f"{key}: {best[key]}" + (f", but {fault}" if fault else ""), flush=True)
                if not fault:
                    self.launch[key] = best[key]
        self.write()

    def untuned(self, key: str, dtype: torch.dtype) -> Config:
        kernel, _, bits = key.split("/")
        return configs.heuristic(kernel, dtype, self.device, int(bits))

    def fastest(self, work: Workload, key: str, best: Config, candidates: Iterable[Config]) -> Config:
        """The fastest correct config, by the time of the kernel alone."""
        sound = [best, *(c for c in candidates if c != best and not self.fault(work, key, c, AGAIN))]
        found: dict[Config, list[float]] = {config: [] for config in sound}
        for _ in range(ROUNDS):
            for config in sound:
                with self.using({**self.launch, key: config}):
                    found[config].append(self.times(work, 1).get(key, float("inf")))
        median = {config: statistics.median(times) for config, times in found.items()}
        winner = min(sound, key=lambda config: median[config])
        return winner if median[winner] < GAIN * median[best] else best

    def fault(self, work: Workload, key: str, config: Config, times: int) -> str:
        """The fault of a config; empty if there is none."""
        with self.using({**self.launch, key: config}):
            try:
                first = work.call()
                check_results(first, work.exact)
                for _ in range(times):
                    if not all(torch.equal(a, b) for a, b in zip(first, work.call(), strict=True)):
                        return "a repeated call returned different bits"
            except Exception as error:
                if "CUDA error" in str(error):  # no later result could be trusted
                    raise
                return first_line(error)
        return ""

    def times(self, work: Workload, rounds: int) -> dict[str, float]:
        """Median milliseconds that the kernels with each key of the table take in one call."""
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            events = self.queued(work)
            self.on.synchronize()
            total: dict[str, float] = {}
            for key, start, end in events:
                total[key] = total.get(key, 0.0) + start.elapsed_time(end)
            for key, ms in total.items():
                found.setdefault(key, []).append(ms)
        return {key: statistics.median(ms) for key, ms in found.items()}

    def queued(self, work: Workload) -> list[tuple[str, Any, Any]]:
        """Events around every launch of a call that was fully queued before its first kernel ran."""
        from lmfn_kernels.runtime.launch import intercepting

        events: list[tuple[str, Any, Any]] = []

        def timed(launch: Callable[..., Any], kernel: Any, grid: Any, arguments: Any) -> None:
            start, end = (self.on.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            launch(kernel, grid, arguments)
            end.record()
            events.append((self.table.asked, start, end))

        with intercepting(timed):
            while True:
                events.clear()
                self.on.synchronize()
                sleep_on_gpu(self.on.cuda, self.on.sleep)
                work.call()
                if not events or not events[0][1].query() or not self.on.sleep_longer():
                    return events

    def compile_ahead(self, op: BenchOp, shape: Shape, dtype: torch.dtype, candidates: dict[str, list[Config]]) -> None:
        """Compile all candidates into Triton's cache, in one process per core, since this takes longest."""
        if backend.INTERPRETED:
            return
        tables = [{**self.launch, key: config} for key, found in candidates.items() for config in found]
        self.pool = self.pool or ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"))
        try:
            list(self.pool.map(_compile, [(ahead.this_gpu(), op.name, shape, dtype, one) for one in tables]))
        except BrokenProcessPool:  # the compiler crashed; the other candidates are compiled when they are tried
            self.pool = None

    @contextmanager
    def using(self, table: dict[str, Config]) -> Iterator[None]:
        """Use this table for all launches within the context."""
        self.table = table if isinstance(table, Probe) else Probe(table)
        with mock.patch.object(configs, "tuned", return_value=Table(self.table, {})):
            yield

    def choose_backend(self, op: BenchOp, shape: Shape, dtype: torch.dtype) -> None:
        """Record the `torch` backend for an op if it is faster both forward, and forward with backward."""
        tensors = op.make(shape, dtype, self.on.torch_device)
        key = f"{op.name}/{short(dtype)}/{(shape.b * shape.h * shape.w).bit_length()}"
        faster = []
        with self.using(self.launch):
            for mode in ("infer", "full"):
                calls = {
                    name: call(PROVIDERS[name].function(op.function(shape)), [PROVIDERS[name].inputs(tensors)], mode)
                    for name in ("triton", "torch")
                }
                times = self.on.time(calls, ROUNDS, "warm")
                faster.append(times["torch"][ROUNDS * 4 // 5] < times["triton"][ROUNDS // 5])
        self.backend.pop(key, None)
        if all(faster):
            self.backend[key] = "torch"
            print(f"{key}: torch", flush=True)
        self.write()

    def write(self) -> None:
        launch = {key: config._asdict() for key, config in sorted(self.launch.items())}
        text = json.dumps({"launch": launch, "backend": dict(sorted(self.backend.items()))}, indent=1) + "\n"
        for folder in self.folders:
            path = folder / f"{self.device.name}.json"
            try:
                atomic.write(path, text.encode())
            except OSError as error:
                if folder == self.folders[0]:
                    raise
                print(f"left out: {path}: {error.strerror}; copy {self.folders[0] / path.name} there", file=sys.stderr)


def tiles(c: Config) -> Iterator[Config]:
    yield from (c._replace(height=height, width=width) for height, width in TILES)


def warps(c: Config) -> Iterator[Config]:
    yield from (c._replace(warps=n) for n in (2, 4, 8))


def stages(c: Config) -> Iterator[Config]:
    yield from (c._replace(stages=n) for n in (1, 2, 3, 4))


def splits(c: Config) -> Iterator[Config]:
    yield from (c._replace(splits=n) for n in (32, 64, 128, 256, 512))


def made(op: BenchOp, shape: Shape, dtype: torch.dtype, on: str) -> Workload:
    torch.manual_seed(0)
    tensors, provider = op.make(shape, dtype, on), PROVIDERS["triton"]
    results, gradients = testing.reference_with_bounds(op.function(shape), tensors)
    exact = [*results, *(g for g in gradients if g is not None)]
    return Workload(call(provider.function(op.function(shape)), [provider.inputs(tensors)], "full"), exact)


def _compile(job: tuple[str, str, Shape, torch.dtype, dict[str, Config]]) -> None:
    """Compile the kernels that an op launches with a table. Configs that fail to compile fail again when tried."""
    gpu, name, shape, dtype, table = job

    def compiled(kernel: Any, grid: Any, arguments: Any) -> None:
        with suppress(Exception):
            kernel.warmup(grid=grid, **arguments)

    with mock.patch.object(configs, "tuned", return_value=Table(table, {})), ahead.in_place_of_launches(gpu, compiled):
        ahead.call_op(OPS[name], shape, dtype, train=True)
