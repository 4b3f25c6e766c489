"""A GPU driver that does nothing, to measure the host cost of a launch on a machine without a GPU.

Triton compiles as usual up to the layout of the arguments. Its own launcher parses them, encodes descriptors and calls
the driver, which here is a library that returns at once, except for a descriptor that a GPU would not take: that is an
error, as there. Tensors are on the CPU.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from triton import knobs

from lmfn_kernels.runtime.triton_private import CUDABackend, CudaDriver, driver

SHARED = 232_448
"""Bytes of shared memory available to a program on sm_90."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""

LIBCUDA = """
#include <stdint.h>

/* Return the requested values, or 1 where Triton does not read them. */
int cuCtxGetCurrent(uint64_t *context) { *context = 1; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDevicePrimaryCtxRetain(uint64_t *context, int device) { *context = 1; return 0; }
int cuDriverGetVersion(int *version) { *version = 12090; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "error"; return 0; }
int cuModuleLoadData(uint64_t *module, const void *image) { *module = 1; return 0; }
int cuModuleGetFunction(uint64_t *function, uint64_t module, const char *name) { *function = 1; return 0; }
int cuPointerGetAttribute(uint64_t *data, int attribute, uint64_t pointer) { *data = pointer; return 0; }
int cuStreamIsCapturing(uint64_t stream, int *status) { *status = 0; return 0; }

/* Every limit of the device equals its shared memory; a function takes 1,024 threads. */
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 232448; return 0; }
int cuFuncGetAttribute(int *value, int attribute, uint64_t function) { *value = attribute == 0 ? 1024 : 0; return 0; }

int cuCtxGetLimit(uint64_t *value, int limit) { *value = 1; return 0; }
int cuCtxSetCurrent(uint64_t context) { return 0; }
int cuCtxSetLimit(int limit, uint64_t value) { return 0; }
int cuFuncSetAttribute(uint64_t function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(uint64_t function, int config) { return 0; }
int cuInit(unsigned flags) { return 0; }
int cuLaunchKernelEx() { return 0; }
int cuModuleUnload(uint64_t module) { return 0; }
int cuOccupancyMaxActiveClusters(int *clusters) { *clusters = 1; return 0; }
int cuTensorMapEncodeIm2col() { return 0; }

/* As the driver does, refuse (CUDA_ERROR_INVALID_VALUE) what TMA cannot take. */
int cuTensorMapEncodeTiled(void *map, int type, uint32_t rank, uint64_t address, const uint64_t *sizes,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,
                           int swizzle) {
  static const uint32_t bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  if (type < 0 || type > 12 || rank < 1 || rank > 5 || address % 16) return 1;
  for (uint32_t i = 0; i < rank; i++) {
    if (!sizes[i] || sizes[i] > 1ull << 32 || !box[i] || box[i] > 256) return 1;
    if (i + 1 < rank && (strides[i] % 16 || strides[i] >= 1ull << 40)) return 1;
  }
  uint32_t row = box[0] * bytes[type];
  return row % 16 || (swizzle && row > 16u << swizzle);
}
"""


@contextmanager
def gpu() -> Iterator[Any]:
    """Make Triton's NVIDIA driver, on top of that library, the active one.

    Afterwards the process cannot use another driver. Raises RuntimeError if there is no C compiler.
    """
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("no C compiler found, which Triton's launcher needs; install gcc or clang")
    with TemporaryDirectory() as folder, ExitStack() as stack:
        source, library = Path(folder) / "cuda.c", Path(folder) / "libcuda.so.1"
        source.write_text(LIBCUDA)
        name = f"-Wl,-soname,{library.name}"
        subprocess.run([compiler, "-w", "-O2", "-shared", "-fPIC", name, source, "-o", library], check=True)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # later loads of libcuda.so.1 return this library
        stack.enter_context(knobs.nvidia.scope())
        stack.enter_context(knobs.cache.scope())
        knobs.nvidia.libcuda_path = folder
        knobs.cache.dir = str(Path(folder) / "cache")  # keep kernels without machine code out of the user's cache

        stack.enter_context(mock.patch.object(CUDABackend, "make_llir", _only_numbers))
        stack.enter_context(mock.patch.object(CUDABackend, "make_ptx", return_value="none"))
        stack.enter_context(mock.patch.object(CUDABackend, "make_cubin", return_value=b"none"))
        active = CudaDriver()
        active.get_current_device = lambda: -1  # that of CPU tensors
        active.get_current_stream = lambda _device: 0
        active.get_device_capability = lambda _device: (9, 0)
        # Not set_active and reset_active: the second looks for a GPU driver, which may not exist.
        stack.enter_context(mock.patch.object(driver, "_active", active))
        yield active


def keep_freed_memory() -> None:
    """Make the C library reuse memory, as PyTorch's allocator does on a GPU, instead of returning it to the system.

    An output of 128 KiB otherwise takes two system calls. Does nothing where the C library has no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(parameter, 1 << 30)


def _only_numbers(_backend: Any, source: Any, metadata: dict[str, Any], *_: Any) -> str:
    """Set the metadata of a compiled kernel that the launcher reads, without generating code."""
    metadata |= {"name": "kernel", "shared": 0, "tmem_size": 0}
    metadata |= {f"{kind}_scratch_{of}": of == "align" for kind in ("global", "profile") for of in ("size", "align")}
    return str(source)
