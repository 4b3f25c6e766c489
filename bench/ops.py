"""Times of the ops on a GPU, beside what one would use instead: `python -m bench ops`.

Correctness comes first: a provider whose result is off gets no row. The providers are interleaved call by call; before
each the GPU is put to sleep while the CPU queues the call, so that no launch gap is timed; `cold` overwrites the L2
before each call, `warm` does not. Medians, with the 20th and 80th percentile. The ceilings of the roofline, copy
bandwidth and matrix rate, are measured in the same run.
"""

import json
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

import lmfn_kernels
from bench import cases

SHAPES = [(1, 180, 320), (1, 540, 960), (16, 64, 64)]
SLEEP = 8_000_000  # cycles, some 4 ms: longer than the CPU takes to queue forward and backward of a block
MODES = ("fwd", "full")
OFF = 0.05  # RMS error, as part of the RMS of the float64 result, beyond which a 16-bit result is wrong and not rounded


@dataclass(frozen=True)
class Bench:
    """An op at one shape: function, inputs, and the least work, of forward; `full` is counted as three times that."""

    name: str
    function: Callable[..., Any]
    tensors: list[Tensor]
    flop: float
    bytes: float


def registry(b: int, h: int, w: int, dtype: torch.dtype) -> list[Bench]:
    """The block first: if time runs out, that is there."""
    pixels, size = b * h * w, dtype.itemsize
    c, d, f = 50, 25, 12
    stage, fuse, gate = 9 * c * c + c * d, 9 * c * d + 4 * d * c + c * f, f * f + f * c
    low = ((h - 3) // 2 + 1 - 7) // 3 + 1, ((w - 3) // 2 + 1 - 7) // 3 + 1
    return [
        Bench(
            "rfdb",
            cases.rfdb_flat,
            cases.rfdb_case(b, c, d, f, h, w, dtype, "cuda"),
            2 * pixels * (3 * stage + fuse + gate + 9 * f * f / 4),
            pixels * size * (3 * (2 * c + d) + (c + 3 * d + c + f) + (2 * c + f)),
        ),
        Bench(
            "distill_stage",
            cases.stage_flat,
            cases.stage_case(b, c, d, h, w, dtype, "cuda"),
            2 * pixels * stage,
            pixels * size * (2 * c + d),
        ),
        Bench(
            "distill_fuse",
            cases.fuse_flat,
            cases.fuse_case(b, c, d, f, h, w, dtype, "cuda"),
            2 * pixels * fuse,
            pixels * size * (c + 3 * d + c + f),
        ),
        Bench(
            "esa_gate",
            cases.gate_flat,
            cases.gate_case(b, c, f, h, w, low, dtype, "cuda"),
            2 * pixels * gate,
            pixels * size * (2 * c + f),
        ),
        Bench(
            "conv3x3",
            cases.conv_flat(activation="leaky_relu"),
            cases.conv_case(b, 64, 64, h, w, dtype, "cuda"),
            2 * pixels * 9 * 64 * 64,
            pixels * size * 3 * 64,
        ),
        Bench(
            "layer_attention",
            cases.attention_flat(),
            cases.attention_case(b, 4, c, c, h, w, dtype, "cuda"),
            2 * pixels * (10 * c * c + 4 * c * c),
            pixels * size * (4 * c + 4 * c + c),
        ),
        Bench(
            "channel_gate",
            cases.channel_gate_flat(),
            cases.channel_gate_case(b, c, h, w, dtype, "cuda"),
            2 * pixels * 12 * c,
            pixels * size * 3 * c,
        ),
    ]


def providers(bench: Bench) -> dict[str, tuple[str, Callable[..., Any], list[Tensor]]]:
    """Name: backend, function, inputs."""
    last = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in bench.tensors]

    def compiled(mode: str) -> Callable[..., Any]:
        return torch.compile(bench.function, fullgraph=True, mode=mode, dynamic=False)

    return {
        "triton": ("triton", bench.function, last),
        "eager-float32": ("reference", bench.function, [t.float() for t in bench.tensors]),
        "eager-channels-last": ("reference", bench.function, last),
        "compile": ("reference", compiled("default"), last),
        "compile-max-autotune": ("reference", compiled("max-autotune-no-cudagraphs"), last),
    }


def call(backend: str, function: Callable[..., Any], tensors: list[Tensor], mode: str) -> Callable[[], list[Tensor]]:
    """One forward, or one forward and backward to all inputs, ready to be timed."""
    if mode == "fwd":
        leaves = [t.detach() for t in tensors]

        def forward() -> list[Tensor]:
            with lmfn_kernels.backend(backend), torch.no_grad():
                results = function(*leaves)
            return [results] if isinstance(results, Tensor) else list(results)

        return forward
    leaves = [t.detach().requires_grad_() for t in tensors]
    gradients: list[Tensor] = []

    def full() -> list[Tensor]:
        with lmfn_kernels.backend(backend):
            results = function(*leaves)
            results = [results] if isinstance(results, Tensor) else list(results)
            if not gradients:
                generator = torch.Generator("cuda").manual_seed(5)
                gradients.extend(
                    torch.randn(r.shape, device="cuda", generator=generator).to(
                        r.dtype, memory_format=torch.channels_last
                    )
                    for r in results
                )
            return [r.detach() for r in results] + list(torch.autograd.grad(results, leaves, gradients))

    return full


