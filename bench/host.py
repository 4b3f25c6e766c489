"""Launches of every op, of a frame and of a training step, and the host time they take.

Counts this package's kernels and PyTorch's, in eager calls, without a CUDA graph. With a GPU (`--device cuda`), the
time is that until a call has been queued completely. Without one, it is the processor time of everything above the
driver (`bench/stand_in.py`), with CPU tensors so small that PyTorch's own kernels take almost no time. Times are minima
over many calls.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import lmfn_kernels
from bench.devices import Device, device
from bench.network import image, network
from bench.providers import PROVIDERS, call
from bench.registry import OPS, PARTS
from bench.rows import Shape
from bench.train import Step
from lmfn.inference import plain
from lmfn_kernels import weight_layout
from lmfn_kernels.cases import is_image
from lmfn_kernels.conv import backend as conv
from lmfn_kernels.rfdb import backend as rfdb
from lmfn_kernels.runtime import backend, configs
from lmfn_kernels.runtime.torch_private import TorchDispatchMode, tree_iter
from lmfn_kernels.weights import Conv

SIZE = (1, 32, 32)
"""Images, height and width of the ops' calls: small, since the number of launches does not depend on the size."""
FRAME = Shape(1, 4, 50, 64, 64)
STEP = Shape(2, 4, 50, 64, 64)
SECONDS, CALLS = 1.0, 3
"""Duration and minimum number of the repetitions of a call."""

NOTHING = {
    "as_strided_",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "resize_",
    "set_",
    "_unsafe_view",
}
"""Operations that are not views and launch nothing."""
PAIRS = {"mse_loss", "mse_loss_backward", "linalg_vector_norm"}
"""Operations that launch two kernels."""
TENSORS = (110, 64, 48, 36, 30)
"""Tensors per launch of PyTorch's multi-tensor kernels that take one, two, ... lists (MultiTensorApply.cuh)."""


class Launches(TorchDispatchMode):
    """Counts launches within the context: `ours`, and by name those that PyTorch's operations make on a GPU,
    `others`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ours, self.others = 0, Counter[str]()

    @property
    def total(self) -> int:
        return self.ours + self.others.total()

    def __enter__(self) -> "Launches":
        from lmfn_kernels.runtime import launch

        def counted(launch: Any, *launched: Any) -> Any:
            self.ours += 1
            return launch(*launched)

        self._counting = launch.intercepting(counted)
        self._counting.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._counting.__exit__(None, None, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name.startswith(("_foreach", "_fused")):
            lists = [a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)]
            lists += [result] if isinstance(result, (list, tuple)) and result else []
            if name.startswith("_fused_adam"):
                lists = lists[:4]  # the step counts are part of the launch's own arguments
            self.others[name] += -(-len(lists[0]) // TENSORS[len(lists) - 1])
        elif not func.is_view and name not in NOTHING and any(written.numel() for written in _tensors(result)):
            self.others[name] += 2 if name in PAIRS else 1
        return result


def _tensors(result: Any) -> Iterator[Tensor]:
    return (t for t in tree_iter(result) if isinstance(t, Tensor))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    every = [op for op in OPS | PARTS if op != "lmfn"]
    parser.add_argument("--op", nargs="*", choices=OPS | PARTS, default=every, help="default: all; may be empty")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="seconds for which each call is repeated")


def run(options: argparse.Namespace) -> int:
    on = device(options.device)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # the stand-in leaves memory uninitialised, and denormal values are slow
    torch.manual_seed(0)
    with here(on.kind), lmfn_kernels.backend("triton"):
        print(f"{'':18} {'':5} {'ours':>5} {'torch':>5} {'us':>8}   on {on.name}")

        def row(name: str, mode: str, called: Callable[[], Any]) -> str:
            launched, least = count(called), 1e6 * least_time(called, on, options.seconds)
            ours, others = launched.ours, launched.others.total()
            print(f"{name:18} {mode:5} {ours:5} {others:5} {least:8.1f}", flush=True)
            return f"{launched.total} launches, {least:.0f} us"

        for name, mode, called in calls(options.op, on.torch_device):
            row(name, mode, called)
        for name, called in parts(on.torch_device):
            print(f"{name:36} {1e6 * least_time(called, on, options.seconds):8.2f}", flush=True)
        found = [row(name, "", called) for name, called in wholes(on.torch_device)]
    print(f"frame: {found[0]}; step: {found[1]}")
    return 0


@contextmanager
def here(kind: str) -> Iterator[None]:
    """Let kernels be launched: on a GPU as usual, otherwise on the stand-in for one, with CPU tensors."""
    if kind == "cuda":
        yield
        return
    from bench.stand_in import SHARED, gpu, keep_freed_memory

    def described(_device: torch.device) -> configs.Device:
        return configs.Device("sm_90", 90, SHARED)

    keep_freed_memory()
    with (
        gpu(),
        mock.patch.object(backend, "INTERPRETED", True),  # so that CPU tensors are accepted
        mock.patch.object(configs, "describe", described),  # calling a mock would take longer than parts of a launch
    ):
        yield


def count(called: Callable[[], Any]) -> Launches:
    called()  # exclude what only the first call does
    with Launches() as launched:
        called()
    return launched


def least_time(called: Callable[[], Any], on: Device, seconds: float) -> float:
    """Seconds of the fastest call. Each starts with an empty GPU queue, so that none waits for space in it."""
    clock = time.perf_counter if on.kind == "cuda" else time.process_time
    least, end, times = float("inf"), time.perf_counter() + seconds, 0
    while times < CALLS or time.perf_counter() < end:
        times += 1
        on.synchronize()
        begin = clock()
        called()
        least = min(least, clock() - begin)
    return least


def calls(names: Sequence[str], on: str) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Calls of each op in bfloat16: without gradients, with weights in the kernels' layout; then forward and backward,
    with ordinary weights."""
    for name in names:
        op = (OPS | PARTS)[name]
        shape = op.shape(*SIZE)
        tensors = PROVIDERS["triton"].inputs(op.make(shape, torch.bfloat16, on))
        laid_out = [weight_layout(t) if t.ndim == 4 and not is_image(t) else t for t in tensors]
        function = PROVIDERS["triton"].function(op.function(shape))
        yield name, "infer", call(function, [laid_out], "infer")
        yield name, "full", call(function, [tensors], "full")


