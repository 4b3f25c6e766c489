"""Programmatic dependent launches: a kernel starts while the one before it ends.

Between two launches a GPU idles: the last programs of the first end, then those of the second start, and prepare their
barriers and addresses before they load anything. On Hopper (sm_90) and newer NVIDIA GPUs a launch may be dependent: its
programs start as soon as all programs of the launch before it have started and there is room for them. Before it
touches memory, it must wait for the launch before it to end (`wait_for_previous_launch` in `kernels.py`), and therefore
does not end before that one. So it has waited for all earlier launches, too, and memory that is freed can be used again
as usual.
"""

from triton import knobs
from triton.language.target_info import cuda_capability_geq

from lmfn_kernels.runtime.triton_private import constexpr_function

ENABLED = False
"""Whether launches are dependent: not until `test_launches_overlap` of `tests/gpu/test_gpu_graphs.py` has passed on a
GPU."""


@constexpr_function  # type: ignore[untyped-decorator]
def can_overlap() -> bool:
    """Whether the GPU that a kernel is compiled for has dependent launches."""
    return not knobs.runtime.interpret and bool(cuda_capability_geq(9))


def launch_options() -> dict[str, bool]:
    """Options for Triton's launch on the current device."""
    return {"launch_pdl": True} if ENABLED and can_overlap() else {}
