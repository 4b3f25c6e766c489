"""What is done per launch, observed where Triton compiles and launches: `test_launch.py` runs this in a process. The
stand-in for a GPU's driver (`bench/stand_in.py`) accepts launches of kernels on CPU tensors and computes nothing."""

import gc
import io
import json
import re
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from itertools import chain
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from triton import knobs
from triton.tools.tensor_descriptor import TensorDescriptor

import bench.__main__ as bench
import lmfn_kernels
from bench import host
from bench.host import calls, here
from bench.registry import OPS, PARTS
from lmfn_kernels import conv3x3, weight_layout
from lmfn_kernels.acfm import triton_backend as acfm
from lmfn_kernels.alfm import triton_backend as alfm
from lmfn_kernels.conv import triton_backend as conv
from lmfn_kernels.mshf import triton_backend as mshf
from lmfn_kernels.rfdb import triton_backend as rfdb
from lmfn_kernels.runtime import assembler, configs, constant_weights, launch, trials
from lmfn_kernels.runtime.triton_private import CudaLauncher, JITFunction, driver
from lmfn_kernels.upsample import triton_backend as upsample

BACKENDS = (acfm, alfm, conv, mshf, rfdb, upsample)
Launched = list[Any]


def plain(argument: Any) -> Any:
    """The attributes of an argument that the launcher reads."""
    if isinstance(argument, tuple):
        return tuple(map(plain, argument))
    if hasattr(argument, "strides"):
        base = argument.base.data_ptr()
        round_to_tf32 = getattr(argument, "round_f32_to_tf32", False)  # Triton 3.6 does not know any
        return base, list(argument.shape), list(argument.strides), argument.padding, round_to_tf32
    return argument.data_ptr() if isinstance(argument, Tensor) else argument


@contextmanager
def recorded() -> Iterator[list[Launched]]:
    """The arguments with which Triton's launcher is called, and the descriptors that the driver encodes."""
    found: list[Launched] = []
    inner = CudaLauncher.__call__
    encode = next(n for n in ("fill_tma_descriptor_tiled", "fill_tma_descriptor") if hasattr(driver.active.utils, n))
    encoding = getattr(driver.active.utils, encode)

    def encoded(pointer: int, *rest: Any) -> Any:
        found[-1].append((pointer, *(list(r) if isinstance(r, (list, tuple)) else r for r in rest)))
        return encoding(pointer, *rest)

    def called(self: Any, *arguments: Any) -> None:
        head, hooks, values = arguments[:6], arguments[7:9], arguments[9:]
        assert not any(hook and hook.calls for hook in hooks)
        # A constant, or a size of 1, is compiled into the kernel, and the argument in its place is not read.
        taken = [plain(v) for v in values if isinstance(v, (Tensor, tuple)) or hasattr(v, "strides")]
        found.append([self, *head, taken, [v for v in values if type(v) is int]])
        inner(self, *arguments)

    with mock.patch.object(CudaLauncher, "__call__", called), mock.patch.object(driver.active.utils, encode, encoded):
        yield found


def image(dtype: torch.dtype = torch.bfloat16, channels: int = 50, height: int = 9) -> Tensor:
    return launch.as_kernel_image(torch.zeros(1, channels, height, 8, dtype=dtype))


