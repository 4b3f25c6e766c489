"""Kernels on trial: compiled without a fault and right on the CPU, but not yet seen to be right on a GPU.

They are not used, with two exceptions: `trying`, for tests and tables, and the environment variable LMFN_TRY, which
lists names or is "all", to measure them. When `test_on_trial` of `tests/gpu/` has passed for one of them, its name is
deleted here, and the condition where it is used.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

ON_TRIAL = {
    "newer_triton": "all kernels in Gluon with Triton 3.7 to 3.9, as with 3.6",
    "overlap": "launches that overlap, on all GPUs from compute capability 9.0 on",
    "quartered_stem": "the stem, forward",
    "ring_fuse": "distill_fuse, forward",
    "ring_input_gradient": "input gradients of 3x3 convolutions",
    "ring_order": "3x3 convolutions whose two warpgroups multiply in turns",
    "ring_scales": "3x3 convolutions of several maps of different sizes in one launch",
    "ring_upsampled_conv": "upsampled_conv3x3, forward",
    "ring_weight_gradient": "weight gradients of 3x3 convolutions",
    "weights_ahead": "with overlap: constant weights loaded before the wait for the previous launch",
}
"""What each of them computes, in 16 bits on Hopper."""


def _asked_for(names: str) -> set[str]:
    """The names in LMFN_TRY. Raises ValueError if there is no such kernel."""
    asked = set(filter(None, map(str.strip, names.split(","))))
    if unknown := asked - {*ON_TRIAL, "all"}:
        raise ValueError(f"LMFN_TRY lists {', '.join(sorted(unknown))}; on trial are {', '.join(ON_TRIAL)}, or all")
    return set(ON_TRIAL) if "all" in asked else asked


_tried = _asked_for(os.environ.get("LMFN_TRY", ""))


def in_use(name: str) -> bool:
    """Whether one of `ON_TRIAL` is used: asked for by LMFN_TRY, or within `trying`."""
    return name in _tried


@contextmanager
def trying(*names: str) -> Iterator[None]:
    """Use exactly these within the context."""
    global _tried
    before, _tried = _tried, set(names)
    try:
        yield
    finally:
        _tried = before
