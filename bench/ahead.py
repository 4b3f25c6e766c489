"""Compile kernels into Triton's cache before they are needed: `python -m bench ahead`.

Makes the calls of the tests and benchmarks at their sizes, on CPU tensors, with a compiler in place of the launch, in
one process per core and without using the GPU. Kernels that are needed first are compiled first. If a kernel crashes
the compiler, it is reported and another process continues.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import lmfn_kernels
from bench import host
from bench.network import image, network
from bench.ops import SIZES
from bench.providers import PROVIDERS
from bench.registry import OPS, BenchOp
from bench.rows import Shape
from bench.shares import run_shares, say
from bench.train import Step
from lmfn import fp8
from lmfn.inference import plain
from lmfn.network import Network
from lmfn_kernels import cases, testing, weight_layout
from lmfn_kernels.cases import is_image
from lmfn_kernels.conv import backend as conv
from lmfn_kernels.conv import triton_backend as convolutions
from lmfn_kernels.runtime import backend, configs, launch, trials
from lmfn_kernels.runtime.triton_private import CudaLauncher, GPUTarget, driver
from lmfn_kernels.weights import E4M3

ODD = (3, 37, 61)
"""Images, height and width as in the tests: neither 1 nor a multiple of 16, for which Triton specialises."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no new kernel after this time")
    parser.add_argument("--gpu", help="NAME:ARCH:SHARED, as in h100:90:232448; default: the present GPU")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    parser.add_argument("--done", type=Path, help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    if options.share:
        return work(options)
    command = [sys.executable, "-m", "bench", "ahead", "--gpu", options.gpu or this_gpu()]
    found = run_shares([*command, "--minutes", str(options.minutes)], options.processes)
    print(f"{found['PASSED']} kernels compiled, {found['FAILED']} failed")
    return 1 if found["FAILED"] or found["broken"] else 0


def this_gpu() -> str:
    """Raises RuntimeError if there is none."""
    if not torch.cuda.is_available():
        raise RuntimeError("there is no GPU that PyTorch can use here; --gpu names one to compile for")
    return ":".join(map(str, configs.describe(torch.device("cuda"))))


def work(options: argparse.Namespace) -> int:
    """Compile every n-th of the distinct launches, in the order of the calls."""
    place, of = map(int, options.share.split("/"))
    done = set(options.done.read_text(encoding="utf-8").splitlines())
    end = time.monotonic() + 60 * options.minutes
    seen: set[tuple[Any, ...]] = set()
    call_name = ""

    def compile_mine(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        key = specialisation(kernel, arguments)
        if key in seen or time.monotonic() > end:
            return
        seen.add(key)
        name = f"{len(seen)}, {kernel.__name__} of {call_name}"
        if len(seen) % of != place or name in done:
            return
        say(f"BEGIN {name}")
        began = time.monotonic()
        try:
            build_launcher(kernel.warmup(grid=grid, **arguments))
        except Exception as error:
            say(f"FAILED {name}: {' '.join(str(error).split())[:300] or repr(error)}")
        else:
            say(f"PASSED {name}: {time.monotonic() - began:.1f} s")

    with in_place_of_launches(options.gpu, compile_mine):
        for call_name, call in calls():
            if time.monotonic() > end:
                break
            try:
                call()
            except Exception as error:
                if place == 0:
                    say(f"FAILED {call_name}: {error!r}")
    say("COMPLETE")
    return 0


def build_launcher(compiled: Any) -> None:
    """Triton's launcher is C, compiled per signature; if it cannot be linked here, the first launch reports that."""
    with suppress(Exception):
        CudaLauncher(compiled.src, compiled.metadata)


def specialisation(kernel: Any, arguments: dict[str, Any]) -> tuple[Any, ...]:
    """What Triton specialises a kernel for: constants, types, and numbers that are 1 or a multiple of 16."""
    constants = {parameter.name for parameter in kernel.params if parameter.is_constexpr}

    def of(name: str, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.dtype, value.data_ptr() % 16 == 0
        if isinstance(value, tuple):
            return tuple(of(name, part) for part in value)
        if hasattr(value, "block_shape"):
            return value.base.dtype, tuple(value.block_shape)
        if type(value) is int and name not in constants:
            return value == 1, value % 16 == 0, value >= 2**31
        return repr(value)

    return (kernel.__name__, *((name, of(name, value)) for name, value in arguments.items()))


@contextmanager
def in_place_of_launches(gpu: str, call: Callable[[Any, Any, dict[str, Any]], None]) -> Iterator[None]:
    """Let ops take CPU tensors; `call` receives kernel, grid and arguments of every launch that they would make.

    `gpu` is NAME:ARCH:SHARED, as in `add_arguments`.
    """
    name, arch, shared = gpu.rsplit(":", 2)

    def unfilled(shape: Any, dtype: Any = torch.float64, device: str = "cpu", scale: float = 1.0) -> Any:  # noqa: ARG001
        return torch.empty(tuple(shape), dtype=dtype, device=device)

    device, target = configs.Device(name, int(arch), int(shared)), GPUTarget("cuda", int(arch), 32)
    there = SimpleNamespace(
        get_current_device=lambda: gpu, get_current_stream=lambda _: 0, get_current_target=lambda: target
    )
    hopper = arch == "90" and convolutions.has_ring()
    with ExitStack() as stack:
        for where, what, by in (
            (driver, "_active", there),
            (configs, "describe", lambda _: device),
            (convolutions, "ring_programs", lambda _: 132 if hopper else 0),
            (conv, "missing_for_e4m3", lambda _: None if hopper else "the GPU has none"),
            (backend, "INTERPRETED", True),
            (cases, "random", unfilled),
        ):
            stack.enter_context(mock.patch.object(where, what, by))
        stack.enter_context(launch.intercepting(lambda _launch, *launched: call(*launched)))
        stack.enter_context(lmfn_kernels.backend("triton"))
        yield


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """The frame and the step first, then both with kernels on trial, then the calls of tests and other benchmarks."""

    def frame(dtype: torch.dtype) -> None:
        shape = Shape(1, 4, 50, 720, 1280)
        infer(network(shape), image(shape, torch.float32, "cpu"), dtype)

    def step() -> None:
        shape = Shape(16, 4, 50, 256, 256)
        Step(
            PROVIDERS["triton"], network(shape), image(shape, torch.bfloat16, "cpu"), image(shape, torch.float32, "cpu")
        )()

    def odd(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
        for one in ops:
            yield f"{one.name} {ODD} {dtype}", partial(call_op, one, one.shape(*ODD), dtype, train=True)

    ops = [one for one in OPS.values() if one.name != "lmfn"]
    yield "a frame, bfloat16", partial(frame, torch.bfloat16)
    yield "a step", step
    yield "a frame, float16", partial(frame, torch.float16)
    in_fp8 = [E4M3] if conv.missing_for_e4m3(torch.device("cpu")) is None else []
    yield from ((f"a frame, {dtype}", partial(frame, dtype)) for dtype in in_fp8)
    profiled = [name for name in trials.ON_TRIAL if name != "overlap"]
    for names in (["overlap"], list(trials.ON_TRIAL), profiled):  # as tested alone, and as measured
        with trials.trying(*names):
            for dtype in (torch.bfloat16, *in_fp8):
                yield f"a frame, {dtype}, with {', '.join(names)}", partial(frame, dtype)
            yield f"a step with {', '.join(names)}", step
    if in_fp8:
        yield from on_trial()
    yield from ((f"host: {name}", call) for name, call in host.wholes("cpu"))
    yield from odd(torch.bfloat16)
    for size in SIZES["cuda"]:
        for train in (False, True):
            for one in ops:
                yield f"{one.name} {size}", partial(call_op, one, one.shape(*size), torch.bfloat16, train=train)
    yield from odd(torch.float32)
    yield from odd(torch.float16)


def on_trial() -> Iterator[tuple[str, Callable[[], object]]]:
    """What the tests of the kernels on trial call in bfloat16, the dtype in which these kernels are measured."""
    try:
        from tests.gpu import test_gpu_graphs as graphs
        from tests.gpu import test_kernels as tests
    except ImportError as error:  # without pytest, or beside another package of that name
        say(f"left out: what the tests on trial call: {error}")
        return

    def call(names: Sequence[str], op: cases.OpCase, size: cases.Size) -> None:
        with trials.trying(*names):
            inputs = op.inputs(size, torch.bfloat16, "cpu")
            testing.differentiate(op.function, inputs)
            with torch.no_grad():
                op.function(*inputs)

    def e4m3(size: tuple[int, ...]) -> None:
        with trials.trying("ring_order"):
            for form in tests.forms_of_e4m3(size, "cpu"):
                form(import_module("lmfn_kernels.rfdb.triton_backend"))

    def frame(names: Sequence[str], size: tuple[int, int], dtype: torch.dtype) -> None:
        with trials.trying(*names):
            infer(graphs.network("lmfn", "cpu"), torch.empty(1, 3, *size), dtype)

    def step(names: Sequence[str]) -> None:
        with trials.trying(*names), torch.autocast("cpu", torch.bfloat16):
            graphs.network("lmfn", "cpu")(torch.empty(graphs.STEP)).sum().backward()

    tried: list[tuple[Sequence[str], Sequence[tuple[str, cases.Size]]]] = []
    tried += [([name], own) for name, own in tests.TRIALS.items()]
    for name, same in tests.OF_THE_SAME_BITS.items():
        tried += [([*more, "ring_input_gradient"], same) for more in ([], [name])]
    for names, listed in tried:
        for op, size in listed:
            yield f"tested: {op} {size} with {', '.join(names)}", partial(call, names, cases.OPS[op], size)
    for one in tests.ORDERED_E4M3:
        yield f"tested: e4m3 {one} with ring_order", partial(e4m3, one)
    overlap, weights = ["overlap"], list(graphs.WITH_WEIGHTS_AHEAD)
    for height_width in graphs.FRAMES:
        for names, dtypes in (
            ([], [torch.bfloat16]),
            (overlap, [torch.bfloat16]),
            (weights, [torch.bfloat16, E4M3]),
            (["weights_ahead", *weights], [torch.bfloat16, E4M3]),
        ):
            for dtype in dtypes:
                what = f"tested: a frame of {height_width}, {dtype}, with {', '.join(names)}"
                yield what, partial(frame, names, height_width, dtype)
    for names in ([], overlap):
        yield f"tested: a step with {', '.join(names)}", partial(step, names)


def infer(model: Network, x: Tensor, dtype: torch.dtype) -> None:
    """A call of the network as `for_inference` makes it on a GPU, without a graph."""
    model.requires_grad_(False)
    if dtype == E4M3:
        with mock.patch.object(
            fp8, "calibrate", lambda _, names: {name: [1.0] * (1 + ("rfdb" in name)) for name in names}
        ):
            fp8.store_as_e4m3(model, torch.bfloat16)
    function = plain(model, torch.device("cpu"), torch.bfloat16 if dtype == E4M3 else dtype)
    with torch.no_grad():
        function(x)


def call_op(op: BenchOp, shape: Shape, dtype: torch.dtype, *, train: bool) -> None:
    """An op of the registry: forward and backward, or without gradients and with weights in the kernels' layout."""
    tensors = PROVIDERS["triton"].inputs(op.make(shape, dtype, "cpu"))
    if not train:
        tensors = [weight_layout(t) if t.ndim == 4 and not is_image(t) else t for t in tensors]
    leaves = [t.requires_grad_(train) for t in tensors]
    results = PROVIDERS["triton"].function(op.function(shape))(*leaves)
    if train:
        torch.autograd.grad(results, leaves, [torch.empty_like(result) for result in results])
