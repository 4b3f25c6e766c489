"""Programmatic dependent launches: a kernel starts while the one before it ends.

Between two launches a GPU idles: the last programs of the first end, then those of the second start, and prepare their
barriers and addresses before they load anything. On Hopper (sm_90) and newer NVIDIA GPUs a launch may be dependent: its
programs start as soon as all programs of the launch before it have started and there is room for them. Before it
touches memory, it must wait for the launch before it to end (`wait_for_previous_launch` in `kernels.py`), and therefore
does not end before that one. So it has waited for all earlier launches, too, and memory that is freed can be used again
as usual. Only what is constant may be loaded before (`constant_weights.py`).
"""

from lmfn_kernels.runtime.target import capability
from lmfn_kernels.runtime.trials import in_use
from lmfn_kernels.runtime.triton_private import constexpr_function


@constexpr_function  # type: ignore[untyped-decorator]
def can_overlap() -> bool:
    """Whether the GPU that a kernel is compiled for has dependent launches."""
    return bool(capability() >= 90)


def launch_options() -> dict[str, bool]:
    """Options for Triton's launch on the current device."""
    return {"launch_pdl": True} if in_use("overlap") and can_overlap() else {}
