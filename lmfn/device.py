"""Devices and precisions."""

import contextlib
import functools
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lmfn.options import InferencePrecision, Precision

DTYPES: dict[InferencePrecision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}


def choose_device(name: str | None = None) -> torch.device:
    """The torch device of that name; without a name `cuda` if available, else `mps`, else `cpu`.

    Raises ValueError for a device that is not available here.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [device for device, present in there.items() if present]
    try:
        probe = torch.empty(1, device=name or usable[0])
        probe.cpu()  # `meta` has no values to copy
        return probe.device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"the device {name!r} cannot be used here; there is {', '.join(usable)}") from error


def check_precision(device: torch.device, precision: str) -> None:
    """Raise ValueError for an unknown precision, and for fp16 on a CPU."""
    if precision not in DTYPES:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(DTYPES)}")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU; on a CPU use fp32 or bf16")


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, without waiting for the copy: on CUDA it is made from pinned memory."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def sent_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the host on the device, in one copy, which the host does not wait for."""
    if device.type == "cpu":
        return list(tensors)
    sizes = [-(-tensor.nbytes // 16) * 16 for tensor in tensors]
    packed = torch.zeros(sum(sizes), dtype=torch.uint8)
    for part, tensor in zip(packed.split(sizes), tensors, strict=True):
        part[: tensor.nbytes] = tensor.contiguous().flatten().view(torch.uint8)
    return [
        part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for part, tensor in zip(sent(packed, device).split(sizes), tensors, strict=True)
    ]


@functools.cache
def constant(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor that never changes on the device, copied once."""
    return tensor.to(device)


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[None]:
    """The context in which a network computes with that precision."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32 there: on GPUs with matrix units, and on CPUs with AVX-512 BF16 or AMX."""
    if device.type != "cpu":
        return True
    flags = _cpuinfo().split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def device_name(device: torch.device) -> str:
    """The product name of the device, e.g. `NVIDIA H200`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpuinfo() -> str:
    """The processor entries of /proc/cpuinfo on Linux; empty elsewhere."""
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.is_file() else ""
