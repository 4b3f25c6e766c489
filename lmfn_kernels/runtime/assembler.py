"""Select the ptxas for Hopper (sm_90): 12.9 or newer, which Triton 3.6 and 3.7 include but do not use.

The upper half of a wgmma descriptor is a constant. For one kernel here, ptxas 12.8 computed it from a register that
held an address, and the kernel ended with an illegal memory access. Triton 3.6 and 3.7 assemble for sm_90 with 12.8,
and include a newer `ptxas-blackwell` for later GPUs; Triton 3.8 and newer use at least 12.9.

A launch of this package requests PTX 8.8, the version of 12.9, and Triton is patched to assemble such PTX with the
newer program. Kernels of other packages are unaffected, in every thread. The PTX version is part of Triton's cache key,
and ptxas 12.8 rejects 8.8, so a kernel assembled by it is never mistaken for one of these.
"""

import ctypes
import os
import warnings
from functools import cache
from typing import Any

import torch
import triton
from triton import knobs

from lmfn_kernels.runtime.triton_private import CUDABackend, GPUTarget, driver, get_ptxas

SOUND = (12, 9)
PTX_VERSION = 88


def compiler_options() -> dict[str, int]:
    """Options for Triton's compiler for a launch on the current device."""
    return {} if knobs.runtime.interpret else options(driver.active.get_current_target())


@cache
def options(target: GPUTarget) -> dict[str, int]:
    """Options for Triton's compiler for a launch on `target`.

    Warns if ptxas is older than 12.9 and there is no newer one.
    """
    if target.backend != "cuda" or target.arch != 90:
        return {}
    usual = get_ptxas(90)
    if is_sound(usual, target.arch):
        return {}
    if newer() is None:
        warnings.warn(
            f"Triton {triton.__version__} assembles kernels for this GPU (sm_90) with ptxas {usual.version}, which "
            f"miscompiles some, and brings no newer one that the GPU's driver can load. If a kernel ends with an "
            f"illegal memory access, set TRITON_PTXAS_PATH to the ptxas of CUDA 12.9 or newer",
            RuntimeWarning,
            stacklevel=2,
        )
        return {}
    _use_newer()
    return {"ptx_version": PTX_VERSION}


def assembler(arch: int) -> Any:
    """Triton's ptxas, with `path` and `version`, that assembles these kernels for an NVIDIA GPU, e.g. 90 for sm_90."""
    usual = get_ptxas(arch)
    return usual if is_sound(usual, arch) else newer() or usual


def is_sound(tool: Any, arch: int) -> bool:
    """Whether that ptxas compiles these kernels correctly for that GPU."""
    return arch != 90 or _release(tool) >= SOUND


def newer() -> Any | None:
    """Triton's ptxas for GPUs after Hopper, with `path` and `version`, if there is one and its programs can be loaded.

    A driver does not load machine code of a later major release of CUDA than its own.
    """
    try:
        tool = knobs.nvidia.ptxas_blackwell
    except RuntimeError:  # "Cannot find ptxas-blackwell"
        return None
    release = _release(tool)
    if torch.cuda.is_available() and release[0] > driver_release()[0]:
        return None
    return tool if release >= SOUND else None


def driver_release() -> tuple[int, int]:
    """The CUDA version that the GPU's driver supports, e.g. (12, 9), by CUDA's cuDriverGetVersion."""
    version = ctypes.c_int()
    # PyTorch and Triton have loaded this library before; PyTorch has no function that tells its version.
    ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000, version.value % 1000 // 10


def _release(tool: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in tool.version.split("."))


@cache
def _use_newer() -> None:
    """Make Triton assemble PTX 8.8 for sm_90 with the ptxas of its sm_100 backend."""
    make_cubin = CUDABackend.make_cubin

    def with_newer_ptxas(self: Any, src: str, metadata: Any, opt: Any, capability: int) -> bytes:
        # The backend's own target selects the ptxas, `capability` the target of the assembly.
        asked = capability == 90 and opt.ptx_version == PTX_VERSION
        backend = CUDABackend(GPUTarget("cuda", 100, 32)) if asked else self
        cubin: bytes = make_cubin(backend, src, metadata, opt, capability)
        return cubin

    CUDABackend.make_cubin = with_newer_ptxas