def wholes(on: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """A frame, as `for_inference` computes it without a CUDA graph, and a training step."""
    model = network(FRAME, device=on)
    x = image(FRAME, torch.float32, on)
    frame = plain(network(FRAME, device=on).requires_grad_(False), x.device, torch.bfloat16)
    with torch.no_grad():
        yield "frame", lambda: frame(x)
    yield "step", Step(PROVIDERS["triton"], model, image(STEP, torch.bfloat16, on), image(STEP, torch.float32, on))


def parts(on: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Two launchers (what an op's call takes below its checks and its registration), parts of a launch, and calls that
    indicate the speed of the host."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    from lmfn_kernels.runtime import launch
    from lmfn_kernels.runtime.triton_private import driver

    x = launch.as_kernel_image(torch.zeros(1, 64, 16, 16, dtype=torch.bfloat16, device=on))
    pixels = x.permute(0, 2, 3, 1)
    shape, strides, tile = list(pixels.shape), list(pixels.stride()), [1, 8, 16, 64]
    vector, utils = torch.zeros(64, device=on), driver.active.utils
    # Triton before 3.7 has the second name.
    encode = getattr(utils, "fill_tma_descriptor_tiled", None) or utils.fill_tma_descriptor
    swizzle, bf16, zeros = 3, 9, 0  # of 128 bytes; as cuda.h numbers them, not as Triton does on the device

    def guard() -> None:
        with torch.cuda.device(x.device):
            pass

    y = launch.padded_image(x, 1, 50, 16, 16).zero_()
    maps = [launch.empty_image(x, 1, 25, 16, 16).zero_() for _ in range(3)]
    refine, last, fused, squeeze = (
        Conv(weight_layout(x.new_zeros(n, k, taps, taps)), x.new_zeros(n))
        for n, k, taps in ((50, 50, 3), (25, 50, 3), (50, 100, 1), (12, 50, 1))
    )
    convolve, fuse = conv.implementation("triton").conv, rfdb.implementation("triton").fuse

    yield "launcher of conv3x3", lambda: convolve(y, *refine, padding=1)
    yield "launcher of distill_fuse", lambda: fuse(y, maps, last, fused, squeeze, 0.05, False)
    yield "Python: a loop of 100", lambda: [None for _ in range(100)]
    yield "PyTorch: an empty image", lambda: launch.empty_image(x, *x.shape)
    yield "PyTorch: add_ of 64 values", lambda: vector.add_(1)
    yield "Triton: a TensorDescriptor", lambda: TensorDescriptor(pixels, shape, strides, tile)
    yield (
        "driver: a descriptor encoded",
        lambda: encode(pixels.data_ptr(), swizzle, 2, bf16, tile, shape, strides, zeros),
    )
    if on == "cuda":
        yield "driver: the current stream", lambda: driver.active.get_current_stream(x.device.index)
        yield "PyTorch: a device guard", guard
        yield "PyTorch: a device's capability", lambda: torch.cuda.get_device_capability(x.device)
