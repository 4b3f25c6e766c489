"""Triton's names outside its documented interface, all in this module; no other module may import one.

All are in Triton 3.6 and 3.7. If one is missing, the import fails with an error that names it; the classes of the
NVIDIA backend are None in a build of Triton without it.
"""

from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

try:
    from triton.backends.nvidia.compiler import CUDABackend, get_ptxas
    from triton.backends.nvidia.driver import CudaDriver, CudaLauncher
except ImportError:  # Triton for other vendors' GPUs alone
    CUDABackend = get_ptxas = CudaDriver = CudaLauncher = None

__all__ = [
    "CUDABackend",  # its `make_cubin` assembles PTX
    "CudaDriver",  # the driver that stands in for a GPU in `python -m bench host`
    "CudaLauncher",  # the compiled entry of a kernel, built ahead of the first launch
    "GPUTarget",  # names a GPU to compile for
    "JITFunction",
    "driver",  # the current device, stream and target, cheaper than PyTorch's own
    "get_ptxas",  # the ptxas that Triton chooses for a GPU
]
