"""Rows that were never measured, and a GPU that is none: its events read the clock on the wall."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.devices import Cpu, Gpu
from bench.rows import Machine, Row, Shape


@pytest.fixture
def row() -> Callable[..., Row]:
    machine = Machine("Some device", 0, "1", "13", "9", "2.11", "3.6.0", "3.11", "c0ffee", False, 4000.0, 700.0)

    def make(**fields: Any) -> Row:
        given: dict[str, Any] = {
            "op": "rfdb",
            "provider": "triton",
            "mode": "infer",
            "dtype": "bfloat16",
            "shape": Shape(1, 1, 50, 180, 320),
            "l2": "cold",
            "p20": 0.9,
            "p50": 1.0,
            "p80": 1.1,
            "n": 20,
            "peak_bytes": 2**20,
            "saved_bytes": 0,
            "tflops": 10.0,
            "gbps": 100.0,
            "roofline": 0.5,
            "rms_error": 0.001,
            "max_error": 0.002,
            "clocks_before": "1980 MHz",
            "clocks_after": "1980 MHz",
            "config": {"launch": "tuned"},
            "kernels": (),
            "machine": machine,
            "command": "python -m bench ops --op rfdb",
        }
        return Row(**(given | fields))

    return make


@pytest.fixture(autouse=True)
def _ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this machine take a second."""
    monkeypatch.setattr(Cpu, "ceilings", lambda *_: (10.0, 0.1))


class Event:
    """The GPU sleeps until all is queued, as the real one is made to: `query` says that it has not begun."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def query(self) -> bool:
        return False

    def elapsed_time(self, other: "Event") -> float:
        return 1e3 * (other.at - self.at)


class Cuda:
    """What `Gpu` asks of `torch.cuda`."""

    Event = Event

    def __init__(self) -> None:
        self.slept = 0

    def is_available(self) -> bool:
        return True

    def get_device_properties(self, _: int) -> Any:
        return type("Properties", (), {"L2_cache_size": 2**18})

    def get_device_name(self) -> str:
        return "Fake GPU 1"

    def _sleep(self, cycles: int) -> None:
        assert cycles > 0
        self.slept += 1

    def synchronize(self) -> None:
        pass

    def memory_allocated(self) -> int:
        return 100

    def max_memory_allocated(self) -> int:
        return 1100

    def reset_peak_memory_stats(self) -> None:
        pass


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Tensors are on the CPU, kernels in Triton's interpreter."""
    made = Gpu(Cuda(), "cpu")
    monkeypatch.setattr(made, "ceilings", lambda _: (100.0, 1.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    return made
