"""All that differs in Gluon, which is experimental, between Triton 3.6 and 3.9; only this module knows of it.

Most of it is names. The rest is how the memory from any pixel on becomes a matrix, of which no release has a function.
Pixels in shared memory are a sequence [pixels, 1, channels] without a swizzle, and a matrix is another view of it:

- Up to 3.8, `index` finds any pixel, by a number that need not be a constant. To 3.8 a view is as large as what it is
  made from, so to its layout a pixel is WINDOW pixels, all of them in the same place. `index` does not look at that.
- From 3.9 on, `index` does, and a view may be smaller than what it is made from, which may be a slice. A slice starts
  at a constant, so one of several is chosen by branches, of which the compiler makes a choice among addresses.
"""

# ruff: noqa: N803, RUF005  (names of constants are upper-case; Gluon has no [*x])

import math
from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

from lmfn_kernels.runtime.triton_private import constexpr_function

__all__ = [
    "allocate_pixels",  # a sequence of pixels
    "async_load",  # copies by TMA
    "async_store",
    "part",  # a part of a sequence
    "thread_barrier",  # among the warps of a partition
    "view",  # a part of a sequence as a matrix or an image
]

SLICES = hasattr(gl.shared_memory_descriptor, "reinterpret")
"""Whether this is Triton 3.9 or newer."""
WINDOW = 1 if SLICES else 256

thread_barrier = getattr(gl, "thread_barrier", None) or gl.barrier
async_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
async_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
reinterpret = getattr(gl.shared_memory_descriptor, "reinterpret" if SLICES else "_reinterpret")

_SLICES, _WINDOW = map(gl.constexpr, (SLICES, WINDOW))


@constexpr_function
def _layout(channels: int, window: int) -> Any:
    """Of a sequence. It starts where a swizzle of 128 bytes starts, too."""
    bases = [[0, 1 << i] for i in range(channels.bit_length() - 1)]
    return gl.SharedLinearLayout(bases + [[0, 0]] * (window.bit_length() - 1), [], 1024)


@constexpr_function
def _pixels(shape: list[int], bits: int, channels: int, bits_of_pixels: int) -> int:
    """How many pixels of a sequence a view takes."""
    return math.prod(shape) * bits // (channels * bits_of_pixels)


@gluon.jit
def allocate_pixels(DTYPE: gl.constexpr, PIXELS: gl.constexpr, CHANNELS: gl.constexpr):
    return gl.allocate_shared_memory(DTYPE, [PIXELS, 1, CHANNELS], _layout(CHANNELS, _WINDOW))


@gluon.jit
def part(pixels, i, STEP: gl.constexpr, PIXELS: gl.constexpr):
    """A sequence of PIXELS pixels from `i * STEP` on."""
    if _SLICES:
        found = pixels.slice(0, PIXELS)
        for i_part in gl.static_range(1, (pixels.shape[0] - PIXELS) // STEP + 1):
            if i == i_part:
                found = pixels.slice(i_part * STEP, PIXELS)
    else:
        found = reinterpret(pixels.index(i * STEP), pixels.dtype, [1, 1, pixels.shape[2]], pixels.layout)
    return found


@gluon.jit
def view(pixels, O_P: gl.constexpr, DTYPE: gl.constexpr, SHAPE: gl.constexpr, LAYOUT: gl.constexpr):
    """The memory from pixel O_P of a sequence on, with that shape."""
    PIXELS: gl.constexpr = _pixels(SHAPE, DTYPE.primitive_bitwidth, pixels.shape[2], pixels.dtype.primitive_bitwidth)
    if _SLICES:
        found = reinterpret(pixels.slice(O_P, PIXELS), DTYPE, SHAPE, LAYOUT)
    else:
        found = reinterpret(pixels.index(O_P), DTYPE, [_WINDOW // PIXELS] + SHAPE, LAYOUT).index(0)
    return found
