"""Selection of the backend of an op."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lmfn_kernels.runtime import configs
from lmfn_kernels.runtime.torch_private import constant_when_compiled

BACKENDS = ("auto", "triton", "torch", "reference")
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _checked(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{where} is {name!r}; it must be one of {', '.join(BACKENDS)}")
    return name


# A plain global instead of a context variable: torch.compile can trace and guard a global.
_chosen = _checked(os.environ.get("LMFN_BACKEND", "auto"), "the environment variable LMFN_BACKEND")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Select the backend of all ops, for the process, until the end of the `with` block.

    `auto`: the Triton kernels if the tensors are on a GPU that can run them, unless its table (`runtime/configs.py`)
    records that PyTorch's own kernels are faster at that size; otherwise PyTorch. `triton`: the kernels, or an error
    with the reason. `torch`: PyTorch under the ops' own autograd function, which saves as little for backward as the
    kernels do. `reference`: the written formula under PyTorch's autograd, with gradients of any order. A backward pass
    uses the backend of its forward pass. The environment variable LMFN_BACKEND sets the initial backend.

    Raises ValueError for another name.
    """
    global _chosen
    before, _chosen = _chosen, _checked(name, "backend")
    try:
        yield
    finally:
        _chosen = before


def choose(x: torch.Tensor, unsupported_reason: str | None, op: str) -> str:
    """The backend for an op on `x`: `triton`, `torch` or `reference`.

    `unsupported_reason` is the reason why the kernels cannot take this call, or None. `op` is the name of the public
    function, as in the device's table.

    Raises RuntimeError if `triton` is selected and unavailable, ValueError if it cannot take the call.
    """
    return explain_backend(op, x, unsupported_reason)[0]


def explain_backend(op: str, x: torch.Tensor, unsupported_reason: str | None = None) -> tuple[str, str]:
    """The backend that the op of that name takes for an image `x`, and why.

    `op` is named as in the tables of `runtime/configs.py`. `unsupported_reason` is the reason why its kernels cannot
    take the call, or None. Raises as `choose`.
    """
    if _chosen in ("torch", "reference"):
        return _chosen, "chosen by LMFN_BACKEND or lmfn_kernels.backend"
    if _chosen == "auto" and not x.is_cuda and x.device.type != "xpu":
        return "torch", "the kernels run on GPUs that Triton supports"
    missing = _missing(x)
    if missing is None and unsupported_reason is None:
        if _chosen == "triton":
            return "triton", "chosen by LMFN_BACKEND or lmfn_kernels.backend"
        if configs.torch_is_faster(op, x):
            return "torch", "PyTorch's kernels are faster at this size, says the device's table"
        return "triton", "the device runs the kernels"
    if _chosen == "auto":
        return "torch", missing or unsupported_reason or ""
    if missing is not None:
        raise RuntimeError(f'backend "triton" cannot run here: {missing}')
    raise ValueError(f'backend "triton" cannot take this call: {unsupported_reason}')


def _missing(x: torch.Tensor) -> str | None:
    """The reason why Triton cannot run on the device of `x`, or None."""
    if not HAS_TRITON:
        return "Triton is not installed"
    if x.device.type == "cpu":
        return None if INTERPRETED else "the tensors are on the CPU, and TRITON_INTERPRET=1 was not set at the start"
    if x.dtype not in TRITON_DTYPES and not INTERPRETED:
        return f"{x.dtype} has no kernels; there are {', '.join(map(str, TRITON_DTYPES))}"
    if x.is_cuda and torch.version.hip is None and _capability(x.device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None if x.is_cuda or x.device.type == "xpu" else f"Triton has no {x.device.type} backend"


@constant_when_compiled
def _capability(device: torch.device) -> tuple[int, int]:
    if device not in _capabilities:
        _capabilities[device] = torch.cuda.get_device_capability(device)
    return _capabilities[device]


# Cached, since PyTorch takes longer to return it than to launch a kernel.
_capabilities: dict[torch.device, tuple[int, int]] = {}
