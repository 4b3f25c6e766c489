"""Weights that kernels load before they wait for the launch before them: those to which nobody writes any more.

Where launches overlap (`overlap.py`), the programs of a launch may start as soon as all programs of the launch before
it have started, and these may still wait for the one before theirs. So before its wait, a program runs beside any
number of earlier launches of its stream, and what they write is not there, or not visible. It is after its wait, since
no launch ends before the one before it.

A program may therefore read before its wait only what was written, visibly, before any launch that may still run. A
wait of the host for the stream that wrote it has this effect: all launches there before it have ended, and those after
it, on any stream, see what they wrote. `keep_constant` waits so, after the last write, and remembers the memory; from
then on nobody writes to it. It does not wait for the device, which CUDA forbids while another thread captures a graph.

The memory cannot become anything else in between: while a launch that was told to load it early is queued, its memory
may be freed and used again, but only by launches behind it, which write after their own wait, and so after it has
ended. The same holds within a CUDA graph, whose launches all come after what its stream did before: a graph reads the
weights of its capture, at their addresses, as with any other argument.
"""

from collections.abc import Iterable
from functools import partial
from weakref import ref

import torch
from torch import Tensor

_constant: dict[int, tuple[ref[Tensor], int]] = {}
"""By address, the memory that is constant: a tensor that occupies it, and how often PyTorch had written to it."""


def keep_constant(tensors: Iterable[Tensor]) -> None:
    """Declare that nobody writes to the memory of these tensors any more, after all that has been queued on the current
    streams of their devices.

    Waits for these streams. It is no longer declared once PyTorch writes to a tensor or frees it; what PyTorch does not
    count, such as writes in inference mode or by kernels, must not happen.
    """
    found = [tensor for tensor in tensors if not tensor.is_inference()]
    for device in {tensor.device for tensor in found if tensor.device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()
    for tensor in found:
        address = tensor.untyped_storage().data_ptr()
        if address:  # that of an empty tensor is 0
            _constant[address] = ref(tensor, partial(_forget, address)), tensor._version


def _forget(address: int, gone: ref[Tensor]) -> None:
    if _constant.get(address, (None,))[0] is gone:  # and not a tensor for which the memory was used again
        del _constant[address]


def is_constant(x: Tensor) -> bool:
    """Whether the memory of `x`, which may be a view of it, was declared constant, and PyTorch has not written to it
    since."""
    address = x.untyped_storage().data_ptr()
    of, writes = _constant.get(address, (None, 0))
    tensor = None if of is None else of()
    return tensor is not None and tensor._version == writes and tensor.untyped_storage().data_ptr() == address