def off(results: list[Tensor], exact: list[Tensor]) -> float:
    """The largest RMS error of a result, as part of the RMS of the exact one."""
    return max(
        ((r.double() - e).square().mean() / e.square().mean().clamp_min(1e-60)).sqrt().item()
        for r, e in zip(results, exact, strict=True)
    )


def timed(calls: dict[str, Callable[[], Any]], flush: Tensor | None, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, sorted."""
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, one in calls.items():
            if flush is not None:
                flush.zero_()
            torch.cuda._sleep(SLEEP)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            one()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: sorted(start.elapsed_time(end) for start, end in pairs) for name, pairs in events.items()}


def peak(one: Callable[[], Any]) -> int:
    """Bytes that a call has at most beside what was there."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    one()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def ceilings() -> dict[str, float]:
    """Copy bandwidth in bytes/s, read and write together, and bfloat16 matrix rate in FLOP/s."""
    a = torch.randn(2**29, dtype=torch.bfloat16, device="cuda")
    b = torch.empty_like(a)
    m = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    found = timed({"copy": lambda: b.copy_(a), "matrix": lambda: m @ m}, None, 20)
    return {"copy": 2 * a.nbytes / (found["copy"][10] * 1e-3), "matrix": 2 * 8192**3 / (found["matrix"][10] * 1e-3)}


def provenance() -> dict[str, Any]:
    def output(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    return {
        "device": torch.cuda.get_device_name(),
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": output("git", "rev-parse", "HEAD"),
        "dirty": output("git", "status", "--porcelain") != "",
        **ceilings(),
    }


def clocks() -> str:
    command = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,temperature.gpu", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def run(minutes: float, folder: Path, rounds: int = 40) -> int:
    """Measure until done or out of time, one JSON line a row. Gives the number of wrong results."""
    torch.backends.cudnn.benchmark = True
    end, wrong = time.monotonic() + 60 * minutes, 0
    everything = provenance()
    name = re.sub(r"[^a-z0-9]+", "-", everything["device"].lower())
    path = folder / name / "ops.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    flush = torch.empty(2**28, dtype=torch.int8, device="cuda")
    dtype = torch.bfloat16
    todo = [(index, shape, mode) for index in range(7) for shape in SHAPES for mode in MODES]
    with path.open("w") as file:
        for place, (index, (b, h, w), mode) in enumerate(todo):
            if time.monotonic() > end:
                print(f"out of time: {len(todo) - place} of {len(todo)} measurements left out")
                break
            torch.manual_seed(0)
            torch._dynamo.reset()
            bench = registry(b, h, w, dtype)[index]
            exact = call("reference", bench.function, [t.double() for t in bench.tensors], mode)()
            calls, errors = {}, {}
            for provider, (backend, function, tensors) in providers(bench).items():
                one = call(backend, function, tensors, mode)
                errors[provider] = off(one(), exact)
                if errors[provider] > OFF:
                    wrong += 1
                    print(f"WRONG: {provider} {bench.name} {mode} {b}x{h}x{w}, RMS error {errors[provider]:.3g}")
                else:
                    calls[provider] = one
            del exact
            memory = {provider: peak(one) for provider, one in calls.items()}
            before = clocks()
            for l2, buffer in (("cold", flush), ("warm", None)):
                timed(calls, buffer, 3)
                for provider, times in timed(calls, buffer, rounds).items():
                    work = 1 if mode == "fwd" else 3
                    seconds = times[len(times) // 2] * 1e-3
                    floor = max(bench.flop / everything["matrix"], bench.bytes / everything["copy"]) * work
                    row = {
                        "op": bench.name,
                        "provider": provider,
                        "mode": mode,
                        "dtype": "float32" if provider == "eager-float32" else "bfloat16",
                        "shape": [b, bench.tensors[0].shape[1], h, w],
                        "l2": l2,
                        "p20": times[len(times) // 5],
                        "p50": times[len(times) // 2],
                        "p80": times[len(times) * 4 // 5],
                        "n": len(times),
                        "peak_bytes": memory[provider],
                        "tflops": bench.flop * work / seconds / 1e12,
                        "gbps": bench.bytes * work / seconds / 1e9,
                        "roofline": floor / seconds,
                        "rms_error": errors[provider],
                        "clocks": [before, clocks()],
                        **everything,
                    }
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    print(
                        f"{bench.name:14} {mode:4} {b}x{h}x{w} {l2} {provider:22} {row['p50'] * 1e3:9.1f} us "
                        f"{row['roofline']:6.1%} of the roofline, peak {memory[provider] / 2**20:8.1f} MiB",
                        flush=True,
                    )
    print(f"rows in {path}; {wrong} wrong results")
    return wrong
