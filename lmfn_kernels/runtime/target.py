"""The GPU that a kernel is being compiled for, as a constant in its code."""

from triton import knobs
from triton.language.target_info import current_target

from lmfn_kernels.runtime.triton_private import constexpr_function


@constexpr_function  # type: ignore[untyped-decorator]
def capability() -> int:
    """The compute capability of an NVIDIA GPU, e.g. 90 for 9.0; 0 for other GPUs, and in Triton's interpreter."""
    target = None if knobs.runtime.interpret else current_target()
    return target.arch if target is not None and target.backend == "cuda" else 0