def weight(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return weight_layout(torch.zeros(50, 50, 3, 3, dtype=dtype))


def check_as_triton_launches_it() -> None:
    """Every kind of launch of every op, forward and backward, has the arguments and descriptors of a launch by
    Triton."""
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    with ExitStack() as stack:
        for backend in BACKENDS:
            stack.enter_context(mock.patch.object(backend, "launch", lambda *a, **k: asked.append((a, k))))
        for _, _, called in calls([op for op in OPS | PARTS if op != "lmfn"], "cpu"):
            called()
        stack.enter_context(mock.patch.object(conv, "ring_programs", return_value=132))
        stack.enter_context(trials.trying(*trials.ON_TRIAL))
        for _, _, called in calls(["conv3x3", "distill_fuse", "rfdb", "stem", "upsampled_conv3x3"], "cpu"):
            called()
    assert len(asked) > 100
    kinds = set()
    for arguments, tensors in asked:
        plan = arguments[1](*arguments[2])
        kind = plan.kernel.__name__, *(name for name, tensor in tensors.items() if tensor is not None)
        if kind in kinds:
            continue
        kinds.add(kind)
        plan.compiled.clear()
        with recorded() as found:
            launch.launch(*arguments, **tensors)
            assert len(plan.compiled) == 1
            launch.launch(*arguments, **tensors)
        assert len(found) == 2
        assert found[0] == found[1], kind
    assert len({kernel for kernel, *_ in kinds}) > 20
    assert len({kind for kind in kinds if kind[0] == "ring_kernel"}) > 3
    assert {"t_z", "t_mask"} <= {name for kind in kinds if kind[0] == "ring_kernel" for name in kind}
    assert len({kind for kind in kinds if kind[0] == "ring_fuse_kernel"}) == 2, "without d4, and with it"
    assert {"ring_weight_gradient_kernel", "ring_upsampled_conv_kernel", "quartered_stem_kernel"} <= {
        kernel for kernel, *_ in kinds
    }


def check_what_a_launch_does_not_do() -> None:
    """From the second call on: no planning, no check of descriptors, no binding by Triton, no choice of a config by
    shape."""
    x, w, b = image(), weight(), torch.zeros(50, dtype=torch.bfloat16)
    conv3x3(x, w, b)
    refused = mock.Mock(side_effect=AssertionError("made again"))
    with (
        mock.patch.object(launch.Plan, "__init__", refused),
        mock.patch.object(TensorDescriptor, "__post_init__", refused),
        mock.patch.object(JITFunction, "run", refused),
        mock.patch.object(launch, "_as_documented", refused),
        recorded() as found,
    ):
        conv3x3(x, w, b)
    assert len(found) == 1


def check_memory_at_another_address() -> None:
    b = torch.zeros(50, dtype=torch.bfloat16)
    with recorded() as found:
        for _ in range(3):
            held = image(), weight(), b.clone()
            y = conv3x3(*held)
            taken = [t[0] if isinstance(t, tuple) else t for t in found[-1][7]]
            assert taken == [held[0].data_ptr(), held[1].data_ptr(), held[2].data_ptr(), y.data_ptr()]
            assert not any(t.data_ptr() in (x.data_ptr() for x in held) for t in (y,))


def check_what_triton_specialises() -> None:
    """Another dtype, alignment or presence of a tensor, or another size or config, selects another compiled kernel."""
    launchers = []
    memory = torch.zeros(64, dtype=torch.bfloat16)
    with recorded() as found:
        for x, b, options in (
            (image(), memory[:50], {}),
            (image(), memory[1:51], {}),
            (image(), memory[:50].float(), {}),
            (image(), None, {}),
            (image(), memory[:50], {"activation": "relu"}),
            (image(height=1), memory[:50], {}),
            (image(height=16), memory[:50], {}),
        ):
            for _ in range(2):
                conv3x3(x, weight(), b, **options) if b is None or b.dtype == x.dtype else conv.conv(
                    x, weight(), b, padding=1
                )
            assert found[-1][0] is found[-2][0]
            launchers.append(found[-1][0])
        before = torch.backends.cudnn.conv.fp32_precision
        for precision in ("tf32", "ieee"):
            torch.backends.cudnn.conv.fp32_precision = precision
            conv3x3(image(torch.float32), weight(torch.float32))
            launchers.append(found[-1][0])
        torch.backends.cudnn.conv.fp32_precision = before
        table = configs.Table({"conv/bfloat16/7": configs.Config(warps=8)}, {})
        with mock.patch.object(configs, "tuned", return_value=table):
            conv3x3(image(), weight(), memory[:50])
        launchers.append(found[-1][0])
    assert len({id(one) for one in launchers}) == len(launchers)


def check_dependent_launches() -> None:
    """Only while they are enabled, at the first launch and later."""
    x, w = image(), weight()
    with recorded() as found:
        for enabled in (False, True, False):
            with trials.trying(*(["overlap"] if enabled else [])):
                for _ in range(2):
                    conv3x3(x, w)
                    assert bool(found[-1][0].launch_pdl) == enabled


def check_weights_ahead() -> None:
    """Only while they are enabled and constant, at the first launch and later."""
    x, w = image(), weight()
    with recorded() as found, mock.patch.object(conv, "ring_programs", return_value=8):

        def launchers(*names: str) -> set[int]:
            with trials.trying(*names):
                for _ in range(2):
                    conv3x3(x, w)
            return {id(one[0]) for one in found[-2:]}

        usual, both = launchers("overlap"), ("overlap", "weights_ahead")
        assert launchers(*both) == usual
        constant_weights.keep_constant([w])
        ahead = launchers(*both)
        assert len(ahead) == len(usual) == 1
        assert ahead != usual
        assert launchers("overlap") == usual
        assert launchers("weights_ahead") == launchers()
        w.zero_()
        assert launchers(*both) == usual


def check_stream_and_device() -> None:
    x, w = image(), weight()
    conv3x3(x, w)
    guarded: list[int] = []

    class Guard:
        def __init__(self, device: int) -> None:
            self.device = device

        def __enter__(self) -> None:
            guarded.append(self.device)

        def __exit__(self, *_: object) -> None:
            pass

    module = mock.Mock(device=Guard)
    with recorded() as found, mock.patch.object(driver.active, "get_current_stream", return_value=77):
        conv3x3(x, w)
        assert found[-1][4] == 77
        assert not guarded
        with (
            mock.patch.object(driver.active, "get_current_device", return_value=5),
            mock.patch.object(torch, "get_device_module", return_value=module),
        ):
            conv3x3(x, w)
        assert guarded == [-1], "the tensors' device for the launch, whatever is the current one"
        compiled = [key for plan in plans() for key in plan.compiled]
        assert all(key[0] == -1 for key in compiled), "what is compiled for a device is its own"


def plans() -> list[launch.Plan]:
    return [o for o in gc.get_objects() if type(o) is launch.Plan]


def check_hooks_see_every_launch() -> None:
    seen: list[Any] = []
    x, w = image(), weight()
    conv3x3(x, w)
    knobs.runtime.launch_enter_hook.add(seen.append)
    try:
        conv3x3(x, w)
        conv3x3(x, w)
    finally:
        knobs.runtime.launch_enter_hook.remove(seen.append)
    conv3x3(x, w)
    assert len(seen) == 2


def check_the_drivers_version() -> None:
    assert assembler.driver_release() == (12, 9), "as the stand-in says"


def check_no_tensor_is_kept() -> None:
    x, w = image(), weight()
    conv3x3(x, w)
    kept = [chain(plan.constants.values(), *(c.arguments for c in plan.compiled.values())) for plan in plans()]
    assert kept
    assert not any(isinstance(value, Tensor) for values in kept for value in values)


def check_without_tma() -> None:
    """On an A100, where descriptors are tuples: the first launch and the next have the same arguments, also for images
    with other strides, for which Triton specialises the kernel, and no descriptor is encoded."""
    narrow = torch.zeros(1, 9, 8, 56, dtype=torch.bfloat16).permute(0, 3, 1, 2)[:, :50]
    w, b, out = launch.weight_as_taps(weight()), torch.zeros(50, dtype=torch.bfloat16), image()
    a100, kernel = configs.Device("a100", 80, 166_912), conv.kernels.conv_kernel
    with (
        mock.patch.object(configs, "describe", return_value=a100),
        mock.patch.object(driver.active, "get_device_capability", return_value=(8, 0)),
        mock.patch.object(kernel, "device_caches", defaultdict(kernel.create_binder)),
        recorded() as found,
    ):
        for x in (image(), narrow):
            for _ in range(2):
                conv.launch_conv(out, x, w, mode="same", padding=1, bias=b)
    first, again, other, other_again = found
    assert first == again
    assert other == other_again
    assert first[0] is not other[0]
    assert {*map(len, found)} == {9}, "a descriptor was encoded"


def check_misaligned_memory_is_refused() -> None:
    """A layout that `as_kernel_image` never returns."""
    x = torch.zeros(64 * 72 + 1, dtype=torch.bfloat16)[1:].view(1, 9, 8, 64).permute(0, 3, 1, 2)
    w = weight_layout(torch.zeros(64, 64, 3, 3, dtype=torch.bfloat16))
    conv.conv(launch.as_kernel_image(x), w, None, padding=1)
    with pytest.raises(AssertionError, match="aligned"):
        conv.conv(x, w, None, padding=1)


def check_the_host_command() -> None:
    """`python -m bench host`, which launches many of the same kernels."""
    printed = io.StringIO()
    with mock.patch.object(host, "here", return_value=nullcontext()), redirect_stdout(printed):
        assert bench.main(["host", "--device", "cpu", "--op", "conv3x3", "--seconds", "0"]) == 0
    *rows, last = printed.getvalue().splitlines()
    conv3x3 = next(row.split() for row in rows if row.startswith("conv3x3"))
    assert conv3x3[:4] == ["conv3x3", "infer", "1", "0"], "one kernel, and nothing of PyTorch's"
    counts = re.fullmatch(r"frame: (\d+) launches, \d+ us; step: (\d+) launches, \d+ us", last)
    assert counts is not None, last
    frame, step = map(int, counts.groups())
    assert 55 <= frame <= 63
    assert 230 <= step <= 250


def main() -> None:
    checks: dict[str, Callable[[], None]] = {n: f for n, f in globals().items() if n.startswith("check_")}
    failed = {}
    with here("cpu"), lmfn_kernels.backend("triton"):
        for name, check in checks.items():
            try:
                check()
                failed[name] = ""
            except Exception:
                failed[name] = traceback.format_exc()
    json.dump(failed, sys.stdout)


if __name__ == "__main__":
    main()
