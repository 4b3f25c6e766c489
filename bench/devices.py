"""The device that is measured: timing, memory, ceilings, and its description in rows."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from bench.parts import ROOT
from bench.rows import Machine
from lmfn.device import device_name
from lmfn_kernels.runtime.torch_private import profiled_events, sleep_on_gpu

LONGEST_SLEEP = 400_000_000
"""GPU cycles, about 0.2 s."""


@dataclass(frozen=True)
class Call:
    """A call: `timed` is timed; it takes the result of `before(turn)`, which is not timed."""

    before: Callable[[int], Any]
    timed: Callable[[Any], Any]

    def __call__(self, turn: int = 0) -> Any:
        return self.timed(self.before(turn))


Times = dict[str, list[float]]
"""Sorted milliseconds of the calls of each provider."""


class Cpu:
    """Measures by wall clock, and the memory of PyTorch's allocator; what a library allocates by itself is not
    counted."""

    kind = torch_device = "cpu"
    l2: tuple[str, ...] = ("host",)
    copies_bytes = 0
    """Minimum total size of the copies of an input; 0 on a CPU, whose caches are not flushed."""

    @property
    def name(self) -> str:
        return f"CPU {device_name(torch.device('cpu'))}"

    def time(self, calls: Mapping[str, Call], rounds: int, l2: str) -> Times:  # noqa: ARG002 (there is one state)
        return wall(self, calls, rounds)

    def peak(self, call: Call) -> int:
        """Peak bytes of a call, including its results, in addition to what was allocated before."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            result = call()
        del result
        now = most = 0
        for event in profiled_events(profile):
            if event.name() == "[memory]":
                now += event.nbytes()
                most = max(most, now)
        return most

    def synchronize(self) -> None:
        pass

    def clocks(self) -> str:
        try:
            found = re.findall(r"cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text())
        except OSError:
            found = []
        return f"{max(map(float, found)):.0f} MHz" if found else "unknown"

    def ceilings(self, dtype: torch.dtype) -> tuple[float, float]:
        """Copy bandwidth in GB/s, reads plus writes, and the matrix rate in TFLOP/s."""
        return _ceilings(self, dtype, numbers=2**25, side=2048, rounds=5)

    def machine(self, dtype: torch.dtype) -> Machine:
        return _machine(self, dtype, torch.get_num_threads(), driver="none", cuda="none", cudnn="none")


class Gpu:
    """Measures by CUDA events. Before each timed call the GPU sleeps until the CPU has queued the whole call, so that
    gaps between launches are not timed.

    `cold`: calls cycle through copies of their inputs, which together are larger than twice the L2; `warm`: the same
    call ran immediately before. `cuda` is `torch.cuda`, or its replacement in a test.
    """

    kind = "cuda"

    def __init__(self, cuda: Any = torch.cuda, torch_device: str = "cuda") -> None:
        if not cuda.is_available():
            raise RuntimeError(
                "there is no GPU that PyTorch can use here; --device cpu, where a verb has it, measures the CPU"
            )
        self.cuda, self.torch_device = cuda, torch_device
        self.l2: tuple[str, ...] = ("cold", "warm")
        self.copies_bytes = 2 * int(cuda.get_device_properties(0).L2_cache_size) + 1
        self.sleep = 200_000
        self._turns = count()

    @property
    def name(self) -> str:
        return str(self.cuda.get_device_name())

    def time(self, calls: Mapping[str, Call], rounds: int, l2: str) -> Times:
        times: Times = {name: [] for name in calls}
        for _ in range(rounds + 1):
            for name, call in calls.items():
                start, end = self._queue(call, warm=l2 == "warm")
                self.cuda.synchronize()
                times[name].append(start.elapsed_time(end))
        return {name: sorted(found[1:]) for name, found in times.items()}

    def _queue(self, call: Call, warm: bool) -> tuple[Any, Any]:
        """Events around a call that was fully queued before its first kernel ran."""
        while True:
            # Providers cycle through the copies, so none finds in the cache what the previous one read.
            turn = 0 if warm else next(self._turns)
            if warm:
                call(turn)
            made = call.before(turn)
            start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
            sleep_on_gpu(self.cuda, self.sleep)
            start.record()
            call.timed(made)
            end.record()
            if not start.query() or not self.sleep_longer():
                return start, end

    def sleep_longer(self) -> bool:
        """Sleep longer from now on, because the GPU woke too early; False if it already sleeps as long as allowed."""
        longer = self.sleep < LONGEST_SLEEP
        self.sleep = min(2 * self.sleep, LONGEST_SLEEP)
        return longer

    def peak(self, call: Call) -> int:
        self.cuda.synchronize()
        before = self.cuda.memory_allocated()
        self.cuda.reset_peak_memory_stats()
        result = call()
        self.cuda.synchronize()
        del result
        return int(self.cuda.max_memory_allocated() - before)

    def synchronize(self) -> None:
        self.cuda.synchronize()

    def kernels(self, call: Callable[[], Any]) -> list[tuple[str, float]]:
        """The kernels and copies of a call in order of execution, with the microseconds of each."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            self.synchronize()
        events = [e for e in profiled_events(profile) if e.device_type() == DeviceType.CUDA]
        events = sorted((e for e in events if not e.is_user_annotation()), key=lambda e: e.start_ns())
        return [(e.name(), e.duration_ns() / 1e3) for e in events]

    def clocks(self) -> str:
        return _output(
            "nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw", "--format=csv,noheader"
        )

    def ceilings(self, dtype: torch.dtype) -> tuple[float, float]:
        return _ceilings(self, dtype, numbers=2**29, side=8192, rounds=20)

    def machine(self, dtype: torch.dtype) -> Machine:
        return _machine(
            self,
            dtype,
            threads=0,
            driver=_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            cuda=str(torch.version.cuda or torch.version.hip),
            cudnn=str(torch.backends.cudnn.version()),
        )


Device = Cpu | Gpu


def wall(on: Device, calls: Mapping[str, Call], rounds: int) -> Times:
    """Time the calls in round-robin order by wall clock, with synchronisation, after one warm-up round."""
    times: Times = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            made = call.before(turn)
            on.synchronize()
            start = time.perf_counter()
            call.timed(made)
            on.synchronize()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: sorted(found[1:]) for name, found in times.items()}


def device(name: str) -> Device:
    """The device `cpu` or `cuda`; `auto` is `cuda` if available, otherwise `cpu`."""
    return Gpu() if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else Cpu()


def folder_name(name: str) -> str:
    """The name of the folder for results of a device."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _ceilings(on: Device, dtype: torch.dtype, numbers: int, side: int, rounds: int) -> tuple[float, float]:
    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=on.torch_device)

    a, m = rand(numbers), rand(side, side)
    b = torch.empty_like(a)
    # A matrix product is not always the fastest: on AMD CPUs, MKL's reaches half the rate of oneDNN's convolution.
    x, w = rand(1, 256, side // 16, 128), rand(256, 256, 3, 3)
    x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    calls = {
        "copy": Call(lambda _: None, lambda _: b.copy_(a)),
        "matrix": Call(lambda _: None, lambda _: m @ m),
        "convolution": Call(lambda _: None, lambda _: F.conv2d(x, w, padding=1)),
    }
    found = on.time(calls, rounds, on.l2[0])
    copy, matrix, convolution = (found[name][0] for name in calls)  # the fastest, since they serve as ceilings
    rates = 2 * side**3 / matrix, 2 * w.numel() * x[0, 0].numel() / convolution
    return 2 * a.nbytes / copy / 1e6, max(rates) / 1e9


def _machine(on: Device, dtype: torch.dtype, threads: int, driver: str, cuda: str, cudnn: str) -> Machine:
    copy, matrix = on.ceilings(dtype)
    # Outside a checkout, the environment variable COMMIT names the commit.
    commit = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    # Rows that this run writes do not count as changes.
    changes = "status", "--porcelain", "--untracked-files=no", "--", ":!bench/results"
    dirty = _output("git", "-C", str(ROOT), *changes) != ""
    if commit == "unknown":
        commit, dirty = os.environ.get("COMMIT", "unknown"), "COMMIT" not in os.environ
    return Machine(
        device=on.name,
        threads=threads,
        driver=driver,
        cuda=cuda,
        cudnn=cudnn,
        torch=torch.__version__,
        triton=installed("triton"),
        python=platform.python_version(),
        commit=commit,
        dirty=dirty,
        copy_gbps=copy,
        matrix_tflops=matrix,
    )


def installed(package: str) -> str:
    """The version of a package, or `none`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def nbytes(tensors: list[Tensor]) -> int:
    return sum(t.nbytes for t in tensors)
