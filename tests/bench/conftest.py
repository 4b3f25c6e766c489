"""Invented rows, and a stand-in for a GPU whose events read the wall clock."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bench.rows import Machine, Row, Shape

if TYPE_CHECKING:
    from bench.devices import Gpu


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
    """Fixed ceilings, since measuring those of this machine takes a second."""
    from bench.devices import Cpu  # not at the top, for the reason given in `gpu`

    monkeypatch.setattr(Cpu, "ceilings", lambda *_: (10.0, 0.1))


@pytest.fixture
def predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these the only predictions: GPU, what is measured, part, us before, us."""
    from bench import predictions  # not at the top, for the reason given in `gpu`

    def write(*rows: tuple[str, str, str, str, float]) -> None:
        lines = ["\t".join(predictions.Prediction._fields)]
        lines += [
            f"{gpu}\t{of}\t{part}\t{before}\t{us}\tc0ffee\tstem\tfewer loads" for gpu, of, part, before, us in rows
        ]
        (tmp_path / "predictions.tsv").write_text("\n".join(lines) + "\n")
        monkeypatch.setattr(predictions, "FILE", tmp_path / "predictions.tsv")

    return write


class Event:
    """The GPU sleeps until all calls are queued, so `query` reports that it has not started."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def query(self) -> bool:
        return False

    def elapsed_time(self, other: "Event") -> float:
        return 1e3 * (other.at - self.at)


class Cuda:
    """The part of `torch.cuda` that `Gpu` uses."""

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


class Capture:
    """Replaces the capture of a CUDA graph."""

    def __call__(self, run: Callable[..., Any], *examples: Any, warm_ups: int = 0) -> Callable[..., Any]:
        for _ in range(warm_ups + 1):
            run(*examples)
        return run


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> "Gpu":
    """Tensors are on the CPU and kernels run in Triton's interpreter; replaying a graph runs the function again."""
    # Not at the top: the interpreter is chosen before Triton or the kernels are imported.
    from bench.devices import Gpu
    from lmfn import cuda_graphs, inference

    made = Gpu(Cuda(), "cpu")
    monkeypatch.setattr(cuda_graphs, "GraphCapture", Capture)
    monkeypatch.setattr(inference, "for_onednn", lambda *_: None)
    monkeypatch.setattr(made, "ceilings", lambda _: (100.0, 1.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    return made


BARE = """
import sys

ABSENT = {
    "OpenImageIO", "accelerate", "av", "cv2", "huggingface_hub", "hypothesis", "matplotlib", "onnx", "onnxruntime",
    "openvino", "pytest_benchmark", "safetensors", "tensorboard", "tqdm", "tyro", "xdist", "yaml",
}


class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, *rest)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine used only for measurements, with torch, Triton, NumPy and pytest; children inherit
    it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BARE)
    kept = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "PYTHONPATH")}
    return kept | {"PYTHONPATH": str(tmp_path / "site"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
