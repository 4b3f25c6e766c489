"""All names of Triton outside its documented interface that this project uses; only this module imports them.

All of them exist in Triton 3.6, the version that is tested. If one is missing, the import fails with an error that
names it; those of the NVIDIA backend are None in a build of Triton without that backend.
"""

from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver
from triton.runtime.jit import constexpr_function

try:
    from triton.backends.nvidia.compiler import CUDABackend, get_ptxas
    from triton.backends.nvidia.driver import CudaDriver, CudaLauncher
except ImportError:  # Triton for other vendors' GPUs alone
    CUDABackend = get_ptxas = CudaDriver = CudaLauncher = None

__all__ = [
    "CUDABackend",  # `make_cubin`, which assembles PTX
    "CudaDriver",  # the base of the GPU's stand-in in `python -m bench host`
    "CudaLauncher",  # to build a kernel's launcher before its first launch
    "GPUTarget",  # a GPU to compile for
    "JITFunction",  # a kernel
    "constexpr_function",  # what a kernel computes while it is compiled
    "driver",  # the current device, stream and target, faster than asking PyTorch
    "get_ptxas",  # the ptxas that Triton uses for a GPU
]
